// @ts-check
// The strongest entries as a table: sorted by its headings, walked by arrows, a row selects a cell.
import { element, isolate, signed } from "./tokens.js";

const HEADINGS = [
  ["strength", "#"],
  ["source", "source"],
  ["target", "target"],
  ["value", "value"],
  ["gradient", "gradient"],
];

export class EntryTable {
  /** `choose(row, column)` is called for a row, `sort(order)` for a heading. */
  constructor(matrix, about, { choose, sort }) {
    this.matrix = matrix;
    this.about = about;
    this.choose = choose;
    this.el = element("div", "scroll");
    this.el.tabIndex = -1;
    const table = element("table");
    this.caption = element("caption");
    const head = element("thead");
    const line = element("tr");
    this.headings = HEADINGS.filter(([key]) => key !== "gradient" || matrix.hasGradients).map(
      ([key, text]) => {
        const cell = element("th", key);
        cell.scope = "col";
        const button = element("button", "", key === "value" ? about.quantity : text);
        button.type = "button";
        if (key === "strength") button.setAttribute("aria-label", "rank by strength");
        button.addEventListener("click", () => sort(this.order === key ? `-${key}` : key));
        cell.append(button);
        line.append(cell);
        return [key, cell];
      },
    );
    head.append(line);
    this.body = element("tbody");
    this.body.addEventListener("click", (event) => this.chooseAt(event));
    this.body.addEventListener("keydown", (event) => this.walk(event));
    table.append(this.caption, head, this.body);
    this.el.append(table);
    this.entries = [];
  }

  /** Draw the entries, strongest first as given, in the order asked for. */
  show(entries, order, caption) {
    this.caption.textContent = caption;
    this.order = order;
    this.entries = entries.map((entry, i) => ({ ...entry, rank: i + 1 }));
    const compare = this.comparison(order.replace("-", ""));
    const turn = order.startsWith("-") ? -1 : 1;
    this.entries.sort((a, b) => turn * compare(a, b) || a.rank - b.rank);
    for (const [key, cell] of this.headings) {
      const direction = key === order ? "descending" : `-${key}` === order ? "ascending" : "none";
      const places = key === "source" || key === "target";
      const flipped = { descending: "ascending", ascending: "descending", none: "none" };
      cell.setAttribute("aria-sort", places ? flipped[direction] : direction);
    }
    this.body.replaceChildren(...this.entries.map((entry, i) => this.line(entry, i)));
  }

  comparison(key) {
    const { matrix } = this;
    const gradient = (entry) => matrix.gradient(entry.row, entry.column);
    return {
      strength: (a, b) => a.rank - b.rank,
      source: (a, b) => a.column - b.column,
      target: (a, b) => a.row - b.row,
      value: (a, b) => matrix.value(b.row, b.column) - matrix.value(a.row, a.column),
      gradient: (a, b) => gradient(b) - gradient(a),
    }[key];
  }

  line(entry, i) {
    const { matrix } = this;
    const line = element("tr");
    line.tabIndex = i === 0 ? 0 : -1;
    line.dataset.row = entry.row;
    line.dataset.column = entry.column;
    line.append(element("td", "rank", String(entry.rank)));
    line.append(this.node(matrix.columns, entry.column), this.node(matrix.rows, entry.row));
    const value = matrix.value(entry.row, entry.column);
    line.append(element("td", `number ${value < 0 ? "negative" : "positive"}`, signed(value)));
    if (matrix.hasGradients) {
      const gradient = matrix.gradient(entry.row, entry.column);
      line.append(element("td", "number", signed(gradient)));
    }
    return line;
  }

  node(side, node) {
    const cell = element("td", "node-cell");
    cell.append(
      isolate("token", side.tokens[node]),
      element("span", "faint", ` @${side.positions[node]} `),
      element("span", "index", String(side.indices[node])),
    );
    if (side.labels[node]) cell.append(element("span", "", " "), isolate("meaning", side.labels[node]));
    return cell;
  }

  /** Mark the selected entry's row, if the table has it. */
  mark(selected) {
    for (const line of this.body.rows) {
      const is = selected && +line.dataset.row === selected[0] && +line.dataset.column === selected[1];
      line.classList.toggle("selected", Boolean(is));
      if (is) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
  }

  chooseAt(event) {
    const line = event.target.closest("tr");
    if (!line) return;
    this.focus(line);
    this.choose(+line.dataset.row, +line.dataset.column);
  }

  walk(event) {
    const line = event.target.closest("tr");
    const to = { ArrowDown: line?.nextElementSibling, ArrowUp: line?.previousElementSibling };
    if (event.key === "Enter" || event.key === " ") this.chooseAt(event);
    else if (to[event.key]) this.focus(to[event.key]);
    else if (!(event.key in to)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  focus(line) {
    for (const other of this.body.rows) other.tabIndex = other === line ? 0 : -1;
    line.focus();
  }
}
