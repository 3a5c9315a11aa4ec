// @ts-check
// The shown nodes as a table, for who would rather read than look: the most influential first.
import { kindMark } from "./graph_connections.js";
import { KIND_WORDS } from "./graph_glyphs.js";
import { count, element, isolate, short } from "./tokens.js";

const LISTED = 200;

export class NodeTable {
  /** @param {any} graph @param {{choose: Function, pin: Function}} acts */
  constructor(graph, acts) {
    this.graph = graph;
    this.acts = acts;
    this.el = element("details", "all");
    this.el.append(element("summary", "", "nodes as a table"));
    this.scroll = element("div", "scroll");
    this.el.append(this.scroll);
    this.el.addEventListener("toggle", () => this.show());
    this.scroll.addEventListener("click", (event) => {
      const line = event.target.closest("tr[data-node]");
      if (line) this.acts.choose(Number(line.dataset.node));
    });
    this.scroll.addEventListener("keydown", (event) => this.walk(event));
  }

  /** Fill the table, if it is open. */
  show() {
    if (!this.el.open) return;
    const { graph } = this;
    const shown = Array.from({ length: graph.n }, (_, i) => i).filter((i) => graph.shown[i]);
    shown.sort((a, b) => graph.influence[b] - graph.influence[a] || a - b);
    const table = element("table");
    const kept = shown.slice(0, LISTED);
    const all = kept.length < shown.length ? `The ${LISTED} most influential of ${count(shown.length)}` : `All ${count(shown.length)}`;
    table.append(element("caption", "", `${all} nodes shown`));
    const head = element("thead");
    const names = element("tr");
    for (const name of ["node", "kind", "row", "token", "value", "influence", "inputs", "outputs", "id"]) {
      const cell = element("th", "", name);
      cell.scope = "col";
      names.append(cell);
    }
    head.append(names);
    const body = element("tbody");
    kept.forEach((node, i) => body.append(this.line(node, i)));
    table.append(head, body);
    this.scroll.replaceChildren(table);
  }

  line(node, i) {
    const { graph } = this;
    const line = element("tr");
    line.dataset.node = String(node);
    line.tabIndex = i === 0 ? 0 : -1;
    const what = element("td");
    what.append(kindMark(graph.kinds[node]), " ", isolate("meaning", graph.name(node)));
    const token = element("td");
    token.append(isolate("token", graph.tokens[graph.positions[node]]), element("span", "faint", ` ${graph.positions[node]}`));
    const id = element("td");
    id.append(isolate("id", graph.ids[node]));
    line.append(what, element("td", "", KIND_WORDS[graph.kinds[node]]), element("td", "", graph.about.row_names[graph.rows[node]]), token);
    for (const text of [short(graph.values[node]), short(graph.influence[node]), count(graph.into(node).length), count(graph.from(node).length)]) {
      line.append(element("td", "number", text));
    }
    line.append(id);
    return line;
  }

  walk(event) {
    const line = event.target.closest("tr[data-node]");
    if (!line) return;
    const to = { ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling };
    if (event.key === "Enter" || event.key === " ") this.acts.choose(Number(line.dataset.node));
    else if (event.key === "p") this.acts.pin(Number(line.dataset.node));
    else if (to[event.key]) {
      line.tabIndex = -1;
      to[event.key].tabIndex = 0;
      to[event.key].focus();
    } else if (!(event.key in to)) return;
    event.preventDefault();
    event.stopPropagation();
  }
}
