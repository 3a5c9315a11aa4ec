// @ts-check
// Edges over a corpus as a table: sorted by its headings, filtered by a text.
import { start } from "./host.js";
import { STYLE } from "./style.js";
import { readTensors } from "./tensors.js";
import { count, element, isolate, short, showToken, signed } from "./tokens.js";

const OWN = `
.gossamer .wide { overflow: auto; max-height: 82vh; }
.gossamer .wide thead th { position: sticky; top: 0; background: var(--panel, Canvas); }
.gossamer td.meaning { max-width: 220px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.gossamer input[type=search] { min-width: 18em; margin: 8px 0; }
`;
const HEADINGS = [
  ["source", "source"],
  ["source_label", "fires on"],
  ["target", "target"],
  ["target_label", "fires on"],
  ["offset", "offset"],
  ["n_edges", "edges"],
  ["mean", "mean"],
  ["error", "± error"],
  ["size", "Σ|A|"],
  ["largest", "max |A|"],
  ["normalised", "normalised"],
  ["n_source", "source active"],
  ["n_target", "target active"],
];
const SIGNED = new Set(["mean", "normalised"]);
const COUNTS = new Set(["n_edges", "n_source", "n_target"]);

start(render);

function render({ model, el }) {
  const { arrays, about } = readTensors(model.get("data"));
  const root = element("div", "gossamer");
  const style = document.createElement("style");
  style.textContent = STYLE + OWN;
  const said = `${count(about.n_rows)} pairs of latents from ${count(about.n_edges)} edges over `
    + `${count(about.n_tokens)} tokens, offsets: ${about.offsets}; the largest ${about.by} are shown.`;
  const search = element("input");
  search.type = "search";
  search.placeholder = "latent, site or label";
  search.setAttribute("aria-label", "show rows with this text");
  const shown = element("p", "faint");
  shown.setAttribute("aria-live", "polite");
  const table = element("table");
  const head = element("tr");
  const body = element("tbody");
  const holder = element("div", "wide");
  const thead = element("thead");
  thead.append(head);
  table.append(element("caption", "", about.title), thead, body);
  holder.append(table);
  root.append(style, element("h1", "", about.title), element("p", "", said), search, shown, holder);
  el.append(root);

  const n = about.texts.source.length;
  const words = Array.from({ length: n }, (_, i) =>
    ["source", "source_label", "target", "target_label"].map((name) => about.texts[name][i]).join(" ").toLowerCase());
  let sorting = null; // [column, direction]
  const value = (name, i) => (name in about.texts ? about.texts[name][i] : arrays[name][i]);
  const compare = (name, a, b) => {
    const [x, y] = [value(name, a), value(name, b)];
    if (name in about.texts) return x.localeCompare(y, undefined, { numeric: true });
    return Math.abs(y) - Math.abs(x);
  };
  const draw = () => {
    const wanted = search.value.toLowerCase();
    const rows = [...Array(n).keys()].filter((i) => words[i].includes(wanted));
    if (sorting) {
      const [name, turn] = sorting;
      rows.sort((a, b) => turn * compare(name, a, b) || a - b);
    }
    shown.textContent = `${count(rows.length)} of ${count(n)} rows`;
    body.replaceChildren(...rows.map((i) => line(i, about, arrays)));
    for (const cell of head.children) {
      const mine = sorting && cell.dataset.name === sorting[0];
      const descending = mine && (sorting[1] > 0) !== (cell.dataset.name in about.texts);
      cell.setAttribute("aria-sort", !mine ? "none" : descending ? "descending" : "ascending");
    }
  };
  for (const [name, text] of HEADINGS) {
    const cell = element("th");
    cell.scope = "col";
    cell.dataset.name = name;
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => {
      sorting = [name, sorting && sorting[0] === name ? -sorting[1] : 1];
      draw();
    });
    cell.append(button);
    head.append(cell);
  }
  search.addEventListener("input", draw);
  draw();
  root.dataset.ready = "true";
}

function line(i, about, arrays) {
  const row = element("tr");
  for (const [name] of HEADINGS) {
    if (name in about.texts) {
      const label = name.endsWith("_label");
      const cell = element("td", label ? "meaning" : "node-cell");
      const text = about.texts[name][i];
      cell.append(label ? isolate("meaning", showToken(text)) : element("span", "", text));
      if (label) cell.title = text;
      row.append(cell);
    } else {
      const number = arrays[name][i];
      const text = COUNTS.has(name) ? count(number) : SIGNED.has(name) ? signed(number) : short(number);
      row.append(element("td", SIGNED.has(name) ? `number ${number < 0 ? "negative" : "positive"}` : "number", text));
    }
  }
  return row;
}
