"""How long a browser takes to show a graph page, to follow the pointer, and how large the file is.

    python benchmarks/graph_page.py [--nodes 2000] [--edges 20000]

Opens the page from its file in Chromium (software rendering) several times, each in a fresh page,
with the threshold at 0 so that every edge is drawn (the strongest 20,000 of more). Prints medians
of the marks that the page sets, in seconds from the start of navigation, and the time from a move
of the pointer to the second frame after it. The graph is random: causal, with heavy tails, more
latents at later tokens. Bars: painted in 1.5 s, 95 % of moves in 50 ms.
"""

import os
import shutil
import statistics
import tempfile
from pathlib import Path

import click
import numpy as np

from gossamer.views import GraphEdges, GraphNodes, GraphView

BAR_SECONDS = 1.5
BAR_HOVER_SECONDS = 0.05
LAYERS = 12
WORDS = " The quick brown fox jumps over the lazy dog because it was told to run".split(" ")[1:]
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
MARKS = """() => Object.fromEntries([
  ...performance.getEntriesByType("mark"), ...performance.getEntriesByType("paint")
].map(entry => [entry.name, entry.startTime / 1000]))"""
HOVER = """async () => {
  const scroller = document.querySelector(".scroller");
  const box = scroller.getBoundingClientRect();
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  for (let i = 0; i < 60; i++) {
    const clientX = box.left + 20 + ((i * 137) % (box.width - 40));
    const clientY = box.top + 70 + ((i * 61) % 240);
    await frame();
    const start = performance.now();
    scroller.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
    await frame();
    await frame();
    times.push((performance.now() - start) / 1000);
  }
  return times;
}"""


def random_nodes(n: int, generator: np.random.Generator) -> GraphNodes:
    """Tokens, errors and biases everywhere, five logits, latents for the rest; in forward order."""
    n_pos = len(WORDS)
    rows = [("token", 0, p) for p in range(n_pos)]
    rows += [(kind, r, p) for r in range(1, LAYERS + 1) for p in range(1, n_pos)
             for kind in ("error", "bias") if kind == "error" or r % 4 == 0]  # fmt: skip
    n_latents = max(1, n - len(rows) - 5)
    chances = np.arange(1, n_pos) / np.arange(1, n_pos).sum()
    places = generator.choice(np.arange(1, n_pos), n_latents, p=chances)
    layers = generator.integers(1, LAYERS + 1, n_latents)
    rows += [("latent", int(r), int(p)) for r, p in zip(layers, places, strict=True)]
    rows += [("logit", LAYERS + 1, n_pos - 1)] * 5
    rows.sort(key=lambda row: row[1])
    kinds = [kind for kind, _, _ in rows]
    labels = [
        {"latent": f"words like “{WORDS[i % n_pos]}”, {i % 7}", "token": WORDS[p] if r == 0 else ""}
        .get(kind, f" word{i % 9}" if kind == "logit" else "")
        for i, (kind, r, p) in enumerate(rows)
    ]  # fmt: skip
    weights = np.zeros(len(rows))
    weights[-5:] = 0.4, 0.2, 0.1, 0.08, 0.05
    return GraphNodes(
        ids=[f"blocks.{r}.hook_mlp_out/{i}@{p}" for i, (_, r, p) in enumerate(rows)],
        kinds=kinds,
        rows=np.array([r for _, r, _ in rows]),
        positions=np.array([p for _, _, p in rows]),
        indices=np.where(np.array(kinds) == "latent", np.arange(len(rows)), -1),
        values=generator.gamma(2, 1, len(rows)),
        labels=labels,
        influence=np.zeros(len(rows)),
        weights=weights,
        input_totals=np.zeros(len(rows)),
    )


def graph_view(n_nodes: int, n_edges: int, **options: object) -> GraphView:
    """A random graph with heavy-tailed weights; influence as from all its edges."""
    generator = np.random.default_rng(0)
    nodes = random_nodes(n_nodes, generator)
    n = len(nodes.ids)
    rows, positions, kinds = nodes.rows, nodes.positions, np.array(nodes.kinds)
    reads = np.flatnonzero(np.isin(kinds, ("latent", "logit")))
    pairs = np.zeros(0, np.int64)
    while len(pairs) < n_edges:
        sources = generator.integers(0, n, 8 * n_edges)
        targets = reads[generator.integers(0, len(reads), 8 * n_edges)]
        later = (rows[targets] > rows[sources]) & (positions[targets] >= positions[sources])
        pairs = np.unique(np.concatenate([pairs, targets[later] * n + sources[later]]))
    pairs = generator.permutation(pairs)[:n_edges]
    targets, sources = np.divmod(pairs, n)
    weights = generator.standard_t(1.6, n_edges)
    totals = np.bincount(targets, np.abs(weights), n) * 1.1
    flow = nodes.weights.copy()
    order = np.argsort(-rows[targets], kind="stable")
    for s, t, size in zip(sources[order], targets[order], np.abs(weights[order]), strict=True):
        flow[s] += flow[t] * size / totals[t]
    columns = {name: getattr(nodes, name) for name in GraphNodes.__dataclass_fields__}
    columns |= {"influence": flow - nodes.weights, "input_totals": totals}
    edges = GraphEdges(sources=sources, targets=targets, weights=weights)
    chosen = {
        "nodes": GraphNodes(**columns),
        "edges": edges,
        "tokens": WORDS,
        "row_names": ["embedding", *(f"{i} mlp" for i in range(LAYERS)), "logits"],
        "title": "A random graph",
        "note": f"{n:,} nodes and {n_edges:,} edges, of no model.",
    }
    return GraphView(**{**chosen, **options})


@click.command(help=__doc__)
@click.option("--nodes", default=2000, show_default=True, help="Nodes.")
@click.option("--edges", default=20_000, show_default=True, help="Edges.")
@click.option("--runs", default=5, show_default=True, help="Fresh pages.")
def main(nodes: int, edges: int, runs: int) -> None:
    """Write, open, move, print."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    view = graph_view(nodes, edges, threshold=0.0)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path = view.to_html(Path(directory) / "page.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        click.echo(f"Chromium {browser.version}; {nodes} nodes, {edges} edges, {runs} runs")
        click.echo(f"file {path.stat().st_size / 1e6:.2f} MB")
        measured = [open_once(browser, path) for _ in range(runs)]
        browser.close()
    marks = [marks for marks, _ in measured]
    for name in marks[0]:
        times = [run[name] for run in marks]
        click.echo(
            f"{name:24} median {statistics.median(times):.3f} s  "
            f"(min {min(times):.3f}, max {max(times):.3f})"
        )
    moves = np.array([time for _, times in measured for time in times])
    hover = float(np.quantile(moves, 0.95))
    painted = statistics.median(run["gossamer:painted"] for run in marks)
    for what, value, bar in (
        ("painted", painted, BAR_SECONDS),
        ("hover", hover, BAR_HOVER_SECONDS),
    ):
        verdict = "met" if value <= bar else "MISSED"
        click.echo(f"{what} {value:.3f} s  bar {bar} s  {verdict}")


def open_once(browser, path: Path) -> tuple[dict[str, float], list[float]]:
    """The page's marks, in seconds from the start of navigation, and times after moves."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("[data-ready=true]")
    page.wait_for_timeout(500)
    found = page.evaluate(MARKS), page.evaluate(HOVER)
    page.close()
    return found


if __name__ == "__main__":
    main()
