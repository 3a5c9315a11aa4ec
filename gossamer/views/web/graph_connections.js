// @ts-check
// What is known of a node, and its inputs and outputs: two tables whose lines lead to other nodes.
import { button } from "./controls.js";
import { cut, drawn, glyph, KIND_WORDS, MARKS, paints } from "./graph_glyphs.js";
import { excerptLines } from "./nodes.js";
import { choice, count, element, isolate, short, showToken, signed } from "./tokens.js";

const LISTED = 60; // lines of one sign
const ORDERS = [["weight", "by weight"], ["label", "by label"], ["token", "by token"], ["measured", "by measured effect"]];

/** A small picture of a kind, in the colour of its text. */
export function kindMark(kind) {
  const svg = drawn("svg", { class: "kind-mark", width: 12, height: 12, viewBox: "-7 -7 14 14", "aria-hidden": "true" });
  svg.append(drawn("path", { d: glyph(kind, 4.6) }));
  return svg;
}

/** A node as in the tip and at the head of the panel. */
export function nodeCard(graph, node) {
  const card = element("div", "graph-node");
  const head = element("div", "head");
  head.append(kindMark(graph.kinds[node]), isolate("meaning name", graph.name(node)));
  card.append(head);
  const place = element("div", "place");
  place.append(
    element("span", "faint", `${KIND_WORDS[graph.kinds[node]]}${graph.indices[node] >= 0 ? ` ${graph.indices[node]}` : ""} in ${graph.about.row_names[graph.rows[node]]}, at `),
    isolate("token", graph.tokens[graph.positions[node]]),
    element("span", "faint", ` ${graph.positions[node]}`),
  );
  card.append(place);
  const facts = [];
  const kind = graph.kinds[node];
  if (kind === "latent") facts.push(`activation ${short(graph.values[node])}`);
  if (kind === "logit") facts.push(`score ${short(graph.values[node])}`);
  if (graph.weights[node] > 0) facts.push(`target, weight ${short(graph.weights[node])}`);
  facts.push(`influence ${short(graph.influence[node])}`);
  if (graph.sides && graph.sides[node]) facts.push(sideWords(graph.sides[node]));
  card.append(element("div", "faint", facts.join(" · ")), isolate("id", graph.ids[node]));
  return card;
}

export function sideWords(side) {
  return { first: "first prompt only", second: "second prompt only", both: "both prompts", changed: "changed between the prompts" }[side] ?? "no side";
}

const COLUMNS = { node: "what", row: "row", token: "token", weight: "weight", "%": "part", measured: "measured" };

export class Connections {
  /** @param {any} graph @param {{choose: Function, pin: Function, look: Function, sort: Function, leave: Function}} acts */
  constructor(graph, acts) {
    this.graph = graph;
    this.acts = acts;
    this.el = element("section", "panel connections");
    this.el.setAttribute("aria-label", "selected node");
    this.head = element("div", "selected-node");
    this.bar = element("div", "bar");
    this.filter = element("input");
    Object.assign(this.filter, { type: "search", placeholder: "filter" });
    this.filter.setAttribute("aria-label", "filter connections");
    this.filter.addEventListener("input", () => this.list());
    this.order = choice("order of connections", graph.measured ? ORDERS : ORDERS.slice(0, 3));
    this.order.addEventListener("change", () => acts.sort(this.order.value));
    this.bar.append(this.filter, this.order);
    this.lists = element("div", "lists");
    this.lists.tabIndex = -1;
    this.el.append(this.head, this.bar, this.lists);
    this.lists.addEventListener("click", (event) => this.clicked(event));
    this.lists.addEventListener("keydown", (event) => this.walk(event));
    this.lists.addEventListener("pointerover", (event) => acts.look(this.nodeAt(event)));
    this.lists.addEventListener("pointerleave", () => acts.look(-1));
    this.lists.addEventListener("focusin", (event) => acts.look(this.nodeAt(event)));
    this.lists.addEventListener("focusout", () => acts.look(-1));
    this.node = -1;
  }

  show(node, order, pinned) {
    const { graph, acts } = this;
    const focused = this.el.getRootNode().activeElement; // a shadow root has its own
    const had = this.lists.contains(focused);
    const edge = had ? focused.dataset.edge : "";
    const changed = node !== this.node;
    this.node = node;
    this.order.value = order;
    this.bar.hidden = node < 0;
    if (node < 0) {
      this.head.replaceChildren(
        element("h2", "", "nothing selected"),
        element("div", "faint", "Click a node, or press an arrow, to see what it is made of and what it is used for. Ctrl-click or P pins it to the subgraph."),
      );
      this.lists.replaceChildren(...this.starts());
      return;
    }
    if (changed) this.filter.value = "";
    const actions = element("div", "actions");
    const pin = button(pinned ? "unpin" : "pin", () => acts.pin(node));
    pin.setAttribute("aria-pressed", String(pinned));
    actions.append(pin, button("clear", () => acts.choose(-1)));
    const link = graph.about.links[node];
    if (link) {
      const out = element("a", "", "more about it ↗");
      Object.assign(out, { href: link, rel: "noreferrer", target: "_blank" });
      actions.append(out);
    }
    this.head.replaceChildren(nodeCard(graph, node), ...excerptLines(graph.about.excerpts[node]), actions);
    this.list();
    const same = changed ? null : this.lists.querySelector(`tr[data-edge="${edge}"]`);
    if (same) this.focus(same);
    else if (had) this.focusFirst();
  }

  /** Where one can begin: the targets and the most influential latents that are shown. */
  starts() {
    const { graph } = this;
    const shown = Array.from({ length: graph.n }, (_, i) => i).filter((i) => graph.shown[i]);
    const most = (values) => (a, b) => values[b] - values[a] || a - b;
    const targets = shown.filter((i) => graph.weights[i] > 0).sort(most(graph.weights)).slice(0, 10);
    const latents = shown.filter((i) => graph.kinds[i] === "latent" && graph.influence[i] > 0);
    latents.sort(most(graph.influence));
    const made = [["targets", targets, graph.weights], ["most influential latents", latents.slice(0, 15), graph.influence]]
      .filter(([, nodes]) => nodes.length)
      .map(([title, nodes, values]) => {
        const table = element("table", "starts");
        table.append(element("caption", "", title));
        const body = element("tbody");
        for (const node of nodes) {
          const line = element("tr");
          line.tabIndex = -1;
          line.dataset.node = String(node);
          const what = element("td", "what");
          what.append(kindMark(graph.kinds[node]), isolate("meaning", graph.name(node)));
          const token = element("td", "where");
          token.append(element("bdi", "token", cut(graph.tokens[graph.positions[node]], 8)));
          line.append(what, element("td", "row faint", graph.about.row_names[graph.rows[node]]), token, element("td", "number", short(values[node])));
          body.append(line);
        }
        table.append(body);
        return table;
      });
    const first = made[0]?.querySelector("tr");
    if (first) first.tabIndex = 0;
    return made;
  }

  list() {
    const { graph, node } = this;
    const { inputs, outputs } = graph.connections(node);
    this.lists.replaceChildren(
      this.table("inputs", inputs, graph.sources),
      this.table("outputs", outputs, graph.targets),
    );
    const first = this.lists.querySelector("tr[data-node]");
    if (first) first.tabIndex = 0;
  }

  /** Edges of one direction, those that add and those that take away. */
  table(title, edges, ends) {
    const { graph } = this;
    const wanted = this.filter.value.trim().toLowerCase();
    const kept = edges.filter((edge) => !wanted || this.matches(ends[edge], wanted));
    kept.sort(this.comparison(ends));
    const table = element("table", title);
    const caption = element("caption");
    this.most = Math.max(1e-9, ...edges.slice(0, 1000).map((edge) => Math.abs(graph.share(edge)))); // for the bars
    const covered = edges.reduce((sum, edge) => sum + Math.abs(graph.share(edge)), 0);
    const note = title === "inputs" && edges.length ? `, ${(100 * covered).toFixed(0)} % of all that comes in` : "";
    caption.append(element("b", "", title), element("span", "faint", ` ${count(kept.length)}${note}`));
    table.append(caption);
    const head = element("thead");
    const line = element("tr");
    const columns = ["node", "row", "token", "weight", "%", ...(graph.measured || graph.classes ? ["measured"] : [])];
    for (const name of columns) {
      const cell = element("th", `${COLUMNS[name]}${["weight", "%", "measured"].includes(name) ? " number" : ""}`, name);
      if (name === "%") cell.title = "of the sizes of all edges into the target";
      cell.scope = "col";
      line.append(cell);
    }
    head.append(line);
    table.append(head);
    for (const [name, sign] of [["positive", 1], ["negative", -1]]) {
      const these = kept.filter((edge) => Math.sign(graph.edgeWeights[edge]) === sign);
      if (!these.length) continue;
      const body = element("tbody", `of-${name}`);
      const heading = element("tr", "sign");
      const title_ = element("th", name, `${sign > 0 ? "+ adds" : "− takes away"} (${count(these.length)})`);
      title_.colSpan = columns.length;
      title_.scope = "rowgroup";
      heading.append(title_);
      body.append(heading, ...these.slice(0, LISTED).map((edge) => this.line(edge, ends[edge])));
      if (these.length > LISTED) {
        const more = element("tr", "more");
        const rest = element("td", "faint", `and ${count(these.length - LISTED)} weaker ones`);
        rest.colSpan = columns.length;
        more.append(rest);
        body.append(more);
      }
      table.append(body);
    }
    return table;
  }

  matches(node, wanted) {
    const { graph } = this;
    const token = graph.tokens[graph.positions[node]];
    return [graph.ids[node], graph.labels[node], showToken(graph.labels[node]), showToken(token), token]
      .some((text) => text.toLowerCase().includes(wanted));
  }

  comparison(ends) {
    const { graph } = this;
    const measured = (edge) => Math.abs(graph.measuredOf(edge) ?? 0);
    const byRank = (a, b) => a - b; // edges are numbered strongest first
    return {
      weight: byRank,
      label: (a, b) => graph.name(ends[a]).localeCompare(graph.name(ends[b])) || byRank(a, b),
      token: (a, b) => graph.positions[ends[a]] - graph.positions[ends[b]] || byRank(a, b),
      measured: (a, b) => measured(b) - measured(a) || byRank(a, b),
    }[this.order.value || "weight"];
  }

  line(edge, node) {
    const { graph } = this;
    const line = element("tr");
    line.tabIndex = -1;
    line.dataset.node = String(node);
    line.dataset.edge = String(edge);
    const what = element("td", "what");
    what.append(kindMark(graph.kinds[node]), isolate("meaning", graph.name(node)));
    const token = element("td", "where");
    const offset = graph.positions[node] - graph.positions[this.node];
    const arrow = offset ? ` ${offset < 0 ? "←" : "→"}${Math.abs(offset)}` : "";
    token.append(element("bdi", "token", cut(graph.tokens[graph.positions[node]], 8)), element("span", "faint", arrow));
    token.title = `position ${graph.positions[node]}`;
    what.title = showToken(graph.name(node));
    const weight = graph.edgeWeights[edge];
    const sign = weight < 0 ? "negative" : "positive";
    const share = element("td", `number share ${sign}`, `${(100 * graph.share(edge)).toFixed(1)} %`);
    share.style.setProperty("--part", `${Math.min(100, (100 * Math.abs(graph.share(edge))) / this.most).toFixed(1)}%`);
    line.append(what, element("td", "row faint", graph.about.row_names[graph.rows[node]]), token, element("td", `number ${sign}`, signed(weight)), share);
    if (graph.measured || graph.classes) line.append(this.checked(edge));
    return line;
  }

  /** What a check found. */
  checked(edge) {
    const { graph } = this;
    const cell = element("td", "number measured");
    const [measured, found] = [graph.measuredOf(edge), graph.classOf(edge)];
    if (measured !== null) cell.append(signed(measured));
    if (found) cell.append(" ", classMark(found));
    return cell;
  }

  nodeAt(event) {
    const line = event.target.closest?.("tr[data-node]");
    return line ? Number(line.dataset.node) : -1;
  }

  clicked(event) {
    const node = this.nodeAt(event);
    if (node < 0) return;
    if (event.ctrlKey || event.metaKey) this.acts.pin(node);
    else this.acts.choose(node);
  }

  walk(event) {
    const lines = [...this.lists.querySelectorAll("tr[data-node]")];
    const at = lines.indexOf(event.target.closest("tr"));
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = { ArrowDown: lines[at + 1], ArrowUp: lines[at - 1], Home: lines[0], End: lines[lines.length - 1] };
    if (event.key === "Enter" || event.key === " ") this.acts.choose(Number(lines[at].dataset.node));
    else if (event.key === "p" || event.key === "P") this.acts.pin(Number(lines[at].dataset.node));
    else if (event.key === "Escape") this.acts.leave();
    else if (event.key in to) this.focus(to[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  focusFirst() {
    this.focus(this.lists.querySelector("tr[data-node]") ?? this.lists);
  }

  focus(line) {
    if (!line) return;
    for (const other of this.lists.querySelectorAll("tr[tabindex='0']")) other.tabIndex = -1;
    line.tabIndex = line === this.lists ? -1 : 0;
    line.focus();
  }

  /** Mark the lines of a node that the pointer is on elsewhere. */
  mark(node) {
    for (const line of this.lists.querySelectorAll("tr[data-node]")) {
      line.classList.toggle("linked", Number(line.dataset.node) === node);
    }
  }
}

/** The sign of a class, with its name for who cannot see it. */
export function classMark(found) {
  const mark = element("span", "class-mark", MARKS[found] || "·");
  mark.style.setProperty("--light", paints("light").classes[found]);
  mark.style.setProperty("--dark", paints("dark").classes[found]);
  mark.title = found;
  mark.setAttribute("role", "img");
  mark.setAttribute("aria-label", found);
  return mark;
}
