// @ts-check
// What stands around the matrix: prompt, filters, legend, help.
import { colourAt, valueAt } from "./colours.js";
import { element, isolate, short } from "./tokens.js";

const STEPS = 1000;
const DECADES = 4; // the slider goes from the largest entry down to a ten-thousandth of it

const SCALES = [["log", "size, in decades"], ["root", "square root of size"], ["linear", "size"]];
const KEYS = [
  ["arrows", "next shown entry in that direction"],
  ["+  −  0", "zoom in, out, whole matrix"],
  ["c", "cross-position entries only"],
  ["s", "order sources by the selected target"],
  ["t", "order targets by the selected source"],
  ["Esc", "clear the selection, then the orders"],
  ["?", "this list"],
  ["wheel, drag", "zoom, move; a double click shows everything"],
  ["click a name", "order by that node; click again for prompt order"],
];

/** Threshold, cross-position filter, colour scale, orders. `set(name, value)` changes the state. */
export function toolbar(matrix, set, { zoom, help }) {
  const el = element("div", "toolbar");
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "filters");
  const cross = input("checkbox", "cross-position only");
  cross.field.addEventListener("change", () => set("cross_only", cross.field.checked));
  const slider = input("range", "at least");
  Object.assign(slider.field, { min: 0, max: STEPS, step: 1 });
  const number = element("input");
  Object.assign(number, { type: "number", min: 0, step: "any" });
  number.setAttribute("aria-label", "smallest size shown");
  slider.field.addEventListener("input", () => set("threshold", fromStep(slider.field.valueAsNumber)));
  number.addEventListener("change", () => {
    set("threshold", Math.max(0, Number.isFinite(number.valueAsNumber) ? number.valueAsNumber : 0));
    number.value = String(matrix.threshold);
  });
  slider.label.append(number);
  const scale = element("select");
  for (const [value, text] of SCALES) {
    const option = element("option", "", text);
    option.value = value;
    scale.append(option);
  }
  scale.addEventListener("change", () => set("scale", scale.value));
  const scaleLabel = element("label", "", "colour by ");
  scaleLabel.append(scale);
  const order = button("prompt order", () => {
    set("sources_by", "");
    set("targets_by", "");
  });
  const end = element("div", "end");
  const keys = button("? keys", help);
  keys.setAttribute("aria-expanded", "false");
  end.append(order, button("whole matrix", () => zoom(null)), keys);
  el.append(cross.label, slider.label, scaleLabel, end);

  function fromStep(step) {
    if (step === 0) return 0;
    return Number((matrix.largest * 10 ** (DECADES * (step / STEPS - 1))).toPrecision(3));
  }
  function toStep(threshold) {
    if (!(threshold > 0 && matrix.largest > 0)) return 0;
    const part = 1 + Math.log10(threshold / matrix.largest) / DECADES;
    return Math.round(STEPS * Math.min(1, Math.max(0.001, part)));
  }
  function update(state) {
    cross.field.checked = state.cross_only;
    const step = toStep(state.threshold);
    if (fromStep(slider.field.valueAsNumber) !== state.threshold) slider.field.value = String(step);
    slider.field.setAttribute("aria-valuetext", short(state.threshold));
    number.value = String(state.threshold);
    scale.value = state.scale;
    order.disabled = !state.sources_by && !state.targets_by;
  }
  return { el, update, keys };
}

/** The prompt as chips; `mark` underlines the two positions of an entry. */
export function promptStrip(tokens) {
  const el = element("div", "prompt");
  el.setAttribute("aria-label", "prompt");
  el.setAttribute("role", "group");
  el.hidden = tokens.length === 0;
  const chips = tokens.map((token, position) => {
    const chip = isolate("", token);
    chip.title = `position ${position}`;
    return chip;
  });
  el.append(...chips);
  function mark(source, target) {
    chips.forEach((chip, position) => {
      chip.classList.toggle("source", position === source);
      chip.classList.toggle("target", position === target);
    });
  }
  return { el, mark };
}

/** The colours and what they stand for in the window now shown. */
export function legend() {
  const el = element("div", "panel legend");
  el.append(element("h2", "", "colour, to the strongest entry in view"));
  const canvas = element("canvas");
  canvas.width = 257;
  canvas.height = 1;
  canvas.setAttribute("aria-hidden", "true");
  const ticks = element("div", "ticks");
  el.append(canvas, ticks);
  function update(largest, scale, theme) {
    const context = canvas.getContext("2d");
    for (let x = 0; x < canvas.width; x++) {
      context.fillStyle = `rgb(${colourAt(x / 128 - 1, theme).join(",")})`;
      context.fillRect(x, 0, 1, 1);
    }
    const marks = [-1, -0.5, 0, 0.5, 1].map((part) => {
      if (part === 0 && scale === "log") return `under ${short(Number((largest / 1000).toPrecision(2)))}`;
      const value = valueAt(part, largest, scale);
      return (value > 0 ? "+" : "") + short(Number(value.toPrecision(2)));
    });
    ticks.replaceChildren(...marks.map((text) => element("span", "", text)));
  }
  return { el, update };
}

/** The keys, shown over the plot. */
export function helpPanel(keys = KEYS) {
  const el = element("div", "help");
  el.setAttribute("role", "region");
  el.setAttribute("aria-label", "keys");
  el.hidden = true;
  const list = element("dl");
  for (const [key, text] of keys) list.append(element("dt", "", key), element("dd", "", text));
  el.append(list);
  return el;
}

export function button(text, act) {
  const el = element("button", "", text);
  el.type = "button";
  el.addEventListener("click", act);
  return el;
}

/** A field with a label; the words of a slider stand before it. */
export function input(type, text) {
  const label = element("label");
  const field = element("input");
  field.type = type;
  label.append(field, element("span", "", text));
  if (type === "range") label.prepend(label.lastChild);
  return { label, field };
}
