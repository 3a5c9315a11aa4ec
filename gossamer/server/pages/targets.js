// @ts-check
// What is explained: target tokens, and distractors whose logit is taken off, as chips.
import { button, choice, element, isolate, showToken, typedToken } from "./text.js";

const KINDS = [
  ["logit", "logit"],
  ["logit_minus_mean", "logit less the mean of all"],
  ["probability", "probability"],
  ["log_probability", "log-probability"],
  ["kl", "KL from the clean run"],
];
const IS_A_WORD = /^[\p{L}\p{N}]\S*$/u;
const TAKES_A_SPACE = /[\p{L}\p{N},;:]$/u; // a text after which a word has its space

export class Targets {
  /** @param {HTMLElement} place @param {(patch: object) => void} ask */
  constructor(place, ask) {
    this.ask = ask;
    this.tokens = [];
    this.kind = choice("what of the targets is explained", KINDS);
    this.kind.addEventListener("change", () => ask({ of: this.kind.value }));
    const explain = element("label", "", "Explain the ");
    explain.append(this.kind);
    this.wanted = new Chips("targets", "of", "likeliest next token", (list) => ask({ targets: list }));
    this.less = new Chips("less", "less", "no distractor", (list) => ask({ less: list }));
    this.swap = button("⇄", () => ask({ targets: this.state.less, less: this.state.targets }), {
      title: "swap targets and distractors",
      label: "swap targets and distractors",
      className: "swap",
    });
    this.warning = element("p", "warning");
    this.warning.setAttribute("role", "status");
    const line = element("div", "line");
    line.dataset.field = "target";
    line.append(explain, this.wanted.el, this.swap, this.less.el);
    place.append(line, this.warning);
  }

  show(state) {
    this.state = state;
    this.kind.value = state.of;
    this.wanted.show(state.targets);
    this.less.show(state.less);
    this.wanted.el.hidden = state.of === "kl";
    this.less.el.hidden = this.swap.hidden = state.of !== "logit";
    this.swap.disabled = !state.targets.length && !state.less.length;
    this.warn();
  }

  /** The prompt's tokens, which say whether words carry a space. */
  heard(tokens) {
    this.tokens = tokens;
    if (this.state) this.warn();
  }

  warn() {
    this.warning.replaceChildren();
    if (this.state.of === "kl") return;
    const carried = this.tokens.some((token) => /^ \S/.test(token));
    if (!carried || !TAKES_A_SPACE.test(this.tokens.at(-1) ?? "")) return;
    for (const name of this.state.of === "logit" ? ["targets", "less"] : ["targets"]) {
      this.state[name].forEach((token, i) => {
        if (token.id !== null || !IS_A_WORD.test(token.text)) return;
        const line = element("span", "");
        const mended = { id: null, text: ` ${token.text}` };
        line.append(isolate("token", token.text), " has no space before it, as words in this prompt do. ");
        line.append(button(`use ${showToken(mended.text)}`, () => {
          this.ask({ [name]: this.state[name].map((each, j) => (j === i ? mended : each)) });
        }), " ");
        this.warning.append(line);
      });
    }
  }

  /** Add a token that was picked in the list of next tokens. */
  add(name, token) {
    const list = this.state[name];
    if (list.some((each) => each.id === token.id || each.text === token.text)) return;
    const other = name === "targets" ? "less" : "targets";
    const kept = this.state[other].filter((each) => each.text !== token.text);
    this.ask({ [name]: [...list, token], [other]: kept });
  }
}

/** A list of tokens, each with a button that removes it, and a box that adds one. */
class Chips {
  constructor(name, title, empty, change) {
    Object.assign(this, { change, list: [], empty });
    this.el = element("div", `chips ${name}`);
    this.el.dataset.field = name;
    this.el.setAttribute("role", "group");
    this.el.setAttribute("aria-label", name === "less" ? "distractors" : "targets");
    this.chips = element("span", "held");
    this.input = element("input");
    Object.assign(this.input, { type: "text", size: 9, autocomplete: "off", spellcheck: false, placeholder: "+ token" });
    this.input.title = "a token, its space included; \\n for a line's end. Enter adds it";
    this.input.setAttribute("aria-label", name === "less" ? "add a distractor" : "add a target");
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.input.value) {
        this.change([...this.list, { id: null, text: typedToken(this.input.value) }]);
        this.input.value = "";
      } else if (event.key === "Backspace" && !this.input.value && this.list.length) {
        this.change(this.list.slice(0, -1));
      } else return;
      event.preventDefault();
    });
    this.el.append(element("span", "faint", title), this.chips, this.input);
  }

  show(list) {
    this.list = list;
    if (!list.length) return void this.chips.replaceChildren(element("span", "faint none", this.empty));
    this.chips.replaceChildren(...list.map((token, i) => {
      const chip = element("span", "chip");
      chip.append(isolate("token", token.text));
      chip.append(button("×", () => this.change(list.filter((_, j) => j !== i)), {
        label: `remove ${showToken(token.text)}`,
      }));
      return chip;
    }));
  }
}
