// @ts-check
// One node beside the table: its numbers, and of a latent its label and what it speaks for.
import { canAblate, parseNode, waysInto } from "./nodes.js";
import { COLUMNS, isActive, sidesOf } from "./rows.js";
import { latent as fetchLatent, saveLabel } from "./requests.js";
import { button, element, isolate, lined, short, showToken, signed } from "./text.js";

const WAYS = { q: "Trace Q", k: "Trace K", qk: "Trace QK", v: "Trace V", pre: "Trace" };
const LISTS = [
  ["up", "raises"],
  ["down", "lowers"],
  ["read_up", "excited by"],
  ["read_down", "inhibited by"],
];

export class Panel {
  /** @param {HTMLElement} place @param {object} acts `close()`, `ablate(id)`, `trace(id, way)`, `labelled(site, unit, label)` */
  constructor(place, acts) {
    this.place = place;
    this.acts = acts;
    this.turn = 0;
    this.id = "";
  }

  /** Show a node; none closes the panel. */
  show(id, answer, rows, state) {
    const node = id ? parseNode(id) : null;
    this.place.hidden = !node;
    if (!node) {
      this.turn++;
      this.id = "";
      return;
    }
    const row = rows.find((each) => each.id === id);
    const head = element("header");
    head.append(element("h2", "", row?.name ?? id), button("×", () => this.acts.close(), { label: "close the panel", title: "Esc" }));
    const where = element("p", "faint id", id);
    const parts = [head, where];
    if (row) parts.push(this.at(row), this.numbers(row, answer), this.verbs(row, state));
    else parts.push(element("p", "faint", "This table does not list it."));
    const isLatent = row ? row.kind === "latent" : typeof node.unit === "number";
    if (this.id !== id || !this.about) this.about = isLatent ? this.latent(node) : element("div");
    this.id = id;
    this.place.replaceChildren(...parts, this.about);
  }

  at(row) {
    const line = element("p");
    line.append("at ", isolate("tok", row.token ?? ""), element("sub", "", String(row.position)));
    if (row.key !== null) line.append(" from ", isolate("tok", row.keyToken ?? ""), element("sub", "", String(row.key)));
    if (!row.inCut) line.append(element("span", "faint", "; outside the cut, not counted in the sums"));
    return line;
  }

  numbers(row, answer) {
    const sides = sidesOf(answer);
    const table = element("table", "numbers");
    if (sides) {
      const head = element("tr");
      head.append(element("th"), ...sides.map((side) => Object.assign(element("th", "number", side), { scope: "col" })));
      table.append(head);
    }
    for (const [key, text] of COLUMNS) {
      const line = element("tr");
      line.append(Object.assign(element("th", "", text), { scope: "row" }));
      row.values[key].forEach((value, side) => {
        const cell = element("td", "number", side === 1 && value !== null ? signed(value) : short(value));
        if (value && (key === "direct" || key === "total")) cell.classList.add(value < 0 ? "negative" : "positive");
        line.append(cell);
      });
      table.append(line);
    }
    return table;
  }

  verbs(row, state) {
    const box = element("div", "verbs");
    if (canAblate(row.kind)) {
      const done = state.ablate.includes(row.id);
      box.append(button(done ? "Restore" : "Ablate", () => this.acts.ablate(row.id)));
    }
    for (const way of isActive(row) ? waysInto(row.kind) : []) {
      box.append(button(WAYS[way], () => this.acts.trace(row.id, way)));
    }
    return box;
  }

  /** What is known of a latent, when it has come. */
  latent(node) {
    const box = element("div", "latent");
    box.append(element("p", "faint", "reading…"));
    const turn = ++this.turn;
    fetchLatent(node.site, node.unit)
      .then((found) => {
        if (turn === this.turn) box.replaceChildren(...this.known(node, found));
      })
      .catch((error) => {
        if (turn === this.turn) box.replaceChildren(element("p", "error", error.message));
      });
    return box;
  }

  known(node, found) {
    const parts = [this.labelForm(node, found)];
    const lists = element("div", "lens");
    for (const [key, title] of LISTS) {
      const scores = (found.lens ?? found)[key] ?? [];
      if (!scores.length) continue;
      const column = element("section");
      column.append(element("h3", "", title));
      const list = element("ul");
      const format = lined(Math.max(...scores.map(({ score }) => Math.abs(score))));
      for (const { token, score } of scores) {
        const line = element("li");
        line.append(isolate("tok", token), element("span", "number faint", format(score)));
        list.append(line);
      }
      column.append(list);
      lists.append(column);
    }
    if (lists.children.length) parts.push(lists);
    if (found.top_tokens?.length) parts.push(element("h3", "", "fires on"), tokens(found.top_tokens));
    if (found.contexts?.length) parts.push(element("h3", "", "in these texts"), ...found.contexts.map(context));
    return parts;
  }

  labelForm(node, found) {
    const form = element("form", "label-form");
    form.dataset.field = "label";
    const name = element("label", "", "label ");
    const input = element("input");
    Object.assign(input, { type: "text", value: found.own_label ?? "", maxLength: 200, autocomplete: "off" });
    input.id = "label";
    name.append(input);
    input.placeholder = showToken(found.label ?? "");
    input.title = "yours; without one the label is made from what it fires on";
    const save = element("button", "", "Save");
    save.type = "submit";
    const said = element("span", "faint");
    said.setAttribute("role", "status");
    form.append(name, save, said);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      said.className = "faint";
      said.textContent = "saving…";
      try {
        const saved = await saveLabel(node.site, node.unit, input.value);
        said.textContent = "saved";
        this.acts.labelled(node.site, node.unit, saved.label ?? input.value);
      } catch (error) {
        said.className = "error";
        said.textContent = error.message;
      }
    });
    return form;
  }
}

function tokens(list) {
  const line = element("p", "fires");
  for (const token of list) line.append(isolate("tok", token), " ");
  return line;
}

function context(text) {
  const line = element("p", "example");
  line.append(isolate("", text));
  return line;
}
