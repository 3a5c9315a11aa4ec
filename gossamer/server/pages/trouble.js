// @ts-check
// What went wrong, beside the field it belongs to; what belongs to none stands above the answer.
import { byId, element } from "./text.js";

// Fields of a request's body, by how they begin, and the fields of the page.
const FIELDS = [
  ["prompt", "prompt"],
  ["target.distractor", "less"],
  ["target.token", "targets"],
  ["target.tokens", "targets"],
  ["target", "target"],
  ["edits", "edits"],
  ["upstream", "trace"],
  ["node", "trace"],
  ["through", "trace"],
  ["hold", "hold"],
  ["choice.cut", "cut"],
  ["choice.kinds", "kinds"],
  ["choice.top", "top"],
  ["choice.pairs", "pairs"],
  ["choice", "choice"],
];

/** Show an error of the server. */
export function showError(error) {
  const place = placeOf(error);
  if (!place) {
    const trouble = byId("trouble");
    trouble.hidden = false;
    trouble.textContent = error.message;
    return;
  }
  const line = element("p", "error", error.message);
  line.setAttribute("role", "alert");
  line.id = `error-${place.dataset.field}`;
  place.append(line);
  const own = place.dataset.field === "choice" ? [] : place.querySelectorAll("input, textarea, :scope > select");
  for (const input of own) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", line.id);
  }
}

/** Take all errors away. */
export function clearErrors() {
  byId("trouble").hidden = true;
  for (const line of document.querySelectorAll("[data-field] > .error")) {
    if (line.id.startsWith("error-")) line.remove();
  }
  for (const input of document.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

function placeOf({ field, side }) {
  if (!field) return null;
  const [, name] = FIELDS.find(([start]) => field === start || field.startsWith(`${start}.`)) ?? [];
  const own = name === "prompt" && side === "right" ? "second" : name;
  const place = /** @type {HTMLElement | null} */ (document.querySelector(`[data-field="${own}"]`));
  return place && place.closest("[hidden]") === null ? place : null;
}
