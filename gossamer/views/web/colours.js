// @ts-check
// The diverging scale: blue below zero, orange above, the ground colour at zero. Safe for the
// common kinds of colour blindness; the two ends differ in hue, and each grows away from the ground.

const STOPS = {
  light: {
    negative: ["#ffffff", "#a9cdee", "#4a90d0", "#1b5aa6", "#0a2a5e"],
    positive: ["#ffffff", "#fdd0a2", "#f58a3c", "#cc4a0b", "#6b1d05"],
  },
  dark: {
    negative: ["#15181e", "#1d3f66", "#2f76bd", "#6cb4f2", "#d6ecff"],
    positive: ["#15181e", "#63300f", "#b95a17", "#f79a4b", "#ffe6c7"],
  },
};
const HALF = 511;

const DECADES = 3; // what the logarithmic scale tells apart: below a thousandth all is ground
const SCALES = {
  linear: { forward: (part) => part, back: (part) => part },
  root: { forward: Math.sqrt, back: (part) => part * part },
  log: {
    forward: (part) => Math.max(0, 1 + Math.log10(part) / DECADES),
    back: (part) => 10 ** (DECADES * (part - 1)),
  },
};

/** Everything on the canvases but the cells. */
const INKS = {
  light: {
    ground: "#ffffff",
    text: "#1a1d23",
    faintText: "#7a828e",
    frame: "#c3c9d1",
    line: "#1a1d2320",
    hover: "#1a1d2314",
    mark: "#111318",
  },
  dark: {
    ground: "#15181e",
    text: "#e6e8ec",
    faintText: "#8a93a0",
    frame: "#454c58",
    line: "#ffffff24",
    hover: "#ffffff1c",
    mark: "#ffffff",
  },
};

export function inks(theme) {
  return INKS[theme];
}

/** 1,023 colours from -1 to 1 as pixels of ImageData. */
export function palette(theme) {
  const colours = new Uint32Array(2 * HALF + 1);
  for (let i = 0; i <= 2 * HALF; i++) {
    const [r, g, b] = colourAt((i - HALF) / HALF, theme);
    colours[i] = (255 << 24) | (b << 16) | (g << 8) | r;
  }
  return colours;
}

/** Where a strength between -1 and 1 stands in the palette. */
export function paletteIndex(strength) {
  return HALF + Math.round(HALF * strength);
}

/** The colour of a strength between -1 and 1, as [r, g, b]. */
export function colourAt(strength, theme) {
  const stops = strength < 0 ? STOPS[theme].negative : STOPS[theme].positive;
  const place = Math.min(1, Math.abs(strength)) * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  const [from, to] = [channels(stops[below]), channels(stops[below + 1])];
  return from.map((start, i) => Math.round(start + (to[i] - start) * (place - below)));
}

function channels(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** Signed strength of a value, 1 at the largest. */
export function strength(value, largest, scale) {
  if (largest === 0 || value === 0) return 0;
  const part = Math.min(1, Math.abs(value) / largest);
  return Math.sign(value) * SCALES[scale].forward(part);
}

/** The value that has a strength: the inverse. */
export function valueAt(part, largest, scale) {
  return part === 0 ? 0 : Math.sign(part) * largest * SCALES[scale].back(Math.abs(part));
}
