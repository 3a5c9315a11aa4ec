// @ts-check
// Dashboards: a list of latents, the card of one, and the card of a second beside it.
import { barChart } from "./charts.js";
import { start } from "./host.js";
import { STYLE } from "./style.js";
import { readTensors } from "./tensors.js";
import { choice, count, element, isolate, short, showToken } from "./tokens.js";

const LISTED = 500; // rows of the list that are drawn
const ORDERS = [
  ["index", "by index"], ["firings", "most active first"], ["-firings", "least active first"],
  ["maxima", "largest activation first"],
];
const OWN = `
.gossamer .boards { display: grid; grid-template-columns: 270px minmax(0, 1fr); gap: 14px; }
.gossamer .boards.two { grid-template-columns: 230px minmax(0, 1fr) minmax(0, 1fr); }
.gossamer .list { max-height: 82vh; overflow: auto; }
.gossamer .list button { display: block; width: 100%; text-align: left; border-color: transparent;
  background: transparent; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.gossamer .list button[aria-current=true] { background: var(--chip); box-shadow: inset 3px 0 var(--accent); }
.gossamer .example { font: 12px/1.7 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; border-bottom: 1px solid var(--line); padding: 2px 0; }
.gossamer .example .at { outline: 1px solid var(--accent); border-radius: 2px; }
.gossamer .sides { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.gossamer .sides > div { flex: 1 1 180px; }
.gossamer .card h2 { font-size: 16px; margin: 0 0 4px; }
.gossamer .card h3 { font-size: 12px; margin: 12px 0 4px; font-weight: 600; color: var(--faint); }
.gossamer .entry { display: flex; justify-content: space-between; gap: 8px; }
.gossamer input[type=search] { font: inherit; color: inherit; background: var(--ground); padding: 3px 8px;
  border: 1px solid var(--line); border-radius: 6px; width: 190px; }
`;

start(render);

/** A dashboard's numbers, by latent. */
class Board {
  constructor({ arrays, about }) {
    Object.assign(this, { arrays, about });
    this.latents = Array.from(arrays.latents);
    this.rows = new Map(this.latents.map((latent, row) => [latent, row]));
    this.examples = this.latents.map(() => []);
    Array.from(arrays["examples.latents"]).forEach((row, i) => this.examples[row].push(i));
    this.width = about.shapes["examples.tokens"][1];
  }

  name(row) { return this.about.names[row]; }

  text(token) { return token < 0 ? "" : this.about.tokens[token] ?? `<${token}>`; }

  /** Entries of row `row` of a table. */
  entries(name, row) {
    const values = this.arrays[name];
    if (!values) return [];
    const width = this.about.shapes[name][1];
    return Array.from(values.slice(row * width, (row + 1) * width));
  }

  density(row) { return this.arrays.firings[row] / this.about.about.n_tokens; }
}

function render({ model, el }) {
  const board = new Board(readTensors(model.get("data")));
  const root = element("div", "gossamer");
  const style = document.createElement("style");
  style.textContent = STYLE + OWN;
  const { model: name, corpus, n_tokens: n } = board.about.about;
  const read = board.about.site_in === board.about.site_out ? "" : `reads ${board.about.site_in}; `;
  const under = `${read}${count(n)} tokens of ${corpus}, in ${name}. Click a latent for its card, `
    + "shift-click (or “beside”) for a second one next to it.";
  const bar = element("div", "toolbar");
  const search = element("input");
  Object.assign(search, { type: "search", placeholder: "index or token" });
  search.setAttribute("aria-label", "find latents");
  const order = choice("order of latents", ORDERS);
  const shown = element("span", "faint");
  bar.append(search, order, shown);
  const boards = element("div", "boards");
  const list = element("div", "list");
  list.setAttribute("role", "navigation");
  list.setAttribute("aria-label", "latents");
  const [first, second] = [element("div", "card first"), element("div", "card second")];
  boards.append(list, first, second);
  root.append(style, element("h1", "", model.get("title")), element("p", "", under), bar, boards);
  el.append(root);

  const open = (row, beside) => {
    model.set(beside ? "second" : "first", row);
    draw();
  };
  const draw = () => {
    const [one, two] = [model.get("first"), model.get("second")];
    boards.classList.toggle("two", two >= 0);
    first.replaceChildren(card(board, one, open, false));
    second.hidden = two < 0;
    if (two >= 0) second.replaceChildren(card(board, two, open, true));
    for (const button of list.children) button.setAttribute("aria-current", String(Number(button.dataset.row) === one));
  };
  const fill = () => {
    const rows = ordered(board, order.value, search.value.trim().toLowerCase());
    shown.textContent = rows.length > LISTED ? `first ${LISTED} of ${count(rows.length)}` : `${count(rows.length)} latents`;
    list.replaceChildren(...rows.slice(0, LISTED).map((row) => {
      const button = element("button");
      button.dataset.row = String(row);
      button.append(element("b", "", `${board.latents[row]} `), isolate("meaning", board.name(row)));
      button.addEventListener("click", (event) => open(row, event.shiftKey));
      return button;
    }));
    draw();
  };
  search.addEventListener("input", fill);
  order.addEventListener("change", fill);
  fill();
  root.dataset.ready = "true";
}

function ordered(board, order, wanted) {
  const rows = board.latents.map((_, row) => row).filter((row) => !wanted
    || String(board.latents[row]) === wanted || board.name(row).toLowerCase().includes(wanted));
  const by = board.arrays[order.replace(/^-/, "")];
  const sign = order.startsWith("-") ? 1 : -1;
  return by ? rows.sort((a, b) => sign * (by[a] - by[b]) || a - b) : rows;
}

function card(board, row, open, beside) {
  const box = element("div", "panel");
  const latent = board.latents[row];
  const head = element("h2", "", `latent ${latent} `);
  head.append(isolate("meaning", board.name(row)));
  box.append(head);
  const facts = element("p", "", `active on ${count(board.arrays.firings[row])} tokens `
    + `(${short(100 * board.density(row))} %), at most ${short(board.arrays.maxima[row])} `);
  if (board.about.link) {
    const link = element("a", "", "Neuronpedia");
    Object.assign(link, { href: `${board.about.link}/${latent}`, rel: "noreferrer", target: "_blank" });
    facts.append(link);
  }
  box.append(facts, close(open, row, beside));
  if (board.arrays.firings[row] === 0) {
    box.append(element("p", "", "Never active on this corpus."));
  } else {
    const heights = board.entries("histogram", row);
    const edges = Array.from({ length: heights.length + 1 }, (_, i) => (board.arrays.maxima[row] * i) / heights.length);
    const sample = board.about.sampled ? ", of a sample" : "";
    box.append(title(`activations${sample}`), barChart(heights, edges, { name: "tokens", across: "activation" }));
  }
  box.append(logits(board, row), nearest(board, row, open, beside));
  for (const [place, words] of board.about.texts.entries()) {
    box.append(title("your text"), coloured(words, board.entries(`texts.${place}`, row), board.arrays.maxima[row], -1));
  }
  const groups = new Map(); // Map.groupBy is not in every browser of 2023
  for (const i of board.examples[row]) {
    const group = board.arrays["examples.groups"][i];
    groups.set(group, [...(groups.get(group) ?? []), i]);
  }
  const last = Math.max(0, ...board.arrays["examples.groups"]);
  for (const [group, members] of groups) {
    box.append(title(group === 0 ? "strongest" : `quantile ${group} of ${last}, strongest first`));
    for (const i of members) box.append(example(board, i, row));
  }
  return box;
}

/** The button that opens this latent beside, or closes the second card. */
function close(open, row, beside) {
  const button = element("button", "", beside ? "close" : "beside");
  button.addEventListener("click", () => open(beside ? -1 : row, true));
  return button;
}

function logits(board, row) {
  const sides = element("div", "sides");
  ["promotes", "suppresses"].forEach((name, side) => {
    const values = board.entries(`logits.${2 * side}`, row);
    if (!values.length) return;
    const tokens = board.entries(`logits.${2 * side + 1}`, row);
    const column = element("div");
    column.append(title(`${name} (direct)`));
    tokens.forEach((token, i) => column.append(entry(isolate("token", board.text(token)), short(values[i]))));
    sides.append(column);
  });
  return sides;
}

function nearest(board, row, open, beside) {
  const sides = element("div", "sides");
  for (const [name, heading] of [["near", "near by decoder"], ["together", "fire together"]]) {
    const values = board.entries(`${name}.0`, row);
    if (!values.length) continue;
    const column = element("div");
    column.append(title(heading));
    board.entries(`${name}.1`, row).forEach((latent, i) => {
      const other = board.rows.get(latent);
      let label = element("span", "", String(latent));
      if (other !== undefined) {
        label = element("button", "", `${latent} ${showToken(board.name(other)).slice(0, 24)}`);
        label.addEventListener("click", (event) => open(other, beside || event.shiftKey));
      }
      column.append(entry(label, short(values[i])));
    });
    sides.append(column);
  }
  if (board.about.about.no_together) sides.append(element("p", "faint", board.about.about.no_together));
  return sides;
}

function example(board, i, row) {
  const slice = (name) => Array.from(board.arrays[name].slice(i * board.width, (i + 1) * board.width));
  const tokens = slice("examples.tokens");
  const values = slice("examples.activations");
  const inside = tokens.map((token, at) => [token, at]).filter(([token]) => token >= 0);
  const words = inside.map(([token]) => board.text(token));
  const centre = inside.findIndex(([, at]) => at === board.about.about.before);
  return coloured(words, inside.map(([, at]) => values[at]), board.arrays.maxima[row], centre);
}

/** Tokens with their activation as the strength of the ground. */
function coloured(words, values, most, centre) {
  const line = element("div", "example");
  words.forEach((word, i) => {
    const span = element("bdi", i === centre ? "at" : "", word.replace(/\n/g, "⏎").replace(/\t/g, "⇥"));
    if (!/^[\n\t -~]*$/.test(word)) span.textContent = showToken(word);
    const strength = most > 0 ? Math.min(1, Math.max(0, values[i] / most)) : 0;
    if (strength > 0) span.style.background = `rgb(247 140 60 / ${(0.12 + 0.78 * strength).toFixed(2)})`;
    if (strength > 0) span.title = short(values[i]);
    line.append(span);
  });
  return line;
}

function entry(left, right) {
  const line = element("div", "entry");
  line.append(left, element("span", "faint", right));
  return line;
}

function title(text) {
  return element("h3", "", text);
}
