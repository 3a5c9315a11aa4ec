"""`gossamer analyze`: a node table that adds up to a number of a prompt."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.options import Count, loaded, model_options, node_fields, set_to
from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.analysis.analyze import Request
    from gossamer.analysis.compare import Comparison
    from gossamer.analysis.result import Analysis
    from gossamer.edits import AbstractEdit

DIRECTIONS = ("logit", "minus-mean", "probability", "log-probability", "kl")


@click.command("analyze", short_help="A node table that adds up to a logit, a neuron, a score.")
@click.argument("prompt")
@click.option("--target", "targets", multiple=True, help="A token (repeatable: their mean).")
@click.option("--distractor", "distractors", multiple=True, help="Less this token (repeatable).")
@click.option(
    "--direction",
    default="logit",
    show_default=True,
    type=click.Choice(DIRECTIONS),
    help="What of the target tokens is explained; kl is from the clean run, of an edit.",
)
@click.option("--node", default=None, metavar="NODE", help="A neuron's or latent's value instead.")
@click.option("--position", default=-1, show_default=True, help="Where the tokens are predicted.")
@model_options
@click.option(
    "--ablate",
    multiple=True,
    metavar="NODE",
    help="Set to zero: SITE/UNIT[@POSITION] (repeatable).",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NODE=VALUE", help="Set to VALUE (repeatable)."
)
@click.option("--mean", multiple=True, metavar="NODE", help="Set to its mean over the corpus.")
@click.option(
    "--resample",
    multiple=True,
    metavar="NODE=PROMPT",
    help="Set to what another prompt has there (repeatable).",
)
@click.option("--corpus", default="stdlib", show_default=True, help="What --mean is taken over.")
@click.option(
    "--tokens", default="16384", show_default=True, type=Count(), help="Of it, for --mean."
)
@click.option("--upstream", default=None, metavar="NODE", help="What is upstream of this node.")
@click.option(
    "--through",
    default="pre",
    show_default=True,
    type=click.Choice(["q", "k", "qk", "v", "pre"]),
    help="The way into it; v takes the target as what it is read along.",
)
@click.option("--compare", "other", default=None, metavar="PROMPT", help="Another prompt, beside.")
@click.option(
    "--align",
    default="start",
    show_default=True,
    type=click.Choice(["start", "end"]),
    help="Where positions of two prompts are counted from.",
)
@click.option(
    "--hold",
    default="norms",
    show_default=True,
    help="Held constant in the backward pass: norms, attention, both with a comma, or none.",
)
@click.option("--cut", default=None, metavar="SITE", help="Where the model is cut into nodes.")
@click.option("--kind", "kinds", multiple=True, help="List only this kind of node (repeatable).")
@click.option("--pairs", is_flag=True, help="Heads by query and key.")
@click.option("--top", default=30, show_default=True, type=click.IntRange(min=1), help="Rows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def analyze_command(prompt: str, **options: Any) -> None:
    """What each embedding, head, neuron and latent gives to a number. A backslash and n in PROMPT
    and tokens are a line break.

    \b
    Examples:
      gossamer analyze "def add(self, other):\\n    return self" --target . --distractor "\\n"
      gossamer analyze "import os\\nimport " --target sys --ablate blocks.1.attn.hook_z/2@4
      gossamer analyze "def add(a, b):\\n    return a" --saes none \\
        --upstream "blocks.2.attn.hook_z/1@9<-4" --through k
    """
    from gossamer.analysis.analyze import analyze_batch
    from gossamer.analysis.compare import compare

    model, saes = loaded(options["model_name"], options["saes_name"])
    texts = [prompt] if options["other"] is None else [prompt, options["other"]]
    edits = _edits(model, saes, options)
    found = analyze_batch(model, [_request(text, saes, edits, options) for text in texts])
    both = None
    if len(found) == 2:
        both = compare(found[0], found[1], options["align"])
    elif found[0].clean is not None:
        both = compare(found[0])
    if options["as_json"]:
        click.echo(json.dumps((found[0] if both is None else both).to_dict(), indent=1))
    elif both is None:
        _print_analysis(found[0], options["top"])
    else:
        _print_comparison(both, options["top"])


def _edits(model: Any, saes: Any, options: dict[str, Any]) -> "list[AbstractEdit]":
    """The changes that were named."""
    from gossamer.activations.means import means
    from gossamer.edits import Ablate, Patch
    from gossamer.splice import run

    edits: list[AbstractEdit] = [
        *(Ablate(**node_fields("--ablate", node, whole=True)) for node in options["ablate"]),
        *(set_to("--set", "NODE", text) for text in options["settings"]),
    ]
    for node in options["mean"]:
        fields = node_fields("--mean", node)
        site = Ablate(**fields).at
        sites = [] if site in (saes or {}) else [site]
        found = means(model, options["corpus"], sites, saes, options["tokens"])
        edits.append(Patch(source=found, **fields))
    for text in options["resample"]:
        node, prompt = _halves("--resample", "PROMPT", text)
        fields = node_fields("--resample", node)
        other = run(model, prompt.replace("\\n", "\n"), saes, record=Ablate(**fields).at)
        edits.append(Patch(source=other, **fields))
    return edits


def _halves(option: str, name: str, text: str) -> tuple[str, str]:
    """What stands before and after the first =."""
    node, sign, rest = text.partition("=")
    if not sign or not rest:
        raise GossamerError(f'{option} takes NODE={name}, got "{text}".')
    return node, rest


def _request(
    prompt: str, saes: Any, edits: "list[AbstractEdit]", options: dict[str, Any]
) -> "Request":
    """What is asked of one prompt."""
    from gossamer.analysis.analyze import Request
    from gossamer.analysis.directions import Through
    from gossamer.analysis.table import Choice

    target = _target(options)
    upstream = None
    if options["upstream"] is not None:
        upstream = Through(options["upstream"], options["through"])
    hold = [] if options["hold"] == "none" else options["hold"].split(",")
    return Request(
        prompt=prompt.replace("\\n", "\n"),
        target=target,
        saes=saes,
        edits=edits,
        upstream=upstream,
        hold=hold,
        choice=Choice(
            top=options["top"],
            kinds=options["kinds"] or None,
            cut=options["cut"],
            pairs=options["pairs"],
        ),
    )


def _target(options: dict[str, Any]) -> Any:
    """The direction that was named; None for the likeliest next token."""
    from gossamer.analysis import directions
    from gossamer.attribution.targets import LogitDifference, Logits

    tokens = [text.replace("\\n", "\n") for text in options["targets"]]
    others = [text.replace("\\n", "\n") for text in options["distractors"]]
    position, kind = options["position"], options["direction"]
    if options["node"] is not None:
        if tokens or others:
            raise GossamerError("--node explains a node, --target tokens; give one of them.")
        return directions.NodeValue(options["node"])
    if others and kind != "logit":
        raise GossamerError(f"--distractor belongs to --direction logit, got {kind}.")
    if others:
        if not tokens:
            raise GossamerError("--distractor is subtracted from --target; give that as well.")
        return LogitDifference(tokens, others, position)
    if kind == "kl":
        return directions.KL(position)
    if not tokens:
        if kind != "logit":
            raise GossamerError(f"--direction {kind} is of tokens; name them with --target.")
        traced = options["upstream"] is not None and options["through"] != "v"
        return None if traced else Logits(position=position)
    named = {
        "logit": Logits,
        "minus-mean": directions.LogitMinusMean,
        "probability": directions.Probability,
        "log-probability": directions.LogProbability,
    }[kind]
    return named(tokens, position=position)


def _print_analysis(found: "Analysis", top: int) -> None:
    """The table, what it adds up to, and the next tokens."""
    from rich.table import Table
    from rich.text import Text

    where = f"position {found.position}, {found.tokens[found.position]!r}"
    table = Table(title=f"{found.target} = {found.value:.4f}  ({where})", title_justify="left")
    for name in ("node", "at", "is"):
        table.add_column(name, overflow="fold")
    for name in ("activation", "write norm", "direct", "total"):
        table.add_column(name, justify="right")
    for row in found.rows[:top]:
        numbers = (row.activation, row.write_norm, row.direct, row.total)
        name = short(row.node) + ("" if row.in_cut else " ·")
        table.add_row(*map(Text, (name, repr(row.token), row.label, *map(_number, numbers))))
    console = _console()
    console.print(table)
    for each in found.sums:
        console.print(Text(each.sentence))
    if any(not row.in_cut for row in found.rows):
        console.print(Text("Rows marked · are of other cuts and do not count in the sums."))
    if found.predictions:
        best = "  ".join(f"{token!r} {p:.3f}" for token, _, _, p in found.predictions[:5])
        console.print(Text(f"next: {best}"))
    peak = "" if found.peak_bytes is None else f", {found.peak_bytes / 1e6:.0f} MB at the peak"
    console.print(Text(f"{found.seconds:.2f} s{peak}"))


def _print_comparison(both: "Comparison", top: int) -> None:
    """Two tables as one."""
    from rich.table import Table
    from rich.text import Text

    left, right = both.left, both.right
    title = f"{left.target}: {left.value:.4f} against {right.value:.4f}"
    if left.estimate is not None and left.clean is right:
        title += f", change {both.difference:+.4f} (estimate {left.estimate:+.4f})"
    table = Table(title=title, title_justify="left")
    for name in ("node", "is"):
        table.add_column(name, overflow="fold")
    for column in ("direct", "total"):
        for side in ("left", "right", "diff"):
            table.add_column(f"{column} {side}", justify="right")
    for row in both.rows[:top]:
        numbers = [
            side[column]
            for column in ("direct", "total")
            for side in (row.left, row.right, row.difference)
        ]
        name = short(row.node) + ("" if row.in_cut else " ·")
        table.add_row(*map(Text, (name, row.label, *map(_number, numbers))))
    console = _console()
    console.print(table)
    for side, found in (("left", left), ("right", right)):
        console.print(Text(f"{side}: {found.sums[0].sentence}"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def short(node: str) -> str:
    """A node id with its site abbreviated for a table: blocks.3.hook_resid_pre → 3.resid_pre."""
    return node.removeprefix("blocks.").replace("hook_", "")


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)
