// @ts-check
// The likeliest next tokens of both sides, targets and distractors first, whatever their rank.
import { scores, scoresOf, tokenId } from "./requests.js";
import { button, element, isolate } from "./text.js";

const LISTED = [10, 7]; // tokens of each side that are listed, with one side and with two

/** Both sides: the analysis and its edits. */
function sidesOf(found) {
  const right = found.comparison?.right;
  return [{ analysis: found.left, edits: found.edits[0] }, ...(right ? [{ analysis: right, edits: found.edits[1] }] : [])];
}

/** Rows {token, id, pinned, sides: [prediction or undefined, …]} as far as the answer has them. */
function rowsOf(found, state) {
  const rows = new Map();
  const sides = sidesOf(found);
  for (const { analysis } of sides) {
    const listed = analysis.predictions.slice(0, LISTED[sides.length - 1]);
    const pinned = analysis.predictions.filter((each) => pinOf(each, state));
    for (const { token, token_id: id } of [...listed, ...pinned, ...(found.pins ?? [])]) {
      if (!rows.has(id)) rows.set(id, { token, id, pinned: "", sides: [] });
    }
  }
  sides.forEach(({ analysis }, i) => {
    for (const each of [...(analysis.more ?? []), ...analysis.predictions]) {
      const row = rows.get(each.token_id);
      if (row) row.sides[i] = each;
    }
  });
  for (const row of rows.values()) row.pinned = pinOf({ token: row.token, token_id: row.id }, state);
  const rank = { target: 0, distractor: 1, "": 2 };
  return [...rows.values()].sort((a, b) => rank[a.pinned] - rank[b.pinned]);
}

function pinOf({ token, token_id: id }, state) {
  const is = (list) => list.some((each) => (each.id === null ? each.text === token : each.id === id));
  if (state.of !== "kl" && is(state.targets)) return "target";
  return state.of === "logit" && is(state.less) ? "distractor" : "";
}

/** Ask for what the answer lacks; whether there was anything. */
export async function fillNext(found, state, signal) {
  const sides = sidesOf(found);
  if (!sides.every(({ analysis }) => analysis.predictions.length)) return false;
  const named = state.of === "kl" ? [] : [...state.targets, ...(state.of === "logit" ? state.less : [])];
  const pins = await Promise.all(named.map(async ({ id, text }) => ({
    token: text,
    token_id: id ?? sides[0].analysis.predictions.find((each) => each.token === text)?.token_id ?? (await tokenId(text, signal)),
  })));
  found.pins = pins;
  const rows = rowsOf(found, state);
  const lacks = (i) => rows.filter((row) => !row.sides[i]);
  let asked = false;
  for (const [i, { analysis, edits }] of sides.entries()) {
    if (!lacks(i).length) continue;
    asked = true;
    const wanted = new Set(lacks(i).map((row) => row.id));
    const more = (await scores(analysis, edits, signal)).filter((each) => wanted.delete(each.token_id));
    const far = pins.filter((each) => wanted.has(each.token_id));
    if (far.length) {
      const [first] = analysis.predictions;
      const values = await scoresOf(far.map((each) => each.token_id), analysis, edits, signal);
      values.forEach((logit, j) => {
        more.push({ ...far[j], logit, probability: Math.exp(logit - first.logit) * first.probability });
      });
    }
    analysis.more = more;
  }
  return asked;
}

/**
 * @param {HTMLElement} place @param {object} found @param {object} state
 * @param {(name: string, token: object) => void} add
 */
export function drawNext(place, found, state, add) {
  const sides = sidesOf(found);
  const two = sides.length === 2;
  place.hidden = !sides.some(({ analysis }) => analysis.predictions.length);
  const names = !two ? [""] : found.edited ? ["edited", "clean"] : ["left", "right"];
  const table = element("table");
  const head = element("thead");
  const [above, below] = [element("tr"), element("tr")];
  const group = (text, width) => Object.assign(heading(text, width > 1 ? "group" : "number"), { colSpan: width, scope: "colgroup" });
  above.append(heading("token"), group("logit", names.length), group("probability", names.length + Number(two)), heading(""));
  below.append(heading(""), ...names.map((name) => heading(name, "number")));
  below.append(...names.map((name) => heading(name, "number")), heading("diff", "number"), heading(""));
  head.append(above, ...(two ? [below] : []));
  const body = element("tbody");
  for (const row of rowsOf(found, state)) body.append(lineOf(row, sides.length, add));
  table.append(head, body);
  place.replaceChildren(element("h2", "", "Next tokens"), table);
}

function lineOf(row, n, add) {
  const line = element("tr", row.pinned);
  line.dataset.token = String(row.id);
  const name = element("th");
  name.scope = "row";
  name.append(isolate("tok", row.token));
  if (row.pinned) name.append(element("span", "pin", row.pinned));
  line.append(name);
  const sides = Array.from({ length: n }, (_, i) => row.sides[i]);
  for (const each of sides) line.append(element("td", "number", each ? minus(each.logit.toFixed(2)) : "–"));
  for (const each of sides) {
    const cell = element("td", "number probability", each ? percent(each.probability) : "–");
    if (each) cell.style.setProperty("--part", each.probability.toFixed(4));
    line.append(cell);
  }
  if (n === 2) line.append(difference(...sides));
  const acts = element("td", "acts");
  const token = { id: row.id, text: row.token };
  const offer = (text, list, title) => acts.append(button(text, () => add(list, token), { title, label: `${title}: ${row.token}` }));
  if (row.pinned !== "target") offer("+", "targets", "make it a target");
  if (row.pinned !== "distractor") offer("−", "less", "make it a distractor");
  line.append(acts);
  return line;
}

function difference(one, other) {
  if (!one || !other) return element("td", "number faint", "–");
  const change = one.probability - other.probability;
  const cell = element("td", "number", `${change >= 5e-5 ? "+" : ""}${percent(change)}`);
  if (change) cell.classList.add(change < 0 ? "negative" : "positive");
  return cell;
}

function percent(part) {
  const hundred = 100 * part;
  const size = Math.abs(hundred);
  if (size < 0.005) return size === 0 ? "0 %" : "≈ 0 %";
  return `${minus(hundred.toFixed(size >= 10 ? 1 : 2))} %`;
}

function minus(text) {
  return text.replace("-", "−");
}

function heading(text, className = "") {
  const cell = element("th", className, text);
  cell.scope = "col";
  return cell;
}
