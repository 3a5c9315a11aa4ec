"""`gossamer harvest`: store a model's activations over a corpus."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from gossamer.cli.options import Count, corpus_options


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def harvest_command(model_name: str, directory: Path, **options: Any) -> None:
    """Store activations; the same command again goes on where it was stopped, and makes shards
    again that are missing or damaged. The last one ends with a block, so there are up to a block
    more rows than asked.

    \b
    Example:
      gossamer harvest --site blocks.2.hook_resid_pre --tokens 2e6 --out acts/
    """
    from gossamer.activations import harvest
    from gossamer.corpus import as_corpus
    from gossamer.library import load_model

    corpus = as_corpus(options["corpus"], column=options["column"])
    store = harvest(
        load_model(model_name),
        corpus,
        sites=options["sites"],
        directory=directory,
        n_tokens=options["n_tokens"],
        dtype=options["dtype"],
        context=options["context"],
        batch=options["batch"],
        prepend_bos=options["prepend_bos"],
        exclude_special=options["exclude_special"],
        progress=sys.stderr.isatty(),
    )
    if options["as_json"]:
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
