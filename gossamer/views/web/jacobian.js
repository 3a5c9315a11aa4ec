// @ts-check
// A Jacobian of one prompt: choose a token, see its block of latents by latents, point at an entry.
import { lineChart } from "./charts.js";
import { colourAt, strength } from "./colours.js";
import { start } from "./host.js";
import { STYLE } from "./style.js";
import { readTensors } from "./tensors.js";
import { count, element, isolate, short, showToken, signed } from "./tokens.js";

const OWN = `
.gossamer .strip { display: flex; flex-wrap: wrap; gap: 3px; margin: 8px 0; }
.gossamer .strip button { padding: 2px 5px; white-space: pre; font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.gossamer .strip button[aria-pressed=true] { outline: 2px solid var(--accent); }
.gossamer .sides { display: grid; grid-template-columns: minmax(280px, 1fr) minmax(260px, 380px); gap: 16px; align-items: start; }
@media (max-width: 760px) { .gossamer .sides { grid-template-columns: minmax(0, 1fr); } }
.gossamer canvas.block { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); cursor: crosshair; }
.gossamer .curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 10px; }
.gossamer td.meaning { max-width: 240px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.gossamer tr[data-at] { cursor: pointer; }
`;
const SHAPES = { linear: "linear", jumprelu: "0, then linear (JumpReLU-like)", other: "neither" };
const DRAWN = 24; // sweeps that are drawn

start(render);

function render({ model, el }) {
  const { arrays, about } = readTensors(model.get("data"));
  const block = new Blocks(arrays, about);
  const root = element("div", "gossamer");
  const style = document.createElement("style");
  style.textContent = STYLE + OWN;
  root.append(style, element("h1", "", about.title), element("p", "", about.note));
  const strip = element("div", "strip");
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", "tokens");
  const sides = element("div", "sides");
  const canvas = element("canvas", "block");
  canvas.setAttribute("tabindex", "0");
  canvas.setAttribute("role", "img");
  const panel = element("div", "panel");
  panel.setAttribute("aria-live", "polite");
  const left = element("div");
  const caption = element("p", "faint");
  left.append(canvas, caption);
  sides.append(left, panel);
  root.append(strip, sides, densities(about), strongest(about, (place) => show(...place)), shapes(arrays, about));
  el.append(root);

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const theme = () => (dark.matches ? "dark" : "light");
  const draw = () => {
    const position = model.get("position");
    block.draw(canvas, position, chosen, theme());
    for (const button of strip.children) button.setAttribute("aria-pressed", String(Number(button.dataset.at) === position));
    const { rows, columns } = block.size(position);
    canvas.setAttribute("aria-label", `${rows} by ${columns} derivatives at ${showToken(about.tokens[position])}`);
    caption.textContent = `→ ${columns} latents before the MLP, ↓ ${rows} after it, at token ${position}. `
      + `Largest derivative ${short(block.largest(position))}; ${count(about.above[position])} of `
      + `${count(rows * columns)} entries above ${about.counted_above} in comparable units.`;
    panel.replaceChildren(chosen ? block.card(position, ...chosen) : element("p", "faint", "Point at an entry, or walk with the arrow keys."));
  };
  const show = (position, row, column) => {
    model.set("position", position);
    chosen = row === undefined ? null : [row, column];
    draw();
  };
  about.tokens.forEach((token, position) => {
    const button = element("button", "", showToken(token));
    button.dataset.at = String(position);
    const [r, g, b] = colourAt(0.55 * Math.min(1, about.above[position] / Math.max(1, ...about.above)), theme());
    button.style.background = `rgb(${r}, ${g}, ${b})`;
    button.title = `${about.above[position]} entries above ${about.counted_above}`;
    button.addEventListener("click", () => show(position));
    strip.append(button);
  });
  const point = (event) => {
    const cell = block.at(canvas, model.get("position"), event);
    if (cell) show(model.get("position"), ...cell);
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("click", point);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    const { rows, columns } = block.size(model.get("position"));
    const [row, column] = chosen ?? [0, 0];
    const clamp = (n, most) => Math.max(0, Math.min(most - 1, n));
    show(model.get("position"), clamp(row + step[0], rows), clamp(column + step[1], columns));
    event.preventDefault();
  });
  dark.addEventListener("change", draw);
  draw();
  root.dataset.ready = "true";
}

/** The blocks of all tokens. */
class Blocks {
  constructor(arrays, about) {
    Object.assign(this, { arrays, about });
    [, this.k_out, this.k_in] = about.shapes.values;
  }

  value(name, position, row, column) {
    return this.arrays[name][(position * this.k_out + row) * this.k_in + column];
  }

  size(position) {
    const used = (name, k) => {
      let n = 0;
      while (n < k && this.arrays[name][position * k + n] >= 0) n += 1;
      return n;
    };
    return { rows: used("out_indices", this.k_out), columns: used("in_indices", this.k_in) };
  }

  largest(position) {
    const { rows, columns } = this.size(position);
    let most = 0;
    for (let j = 0; j < rows; j++) {
      for (let i = 0; i < columns; i++) most = Math.max(most, Math.abs(this.value("values", position, j, i)));
    }
    return most;
  }

  draw(canvas, position, chosen, theme) {
    const { rows, columns } = this.size(position);
    const cell = 16;
    canvas.width = Math.max(1, columns * cell);
    canvas.height = Math.max(1, rows * cell);
    canvas.style.maxWidth = `${Math.min(720, Math.max(160, columns * 20))}px`;
    const ink = canvas.getContext("2d");
    const most = this.largest(position);
    for (let j = 0; j < rows; j++) {
      for (let i = 0; i < columns; i++) {
        const [r, g, b] = colourAt(strength(this.value("values", position, j, i), most, "root"), theme);
        ink.fillStyle = `rgb(${r}, ${g}, ${b})`;
        ink.fillRect(i * cell, j * cell, cell, cell);
      }
    }
    if (!chosen) return;
    ink.strokeStyle = theme === "dark" ? "#fff" : "#111";
    ink.lineWidth = 2;
    ink.strokeRect(chosen[1] * cell + 1, chosen[0] * cell + 1, cell - 2, cell - 2);
  }

  at(canvas, position, event) {
    const box = canvas.getBoundingClientRect();
    const { rows, columns } = this.size(position);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return row >= 0 && column >= 0 && row < rows && column < columns ? [row, column] : null;
  }

  card(position, row, column) {
    const { arrays, about } = this;
    const box = element("div");
    const side = (kind, name, k, place) => {
      const latent = arrays[`${name}_indices`][position * k + place];
      const line = element("p");
      line.append(element("b", "", `${kind} ${latent} `), isolate("meaning", about.labels[name][String(latent)] ?? ""));
      line.append(element("span", "faint", ` ${about[`${name}_site`]}, active ${short(arrays[`${name}_values`][position * k + place])}`));
      return line;
    };
    box.append(side("source", "in", this.k_in, column), side("target", "out", this.k_out, row));
    const value = this.value("values", position, row, column);
    for (const [name, number] of [
      ["derivative", value],
      ["times the source's activation", value * arrays.in_values[position * this.k_in + column]],
      ["comparable", this.value("comparable", position, row, column)],
    ]) box.append(element("div", "", `${name}: ${signed(number)}`));
    return box;
  }
}

function densities(about) {
  const box = element("section");
  box.append(element("h2", "", "how sparse"));
  const table = element("table");
  const head = element("tr");
  for (const name of ["entries above", "a token", "share"]) head.append(element("th", "", name));
  table.append(head);
  for (const [threshold, entries, share] of about.density) {
    const line = element("tr");
    for (const text of [short(threshold), entries.toFixed(1), `${(100 * share).toFixed(2)} %`]) line.append(element("td", "", text));
    table.append(line);
  }
  box.append(table, element("p", "faint", "Sizes for decoder rows of norm 1 and activations of mean square 1; BOS left out."));
  return box;
}

function strongest(about, show) {
  const box = element("section");
  box.append(element("h2", "", "strongest pairs"));
  const table = element("table");
  const head = element("tr");
  for (const name of ["source", "fires on", "target", "fires on", "derivative", "times activation"]) head.append(element("th", "", name));
  table.append(head);
  for (const entry of about.strongest) {
    const line = element("tr");
    line.dataset.at = entry.place.join(",");
    line.append(element("td", "", entry.source));
    const source = element("td", "meaning");
    source.append(isolate("", entry.source_label));
    const target = element("td", "meaning");
    target.append(isolate("", entry.target_label));
    line.append(source, element("td", "", entry.target), target);
    line.append(element("td", "", signed(entry.value)), element("td", "", signed(entry.attribution)));
    line.addEventListener("click", () => show(entry.place));
    table.append(line);
  }
  box.append(table);
  return box;
}

function shapes(arrays, about) {
  const box = element("section");
  if (about.sweeps.length === 0) return box;
  box.append(element("h2", "", "how linear"));
  const total = about.sweeps.length;
  const parts = Object.entries(SHAPES).map(([shape, text]) => {
    const n = about.sweeps.filter((sweep) => sweep.shape === shape).length;
    return `${text}: ${n} of ${total}`;
  });
  box.append(element("p", "", `${parts.join("; ")}. The source goes from 0 to twice its value; tolerance ${100 * about.tolerance} % of the range.`));
  const curves = element("div", "curves");
  const width = about.shapes["sweep_values"][1];
  about.sweeps.slice(0, DRAWN).forEach((sweep, n) => {
    const line = Array.from({ length: width }, (_, i) => [arrays.sweep_values[n * width + i], arrays.sweep_outputs[n * width + i]]);
    const figure = element("figure");
    const { svg } = lineChart([line], { name: `latent ${sweep.target}`, across: `latent ${sweep.source} @${sweep.position}`, width: 260, height: 170 });
    figure.append(svg, element("figcaption", "faint", `${sweep.source} → ${sweep.target} @${sweep.position}: ${SHAPES[sweep.shape]}`));
    curves.append(figure);
  });
  box.append(curves);
  return box;
}
