// @ts-check
// Filters above the graph and the legend below it, which is a filter too.
import { button, input } from "./controls.js";
import { drawn, KIND_WORDS, MARKS, paints } from "./graph_glyphs.js";
import { kindMark, sideWords } from "./graph_connections.js";
import { choice, count, element, short } from "./tokens.js";

const STEPS = 1000;
const LINKS = [
  ["all", "all edges"], ["in", "into pins"], ["out", "out of pins"], ["both", "at pins"], ["pinned", "between pins"],
];

export const GRAPH_KEYS = [
  ["arrows", "nearest node in that direction"],
  ["click, Ctrl-click", "select, pin"],
  ["P", "pin or unpin the selected node"],
  ["Enter", "to the connections; there, follow the focused line"],
  ["Shift (held)", "keep what the pointer shows"],
  ["G (held) + click", "group nodes into a supernode; in the subgraph also by a drag over boxes or the space bar, then G"],
  ["F", "find by label, id or token; Enter for the next"],
  ["+  −  0", "wider, narrower, fitted columns; Ctrl and wheel likewise"],
  ["Ctrl-Z, Ctrl-Y", "undo and redo pins, groups and places"],
  ["Esc", "clear what was found, chosen, selected"],
  ["?", "this list"],
];

/** Find, link type, thresholds, what is hidden, colours. `set(name, value)` changes the state. */
export function graphToolbar(graph, set, acts, isPage) {
  const el = element("div", "toolbar");
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "filters");
  const find = element("input");
  Object.assign(find, { type: "search", placeholder: "find (F)" });
  find.setAttribute("aria-label", "find by label, id or token");
  find.addEventListener("input", () => acts.find(find.value));
  const found = element("span", "faint found-count");
  const links = choice("which edges", LINKS);
  links.addEventListener("change", () => set("links", links.value));
  const weight = weightSlider(graph, set);
  const influence = input("range", "influence");
  Object.assign(influence.field, { min: 0, max: STEPS, step: 1 });
  const part = element("output", "part");
  influence.label.append(part);
  influence.label.title = "Show the most influential nodes that together have this share of all influence";
  influence.field.addEventListener("input", () => set("influence", fromPart(influence.field.valueAsNumber)));
  const errors = input("checkbox", "hide errors");
  errors.field.addEventListener("change", () => set("hide_errors", errors.field.checked));
  const biases = input("checkbox", "hide biases");
  biases.field.addEventListener("change", () => set("hide_biases", biases.field.checked));
  const colours = [["sign", "colour by sign"], ...(graph.hasSides ? [["side", "colour by prompt"]] : []),
    ...(graph.classes ? [["check", "colour by check"]] : [])];
  const colour = choice("colour of edges", colours);
  colour.hidden = colours.length === 1;
  colour.addEventListener("change", () => set("colour_by", colour.value));
  const end = element("div", "end");
  const [less, fit, more] = [["−", 1 / 1.4], ["fit", null], ["+", 1.4]].map(([text, by]) => button(text, () => acts.zoom(by)));
  less.setAttribute("aria-label", "narrower columns");
  more.setAttribute("aria-label", "wider columns");
  const keys = button("? keys", acts.help);
  keys.setAttribute("aria-expanded", "false");
  end.append(less, fit, more, ...(isPage ? [button("copy link", acts.link)] : []), keys);
  el.append(find, found, links, weight.label, influence.label, errors.label, biases.label, colour, end);

  function update(state) {
    links.value = state.links;
    weight.update(state.threshold);
    if (fromPart(influence.field.valueAsNumber) !== state.influence) influence.field.value = String(toPart(state.influence));
    part.textContent = `${Number((100 * state.influence).toFixed(1))} %`;
    influence.field.setAttribute("aria-valuetext", part.textContent);
    errors.field.checked = state.hide_errors;
    biases.field.checked = state.hide_biases;
    colour.value = state.colour_by;
  }
  return { el, update, keys, find, found };
}

/** Fine near all, where most of what can be hidden is. */
function fromPart(step) {
  return Number((1 - (1 - step / STEPS) ** 2).toFixed(4));
}

function toPart(share) {
  return Math.round(STEPS * (1 - Math.sqrt(1 - share)));
}

/** From the smallest edge to the largest in even steps of the logarithm. */
function weightSlider(graph, set) {
  const { label, field } = input("range", "weight ≥");
  Object.assign(field, { min: 0, max: STEPS, step: 1 });
  const number = element("input");
  Object.assign(number, { type: "number", min: 0, step: "any" });
  number.setAttribute("aria-label", "smallest weight shown");
  label.append(number);
  const least = Math.max(graph.smallest, graph.largest * 1e-5);
  const from = (step) => {
    if (step === 0 || !(graph.largest > 0)) return 0;
    return Number((least * (graph.largest / least) ** (step / STEPS)).toPrecision(3));
  };
  const to = (value) => {
    if (!(value > least) || graph.largest <= least) return 0;
    return Math.round(STEPS * Math.min(1, Math.log(value / least) / Math.log(graph.largest / least)));
  };
  field.addEventListener("input", () => set("threshold", from(field.valueAsNumber)));
  number.addEventListener("change", () => set("threshold", Math.max(0, number.valueAsNumber || 0)));
  const update = (value) => {
    if (from(field.valueAsNumber) !== value) field.value = String(to(value));
    field.setAttribute("aria-valuetext", short(value));
    number.value = String(value);
  };
  return { label, update };
}

/** What glyphs, lines, marks and colours mean; classes and sides can be hidden here. */
export function graphLegend(graph, set) {
  const el = element("div", "graph-legend");
  const kinds = element("span", "part");
  for (const kind of new Set(graph.about.kinds.filter((one) => graph.kinds.includes(one)))) {
    const item = element("span", "item");
    item.append(kindMark(kind), element("span", "", KIND_WORDS[kind]));
    kinds.append(item);
  }
  const lines = element("span", "part");
  for (const [name, sign] of [["adds", "positive"], ["takes away", "negative"]]) {
    const item = element("span", `item ${sign}`);
    const svg = drawn("svg", { width: 26, height: 8, "aria-hidden": "true" });
    svg.append(drawn("line", {
      x1: 0, x2: 26, y1: 4, y2: 4, stroke: "currentColor", "stroke-width": 2, ...(sign === "negative" ? { "stroke-dasharray": "5 3.5" } : {}),
    }));
    item.append(svg, element("span", "", name));
    lines.append(item);
  }
  el.append(kinds, lines);
  const fields = [];
  const filter = (title, words, trait, colours, text) => {
    const box = element("fieldset", "part");
    box.append(element("legend", "", title));
    for (const word of words) {
      const { label, field } = input("checkbox", text(word));
      label.classList.add("swatch");
      label.style.setProperty("--light", paints("light")[colours][word]);
      label.style.setProperty("--dark", paints("dark")[colours][word]);
      field.addEventListener("change", () => {
        const hidden = fields.filter((one) => one.trait === trait && !one.field.checked).map((one) => one.word);
        set(trait, hidden);
      });
      fields.push({ trait, word, field });
      box.append(label);
    }
    el.append(box);
  };
  if (graph.classes) {
    const marked = (word) => (word ? `${MARKS[word]} ${word}` : "not checked");
    filter("checked edges", graph.classesFound, "hidden_classes", "classes", marked);
  }
  if (graph.hasSides) {
    const used = (word) => (graph.sides ?? []).includes(word) || Array.from(graph.edgeSides ?? []).some((code) => graph.about.sides[code] === word);
    filter("two prompts", graph.about.sides.filter(used), "hidden_sides", "sides", sideWords);
  }
  function update(state) {
    for (const { trait, word, field } of fields) field.checked = !state[trait].includes(word);
  }
  return { el, update };
}

/** The line below the plot. */
export function statusText(graph, { passing, drawnEdges }) {
  const nodes = graph.shown.reduce((sum, one) => sum + one, 0);
  const capped = drawnEdges < passing ? `, the strongest of ${count(passing)} that pass` : "";
  return `${count(drawnEdges)} of ${count(graph.m)} edges drawn${capped}; ${count(nodes)} of ${count(graph.n)} nodes, `
    + `with ${(100 * graph.shareShown()).toFixed(1)} % of the influence.`;
}
