// @ts-check
// Which part of the matrix fills the plot: zoom, pan, and the way between pixels and cells.

const CLOSEST = 12; // cells along a side when zoomed in as far as it goes

export class Viewport {
  constructor(rows, columns) {
    this.rows = rows;
    this.columns = columns;
    this.reset();
  }

  reset() {
    this.top = 0;
    this.left = 0;
    this.height = this.rows;
    this.width = this.columns;
  }

  get whole() {
    return this.height === this.rows && this.width === this.columns;
  }

  /** Zoom by a factor around a point of the plot, given as fractions of its size. */
  zoom(factor, x = 0.5, y = 0.5) {
    const height = Math.min(this.rows, Math.max(CLOSEST, this.height / factor));
    const width = Math.min(this.columns, Math.max(CLOSEST, this.width / factor));
    this.top += (this.height - height) * y;
    this.left += (this.width - width) * x;
    this.height = height;
    this.width = width;
    this.clamp();
  }

  /** Move by fractions of the plot. */
  pan(x, y) {
    this.top += y * this.height;
    this.left += x * this.width;
    this.clamp();
  }

  /** Move as little as shows a cell. */
  reveal(row, column) {
    this.top = Math.min(row, Math.max(this.top, row + 1 - this.height));
    this.left = Math.min(column, Math.max(this.left, column + 1 - this.width));
    this.clamp();
  }

  clamp() {
    this.top = Math.max(0, Math.min(this.rows - this.height, this.top));
    this.left = Math.max(0, Math.min(this.columns - this.width, this.left));
  }

  /** The cells that are seen, whole or in part. */
  window() {
    return {
      top: Math.floor(this.top),
      bottom: Math.min(this.rows, Math.ceil(this.top + this.height)),
      left: Math.floor(this.left),
      right: Math.min(this.columns, Math.ceil(this.left + this.width)),
    };
  }
}
