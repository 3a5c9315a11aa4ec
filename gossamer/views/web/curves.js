// @ts-check
// Training curves: one quantity over tokens, a line for each SAE, on a linear or a log axis.
import { start } from "./host.js";
import { STYLE } from "./style.js";
import { element } from "./tokens.js";

const SVG = ["http", "www.w3.org/2000/svg"].join("://"); // the name of a language, not fetched
const SIZE = { width: 900, height: 420, left: 76, right: 16, top: 14, bottom: 40 };
const COLOURS = ["#1b5aa6", "#b23c06", "#2f7d4f", "#7a4bb0", "#b08400", "#a0306a", "#2b8a9a", "#6b6f76"];

start(render);

function render({ model, el }) {
  const { title, curves } = model.get("about");
  const names = [...new Set(curves.flatMap((curve) => Object.keys(curve.values)))];
  const root = element("div", "gossamer");
  const style = document.createElement("style");
  style.textContent = STYLE;
  const bar = element("div", "toolbar");
  const select = element("select");
  select.setAttribute("aria-label", "quantity");
  for (const name of names) {
    const option = element("option", "", name);
    option.value = name;
    select.append(option);
  }
  select.value = names.includes(model.get("quantity")) ? model.get("quantity") : names[0];
  const log = element("input");
  log.type = "checkbox";
  log.checked = model.get("log");
  const label = element("label");
  label.append(log, " log axis");
  bar.append(select, label);
  const figure = element("div", "figure");
  const status = element("p", "status");
  root.append(style, element("h1", "", title), bar, figure, status, legend(curves));
  el.append(root);
  const draw = () => {
    const drawn = picture(curves, select.value, log.checked);
    figure.replaceChildren(drawn.svg);
    status.textContent = drawn.left_out
      ? `${drawn.left_out} values are not above 0 and have no place on a log axis.` : "";
  };
  select.addEventListener("change", draw);
  log.addEventListener("change", draw);
  draw();
  root.dataset.ready = "true";
}

function legend(curves) {
  const list = element("p");
  curves.forEach((curve, i) => {
    const mark = element("span", "", "━ ");
    mark.style.color = COLOURS[i % COLOURS.length];
    const name = element("span", "", `${curve.name}  `);
    list.append(mark, name);
  });
  return list;
}

/** The curves of one quantity, and how many values a log axis leaves out. */
function picture(curves, name, log) {
  const svg = node("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", width: "100%" });
  svg.setAttribute("aria-label", `${name} over tokens`);
  const lines = curves.map((curve) => points(curve, name));
  const all = lines.flat();
  const shown = all.filter(([, y]) => !log || y > 0);
  if (shown.length === 0) return { svg, left_out: all.length };
  const across = axis(shown.map(([x]) => x), false);
  const up = axis(shown.map(([, y]) => y), log);
  const x = (value) => SIZE.left + across.place(value) * (SIZE.width - SIZE.left - SIZE.right);
  const y = (value) => SIZE.height - SIZE.bottom - up.place(value) * (SIZE.height - SIZE.top - SIZE.bottom);
  for (const tick of up.ticks) {
    svg.append(rule(SIZE.left, y(tick), SIZE.width - SIZE.right, y(tick)));
    svg.append(text(short(tick), SIZE.left - 8, y(tick) + 4, "end"));
  }
  for (const tick of across.ticks) svg.append(text(short(tick), x(tick), SIZE.height - 18, "middle"));
  svg.append(text("tokens", SIZE.width / 2, SIZE.height - 2, "middle"));
  lines.forEach((line, i) => {
    const d = line
      .filter(([, value]) => !log || value > 0)
      .map(([at, value], n) => `${n ? "L" : "M"}${x(at).toFixed(1)},${y(value).toFixed(1)}`)
      .join("");
    const stroke = COLOURS[i % COLOURS.length];
    svg.append(node("path", { d, fill: "none", stroke, "stroke-width": 1.6, class: "curve" }));
  });
  return { svg, left_out: all.length - shown.length };
}

function points(curve, name) {
  const values = curve.values[name] ?? [];
  return values.map((value, i) => [curve.tokens[i], value]).filter(([, value]) => value !== null);
}

/** Where a value stands from 0 to 1, and round numbers to write beside it. */
function axis(values, log) {
  const by = log ? Math.log10 : (value) => value;
  let low = Math.min(...values.map(by));
  let high = Math.max(...values.map(by));
  if (high - low < 1e-12 * Math.max(1, Math.abs(high))) [low, high] = [low - 0.5, high + 0.5];
  const step = log ? Math.max(1, Math.ceil((high - low) / 6)) : round((high - low) / 6);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(log ? 10 ** (i * step) : i * step);
  if (ticks.length < 2) ticks.splice(0, ticks.length, ...[low, high].map((v) => (log ? 10 ** v : v)));
  return { ticks, place: (value) => (by(value) - low) / (high - low) };
}

/** The next of 1, 2, 5 times a power of ten. */
function round(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= step * 0.999);
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}G`;
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
}

function node(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

function rule(x1, y1, x2, y2) {
  return node("line", { x1, y1, x2, y2, stroke: "var(--line)" });
}

function text(content, x, y, anchor) {
  const made = node("text", { x, y, "text-anchor": anchor, "font-size": 12, fill: "var(--faint)" });
  made.textContent = content;
  return made;
}
