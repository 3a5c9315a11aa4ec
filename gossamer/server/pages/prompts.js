// @ts-check
// The prompt, and a second one beside it: text boxes with their tokens below as they are typed.
import { tokenize } from "./requests.js";
import { button, element, isolate } from "./text.js";

const PAUSE = 250; // milliseconds of rest before a text is cut into tokens

/** Both prompts. */
export class Prompts {
  /** @param {HTMLElement} place @param {object} store @param {(tokens: string[]) => void} heard */
  constructor(place, store, heard) {
    Object.assign(this, { place, store });
    this.boxes = [new Prompt(this, 0, heard), new Prompt(this, 1, () => {})];
    const row = element("div", "verbs");
    this.analyze = button("Analyze", () => this.ask(), { className: "primary", title: "Ctrl+Enter" });
    this.beside = button("Compare with a second prompt", () => this.toggle());
    this.align = element("label", "", "positions from the ");
    this.select = element("select");
    for (const end of ["start", "end"]) this.select.append(new Option(end, end));
    this.select.addEventListener("change", () => this.ask({ align: this.select.value }));
    this.align.append(this.select);
    row.append(this.analyze, this.beside, this.align);
    place.append(...this.boxes.map((box) => box.el), row);
  }

  /** The prompts that stand in the boxes, to be asked. */
  typed() {
    const [first, second] = this.boxes;
    return { prompt: first.input.value, second: second.el.hidden ? null : second.input.value };
  }

  ask(patch = {}) {
    this.store.ask({ ...this.typed(), ...patch });
  }

  toggle() {
    const [first, second] = this.boxes;
    if (second.el.hidden) {
      second.el.hidden = false;
      this.arrange(true);
      if (!second.input.value) second.write(first.input.value);
      second.input.focus();
      return;
    }
    second.el.hidden = true;
    this.ask({ second: null });
  }

  arrange(two) {
    this.place.classList.toggle("two", two);
    this.boxes[1].el.hidden = !two;
    this.align.hidden = !two;
    this.beside.textContent = two ? "Remove the second prompt" : "Compare with a second prompt";
    this.boxes[0].title.textContent = two ? "Prompt, left" : "Prompt";
  }

  /** Write what the state asks into the boxes. */
  show(state) {
    const two = state.second !== null;
    this.arrange(two);
    this.select.value = state.align;
    this.boxes[0].write(state.prompt);
    if (two) this.boxes[1].write(state.second);
    this.mark(state);
  }

  mark(state) {
    for (const box of this.boxes) box.mark(state);
  }
}

/** One text box and its tokens. */
class Prompt {
  constructor(prompts, side, heard) {
    Object.assign(this, { prompts, side, heard, tokens: [], turn: 0 });
    this.el = element("div", "prompt");
    this.title = element("label", "title", side ? "Prompt, right" : "Prompt");
    this.input = element("textarea");
    this.input.id = side ? "second" : "prompt";
    this.input.rows = 2;
    this.input.spellcheck = false;
    this.input.setAttribute("autocapitalize", "off");
    this.title.htmlFor = this.input.id;
    this.el.dataset.field = side ? "second" : "prompt";
    this.strip = element("div", "tokens");
    this.strip.setAttribute("role", "group");
    this.strip.setAttribute("aria-label", side ? "tokens of the right prompt" : "tokens; choose where the next token is read");
    this.warning = element("p", "warning");
    this.warning.setAttribute("role", "status");
    this.el.append(this.title, this.input, this.strip, this.warning);
    this.input.addEventListener("input", () => this.later());
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) prompts.ask();
      else return;
      event.preventDefault();
    });
  }

  write(text) {
    if (this.input.value === text && this.tokens.length) return;
    this.input.value = text;
    this.cut();
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.cut(), PAUSE);
  }

  async cut() {
    clearTimeout(this.timer);
    const turn = ++this.turn;
    const text = this.input.value;
    this.warning.textContent = / $/.test(text)
      ? "The prompt ends with a space. Most words carry the space before them in their own token, so leave it out."
      : "";
    let tokens = [];
    if (text) {
      try {
        tokens = await tokenize(text);
      } catch (error) {
        if (turn === this.turn) this.warning.textContent = error.message;
      }
    }
    if (turn !== this.turn) return;
    this.tokens = tokens;
    this.draw();
    this.heard(tokens);
  }

  draw() {
    const { store } = this.prompts;
    const chips = this.tokens.map((token, i) => {
      const name = `${i}`;
      const chip = this.side
        ? element("span", "token")
        : button("", () => this.prompts.ask({ at: i === this.tokens.length - 1 ? null : i }), { className: "token" });
      chip.title = this.side ? `position ${name}` : `read the next token after position ${name}`;
      chip.dataset.position = name;
      chip.append(isolate("", token), element("sub", "", name));
      return chip;
    });
    this.strip.replaceChildren(...chips);
    this.mark(store.state);
  }

  /** Mark the token that the state reads. */
  mark(state) {
    const last = this.tokens.length - 1;
    const here = this.side ? this.other(state, last) : state.at ?? last;
    for (const chip of this.strip.children) {
      const is = Number(chip.dataset.position) === here;
      chip.classList.toggle("read", is);
      if (!this.side) chip.setAttribute("aria-pressed", String(is));
    }
  }

  /** Where the right prompt is read. */
  other(state, last) {
    if (state.at === null) return last;
    return state.align === "start" ? state.at : state.at - this.prompts.boxes[0].tokens.length + 1 + last;
  }
}
