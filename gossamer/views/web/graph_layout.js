// @ts-check
// Where nodes stand: a column for each token as wide as its fullest cell, a row for each writing place.
import { showToken } from "./tokens.js";

const STEPS = [15, 12, 10]; // pixels between the middles of two nodes: as many as there is room for
export const LETTER = 6.7; // pixels that a letter of a token takes
const MOST_LETTERS = 8; // of a token that a column is made wide for
const MOST_LINES = 5; // lines that a cell may break into before the plot scrolls
const LEAST_COLUMN = 20;
const PAD = 10; // between the nodes of two columns
const LEAST_ROW = 17;
const WIDEST = 15000; // pixels; a canvas holds hardly more

/** The grid for the nodes that are shown.
 * @param {any} graph
 * @param {number} room pixels across
 * @param {number} height pixels down that the rows fill at least
 * @param {number} zoom 1 fits the room where that can be done
 */
export function gridLayout(graph, room, height, zoom) {
  const cells = inCells(graph);
  const n = graph.tokens.length;
  const fullest = new Array(n).fill(0);
  const logits = new Array(n).fill(0); // never in more than one line, for they are named
  const top = graph.about.row_names.length - 1;
  for (const [cell, nodes] of cells) {
    const row = Math.floor(cell / n);
    const counts = row === top && graph.kinds[nodes[0]] === "logit" ? logits : fullest;
    counts[cell % n] = Math.max(counts[cell % n], nodes.length);
  }
  const { lines, step, named } = fitting(graph.tokens, fullest, logits, room);
  const widths = fullest.map((k, i) => columnWidth(k, logits[i], lines, step, named ? graph.tokens[i] : ""));
  const sum = widths.reduce((a, b) => a + b, 0) || 1;
  const stretch = Math.min(Math.max(1, room / sum) * zoom, WIDEST / sum);
  const xs = [0];
  for (const width of widths) xs.push(xs[xs.length - 1] + width * stretch);
  const apart = Math.min(step * stretch, 22);
  const { tops, heights, total, down } = rowsOf(graph, cells, lines, Math.min(apart, 14), height);
  const [x, y] = [new Float32Array(graph.n), new Float32Array(graph.n)];
  for (const [cell, nodes] of cells) {
    const [row, position] = [Math.floor(cell / n), cell % n];
    const used = inLine(graph, nodes, row, lines);
    const breaks = Math.ceil(nodes.length / used);
    const middle = (xs[position] + xs[position + 1]) / 2;
    const gap = Math.min(apart, (xs[position + 1] - xs[position] - 4) / Math.max(1, used));
    nodes.forEach((node, i) => {
      const line = Math.floor(i / used);
      const here = Math.min(used, nodes.length - line * used);
      x[node] = middle + ((i % used) - (here - 1) / 2) * gap;
      y[node] = tops[row] + heights[row] / 2 + (line - (breaks - 1) / 2) * down;
    });
  }
  return { width: xs[n], height: total, xs, tops, heights, x, y, radius: Math.max(2.6, Math.min(5, apart * 0.34)) };
}

/** Shown nodes by cell (row × tokens + position): latents by influence, then what has no label. */
function inCells(graph) {
  const cells = new Map();
  const n = graph.tokens.length;
  for (let i = 0; i < graph.n; i++) {
    if (!graph.shown[i]) continue;
    const cell = graph.rows[i] * n + graph.positions[i];
    if (!cells.has(cell)) cells.set(cell, []);
    cells.get(cell).push(i);
  }
  const rest = (node) => (["latent", "logit", "token"].includes(graph.kinds[node]) ? 0 : 1);
  for (const nodes of cells.values()) {
    nodes.sort((a, b) => rest(a) - rest(b) || graph.influence[b] - graph.influence[a] || a - b);
  }
  return cells;
}

/** The fewest lines in a cell, and then the widest step, with which all columns fit the room; with
 * the tokens' names in full, where that can be. */
function fitting(tokens, fullest, logits, room) {
  for (let lines = 1; lines <= MOST_LINES; lines++) {
    for (const named of [true, false]) {
      for (const step of STEPS) {
        const width = (k, i) => columnWidth(k, logits[i], lines, step, named ? tokens[i] : "");
        if (fullest.reduce((sum, k, i) => sum + width(k, i), 0) <= room) return { lines, step, named };
      }
    }
  }
  return { lines: MOST_LINES, step: STEPS[STEPS.length - 1], named: false };
}

function columnWidth(k, logits, lines, step, token) {
  const name = token && Math.min(MOST_LETTERS, Array.from(showToken(token)).length) * LETTER + 8;
  return Math.max(LEAST_COLUMN, Math.max(Math.ceil(k / lines), logits) * step + PAD, name || 0);
}

/** Nodes of a cell in one of its lines. */
function inLine(graph, nodes, row, lines) {
  const top = row === graph.about.row_names.length - 1 && graph.kinds[nodes[0]] === "logit";
  return top ? nodes.length : Math.ceil(nodes.length / Math.min(lines, nodes.length));
}

function rowsOf(graph, cells, lines, down, height) {
  const n = graph.tokens.length;
  const most = graph.about.row_names.map(() => 1);
  for (const [cell, nodes] of cells) {
    const row = Math.floor(cell / n);
    const used = inLine(graph, nodes, row, lines);
    most[row] = Math.max(most[row], Math.ceil(nodes.length / used));
  }
  const needed = most.map((k) => Math.max(LEAST_ROW, k * down + 7));
  const spare = Math.max(0, height - needed.reduce((a, b) => a + b, 0)) / needed.length;
  const heights = needed.map((one) => one + spare);
  const total = heights.reduce((a, b) => a + b, 0);
  let top = total;
  const tops = heights.map((one) => (top -= one)); // row 0 at the bottom
  return { tops, heights, total, down };
}

/** The shown node nearest to a point within some pixels; -1 for none. */
export function nearest(graph, { x, y }, px, py, within) {
  let [best, least] = [-1, within * within];
  for (let i = 0; i < graph.n; i++) {
    if (!graph.shown[i]) continue;
    const far = (x[i] - px) ** 2 + (y[i] - py) ** 2;
    if (far < least) [best, least] = [i, far];
  }
  return best;
}

/** The shown node nearest in a direction; -1 at the end. What lies aside counts as further away. */
export function nextNode(graph, { x, y }, node, right, down) {
  let [best, least] = [-1, Infinity];
  for (let i = 0; i < graph.n; i++) {
    if (!graph.shown[i] || i === node) continue;
    const [dx, dy] = [x[i] - x[node], y[i] - y[node]];
    const along = right ? dx * right : dy * down;
    const across = Math.abs(right ? dy : dx);
    if (along < 0.5) continue;
    const far = along + 2.5 * across;
    if (far < least) [best, least] = [i, far];
  }
  return best;
}
