// @ts-check
// What a user does to pins, groups and places, on the model's traits, with the way back.
import { groupedAs, History, members, movedTo, renamed, toggled, ungrouped } from "./graph_pins.js";

export const PINS = ["pinned", "supernodes", "places"];

export class Pinning {
  constructor(model, graph) {
    this.model = model;
    this.graph = graph;
    this.history = new History();
  }

  /** The three traits as one value. */
  get state() {
    return Object.fromEntries(PINS.map((name) => [name, this.model.get(name)]));
  }

  /** The same without ids that this graph does not have. */
  get known() {
    const { pinned, supernodes, places } = this.state;
    const kept = (ids) => ids.filter((id) => this.graph.places.has(id));
    const groups = Object.entries(supernodes).map(([name, ids]) => [name, kept(ids)]);
    return { pinned: kept(pinned), supernodes: Object.fromEntries(groups.filter(([, ids]) => ids.length)), places };
  }

  /** Numbers of the nodes that are pinned or in a group. */
  get nodes() {
    return new Set(members(this.known).map((id) => this.graph.places.get(id)));
  }

  /** Set what comes next, and keep what was. */
  change(next) {
    this.history.push(this.state);
    this.write(next);
  }

  write(next) {
    for (const name of PINS) this.model.set(name, next[name]);
    this.model.save_changes();
  }

  undo() {
    const before = this.history.undo(this.state);
    if (before) this.write(before);
  }

  redo() {
    const after = this.history.redo(this.state);
    if (after) this.write(after);
  }

  toggle(ids) {
    this.change(ids.reduce(toggled, this.state));
  }

  /** Some nodes as one group; `name` is that of a group among them, which it takes the place of. */
  group(ids, name) {
    const count = Object.keys(this.state.supernodes).length;
    const state = name ? ungrouped(this.state, name) : this.state;
    this.change(groupedAs(state, ids, name ?? `group ${count + 1}`));
  }

  ungroup(name) {
    if (name) this.change(ungrouped(this.state, name));
  }

  rename(name, to) {
    if (name && to.trim() && to.trim() !== name) this.change(renamed(this.state, name, to));
  }

  move(key, place) {
    this.change(movedTo(this.state, key, place));
  }

  arrange() {
    this.change({ ...this.state, places: {} });
  }
}
