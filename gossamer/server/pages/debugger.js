// @ts-check
// The debugger's page: what is asked stands in the address, what is answered below it.
import { Changes } from "./changes.js";
import { Generation } from "./generation.js";
import { Graph } from "./graph.js";
import { startKeys } from "./keys.js";
import { parseNode } from "./nodes.js";
import { drawNext, fillNext } from "./next.js";
import { Options } from "./options.js";
import { Panel } from "./panel.js";
import { Prompts } from "./prompts.js";
import { answer as fetchAnswer, health, model as fetchModel, question } from "./requests.js";
import { rowsOf } from "./rows.js";
import { Store } from "./state.js";
import { drawValue } from "./summary.js";
import { NodeTable } from "./table.js";
import { Targets } from "./targets.js";
import { clearErrors, showError } from "./trouble.js";
import { button, byId, count, element, short } from "./text.js";

const KEPT = 30; // answers that going back finds at once
const HEARTBEAT = 15_000; // milliseconds between two looks at whether the server is there
const EXAMPLES = ["def add(self, other):\n    return self", "for i in range(10):\n    print(i"];

class Debugger {
  constructor() {
    this.store = new Store();
    this.answers = new Map();
    this.turn = 0;
    this.found = null;
    this.rows = [];
    const ask = (patch) => this.prompts.ask(patch);
    this.targets = new Targets(byId("targets"), ask);
    this.prompts = new Prompts(byId("prompts"), this.store, (tokens) => this.targets.heard(tokens));
    this.options = new Options(byId("options"), ask);
    this.changes = new Changes(byId("changes"), ask);
    this.pick = (name, token) => this.targets.add(name, token);
    const acts = {
      ablate: (id) => this.ablate(id),
      trace: (id, way) => ask({ trace: id, through: way, find: "" }),
      open: (row) => this.store.look({ open: row.id }),
      close: () => this.close(),
      sort: (sort) => this.store.look({ sort }),
      byKey: (row) => ask({ pairs: true, kinds: ["pair"], find: row.id }),
      labelled: (site, unit, label) => this.labelled(site, unit, label),
    };
    this.table = new NodeTable(byId("scroll"), acts);
    this.panel = new Panel(byId("panel"), acts);
    this.generation = new Generation(byId("generation"), () => this.store.state);
    this.graph = new Graph(byId("graph"), () => this.store.state);
    this.find = /** @type {HTMLInputElement} */ (byId("find"));
    this.find.addEventListener("input", () => this.store.look({ find: this.find.value }));
    this.inside = /** @type {HTMLInputElement} */ (byId("inside"));
    this.inside.addEventListener("change", () => this.store.look({ inside: this.inside.checked }));
    byId("copy").addEventListener("click", () => this.copy());
    startKeys({ find: () => this.find.focus(), clear: () => this.clear() });
    for (const text of EXAMPLES) {
      const show = button(text.split("\n")[0], () => this.store.ask({ prompt: text }));
      byId("examples").append(show, " ");
    }
    this.store.listen((_, why) => (why === "look" ? this.draw() : this.run()));
  }

  async start() {
    await this.meet();
    setInterval(() => document.hidden || this.beat(), HEARTBEAT);
    this.run();
  }

  /** Read what the server has. */
  async meet() {
    try {
      this.about = await fetchModel();
    } catch (error) {
      this.connection("lost", error.message);
      return;
    }
    const { name, n_layers: layers, device, saes } = this.about;
    document.title = `${name} · Gossamer`;
    const latents = saes.reduce((sum, sae) => sum + (sae.d_sae ?? 0), 0);
    const about = `, ${layers} layers on ${device}; ${saes.length ? `${saes.length} SAEs, ${count(latents)} latents` : "no SAEs"}`;
    byId("model").replaceChildren(element("strong", "", name), about);
    byId("model").title = saes.map((sae) => sae.site_out).join("\n");
    this.options.offer(saes.map((sae) => sae.site_out).filter((site) => /hook_resid_(pre|mid|post)$/.test(site)));
    this.connection("live", "connected");
  }

  async beat() {
    try {
      await health();
      if (!this.about) await this.meet();
      else if (byId("connection").dataset.state === "lost") this.connection("live", "connected");
    } catch (error) {
      this.connection("lost", error.message);
    }
  }

  connection(state, text) {
    const place = byId("connection");
    place.dataset.state = state;
    if (place.textContent !== text) place.textContent = text;
  }

  /** Ask what the state says, and draw the answer when it is still the one that is asked. */
  async run() {
    const turn = ++this.turn;
    this.asking?.abort();
    const { state } = this.store;
    this.prompts.show(state);
    this.targets.show(state);
    this.options.show(state);
    clearErrors();
    this.generation.clear();
    this.graph.clear();
    this.graph.show(state);
    if (!state.prompt) {
      this.found = null;
      return this.draw();
    }
    const key = question(state);
    const kept = this.answers.get(key);
    if (kept) return this.settle(kept);
    this.busy(true);
    this.asking = new AbortController();
    try {
      const found = await fetchAnswer(state, this.asking.signal);
      if (turn !== this.turn) return;
      this.keep(key, found);
      this.settle(found);
      await this.fill(state, found, turn);
    } catch (error) {
      if (turn !== this.turn || error.name === "AbortError") return;
      if (!error.code) throw error;
      this.fail(error);
    }
  }

  keep(key, found) {
    this.answers.set(key, found);
    if (this.answers.size > KEPT) this.answers.delete(this.answers.keys().next().value);
  }

  settle(found) {
    this.found = found;
    this.rows = rowsOf(found);
    this.busy(false);
    this.draw();
    const { left } = found;
    byId("heard").textContent = `${left.target}: ${short(left.value)}`;
  }

  /** The next-token rows that the answer lacks. */
  async fill(state, found, turn) {
    const { signal } = this.asking;
    const came = await fillNext(found, state, signal).catch((error) => {
      if (turn === this.turn && error.code) showError({ message: `Next tokens: ${error.message}`, field: null });
    });
    if (came && turn === this.turn) drawNext(byId("next"), found, this.store.state, this.pick);
  }

  fail(error) {
    this.busy(false);
    byId("answer").classList.toggle("stale", this.found !== null);
    byId("unanswered").hidden = this.found !== null;
    if (error.code === "lost") this.connection("lost", error.message);
    this.changes.show(this.store.state, this.prompts.boxes[0].tokens, this.rows);
    showError(error);
  }

  busy(is) {
    document.body.dataset.ready = String(!is);
    byId("answer").setAttribute("aria-busy", String(is));
    byId("answer").classList.toggle("stale", is && this.found !== null);
    if (is) byId("empty").hidden = byId("unanswered").hidden = true;
    if (is) this.connection("busy", "computing…");
    else if (this.about) this.connection("live", "connected");
  }

  draw() {
    const { state } = this.store;
    const { found } = this;
    for (const id of ["summary", "work", "graph", "generation"]) byId(id).hidden = !found;
    byId("empty").hidden = Boolean(found || state.prompt);
    if (found || !state.prompt) byId("unanswered").hidden = true;
    const raw = /** @type {HTMLAnchorElement} */ (byId("raw"));
    raw.hidden = !found;
    document.body.dataset.ready = "true";
    this.changes.show(state, found?.left.tokens ?? [], this.rows);
    if (!found) return;
    byId("summary").classList.toggle("two", found.comparison !== null);
    raw.href = `analyses/${found.left.id}`;
    drawValue(byId("value"), found, state);
    drawNext(byId("next"), found, state, this.pick);
    if (document.activeElement !== this.find) this.find.value = state.find;
    this.inside.checked = state.inside;
    const shown = this.table.show(found, this.rows, state);
    const outside = this.rows.filter((row) => !row.inCut).length;
    const all = shown === this.rows.length ? count(shown) : `${count(shown)} of ${count(this.rows.length)}`;
    byId("shown").textContent = `${all} rows${outside ? `, ${outside} outside the cut (·)` : ""}`;
    byId("work").classList.toggle("open", Boolean(state.open));
    this.panel.show(state.open, found, this.rows, state);
  }

  ablate(id) {
    const { ablate } = this.store.state;
    this.prompts.ask({ ablate: ablate.includes(id) ? ablate.filter((each) => each !== id) : [...ablate, id] });
  }

  /** A label was saved: rows that are here already say the new one. */
  labelled(site, unit, label) {
    for (const found of this.answers.values()) {
      const lists = [found.left.rows, found.comparison?.rows ?? []];
      for (const row of lists.flat()) {
        const node = parseNode(row.node);
        if (row.kind === "latent" && node.site === site && node.unit === unit) row.label = label;
      }
    }
    if (this.found) this.rows = rowsOf(this.found);
    this.draw();
  }

  close() {
    const { open } = this.store.state;
    this.store.look({ open: "" });
    this.table.lineOf(open)?.focus();
  }

  clear() {
    const { open, find } = this.store.state;
    if (open) this.close();
    else if (find) {
      this.find.value = "";
      this.store.look({ find: "" });
    } else if (document.activeElement === this.find) this.find.blur();
  }

  async copy() {
    const copy = byId("copy");
    try {
      await navigator.clipboard.writeText(location.href);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Copy the address bar";
    }
    setTimeout(() => (copy.textContent = "Copy link"), 1500);
  }
}

new Debugger().start();
