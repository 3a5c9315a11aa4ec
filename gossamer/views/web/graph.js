// @ts-check
// The attribution-graph view. The model's traits are the only state that outlives a gesture: what a
// user does sets a trait, and what a trait says is drawn, whoever set it.
import { nodeCard } from "./graph_connections.js";
import { Graph } from "./graph_data.js";
import { graphFrame } from "./graph_frame.js";
import { graphKeys, graphPointer } from "./graph_gestures.js";
import { paints } from "./graph_glyphs.js";
import { gridLayout } from "./graph_layout.js";
import { followAddress } from "./graph_link.js";
import { PINS, Pinning } from "./graph_pinning.js";
import { boxes } from "./graph_pins.js";
import { HEAD, FOOT } from "./graph_plot.js";
import { statusText } from "./graph_toolbar.js";
import { readTensors } from "./tensors.js";

const FILTERS = ["threshold", "influence", "links", "hide_errors", "hide_biases", "hidden_classes", "hidden_sides", "colour_by"];
const TRAITS = ["selected", "sort_by", ...PINS, ...FILTERS];
const ZOOMS = [0.25, 12];

/** @param {{model: any, el: HTMLElement, signal?: AbortSignal}} host */
export function render({ model, el, signal }) {
  const view = new GraphPicture(model, el);
  const stop = () => view.stop();
  signal?.addEventListener("abort", stop);
  return stop;
}

class GraphPicture {
  constructor(model, el) {
    this.model = model;
    this.isPage = Boolean(model.static);
    this.graph = new Graph(readTensors(model.get("data")));
    performance.mark("gossamer:decoded");
    this.pinning = new Pinning(model, this.graph);
    this.hovered = -1;
    this.zoomed = 1;
    this.gathers = false;
    this.found = [];
    this.stopped = new AbortController();
    Object.assign(this, graphFrame(el, this.graph, this));
    if (this.isPage) {
      const stop = followAddress(model, this.graph, TRAITS);
      this.stopped.signal.addEventListener("abort", stop);
    }
    this.listen();
    this.resize();
    performance.mark("gossamer:painted");
    this.root.dataset.ready = "true";
  }

  listen() {
    const { model, stopped } = this;
    const { signal } = stopped;
    const changed = { selected: () => this.later("selection", () => this.showSelection()), sort_by: () => this.showSelection() };
    for (const name of TRAITS) {
      const act = changed[name] ?? (() => this.later("refresh", () => this.refresh()));
      model.on(`change:${name}`, act);
      signal.addEventListener("abort", () => model.off(`change:${name}`, act));
    }
    graphPointer(this, signal);
    graphKeys(this, signal);
    this.dark = window.matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.refresh(), { signal });
    let width = 0;
    const watcher = new ResizeObserver(([entry]) => {
      const now = Math.round(entry.contentRect.width);
      if (now === width) return;
      width = now;
      this.later("resize", () => this.resize());
    });
    watcher.observe(this.around);
    signal.addEventListener("abort", () => watcher.disconnect());
  }

  stop() {
    this.stopped.abort();
    cancelAnimationFrame(this.frame);
    this.root.remove();
  }

  // From state to picture

  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  /** Several changes within one frame are one. */
  later(name, act) {
    this.waiting = { ...this.waiting, [name]: act };
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.flush());
  }

  flush() {
    const acts = Object.values(this.waiting ?? {});
    this.waiting = {};
    for (const one of acts) one();
  }

  /** The selected node; -1 for none, or for an id that this graph does not have. */
  get selected() {
    return this.graph.places.get(this.model.get("selected")) ?? -1;
  }

  get theme() {
    return this.dark.matches ? "dark" : "light";
  }

  resize() {
    this.sized = this.plot.scroller.clientWidth > 0; // no room yet, as in a hidden tab
    this.shownBefore = null;
    this.refresh();
  }

  refresh() {
    const { graph } = this;
    const state = Object.fromEntries(TRAITS.map((name) => [name, this.model.get(name)]));
    graph.refilter(state, this.pinning.nodes);
    this.toolbar.update(state);
    this.legend.update(state);
    const same = this.shownBefore && graph.shown.every((one, i) => one === this.shownBefore[i]);
    if (!same) {
      this.shownBefore = graph.shown.slice();
      this.arrangeGrid();
      this.table.show();
      this.findAgain();
    }
    this.draw();
    this.showSubgraph();
    this.showSelection();
  }

  arrangeGrid() {
    if (!this.sized) return;
    const { plot, graph } = this;
    const height = Math.max(240, Math.min(window.innerHeight * 0.58, 680) - HEAD - FOOT);
    const layout = gridLayout(graph, plot.scroller.clientWidth, height, this.zoomed);
    plot.place(layout);
    for (const canvas of [this.base, this.front]) canvas.resize(layout.width, layout.height);
    this.around.dataset.step = String(layout.radius);
  }

  draw() {
    if (!this.sized) return;
    const { graph, plot } = this;
    const { edges, passing } = graph.drawn(this.model.get("links"), this.pinning.nodes);
    const how = { layout: plot.layout, paint: paints(this.theme), by: this.model.get("colour_by") };
    this.base.draw(edges, { ...how, strong: false });
    this.status.textContent = statusText(graph, { passing, drawnEdges: edges.length });
  }

  showSubgraph() {
    const [by, selected] = [this.model.get("colour_by"), this.model.get("selected")];
    this.subgraph.show({ theme: this.theme, by, selected });
  }

  showSelection() {
    const { graph, selected } = this;
    const pinned = selected >= 0 && this.pinning.nodes.has(selected);
    this.connections.show(selected, this.model.get("sort_by"), pinned);
    this.heard.textContent = selected >= 0 ? `${graph.spoken(selected)}${pinned ? ", pinned" : ""}` : "";
    this.subgraph.mark(this.model.get("selected"));
    if (this.sized && selected >= 0 && graph.shown[selected]) this.plot.reveal(selected);
    this.mark();
  }

  /** Colours and marks of all nodes, of which most stay as they are; then what the pointer is on. */
  mark() {
    if (!this.sized) return;
    const { graph, plot, selected } = this;
    const shown = selected >= 0 && graph.shown[selected] === 1;
    plot.base.classList.toggle("quiet", shown);
    const chosen = new Set([...this.subgraph.chosen].map((key) => graph.places.get(key)));
    plot.mark({
      selected, chosen, paint: paints(this.theme), pinned: this.pinning.nodes, found: new Set(this.found),
      shares: shown ? this.shares(selected) : new Map(), bySide: this.model.get("colour_by") === "side",
    });
    this.markHovered();
  }

  /** What changes at each move of the pointer: edges and halos above, which are quick to draw. */
  markHovered() {
    if (!this.sized) return;
    const { graph, plot, hovered, selected } = this;
    const focus = [selected, hovered].filter((node) => node >= 0 && graph.shown[node]);
    const edges = [...new Set(focus.flatMap((node) => graph.near(node, this.model.get("links"))))].sort((a, b) => a - b);
    this.front.draw(edges, {
      layout: plot.layout, paint: paints(this.theme), by: this.model.get("colour_by"), strong: true,
      halos: hovered >= 0 && hovered !== selected ? this.shares(hovered) : new Map(),
    });
    plot.hover(hovered);
    plot.markTokens(new Set(focus.map((node) => graph.positions[node])));
    this.connections.mark(hovered);
  }

  /** For each node next to one: how large a part of the input their edge is. */
  shares(node) {
    const found = new Map();
    if (node === undefined) return found;
    const { inputs, outputs } = this.graph.connections(node);
    for (const edge of inputs) found.set(this.graph.sources[edge], this.graph.share(edge));
    for (const edge of outputs) found.set(this.graph.targets[edge], this.graph.share(edge));
    return found;
  }

  // From gestures to state

  choose(node) {
    if (this.gathering()) return this.gather(node);
    return this.set("selected", node < 0 ? "" : this.graph.ids[node]);
  }

  /** A node under the pointer, with a tip beside it; -1 hides both. */
  hover(node, x = 0, y = 0) {
    if (node !== this.hovered) {
      this.hovered = node;
      if (node >= 0) this.tip.replaceChildren(nodeCard(this.graph, node));
      this.later("hover", () => this.markHovered());
    }
    this.tip.hidden = node < 0;
    if (node < 0) return;
    const { offsetWidth: width, offsetHeight: height } = this.tip;
    const room = this.around.clientWidth;
    this.tip.style.left = `${Math.max(0, x + 18 + width > room ? x - 18 - width : x + 18)}px`;
    this.tip.style.top = `${Math.max(0, Math.min(y + 16, this.around.clientHeight - height))}px`;
  }

  /** A node that the pointer is on elsewhere, as in a list: marked, without a tip. */
  look(node) {
    if (node === this.hovered) return;
    this.hovered = node;
    this.tip.hidden = true;
    this.later("hover", () => this.markHovered());
  }

  pin(node) {
    if (node >= 0) this.pinning.toggle([this.graph.ids[node]]);
  }

  gathering() {
    return this.gathers;
  }

  /** Choose a node for a group; it is pinned, so that it can be in one. */
  gather(node) {
    if (node < 0) return;
    const id = this.graph.ids[node];
    const box = boxes(this.pinning.known).find(({ ids }) => ids.includes(id));
    if (!box) this.pinning.toggle([id]);
    this.flush();
    this.subgraph.toggle(box?.key ?? id);
    this.mark();
  }

  gathered() {
    this.gathers = false;
    this.flush();
    this.subgraph.group();
  }

  sort(order) {
    this.set("sort_by", order);
  }

  leave() {
    this.plot.el.focus();
  }

  say(text) {
    this.heard.textContent = text;
  }

  find(text) {
    this.wanted = text;
    this.findAgain();
    this.mark();
  }

  findAgain() {
    this.found = this.graph.find(this.wanted ?? "");
    this.toolbar.found.textContent = this.wanted ? `${this.found.length} found` : "";
  }

  /** Select the next of the found nodes. */
  nextFound(by) {
    if (!this.found.length) return;
    const at = this.found.indexOf(this.selected);
    const next = at < 0 ? 0 : (at + by + this.found.length) % this.found.length;
    this.choose(this.found[next]);
    this.toolbar.found.textContent = `${next + 1} of ${this.found.length}`;
  }

  /** Wider or narrower columns around a point of the window; null fits them again. */
  zoom(factor, at = this.plot.scroller.clientWidth / 2) {
    if (!this.sized) return;
    const { scroller, layout } = this.plot;
    const part = (scroller.scrollLeft + at) / layout.width;
    this.zoomed = factor === null ? 1 : Math.min(ZOOMS[1], Math.max(ZOOMS[0], this.zoomed * factor));
    this.later("zoom", () => {
      this.arrangeGrid();
      scroller.scrollLeft = part * this.plot.layout.width - at;
      this.hover(-1);
      this.draw();
      this.mark();
    });
  }

  /** Put the address with this reading on the clipboard, or where it can be copied from. */
  link() {
    setTimeout(async () => {
      this.link_.value = window.location.href;
      try {
        await navigator.clipboard.writeText(window.location.href);
        this.say("link copied");
        this.status.textContent = "The link to this reading is copied.";
      } catch {
        this.link_.hidden = false;
        this.link_.select();
      }
    }, 200); // when the address has followed the last change
  }

  help() {
    this.helpPanel.hidden = !this.helpPanel.hidden;
    this.toolbar.keys.setAttribute("aria-expanded", String(!this.helpPanel.hidden));
  }

  clear() {
    if (!this.helpPanel.hidden) this.help();
    else if (this.wanted) {
      this.toolbar.find.value = "";
      this.find("");
      this.plot.el.focus();
    } else if (this.subgraph.chosen.size) {
      this.subgraph.chosen.clear();
      this.showSelection();
    } else this.set("selected", "");
  }
}
