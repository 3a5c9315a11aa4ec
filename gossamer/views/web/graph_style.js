// @ts-check
// What the graph view adds to the style of all views. Purple and green stand for the sign here.

export const GRAPH_STYLE = `
.gossamer.graph { --negative: #7b3294; --positive: #1b7837; --band: #f8f9fb; --mark: #111318; }
@media (prefers-color-scheme: dark) {
  .gossamer.graph { --negative: #c79be6; --positive: #58c47d; --band: #1a1e25; --mark: #ffffff; } }
@container (min-width: 940px) { .gossamer.graph .body { grid-template-columns: minmax(0, 1fr) 420px; } }
.gossamer.graph .side { min-width: 0; }
@container (min-width: 940px) { .gossamer.graph .side { position: sticky; top: 8px; align-self: start;
  height: min(860px, calc(100vh - 16px)); } }
.gossamer.graph .toolbar { gap: 8px 14px; }
.gossamer.graph .toolbar input[type=range] { width: 104px; }
.gossamer.graph .toolbar input[type=search] { width: 130px; }
.gossamer.graph .toolbar .part { min-width: 42px; font-variant-numeric: tabular-nums; }
.gossamer.graph input[type=search], .gossamer.graph input[type=text] { font: inherit; color: inherit;
  background: var(--ground); padding: 2px 8px; border: 1px solid var(--line); border-radius: 6px; min-width: 0; }
.gossamer.graph .bar select { font: inherit; color: inherit; background: var(--ground);
  border: 1px solid var(--line); border-radius: 6px; padding: 2px 4px; }
.gossamer.graph .plot { display: grid; grid-template-columns: auto minmax(0, 1fr); cursor: default;
  touch-action: pan-x pan-y; }
.gossamer.graph .rows-names { position: relative; width: 84px; font-size: 11.5px; color: var(--faint); }
.gossamer.graph .row-name { position: absolute; right: 8px; left: 0; display: flex; align-items: center;
  justify-content: flex-end; white-space: nowrap; overflow: hidden; line-height: 1; }
.gossamer.graph .scroller { overflow-x: auto; overflow-y: hidden; position: relative; }
.gossamer.graph .inner { position: relative; }
.gossamer.graph .inner svg, .gossamer.graph .inner canvas { position: absolute; left: 0; top: 0; display: block; }
.gossamer.graph .nodes { pointer-events: none; }
.gossamer.graph .band { fill: var(--band); }
.gossamer.graph .band.odd { fill: transparent; }
.gossamer.graph .rule { stroke: var(--line); stroke-width: 1; stroke-dasharray: 1 3; }
.gossamer.graph .token-name text { font: 11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: var(--text); }
.gossamer.graph .token-name .number { font-size: 10px; fill: var(--faint); }
.gossamer.graph .token-name.at text { font-weight: 700; fill: var(--accent); }
.gossamer.graph .logit-name { font: 600 11px system-ui, sans-serif; fill: var(--text); }
.gossamer.graph .logit-name .number { font-weight: 400; fill: var(--faint); }
.gossamer.graph .glyph { stroke-width: 1; }
.gossamer.graph .glyph.linked { stroke-width: 1.2; }
.gossamer.graph .glyph.pinned { stroke: var(--mark) !important; stroke-width: 2.2; }
.gossamer.graph .glyph.found { stroke: var(--accent) !important; stroke-width: 3; }
.gossamer.graph .glyph.chosen { stroke: var(--accent) !important; stroke-width: 3; stroke-dasharray: 2 2; }
.gossamer.graph .glyph.hovered { stroke: var(--mark) !important; stroke-width: 2.4; }
.gossamer.graph .glyph.selected { fill: var(--accent) !important; stroke: var(--mark) !important; stroke-width: 2.6; }
.gossamer.graph .base.quiet { opacity: 0.22; }
.gossamer.graph .tip { width: 270px; }
.gossamer.graph .graph-node .head { display: flex; gap: 7px; align-items: baseline; font-size: 14px; font-weight: 600; }
.gossamer.graph .graph-node .name { overflow-wrap: anywhere; max-height: 4.4em; overflow: hidden; }
.gossamer.graph .kind-mark { flex: none; overflow: visible; vertical-align: -1px; }
.gossamer.graph .kind-mark path { fill: var(--faint); }
.gossamer.graph .graph-legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 6px; font-size: 12px;
  color: var(--faint); align-items: center; }
.gossamer.graph .graph-legend .part { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: center; border: 0;
  margin: 0; padding: 0; min-width: 0; }
.gossamer.graph .graph-legend legend { float: left; padding: 0; margin-right: 2px; font-weight: 600; }
.gossamer.graph .graph-legend .item { display: inline-flex; gap: 5px; align-items: center; }
.gossamer.graph .graph-legend .item.positive { color: var(--positive); }
.gossamer.graph .graph-legend .item.negative { color: var(--negative); }
.gossamer.graph .graph-legend .item > span { color: var(--faint); }
.gossamer.graph .swatch { display: inline-flex; gap: 4px; align-items: center; color: var(--light); }
.gossamer.graph .swatch input { accent-color: var(--light); margin: 0; }
.gossamer.graph .class-mark { color: var(--light); font-weight: 700; display: inline-block; min-width: 12px; text-align: center; }
@media (prefers-color-scheme: dark) {
  .gossamer.graph .swatch, .gossamer.graph .class-mark { color: var(--dark); }
  .gossamer.graph .swatch input { accent-color: var(--dark); } }
.gossamer.graph .status { margin-top: 6px; }
.gossamer.graph .connections { display: flex; flex-direction: column; flex: 1 1 auto; max-height: 860px; min-height: 0; }
.gossamer.graph .lists bdi.token { white-space: pre; overflow-wrap: normal; color: var(--text); }
.gossamer.graph .bar { display: flex; flex-wrap: wrap; gap: 6px 8px; align-items: center; }
.gossamer.graph .connections .bar { margin-top: 10px; }
.gossamer.graph .connections .bar input { flex: 1 1 80px; }
.gossamer.graph .connections .lists { overflow: auto; margin: 8px -14px -12px; padding: 0 14px 12px; min-height: 160px; }
.gossamer.graph .connections .actions { margin-top: 8px; align-items: center; }
.gossamer.graph .excerpt { margin-top: 3px; font-size: 12px; }
.gossamer.graph a { color: var(--accent); }
.gossamer.graph .lists table { table-layout: fixed; }
.gossamer.graph .lists .starts td.what { width: 50%; }
.gossamer.graph .lists caption { font-weight: 600; }
.gossamer.graph .lists th.row { width: 48px; }
.gossamer.graph .lists th.token { width: 96px; }
.gossamer.graph .lists th.weight { width: 68px; }
.gossamer.graph .lists th.part { width: 50px; }
.gossamer.graph .lists th.measured { width: 90px; }
@container (min-width: 1200px) { .gossamer.graph.checked .body { grid-template-columns: minmax(0, 1fr) 480px; } }
.gossamer.graph .lists caption { padding: 6px 0 2px; font-size: 12.5px; }
.gossamer.graph .lists th { padding: 2px 4px; font-size: 11px; font-weight: 500; color: var(--faint); position: static; background: none; }
.gossamer.graph .lists th.number { text-align: right; }
.gossamer.graph .lists tr.sign th { color: inherit; font-weight: 600; padding-top: 5px; border: 0; }
.gossamer.graph .lists tr.sign th.positive { color: var(--positive); }
.gossamer.graph .lists tr.sign th.negative { color: var(--negative); }
.gossamer.graph .lists tr.sign, .gossamer.graph .lists tr.more { cursor: default; background: none; }
.gossamer.graph .lists td { padding: 2px 4px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.gossamer.graph .lists td.row { font-size: 11.5px; }
.gossamer.graph .lists td.what .meaning { color: var(--text); white-space: pre; margin-left: 5px; }
.gossamer.graph .lists td.number.negative { color: var(--negative); }
.gossamer.graph .lists td.number.positive { color: var(--positive); }
.gossamer.graph .lists td.share { color: var(--text) !important; background: linear-gradient(to right,
  color-mix(in srgb, var(--positive) 24%, transparent) var(--part), transparent var(--part)); }
.gossamer.graph .lists td.share.negative { background: linear-gradient(to right,
  color-mix(in srgb, var(--negative) 24%, transparent) var(--part), transparent var(--part)); }
.gossamer.graph .lists tr.linked { background: var(--chip); box-shadow: inset 3px 0 var(--accent); }
.gossamer.graph .lists tr:focus-visible { outline-offset: -2px; }
.gossamer.graph .subgraph { margin-top: 12px; }
.gossamer.graph .subgraph h2 { margin: 0; color: var(--text); }
.gossamer.graph .subgraph .scores { display: inline-flex; flex-wrap: wrap; gap: 0 12px; color: var(--faint); margin-right: auto;
  font-variant-numeric: tabular-nums; }
.gossamer.graph .subgraph .naming { width: 124px; }
.gossamer.graph .subgraph .bar { gap: 6px; }
.gossamer.graph .subgraph button { padding: 2px 8px; }
.gossamer.graph .subgraph button:disabled { opacity: 0.45; cursor: default; }
.gossamer.graph .subgraph .hint { margin-top: 4px; }
.gossamer.graph .area { margin-top: 8px; overflow: auto; background: var(--ground); border: 1px solid var(--line);
  border-radius: 8px; max-height: 560px; touch-action: none; user-select: none; }
.gossamer.graph .area svg { display: block; }
.gossamer.graph .area .box { cursor: pointer; }
.gossamer.graph .area .link { opacity: 0.8; }
.gossamer.graph .area .link.on { opacity: 1; }
.gossamer.graph .area .box.active .face { stroke-width: 2.2; stroke: var(--mark); }
.gossamer.graph .area .box.selected .face { stroke: var(--accent); stroke-width: 2.6; }
.gossamer.graph .area .box.chosen .face { stroke: var(--accent); stroke-width: 2.6; stroke-dasharray: 4 3; }
.gossamer.graph .area .marquee { fill: color-mix(in srgb, var(--accent) 12%, transparent); stroke: var(--accent); stroke-dasharray: 4 3; }
.gossamer.graph details.all { margin-top: 12px; }
.gossamer.graph details.all summary { cursor: pointer; color: var(--faint); }
.gossamer.graph .copied { font: 11px ui-monospace, monospace; width: 100%; }
`;
