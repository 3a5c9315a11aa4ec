// @ts-check
// Tokens as they are typed, numbers that line up, buttons; with what the views have for texts.
// Text from outside reaches the page through textContent only.

import { element } from "../views/tokens.js";

export { choice, count, element, isolate, showToken } from "../views/tokens.js";

const ESCAPES = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };

/** What was typed for a token: \n, \t and ␣ stand for what they show. */
export function typedToken(text) {
  return text.replace(/\\[nt\\]/g, (two) => ESCAPES[two]).replaceAll("␣", " ").replaceAll("⏎", "\n");
}

/** A number alone: about four digits, with a proper minus. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
  return text.replaceAll("-", "−");
}

/** A number that says its sign. */
export function signed(value) {
  return (value > 0 ? "+" : "") + short(value);
}

/** How a column writes its numbers: one count of decimals, so that they line up. */
export function lined(largest) {
  const places = largest >= 1000 ? 0 : largest >= 100 ? 1 : largest >= 10 ? 2 : largest >= 0.5 ? 3 : 4;
  return (value) => {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const tiny = Math.abs(value) < 0.5 * 10 ** -places;
    return (tiny ? value.toExponential(0) : value.toFixed(places)).replaceAll("-", "−");
  };
}

/** A button that does one thing. */
export function button(text, act, { className = "", title = "", label = "" } = {}) {
  const node = element("button", className, text);
  node.type = "button";
  if (title) node.title = title;
  if (label) node.setAttribute("aria-label", label);
  node.addEventListener("click", act);
  return node;
}

/** The element of the page with this id. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`The page has no element ${id}.`);
  return found;
}
