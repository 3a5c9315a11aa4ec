// @ts-check
// What the page is asked, as one value, and the same in the address: a copied link asks it again.
// Questions are pushed onto the browser's history; how one looks at an answer only replaces.

/** What an address without a query asks. */
const BEGINNING = Object.freeze({
  prompt: "", // the text that is explained
  second: null, // another one beside it; null for none
  align: "start", // where the two prompts' positions are counted from
  of: "logit", // what of the targets is explained
  targets: [], // tokens, each {text, id}; id is null for one that was typed
  less: [], // distractors, likewise
  at: null, // position that is read; null for the last
  ablate: [], // ids of nodes
  trace: null, // node that is explained instead of the targets
  through: "pre", // the way into it
  hold: ["norms"], // kept constant in the backward pass
  cut: "", // site; empty for the server's choice
  kinds: [], // kinds of node; none for all
  top: 30, // so many of the largest and smallest
  pairs: false, // heads by query and key
  sort: "direct", // column that orders the table
  find: "", // text that rows must have
  inside: false, // whether only nodes of the cut are shown
  open: "", // node in the panel
});

const LISTS = ["ablate"]; // repeated in the address
const JOINED = ["hold", "kinds"]; // with commas
const SWITCHES = ["pairs", "inside"];
const TOKENS = ["targets", "less"];
const TEXTS = ["align", "of", "trace", "through", "cut", "sort", "find", "open"];
const BY_ID = /^~(\d+) (.*)$/s; // a token that was picked: its id, and its text for people

/** What an address asks. */
export function readState(search) {
  const query = new URLSearchParams(search);
  const state = { ...BEGINNING };
  for (const name of ["prompt", "second", ...TEXTS]) if (query.has(name)) state[name] = query.get(name);
  for (const name of LISTS) state[name] = query.getAll(name);
  for (const name of JOINED) if (query.has(name)) state[name] = query.get(name).split(",").filter(Boolean);
  for (const name of TOKENS) state[name] = query.getAll(name).map(readToken);
  if (/^\d+$/.test(query.get("at") ?? "")) state.at = Number(query.get("at"));
  if (/^\d+$/.test(query.get("top") ?? "")) state.top = Number(query.get("top"));
  for (const name of SWITCHES) state[name] = query.get(name) === "yes";
  return state;
}

/** The query that asks it; what is as at the beginning is left out. */
export function writeState(state) {
  const query = new URLSearchParams();
  const changed = (name) => JSON.stringify(state[name]) !== JSON.stringify(BEGINNING[name]);
  for (const name of Object.keys(BEGINNING).filter(changed)) {
    if (TOKENS.includes(name)) for (const token of state[name]) query.append(name, writeToken(token));
    else if (LISTS.includes(name)) for (const value of state[name]) query.append(name, value);
    else if (JOINED.includes(name)) query.set(name, state[name].join(","));
    else if (SWITCHES.includes(name)) query.set(name, "yes");
    else query.set(name, String(state[name]));
  }
  return query.toString();
}

function readToken(text) {
  const found = BY_ID.exec(text);
  return found ? { id: Number(found[1]), text: found[2] } : { id: null, text };
}

function writeToken({ id, text }) {
  return id === null ? text : `~${id} ${text}`;
}

/** The state, its listeners, and the browser's history. */
export class Store {
  constructor() {
    this.state = readState(location.search);
    this.listeners = [];
    window.addEventListener("popstate", () => {
      this.state = readState(location.search);
      this.tell("back");
    });
  }

  /** Ask something else; going back asks the old question. */
  ask(patch) {
    this.change(patch, "pushState", "ask");
  }

  /** Look at the answer otherwise. */
  look(patch) {
    this.change(patch, "replaceState", "look");
  }

  change(patch, how, why) {
    this.state = { ...this.state, ...patch };
    const query = writeState(this.state);
    const address = query ? `?${query}` : location.pathname;
    if (how === "replaceState" || `?${query}` !== location.search) history[how](null, "", address);
    this.tell(why);
  }

  /** `listener(state, why)` is told of each change; why is "ask", "look" or "back". */
  listen(listener) {
    this.listeners.push(listener);
  }

  tell(why) {
    for (const listener of this.listeners) listener(this.state, why);
  }
}
