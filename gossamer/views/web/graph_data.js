// @ts-check
// The graph: nodes and edges as columns, what passes the filters, and who is next to whom.
import { showToken } from "./tokens.js";

export const MOST_DRAWN = 20000; // edges that are drawn at once
const LEAST_NEAR = 12; // edges of a node that are drawn each way, however weak
const ERRORS = ["error", "remainder"];
const BIASES = ["bias", "position"];

export class Graph {
  constructor({ arrays, about }) {
    Object.assign(this, { about, n: about.ids.length, ids: about.ids, labels: about.labels, tokens: about.tokens });
    for (const name of ["rows", "positions", "indices", "values", "influence", "cumulative", "weights"]) {
      this[name] = arrays[name];
    }
    this.totals = arrays.input_totals;
    this.kinds = Array.from(arrays.kinds, (code) => about.kinds[code]);
    this.sides = arrays.sides && Array.from(arrays.sides, (code) => about.sides[code]);
    this.places = new Map(this.ids.map((id, i) => [id, i]));
    this.sources = arrays["edges.sources"];
    this.targets = arrays["edges.targets"];
    this.edgeWeights = arrays["edges.weights"]; // strongest first
    this.m = this.sources.length;
    this.measured = arrays["edges.measured"];
    this.classes = arrays["edges.classes"];
    this.edgeSides = arrays["edges.sides"];
    this.largest = this.m ? Math.abs(this.edgeWeights[0]) : 0;
    this.smallest = this.m ? Math.abs(this.edgeWeights[this.m - 1]) : 0;
    this.into = grouped(this.targets, this.n);
    this.from = grouped(this.sources, this.n);
    this.shown = new Uint8Array(this.n).fill(1);
    this.refilter({ threshold: 0, influence: 1, hidden_classes: [], hidden_sides: [] }, new Set());
  }

  get hasSides() {
    return Boolean(this.sides || this.edgeSides);
  }

  /** Words that edges have as their class, each once, in the order of the legend. */
  get classesFound() {
    return this.classes ? this.about.classes.filter((_, code) => this.classes.includes(code)) : [];
  }

  classOf(edge) {
    return this.classes ? this.about.classes[this.classes[edge]] : "";
  }

  sideOf(edge) {
    return this.edgeSides ? this.about.sides[this.edgeSides[edge]] : "";
  }

  measuredOf(edge) {
    return this.measured && !Number.isNaN(this.measured[edge]) ? this.measured[edge] : null;
  }

  /** The edge's size as a part of all that comes into its target. */
  share(edge) {
    const total = this.totals[this.targets[edge]];
    return total > 0 ? this.edgeWeights[edge] / total : 0;
  }

  /** Take the filters of the state; `kept` are nodes that are shown whatever their influence. */
  refilter(chosen, kept) {
    this.threshold = chosen.threshold;
    const hidden = new Set([...(chosen.hide_errors ? ERRORS : []), ...(chosen.hide_biases ? BIASES : [])]);
    const sides = new Set(chosen.hidden_sides);
    for (let i = 0; i < this.n; i++) {
      const kind = this.kinds[i];
      const counts = chosen.influence >= 1 || this.cumulative[i] < chosen.influence;
      const stays = counts || kind === "token" || this.weights[i] > 0 || kept.has(i);
      const passes = !hidden.has(kind) && !(this.sides && sides.has(this.sides[i]));
      this.shown[i] = stays && passes ? 1 : 0;
    }
    this.hiddenClasses = new Set(chosen.hidden_classes);
    this.hiddenSides = sides;
  }

  /** Whether an edge is one to look at: both ends shown, its class and side not hidden. */
  passes(edge) {
    if (!this.shown[this.sources[edge]] || !this.shown[this.targets[edge]]) return false;
    if (this.hiddenClasses.size && this.hiddenClasses.has(this.classOf(edge))) return false;
    return !(this.hiddenSides.size && this.hiddenSides.has(this.sideOf(edge)));
  }

  /** Edges that pass, reach the threshold and are of the link type, strongest first: how many there
   * are, and those that are drawn. */
  drawn(links, pinned) {
    const edges = [];
    let passing = 0;
    for (let edge = 0; edge < this.m; edge++) {
      if (Math.abs(this.edgeWeights[edge]) < this.threshold) break;
      if (!this.passes(edge)) continue;
      if (links !== "all" && !this.linked(edge, links, pinned)) continue;
      passing++;
      if (edges.length < MOST_DRAWN) edges.push(edge);
    }
    return { edges, passing };
  }

  linked(edge, links, pinned) {
    const [from, into] = [pinned.has(this.sources[edge]), pinned.has(this.targets[edge])];
    return { in: into, out: from, both: into || from, pinned: into && from }[links];
  }

  /** Edges into a node and out of it, strongest first. */
  connections(node) {
    const listed = (edges) => Array.from(edges).filter((edge) => this.passes(edge));
    return { inputs: listed(this.into(node)), outputs: listed(this.from(node)) };
  }

  /** The edges of a node that are drawn over the others when it is looked at. */
  near(node, links) {
    const { inputs, outputs } = this.connections(node);
    const strong = (edges) => edges.filter(
      (edge, i) => i < LEAST_NEAR || Math.abs(this.edgeWeights[edge]) >= this.threshold,
    );
    return [...(links === "out" ? [] : strong(inputs)), ...(links === "in" ? [] : strong(outputs))];
  }

  /** How much of all influence the shown nodes have. */
  shareShown() {
    let [shown, all] = [0, 0];
    for (let i = 0; i < this.n; i++) {
      all += this.influence[i];
      if (this.shown[i]) shown += this.influence[i];
    }
    return all > 0 ? shown / all : 1;
  }

  /** Shown nodes whose label, id or token has the text, the most influential first. */
  find(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return [];
    const has = (words) => words.toLowerCase().includes(wanted);
    const found = [];
    for (let i = 0; i < this.n; i++) {
      const token = this.tokens[this.positions[i]];
      const texts = [this.ids[i], this.labels[i], showToken(this.labels[i]), token, showToken(token)];
      if (this.shown[i] && texts.some(has)) found.push(i);
    }
    return found.sort((a, b) => this.influence[b] - this.influence[a] || a - b);
  }

  /** What a node is called in a line: its label, or what it is. */
  name(node) {
    const [kind, label] = [this.kinds[node], this.labels[node]];
    if (kind === "latent") return label ? label : `latent ${this.indices[node]}`;
    if (kind === "token" || kind === "logit") return label || this.tokens[this.positions[node]];
    return label || kind;
  }

  /** A node in one line, for the ear. */
  spoken(node) {
    const what = this.kinds[node] === "latent" ? `latent ${this.indices[node]}` : this.kinds[node];
    const label = this.labels[node] ? `, ${showToken(this.labels[node])}` : "";
    const token = showToken(this.tokens[this.positions[node]]);
    return `${what}${label}, token ${token} at ${this.positions[node]}, ${this.about.row_names[this.rows[node]]}`;
  }
}

/** For each node its edges in the order of the table, as a function of the node. */
function grouped(ends, n) {
  const starts = new Int32Array(n + 1);
  for (const end of ends) starts[end + 1]++;
  for (let i = 0; i < n; i++) starts[i + 1] += starts[i];
  const edges = new Int32Array(ends.length);
  const next = starts.slice(0, n);
  ends.forEach((end, edge) => (edges[next[end]++] = edge));
  return (node) => edges.subarray(starts[node], starts[node + 1]);
}
