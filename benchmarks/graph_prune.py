"""What pruning a large graph takes, its edges in files: seconds, and memory at the peak.

    python benchmarks/graph_prune.py [--nodes 60000] [--entries 500000000] [--directory /tmp]

Makes a random graph on disk, strictly triangular, with heavy-tailed edges; the first twentieth of
its nodes are leaves, the last ten targets. A process of its own maps it, prunes it and says the
most memory that it held (VmHWM), maps included. Beside that stands what pruning a dense matrix
needs: the matrix, a copy, the normalised one, scores, and a sort with its indices, 28 bytes for
each pair of nodes. Bar: 4 GB. The files are removed at the end.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.rows import Row, RowWriter
from gossamer.machine import readable

BAR_BYTES = 4e9
DENSE_BYTES = 28
N_TARGETS = 10
LEAVES = ("token", "position", "error", "bias", "remainder")
PER_POSITION = len(LEAVES)


def table(n: int) -> Nodes:
    """Leaves, latents and targets."""
    n_leaves = n // 20
    kinds = np.zeros(n, np.int8)
    kinds[:n_leaves] = [KINDS.index(LEAVES[i % len(LEAVES)]) for i in range(n_leaves)]
    kinds[-N_TARGETS:] = KINDS.index("logit")
    weights = np.zeros(n)
    weights[-N_TARGETS:] = 1 / N_TARGETS
    numbered = ~np.isin(kinds, [KINDS.index(kind) for kind in ("error", "bias", "remainder")])
    return Nodes(
        sites=("blocks.0.hook_mlp_out",),
        kinds=kinds,
        site_of=np.zeros(n, np.int32),
        units=np.where(numbered, np.arange(n), -1),
        positions=(np.arange(n) // PER_POSITION).astype(np.int32),
        values=np.ones(n),
        weights=weights,
        reads=np.full(n, np.nan),
        constants=np.full(n, np.nan),
        residuals=np.full(n, np.nan),
        distractors=np.full(n, -1),
        labels=("",) * n,
    )


def write(directory: Path, n: int, n_entries: int) -> None:
    """Rows whose lengths grow with the number of nodes before them, as causal rows do."""
    generator = np.random.default_rng(0)
    n_leaves = n // 20
    room = np.arange(n, dtype=np.float64)
    room[:n_leaves] = 0
    share = min(1.0, n_entries / room.sum())
    writer = RowWriter(directory, n, np.dtype(np.float32))
    portion = []
    for target in range(n_leaves, n):
        sources = np.flatnonzero(generator.random(target, np.float32) < share)
        values = generator.standard_normal(len(sources), np.float32) ** 5
        portion.append(Row(target, sources, values))
        if len(portion) == 200 or target == n - 1:
            writer.append(portion)
            portion = []


def prune(directory: Path, n: int) -> dict[str, Any]:
    """In a fresh process."""
    rows = RowWriter(directory, n, np.dtype(np.float32)).rows()
    graph = Graph(table(n), rows, (), ())
    before = peak()
    start = time.perf_counter()
    pruned = graph.prune()
    return {
        "seconds": time.perf_counter() - start,
        "before": before,
        "peak": peak(),
        "entries": rows.n_entries,
        "nodes": len(pruned.nodes),
        "edges": len(pruned.edges),
    }


def peak() -> int:
    """Most bytes that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@click.command(help=__doc__)
@click.option("--nodes", default=60_000, show_default=True, help="Nodes of the graph.")
@click.option("--entries", default=500_000_000, show_default=True, help="Edges, about.")
@click.option("--directory", default=None, help="Where 8 bytes for each edge have room.")
@click.option("--inside", default=None, hidden=True, help="Prune the graph that lies there.")
@click.option("--json", is_flag=True, help="Print one JSON object.")
def main(**options: Any) -> None:
    """Write, prune elsewhere, print."""
    nodes = options["nodes"]
    if options["inside"] is not None:
        click.echo(json.dumps(prune(Path(options["inside"]), nodes)))
        return
    with tempfile.TemporaryDirectory(dir=options["directory"]) as place:
        start = time.perf_counter()
        write(Path(place), nodes, options["entries"])
        written = time.perf_counter() - start
        command = [sys.executable, __file__, "--inside", place, "--nodes", str(nodes)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    if options["json"]:
        click.echo(done.stdout)
        return
    click.echo(f"{nodes:,} nodes, {found['entries']:,} edges in files, written in {written:.0f} s")
    click.echo(f"kept {found['nodes']:,} nodes, {found['edges']:,} edges")
    click.echo(f"pruned in {found['seconds']:.1f} s")
    click.echo(f"peak memory {readable(found['peak'])}, of it {readable(found['before'])} before")
    click.echo(f"a dense matrix would need {readable(DENSE_BYTES * nodes * nodes)}")
    verdict = "met" if found["peak"] <= BAR_BYTES else "MISSED"
    click.echo(f"bar {readable(int(BAR_BYTES))}  {verdict}")


if __name__ == "__main__":
    main()
