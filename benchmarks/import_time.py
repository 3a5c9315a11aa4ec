"""How much longer `import gossamer` takes than `import torch`.

    python benchmarks/import_time.py

The two are imported in fresh interpreters by turns, so that a busy moment of the machine meets
both; the clock runs around the import statement alone. The ratio is median over median.
Bar 1.25, aim 1.1.
"""

import statistics
import subprocess
import sys
from pathlib import Path

import click

BAR = 1.25
ROOT = Path(__file__).resolve().parents[1]


def import_seconds(module: str) -> float:
    """Seconds that a fresh interpreter needs to import `module`."""
    clock = f"from time import perf_counter as now; t = now(); import {module}; print(now() - t)"
    done = subprocess.run(
        [sys.executable, "-c", clock], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


@click.command(help=__doc__)
@click.option(
    "--runs", default=7, show_default=True, help="Fresh interpreters for each of the two."
)
def main(runs: int) -> None:
    """Measure by turns and print the ratio."""
    seconds: dict[str, list[float]] = {"torch": [], "gossamer": []}
    for module in seconds:
        import_seconds(module)  # once unmeasured: compiles bytecode and fills the file cache
    for _ in range(runs):
        for module, measured in seconds.items():
            measured.append(import_seconds(module))
    for module, measured in seconds.items():
        low, middle, high = min(measured), statistics.median(measured), max(measured)
        click.echo(
            f"import {module:9} median {middle:.3f} s  (min {low:.3f}, max {high:.3f}, n={runs})"
        )
    ratio = statistics.median(seconds["gossamer"]) / statistics.median(seconds["torch"])
    click.echo(f"ratio {ratio:.3f}  bar {BAR}  {'met' if ratio <= BAR else 'MISSED'}")


if __name__ == "__main__":
    main()
