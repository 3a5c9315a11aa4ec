// @ts-check
// The node table: sorted by its headings, walked by arrows, with what can be done to each node.
import { canAblate, waysInto } from "./nodes.js";
import { COLUMNS, EFFECTS, found, isActive, largest, sidesOf, sorted } from "./rows.js";
import { button, element, isolate, lined } from "./text.js";

const TEXTS = [
  ["name", "Name"],
  ["token", "Token"],
  ["label", "Label"],
];
const ROUTES = { q: "Q", k: "K", qk: "QK", v: "V", pre: "Trace" };

export class NodeTable {
  /**
   * @param {HTMLElement} place where it stands
   * @param {object} acts `sort(order)`, `ablate(id)`, `trace(id, way)`, `open(row)`, `byKey(row)`
   */
  constructor(place, acts) {
    this.acts = acts;
    this.rows = [];
    this.el = element("table", "nodes");
    this.head = element("thead");
    this.body = element("tbody");
    this.el.append(element("caption", "heard", "Nodes and their effects on what is explained"));
    this.el.append(this.head, this.body);
    place.append(this.el);
    this.body.addEventListener("keydown", (event) => this.walk(event));
    this.body.addEventListener("focusin", (event) => this.settle(event.target.closest("tr")));
  }

  /** Draw an answer's rows as the state looks at them; returns how many are shown. */
  show(answer, rows, state) {
    this.rows = rows;
    const order = this.orderOf(answer, state.sort);
    const sides = sidesOf(answer);
    const wanted = state.inside ? rows.filter((row) => row.inCut) : rows;
    const shown = sorted(found(wanted, state.find), order);
    this.el.classList.toggle("sided", sides !== null);
    this.drawHead(sides, order);
    const most = largest(rows);
    const formats = Object.fromEntries(
      COLUMNS.map(([key]) => [key, lined(Math.max(...most[key]))]),
    );
    const here = document.activeElement?.closest?.("tr[data-id]")?.getAttribute("data-id") ?? this.current;
    const had = this.body.contains(document.activeElement);
    this.body.replaceChildren(...shown.map((row) => this.line(row, { state, most, formats })));
    this.settle(this.lineOf(here) ?? this.body.rows[0], had);
    this.mark(state.open);
    return shown.length;
  }

  orderOf(answer, sort) {
    if (!answer.comparison) return sort.replace(/\.\d$/, "");
    return /\.\d$|name|token|label/.test(sort) ? sort : `${sort}.1`;
  }

  drawHead(sides, order) {
    const [above, below] = [element("tr"), element("tr")];
    const first = sides ? above : below;
    for (const [key, text] of TEXTS) {
      const cell = this.heading(key, text, order);
      if (sides) cell.rowSpan = 2;
      first.append(cell);
    }
    for (const [key, text] of COLUMNS) {
      if (!sides) {
        below.append(this.heading(key, text, order, "number"));
        continue;
      }
      const group = element("th", "group", text);
      Object.assign(group, { colSpan: 3, scope: "colgroup" });
      above.append(group);
      sides.forEach((side, i) => {
        const heading = this.heading(`${key}.${i}`, side, order, `number side${i}`);
        heading.querySelector("button").setAttribute("aria-label", `${text}, ${side}`);
        below.append(heading);
      });
    }
    const last = element("th", "acts");
    last.append(element("span", "heard", "Ablate or trace"));
    last.scope = "col";
    if (sides) last.rowSpan = 2;
    first.append(last);
    this.head.replaceChildren(...(sides ? [above, below] : [below]));
  }

  heading(key, text, order, className = "") {
    const cell = element("th", className || key);
    cell.scope = "col";
    const isText = TEXTS.some(([name]) => name === key);
    const current = order.replace(/^[-+]/, "") === key;
    const next = isText
      ? order === key ? `-${key}` : key
      : { [key]: `+${key}`, [`+${key}`]: `-${key}` }[order] ?? key;
    cell.append(button(text, () => this.acts.sort(next), {
      title: isText ? `sort by ${text.toLowerCase()}` : "sort by size, then from the largest, then from the smallest",
    }));
    const up = isText ? order === key : order[0] === "-";
    cell.setAttribute("aria-sort", current ? (up ? "ascending" : "descending") : "none");
    if (current && !isText) cell.dataset.by = { "+": "above", "-": "below" }[order[0]] ?? "size";
    return cell;
  }

  line(row, { state, most, formats }) {
    const line = element("tr");
    line.dataset.id = row.id;
    line.dataset.kind = row.kind;
    line.tabIndex = -1;
    line.classList.toggle("outside", !row.inCut);
    const ablated = state.ablate.includes(row.id);
    line.classList.toggle("ablated", ablated);
    const name = element("th", "name");
    name.scope = "row";
    name.append(element("span", "", row.name));
    name.title = row.inCut ? row.id : `${row.id}, outside the cut: not counted in the sums`;
    if (!row.inCut) name.append(element("span", "heard", ", outside the cut"));
    line.append(name, this.token(row), this.label(row));
    for (const [key] of COLUMNS) {
      row.values[key].forEach((value, side) => {
        const effect = EFFECTS.has(key) || (row.values[key].length === 3 && side === 1);
        line.append(number(formats[key](value), value, { effect, side, most: most[key][side], signed: side === 1 }));
      });
    }
    line.append(this.actions(row, ablated));
    return line;
  }

  token(row) {
    const cell = element("td", "token-cell");
    cell.append(isolate("token", row.token ?? ""), element("span", "at", `${row.position}`));
    if (row.key !== null) {
      const arrow = element("span", "arrow", "←");
      arrow.setAttribute("aria-label", "from");
      cell.append(arrow, isolate("token", row.keyToken ?? ""), element("span", "at", `${row.key}`));
    }
    return cell;
  }

  label(row) {
    const cell = element("td", "label-cell");
    if (row.kind !== "latent") return cell;
    const open = button("", () => this.acts.open(row), { className: "label", title: "open this latent" });
    open.append(row.label ? isolate("", row.label) : element("span", "faint", "no label"));
    open.tabIndex = -1;
    cell.append(open);
    return cell;
  }

  actions(row, ablated) {
    const cell = element("td", "acts");
    const add = (text, act, options) => {
      const one = button(text, act, options);
      one.tabIndex = -1;
      cell.append(one);
      return one;
    };
    for (const way of waysInto(row.kind)) {
      const one = add(ROUTES[way], () => this.acts.trace(row.id, way), {
        title: way === "pre" ? "what caused it (T)" : `what caused it, by way of ${ROUTES[way]}`,
        label: way === "pre" ? `trace ${row.name}` : `trace ${row.name} through ${way}`,
      });
      one.dataset.way = way;
      one.disabled = way === "pre" && !isActive(row);
      if (one.disabled) one.title = "not active here, so nothing flows through it";
    }
    if (row.kind === "head") {
      add("keys", () => this.acts.byKey(row), {
        title: "by the token it looks at, where Q, K and QK can be traced",
        label: `list ${row.name} by key`,
      });
    }
    if (canAblate(row.kind)) {
      const one = add(ablated ? "Restore" : "Ablate", () => this.acts.ablate(row.id), {
        className: "ablate",
        title: ablated ? "take the edit back (A)" : "set it to zero and run again (A)",
        label: `${ablated ? "restore" : "ablate"} ${row.name}`,
      });
      one.setAttribute("aria-pressed", String(ablated));
    }
    return cell;
  }

  lineOf(id) {
    return Array.from(this.body.rows).find((line) => line.dataset.id === id) ?? null;
  }

  /** The line that the tab key reaches. */
  settle(line, focus = false) {
    if (!line) return;
    for (const other of this.body.rows) {
      const is = other === line;
      other.tabIndex = is ? 0 : -1;
      for (const one of other.querySelectorAll("button")) one.tabIndex = is ? 0 : -1;
    }
    this.current = line.dataset.id;
    if (focus) line.focus({ preventScroll: false });
  }

  /** Mark the line whose node is open in the panel. */
  mark(id) {
    for (const line of this.body.rows) {
      if (id && line.dataset.id === id) line.setAttribute("aria-current", "true");
      else line.removeAttribute("aria-current");
    }
  }

  walk(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const line = event.target.closest("tr");
    const row = this.rows.find((each) => each.id === line?.dataset.id);
    if (!row) return;
    const stops = [line, ...line.querySelectorAll("button")];
    const place = stops.indexOf(event.target);
    const goes = {
      ArrowDown: () => line.nextElementSibling,
      ArrowUp: () => line.previousElementSibling,
      Home: () => this.body.rows[0],
      End: () => this.body.rows[this.body.rows.length - 1],
      ArrowRight: () => stops[place + 1],
      ArrowLeft: () => stops[place - 1],
    };
    const onLine = event.target === line;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in goes) {
      const to = goes[key]();
      to?.focus();
      if (to && stops.includes(to)) to.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else if (key === "a" && canAblate(row.kind)) this.acts.ablate(row.id);
    else if (key === "t" && !isActive(row)) return;
    else if (key === "t" && waysInto(row.kind).length === 1) this.acts.trace(row.id, waysInto(row.kind)[0]);
    else if (key === "t" && waysInto(row.kind).length) line.querySelector("[data-way]").focus();
    else if (key === "Enter" && onLine) this.acts.open(row);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** A cell with a number; of an effect with its sign as colour, and a bar as long as its size. */
function number(text, value, { effect, side, most, signed }) {
  const cell = element("td", `number side${side}`);
  const written = element("span", "", signed && value > 0 ? `+${text}` : text);
  if (effect && value) {
    written.className = value < 0 ? "negative" : "positive";
    cell.style.setProperty("--part", (Math.abs(value) / most).toFixed(3));
    cell.classList.add("effect", value < 0 ? "below" : "above");
  }
  if (!value) written.className = "faint";
  cell.append(written);
  return cell;
}
