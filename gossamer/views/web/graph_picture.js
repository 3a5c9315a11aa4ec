// @ts-check
// The subgraph as an SVG that carries its own colours, so that it is the same in the page and in a file.
import { BOX } from "./graph_boxes.js";
import { cut, drawn, fitted, glyph, MARKS, mixed } from "./graph_glyphs.js";
import { short, signed } from "./tokens.js";

const FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif";
const FAINTEST = 0.002; // shares below it are not drawn
const MOST = 600; // edges of the picture

/** Draw the boxes and the edges between them.
 * @param {any} graph
 * @param {{boxes: any[], layout: any, edges: any[], paint: any, by: string, name: string}} what */
export function picture(graph, { boxes, layout, edges, paint, by, name }) {
  const svg = drawn("svg", {
    width: layout.width, height: layout.height, viewBox: `0 0 ${layout.width} ${layout.height}`,
    "font-family": FONT, role: "presentation",
  });
  const lines = drawn("g", { "aria-hidden": "true" });
  const kept = edges.filter((edge) => Math.abs(edge.share) >= FAINTEST).slice(0, MOST);
  for (const edge of kept.reverse()) lines.append(line(graph, edge, layout, paint, by));
  svg.append(lines);
  boxes.forEach((box, i) => svg.append(boxPicture(graph, box, layout.boxes[i], paint, `${name}-${i}`)));
  return svg;
}

function line(graph, edge, layout, paint, by) {
  const [s, t] = [layout.boxes[edge.source], layout.boxes[edge.target]];
  const [x1, y1, x2, y2] = [s.x + BOX.width / 2, s.y, t.x + BOX.width / 2, t.y + BOX.height];
  const bend = Math.max(18, Math.abs(y1 - y2) * 0.45);
  const size = Math.sqrt(Math.min(1, Math.abs(edge.share)));
  const group = drawn("g", { class: "link", "data-from": edge.source, "data-to": edge.target });
  const path = drawn("path", {
    d: `M${x1.toFixed(1)},${y1.toFixed(1)}C${x1.toFixed(1)},${(y1 - bend).toFixed(1)} ${x2.toFixed(1)},${(y2 + bend).toFixed(1)} ${x2.toFixed(1)},${y2.toFixed(1)}`,
    fill: "none", stroke: groupColour(graph, edge, by, paint), "stroke-width": (0.8 + 6 * size).toFixed(2),
    "stroke-opacity": (0.45 + 0.5 * size).toFixed(2), ...(edge.weight < 0 ? { "stroke-dasharray": "6 4" } : {}),
  });
  const checked = [...new Set(edge.edges.map((one) => graph.classOf(one)).filter(Boolean))];
  const found = checked.length ? `; checked: ${checked.join(", ")}` : "";
  path.append(drawn("title", {}, `${signed(edge.weight)}, ${(100 * edge.share).toFixed(1)} % of what comes in${found}`));
  group.append(path);
  if (checked.length === 1) {
    const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
    const colour = paint.classes[checked[0]];
    group.append(
      drawn("circle", { cx: x, cy: y, r: 6.5, fill: paint.ground, stroke: colour, "stroke-width": 1.2 }),
      drawn("text", { x, y: y + 3.4, "text-anchor": "middle", "font-size": 9.5, "font-weight": 700, fill: colour }, MARKS[checked[0]]),
    );
  }
  return group;
}

function groupColour(graph, edge, by, paint) {
  const same = (word) => edge.edges.every((one) => word(one) === word(edge.edges[0]));
  if (by === "side" && same((one) => graph.sideOf(one))) return paint.sides[graph.sideOf(edge.edges[0])];
  if (by === "check" && same((one) => graph.classOf(one))) return paint.classes[graph.classOf(edge.edges[0])];
  return edge.weight < 0 ? paint.negative : paint.positive;
}

function boxPicture(graph, box, { x, y, nodes }, paint, id) {
  const node = nodes[0];
  const kind = graph.kinds[node];
  const group = drawn("g", {
    id, role: "option", class: "box", "aria-selected": "false", transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
  });
  group.dataset.key = box.key;
  group.setAttribute("aria-label", spokenBox(graph, box, nodes));
  const own = graph.sides ? paint.sides[graph.sides[node]] : paint.node;
  const shape = { width: BOX.width, height: BOX.height, rx: 7, stroke: own, "stroke-width": 1.2 };
  if (box.name !== null) {
    group.append(drawn("rect", { ...shape, x: 4, y: -4, fill: mixed(paint.ground, own, 0.14) }));
  }
  group.append(drawn("rect", { ...shape, class: "face", fill: mixed(paint.ground, own, box.name === null ? 0.08 : 0.2) }));
  if (box.name === null) {
    group.append(drawn("path", { d: glyph(kind, 4.2), transform: "translate(13 14)", fill: mixed(paint.ground, own, 0.75), stroke: own }));
  }
  const title = box.name ?? graph.name(node);
  const left = box.name === null ? 24 : 10;
  group.append(
    drawn("text", { x: left, y: 18, "font-size": 12, "font-weight": 600, fill: paint.text }, fitted(title, BOX.width - left - 8, `600 12px ${FONT}`)),
    drawn("text", { x: 10, y: 33, "font-size": 10.5, fill: paint.faint }, under(graph, box, nodes)),
    drawn("title", {}, spokenBox(graph, box, nodes)),
  );
  return group;
}

function under(graph, box, nodes) {
  const node = nodes[0];
  if (box.name !== null) {
    const rows = [...new Set(nodes.map((one) => graph.about.row_names[graph.rows[one]]))];
    return `${nodes.length} node${nodes.length > 1 ? "s" : ""} · ${cut(rows.join(", "), 18)}`;
  }
  const row = graph.about.row_names[graph.rows[node]];
  return `${cut(graph.tokens[graph.positions[node]], 9)} ${graph.positions[node]} · ${cut(row, 11)}`;
}

/** A box in one line. */
export function spokenBox(graph, box, nodes) {
  if (box.name === null) return graph.spoken(nodes[0]);
  const influence = nodes.reduce((sum, node) => sum + graph.influence[node], 0);
  return `supernode ${box.name}, ${nodes.length} nodes, influence ${short(influence)}: ${nodes.map((node) => graph.name(node)).join("; ")}`;
}
