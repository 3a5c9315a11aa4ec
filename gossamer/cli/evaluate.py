"""`gossamer evaluate`: the report card of SAEs in their model."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.launched import launched
from gossamer.cli.options import Count, OutFile, corpus_options, texts_of
from gossamer.errors import GossamerError, SiteError

if TYPE_CHECKING:
    from gossamer.evaluation import Report


@click.command("evaluate", short_help="The report card of SAEs in their model.")
@click.option("--model", "model_name", default="pico-python", show_default=True)
@click.option("--saes", "saes_name", default="pico-python", show_default=True)
@click.option("--site", "sites", multiple=True, help="Only SAEs that write here (repeatable).")
@corpus_options("its held-out part")
@click.option("--tokens", "n_tokens", type=Count(), default="65536", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=None, help="Blocks run at once.")
@click.option("--prompt", "prompts", multiple=True, help="Compare next tokens here (repeatable).")
@click.option("--html", type=OutFile(), default=None, help="Write a page.")
@click.option(
    "--dashboard",
    "boards",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --html: a file of `gossamer dashboard --save`, for texts under the pointer.",
)
@click.option("--save", type=OutFile(), default=None, help="Write all as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate_command(model_name: str, saes_name: str, **options: Any) -> None:
    """Score each SAE alone in its model, its error dropped. Started with torchrun, its processes
    share the corpus.

    \b
    Examples:
      gossamer evaluate --model pico-python --saes runs/r2 --corpus stdlib --html card.html
      torchrun --nproc-per-node 4 -m gossamer evaluate --saes runs/r2 --tokens 1e6
    """
    with launched() as speaks:
        _evaluate(model_name, saes_name, options, speaks)


def _evaluate(model_name: str, saes_name: str, options: dict[str, Any], speaks: bool) -> None:
    from gossamer.distributed import together
    from gossamer.evaluation import evaluate

    model, saes, corpus, boards = together(partial(_loaded, model_name, saes_name, options))
    report = evaluate(
        model,
        saes,
        corpus,
        n_tokens=options["n_tokens"],
        context=options["context"],
        batch=options["batch"],
        prompts=texts_of(options, "prompts"),
        prepend_bos=options["prepend_bos"],
        progress=speaks and sys.stderr.isatty(),
    )
    if not speaks:
        return
    if options["html"] is not None:
        labels = {site: getattr(sae, "labels", None) for site, sae in saes.items()}
        excerpts = {board.site_out: board.excerpts() for board in boards}
        report.to_html(options["html"], labels=labels, excerpts=excerpts)
    if options["save"] is not None:
        report.to_json(options["save"])
    if options["as_json"]:
        click.echo(json.dumps(report.to_dict(latents=False), indent=1))
    else:
        _print(report)


def _loaded(model_name: str, saes_name: str, options: dict[str, Any]) -> tuple[Any, ...]:
    """Model, SAEs, corpus and dashboards: all that can be refused before any pass."""
    from gossamer.corpus import as_corpus
    from gossamer.dashboards import Dashboard
    from gossamer.library import load_model, load_saes

    texts_of(options, "prompts")
    corpus = as_corpus(options["corpus"], split="held_out", column=options["column"])
    if options["boards"] and options["html"] is None:
        raise GossamerError("--dashboard gives texts to the page of --html; write that as well.")
    boards = [Dashboard.load(path) for path in options["boards"]]
    model, saes = load_model(model_name), dict(load_saes(saes_name))
    for site in options["sites"]:
        if site not in saes:
            raise SiteError(f"No SAE in {saes_name} writes {site}; there are {', '.join(saes)}.")
    if options["sites"]:
        saes = {site: saes[site] for site in options["sites"]}
    return model, saes, corpus, boards


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.table import Table

    about = report.about
    table = Table(
        title=f"{about['model']} on {about['n_tokens']:,} tokens of {about['corpus']}, each SAE "
        "alone, its error dropped",
        title_justify="left",
    )
    table.add_column("")
    for site in report.cards:
        table.add_column(site, justify="right", overflow="fold")
    names = list(next(iter(report.cards.values())).numbers())
    for name in names:
        values = [card.numbers()[name] for card in report.cards.values()]
        table.add_row(name, *("" if v is None else f"{v:.4g}" for v in values))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for each in report.next_tokens:
        console.print(f"\nAfter {each.prompt!r}, {each.site_out}:", markup=False)
        for (token, p), (other, q) in zip(each.clean, each.patched, strict=True):
            line = f"  {token!r:20} {p:6.1%}   with the SAE {other!r:20} {q:6.1%}"
            console.print(line, markup=False, highlight=False)
