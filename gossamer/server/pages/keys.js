// @ts-check
// Keys of the whole page, and the list of all of them.
import { byId, button, element } from "./text.js";

const KEYS = [
  ["Ctrl+Enter", "analyze the prompt"],
  ["↑ ↓ Home End", "move in the table"],
  ["← →", "move to what can be done to a node, and back"],
  ["Enter", "open the node in the panel"],
  ["A", "ablate the node, or restore it"],
  ["T", "trace what caused it; of a head, choose the way"],
  ["F", "find in the table"],
  ["Esc", "close the panel; clear what is looked for"],
  ["Alt+←", "back to the question before"],
  ["?", "this list"],
];

/** @param {object} acts `find()`, `clear()`: whether there was something to clear */
export function startKeys(acts) {
  const help = /** @type {HTMLDialogElement} */ (byId("help"));
  const list = element("dl");
  for (const [key, text] of KEYS) list.append(element("dt", "", key), element("dd", "", text));
  help.append(element("h2", "", "Keys"), list, button("Close", () => help.close()));
  byId("keys").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
    const target = /** @type {HTMLElement} */ (event.target);
    const typing = target.matches("input:not([type=checkbox]), textarea, select");
    if (event.key === "Escape") {
      if (target.id === "find" || !typing) acts.clear();
      else target.blur();
    } else if (typing) return;
    else if (event.key === "?") help.showModal();
    else if (event.key.toLowerCase() === "f") acts.find();
    else return;
    event.preventDefault();
  });
}
