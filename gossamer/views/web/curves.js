// @ts-check
// Training curves: one quantity over tokens, a line for each SAE, on a linear or a log axis.
import { legend, lineChart } from "./charts.js";
import { start } from "./host.js";
import { STYLE } from "./style.js";
import { choice, element } from "./tokens.js";

start(render);

function render({ model, el }) {
  const { title, curves } = model.get("about");
  const names = [...new Set(curves.flatMap((curve) => Object.keys(curve.values)))];
  const root = element("div", "gossamer");
  const style = document.createElement("style");
  style.textContent = STYLE;
  const bar = element("div", "toolbar");
  const select = choice("quantity", names.map((name) => [name, name]));
  select.value = names.includes(model.get("quantity")) ? model.get("quantity") : names[0];
  const log = element("input");
  log.type = "checkbox";
  log.checked = model.get("log");
  const label = element("label");
  label.append(log, " log axis");
  bar.append(select, label);
  const figure = element("div", "figure");
  const status = element("p", "status");
  root.append(style, element("h1", "", title), bar, figure, status, legend(curves.map((curve) => curve.name)));
  el.append(root);
  const draw = () => {
    const lines = curves.map((curve) => points(curve, select.value));
    const drawn = lineChart(lines, { name: select.value, across: "tokens", log: log.checked });
    figure.replaceChildren(drawn.svg);
    status.textContent = drawn.left_out
      ? `${drawn.left_out} values are not above 0 and have no place on a log axis.` : "";
  };
  select.addEventListener("change", draw);
  log.addEventListener("change", draw);
  draw();
  root.dataset.ready = "true";
}

function points(curve, name) {
  const values = curve.values[name] ?? [];
  return values.map((value, i) => [curve.tokens[i], value]).filter(([, value]) => value !== null);
}
