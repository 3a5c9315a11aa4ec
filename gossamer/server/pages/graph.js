// @ts-check
// The graph of the prompt that is asked about: made as a job, opened as a page of its own.
import { beginCheck, beginGraph, cancelJob, jobAnswer } from "./requests.js";
import { button, count, element, short } from "./text.js";

const CHECKED = 50; // edges that one press checks
const EXPLAINED = ["logit", "logit_minus_mean"]; // a graph's logits are less the mean of all

export class Graph {
  /** @param {HTMLElement} place @param {() => object} asked the state whose prompt is explained */
  constructor(place, asked) {
    Object.assign(this, { place, asked, running: null, found: null });
    const most = element("label", "", "at most ");
    this.most = element("input");
    Object.assign(this.most, { type: "number", min: "1", step: "1", value: "2000" });
    this.most.title = "latents of least influence are summed up beyond; empty for all";
    most.append(this.most, " nodes");
    this.go = button("Graph of this prompt", () => (this.running ? this.stop() : this.make()));
    this.check = button(`Check ${CHECKED} edges`, () => this.verify());
    this.link = element("a", "like-button", "Open the graph");
    Object.assign(this.link, { target: "_blank", rel: "noreferrer" });
    this.said = element("p", "faint");
    this.said.setAttribute("role", "status");
    this.wrong = element("p", "error");
    this.wrong.setAttribute("role", "alert");
    const bar = element("div", "bar");
    bar.append(element("h2", "", "Graph"), most, this.go, this.link, this.check, this.said);
    place.append(bar, this.wrong);
    this.clear();
  }

  /** Another question: the graph belongs to the old one. */
  clear() {
    this.stop();
    this.found = null;
    this.said.textContent = this.wrong.textContent = "";
    this.offer();
  }

  /** Show what can be done for what is asked. */
  show(state) {
    const can = EXPLAINED.includes(state.of) || state.trace !== null;
    this.go.disabled = !can;
    this.go.title = can ? (state.ablate.length ? "without the edits" : "") : "a graph explains logits; choose logit above";
  }

  offer() {
    this.link.hidden = !this.found;
    this.check.hidden = this.found?.graphs.length !== 1;
    if (this.found) this.link.href = this.found.comparison?.page ?? `graphs/${this.found.graphs[0].id}/page`;
  }

  stop() {
    const { running } = this;
    if (!running) return;
    this.settle();
    running.abort();
    if (running.job) cancelJob(running.job).catch(() => {});
    this.said.textContent = "stopped";
  }

  settle() {
    this.running = null;
    this.go.textContent = "Graph of this prompt";
    this.check.disabled = false;
    this.place.setAttribute("aria-busy", "false");
  }

  async make() {
    this.clear();
    const most = Number(this.most.value) || null;
    await this.work(beginGraph(this.asked(), most), (found) => {
      this.found = found;
      const sizes = found.graphs.map((each) => `${count(each.n_nodes)} nodes, ${count(each.n_edges)} edges`);
      const [{ replacement_score: replaced, completeness }] = found.graphs;
      const scores = found.comparison ? "" : `; replacement score ${short(replaced)}, completeness ${short(completeness)}`;
      this.said.textContent = sizes.join(" beside ") + scores;
      this.offer();
      window.open(this.link.href, "_blank", "noopener");
    });
  }

  async verify() {
    await this.work(beginCheck(this.found.graphs[0].id, CHECKED), ({ sentence }) => {
      this.said.textContent = `${sentence} The graph's page marks them.`;
    });
  }

  /** Follow a job to its end, and say what it came to. */
  async work(begun, done) {
    const running = Object.assign(new AbortController(), { job: null });
    this.running = running;
    this.go.textContent = "Stop";
    this.check.disabled = true;
    this.wrong.textContent = "";
    this.said.textContent = "waiting…";
    this.place.setAttribute("aria-busy", "true");
    try {
      running.job = await begun;
      if (this.running !== running) return void cancelJob(running.job).catch(() => {});
      const answer = await jobAnswer(running.job, running.signal, (job) => {
        const far = job.total ? ` ${count(job.done)} of ${count(job.total)}` : "…";
        if (this.running === running && job.state === "running") this.said.textContent = `${job.phase || "reading"}${far}`;
      });
      if (this.running === running) done(answer);
    } catch (error) {
      if (this.running !== running) return;
      this.wrong.textContent = error.message;
      this.said.textContent = "";
    }
    if (this.running === running) this.settle();
  }
}
