// @ts-check
// Edges on two canvases: all that pass below, those of the node that is looked at above. A negative
// edge is dashed. Many edges are drawn as straight lines, in few strokes of many lines each.
import { edgeColour, MARKS, tint } from "./graph_glyphs.js";

const CURVED = 2500; // more edges than these are straight and not dashed one by one
const TOGETHER = 120; // lines in one stroke; a longer path costs more than it saves
const BANDS = 5; // widths and strengths
const MARKED = { near: 160, all: 40 }; // checked edges that carry their mark
const LARGEST_CANVAS = 16000;

export class EdgeCanvas {
  constructor(canvas, graph) {
    this.canvas = canvas;
    this.graph = graph;
  }

  resize(width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2, LARGEST_CANVAS / width);
    const { canvas } = this;
    this.ratio = ratio;
    this.size = [width, height];
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
  }

  begin() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    return context;
  }

  /** Draw edges, given strongest first; `strong` ones are those of one node.
   * @param {number[]} edges
   * @param {{layout: any, paint: any, by: string, strong: boolean, halos?: Map<number, number>}} how */
  draw(edges, { layout, paint, by, strong, halos = new Map() }) {
    const { graph } = this;
    const context = this.begin();
    this.ring(context, halos, layout, paint);
    if (!edges.length) return;
    const largest = Math.abs(graph.edgeWeights[edges[0]]) || 1;
    const crowded = edges.length > CURVED;
    const bands = new Map();
    for (let i = edges.length - 1; i >= 0; i--) {
      const edge = edges[i];
      const size = Math.sqrt(Math.abs(graph.edgeWeights[edge]) / largest);
      const band = Math.min(BANDS - 1, Math.floor(size * BANDS));
      const colour = edgeColour(graph, edge, by, paint);
      const negative = graph.edgeWeights[edge] < 0;
      const key = `${band} ${negative} ${colour}`;
      if (!bands.has(key)) bands.set(key, { band, negative, colour, edges: [] });
      bands.get(key).edges.push(edge);
    }
    const inOrder = [...bands.values()].sort((a, b) => a.band - b.band);
    for (const one of inOrder) this.stroke(context, one, layout, { strong, crowded });
    context.globalAlpha = 1;
    context.setLineDash([]);
    this.mark(context, edges, layout, paint, MARKED[strong ? "near" : "all"]);
  }

  stroke(context, { band, negative, colour, edges }, layout, { strong, crowded }) {
    const { graph } = this;
    const part = (band + 0.5) / BANDS;
    context.strokeStyle = colour;
    context.lineWidth = strong ? 0.9 + 3 * part : 0.5 + 1.9 * part;
    context.globalAlpha = strong ? 0.5 + 0.5 * part : crowded ? 0.06 + 0.5 * part : 0.16 + 0.64 * part;
    // Dashes cannot be seen in a crowd, and cost the most there.
    context.setLineDash(negative && (!crowded || band > 1) ? [5, 3.5] : []);
    for (let start = 0; start < edges.length; start += TOGETHER) {
      context.beginPath();
      for (const edge of edges.slice(start, start + TOGETHER)) {
        const [s, t] = [graph.sources[edge], graph.targets[edge]];
        const [x1, y1, x2, y2] = [layout.x[s], layout.y[s], layout.x[t], layout.y[t]];
        context.moveTo(x1, y1);
        if (crowded) context.lineTo(x2, y2);
        else context.bezierCurveTo(x1, y1 + (y2 - y1) * 0.45, x2, y1 + (y2 - y1) * 0.55, x2, y2);
      }
      context.stroke();
    }
  }

  /** Halos around nodes, coloured by a share of input. */
  ring(context, halos, layout, paint) {
    context.setLineDash([]);
    context.globalAlpha = 1;
    for (const [node, share] of halos) {
      context.beginPath();
      context.arc(layout.x[node], layout.y[node], layout.radius + 3.5, 0, 2 * Math.PI);
      context.fillStyle = tint(share, paint);
      context.fill();
    }
  }

  /** The marks of checked edges, in the middle of each. */
  mark(context, edges, layout, paint, most) {
    const { graph } = this;
    if (!graph.classes) return;
    context.font = "700 9px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    let left = most;
    for (const edge of edges) {
      const found = graph.classOf(edge);
      if (!found) continue;
      if (left-- === 0) return;
      const [s, t] = [graph.sources[edge], graph.targets[edge]];
      const [x, y] = [(layout.x[s] + layout.x[t]) / 2, (layout.y[s] + layout.y[t]) / 2];
      context.beginPath();
      context.arc(x, y, 6, 0, 2 * Math.PI);
      context.fillStyle = paint.ground;
      context.fill();
      context.lineWidth = 1.2;
      context.strokeStyle = paint.classes[found];
      context.stroke();
      context.fillStyle = paint.classes[found];
      context.fillText(MARKS[found], x, y + 0.5);
    }
  }
}
