// @ts-check
// What is said about an entry: two nodes and the effect of one on the other.
import { element, isolate, showToken, short, signed } from "./tokens.js";

/** One node: token and position, id, meaning, activation. */
function nodeCard(kind, side, node) {
  const card = element("div", "node");
  card.append(element("div", "kind", kind));
  const place = element("div", "place");
  place.append(isolate("token", side.tokens[node]));
  place.append(element("span", "", ` at position ${side.positions[node]}`));
  card.append(place);
  card.append(isolate("id", side.ids[node]));
  if (side.labels[node]) {
    const label = element("div", "label");
    label.append(element("span", "faint", "means "), isolate("meaning", side.labels[node]));
    card.append(label);
  }
  card.append(...excerptLines(side.excerpts[node]));
  card.append(element("div", "faint", `value ${short(side.values[node])}`));
  return card;
}

/** Texts that a dashboard gives of a latent, a line each. */
export function excerptLines(texts) {
  return (texts ?? []).map((text) => {
    const line = element("div", "excerpt");
    line.append(isolate("meaning", text));
    return line;
  });
}

/** The effect in numbers. */
export function effect(matrix, about, row, column) {
  const line = element("div", "effect");
  const value = matrix.value(row, column);
  const size = element("strong", value < 0 ? "negative" : "positive", signed(value));
  line.append(size, element("span", "faint", ` ${about.quantity}`));
  const gradient = matrix.gradient(row, column);
  if (gradient !== null) {
    line.append(element("span", "gradient", signed(gradient)), element("span", "faint", " gradient"));
  }
  return line;
}

/** Everything about an entry, as in the hover and the panel. */
export function entryCard(matrix, about, row, column) {
  const card = element("div", "entry");
  card.append(
    effect(matrix, about, row, column),
    nodeCard("source", matrix.columns, column),
    nodeCard("target", matrix.rows, row),
  );
  return card;
}

/** An entry in one sentence, for the ear. */
export function spoken(matrix, about, row, column) {
  const name = (side, node) =>
    `${side.indices[node]} at ${showToken(side.tokens[node])}, position ${side.positions[node]}` +
    (side.labels[node] ? `, means ${showToken(side.labels[node])}` : "");
  const value = signed(matrix.value(row, column));
  return (
    `Source ${name(matrix.columns, column)}; target ${name(matrix.rows, row)}; ` +
    `${about.quantity} ${value}.`
  );
}
