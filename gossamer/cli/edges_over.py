"""`gossamer edges-over`: a table of edges over a corpus, made, completed, merged and looked at."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.launched import launched
from gossamer.cli.options import Count, OutFile, corpus_options, loaded, model_options
from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.attribution.over.table import EdgeRow, EdgeTable

BY = ("size", "sum", "mean", "normalised", "n_edges", "largest")


@click.command("edges-over", short_help="A table of edges over a corpus.")
@model_options
@corpus_options("its held-out part")
@click.option("--tokens", "n_tokens", type=Count(), default=65_536, show_default=True)
@click.option("--offsets", type=click.Choice(("same", "all")), default="same", show_default=True,
              help="Edges between latents of one token, or of all tokens.")  # fmt: skip
@click.option("--smallest", type=float, default=0.0, show_default=True,
              help="Leave out edges up to this size, and count them.")  # fmt: skip
@click.option("--part", default="0/1", show_default=True, metavar="I/N",
              help="Only every N-th piece of the corpus from number I on.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=None,
              help="Directory of the table; one that was begun is completed.")  # fmt: skip
@click.option("--table", "tables", type=click.Path(path_type=Path), multiple=True,
              help="Show this table instead; several are merged into --out.")  # fmt: skip
@click.option("--top", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--by", type=click.Choice(BY), default="size", show_default=True)
@click.option("--into", default=None, help="Only edges into this latent, SITE/NUMBER.")
@click.option("--out-of", default=None, help="Only edges out of this latent.")
@click.option("--html", type=OutFile(), default=None, help="Write a page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def edges_over_command(model_name: str, saes_name: str | None, **options: Any) -> None:
    """Which latent drives which, over a corpus: direct edges between SAEs, attention and norms
    held, added up by pair of latents and distance. A run that was stopped goes on in its --out.
    Started with torchrun, its processes share the pieces of the corpus; the table is the same.

    \b
    Examples:
      gossamer edges-over --saes pico-python/transcoders --tokens 20000
      gossamer edges-over --tokens 2e6 --corpus stdlib/train --part 0/2 --out table-0
      torchrun --nproc-per-node 4 -m gossamer edges-over --tokens 2e6 --out table
      gossamer edges-over --table table-0 --table table-1 --out table --html edges.html
    """
    if options["into"] is not None and options["out_of"] is not None:
        raise GossamerError("Give --into or --out-of, not both.")
    with launched() as speaks:
        if options["tables"] and not speaks:  # there is nothing to share
            return
        table = _table(model_name, saes_name, options, speaks)
        if speaks:
            _say(table, options)


def _say(table: "EdgeTable", options: dict[str, Any]) -> None:
    rows = _chosen(table, options)
    if options["html"] is not None:
        from gossamer.views.edge_table import edge_table_to_html

        about = {**_said(table), "by": options["by"]}
        page = edge_table_to_html([row._asdict() for row in rows], about, options["html"])
        click.echo(f"Wrote {page}", err=True)
    if options["as_json"]:
        shown = {**_said(table), "rows": [row._asdict() for row in rows]}
        click.echo(json.dumps(shown, indent=1))
        return
    _show(table, rows, options["by"])


def _table(
    model_name: str, saes_name: str | None, options: dict[str, Any], speaks: bool
) -> "EdgeTable":
    from gossamer.attribution.over.over import edges_over
    from gossamer.attribution.over.table import EdgeTable
    from gossamer.corpus import as_corpus
    from gossamer.distributed import together

    saes_name = saes_name or f"{model_name}/transcoders"
    if options["tables"]:
        _, saes = loaded(model_name, saes_name)
        found = [EdgeTable.load(directory, saes) for directory in options["tables"]]
        if len(found) == 1:
            return found[0]
        if options["out"] is None:
            raise GossamerError("Several tables are merged into --out; name that directory.")
        return EdgeTable.merge(found, options["out"])
    model, saes = together(partial(loaded, model_name, saes_name))
    corpus = partial(as_corpus, options["corpus"], split="held_out", column=options["column"])
    return edges_over(
        model,
        saes,
        together(corpus),
        n_tokens=options["n_tokens"],
        offsets=options["offsets"],
        context=options["context"],
        smallest=options["smallest"],
        part=_part(options["part"]),
        directory=options["out"],
        prepend_bos=options["prepend_bos"],
        progress=speaks and sys.stderr.isatty(),
    )


def _part(text: str) -> tuple[int, int]:
    turn, _, n = text.partition("/")
    if not (turn.isdecimal() and n.isdecimal()):
        raise GossamerError(f'--part takes I/N such as 0/4, got "{text}".')
    return int(turn), int(n)


def _chosen(table: "EdgeTable", options: dict[str, Any]) -> list["EdgeRow"]:
    if options["into"] is not None:
        return table.into(options["into"], options["top"], options["by"])
    if options["out_of"] is not None:
        return table.out_of(options["out_of"], options["top"], options["by"])
    return table.top(options["top"], options["by"])


def _said(table: "EdgeTable") -> dict[str, Any]:
    """What a table is of, as JSON values."""
    from dataclasses import asdict

    return {
        **{name: table.about[name] for name in ("model", "corpus", "offsets", "smallest", "part")},
        "sites": list(table.about["widths"]),
        **asdict(table.counted),
        "n_rows": len(table),
    }


def _show(table: "EdgeTable", rows: list["EdgeRow"], by: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    said = _said(table)
    title = (
        f"{len(rows)} of {len(table):,} pairs of latents, largest {by} first; "
        f"{said['n_tokens']:,} tokens of {said['corpus']}, {said['n_edges']:,} edges"
    )
    shown = Table(title=title, title_justify="left")
    heads = ("source", "fires on", "target", "fires on", "offset", "edges")
    for head in (*heads, "mean ± error", "Σ|A|", "normalised"):
        shown.add_column(head, overflow="fold")
    for row in rows:
        cells = (
            row.source,
            row.source_label,
            row.target,
            row.target_label,
            row.offset,
            f"{row.n_edges:,}",
            f"{row.mean:+.3f} ± {row.error:.3f}",
            f"{row.size:.4g}",
            f"{row.normalised:+.3f}",
        )
        shown.add_row(*(Text(cell.replace("\n", "⏎")) for cell in cells))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
