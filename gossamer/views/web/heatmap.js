// @ts-check
// Draws the matrix, its two axes and the marks over it on two canvases: the picture below, redrawn
// when the window changes, and the marks above, redrawn at every move of the pointer.
import { palette, paletteIndex, strength } from "./colours.js";
import { short, showToken } from "./tokens.js";

const LINE = 13; // pixels that a line of text needs
const NARROW = 640;
const CROWDED = 6; // pixels between lines below which they hide more than they show

export class Heatmap {
  /**
   * @param {HTMLElement} plot the box that both canvases fill
   * @param {HTMLElement} canvases where they stand in it
   * @param {any} matrix
   * @param {any} viewport
   */
  constructor(plot, canvases, matrix, viewport) {
    this.matrix = matrix;
    this.viewport = viewport;
    this.plot = plot;
    [this.picture, this.marks] = [0, 1].map(() => {
      const canvas = document.createElement("canvas");
      canvas.setAttribute("aria-hidden", "true");
      canvases.append(canvas);
      return canvas;
    });
    this.largest = 0;
    this.scale = "log";
  }

  /** Fit the canvases to the room there is; false when there is none, as in a hidden tab. */
  resize(roomWidth, roomHeight) {
    const { rows, columns } = this.matrix;
    const narrow = roomWidth < NARROW;
    const gutter = { left: narrow ? 92 : 138, top: narrow ? 76 : 108, right: 2, bottom: 2 };
    const inner = roomWidth - gutter.left - gutter.right;
    if (inner < 40) return false;
    // Few cells are not blown up into tiles.
    const width = Math.floor(Math.max(160, Math.min(inner, columns.length * 72)));
    const height = Math.floor(Math.max(40, Math.min(roomHeight - gutter.top, rows.length * 30)));
    this.box = { x: gutter.left, y: gutter.top, width, height };
    const size = [gutter.left + width + gutter.right, gutter.top + height + gutter.bottom];
    this.plot.dataset.cells = Object.values(this.box).join(" "); // where they are, for scripts
    this.ratio = Math.min(window.devicePixelRatio || 1, 3);
    this.plot.style.height = `${size[1]}px`;
    for (const canvas of [this.picture, this.marks]) {
      canvas.style.width = `${size[0]}px`;
      canvas.style.height = `${size[1]}px`;
      canvas.width = Math.round(size[0] * this.ratio);
      canvas.height = Math.round(size[1] * this.ratio);
    }
    return true;
  }

  /** The drawn cell or side under a point of the plot. */
  hit(x, y) {
    const { box, viewport } = this;
    const across = (x - box.x) / box.width;
    const down = (y - box.y) / box.height;
    const inside = (part) => part >= 0 && part < 1;
    const row = inside(down) ? Math.floor(viewport.top + down * viewport.height) : null;
    const column = inside(across) ? Math.floor(viewport.left + across * viewport.width) : null;
    return { row, column, across, down };
  }

  /** The box of a drawn cell on the plot. */
  cell(row, column) {
    const { box, viewport } = this;
    const height = box.height / viewport.height;
    const width = box.width / viewport.width;
    return {
      x: box.x + (column - viewport.left) * width,
      y: box.y + (row - viewport.top) * height,
      width,
      height,
    };
  }

  /** Draw cells, block lines and axes; returns the size of the strongest entry drawn. */
  draw(theme, colours) {
    const context = this.begin(this.picture);
    const window = this.viewport.window();
    // No more bins than pixels, or drawing them would drop some.
    const [across, down] = ["width", "height"].map((side) =>
      Math.floor(this.box[side] * this.ratio),
    );
    const pooled = this.matrix.pool(window, down, across);
    this.largest = pooled.largest;
    context.save();
    context.beginPath();
    context.rect(this.box.x, this.box.y, this.box.width, this.box.height);
    context.clip();
    context.fillStyle = colours.ground;
    context.fillRect(this.box.x, this.box.y, this.box.width, this.box.height);
    this.drawCells(context, pooled, window, theme);
    this.drawLines(context, colours);
    this.drawNumbers(context, window, theme);
    context.restore();
    context.strokeStyle = colours.frame;
    context.strokeRect(this.box.x - 0.5, this.box.y - 0.5, this.box.width + 1, this.box.height + 1);
    this.drawRowNames(context, colours);
    this.drawColumnNames(context, colours);
    return this.largest;
  }

  begin(canvas) {
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.direction = "ltr";
    context.lineWidth = 1;
    return context;
  }

  drawCells(context, { values, height, width, largest }, window, theme) {
    if (!values.length || window.bottom <= window.top || window.right <= window.left) return;
    const colours = palette(theme);
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < values.length; i++) {
      pixels[i] = colours[paletteIndex(strength(values[i], largest, this.scale))];
    }
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [width, height];
    sheet.getContext("2d").putImageData(image, 0, 0);
    const first = this.cell(window.top, window.left);
    const last = this.cell(window.bottom, window.right);
    context.imageSmoothingEnabled = false;
    context.drawImage(sheet, first.x, first.y, last.x - first.x, last.y - first.y);
  }

  /** Lines between the tokens' blocks, unless they would cover the cells. */
  drawLines(context, colours) {
    const { box, matrix, viewport } = this;
    const room = (side, seen, length) => {
      const blocks = side.blocks();
      return (length * side.length) / seen / blocks.length < CROWDED ? [] : blocks;
    };
    context.strokeStyle = colours.line;
    context.beginPath();
    for (const [first] of room(matrix.rows, viewport.height, box.height)) {
      const y = Math.round(this.cell(first, 0).y) + 0.5;
      if (y > box.y + 1 && y < box.y + box.height) {
        context.moveTo(box.x, y);
        context.lineTo(box.x + box.width, y);
      }
    }
    for (const [first] of room(matrix.columns, viewport.width, box.width)) {
      const x = Math.round(this.cell(0, first).x) + 0.5;
      if (x > box.x + 1 && x < box.x + box.width) {
        context.moveTo(x, box.y);
        context.lineTo(x, box.y + box.height);
      }
    }
    context.stroke();
  }

  /** The values themselves, where cells are large enough to read them. */
  drawNumbers(context, window, theme) {
    const { width, height } = this.cell(0, 0);
    if (width < 46 || height < LINE) return;
    context.textAlign = "center";
    this.matrix.scan(window, (i, j, row, column, value) => {
      const cell = this.cell(i, j);
      const strong = Math.abs(strength(value, this.largest, this.scale)) > 0.55;
      context.fillStyle = strong === (theme === "light") ? "#ffffff" : "#111318";
      if (!strong && theme === "dark") context.fillStyle = "#e6e8ec";
      context.fillText(short(value), cell.x + width / 2, cell.y + height / 2);
    });
  }

  drawRowNames(context, colours) {
    const { box } = this;
    const place = (i) => this.cell(i, 0).y;
    context.textAlign = "right";
    for (const { at, parts, faint } of this.names(this.matrix.rows, place, box.y, box.height)) {
      context.fillStyle = faint ? colours.faintText : colours.text;
      context.fillText(fit(context, parts, box.x - 14), box.x - 7, at);
    }
  }

  drawColumnNames(context, colours) {
    const { box } = this;
    const place = (j) => this.cell(0, j).x;
    context.textAlign = "left";
    for (const { at, parts, faint } of this.names(this.matrix.columns, place, box.x, box.width)) {
      context.save();
      context.translate(at, box.y - 6);
      context.rotate(-Math.PI / 2);
      context.fillStyle = faint ? colours.faintText : colours.text;
      context.fillText(fit(context, parts, box.y - 12), 0, 0);
      context.restore();
    }
  }

  /** What stands along one axis: tokens at their blocks, or each node where there is room. */
  *names(side, place, start, length) {
    if (!side.length) return;
    const step = place(1) - place(0);
    const end = start + length;
    if (step >= LINE || !side.byPosition) {
      const alone = side.blocks().length === 1;
      let last = -Infinity;
      for (let i = 0; i < side.length; i++) {
        const at = place(i) + step / 2;
        if (at < start || at > end || at - last < LINE) continue;
        last = at;
        yield { at, parts: nodeName(side, side.order[i], alone), faint: false };
      }
      return;
    }
    let last = -Infinity;
    for (const [first, stop, node] of side.blocks()) {
      const [low, high] = [Math.max(start, place(first)), Math.min(end, place(stop))];
      const at = (low + high) / 2;
      if (high <= low || at - last < LINE) continue;
      last = at;
      const parts = ["", showToken(side.tokens[node]), `  ${side.positions[node]}`];
      yield { at, parts, faint: high - low < LINE };
    }
  }

  /** The marks over the picture: the cell under the pointer, and the selected one. */
  mark(hovered, selected, colours) {
    const context = this.begin(this.marks);
    const { box } = this;
    context.beginPath();
    context.rect(box.x, box.y, box.width, box.height);
    context.save();
    context.clip();
    if (hovered) {
      context.fillStyle = colours.hover;
      const cell = this.cell(...hovered);
      const [width, height] = [Math.max(1, cell.width), Math.max(1, cell.height)];
      context.fillRect(box.x, cell.y, box.width, height);
      context.fillRect(cell.x, box.y, width, box.height);
    }
    context.restore();
    if (selected) this.markSelected(context, this.cell(...selected), colours);
  }

  /** A ring that is seen at any zoom, and ticks on both axes. */
  markSelected(context, cell, colours) {
    const { box } = this;
    const [x, y] = [cell.x + cell.width / 2, cell.y + cell.height / 2];
    if (x < box.x || y < box.y || x > box.x + box.width || y > box.y + box.height) return;
    const [width, height] = [Math.max(cell.width, 9), Math.max(cell.height, 9)];
    for (const [colour, line] of [[colours.ground, 4], [colours.mark, 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(x - width / 2 - 1, y - height / 2 - 1, width + 2, height + 2);
    }
    context.fillStyle = colours.mark;
    context.fillRect(box.x - 5, y - 2, 5, 4);
    context.fillRect(x - 2, box.y - 5, 4, 5);
  }
}

/** A node in few letters: its number, its token and position, of which the token may be cut. */
function nodeName(side, node, alone) {
  // Where all stand at one position, as logits do, the position says nothing.
  if (alone && side.labels[node]) return [`${side.indices[node]}  `, showToken(side.labels[node]), ""];
  return [`${side.indices[node]}  `, showToken(side.tokens[node]), `  ${side.positions[node]}`];
}

/** Three parts as one text, the middle one cut where they would not fit. It stands in an isolate,
 * so that its letters' direction does not reorder the parts. */
function fit(context, [before, token, after], width) {
  const whole = (middle) => `${before}\u2068${middle}\u2069${after}`;
  if (context.measureText(whole(token)).width <= width) return whole(token);
  const letters = Array.from(token).slice(0, 60);
  do letters.pop();
  while (letters.length && context.measureText(whole(letters.join("") + "…")).width > width);
  return whole(letters.join("") + "…");
}
