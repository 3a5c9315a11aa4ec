"""A table of edges over a corpus: tokens a second and peak memory for both kinds of offsets.

    python benchmarks/edges_over.py --same 32768 --all 1024

pico-python with its transcoders, in processes of their own, one after another. The time for more
tokens is that of the whole share, with the model's loading left out; memory does not grow with
tokens beyond the limit of the sums, since what exceeds it is merged in files.
"""

import json
import subprocess
import sys
import time

import click

GOAL = 2_000_000
"""Tokens to which the time is extrapolated."""

CHILD = """
import json, resource, sys, time
import torch, gossamer
from gossamer.attribution.over.over import edges_over
n_tokens, offsets, smallest, threads = json.loads(sys.argv[1])
torch.set_num_threads(threads)
model = gossamer.load_model("pico-python")
saes = gossamer.load_saes("pico-python/transcoders")
before = time.perf_counter(), time.process_time()
given = {"n_tokens": n_tokens, "offsets": offsets, "smallest": smallest}
table = edges_over(model, saes, "stdlib/train", **given)
print(json.dumps({
    "tokens": table.counted.n_tokens, "edges": table.counted.n_edges, "rows": len(table),
    "left_out": table.counted.n_left_out, "seconds": time.perf_counter() - before[0],
    "cpu_seconds": time.process_time() - before[1],
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
}))
"""


@click.command()
@click.option("--same", default=32_768, show_default=True, help="Tokens, offsets same.")
@click.option("--all", "every", default=1024, show_default=True, help="Tokens, offsets all.")
@click.option("--smallest", default=0.01, show_default=True, help="Of a third run, offsets all.")
@click.option("--threads", default=1, show_default=True)
def main(same: int, every: int, smallest: float, threads: int) -> None:
    """Print a line for each run."""
    for n_tokens, offsets, least in (
        (same, "same", 0.0),
        (every, "all", 0.0),
        (every, "all", smallest),
    ):
        begun = time.perf_counter()
        given = json.dumps([n_tokens, offsets, least, threads])
        command = [sys.executable, "-c", CHILD, given]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = json.loads(text.splitlines()[-1])
        rate, cpu_rate = (found["tokens"] / found[name] for name in ("seconds", "cpu_seconds"))
        click.echo(
            f"offsets {offsets}, smallest {least:g}: {found['tokens']:,} tokens, "
            f"{found['edges']:,} edges in {found['rows']:,} rows ({found['left_out']:,} left out); "
            f"{rate:,.0f} tokens/s, {cpu_rate:,.0f} a CPU second, peak {found['peak_gb']:.2f} GB; "
            f"{GOAL:,} tokens: {GOAL / rate / 3600:.1f} h here, {GOAL / cpu_rate / 3600:.1f} CPU h "
            f"({time.perf_counter() - begun:.0f} s with loading)"
        )


if __name__ == "__main__":
    main()
