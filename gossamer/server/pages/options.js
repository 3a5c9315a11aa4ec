// @ts-check
// How the table is made: what is held, where the model is cut, which nodes are listed.
import { siteName } from "./nodes.js";
import { choice, element } from "./text.js";

const KINDS = ["embedding", "position", "head", "pair", "neuron", "latent", "error", "bias", "remainder"];

export class Options {
  /** @param {HTMLElement} place @param {(patch: object) => void} ask */
  constructor(place, ask) {
    this.ask = ask;
    this.norms = tick("norms", "every norm's scale stays as it is in the backward pass");
    this.attention = tick("attention", "attention patterns stay as they are in the backward pass");
    const hold = group("hold", "hold", this.norms.el, this.attention.el);
    for (const one of [this.norms, this.attention]) one.box.addEventListener("change", () => this.hold());
    this.cut = choice("where the model is cut into the nodes that count", [["", "first SAE"]]);
    this.cut.addEventListener("change", () => ask({ cut: this.cut.value }));
    this.heads = choice("heads", [["", "by query"], ["pairs", "by query and key"]]);
    this.heads.addEventListener("change", () => this.byKey(this.heads.value === "pairs"));
    this.top = element("input");
    Object.assign(this.top, { type: "number", min: "1", max: "1000", step: "1" });
    this.top.setAttribute("aria-label", "so many of the largest and of the smallest");
    this.top.addEventListener("change", () => ask({ top: Math.max(1, Number(this.top.value) || 30) }));
    this.kinds = KINDS.map((kind) => tick(kind));
    for (const one of this.kinds) one.box.addEventListener("change", () => this.choose());
    const menu = element("details", "menu");
    this.said = element("summary", "", "all");
    this.said.setAttribute("aria-label", "kinds of node");
    const list = element("div", "drop");
    list.append(...this.kinds.map(({ el }) => el));
    menu.append(this.said, list);
    document.addEventListener("pointerdown", (event) => {
      if (menu.open && !menu.contains(/** @type {Node} */ (event.target))) menu.open = false;
    });
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      this.said.focus();
      event.stopPropagation();
    });
    place.dataset.field = "choice";
    place.append(
      hold,
      group("cut", "cut at", this.cut),
      group("pairs", "heads", this.heads),
      group("kinds", "kinds", menu),
      group("top", "top", this.top),
    );
  }

  hold() {
    const hold = [this.norms.box.checked && "norms", this.attention.box.checked && "attention"];
    this.ask({ hold: hold.filter(Boolean) });
  }

  choose() {
    const kinds = KINDS.filter((_, i) => this.kinds[i].box.checked);
    this.ask({ kinds: kinds.length === KINDS.length ? [] : kinds });
  }

  /** Heads by key or not; who listed the one kind lists the other. */
  byKey(pairs) {
    const [from, to] = pairs ? ["head", "pair"] : ["pair", "head"];
    const kinds = KINDS.filter((_, i) => this.kinds[i].box.checked);
    this.ask({ pairs, kinds: kinds.map((kind) => (kind === from ? to : kind)) });
  }

  /** The sites that a model can be cut at. */
  offer(sites) {
    const chosen = this.cut.value;
    const first = sites.length ? `first SAE, ${siteName(sites[0])}` : "embeddings";
    const all = [["", first], ["hook_embed", "embeddings"], ...sites.map((site) => [site, siteName(site)])];
    this.cut.replaceChildren(...all.map(([value, text]) => new Option(text, value)));
    this.choice(chosen);
  }

  /** Choose a cut, one that is not offered too, so that the server can say what is wrong. */
  choice(value) {
    const known = Array.from(this.cut.options, (option) => option.value);
    if (!known.includes(value)) this.cut.append(new Option(siteName(value), value));
    this.cut.value = value;
  }

  show(state) {
    this.norms.box.checked = state.hold.includes("norms");
    this.attention.box.checked = state.hold.includes("attention");
    this.choice(state.cut);
    this.heads.value = state.pairs ? "pairs" : "";
    this.top.value = String(state.top);
    KINDS.forEach((kind, i) => (this.kinds[i].box.checked = state.kinds.includes(kind)));
    this.said.textContent = state.kinds.length ? state.kinds.join(", ") : "all";
  }
}

function tick(text, title = "") {
  const el = element("label", "tick");
  const box = element("input");
  box.type = "checkbox";
  el.append(box, element("span", "", text));
  el.title = title;
  return { el, box };
}

/** Controls under one name; errors of that field are shown beside them. */
function group(field, name, ...parts) {
  const box = element("div", "option");
  box.dataset.field = field;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", name);
  box.append(element("span", "faint", name), ...parts);
  return box;
}
