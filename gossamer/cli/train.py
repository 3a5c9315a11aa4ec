"""`gossamer train`: SAEs and transcoders from stored, given or live activations."""

import json
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.training.architecture import AbstractArchitecture
    from gossamer.training.config import TrainConfig

KINDS = ("topk", "batchtopk", "relu", "gated", "jumprelu")
"""Words for the architectures."""


@click.command("train", short_help="Train SAEs or transcoders on a model's activations.")
@click.option("--sae", "kind", type=click.Choice(KINDS), default="topk", show_default=True)
@click.option("--d-sae", required=True, type=click.IntRange(min=1), help="Number of latents.")
@click.option(
    "--k", "ks", multiple=True, type=click.IntRange(min=1), help="topk, batchtopk: latents a token."
)
@click.option(
    "--sparsity",
    "weights",
    multiple=True,
    type=click.FloatRange(min=0),
    help="relu, gated, jumprelu: weight of the penalty.",
)
@click.option("--penalty", type=click.Choice(("l0", "tanh")), default=None, help="jumprelu's.")
@click.option("--norm", type=click.Choice(("decoder", "unit")), default=None, help="relu's L1.")
@click.option("--bfloat16", is_flag=True, help="topk: find candidates in half precision.")
@click.option("--from", "stored", default=None, help="A store, or a file of activations.")
@click.option("--model", "model_name", default=None, help="Run this model instead of a store.")
@click.option("--corpus", "corpus_name", default="stdlib", show_default=True, help="With --model.")
@click.option("--site", "sites", multiple=True, help="Site that is read; default: the only one.")
@click.option("--site-out", default=None, help="Site that a transcoder writes.")
@click.option("--skip", is_flag=True, help="Give a transcoder a linear skip connection.")
@click.option("--tokens", "n_tokens", type=float, default=2e6, show_default=True)
@click.option("--batch", "batch_tokens", type=click.IntRange(min=1), default=4096)
@click.option("--rate", type=float, default=None, help="Adam's; default: the architecture's.")
@click.option("--remedy", type=click.Choice(("auxk", "resample", "none")), default=None)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default=None, help="Default: where the activations are.")
@click.option("--out", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), default=None, help="Write curves here.")
@click.option("--log-axis", is_flag=True, help="Open that page on a log axis.")
@click.option("--tensorboard", "with_tensorboard", is_flag=True, help="Write its files too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train_command(directory: Path, html: Path | None, **options: Any) -> None:
    """Train SAEs; the same command again continues where it was stopped.

    --k, --sparsity and --site can be repeated: all are then trained from one pass.

    \b
    Examples:
      gossamer train --sae topk --d-sae 2048 --k 32 --from acts/ --out runs/r2
      gossamer train --d-sae 2048 --k 32 --model pico-python --site blocks.2.hook_resid_pre --out r2
    """
    from gossamer.training.loop import train
    from gossamer.training.progress import tensorboard
    from gossamer.views.curves import curves_to_html

    configs = configs_of(options)
    callbacks = [tensorboard(directory / "tensorboard")] if options["with_tensorboard"] else []
    results = train(
        configs,
        _source(options),
        directory=directory,
        callbacks=callbacks,
        device=options["device"],
    )
    rows = [{"directory": str(each.directory), **each.history[-1]} for each in results]
    if html is not None:
        history = [row for each in results for row in each.history]
        curves_to_html(history, html, title=f"Training {directory}", log=options["log_axis"])
    if options["as_json"]:
        click.echo(json.dumps({"saes": rows}, indent=1))
    else:
        _print_table(rows)


def configs_of(options: dict[str, Any]) -> "list[TrainConfig]":
    """One config for each site and each k or weight of the penalty."""
    from gossamer.training.config import DeadConfig, OptimizerConfig, TrainConfig

    return [
        TrainConfig(
            sae=architecture,
            d_sae=options["d_sae"],
            n_tokens=int(options["n_tokens"]),
            site=site,
            site_out=options["site_out"],
            skip=options["skip"],
            batch_tokens=options["batch_tokens"],
            optimizer=OptimizerConfig(rate=options["rate"]),
            dead=DeadConfig(remedy=options["remedy"]),
            seed=options["seed"],
        )
        for site, architecture in product(options["sites"] or [None], _architectures(options))
    ]


def _architectures(options: dict[str, Any]) -> "list[AbstractArchitecture]":
    """The architectures that --sae and its own options name."""
    from gossamer.training.batchtopk import BatchTopKConfig
    from gossamer.training.gated import GatedConfig
    from gossamer.training.jumprelu import JumpReLUConfig
    from gossamer.training.relu import ReLUConfig
    from gossamer.training.topk import TopKConfig

    _check_own(options)
    # What was not given is left to the config's default.
    weights = options["weights"] or [None]
    penalty = {} if options["penalty"] is None else {"penalty": options["penalty"]}
    norm = {} if options["norm"] is None else {"norm": options["norm"]}
    match options["kind"]:
        case "topk":
            encode_in = "bfloat16" if options["bfloat16"] else "float32"
            return [TopKConfig(k=k, encode_in=encode_in) for k in options["ks"]]
        case "batchtopk":
            return [BatchTopKConfig(k=k) for k in options["ks"]]
        case "relu":
            return [ReLUConfig(**norm, **_given("l1", weight)) for weight in weights]
        case "gated":
            return [GatedConfig(**_given("l1", weight)) for weight in weights]
        case _:
            return [
                JumpReLUConfig(**penalty, **_given("coefficient", weight)) for weight in weights
            ]


def _check_own(options: dict[str, Any]) -> None:
    """GossamerError for an option that the architecture does not have, and for a missing --k."""
    kind = options["kind"]
    owners = {
        "ks": ("--k", {"topk", "batchtopk"}),
        "weights": ("--sparsity", {"relu", "gated", "jumprelu"}),
        "penalty": ("--penalty", {"jumprelu"}),
        "norm": ("--norm", {"relu"}),
        "bfloat16": ("--bfloat16", {"topk"}),
    }
    for name, (flag, kinds) in owners.items():
        if options[name] and kind not in kinds:
            raise GossamerError(f"{flag} is for {', '.join(sorted(kinds))}, not for {kind}.")
    if kind in owners["ks"][1] and not options["ks"]:
        raise GossamerError(f"A {kind} SAE needs --k, its number of active latents.")


def _given(name: str, value: float | None) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _source(options: dict[str, Any]) -> Any:
    """The activations that --from or --model name."""
    from gossamer.activations import as_source

    if (options["stored"] is None) == (options["model_name"] is None):
        raise GossamerError("Give either --from, a store or file, or --model with --site.")
    if options["stored"] is not None:
        return as_source(options["stored"])
    if not options["sites"]:
        raise GossamerError("With --model give at least one --site.")
    from gossamer.library import load_model

    out = options["site_out"]
    sites = list(dict.fromkeys([*options["sites"], *([] if out is None else [out])]))
    model = load_model(options["model_name"])
    return as_source((model, options["corpus_name"], sites if len(sites) > 1 else sites[0]))


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Trained; numbers of the last steps", title_justify="left")
    table.add_column("SAE", overflow="fold")
    for heading in ("site", "tokens", "FVU", "L0", "dead"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["directory"],
            row["site_out"],
            f"{row['tokens']:,}",
            f"{row['fvu']:.4f}",
            f"{row['l0']:.1f}",
            f"{row['dead']:.1%}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
