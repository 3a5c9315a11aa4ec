"""`gossamer jacobian`: how latents before an MLP move latents after it."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gossamer.errors import GossamerError, SiteError, check_writable

if TYPE_CHECKING:
    from gossamer.jacobian import Jacobian, JacobianReport


@click.command("jacobian", short_help="How latents before an MLP move latents after it.")
@click.argument("prompt", required=False)
@click.option("--layer", type=click.IntRange(min=0), required=True, help="Block of the MLP.")
@click.option("--model", "model_name", default="pico-python", show_default=True)
@click.option(
    "--saes",
    "saes_name",
    default=None,
    help="Set or directory with an SAE before and one after the MLP; default: MODEL/jacobian.",
)
@click.option("--at", type=click.Choice(("input", "reconstruction")), default="input",
              show_default=True, help="Where the MLP is evaluated.")  # fmt: skip
@click.option("--hold", multiple=True, help="Keep constant: norms.")
@click.option("--skip/--no-skip", default=None, help="Count the stream's way past the MLP.")
@click.option("--method", type=click.Choice(("auto", "tables", "rows")), default="auto")
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--measure", "measured", is_flag=True, help="Ablate every source and compare.")
@click.option("--corpus", default=None, help="Instead of a prompt: count over this corpus.")
@click.option("--tokens", "n_tokens", default=None, type=click.IntRange(min=1),
              help="With --corpus; default: 65536.")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path), default=None, help="Write a page.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def jacobian_command(prompt: str | None, model_name: str, **options: Any) -> None:
    """Derivatives of latents after an MLP by latents before it, active ones only. A backslash and
    n in PROMPT are a line break.

    \b
    Examples:
      gossamer jacobian "def add(a, b):\\n    return a" --layer 0
      gossamer jacobian --layer 0 --corpus stdlib --tokens 100000
    """
    from gossamer.jacobian import jacobian_over, mlp_jacobian, sweeps
    from gossamer.jacobian.entries import How
    from gossamer.library import load_model, load_saes

    if (prompt is None) == (options["corpus"] is None):
        raise GossamerError("Give either a PROMPT or --corpus.")
    if options["corpus"] is not None and (options["html"] or options["measured"]):
        raise GossamerError("--html and --measure are of a PROMPT; leave out --corpus.")
    if options["html"] is not None:
        check_writable(options["html"])
    if options["corpus"] is None and options["n_tokens"] is not None:
        raise GossamerError("--tokens is for --corpus; a PROMPT is taken whole.")
    model = load_model(model_name)
    saes = pair_at(load_saes(options["saes_name"] or f"{model_name}/jacobian"), options["layer"])
    common = {"hold": options["hold"], "skip": options["skip"]}
    if options["corpus"] is not None:
        report = jacobian_over(
            model,
            options["layer"],
            *saes,
            options["corpus"],
            n_tokens=options["n_tokens"] or 65_536,
            how=How(at=options["at"], method=options["method"]),
            progress=sys.stderr.isatty(),
            **common,
        )
        _show_report(report, saes, options)
        return
    assert prompt is not None
    found = mlp_jacobian(
        model,
        options["layer"],
        *saes,
        prompt.replace("\\n", "\n"),
        at=options["at"],
        method=options["method"],
        **common,
    )
    swept = sweeps(found)
    if options["html"] is not None:
        click.echo(f"Wrote {found.to_html(options['html'], sweeps=swept)}", err=True)
    _show(found, [sweep.shape for sweep in swept], options)


def pair_at(saes: Any, layer: int) -> tuple[Any, Any]:
    """The SAE that writes before the MLP of a block and the one that reads after it."""
    from gossamer.jacobian.passage import IN_KINDS, OUT_KINDS

    before = [s for s in saes.values() if s.site_out in _named(layer, IN_KINDS)]
    after = [s for s in saes.values() if s.site_in in _named(layer, OUT_KINDS)]
    if len(before) == len(after) == 1:
        return before[0], after[0]
    raise SiteError(
        f"A Jacobian of block {layer} needs one SAE at one of {', '.join(_named(layer, IN_KINDS))} "
        f"and one at one of {', '.join(_named(layer, OUT_KINDS))}; these SAEs are at "
        f"{', '.join(saes)}."
    )


def _named(layer: int, kinds: tuple[str, ...]) -> list[str]:
    return [f"blocks.{layer}.{kind}" for kind in kinds]


def _show(found: "Jacobian", shapes: list[str], options: dict[str, Any]) -> None:
    """Strongest pairs, how sparse, how linear and, if asked, how true."""
    from gossamer.jacobian import measure_jacobian

    linear = {shape: shapes.count(shape) for shape in ("linear", "jumprelu", "other")}
    entries = [entry._asdict() for entry in found.top(options["top"])]
    agreement = {}
    if options["measured"]:
        measured = measure_jacobian(found)
        for name, flipped in (("all", None), ("no flip", False), ("flips", True)):
            found_here = measured.agreement(flipped)._asdict()
            agreement[name] = {n: v if math.isfinite(v) else None for n, v in found_here.items()}
    density = [each._asdict() for each in found.density()]
    if options["as_json"]:
        shown = {
            "tokens": found.tokens,
            "method": found.method,
            "density": density,
            "shapes": linear,
            "entries": entries,
            **({"measured": agreement} if agreement else {}),
        }
        click.echo(json.dumps(shown, indent=1))
        return
    k = f"{found.values.shape[1]} × {found.values.shape[2]}"
    title = f"{len(entries)} strongest of {k} pairs at each of {len(found.tokens)} tokens"
    rows = [
        (
            e["source"].split("/")[1],
            e["source_label"],
            e["target"].split("/")[1],
            e["target_label"],
            f"{e['value']:+.3f}",
            f"{e['attribution']:+.3f}",
        )
        for e in entries
    ]
    heads = ("source", "fires on", "target", "fires on", "derivative", "× activation")
    _print(title, heads, rows)
    above = [(f"{d['threshold']:g}", f"{d['entries']:.1f}", f"{d['share']:.2%}") for d in density]
    _print("How sparse, comparable units", ("entries above", "a token", "share"), above)
    _print(
        f"How linear, {len(shapes)} strongest", tuple(linear), [tuple(map(str, linear.values()))]
    )
    if agreement:
        heads = ("sources ablated", "pairs", "signs agree", "correlation", "error")
        names = ("signs", "correlation", "error")
        rows = [
            (name, str(a["pairs"]), *("" if a[n] is None else f"{a[n]:.3f}" for n in names))
            for name, a in agreement.items()
        ]
        _print("Measured beside predicted", heads, rows)


def _show_report(report: "JacobianReport", saes: Any, options: dict[str, Any]) -> None:
    labels = [getattr(sae, "labels", None) for sae in saes]
    pairs = [
        {
            "source": source,
            "source_label": labels[0][source] if labels[0] else "",
            "target": target,
            "target_label": labels[1][target] if labels[1] else "",
            "tokens": count,
            "mean": mean,
        }
        for target, source, count, mean in report.pairs.top(options["top"])
    ]
    density = [each._asdict() for each in report.density]
    if options["as_json"]:
        shown = {**report.about, "mean_size": report.mean_size, "density": density, "pairs": pairs}
        click.echo(json.dumps(shown, indent=1))
        return
    above = [(f"{d['threshold']:g}", f"{d['entries']:.1f}", f"{d['share']:.2%}") for d in density]
    title = f"{report.about['n_tokens']:,} tokens of {report.about['corpus']}, comparable units"
    _print(title, ("entries above", "a token", "share"), above)
    rows = [
        (str(p["source"]), p["source_label"], str(p["target"]), p["target_label"],
         f"{p['tokens']:,}", f"{p['mean']:+.3f}")
        for p in pairs
    ]  # fmt: skip
    heads = ("source", "fires on", "target", "fires on", "tokens", "mean")
    _print(f"Pairs with the largest sums, of {len(report.pairs.counts):,}", heads, rows)


def _print(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell.replace("\n", "⏎")) for cell in row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
