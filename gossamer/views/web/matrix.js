// @ts-check
// The attribution-matrix view. The model's traits are the only state that outlives a gesture: what a
// user does sets a trait, and what a trait says is drawn, whoever set it.
import { inks } from "./colours.js";
import { button } from "./controls.js";
import { frame } from "./frame.js";
import { Heatmap } from "./heatmap.js";
import { Matrix } from "./matrix_data.js";
import { entryCard, spoken } from "./nodes.js";
import { pointer } from "./pointer.js";
import { readTensors } from "./tensors.js";
import { count, element, showToken, signed } from "./tokens.js";
import { Viewport } from "./viewport.js";

const TRAITS = "selected threshold cross_only scale sources_by targets_by sort_by".split(" ");
const LISTED = 300; // rows of the table
const ARROWS = {
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
};

/** @param {{model: any, el: HTMLElement, signal?: AbortSignal}} host */
export function render({ model, el, signal }) {
  const view = new MatrixPicture(model, el);
  const stop = () => view.stop();
  signal?.addEventListener("abort", stop);
  return stop;
}

class MatrixPicture {
  constructor(model, el) {
    this.model = model;
    const contents = readTensors(model.get("data"));
    this.about = contents.about;
    this.matrix = new Matrix(contents);
    performance.mark("gossamer:decoded");
    this.viewport = new Viewport(this.matrix.rows.length, this.matrix.columns.length);
    this.hovered = null;
    this.stopped = new AbortController();
    Object.assign(this, frame(el, this.matrix, this.about, this));
    this.heatmap = new Heatmap(this.plot, this.canvases, this.matrix, this.viewport);
    this.listen();
    this.refilter();
    this.resize();
    performance.mark("gossamer:painted");
    this.root.dataset.ready = "true";
  }

  listen() {
    const { model, stopped } = this;
    const changed = {
      selected: () => this.showSelection(),
      sort_by: () => this.list(),
      scale: () => this.draw(),
    };
    for (const name of TRAITS) {
      const act = changed[name] ?? (() => this.refilterSoon());
      model.on(`change:${name}`, act);
      stopped.signal.addEventListener("abort", () => model.off(`change:${name}`, act));
    }
    pointer(this.plot, this, stopped.signal);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.dark = window.matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.draw(), { signal: stopped.signal });
    let width = 0;
    const watcher = new ResizeObserver(([entry]) => {
      const now = Math.round(entry.contentRect.width);
      if (now === width) return;
      width = now;
      this.later("resize", () => this.resize());
    });
    watcher.observe(this.plot);
    stopped.signal.addEventListener("abort", () => watcher.disconnect());
  }

  stop() {
    this.stopped.abort();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.root.remove();
  }

  // From state to picture

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  /** The selected [row, column]; null for none, or for ids this matrix does not have. */
  get selected() {
    const ids = this.model.get("selected");
    const row = this.matrix.rows.places.get(ids[0]);
    const column = this.matrix.columns.places.get(ids[1]);
    return row === undefined || column === undefined ? null : [row, column];
  }

  /** Several changes within one frame are one. */
  later(name, act) {
    this.waiting = { ...this.waiting, [name]: act };
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => {
      const acts = Object.values(this.waiting);
      this.waiting = {};
      for (const one of acts) one();
    });
  }

  refilterSoon() {
    this.later("refilter", () => {
      this.refilter();
      this.draw();
    });
  }

  refilter() {
    const { matrix, model } = this;
    const before = [matrix.rows.order, matrix.columns.order];
    matrix.threshold = model.get("threshold");
    matrix.crossOnly = model.get("cross_only");
    const order = [model.get("sources_by"), model.get("targets_by")];
    if (String(order) !== String(this.order)) {
      matrix.orderColumnsBy(matrix.rows.places.get(order[0]));
      matrix.orderRowsBy(matrix.columns.places.get(order[1]));
      // What was looked at has moved away; the strongest now stand at the start.
      if (this.order && matrix.rows.order !== before[0]) this.viewport.top = 0;
      if (this.order && matrix.columns.order !== before[1]) this.viewport.left = 0;
      this.order = order;
    }
    this.toolbar.update(Object.fromEntries(TRAITS.map((name) => [name, model.get(name)])));
    this.nameAxes(...order);
    this.hover(null);
    this.showSelection();
  }

  nameAxes(sourcesBy, targetsBy) {
    const { rows, columns } = this.matrix;
    const by = (side, id) => {
      const node = side.places.get(id);
      if (node === undefined) return "";
      return ` by effect: ${side.indices[node]} ${showToken(side.tokens[node])} @${side.positions[node]}`;
    };
    const part = (kind, side, order) => [
      element("b", "", `${kind} ${side.name}`),
      element("span", "", ` (${count(side.length)})${order}`),
    ];
    this.axis.replaceChildren(
      ...part("→ sources", columns, by(rows, sourcesBy)),
      element("span", "", "   "),
      ...part("↓ targets", rows, by(columns, targetsBy)),
    );
  }

  resize() {
    const room = this.plot.clientWidth;
    const height = Math.max(400, Math.min(window.innerHeight * 0.72, 820));
    this.sized = room > 0 && this.heatmap.resize(room, height);
    this.draw();
  }

  get theme() {
    return this.dark.matches ? "dark" : "light";
  }

  draw() {
    if (!this.sized) return; // no room yet, as in a hidden tab
    this.heatmap.scale = this.model.get("scale");
    const largest = this.heatmap.draw(this.theme, inks(this.theme));
    this.legend.update(largest, this.heatmap.scale, this.theme);
    this.mark();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.list(), this.listed ? 90 : 0);
    this.listed = true;
  }

  drawSoon() {
    this.later("draw", () => this.draw());
  }

  mark() {
    if (!this.sized) return;
    const { rows, columns } = this.matrix;
    const [row, column] = this.selected ?? [];
    const drawn = this.selected && [rows.drawnAt[row], columns.drawnAt[column]];
    this.heatmap.mark(this.hovered, drawn, inks(this.theme));
    const shown = this.hovered
      ? [rows.order[this.hovered[0]], columns.order[this.hovered[1]]]
      : this.selected;
    if (shown) this.prompt.mark(columns.positions[shown[1]], rows.positions[shown[0]]);
    else this.prompt.mark(-1, -1);
  }

  /** The table and the sentence above it: what is in view. */
  list() {
    const { matrix, viewport } = this;
    const { shown, entries } = matrix.strongest(viewport.window(), LISTED);
    const all = count(matrix.rows.length * matrix.columns.length);
    const where = viewport.whole ? "" : " in view";
    const strongest = entries.length ? `; strongest ${signed(this.value(entries[0]))}` : "";
    this.status.textContent = `${count(shown)} of ${all} entries shown${where}${strongest}.`;
    const listed = entries.length < shown ? `The ${entries.length} strongest` : "All";
    const caption = `${listed} of ${count(shown)} entries shown${where}`;
    this.table.show(entries, this.model.get("sort_by"), caption);
    this.table.mark(this.selected);
  }

  value({ row, column }) {
    return this.matrix.value(row, column);
  }

  showSelection() {
    const { matrix, about, panel, selected } = this;
    panel.replaceChildren(element("h2", "", selected ? "selected" : "nothing selected"));
    this.heard.textContent = selected ? spoken(matrix, about, ...selected) : "";
    if (selected) {
      const [row, column] = selected;
      const actions = element("div", "actions");
      actions.append(
        button("order sources by this target", () => this.orderBy("sources_by", row)),
        button("order targets by this source", () => this.orderBy("targets_by", column)),
        button("clear", () => this.set("selected", [])),
      );
      panel.append(entryCard(matrix, about, row, column), actions);
      this.reveal(row, column);
    } else {
      panel.append(element("div", "faint", "Click a cell or a row of the table, or press an arrow."));
    }
    this.table.mark(selected);
    if (this.heatmap?.box) this.mark();
  }

  reveal(row, column) {
    const { rows, columns } = this.matrix;
    const { top, left } = this.viewport;
    this.viewport.reveal(rows.drawnAt[row], columns.drawnAt[column]);
    if (this.viewport.top !== top || this.viewport.left !== left) this.drawSoon();
  }

  // From gestures to state

  choose(row, column) {
    this.set("selected", [this.matrix.rows.ids[row], this.matrix.columns.ids[column]]);
  }

  /** Order one side by a node of the other; again for prompt order. */
  orderBy(trait, node) {
    const side = trait === "sources_by" ? this.matrix.rows : this.matrix.columns;
    const id = side.ids[node];
    this.set(trait, this.model.get(trait) === id ? "" : id);
  }

  zoom(factor, x, y) {
    if (factor === null) this.viewport.reset();
    else this.viewport.zoom(factor, x, y);
    this.hover(null);
    this.drawSoon();
  }

  pan(x, y) {
    this.viewport.pan(x, y);
    this.drawSoon();
  }

  /** Show what is known of the drawn cell at a point of the plot; null hides it. */
  hover(cell, x = 0, y = 0) {
    const same = cell && this.hovered && String(cell) === String(this.hovered);
    this.hovered = cell;
    this.tip.hidden = !cell;
    if (!cell) {
      if (this.heatmap?.box) this.mark();
      return;
    }
    if (!same) {
      const [row, column] = [this.matrix.rows.order[cell[0]], this.matrix.columns.order[cell[1]]];
      this.tip.replaceChildren(entryCard(this.matrix, this.about, row, column));
      if (!this.matrix.shows(row, column)) this.tip.append(element("div", "faint", "not shown"));
      this.mark();
    }
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    const left = x + 18 + width > this.plot.clientWidth ? x - 18 - width : x + 18;
    const top = Math.min(y + 14, Math.max(0, this.plot.clientHeight - height));
    this.tip.style.left = `${Math.max(-8, left)}px`;
    this.tip.style.top = `${top}px`;
  }

  toggleHelp() {
    this.help.hidden = !this.help.hidden;
    this.toolbar.keys.setAttribute("aria-expanded", String(!this.help.hidden));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const acts = {
      "+": () => this.zoomKey(1.5),
      "=": () => this.zoomKey(1.5),
      "-": () => this.zoomKey(1 / 1.5),
      0: () => this.zoom(null),
      c: () => this.set("cross_only", !this.model.get("cross_only")),
      s: () => this.selected && this.orderBy("sources_by", this.selected[0]),
      t: () => this.selected && this.orderBy("targets_by", this.selected[1]),
      "?": () => this.toggleHelp(),
      Escape: () => this.clear(),
    };
    const act = ARROWS[event.key] ? () => this.step(...ARROWS[event.key]) : acts[event.key];
    if (!act) return;
    act();
    event.preventDefault();
    event.stopPropagation();
  }

  /** Around the selected cell when it is in view, else around the middle. */
  zoomKey(factor) {
    const { viewport, selected } = this;
    if (!selected) return this.zoom(factor);
    const [row, column] = selected;
    const y = (this.matrix.rows.drawnAt[row] + 0.5 - viewport.top) / viewport.height;
    const x = (this.matrix.columns.drawnAt[column] + 0.5 - viewport.left) / viewport.width;
    return this.zoom(factor, Math.min(1, Math.max(0, x)), Math.min(1, Math.max(0, y)));
  }

  step(down, right) {
    const { matrix, selected } = this;
    if (selected) {
      const next = matrix.next(...selected, down, right);
      if (next) this.choose(...next);
      return;
    }
    const [strongest] = matrix.strongest(this.viewport.window(), 1).entries;
    if (strongest) this.choose(strongest.row, strongest.column);
  }

  clear() {
    if (!this.help.hidden) this.toggleHelp();
    else if (this.model.get("selected").length) this.set("selected", []);
    else {
      this.set("sources_by", "");
      this.set("targets_by", "");
    }
  }
}
