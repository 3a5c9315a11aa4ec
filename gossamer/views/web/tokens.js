// @ts-check
// Token text made visible, and numbers made short. Text reaches the page through textContent only.

// Signs that common fonts have, also for the control pictures that labels are written with.
const MARKS = { "\n": "⏎", "\t": "⇥", "␤": "⏎", "␉": "⇥" };
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Zs}]/u;

/** Nothing invisible: outer spaces as ␣, controls and direction marks as code points. */
export function showToken(token) {
  const body = token.replace(/^ +| +$/g, "");
  if (!body) return "␣".repeat(token.length) || "∅";
  const before = token.length - token.replace(/^ +/, "").length;
  const after = token.length - before - body.length;
  const shown = Array.from(body, (character) => {
    if (character in MARKS) return MARKS[character];
    if (character === " " || !HIDDEN.test(character)) return character;
    return `⟨${character.codePointAt(0).toString(16).toUpperCase()}⟩`;
  });
  return "␣".repeat(before) + shown.join("") + "␣".repeat(after);
}

/** A number in about four digits. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** An effect: always with its sign, and with as many digits as its neighbours in a column. */
export function signed(value) {
  const size = Math.abs(value);
  const plain = size >= 1e-3 && size < 1e4;
  const text = plain ? value.toPrecision(4) : short(value);
  return (value > 0 ? "+" : "") + text;
}

/** A count with its thousands apart. */
export function count(n) {
  return n.toLocaleString("en-US");
}

/** An element with a class and a text; a text that came from a token stands apart from its line. */
export function element(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** Text from outside in an isolate, so that right-to-left letters leave their surroundings alone. */
export function isolate(className, text) {
  return element("bdi", className, showToken(text));
}

/** A select with a label for those who do not see it, from [value, text] pairs. */
export function choice(label, options) {
  const select = element("select");
  select.setAttribute("aria-label", label);
  for (const [value, shown] of options) {
    const option = element("option", "", shown);
    option.value = value;
    select.append(option);
  }
  return select;
}
