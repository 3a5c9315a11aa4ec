"""`gossamer dashboard`: what latents do over a corpus."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.launched import launched
from gossamer.cli.options import Count, OutFile, corpus_options, texts_of
from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.dashboards import Dashboard


@click.command("dashboard", short_help="What latents do over a corpus.")
@click.option("--model", "model_name", default="pico-python", show_default=True)
@click.option("--saes", "saes_name", default="pico-python", show_default=True)
@click.option(
    "--site",
    default=None,
    help="The SAE that writes here; default: the only one, "
    "or a crosscoder at the first of its sites.",
)
@click.option("--latents", "wanted", default=None, help="Such as 0-63,100; default: all.")
@corpus_options("its training part")
@click.option("--tokens", "n_tokens", type=Count(), default="262144", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=None, help="Blocks run at once.")
@click.option("--text", "texts", multiple=True, help="Try the latents on this (repeatable).")
@click.option("--html", type=OutFile(), default=None, help="Write a page.")
@click.option("--save", type=OutFile(), default=None, help="Write the native file.")
@click.option("--labels", is_flag=True, help="Write labels into the SAE's directory (--saes).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dashboard_command(model_name: str, saes_name: str, **options: Any) -> None:
    """Examples, histogram, logit effects and neighbours of latents, from one pass. Started with
    torchrun, its processes share the corpus.

    \b
    Examples:
      gossamer dashboard --saes runs/r2 --latents 0-63 --html latents.html
      torchrun --nproc-per-node 4 -m gossamer dashboard --saes runs/r2 --tokens 1e7 --save it
    """
    with launched() as speaks:
        board, folder = _made(model_name, saes_name, options, speaks)
        if speaks:
            _say(board, folder, options)


def _made(
    model_name: str, saes_name: str, options: dict[str, Any], speaks: bool
) -> tuple["Dashboard", Path | None]:
    """The dashboard, and where its labels go."""
    from gossamer.dashboards import dashboard
    from gossamer.distributed import together

    loaded = together(partial(_loaded, model_name, saes_name, options))
    model, sae, corpus, latents, folder = loaded
    board = dashboard(
        model,
        sae,
        corpus,
        latents=latents,
        n_tokens=options["n_tokens"],
        context=options["context"],
        batch=options["batch"],
        texts=texts_of(options, "texts"),
        prepend_bos=options["prepend_bos"],
        progress=speaks and sys.stderr.isatty(),
    )
    return board, folder


def _loaded(model_name: str, saes_name: str, options: dict[str, Any]) -> tuple[Any, ...]:
    """Model, SAE, corpus, latents and where labels go: all that can be refused before the pass."""
    from gossamer.corpus import as_corpus
    from gossamer.dashboards.dashboard import encoder_of
    from gossamer.library import load_model, load_saes
    from gossamer.saes.crosscoder import Face, parts_at
    from gossamer.saes.sae import SAE

    found = load_saes(saes_name)
    saes = {site: sae for site, sae in found.items() if isinstance(sae, SAE | Face)}
    sites = [part.site_out for part in parts_at(next(iter(saes)), saes)] if saes else []
    site = options["site"] or (sites[0] if len(sites) == len(saes) > 0 else None)
    if site not in saes:
        raise GossamerError(f"Say which SAE with --site: {saes_name} has {', '.join(saes)}.")
    folder = _folder(saes_name, site) if options["labels"] else None
    texts_of(options, "texts")
    wanted, d_sae = options["wanted"], encoder_of(saes[site]).d_sae
    latents = None if wanted is None else numbers(wanted, d_sae)
    corpus = as_corpus(options["corpus"], column=options["column"])
    return load_model(model_name), saes[site], corpus, latents, folder


def _say(board: "Dashboard", folder: Path | None, options: dict[str, Any]) -> None:
    """Write what was asked for, and show it."""
    from gossamer.saes.labels import save_labels

    site = board.site_out
    if options["html"] is not None:
        board.to_html(options["html"])
    if options["save"] is not None:
        board.save(options["save"])
    if folder is not None:
        save_labels(board.labels(), folder)
    excerpts = board.excerpts()
    rows = [
        {
            "latent": latent,
            "label": board.names[row],
            "density": board.densities[row].item(),
            "max": board.maxima[row].item(),
            "examples": excerpts[latent],
        }
        for row, latent in enumerate(board.latents.tolist())
    ]
    if options["as_json"]:
        click.echo(json.dumps({**board.about, "site_out": site, "latents": rows}, indent=1))
    else:
        _print(f"{site}, {board.about['n_tokens']:,} tokens of {board.about['corpus']}", rows)


def numbers(text: str, d_sae: int) -> list[int]:
    """ "0-3,7" as [0, 1, 2, 3, 7], all below `d_sae`."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if ends is None:
            raise GossamerError(f'Latents are numbers and ranges such as "0-63,100", got "{text}".')
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if not first <= last < d_sae:
            raise GossamerError(
                f"Latents are from 0 to {d_sae - 1}, and a range rises; got {part.strip()}."
            )
        found += range(first, last + 1)
    return found


def _folder(saes_name: str, site: str) -> Path:
    """The directory of the SAE that labels are written into."""
    for folder in (Path(saes_name), Path(saes_name) / site):
        if (folder / "sae.json").is_file():
            return folder
    raise GossamerError(f"--labels writes into a native SAE's own directory; {saes_name} is none.")


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gossamer.views.text import show_token

    table = Table(title=title, title_justify="left")
    for heading in ("latent", "density", "max"):
        table.add_column(heading, justify="right")
    table.add_column("fires on")
    table.add_column("strongest examples, each ending where it fires", overflow="fold")
    for row in rows:
        shown = "  ".join(show_token(text) for text in row["examples"])
        numbers = (str(row["latent"]), f"{row['density']:.2%}", f"{row['max']:.3g}")
        table.add_row(*numbers, Text(row["label"]), Text(shown))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
