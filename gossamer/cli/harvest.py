"""`gossamer harvest`: store a model's activations over a corpus."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.launched import launched
from gossamer.cli.options import Count, corpus_options

if TYPE_CHECKING:
    from gossamer.activations import Store

_PASSED_ON = (
    *("directory", "n_tokens", "dtype", "context", "batch", "prepend_bos"),
    *("exclude_special", "engine", "address", "workers"),
)


@click.command("harvest", short_help="Store a model's activations over a corpus.")
@click.option("--model", "model_name", default="pico-python", show_default=True)
@click.option("--site", "sites", multiple=True, required=True, help="Where to record (repeatable).")
@corpus_options("its training part")
@click.option(
    "--tokens", "n_tokens", type=Count(), default="1e6", show_default=True, help="Rows, at least."
)
@click.option("--out", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--dtype", default=None, help="float32, float16 or bfloat16; default: the model's.")
@click.option("--batch", type=click.IntRange(min=1), default=None, help="Blocks run at once.")
@click.option("--exclude-special", is_flag=True, help="Leave out BOS and padding.")
@click.option("--device", default=None, help="Of the model: cpu, cuda, …; default: cpu.")
@click.option(
    "--engine",
    type=click.Choice(["inline", "ray"]),
    default="inline",
    show_default=True,
    help="inline: this process, and those that torchrun started with it. ray: actors of Ray.",
)
@click.option("--address", default=None, help="Of a Ray cluster, or auto; default: one of its own.")
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Actors of Ray.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def harvest_command(**options: Any) -> None:
    """Store activations; the same command again goes on where it was stopped, and makes shards
    again that are missing or damaged. The last one ends with a block, so there are up to a block
    more rows than asked.

    Started with torchrun, its processes share the shards, and the store is the same. So it is with
    --engine ray, which needs gossamer[scale]. Several machines write to a disk that they share.

    \b
    Example:
      gossamer harvest --site blocks.2.hook_resid_pre --tokens 2e6 --out acts/
      torchrun --nproc-per-node 4 -m gossamer harvest --site blocks.2.hook_resid_pre --out acts/
    """
    with launched() as speaks:
        store = _harvested(options, speaks)
        if speaks:
            _say(store, options["directory"], as_json=options["as_json"])


def _harvested(options: dict[str, Any], speaks: bool) -> "Store":
    from gossamer.activations import harvest
    from gossamer.distributed import together

    model, corpus = together(partial(_loaded, options))
    return harvest(
        model,
        corpus,
        sites=options["sites"],
        progress=speaks and sys.stderr.isatty(),
        **{name: options[name] for name in _PASSED_ON},
    )


def _loaded(options: dict[str, Any]) -> tuple[Any, Any]:
    from gossamer.corpus import as_corpus
    from gossamer.library import load_model

    corpus = as_corpus(options["corpus"], column=options["column"])
    return load_model(options["model_name"], device=options["device"]), corpus


def _say(store: "Store", directory: Path, *, as_json: bool) -> None:
    if as_json:
        found = {"directory": str(directory), "rows": store.n_rows, "shards": len(store.shards)}
        found |= {"remade": list(store.remade), "about": dict(store.about)}
        click.echo(json.dumps(found, indent=1))
        return
    size = sum(shard.size for shard in store.shards) / 1e6
    click.echo(
        f"{store.n_rows:,} rows of {', '.join(store.sites)} in {len(store.shards)} shards, "
        f"{size:,.1f} MB, in {directory}"
    )
    if store.remade:
        click.echo(f"Made again, missing or damaged: {', '.join(store.remade)}")
