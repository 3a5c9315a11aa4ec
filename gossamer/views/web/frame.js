// @ts-check
// The elements of the matrix view, laid out and named; what they do is in matrix.js.
import { helpPanel, legend, promptStrip, toolbar } from "./controls.js";
import { STYLE } from "./style.js";
import { EntryTable } from "./table.js";
import { element } from "./tokens.js";

/** Builds the view into an element and returns its parts by name. */
export function frame(el, matrix, about, view) {
  const root = element("section", "gossamer");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to the view
  root.setAttribute("aria-label", about.title);
  const header = element("header");
  header.append(element("h1", "", about.title));
  if (about.note) header.append(element("p", "", about.note));
  const prompt = promptStrip(about.prompt_tokens);
  const bar = toolbar(matrix, (name, value) => view.set(name, value), {
    zoom: (factor) => view.zoom(factor),
    help: () => view.toggleHelp(),
  });
  const table = new EntryTable(matrix, about, {
    choose: (row, column) => view.choose(row, column),
    sort: (order) => view.set("sort_by", order),
  });
  const parts = {
    root,
    prompt,
    toolbar: bar,
    table,
    axis: element("div", "axis"),
    plot: plotBox(matrix),
    tip: element("div", "tip"),
    help: helpPanel(),
    status: element("p", "status"),
    heard: element("div", "heard"),
    legend: legend(),
    panel: element("div", "panel selection"),
  };
  parts.tip.hidden = true;
  parts.status.setAttribute("role", "status");
  parts.heard.setAttribute("aria-live", "polite");
  const main = element("div");
  const canvases = element("div"); // below the tip and the help, whenever they are drawn
  parts.plot.append(canvases, parts.tip, parts.help);
  parts.canvases = canvases;
  main.append(parts.axis, parts.plot, parts.status);
  const side = element("div", "side");
  side.append(parts.legend.el, parts.panel);
  const body = element("div", "body");
  body.append(main, side);
  root.append(header, prompt.el, bar.el, body, table.el, parts.heard);
  el.replaceChildren(element("style", "", STYLE), root);
  return parts;
}

/** One tab stop that arrows walk in; the table has the same for those who do not see it. */
function plotBox(matrix) {
  const plot = element("div", "plot");
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-roledescription", "matrix");
  plot.setAttribute(
    "aria-label",
    `Matrix of ${matrix.rows.length} targets by ${matrix.columns.length} sources. ` +
      "Arrows walk over its entries, question mark lists the keys; the table below has the same.",
  );
  return plot;
}
