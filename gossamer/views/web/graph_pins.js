// @ts-check
// Pins, groups and places of the subgraph as values: each act gives a new one, so that it can be undone.

const KEPT = 200; // steps that can be undone

/** The nodes of the subgraph, pinned or in a group, in the order in which they came. */
export function members({ pinned, supernodes }) {
  return [...new Set([...pinned, ...Object.values(supernodes).flat()])];
}

/** A node pinned, or no more; then it leaves its group too. */
export function toggled(state, id) {
  if (!members(state).includes(id)) return { ...state, pinned: [...state.pinned, id] };
  return {
    ...state,
    pinned: state.pinned.filter((one) => one !== id),
    supernodes: without(state.supernodes, [id]),
  };
}

/** Some nodes as one group under a name that no other has. */
export function groupedAs(state, ids, name) {
  const others = without(state.supernodes, ids);
  return {
    ...state,
    pinned: [...state.pinned, ...ids.filter((id) => !state.pinned.includes(id))],
    supernodes: { ...others, [freeName(others, name)]: ids },
  };
}

export function ungrouped(state, name) {
  const { [name]: gone, ...others } = state.supernodes;
  return { ...state, supernodes: others };
}

export function renamed(state, name, to) {
  const wanted = to.trim();
  if (!wanted || wanted === name) return state;
  const { [name]: ids, ...others } = state.supernodes;
  const free = freeName(others, wanted);
  const pairs = Object.entries(state.supernodes).map(([one, its]) => [one === name ? free : one, its]);
  return { ...state, supernodes: Object.fromEntries(pairs) };
}

export function movedTo(state, key, place) {
  return { ...state, places: { ...state.places, [key]: place } };
}

/** The boxes of the subgraph: each group, and each pin that is in none. `key` is a node's id. */
export function boxes(state) {
  const inGroup = new Set(Object.values(state.supernodes).flat());
  return [
    ...Object.entries(state.supernodes).map(([name, ids]) => ({ key: ids[0], name, ids })),
    ...state.pinned.filter((id) => !inGroup.has(id)).map((id) => ({ key: id, name: null, ids: [id] })),
  ];
}

function without(supernodes, ids) {
  const left = Object.entries(supernodes).map(([name, its]) => [name, its.filter((id) => !ids.includes(id))]);
  return Object.fromEntries(left.filter(([, its]) => its.length));
}

function freeName(supernodes, name) {
  if (!Object.hasOwn(supernodes, name)) return name;
  for (let i = 2; ; i++) if (!Object.hasOwn(supernodes, `${name} (${i})`)) return `${name} (${i})`;
}

/** What was before, and what was undone. */
export class History {
  constructor() {
    this.past = [];
    this.future = [];
  }

  /** Keep what is about to change. */
  push(state) {
    this.past = [...this.past.slice(1 - KEPT), state];
    this.future = [];
  }

  /** The state before `now`, or null. */
  undo(now) {
    return this.step(this.past, this.future, now);
  }

  redo(now) {
    return this.step(this.future, this.past, now);
  }

  step(from, to, now) {
    const state = from.pop();
    if (!state) return null;
    to.push(now);
    return state;
  }
}
