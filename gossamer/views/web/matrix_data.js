// @ts-check
// The matrix and its two sides: order, filters, and what stands in a window of it.

/** The nodes along one side, and the order they are drawn in. */
class Side {
  constructor(about, arrays, name) {
    this.name = about[name].name;
    this.ids = about[name].ids;
    this.tokens = about[name].tokens;
    this.labels = about[name].labels;
    this.excerpts = about[name].excerpts;
    this.positions = arrays[`${name}.positions`];
    this.indices = arrays[`${name}.indices`];
    this.values = arrays[`${name}.values`];
    this.length = this.ids.length;
    this.places = new Map(this.ids.map((id, i) => [id, i]));
    this.inPromptOrder();
  }

  inPromptOrder() {
    this.byPosition = true;
    this.setOrder(Int32Array.from(this.ids, (_, i) => i));
  }

  /** Strongest first; equal ones stay in prompt order. */
  orderBySize(effects) {
    const order = Array.from(this.ids, (_, i) => i);
    order.sort((a, b) => Math.abs(effects[b]) - Math.abs(effects[a]) || a - b);
    this.byPosition = false;
    this.setOrder(Int32Array.from(order));
  }

  setOrder(order) {
    this.order = order;
    this.drawnAt = new Int32Array(order.length);
    order.forEach((node, place) => (this.drawnAt[node] = place));
  }

  /** Runs of one position in the drawn order: [first, end, node]; none when ordered by effect. */
  blocks() {
    if (!this.byPosition) return [];
    const found = [];
    for (let i = 0; i < this.length; i++) {
      if (i === 0 || this.positions[i] !== this.positions[i - 1]) found.push([i, i + 1, i]);
      else found[found.length - 1][1] = i + 1;
    }
    return found;
  }
}

export class Matrix {
  constructor({ arrays, about }) {
    this.rows = new Side(about, arrays, "rows");
    this.columns = new Side(about, arrays, "columns");
    this.values = arrays.values;
    this.gradients = arrays.gradients;
    this.hasGradients = about.has_gradients;
    this.threshold = 0;
    this.crossOnly = false;
    this.largest = this.values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  }

  value(row, column) {
    return this.values[row * this.columns.length + column];
  }

  /** Given, or the value over the source's activation; null where the matrix has none. */
  gradient(row, column) {
    if (!this.hasGradients) return null;
    if (this.gradients) return this.gradients[row * this.columns.length + column];
    return this.value(row, column) / this.columns.values[column];
  }

  /** Whether an entry passes the filters; zeros never do. */
  shows(row, column) {
    const size = Math.abs(this.value(row, column));
    if (size === 0 || size < this.threshold) return false;
    return !this.crossOnly || this.rows.positions[row] !== this.columns.positions[column];
  }

  orderColumnsBy(row) {
    if (row === undefined) this.columns.inPromptOrder();
    else this.columns.orderBySize(this.columns.ids.map((_, column) => this.value(row, column)));
  }

  orderRowsBy(column) {
    if (column === undefined) this.rows.inPromptOrder();
    else this.rows.orderBySize(this.rows.ids.map((_, row) => this.value(row, column)));
  }

  /** Calls visit(drawn row, drawn column, row, column, value) for what a window shows. */
  scan({ top, bottom, left, right }, visit) {
    const { values, threshold, crossOnly } = this;
    const columns = this.columns.order;
    const columnPositions = this.columns.positions;
    const width = this.columns.length;
    for (let i = top; i < bottom; i++) {
      const row = this.rows.order[i];
      const position = this.rows.positions[row];
      const base = row * width;
      for (let j = left; j < right; j++) {
        const column = columns[j];
        const value = values[base + column];
        const size = value < 0 ? -value : value;
        if (size === 0 || size < threshold) continue;
        if (crossOnly && columnPositions[column] === position) continue;
        visit(i, j, row, column, value);
      }
    }
  }

  /** The window in at most height × width bins, each with its strongest entry, so that a lone
   * entry is seen however far out one zooms. */
  pool(window, height, width) {
    const rows = window.bottom - window.top;
    const columns = window.right - window.left;
    const bins = {
      height: Math.max(1, Math.min(rows, height)),
      width: Math.max(1, Math.min(columns, width)),
    };
    const values = new Float32Array(bins.height * bins.width);
    const across = Int32Array.from({ length: columns }, (_, j) =>
      Math.floor((j * bins.width) / columns),
    );
    let largest = 0;
    this.scan(window, (i, j, row, column, value) => {
      const down = Math.floor(((i - window.top) * bins.height) / rows);
      const bin = down * bins.width + across[j - window.left];
      const size = value < 0 ? -value : value;
      const held = values[bin];
      if (size > (held < 0 ? -held : held)) values[bin] = value;
      if (size > largest) largest = size;
    });
    return { ...bins, values, largest };
  }

  /** How many entries a window shows, and the n strongest of them, strongest first. */
  strongest(window, n) {
    const heap = new Heap(n);
    let shown = 0;
    this.scan(window, (i, j, row, column, value) => {
      shown++;
      heap.offer(value < 0 ? -value : value, row, column);
    });
    return { shown, entries: heap.sorted() };
  }

  /** The nearest shown entry in a direction along the drawn row or column; null at the end. */
  next(row, column, down, right) {
    let i = this.rows.drawnAt[row] + down;
    let j = this.columns.drawnAt[column] + right;
    while (i >= 0 && j >= 0 && i < this.rows.length && j < this.columns.length) {
      const found = [this.rows.order[i], this.columns.order[j]];
      if (this.shows(found[0], found[1])) return found;
      i += down;
      j += right;
    }
    return null;
  }
}

/** The n largest of many, the least of them at the root. */
class Heap {
  constructor(n) {
    this.n = n;
    this.items = [];
  }

  offer(size, row, column) {
    if (this.items.length < this.n) {
      this.items.push({ size, row, column });
      if (this.items.length === this.n) this.items.sort((a, b) => a.size - b.size);
    } else if (this.n > 0 && size > this.items[0].size) {
      this.items[0] = { size, row, column };
      this.sink();
    }
  }

  sink() {
    const items = this.items;
    let at = 0;
    for (;;) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < items.length && items[child].size < items[least].size) least = child;
      }
      if (least === at) return;
      [items[at], items[least]] = [items[least], items[at]];
      at = least;
    }
  }

  sorted() {
    return this.items.sort((a, b) => b.size - a.size || a.row - b.row || a.column - b.column);
  }
}
