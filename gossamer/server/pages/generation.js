// @ts-check
// The prompt gone on with: the same edits beside the text without them, token by token.
import { generate } from "./requests.js";
import { button, element, isolate } from "./text.js";

export class Generation {
  /** @param {HTMLElement} place @param {() => object} asked the state whose prompt goes on */
  constructor(place, asked) {
    this.asked = asked;
    this.place = place;
    this.running = null;
    const bar = element("div", "bar");
    this.length = number("tokens", "20", { min: "1", max: "200", step: "1" });
    this.temperature = number("temperature", "0", { min: "0", max: "5", step: "0.1" });
    this.temperature.input.title = "0 takes the likeliest token each time";
    this.seed = number("seed", "0", { min: "0", step: "1" });
    this.go = button("Go on with the prompt", () => (this.running ? this.stop() : this.start()));
    this.said = element("p", "faint");
    this.said.setAttribute("role", "status");
    bar.append(element("h2", "", "Generation"), this.length.el, this.temperature.el, this.seed.el, this.go, this.said);
    this.lines = element("div", "lines");
    this.wrong = element("p", "error");
    this.wrong.setAttribute("role", "alert");
    place.dataset.field = "generation";
    place.append(bar, this.wrong, this.lines);
  }

  /** Another question: what was written belongs to the old one. */
  clear() {
    this.stop();
    this.lines.replaceChildren();
    this.wrong.textContent = this.said.textContent = "";
  }

  stop() {
    this.running?.abort();
    this.running = null;
    this.go.textContent = "Go on with the prompt";
    this.place.setAttribute("aria-busy", "false");
  }

  async start() {
    this.clear();
    const state = this.asked();
    const running = new AbortController();
    this.running = running;
    this.go.textContent = "Stop";
    this.place.setAttribute("aria-busy", "true");
    const sides = state.ablate.length ? [["with edits", state.ablate], ["without", []]] : [["without edits", []]];
    const texts = sides.map(([name]) => this.line(name));
    this.said.textContent = "writing…";
    const options = {
      tokens: Number(this.length.input.value) || 20,
      temperature: Number(this.temperature.input.value) || 0,
      seed: Number(this.seed.input.value) || 0,
    };
    try {
      await generate(state, options, running.signal, (side, token) => {
        if (this.running === running) texts[side].append(this.token(token));
        this.compare(texts);
      });
      if (this.running === running) this.said.textContent = "";
    } catch (error) {
      if (this.running === running) {
        this.wrong.textContent = error.message;
        this.said.textContent = "";
      }
    }
    if (this.running === running) this.stop();
  }

  line(name) {
    const line = element("div", "text");
    const box = element("p", "written");
    line.append(element("h3", "", name), box);
    line.dataset.id = name;
    this.lines.append(line);
    return box;
  }

  token({ token, probability }) {
    const span = isolate("tok", token);
    if (probability !== undefined && probability !== null) span.title = `probability ${(100 * probability).toFixed(1)} %`;
    return span;
  }

  /** Mark where the two texts part. */
  compare([one, other]) {
    if (!other) return;
    let same = true;
    for (let i = 0; i < one.children.length; i++) {
      const [a, b] = [one.children[i], other.children[i]];
      same &&= !b || a.textContent === b.textContent;
      for (const each of [a, b]) {
        each?.classList.toggle("same", same);
        each?.classList.toggle("parted", !same);
        each?.classList.toggle("here", !same && (each.previousElementSibling?.matches(".same") ?? true));
      }
    }
  }
}

function number(name, value, limits) {
  const el = element("label", "", `${name} `);
  const input = element("input");
  Object.assign(input, { type: "number", value, ...limits });
  el.append(input);
  return { el, input };
}
