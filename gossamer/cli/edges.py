"""`gossamer edges`: which latents drive which latents or logits, on one prompt."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from gossamer.errors import GossamerError


@click.command("edges", short_help="Which latents drive which latents or logits, on one prompt.")
@click.argument("prompt")
@click.option(
    "--model",
    "model_name",
    default="pico-python",
    show_default=True,
    help="Bundled name, directory or hub id.",
)
@click.option(
    "--saes", "saes_name", default=None, help="Bundled set or directory; default: the model's own."
)
@click.option("--from", "source", required=True, help="Site of the source latents, or 'tokens'.")
@click.option("--to", "target", required=True, help="Site of the target latents, or 'logits'.")
@click.option(
    "--tokens", multiple=True, help="Target token (repeatable); default: the 10 of highest logit."
)
@click.option(
    "--difference", nargs=2, default=None, metavar="A B", help="Target: logit of A less logit of B."
)
@click.option("--position", default=-1, show_default=True, help="Position of the target logits.")
@click.option(
    "--hold",
    multiple=True,
    help="Keep constant in the backward pass: attention, norms, mlps (repeatable).",
)
@click.option("--direct", is_flag=True, help="Block paths through the other SAEs.")
@click.option(
    "--top",
    default=10,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many edges to print, strongest first.",
)
@click.option(
    "--measure",
    "measured",
    is_flag=True,
    help="Really ablate each source and print the effect beside.",
)
@click.option(
    "--error",
    default="frozen",
    show_default=True,
    type=click.Choice(["frozen", "attached", "detached", "dropped"]),
    help="The source's error term; dropped leaves it out.",
)
@click.option("--html", type=click.Path(), help="Write the matrix as a page that opens offline.")
@click.option(
    "--dashboard",
    "boards",
    multiple=True,
    type=click.Path(),
    help="With --html: a file of `gossamer dashboard --save`, for the texts under the pointer.",
)
@click.option("--csv", type=click.Path(), help="Write every edge as a line of a table.")
@click.option("--save", type=click.Path(), help="Write everything for gossamer.Edges.load.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def edges_command(prompt: str, model_name: str, saes_name: str | None, **options: Any) -> None:
    """Effects between two places on one prompt. A backslash and n in PROMPT are a line break.

    \b
    Example:
      gossamer edges "def add(a, b):\\n    return a" \\
        --from blocks.1.hook_resid_pre --to blocks.3.hook_resid_pre --measure
    """
    from gossamer.attribution.edges import edges
    from gossamer.attribution.effects import Edges
    from gossamer.attribution.verify import measure
    from gossamer.library import load_model, load_saes

    model = load_model(model_name)
    saes = load_saes(saes_name or model_name)
    found = edges(
        model,
        saes,
        prompt.replace("\\n", "\n"),
        source=_source(options["source"]),
        target=_target(options),
        hold=options["hold"],
        direct=options["direct"],
        error=options["error"],
    )
    assert isinstance(found, Edges)  # one prompt was given
    pairs = found.strongest(options["top"])
    effects = measure(model, saes, found, pairs) if options["measured"] else None
    rows = _rows(found, pairs, effects)
    _write(found, options)
    if options["as_json"]:
        click.echo(
            json.dumps({"tokens": found.tokens, "blocked": found.blocked, "edges": rows}, indent=1)
        )
        return
    n_targets, n_sources = found.gradients.shape
    places = f"{options['source']} → {options['target']}"
    if found.blocked:
        places += " (every path is blocked by another SAE)"
    _print_table(f"{len(rows)} strongest of {n_targets} × {n_sources} edges, {places}", rows)


def _write(found: Any, options: dict[str, Any]) -> None:
    """The files that were asked for, each named on standard error."""
    writers = {"html": _page_writer(found, options), "csv": found.to_csv, "save": found.save}
    for name, write in writers.items():
        if options[name] is not None:
            click.echo(f"Wrote {write(options[name])}", err=True)


def _page_writer(found: Any, options: dict[str, Any]) -> Any:
    """`to_html`, with the texts of the dashboards that were named."""
    from gossamer.dashboards import Dashboard

    if options["boards"] and options["html"] is None:
        raise GossamerError("--dashboard gives texts to the page of --html; write that as well.")
    boards = [Dashboard.load(path) for path in options["boards"]]
    excerpts = {board.site_out: board.excerpts() for board in boards}
    return partial(found.to_html, excerpts=excerpts)


def _source(site: str) -> Any:
    from gossamer.attribution.targets import Latents, Tokens

    return Tokens() if site == "tokens" else Latents(site)


def _target(options: dict[str, Any]) -> Any:
    from gossamer.attribution.targets import Latents, LogitDifference, Logits

    if options["difference"]:
        return LogitDifference(*options["difference"], position=options["position"])
    if options["target"] != "logits":
        return Latents(options["target"])
    return Logits(tokens=options["tokens"] or None, position=options["position"])


def _rows(found: Any, pairs: Sequence[tuple[int, int]], effects: Any) -> list[dict[str, Any]]:
    """One dictionary for each edge, ready for JSON or a table."""
    rows = []
    for number, (target, source) in enumerate(pairs):
        edge = found.edge(target, source)
        row = {
            "source": edge.source,
            "source_token": found.sources.tokens[source],
            "source_label": edge.source_label,
            "target": edge.target,
            "target_token": found.targets.tokens[target],
            "target_label": edge.target_label,
            "attribution": edge.attribution,
            "gradient": edge.gradient,
        }
        if effects is not None:
            row["measured"] = effects[number].measured
        rows.append(row)
    return rows


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """The edges as a table; a measured effect of the other sign is marked."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for heading in ("source", "fires on", "target", "is"):
        table.add_column(heading, overflow="fold")
    table.add_column("predicted", justify="right")
    if rows and "measured" in rows[0]:
        table.add_column("ablated", justify="right")
    for row in rows:
        cells = [
            Text(f"{_short(row['source'])} {row['source_token']!r}"),
            Text(row["source_label"]),
            Text(f"{_short(row['target'])} {row['target_token']!r}"),
            Text(row["target_label"]),
            Text(f"{row['attribution']:+.3f}"),
        ]
        if "measured" in row:
            agrees = row["measured"] * row["attribution"] > 0
            cells.append(Text(f"{row['measured']:+.3f}" + ("" if agrees else " ≠")))
        table.add_row(*cells)
    width = None if sys.stdout.isatty() else 140
    Console(width=width).print(table)


def _short(node: str) -> str:
    """A node id with its site abbreviated for a table: blocks.3.hook_resid_pre → 3.resid_pre."""
    return node.removeprefix("blocks.").replace("hook_", "")
