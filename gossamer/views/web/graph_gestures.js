// @ts-check
// Pointer and keys over the graph.
import { HEAD } from "./graph_plot.js";
import { nearest, nextNode } from "./graph_layout.js";

const REACH = 30; // pixels from the pointer to a node
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Listens over the plot until the signal. */
export function graphPointer(view, signal) {
  const { plot, graph } = view;
  const node = (event) => {
    const box = plot.inner.getBoundingClientRect();
    return nearest(graph, plot.layout, event.clientX - box.left, event.clientY - box.top - HEAD, REACH);
  };
  const listen = (name, act, options = {}) => plot.scroller.addEventListener(name, act, { signal, ...options });
  listen("pointermove", (event) => {
    if (!view.sized || event.shiftKey) return; // Shift keeps what is shown
    const found = node(event);
    const box = view.around.getBoundingClientRect();
    view.hover(found, event.clientX - box.left, event.clientY - box.top);
  });
  listen("pointerleave", (event) => event.shiftKey || view.hover(-1));
  listen("click", (event) => {
    if (!view.sized) return;
    const found = node(event);
    if (view.gathering()) view.gather(found);
    else if (event.ctrlKey || event.metaKey) view.pin(found);
    else view.choose(found);
  });
  listen(
    "wheel",
    (event) => {
      if (!view.sized || !event.ctrlKey) return; // without Ctrl the wheel scrolls
      event.preventDefault();
      view.zoom(Math.exp(-event.deltaY * 0.004), event.clientX - plot.scroller.getBoundingClientRect().left);
    },
    { passive: false },
  );
}

/** Listens for keys on the whole view; fields and lists have taken theirs before. */
export function graphKeys(view, signal) {
  const { root, toolbar } = view;
  root.addEventListener("keydown", (event) => pressed(view, event), { signal });
  root.addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "g") view.gathered();
  }, { signal });
  root.addEventListener("focusout", (event) => {
    if (!root.contains(event.relatedTarget)) view.gathers = false;
  }, { signal });
  toolbar.find.addEventListener("keydown", (event) => {
    if (event.key === "Enter") view.nextFound(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") view.clear();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }, { signal });
}

function pressed(view, event) {
  if (event.altKey || event.target.matches("input, select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const act = event.ctrlKey || event.metaKey ? withControl(view, key, event.shiftKey) : alone(view, key, event);
  if (!act) return;
  act();
  event.preventDefault();
  event.stopPropagation();
}

function withControl(view, key, shift) {
  return { z: () => (shift ? view.pinning.redo() : view.pinning.undo()), y: () => view.pinning.redo() }[key];
}

function alone(view, key, event) {
  const inPlot = view.plot.el.contains(event.target);
  if (ARROWS[key]) return inPlot ? () => step(view, ...ARROWS[key]) : null;
  return {
    Enter: inPlot ? () => view.connections.focusFirst() : null,
    p: () => view.pin(view.selected),
    g: () => (view.gathers = true),
    f: () => view.toolbar.find.focus(),
    "+": () => view.zoom(1.4),
    "=": () => view.zoom(1.4),
    "-": () => view.zoom(1 / 1.4),
    0: () => view.zoom(null),
    "?": () => view.help(),
    Escape: () => view.clear(),
  }[key];
}

/** From the selected node to the next; from nowhere to the most influential one. */
function step(view, right, down) {
  const { graph, plot, selected } = view;
  if (!view.sized) return;
  if (selected >= 0 && graph.shown[selected]) {
    const next = nextNode(graph, plot.layout, selected, right, down);
    if (next >= 0) view.choose(next);
    return;
  }
  let best = -1;
  for (let i = 0; i < graph.n; i++) {
    if (graph.shown[i] && (best < 0 || graph.influence[i] + graph.weights[i] > graph.influence[best] + graph.weights[best])) best = i;
  }
  if (best >= 0) view.choose(best);
}
