// @ts-check
// What a node looks like by its kind, what colours edges and nodes have, and marks of checked edges.
import { showToken } from "./tokens.js";

export const SVG = ["http", "www.w3.org/2000/svg"].join("://"); // the name of a language, not fetched

/** An SVG element with attributes and a text. */
export function drawn(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  if (text) node.textContent = text;
  return node;
}

/** Text from outside within an SVG: visible signs, in an isolate, cut to a number of letters. */
export function cut(text, letters) {
  const shown = Array.from(showToken(text));
  const kept = shown.length > letters ? `${shown.slice(0, letters - 1).join("")}…` : shown.join("");
  return `\u2068${kept}\u2069`;
}

let ruler = null; // a canvas that text is measured with

/** Text from outside, cut to a number of pixels in a font. */
export function fitted(text, width, font) {
  ruler ??= document.createElement("canvas").getContext("2d");
  ruler.font = font;
  const letters = Array.from(showToken(text)).slice(0, 80);
  const whole = () => letters.join("");
  if (ruler.measureText(whole()).width <= width) return `\u2068${whole()}\u2069`;
  do letters.pop();
  while (letters.length > 1 && ruler.measureText(`${whole()}…`).width > width);
  return `\u2068${whole()}…\u2069`;
}

/** The outline of a kind, around 0, 0. */
export function glyph(kind, r) {
  const [s, d] = [r * 0.9, r * 1.25];
  const circle = `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`;
  return {
    latent: circle,
    error: `M0,${-d}L${d},0L0,${d}L${-d},0Z`,
    token: `M${-s},${-s}H${s}V${s}H${-s}Z`,
    logit: `M${-1.3 * s},${-s}H${1.3 * s}V${s}H${-1.3 * s}Z`,
    position: `M0,${-d}L${1.1 * r},${0.8 * r}H${-1.1 * r}Z`,
    bias: `M0,${d}L${1.1 * r},${-0.8 * r}H${-1.1 * r}Z`,
    remainder: cross(r),
  }[kind];
}

function cross(r) {
  const [o, i] = [r * 1.15, r * 0.38];
  return `M${-i},${-o}H${i}V${-i}H${o}V${i}H${i}V${o}H${-i}V${i}H${-o}V${-i}H${-i}Z`;
}

export const KIND_WORDS = {
  latent: "latent", error: "error of an SAE", token: "token", position: "position embedding",
  bias: "bias", remainder: "remainder", logit: "logit",
};

/** Purple below zero, green above, in hue and in lightness apart for the common kinds of colour
 * blindness; a class and a side have colours of their own. */
const PAINTS = {
  light: {
    positive: "#1b7837", negative: "#7b3294", text: "#1a1d23", faint: "#5c6470", line: "#d9dde3",
    ground: "#ffffff", panel: "#f6f7f9", accent: "#1b5aa6", node: "#66707d",
    sides: { "": "#66707d", first: "#1b5aa6", second: "#c0570b", both: "#66707d", changed: "#a3195b" },
    classes: {
      "": "#8b939e", holds: "#1b7837", "gate flips": "#c0570b", "carried by attention": "#1b5aa6",
      cancels: "#a3195b", other: "#6b5300",
    },
  },
  dark: {
    positive: "#58c47d", negative: "#c79be6", text: "#e6e8ec", faint: "#a0a8b4", line: "#343a44",
    ground: "#15181e", panel: "#1d2128", accent: "#6cb4f2", node: "#98a2b0",
    sides: { "": "#98a2b0", first: "#6cb4f2", second: "#f79a4b", both: "#98a2b0", changed: "#f07bb0" },
    classes: {
      "": "#7f8894", holds: "#58c47d", "gate flips": "#f79a4b", "carried by attention": "#6cb4f2",
      cancels: "#f07bb0", other: "#d9bf5a",
    },
  },
};

export function paints(theme) {
  return PAINTS[theme];
}

/** One letter for each class, beside its colour. */
export const MARKS = {
  "": "", holds: "✓", "gate flips": "⇄", "carried by attention": "A", cancels: "∅", other: "?",
};

/** The colour of an edge. */
export function edgeColour(graph, edge, by, paint) {
  if (by === "side") return paint.sides[graph.sideOf(edge)];
  if (by === "check") return paint.classes[graph.classOf(edge)];
  return graph.edgeWeights[edge] < 0 ? paint.negative : paint.positive;
}

/** A colour between the ground and an end: `part` from 0 to 1. */
export function mixed(from, to, part) {
  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [a, b] = [channels(from), channels(to)];
  return `rgb(${a.map((start, i) => Math.round(start + (b[i] - start) * part)).join(" ")})`;
}

/** Purple or green by how large a part of the input it is; the smallest are still seen. */
export function tint(share, paint) {
  const part = 0.25 + 0.75 * Math.min(1, Math.sqrt(Math.abs(share) * 2));
  return mixed(paint.ground, share < 0 ? paint.negative : paint.positive, part);
}
