// @ts-check
// The view's own style. It stands inside the view's element, so that it reaches shadow roots too, and
// every rule begins at the view's root, so that neither the host's style nor this one leaks.

export const STYLE = `
.gossamer { --ground: #ffffff; --panel: #f6f7f9; --text: #1a1d23; --faint: #5c6470; --line: #d9dde3;
  --accent: #1b5aa6; --negative: #1b5aa6; --positive: #b23c06; --chip: #eceff3; --shadow: #0002;
  container-type: inline-size; color: var(--text); background: var(--ground);
  border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; box-sizing: border-box;
  font: 13px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; text-align: left; }
@media (prefers-color-scheme: dark) {
  .gossamer { --ground: #15181e; --panel: #1d2128; --text: #e6e8ec; --faint: #a0a8b4; --line: #343a44;
    --accent: #6cb4f2; --negative: #7fbdf5; --positive: #f79a4b; --chip: #262b34; --shadow: #0008; } }
.gossamer *, .gossamer *::before { box-sizing: border-box; }
.gossamer h1 { font-size: 18px; line-height: 1.3; margin: 0; font-weight: 650; color: inherit; }
.gossamer p { margin: 2px 0 0; color: var(--faint); max-width: 110ch; }
.gossamer button { font: inherit; color: inherit; background: var(--chip); border: 1px solid var(--line);
  border-radius: 6px; padding: 3px 10px; cursor: pointer; }
.gossamer button:hover { border-color: var(--accent); }
.gossamer :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.gossamer .prompt { display: flex; flex-wrap: wrap; gap: 2px; margin: 10px 0 2px; max-height: 92px;
  overflow: auto; font: 12px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.gossamer .prompt bdi { background: var(--chip); border-radius: 4px; padding: 0 4px;
  border-bottom: 3px solid transparent; white-space: pre; }
.gossamer .prompt .source { border-bottom-color: var(--accent); }
.gossamer .prompt .target { box-shadow: inset 0 3px var(--positive); }
.gossamer .toolbar { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center;
  margin: 10px 0; padding: 8px 12px; background: var(--panel); border-radius: 8px; }
.gossamer .toolbar label { display: inline-flex; gap: 6px; align-items: center; margin: 0; }
.gossamer .toolbar input[type=range] { width: 130px; accent-color: var(--accent); margin: 0; }
.gossamer .toolbar input[type=number] { width: 86px; font: inherit; color: inherit; padding: 2px 6px;
  background: var(--ground); border: 1px solid var(--line); border-radius: 6px; }
.gossamer .toolbar input[type=checkbox] { accent-color: var(--accent); margin: 0; }
.gossamer .toolbar select { font: inherit; color: inherit; background: var(--ground);
  border: 1px solid var(--line); border-radius: 6px; padding: 2px 4px; }
.gossamer .toolbar .end { margin-left: auto; display: flex; gap: 8px; }
.gossamer .body { display: grid; grid-template-columns: minmax(0, 1fr); gap: 14px; }
@container (min-width: 940px) { .gossamer .body { grid-template-columns: minmax(0, 1fr) 330px; } }
.gossamer .axis { color: var(--faint); font-size: 12px; margin-bottom: 4px; }
.gossamer .axis b { color: var(--text); font-weight: 600; }
.gossamer .plot { position: relative; min-height: 80px; cursor: crosshair; border-radius: 6px;
  touch-action: none; user-select: none; }
.gossamer .plot.dragging { cursor: grabbing; }
.gossamer .plot.naming { cursor: pointer; }
.gossamer .plot canvas { position: absolute; inset: 0 auto auto 0; display: block; max-width: none; }
.gossamer .tip { position: absolute; z-index: 5; pointer-events: none; width: 290px; padding: 10px 12px;
  background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  box-shadow: 0 6px 24px var(--shadow); }
.gossamer .side { display: flex; flex-direction: column; gap: 12px; }
.gossamer .panel { background: var(--panel); border-radius: 8px; padding: 12px 14px; }
.gossamer .panel h2 { font-size: 12px; margin: 0 0 6px; font-weight: 600; color: var(--faint); }
.gossamer .legend canvas { width: 100%; height: 14px; border-radius: 3px; display: block;
  border: 1px solid var(--line); }
.gossamer .ticks { display: flex; justify-content: space-between; margin-top: 3px;
  font-size: 11px; color: var(--faint); font-variant-numeric: tabular-nums; }
.gossamer .effect { margin-bottom: 8px; font-variant-numeric: tabular-nums; }
.gossamer .effect strong { font-size: 17px; font-weight: 650; }
.gossamer .effect .gradient { margin-left: 12px; }
.gossamer .negative { color: var(--negative); }
.gossamer .positive { color: var(--positive); }
.gossamer .faint { color: var(--faint); }
.gossamer .node { border-left: 3px solid var(--accent); padding-left: 9px; margin-top: 8px; }
.gossamer .node + .node { border-left-color: var(--positive); }
.gossamer .kind { font-size: 11px; color: var(--faint); }
.gossamer .token, .gossamer .id, .gossamer .meaning { overflow-wrap: anywhere; white-space: pre-wrap; }
.gossamer .token { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  background: var(--chip); border-radius: 4px; padding: 0 4px; }
.gossamer .id { display: block; font: 11.5px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas,
  monospace; color: var(--faint); }
.gossamer .actions { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 12px; }
.gossamer .status { margin: 10px 0 0; color: var(--faint); }
.gossamer .scroll { max-height: 380px; overflow: auto; margin-top: 8px; border: 1px solid var(--line);
  border-radius: 8px; }
.gossamer table { border-collapse: collapse; width: 100%; font-size: 12.5px; margin: 0; color: inherit; }
.gossamer caption { text-align: left; padding: 8px 12px; color: var(--faint); }
.gossamer th { position: sticky; top: 0; background: var(--panel); text-align: left; padding: 2px;
  border-bottom: 1px solid var(--line); z-index: 1; }
.gossamer th button { width: 100%; text-align: inherit; border-color: transparent;
  background: transparent; font-weight: 600; white-space: nowrap; }
.gossamer th.value, .gossamer th.gradient { text-align: right; }
.gossamer th[aria-sort=ascending] button::after { content: " ▲"; font-size: 9px; }
.gossamer th[aria-sort=descending] button::after { content: " ▼"; font-size: 9px; }
.gossamer td { padding: 3px 12px; border: 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: baseline; }
.gossamer td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.gossamer td.rank { color: var(--faint); font-variant-numeric: tabular-nums; }
.gossamer td .index { font-variant-numeric: tabular-nums; font-weight: 600; }
.gossamer td .meaning { color: var(--faint); }
.gossamer tbody tr { cursor: pointer; background: transparent; }
.gossamer tbody tr:hover { background: var(--panel); }
.gossamer tbody tr.selected { background: var(--chip); box-shadow: inset 3px 0 var(--accent); }
.gossamer tbody tr:focus-visible { outline-offset: -2px; }
.gossamer .help { position: absolute; z-index: 6; right: 8px; top: 8px; width: min(420px, 94%);
  background: var(--ground); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px;
  box-shadow: 0 6px 24px var(--shadow); cursor: auto; user-select: text; }
.gossamer .help dl { display: grid; grid-template-columns: auto 1fr; gap: 4px 14px; margin: 0; }
.gossamer .help dt { font-weight: 600; }
.gossamer .help dd { margin: 0; }
.gossamer .heard { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.gossamer [hidden] { display: none !important; }
`;
