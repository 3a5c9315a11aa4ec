"""How long a browser takes to show a matrix page, and how large the file is.

    python benchmarks/matrix_page.py [--side 1800]

Opens the page from its file in Chromium (software rendering) several times, each in a fresh page,
and prints medians of the marks that the page sets, in seconds from the start of navigation: data
unpacked, data decoded, matrix painted, and the browser's own first contentful paint. The matrix is
random with heavy tails and zero above the diagonal, as causal effects are. Bar: 1 s.
"""

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from gossamer.views import MatrixView, NodeColumn

BAR_SECONDS = 1.0
PER_POSITION = 20
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
MARKS = """() => Object.fromEntries([
  ...performance.getEntriesByType("mark"), ...performance.getEntriesByType("paint")
].map(entry => [entry.name, entry.startTime / 1000]))"""


def nodes(site: str, n: int, generator: np.random.Generator) -> NodeColumn:
    """Active latents, `PER_POSITION` at a position."""
    positions = np.arange(n) // PER_POSITION
    indices = generator.integers(0, 24576, n)
    return NodeColumn(
        name=site,
        ids=[
            f"{site}/{i}@{p}#{k}" for k, (i, p) in enumerate(zip(indices, positions, strict=True))
        ],
        positions=positions,
        tokens=[f" word{p}" for p in positions],
        indices=indices,
        values=generator.gamma(2, 1, n) + 0.1,
        labels=[" · ".join(f"tok{i % 97}{j}" for j in range(4)) for i in indices],
    )


def matrix_view(side: int) -> MatrixView:
    """A square view."""
    generator = np.random.default_rng(0)
    rows = nodes("blocks.3.hook_resid_pre", side, generator)
    columns = nodes("blocks.1.hook_resid_pre", side, generator)
    values = generator.standard_t(2, (side, side))
    values *= rows.positions[:, None] >= columns.positions[None]
    tokens = tuple(f" word{p}" for p in range(-(-side // PER_POSITION)))
    return MatrixView(
        values=values,
        gradients=values / columns.values,
        rows=rows,
        columns=columns,
        prompt_tokens=tokens,
    )


@click.command(help=__doc__)
@click.option("--side", default=1800, show_default=True, help="Rows and columns.")
@click.option("--runs", default=7, show_default=True, help="Fresh pages.")
def main(side: int, runs: int) -> None:
    """Write, open, print."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    view = matrix_view(side)
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        start = time.perf_counter()
        path = view.to_html(Path(directory) / "page.html")
        written = time.perf_counter() - start
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        click.echo(f"Chromium {browser.version}; {side} × {side}, {runs} runs")
        click.echo(f"file {path.stat().st_size / 1e6:.2f} MB, written in {written:.2f} s")
        measured = [open_once(browser, path) for _ in range(runs)]
        browser.close()
    for name in measured[0]:
        times = [run[name] for run in measured]
        click.echo(
            f"{name:24} median {statistics.median(times):.3f} s  "
            f"(min {min(times):.3f}, max {max(times):.3f})"
        )
    painted = statistics.median(run["gossamer:painted"] for run in measured)
    verdict = "met" if painted <= BAR_SECONDS else "MISSED"
    click.echo(f"painted after {painted:.3f} s  bar {BAR_SECONDS} s  {verdict}")


def open_once(browser, path: Path) -> dict[str, float]:
    """The page's marks, in seconds from the start of navigation."""
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    page.goto(path.as_uri())
    page.wait_for_selector("[data-ready=true]")
    page.wait_for_timeout(500)
    marks = page.evaluate(MARKS)
    page.close()
    return marks


if __name__ == "__main__":
    main()
