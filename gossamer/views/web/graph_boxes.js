// @ts-check
// The subgraph's boxes in layers: rows of the grid from the bottom up, without those that are empty,
// and from left to right by position. Plain arithmetic.

export const BOX = { width: 148, height: 40, gap: 16, level: 84, margin: 14 };

/** Where each box stands.
 * @param {any} graph
 * @param {{key: string, ids: string[]}[]} boxes
 * @param {Object<string, number[]>} places where some were dragged to, by key
 * @param {number} room pixels across */
export function layered(graph, boxes, places, room) {
  const nodes = boxes.map(({ ids }) => ids.map((id) => graph.places.get(id)));
  const row = nodes.map((its) => Math.round(mean(its.map((node) => graph.rows[node]))));
  const at = nodes.map((its) => mean(its.map((node) => graph.positions[node])));
  const levels = [...new Set(row)].sort((a, b) => a - b);
  const most = Math.max(1, ...levels.map((level) => row.filter((one) => one === level).length));
  const step = BOX.width + BOX.gap;
  const width = Math.max(room, most * step + 2 * BOX.margin);
  const [first, last] = [Math.min(...at), Math.max(...at)];
  const span = width - BOX.width - 2 * BOX.margin;
  const x = at.map((one) => BOX.margin + (last > first ? ((one - first) / (last - first)) * span : span / 2));
  for (const level of levels) {
    const members = boxes.map((_, i) => i).filter((i) => row[i] === level);
    members.sort((a, b) => at[a] - at[b] || a - b);
    spread(members, x, step, BOX.margin + span);
  }
  const top = (i) => BOX.margin + (levels.length - 1 - levels.indexOf(row[i])) * BOX.level;
  const found = boxes.map(({ key }, i) => {
    const moved = places[key];
    return { x: moved ? moved[0] : x[i], y: moved ? moved[1] : top(i), nodes: nodes[i] };
  });
  const right = Math.max(width, ...found.map((one) => one.x + BOX.width + BOX.margin));
  const bottom = Math.max(...found.map((one) => one.y + BOX.height + BOX.margin), 0);
  return { boxes: found, width: right, height: Math.max(bottom, BOX.height + 2 * BOX.margin) };
}

/** Push neighbours apart by as little as makes room, and stay before the end. */
function spread(members, x, step, end) {
  for (let i = 1; i < members.length; i++) x[members[i]] = Math.max(x[members[i]], x[members[i - 1]] + step);
  let limit = end;
  for (let i = members.length - 1; i >= 0; i--) {
    x[members[i]] = Math.max(BOX.margin, Math.min(x[members[i]], limit));
    limit = x[members[i]] - step;
  }
}

function mean(values) {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

/** The box nearest in a direction; -1 for none. */
export function nextBox(boxes, from, right, down) {
  let [best, least] = [-1, Infinity];
  boxes.forEach((box, i) => {
    const [dx, dy] = [box.x - boxes[from].x, box.y - boxes[from].y];
    const along = right ? dx * right : dy * down;
    const far = along + 2 * Math.abs(right ? dy : dx);
    if (i !== from && along > 1 && far < least) [best, least] = [i, far];
  });
  return best;
}

/** Boxes that a rectangle touches. */
export function within(boxes, { left, top, right, bottom }) {
  const touches = ({ x, y }) => x < right && x + BOX.width > left && y < bottom && y + BOX.height > top;
  return boxes.map((_, i) => i).filter((i) => touches(boxes[i]));
}
