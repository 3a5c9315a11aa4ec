// @ts-check
// The server's routes, and what the page's state asks of them. Addresses are relative, so that the
// page also works behind a proxy's prefix.
import { movedNode, parseNode } from "./nodes.js";

const POLL = 250; // milliseconds between two looks at a job

/** What the server refused, or that it was not there. */
export class Refusal extends Error {
  constructor({ code = "", message = "", field = null }, side = "") {
    super(message || "The server gave no reason.");
    Object.assign(this, { code, field, side });
  }
}

/** A request's answer. Refusal for an error; an aborted one throws what fetch throws. */
async function ask(path, { body = undefined, method = body ? "POST" : "GET", signal = undefined, side = "" } = {}) {
  const response = await sent(path, { body, method, signal });
  const text = await response.text();
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    answer = { code: "format", message: `The server answered ${response.status} with something that is no JSON.` };
    if (response.ok) throw new Refusal(answer, side);
  }
  if (!response.ok) throw new Refusal(answer, side);
  return answer;
}

async function sent(path, { body, method, signal }) {
  const options = { method, signal, headers: body ? { "content-type": "application/json" } : {} };
  try {
    return await fetch(path, { ...options, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal({ code: "lost", message: "The server does not answer. Is it still running?" });
  }
}

/** Whether the server is there. */
export function health() {
  return ask("health");
}

/** The model and its SAEs. */
export function model() {
  return ask("model");
}

/** A text's tokens, BOS included. */
export async function tokenize(prompt) {
  return (await ask("tokenize", { body: { prompt } })).tokens;
}

/** What is known of a latent. */
export function latent(site, index) {
  return ask(`latents/${encodeURIComponent(site)}/${index}`);
}

/** Save a latent's label; an empty one takes it back. */
export function saveLabel(site, index, label) {
  return ask(`latents/${encodeURIComponent(site)}/${index}/label`, { method: "PUT", body: { label } });
}

/** The part of a state that decides the answer. */
export function question({ sort: _sort, find: _find, inside: _inside, open: _open, ...asked }) {
  return JSON.stringify(asked);
}

/**
 * The answer to a state's question: {left, comparison, edited, edits: [left's, right's]}. A
 * comparison stands beside where there are edits (the clean run) or two prompts.
 */
export async function answer(state, signal) {
  const two = state.second !== null;
  const lengths = two && state.align === "end"
    ? await Promise.all([state.prompt, state.second].map(async (text) => (await tokenize(text)).length))
    : [0, 0];
  const [mine, other] = [analysis(state, state.prompt), analysis(state, state.second, lengths[1] - lengths[0])];
  const left = await ask("analyze", { body: mine, signal, side: two ? "left" : "" });
  const edited = !two && state.ablate.length > 0;
  const found = { left, comparison: null, edited, edits: [mine.edits, two ? other.edits : []], right: null };
  if (two) found.right = await ask("analyze", { body: other, signal, side: "right" });
  if (!two && !edited) return found;
  const body = two ? { left: left.id, right: found.right.id, align: state.align } : { left: left.id };
  return { ...found, comparison: await ask("compare", { body, signal }) };
}

/** The body of /analyze; nodes and positions moved by what another prompt is longer. */
function analysis(state, prompt, shift = 0) {
  const isTrace = state.trace !== null;
  return {
    prompt,
    target: isTrace && state.through !== "v" ? null : target(state, shift),
    edits: state.ablate.map((id) => ablation(movedNode(id, shift))),
    upstream: isTrace ? { node: movedNode(state.trace, shift), route: state.through } : null,
    hold: state.hold,
    choice: {
      top: state.top,
      kinds: state.kinds.length ? state.kinds : null,
      cut: state.cut || null,
      pairs: state.pairs,
    },
  };
}

/** A node set to zero; an embedding is its whole row. */
function ablation(id) {
  const node = parseNode(id);
  const whole = node?.site === "hook_embed";
  return whole ? { kind: "ablate", at: node.site, positions: node.position } : { kind: "ablate", at: id };
}

function target(state, shift) {
  const position = state.at === null ? -1 : state.at + shift;
  const tokens = state.targets.map(wire);
  if (state.of === "kl") return { kind: "kl", position };
  if (state.of !== "logit") return { kind: state.of, tokens, position };
  if (!state.less.length) return { kind: "logits", tokens: tokens.length ? tokens : null, position };
  return { kind: "logit_difference", token: tokens, distractor: state.less.map(wire), position };
}

function wire({ id, text }) {
  return id ?? text;
}

/** The scores of a prompt's next token, likeliest first, as far as the server lists them. */
export async function scores(side, edits, signal) {
  const body = { prompts: side.prompt_ids, edits, position: side.position, top_latents: 0, top_logits: 1000 };
  const { prompts } = await ask("run", { body, signal });
  return prompts[0].predictions[0].top;
}

/** The scores of tokens that are far from the likeliest: [number, …]. */
export async function scoresOf(ids, side, edits, signal) {
  const requests = ids.map((id) => ({
    prompt: side.prompt_ids,
    target: { kind: "logits", tokens: [id], position: side.position },
    edits,
    choice: { top: 1, kinds: ["embedding"] },
  }));
  const { analyses } = await ask("analyze_batch", { body: { requests }, signal });
  return analyses.map((each) => each.value);
}

/** The id of a text that is one token. */
export async function tokenId(text, signal) {
  return (await ask("tokenize", { body: { prompt: text, prepend_bos: false }, signal })).token_ids[0];
}

/**
 * Go on with a state's prompt; `each(side, token)` is called with tokens as they come, side 0 being
 * the text with edits (or the only one).
 */
export async function generate(state, { tokens, temperature, seed }, signal, each) {
  const body = {
    prompt: state.prompt,
    edits: state.ablate.map(ablation),
    saes: state.ablate.length ? "all" : null,
    n_tokens: tokens,
    temperature,
    seed,
    compare: state.ablate.length > 0,
  };
  const response = await sent("generate", { body, method: "POST", signal });
  if (!response.ok) throw new Refusal(await response.json().catch(() => ({})));
  for await (const { event, data } of events(response.body)) {
    if (event === "error") throw new Refusal(data);
    if (event === "token") each(state.ablate.length && !data.edited ? 1 : 0, data);
    if (event === "result") return;
  }
}

/** Queue the graph of a state's prompt, or of both beside each other; the job. */
export function beginGraph(state, most) {
  const request = { prompt: state.prompt, target: graphTarget(state), max_nodes: most };
  if (state.second !== null) Object.assign(request, { against: state.second, align: state.align });
  return ask("jobs", { body: { kind: "attribute", request } });
}

/** Queue the check of a graph's edges; the job. */
export function beginCheck(graph, edges) {
  return ask("jobs", { body: { kind: "verify", request: { graph, n_edges: edges } } });
}

/** A job's answer; `each(job)` is called while it goes on. Refusal for one that failed. */
export async function jobAnswer({ id }, signal, each) {
  for (;;) {
    const job = await ask(`jobs/${id}`, { signal });
    each(job);
    if (job.state === "done") return (await ask(`results/${job.result}`, { signal })).answer;
    if (job.state === "failed") throw new Refusal(job.error);
    if (!["queued", "running"].includes(job.state)) throw new Refusal({ code: job.state, message: `It was ${job.state}.` });
    await new Promise((done) => setTimeout(done, POLL));
  }
}

/** Stop a job at its next step. */
export function cancelJob({ id }) {
  return ask(`jobs/${id}`, { method: "DELETE" });
}

/** What a graph explains: the node that is traced, or logits; null for the server's choice. */
function graphTarget(state) {
  if (state.trace !== null) return state.trace;
  const { kind, ...asked } = target(state, 0);
  if (kind === "logit_difference") return { kind, ...asked };
  return asked.tokens?.length || state.at !== null ? { kind: "logits", ...asked } : null;
}

/** Server-sent events of a stream. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    held += (value ?? "").replace(/\r\n?/g, "\n");
    for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
      const lines = held.slice(0, end).split("\n");
      held = held.slice(end + 2);
      const of = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart());
      if (of("data").length) yield { event: of("event")[0] ?? "message", data: JSON.parse(of("data").join("\n")) };
    }
    if (done) return;
  }
}
