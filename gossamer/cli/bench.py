"""`gossamer bench`: how fast things are on this machine, beside what they replace."""

import json
import sys
from typing import Any

import click


@click.group("bench", short_help="How fast things are on this machine.")
def bench_command() -> None:
    """Time Gossamer on this machine, beside the ways it replaces."""


@bench_command.command("jacobian", short_help="MLP Jacobians between SAEs.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--d-model", default=768, show_default=True)
@click.option("--d-mlp", default=3072, show_default=True)
@click.option("--d-sae", default=49_152, show_default=True)
@click.option("--k", default=32, show_default=True)
@click.option("--tokens", "n_tokens", default=64, show_default=True)
@click.option("--runs", default=100, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=None, help="Default: torch's own.")
@click.option("--forward/--no-forward", default=True, help="Time a GPT-2 small as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_jacobian_command(
    device: str, threads: int | None, forward: bool, as_json: bool, **options: Any
) -> None:
    """Jacobians between SAEs before and after an MLP: triple loop, einsum, tables, no tables.

    \b
    Example:
      gossamer bench jacobian --runs 20
    """
    import torch
    from tqdm import tqdm

    from gossamer.jacobian.bench import Sizes, bench_jacobian

    if threads is not None:
        torch.set_num_threads(threads)
    sizes = Sizes(**options)
    timed = bench_jacobian(sizes, device, forward=forward)
    bar = tqdm(timed, desc="ways", total=4 + forward, disable=not sys.stderr.isatty())
    rows = [each.summary() for each in bar]
    base = next(row["median_ms"] for row in rows if row["way"] == "einsum")
    for row in rows:
        row["times_faster_than_einsum"] = base / row["median_ms"]
    about = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    if as_json:
        click.echo(json.dumps({**about, **options, "ways": rows}, indent=1))
    else:
        _print(rows, about, options)


def _print(rows: list[dict[str, Any]], about: dict[str, Any], options: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes = ", ".join(f"{name}={value}" for name, value in options.items())
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    table = Table(title=f"Jacobians, {sizes}; {where}; milliseconds", title_justify="left")
    for name in ("way", "mean", "median", "std", "min", "max", "× einsum", "memory", "note"):
        table.add_column(name, justify="left" if name in ("way", "note") else "right")
    for row in rows:
        times = [f"{row[f'{name}_ms']:,.2f}" for name in ("mean", "median", "std", "min", "max")]
        memory = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:,.1f} MB"
        faster = f"{row['times_faster_than_einsum']:.2f}"
        table.add_row(row["way"], *times, faster, memory, row["note"])
    Console(width=None if sys.stdout.isatty() else 150).print(table)
