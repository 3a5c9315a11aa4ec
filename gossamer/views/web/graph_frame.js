// @ts-check
// The elements of the graph view, laid out and named; what they do is in graph.js.
import { helpPanel } from "./controls.js";
import { Connections } from "./graph_connections.js";
import { EdgeCanvas } from "./graph_edges.js";
import { GraphPlot } from "./graph_plot.js";
import { GRAPH_STYLE } from "./graph_style.js";
import { Subgraph } from "./graph_subgraph.js";
import { NodeTable } from "./graph_table.js";
import { GRAPH_KEYS, graphLegend, graphToolbar } from "./graph_toolbar.js";
import { STYLE } from "./style.js";
import { count, element } from "./tokens.js";

/** Builds the view into an element and returns its parts by name. */
export function graphFrame(el, graph, view) {
  const { about } = graph;
  const root = element("section", graph.measured || graph.classes ? "gossamer graph checked" : "gossamer graph");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to the view
  root.setAttribute("aria-label", about.title);
  const header = element("header");
  header.append(element("h1", "", about.title));
  if (about.note) header.append(element("p", "", about.note));
  const name = `graph-${Math.random().toString(36).slice(2, 10)}`; // two views may share a document
  const set = (trait, value) => view.set(trait, value);
  const toolbar = graphToolbar(graph, set, view, view.isPage);
  const plot = new GraphPlot(graph, name);
  plot.el.setAttribute(
    "aria-label",
    `Graph of ${count(graph.n)} nodes and ${count(graph.m)} edges over ${graph.tokens.length} tokens. ` +
      "Arrows walk to the nearest node, Enter leads to its connections, question mark lists the keys.",
  );
  const parts = {
    root,
    toolbar,
    plot,
    legend: graphLegend(graph, set),
    base: new EdgeCanvas(plot.base, graph),
    front: new EdgeCanvas(plot.front, graph),
    tip: element("div", "tip"),
    helpPanel: helpPanel(GRAPH_KEYS),
    status: element("p", "status"),
    link_: element("input", "copied"),
    heard: element("div", "heard"),
    connections: new Connections(graph, view),
    subgraph: new Subgraph(graph, `${name}-box`, view.pinning, view),
    table: new NodeTable(graph, view),
  };
  parts.tip.hidden = true;
  parts.status.setAttribute("role", "status");
  parts.heard.setAttribute("aria-live", "polite");
  Object.assign(parts.link_, { type: "text", readOnly: true, hidden: true });
  parts.link_.setAttribute("aria-label", "address of this reading");
  const around = element("div", "around");
  around.style.position = "relative";
  plot.el.append(plot.gutter, plot.scroller);
  around.append(plot.el, parts.tip, parts.helpPanel);
  parts.around = around;
  const main = element("div");
  main.append(around, parts.legend.el, parts.status, parts.link_, parts.subgraph.el);
  const side = element("div", "side");
  side.append(parts.connections.el);
  const body = element("div", "body");
  body.append(main, side);
  root.append(header, toolbar.el, body, parts.table.el, parts.heard);
  el.replaceChildren(element("style", "", STYLE + GRAPH_STYLE), root);
  return parts;
}
