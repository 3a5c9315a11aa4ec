// @ts-check
// The grid as SVG: bands and names of rows and tokens, and the nodes, which are a listbox's options.
import { cut, drawn, fitted, glyph, mixed, tint } from "./graph_glyphs.js";
import { LETTER } from "./graph_layout.js";
import { element, showToken } from "./tokens.js";

export const HEAD = 72; // above the rows, for the names of logits
export const FOOT = 68; // below, for tokens that stand at a slant
const FLAT_FOOT = 36;
const FULL = { latent: 0.8, token: 0.8, logit: 0.8 }; // how strongly a kind is filled; others are pale
const PALE = 0.28;

export class GraphPlot {
  /** @param {any} graph @param {string} name unique in the document, begins the ids of options */
  constructor(graph, name) {
    this.graph = graph;
    this.name = name;
    this.el = element("div", "plot");
    this.el.tabIndex = 0;
    this.el.setAttribute("role", "listbox");
    this.gutter = element("div", "rows-names");
    this.gutter.setAttribute("aria-hidden", "true");
    this.scroller = element("div", "scroller");
    this.inner = element("div", "inner");
    this.scroller.append(this.inner);
    [this.base, this.front] = [0, 1].map((i) => {
      const canvas = element("canvas", i ? "front" : "base");
      canvas.setAttribute("aria-hidden", "true");
      return canvas;
    });
    this.ground = drawn("svg", { class: "ground", "aria-hidden": "true" });
    this.svg = drawn("svg", { class: "nodes", role: "presentation" });
    this.inner.append(this.ground, this.base, this.front, this.svg);
    this.nodes = Array.from({ length: graph.n }, (_, i) => this.option(i));
    this.svg.append(...this.nodes);
    this.texts = drawn("g", { "aria-hidden": "true" });
    this.svg.append(this.texts);
  }

  option(i) {
    const { graph } = this;
    const node = drawn("path", {
      id: `${this.name}-${i}`, role: "option", "aria-selected": "false", class: `glyph ${graph.kinds[i]}`,
    });
    node.setAttribute("aria-label", graph.spoken(i));
    node.dataset.node = String(i);
    node.dataset.id = graph.ids[i];
    return node;
  }

  /** Put everything where the layout says. */
  place(layout) {
    const { graph } = this;
    this.layout = layout;
    const letters = (token) => Array.from(showToken(token)).length;
    const width = (position) => layout.xs[position + 1] - layout.xs[position];
    const narrow = graph.tokens.filter((token, i) => width(i) < Math.min(5, letters(token)) * LETTER + 2);
    this.flat = narrow.length * 6 <= graph.tokens.length;
    const height = layout.height + HEAD + (this.flat ? FLAT_FOOT : FOOT);
    for (const svg of [this.ground, this.svg]) {
      svg.setAttribute("width", String(layout.width));
      svg.setAttribute("height", String(height));
      svg.setAttribute("viewBox", `0 ${-HEAD} ${layout.width} ${height}`);
    }
    this.inner.style.width = `${layout.width}px`;
    this.inner.style.height = `${height}px`;
    for (const canvas of [this.base, this.front]) canvas.style.top = `${HEAD}px`;
    const outlines = {};
    for (let i = 0; i < graph.n; i++) {
      const node = this.nodes[i];
      if (!graph.shown[i]) {
        node.setAttribute("display", "none");
        continue;
      }
      const kind = graph.kinds[i];
      outlines[kind] ??= glyph(kind, layout.radius);
      node.removeAttribute("display");
      node.setAttribute("d", outlines[kind]);
      node.setAttribute("transform", `translate(${layout.x[i].toFixed(1)} ${layout.y[i].toFixed(1)})`);
    }
    this.drawGround(layout);
    this.drawLogits(layout);
    this.nameRows(layout);
  }

  drawGround(layout) {
    const { graph } = this;
    const parts = [];
    this.names = [];
    layout.tops.forEach((top, row) => {
      const place = { x: 0, y: top.toFixed(1), width: layout.width, height: layout.heights[row].toFixed(1) };
      parts.push(drawn("rect", { ...place, class: row % 2 ? "band odd" : "band" }));
    });
    graph.tokens.forEach((token, position) => {
      const [left, right] = [layout.xs[position], layout.xs[position + 1]];
      if (position) parts.push(drawn("line", { x1: left, x2: left, y1: 0, y2: layout.height, class: "rule" }));
      this.names[position] = this.tokenName(token, position, (left + right) / 2, right - left, layout.height);
    });
    parts.push(...this.names);
    this.ground.replaceChildren(...parts);
  }

  tokenName(token, position, x, width, y) {
    const { flat } = this;
    const group = drawn("g", { class: "token-name", "data-position": position });
    const place = flat
      ? { x, y: y + 16, "text-anchor": "middle" }
      : { transform: `translate(${x + 4} ${y + 12}) rotate(-50)`, "text-anchor": "end" };
    const shown = flat ? fitted(token, width - 3, "11px ui-monospace, monospace") : cut(token, 10);
    group.append(drawn("text", place, shown), drawn("title", {}, `${showToken(token)} at ${position}`));
    if (flat) group.append(drawn("text", { x, y: y + 30, "text-anchor": "middle", class: "number" }, String(position)));
    return group;
  }

  /** The names of the logits above them, where they do not stand on each other. */
  drawLogits(layout) {
    const { graph } = this;
    const top = graph.about.row_names.length - 1;
    const parts = [];
    const wanted = [];
    for (let i = 0; i < graph.n; i++) {
      if (graph.shown[i] && graph.kinds[i] === "logit" && graph.rows[i] === top) wanted.push(i);
    }
    wanted.sort((a, b) => graph.weights[b] - graph.weights[a]);
    const taken = [];
    for (const i of wanted) {
      const x = layout.x[i];
      if (taken.some((other) => Math.abs(other - x) < 12)) continue;
      taken.push(x);
      // All of a column lean the same way: inwards at the end of the plot.
      const [turn, anchor] = layout.xs[graph.positions[i] + 1] > layout.width - 40 ? [58, "end"] : [-58, "start"];
      const chance = graph.weights[i] < 1 ? ` ${(100 * graph.weights[i]).toFixed(0)} %` : "";
      const name = drawn("text", {
        transform: `translate(${(x + (turn > 0 ? -2 : 2)).toFixed(1)} ${(layout.y[i] - 9).toFixed(1)}) rotate(${turn})`,
        "text-anchor": anchor, class: "logit-name",
      });
      name.append(drawn("tspan", {}, cut(graph.name(i), 8)), drawn("tspan", { class: "number" }, chance));
      parts.push(name);
    }
    this.texts.replaceChildren(...parts);
  }

  nameRows(layout) {
    const names = this.graph.about.row_names.map((name, row) => {
      const line = element("div", "row-name", name);
      line.title = name;
      line.style.top = `${HEAD + layout.tops[row]}px`;
      line.style.height = `${layout.heights[row]}px`;
      return line;
    });
    this.gutter.replaceChildren(...names);
  }

  /** Colours and marks of all nodes.
   * @param {{selected: number, pinned: Set<number>, found: Set<number>, chosen: Set<number>,
   *   shares: Map<number, number>, paint: any, bySide: boolean}} state */
  mark({ selected, pinned, found, chosen, shares, paint, bySide }) {
    const { graph } = this;
    const plain = new Map(); // most nodes have one of few colours
    const fade = (own, part) => {
      const key = own + part;
      if (!plain.has(key)) plain.set(key, mixed(paint.ground, own, part));
      return plain.get(key);
    };
    for (let i = 0; i < graph.n; i++) {
      if (!graph.shown[i]) continue;
      const node = this.nodes[i];
      const share = shares.get(i);
      const own = bySide && graph.sides ? paint.sides[graph.sides[i]] : paint.node;
      const fill = share === undefined ? fade(own, (FULL[graph.kinds[i]] ?? PALE) * (shares.size ? 0.35 : 1)) : tint(share, paint);
      const stroke = share === undefined && shares.size ? fade(own, 0.5) : own;
      let marks = `glyph ${graph.kinds[i]}`;
      if (i === selected) marks += " selected";
      if (pinned.has(i)) marks += " pinned";
      if (found.has(i)) marks += " found";
      if (chosen.has(i)) marks += " chosen";
      if (share !== undefined) marks += " linked";
      const whole = `${marks}|${fill}|${stroke}`;
      if (node.whole === whole) continue; // most stay as they are when the pointer moves
      node.whole = whole;
      if (i === this.under) marks += " hovered";
      node.setAttribute("class", marks);
      node.style.fill = fill;
      node.style.stroke = stroke;
      node.setAttribute("aria-selected", String(i === selected));
      const name = graph.spoken(i);
      node.setAttribute("aria-label", pinned.has(i) ? `${name}, pinned` : name);
    }
    if (selected >= 0 && graph.shown[selected]) this.el.setAttribute("aria-activedescendant", `${this.name}-${selected}`);
    else this.el.removeAttribute("aria-activedescendant");
  }

  /** Mark the node under the pointer, and no other. */
  hover(node) {
    if (this.under === node) return;
    this.nodes[this.under]?.classList.remove("hovered");
    this.nodes[node]?.classList.add("hovered");
    this.under = node;
  }

  /** Mark the tokens of the columns that are looked at. */
  markTokens(positions) {
    this.names.forEach((name, position) => {
      if (positions.has(position) !== name.classList.contains("at")) name.classList.toggle("at");
    });
  }

  /** Scroll as little as shows a node. */
  reveal(node) {
    const [x, { scroller }] = [this.layout.x[node], this];
    const [left, width] = [scroller.scrollLeft, scroller.clientWidth];
    if (x < left + 20) scroller.scrollLeft = x - 60;
    else if (x > left + width - 20) scroller.scrollLeft = x - width + 60;
  }
}
