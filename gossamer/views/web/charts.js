// @ts-check
// Small charts as SVG: lines and bars, with round numbers at the axes.
import { element } from "./tokens.js";

const SVG = ["http", "www.w3.org/2000/svg"].join("://"); // the name of a language, not fetched
const COLOURS = ["#1b5aa6", "#b23c06", "#2f7d4f", "#7a4bb0", "#b08400", "#a0306a", "#2b8a9a", "#6b6f76"];
const MARGIN = { left: 76, right: 16, top: 14, bottom: 40 };

/** Which colour belongs to which name. */
export function legend(names) {
  const list = element("p");
  names.forEach((name, i) => {
    const mark = element("span", "", "━ ");
    mark.style.color = COLOURS[i % COLOURS.length];
    list.append(mark, element("span", "", `${name}  `));
  });
  return list;
}

/** A line for each list of [x, y], and how many points a log axis leaves out. */
export function lineChart(lines, { name, across, log = false, width = 900, height = 420 }) {
  const svg = frame(`${name} over ${across}`, width, height);
  const all = lines.flat();
  const shown = all.filter(([, y]) => !log || y > 0);
  if (shown.length === 0) return { svg, left_out: all.length };
  const scales = axes(svg, axis(shown.map(([x]) => x), false), axis(shown.map(([, y]) => y), log), width, height);
  svg.append(text(across, width / 2, height - 2, "middle"));
  lines.forEach((line, i) => {
    const d = line
      .filter(([, value]) => !log || value > 0)
      .map(([at, value], n) => `${n ? "L" : "M"}${scales.x(at).toFixed(1)},${scales.y(value).toFixed(1)}`)
      .join("");
    const stroke = COLOURS[i % COLOURS.length];
    svg.append(node("path", { d, fill: "none", stroke, "stroke-width": 1.6, class: "curve" }));
  });
  return { svg, left_out: all.length - shown.length };
}

/** Bars side by side: heights[i] stands from edges[i] to edges[i + 1]. */
export function barChart(heights, edges, { name, across, width = 420, height = 200 }) {
  const svg = frame(`${name} over ${across}`, width, height);
  if (heights.length === 0) return svg;
  const up = axis([0, ...heights], false);
  const scales = axes(svg, axis(edges, false), up, width, height);
  svg.append(text(across, width / 2, height - 2, "middle"));
  heights.forEach((value, i) => {
    const [left, right] = [scales.x(edges[i]), scales.x(edges[i + 1])];
    const bar = node("rect", {
      x: left + 0.5, width: Math.max(0.5, right - left - 1), y: scales.y(value),
      height: scales.y(0) - scales.y(value), fill: COLOURS[0], class: "bar",
    });
    const tip = node("title", {});
    tip.textContent = `${short(edges[i])} to ${short(edges[i + 1])}: ${value}`;
    bar.append(tip);
    svg.append(bar);
  });
  return svg;
}

function frame(label, width, height) {
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", width: "100%" });
  svg.style.maxWidth = `${width}px`;
  svg.setAttribute("aria-label", label);
  return svg;
}

/** Draws rules and numbers; gives the places of values. */
function axes(svg, across, up, width, height) {
  const x = (value) => MARGIN.left + across.place(value) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - up.place(value) * (height - MARGIN.top - MARGIN.bottom);
  for (const tick of up.ticks) {
    svg.append(node("line", { x1: MARGIN.left, y1: y(tick), x2: width - MARGIN.right, y2: y(tick), stroke: "var(--line)" }));
    svg.append(text(short(tick), MARGIN.left - 8, y(tick) + 4, "end"));
  }
  for (const tick of across.ticks) svg.append(text(short(tick), x(tick), height - 18, "middle"));
  return { x, y };
}

/** Where a value stands from 0 to 1, and round numbers to write beside it. */
function axis(values, log) {
  const by = log ? Math.log10 : (value) => value;
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, by(value)), Math.max(high, by(value))];
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

function text(content, x, y, anchor) {
  const made = node("text", { x, y, "text-anchor": anchor, "font-size": 12, fill: "var(--faint)" });
  made.textContent = content;
  return made;
}
