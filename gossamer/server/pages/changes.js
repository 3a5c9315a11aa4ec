// @ts-check
// What is changed and what is followed: edits as chips, and the trace as a sentence.
import { THROUGH, kindOf, nodeName, parseNode } from "./nodes.js";
import { button, element, isolate } from "./text.js";

export class Changes {
  /** @param {HTMLElement} place @param {(patch: object) => void} ask */
  constructor(place, ask) {
    this.place = place;
    this.ask = ask;
  }

  /** @param {object} state @param {string[]} tokens @param {object[]} rows */
  show(state, tokens, rows) {
    this.place.hidden = !state.ablate.length && !state.trace;
    this.place.replaceChildren(...[this.trace(state, tokens, rows), this.edits(state, tokens, rows)].filter(Boolean));
  }

  trace(state, tokens, rows) {
    if (!state.trace) return null;
    const box = element("p", "trace");
    box.dataset.field = "trace";
    box.dataset.id = state.trace;
    const node = parseNode(state.trace);
    const text = element("span", "sentence");
    text.append("What caused ", element("strong", "", nodeName(state.trace, kindOf(state.trace, rows))));
    if (node) {
      text.append(node.key === null ? " at " : ", from ", ...tokenAt(node.position, tokens));
      if (node.key !== null) text.append(" to ", ...tokenAt(node.key, tokens));
    }
    text.append(`, ${THROUGH[state.through] ?? state.through}`);
    if (state.through === "v") text.append(": what it writes towards the target");
    text.append(".");
    box.append(text, button("×", () => this.ask({ trace: null, through: "pre" }), {
      label: "remove the trace",
      title: "back to the targets",
    }));
    return box;
  }

  edits(state, tokens, rows) {
    if (!state.ablate.length) return null;
    const box = element("div", "edits");
    box.dataset.field = "edits";
    box.append(element("span", "faint", "set to zero"));
    for (const id of state.ablate) {
      const chip = element("span", "chip edit");
      chip.dataset.id = id;
      chip.title = id;
      const node = parseNode(id);
      chip.append(element("span", "", nodeName(id, kindOf(id, rows))), " ");
      if (node) chip.append(...tokenAt(node.position, tokens));
      if (node && node.key !== null) chip.append(" ← ", ...tokenAt(node.key, tokens));
      chip.append(button("×", () => this.ask({ ablate: state.ablate.filter((each) => each !== id) }), {
        label: `restore ${nodeName(id, kindOf(id, rows))}`,
      }));
      box.append(chip);
    }
    if (state.ablate.length > 1) {
      box.append(button("Restore all", () => this.ask({ ablate: [] }), { className: "quiet" }));
    }
    return box;
  }
}

function tokenAt(position, tokens) {
  return [isolate("tok", tokens[position] ?? ""), element("sub", "", String(position))];
}
