// @ts-check
// A reading of a graph in the address of its page: what was chosen, as JSON behind the #. An address
// comes from anywhere, so only what fits this graph is taken from it.

const LINKS = ["in", "out", "both", "pinned", "all"];
const COLOURS = ["sign", "side", "check"];
const ORDERS = ["weight", "label", "token", "measured"];

/** What each trait may be, given the graph. */
function rules(graph) {
  const known = (id) => typeof id === "string" && graph.places.has(id);
  const unique = (ids) => new Set(ids).size === ids.length;
  const ids = (value) => Array.isArray(value) && value.every(known) && unique(value);
  const plain = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
  const words = (all) => (value) => Array.isArray(value) && value.every((one) => all.includes(one));
  const flag = (value) => typeof value === "boolean";
  const place = (value) => Array.isArray(value) && value.length === 2 && value.every(Number.isFinite);
  return {
    selected: (value) => value === "" || known(value),
    pinned: ids,
    supernodes: (value) => plain(value) && ids(Object.values(value).flat())
      && Object.entries(value).every(([name, its]) => name.trim() && ids(its) && its.length),
    places: (value) => plain(value) && Object.entries(value).every(([id, xy]) => known(id) && place(xy)),
    threshold: (value) => Number.isFinite(value) && value >= 0,
    influence: (value) => Number.isFinite(value) && value >= 0 && value <= 1,
    links: (value) => LINKS.includes(value),
    hide_errors: flag,
    hide_biases: flag,
    hidden_classes: words(graph.about.classes),
    hidden_sides: words(graph.about.sides),
    colour_by: (value) => COLOURS.includes(value),
    sort_by: (value) => ORDERS.includes(value),
  };
}

/** What an address says of the state; {} when it says nothing that fits. */
export function fromAddress(hash, graph) {
  let said = {};
  try {
    said = JSON.parse(decodeURIComponent(hash.replace(/^#/, "")) || "{}");
  } catch {
    return {};
  }
  if (said === null || typeof said !== "object") return {};
  const found = {};
  for (const [name, fits] of Object.entries(rules(graph))) {
    if (Object.hasOwn(said, name) && fits(said[name])) found[name] = said[name];
  }
  return found;
}

/** The part of an address that says in what the state differs from what the page began with. */
export function toAddress(state, first) {
  const changed = Object.entries(state).filter(([name, value]) => JSON.stringify(value) !== first[name]);
  return changed.length ? `#${encodeURIComponent(JSON.stringify(Object.fromEntries(changed)))}` : "#";
}

/** Follow the address, and have it follow the state; returns what stops that. */
export function followAddress(model, graph, traits) {
  const first = Object.fromEntries(traits.map((name) => [name, JSON.stringify(model.get(name))]));
  let timer = 0;
  const read = () => {
    const said = fromAddress(window.location.hash, graph);
    for (const name of traits) model.set(name, said[name] ?? JSON.parse(first[name]));
  };
  const write = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const state = Object.fromEntries(traits.map((name) => [name, model.get(name)]));
      window.history.replaceState(null, "", toAddress(state, first));
    }, 150);
  };
  read();
  window.addEventListener("hashchange", read);
  for (const name of traits) model.on(`change:${name}`, write);
  return () => {
    clearTimeout(timer);
    window.removeEventListener("hashchange", read);
    for (const name of traits) model.off(`change:${name}`, write);
  };
}
