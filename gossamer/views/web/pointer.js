// @ts-check
// The pointer over the plot: hover, click, drag, wheel.

const SLACK = 4; // pixels a click may move

/** Listens until the signal; `view` is told of cells, zooms and moves. */
export function pointer(plot, view, signal) {
  let from = null;
  let dragged = false;
  const point = (event) => {
    const box = plot.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const onCanvas = (event) => event.target === plot || event.target instanceof HTMLCanvasElement;
  const listen = (name, act, options = {}) => plot.addEventListener(name, act, { signal, ...options });

  listen("pointerdown", (event) => {
    if (event.button !== 0 || !onCanvas(event) || !view.sized) return;
    from = point(event);
    dragged = false;
    plot.setPointerCapture(event.pointerId);
  });

  listen("pointermove", (event) => {
    if (!view.sized) return;
    const [x, y] = point(event);
    if (from) {
      if (!dragged && Math.hypot(x - from[0], y - from[1]) < SLACK) return;
      dragged = true;
      plot.classList.add("dragging");
      const { width, height } = view.heatmap.box;
      view.hover(null);
      view.pan((from[0] - x) / width, (from[1] - y) / height);
      from = [x, y];
      return;
    }
    const { row, column } = view.heatmap.hit(x, y);
    const inside = row !== null && column !== null && onCanvas(event);
    plot.classList.toggle("naming", !inside && (row !== null || column !== null));
    view.hover(inside ? [row, column] : null, x, y);
  });

  listen("pointerup", (event) => {
    plot.classList.remove("dragging");
    const clicked = from && !dragged;
    from = null;
    if (!clicked) return;
    const { row, column } = view.heatmap.hit(...point(event));
    const { rows, columns } = view.matrix;
    if (row !== null && column !== null) view.choose(rows.order[row], columns.order[column]);
    else if (row !== null) view.orderBy("sources_by", rows.order[row]);
    else if (column !== null) view.orderBy("targets_by", columns.order[column]);
  });

  listen("pointercancel", () => {
    from = null;
    plot.classList.remove("dragging");
  });
  listen("pointerleave", () => view.hover(null));
  listen("dblclick", (event) => onCanvas(event) && view.zoom(null));

  listen(
    "wheel",
    (event) => {
      if (!view.sized || !onCanvas(event)) return;
      const { row, column, across, down } = view.heatmap.hit(...point(event));
      // Outside the cells, and zooming out of the whole matrix, the wheel scrolls the page.
      if (row === null || column === null) return;
      if (event.deltaY > 0 && view.viewport.whole) return;
      event.preventDefault();
      view.zoom(Math.exp(-event.deltaY * 0.002), across, down);
    },
    { passive: false },
  );
}
