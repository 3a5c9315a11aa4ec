// @ts-check
// The panel of the pinned nodes: drag, choose, group, rename, and how much they explain. What is drawn
// follows the state; a gesture asks for a new state through `acts`.
import { button } from "./controls.js";
import { layered, nextBox, within } from "./graph_boxes.js";
import { drawn, paints } from "./graph_glyphs.js";
import { picture, spokenBox } from "./graph_picture.js";
import { boxes as boxesOf, members } from "./graph_pins.js";
import { combined, scores } from "./graph_scores.js";
import { element } from "./tokens.js";

const SLACK = 4; // pixels a click may move
const STEP = 12; // pixels that a box moves at a key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Subgraph {
  /** @param {any} graph @param {string} name begins the ids of options @param {any} pinning
   * @param {{choose: Function, look: Function, say: Function, gathering: Function}} acts */
  constructor(graph, name, pinning, acts) {
    Object.assign(this, { graph, name, pinning, acts, chosen: new Set(), active: "", drag: null });
    this.el = element("section", "panel subgraph");
    this.el.setAttribute("aria-label", "subgraph of the pinned nodes");
    const bar = element("div", "bar");
    this.title = element("h2", "", "subgraph");
    this.scores = element("span", "scores");
    this.buttons = {
      undo: button("undo", () => pinning.undo()),
      redo: button("redo", () => pinning.redo()),
      group: button("group", () => this.group()),
      ungroup: button("ungroup", () => pinning.ungroup(this.activeBox()?.name)),
      arrange: button("arrange", () => pinning.arrange()),
      save: button("save SVG", () => this.save()),
    };
    this.naming = element("input", "naming");
    this.naming.type = "text";
    this.naming.setAttribute("aria-label", "name of the supernode");
    this.naming.addEventListener("change", () => pinning.rename(this.activeBox()?.name, this.naming.value));
    this.naming.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      if (event.key === "Escape") this.naming.value = this.activeBox()?.name ?? "";
      this.area.focus();
      event.stopPropagation();
      event.preventDefault();
    });
    const { undo, redo, group, ungroup, arrange, save } = this.buttons;
    bar.append(this.title, this.scores, this.naming, undo, redo, group, ungroup, arrange, save);
    this.area = element("div", "area");
    this.area.tabIndex = 0;
    this.area.setAttribute("role", "listbox");
    this.area.setAttribute("aria-multiselectable", "true");
    this.area.setAttribute("aria-label", "Pinned nodes. Arrows walk, space chooses, G groups the chosen, U ungroups, R renames, P unpins, Shift and arrows move.");
    this.hint = element("div", "faint hint", "Pin nodes with P or Ctrl-click to draw their subgraph here.");
    this.el.append(bar, this.hint, this.area);
    this.area.addEventListener("keydown", (event) => this.key(event));
    for (const [type, act] of [["pointerdown", "down"], ["pointermove", "move"], ["pointerup", "up"], ["dblclick", "twice"]]) {
      this.area.addEventListener(type, (event) => this[act](event));
    }
    this.area.addEventListener("pointerleave", () => acts.look(-1));
    this.area.addEventListener("pointercancel", () => (this.drag = null));
  }

  /** Draw the pins as they are now. */
  show({ theme, by, selected }) {
    const { graph, pinning } = this;
    const state = pinning.known;
    this.boxes = boxesOf(state);
    this.how = { theme, by };
    const keys = new Set(this.boxes.map((box) => box.key));
    for (const key of this.chosen) if (!keys.has(key)) this.chosen.delete(key);
    if (!keys.has(this.active)) this.active = this.boxes[0]?.key ?? "";
    const empty = this.boxes.length === 0;
    this.hint.hidden = !empty;
    if (empty && this.area.contains(this.el.getRootNode().activeElement)) this.acts.leave();
    this.area.hidden = empty;
    if (empty) this.area.replaceChildren();
    this.title.textContent = empty ? "subgraph" : `subgraph of ${members(state).length} nodes`;
    this.buttons.undo.disabled = !pinning.history.past.length;
    this.buttons.redo.disabled = !pinning.history.future.length;
    for (const name of ["group", "ungroup", "arrange", "save"]) this.buttons[name].hidden = empty;
    this.showScores(state);
    if (!empty) {
      const room = Math.max(300, this.area.clientWidth - 4);
      this.layout = layered(graph, this.boxes, state.places, room);
      this.edges = combined(graph, this.layout.boxes.map((box) => box.nodes));
      this.svg = this.draw(paints(theme));
      this.area.replaceChildren(this.svg);
    }
    this.mark(selected);
  }

  draw(paint) {
    const { graph, boxes, layout, edges, how, name } = this;
    return picture(graph, { boxes, layout, edges: [...edges], paint, by: how.by, name });
  }

  showScores(state) {
    const pinned = new Set(members(state).map((id) => this.graph.places.get(id)));
    const { completeness, replacement } = scores(this.graph, pinned);
    const percent = (score) => (score === null ? "–" : `${(100 * score).toFixed(1)} %`);
    this.scores.replaceChildren(
      element("span", "", `completeness ${percent(completeness)}`), element("span", "", `replacement ${percent(replacement)}`),
    );
    this.scores.title = "Of the pins, with all that is not pinned counted as error: the share of the targets' "
      + "influence whose inputs are explained, and the share that reaches tokens";
    Object.assign(this.scores.dataset, { completeness: String(completeness), replacement: String(replacement) });
  }

  /** Show which boxes are chosen, active, selected. */
  mark(selected) {
    this.selected = selected;
    const box = this.activeBox();
    this.naming.hidden = this.buttons.ungroup.hidden = !box || box.name === null;
    if (box && box.name !== null && this.naming.getRootNode().activeElement !== this.naming) this.naming.value = box.name;
    this.buttons.group.disabled = this.chosen.size < 2;
    this.buttons.group.textContent = this.chosen.size > 1 ? `group ${this.chosen.size}` : "group";
    if (!this.boxes.length) return;
    this.boxes.forEach(({ key, ids }, i) => {
      const node = this.svg.children[i + 1];
      node.classList.toggle("chosen", this.chosen.has(key));
      node.classList.toggle("active", key === this.active);
      node.classList.toggle("selected", ids.includes(selected));
      node.setAttribute("aria-selected", String(this.chosen.has(key)));
    });
    const at = this.boxes.findIndex(({ key }) => key === this.active);
    this.area.setAttribute("aria-activedescendant", `${this.name}-${at}`);
    for (const link of this.svg.firstChild.children) {
      link.classList.toggle("on", Number(link.dataset.from) === at || Number(link.dataset.to) === at);
    }
  }

  activeBox() {
    return this.boxes.find(({ key }) => key === this.active);
  }

  activate(key) {
    this.active = key;
    this.mark(this.selected);
  }

  /** Choose for a group, or no more. */
  toggle(key) {
    if (!this.chosen.delete(key)) this.chosen.add(key);
    this.activate(key);
  }

  /** The nodes of the chosen boxes as one group; the name of the first group among them stays. */
  group() {
    const chosen = this.boxes.filter(({ key }) => this.chosen.has(key));
    if (chosen.length < 2) return;
    const name = chosen.find((box) => box.name !== null)?.name;
    this.chosen.clear();
    this.active = chosen[0].key;
    this.pinning.group(chosen.flatMap(({ ids }) => ids), name);
  }

  // Pointer

  at(event) {
    const box = this.svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  down(event) {
    if (event.button !== 0 || !this.boxes.length) return;
    const [x, y] = this.at(event);
    const node = event.target.closest(".box");
    const key = node?.dataset.key ?? null;
    const from = key && this.layout.boxes[this.boxes.findIndex((box) => box.key === key)];
    this.drag = { x, y, key, node, from, moved: false };
    this.area.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.boxes.length) return;
    const { drag } = this;
    if (!drag) {
      const key = event.target.closest(".box")?.dataset.key;
      this.acts.look(key === undefined ? -1 : this.graph.places.get(key));
      return;
    }
    const [x, y] = this.at(event);
    if (!drag.moved && Math.hypot(x - drag.x, y - drag.y) < SLACK) return;
    drag.moved = true;
    if (drag.key) {
      drag.place = [Math.max(0, drag.from.x + x - drag.x), Math.max(0, drag.from.y + y - drag.y)];
      drag.node.setAttribute("transform", `translate(${drag.place[0]} ${drag.place[1]})`);
    } else this.drawMarquee(drag, x, y);
  }

  drawMarquee(drag, x, y) {
    drag.rect = { left: Math.min(x, drag.x), right: Math.max(x, drag.x), top: Math.min(y, drag.y), bottom: Math.max(y, drag.y) };
    if (!drag.marquee) this.svg.append((drag.marquee = drawn("rect", { class: "marquee", rx: 3 })));
    const { left, right, top, bottom } = drag.rect;
    for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) {
      drag.marquee.setAttribute(name, String(value));
    }
  }

  up(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    if (drag.place) this.pinning.move(drag.key, drag.place.map((one) => Math.round(one)));
    else if (drag.rect) {
      drag.marquee.remove();
      this.chosen = new Set(within(this.layout.boxes, drag.rect).map((i) => this.boxes[i].key));
      this.mark(this.selected);
    } else if (drag.key) this.click(event, drag.key);
    else {
      this.chosen.clear();
      this.mark(this.selected);
    }
  }

  click(event, key) {
    const { ids } = this.boxes.find((box) => box.key === key);
    if (this.acts.gathering() || event.shiftKey) return this.toggle(key);
    this.activate(key);
    if (event.ctrlKey || event.metaKey) return this.pinning.toggle(ids);
    return this.acts.choose(this.graph.places.get(ids[0]));
  }

  twice(event) {
    if (event.target.closest(".box") && this.activeBox()?.name !== null) this.rename();
  }

  rename() {
    if (this.naming.hidden) return;
    this.naming.focus();
    this.naming.select();
  }

  // Keys

  key(event) {
    const box = this.activeBox();
    if (!box || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const unpin = () => this.pinning.toggle(box.ids);
    const acts = {
      " ": () => this.toggle(box.key),
      Enter: () => this.acts.choose(this.graph.places.get(box.ids[0])),
      u: () => box.name !== null && this.pinning.ungroup(box.name),
      r: () => this.rename(),
      F2: () => this.rename(),
      p: unpin,
      Delete: unpin,
    };
    const act = ARROWS[key] ? () => this.arrow(event.shiftKey, ...ARROWS[key]) : acts[key];
    if (!act) return;
    act();
    event.preventDefault();
    event.stopPropagation();
  }

  arrow(moving, right, down) {
    const at = this.boxes.findIndex(({ key }) => key === this.active);
    if (moving) {
      const { x, y } = this.layout.boxes[at];
      return this.pinning.move(this.active, [Math.round(Math.max(0, x + STEP * right)), Math.round(Math.max(0, y + STEP * down))]);
    }
    const next = nextBox(this.layout.boxes, at, right, down);
    if (next < 0) return undefined;
    this.acts.say(spokenBox(this.graph, this.boxes[next], this.layout.boxes[next].nodes));
    return this.activate(this.boxes[next].key);
  }

  // File

  /** The picture as a file for a paper: light, with its ground, and nothing that only a page needs. */
  file() {
    const paint = paints("light");
    const svg = this.draw(paint);
    svg.prepend(drawn("rect", { width: "100%", height: "100%", fill: paint.ground }));
    return new XMLSerializer().serializeToString(svg);
  }

  save() {
    const address = URL.createObjectURL(new Blob([this.file()], { type: "image/svg+xml" }));
    const link = element("a");
    Object.assign(link, { href: address, download: "subgraph.svg" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }
}

