// @ts-check
// The rows of a table, alike for one analysis and for two side by side; sorting and finding.
import { nodeName, nodeOrder, parseNode } from "./nodes.js";
import { showToken } from "./text.js";

/** Columns of numbers: key and heading. */
export const COLUMNS = [
  ["activation", "Activation"],
  ["write_norm", "Write norm"],
  ["direct", "Direct"],
  ["total", "Total"],
];

/** Columns whose numbers are effects, with a sign that means something. */
export const EFFECTS = new Set(["direct", "total"]);

/** What the three sides of a column are called. */
export function sidesOf(answer) {
  if (!answer.comparison) return null;
  return answer.edited ? ["edited", "change", "clean"] : ["left", "diff", "right"];
}

/** Rows as {id, name, kind, token, keyToken, label, inCut, values: {column: [number, …]}}. */
export function rowsOf(answer) {
  const { left, comparison } = answer;
  if (!comparison) {
    return left.rows.map((row) => ({
      ...shared(row, left.tokens),
      values: Object.fromEntries(COLUMNS.map(([key]) => [key, [row[key]]])),
    }));
  }
  const right = comparison.right;
  return comparison.rows.map((row) => {
    const onLeft = row.left.direct !== null;
    return {
      ...shared(row, onLeft ? left.tokens : right.tokens),
      values: Object.fromEntries(
        COLUMNS.map(([key]) => [key, [row.left[key], row.difference[key], row.right[key]]]),
      ),
    };
  });
}

/** Whether a trace can go into a node: a latent must be active on every side. */
export function isActive(row) {
  const [left, , right] = row.values.activation;
  return row.kind !== "latent" || (left !== 0 && right !== 0);
}

function shared(row, tokens) {
  const node = parseNode(row.node);
  const token = (position) => (position === null || position === undefined ? null : tokens[position] ?? "");
  return {
    id: row.node,
    kind: row.kind,
    name: nodeName(row.node, row.kind),
    position: node?.position ?? 0,
    token: token(node?.position),
    key: node?.key ?? null,
    keyToken: token(node?.key),
    label: row.label ?? "",
    inCut: row.in_cut,
  };
}

/** The column that a table is ordered by at first. */
export function firstSort(answer) {
  return answer.comparison ? "direct.1" : "direct";
}

/**
 * Rows in an order: a column of numbers by size ("direct", "direct.1" for the second side), by
 * value from either end ("+direct", "-direct"), or by "name", "token", "label".
 */
export function sorted(rows, order) {
  const turn = order.startsWith("-") ? -1 : 1;
  const [key, side] = order.replace(/^[-+]/, "").split(".");
  if (!COLUMNS.some(([column]) => column === key)) return [...rows].sort((a, b) => turn * TEXTUAL[key]?.(a, b) || 0);
  const value = (row) => row.values[key][Number(side ?? 0)] ?? null;
  const absolute = !/^[-+]/.test(order);
  const size = (row) => (absolute ? Math.abs(value(row)) : turn * value(row));
  return [...rows].sort((a, b) => {
    if (value(a) === null || value(b) === null) return Number(value(a) === null) - Number(value(b) === null);
    return size(b) - size(a);
  });
}

const TEXTUAL = {
  name: (a, b) => compareLists(nodeOrder(a.id), nodeOrder(b.id)),
  token: (a, b) => a.position - b.position || (a.key ?? -1) - (b.key ?? -1),
  label: (a, b) => (a.label ? 0 : 1) - (b.label ? 0 : 1) || a.label.localeCompare(b.label),
};

function compareLists(one, other) {
  const at = one.findIndex((value, i) => value !== other[i]);
  return at < 0 ? 0 : one[at] - other[at];
}

/** Rows that have every word of a text in their name, id, token or label. */
export function found(rows, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return rows;
  return rows.filter((row) => {
    const tokens = [row.token, row.keyToken].filter((token) => token !== null);
    const all = [row.name, row.kind, row.id, row.label, ...tokens, ...tokens.map(showToken), `@${row.position}`];
    const heap = all.join("\u0000").toLowerCase();
    return words.every((word) => heap.includes(word));
  });
}

/** The largest size in each column, by column and side. */
export function largest(rows) {
  return Object.fromEntries(
    COLUMNS.map(([key]) => {
      const sides = rows[0]?.values[key].length ?? 1;
      const most = Array.from({ length: sides }, (_, side) =>
        rows.reduce((best, row) => Math.max(best, Math.abs(row.values[key][side] ?? 0)), 0),
      );
      return [key, most];
    }),
  );
}
