// @ts-check
// Report cards: one column a SAE, then densities, positions, next tokens and the latents of one.
import { barChart, legend, lineChart } from "./charts.js";
import { start } from "./host.js";
import { excerptLines } from "./nodes.js";
import { STYLE } from "./style.js";
import { readTensors } from "./tensors.js";
import { choice, count, element, isolate, short } from "./tokens.js";

const SHOWN = 200; // rows of latents that are drawn
const MEANING = {
  mse: "E‖y − ŷ‖², summed over dimensions", mse_per_dim: "mse / d_out", fvu: "Σ‖y − ŷ‖² / Σ‖y − ȳ‖²",
  explained_variance: "1 − fvu", cosine: "E cos(y, ŷ)", l2_ratio: "E ‖ŷ‖ / ‖y‖", error_ratio: "E ‖y − ŷ‖ / ‖y‖",
  reconstruction_bias: "E‖ŷ‖² / E⟨y, ŷ⟩; below 1 is shrinkage", l0: "active latents per token",
  l1: "Σ|a| per token", dead_fraction: "share never active on these tokens",
  ce_clean: "next-token loss, nats", ce_patched: "with ŷ for y", ce_zero_ablated: "with 0 for y",
  ce_mean_ablated: "with the mean for y", ce_increase: "patched − clean",
  ce_recovered_zero: "(zero − patched) / (zero − clean)", ce_recovered_mean: "(mean − patched) / (mean − clean)",
  kl: "KL(clean ‖ patched), nats", kl_zero_ablated: "KL(clean ‖ zero ablated)",
  kl_mean_ablated: "KL(clean ‖ mean ablated)", top1_agreement: "same most likely token",
};
const ORDERS = [
  ["density", "density, highest first"], ["-density", "density, lowest first"],
  ["neighbour_cosine", "nearest neighbour first"], ["-linear_round_trip_max_ratio", "worst round trip first"],
  ["index", "index"],
];

start(render);

function render({ model, el }) {
  const { arrays, about } = readTensors(model.get("data"));
  const sites = Object.keys(about.saes);
  const root = element("div", "gossamer");
  const style = document.createElement("style");
  style.textContent = `${STYLE}
.gossamer .numbers { max-height: none; } .gossamer section { margin-top: 14px; }`;
  const under = `${count(about.n_tokens)} tokens of ${about.corpus}, ${count(about.n_predicted)} predicted, `
    + `in blocks of ${about.context}; each SAE alone in the model, its error dropped.`;
  root.append(style, element("h1", "", model.get("title")), element("p", "", under));
  root.append(numbers(about.saes, sites), positions(about.saes, sites));
  if (about.next_tokens.length) root.append(nextTokens(about.next_tokens));
  root.append(oneSAE(about, arrays, sites));
  el.append(root);
  root.dataset.ready = "true";
}

function numbers(saes, sites) {
  const panel = scroll("numbers");
  const table = element("table");
  table.append(row("th", ["", ...sites]));
  for (const [name, meaning] of Object.entries(MEANING)) {
    const line = row("td", [name, ...sites.map((site) => shown(saes[site][name]))]);
    line.title = meaning;
    table.append(line);
  }
  for (const trip of ["linear_round_trip", "active_round_trip"]) {
    for (const ratio of ["max_ratio", "mean_ratio", "square_ratio"]) {
      if (!sites.some((site) => saes[site][trip])) continue;
      const cells = sites.map((site) => shown(saes[site][trip]?.[ratio].median));
      const line = row("td", [`${trip} ${ratio}, median`, ...cells]);
      line.title = "a latent alone through decoder and encoder: its own answer by the others'";
      table.append(line);
    }
  }
  panel.append(table);
  return panel;
}

function positions(saes, sites) {
  const box = element("section");
  const bar = element("div", "toolbar");
  const select = choice("by position", ["ce_patched", "ce_clean", "kl", "mse", "l0"].map((n) => [n, `${n} by position`]));
  bar.append(select);
  const figure = element("div", "figure positions");
  const draw = () => {
    const lines = sites.map((site) => saes[site].by_position[select.value]
      .map((value, i) => [i, value]).filter(([, value]) => value !== null));
    figure.replaceChildren(lineChart(lines, { name: select.value, across: "position", height: 260 }).svg);
  };
  select.addEventListener("change", draw);
  draw();
  box.append(bar, figure, legend(sites));
  return box;
}

function nextTokens(all) {
  const box = element("section");
  box.append(element("h1", "", "Next tokens, without and with the SAE"));
  for (const { prompt, site_out: site, clean, patched } of all) {
    const panel = element("div", "panel");
    panel.append(element("h2", "", site), isolate("token", prompt));
    const table = element("table", "next");
    table.append(row("th", ["model", "", "with the SAE", ""]));
    clean.forEach(([token, p], i) => {
      const line = element("tr");
      line.append(cell(isolate("token", token)), cell(percent(p)));
      line.append(cell(isolate("token", patched[i][0])), cell(percent(patched[i][1])));
      table.append(line);
    });
    panel.append(table);
    box.append(panel);
  }
  return box;
}

function oneSAE(about, arrays, sites) {
  const box = element("section");
  const bar = element("div", "toolbar");
  const site = choice("SAE", sites.map((name) => [name, name]));
  const order = choice("order of latents", ORDERS);
  bar.append(site, order);
  const figure = element("div", "figure densities");
  const list = scroll("latents");
  const draw = () => {
    const { first, width, counts, never } = about.saes[site.value].density_histogram;
    const used = counts.findIndex((n) => n > 0);
    const bars = used < 0 ? [] : counts.slice(used);
    const edges = bars.map((_, i) => first + width * (used + i));
    const across = `log10 of the share of tokens; ${count(never)} never`;
    figure.replaceChildren(barChart(bars, [...edges, 0], { name: "latents", across }));
    list.replaceChildren(latents(about, arrays, site.value, order.value));
  };
  site.addEventListener("change", draw);
  order.addEventListener("change", draw);
  draw();
  box.append(bar, figure, list);
  if (Object.keys(about.excerpts ?? {}).length) hovering(box, list, (latent) => about.excerpts[site.value]?.[latent]);
  return box;
}

/** Shows the texts of the latent whose row is under the pointer. */
function hovering(box, list, texts) {
  const tip = element("div", "tip");
  tip.hidden = true;
  box.style.position = "relative";
  box.append(tip);
  list.addEventListener("pointermove", (event) => {
    const lines = excerptLines(texts(event.target.closest("tr")?.dataset.latent));
    tip.hidden = !lines.length;
    tip.replaceChildren(...lines);
    const frame = box.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(event.clientX - frame.left + 18, frame.width - tip.offsetWidth))}px`;
    tip.style.top = `${event.clientY - frame.top + 14}px`;
  });
  list.addEventListener("pointerleave", () => (tip.hidden = true));
}

function latents(about, arrays, site, order) {
  const column = (name) => arrays[`${site}/${name}`];
  const names = about.labels[site];
  const by = column(order.replace(/^-/, ""));
  const sign = order.startsWith("-") ? 1 : -1;
  const ids = Array.from(column("density") ?? [], (_, i) => i);
  const key = (i) => (Number.isNaN(by[i]) ? Infinity : sign * by[i]);
  if (by) ids.sort((a, b) => key(a) - key(b) || a - b);
  const table = element("table");
  table.append(element("caption", "", `${Math.min(SHOWN, ids.length)} of ${count(ids.length)} latents`));
  table.append(row("th", ["latent", "fires on", "density", "nearest", "cosine", "own / largest other", "promotes", "suppresses"]));
  for (const i of ids.slice(0, SHOWN)) {
    const line = element("tr");
    line.dataset.latent = String(i);
    line.append(cell(String(i)), cell(isolate("meaning", names ? names[i] : "")), cell(short(column("density")[i])));
    line.append(cell(column("neighbour") ? String(column("neighbour")[i]) : ""));
    line.append(cell(number(column("neighbour_cosine"), i)), cell(number(column("linear_round_trip_max_ratio"), i)));
    for (const side of ["top", "bottom"]) line.append(words(column(`logits_${side}_tokens`), i, ids.length, about.tokens));
    table.append(line);
  }
  return table;
}

function words(tokens, latent, n, texts) {
  const box = element("td");
  if (!tokens) return box;
  const each = tokens.length / n;
  for (let i = 0; i < each; i++) box.append(isolate("token", texts[tokens[latent * each + i]] ?? ""), " ");
  return box;
}

function number(values, i) {
  return values && Number.isFinite(values[i]) ? short(values[i]) : "";
}

function shown(value) {
  return typeof value === "number" ? short(value) : "";
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function scroll(name) {
  const box = element("div", `scroll ${name}`);
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", name);
  return box;
}

function row(kind, texts) {
  const line = element("tr");
  for (const text of texts) line.append(element(kind, "", text));
  return line;
}

function cell(content) {
  const box = element("td");
  box.append(content);
  return box;
}
