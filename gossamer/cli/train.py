"""`gossamer train`: SAEs and transcoders from stored, given or live activations."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.launched import launched
from gossamer.cli.train_configs import (
    KINDS,
    PENALTIES,
    check_own,
    configs_of,
    is_given,
    jacobian_config_of,
    options_given,
)
from gossamer.errors import GossamerError, check_writable

if TYPE_CHECKING:
    from gossamer.activations import ActivationSource
    from gossamer.training.config import TrainConfig


@click.command("train", short_help="Train SAEs or transcoders on a model's activations.")
# What is trained.
@click.option("--sae", "kind", type=click.Choice(KINDS), default="topk", show_default=True)
@click.option("--d-sae", required=True, type=int, help="Number of latents.")
@click.option("--k", "ks", multiple=True, type=int, help="topk and its kin: latents a token.")
@click.option(
    *("--prefix", "prefixes"), multiple=True, type=int, help="matryoshka: latents of a prefix."
)
@click.option(
    *("--prefix-weight", "prefix_weights"), multiple=True, type=float, help="Of each; default: 1."
)
@click.option("--p-end", type=float, help="panneal: the last p; default: 0.2.")
@click.option(
    *("--sparsity", "weights"),
    multiple=True,
    type=float,
    help="relu, panneal, gated, jumprelu: weight of the penalty.",
)
@click.option("--sparsity-warmup", type=float, help="Share of the run over which that rises.")
@click.option("--penalty", type=click.Choice(("l0", "tanh", "target")), help="jumprelu's.")
@click.option("--target-l0", type=float, help="jumprelu, --penalty target: latents a token.")
@click.option("--bandwidth", type=float, help="jumprelu's.")
@click.option("--norm", type=click.Choice(("decoder", "unit")), help="relu's L1.")
@click.option("--bfloat16", is_flag=True, help="topk: find candidates in half precision.")
@click.option("--skip", is_flag=True, help="Give a transcoder a linear skip connection.")
@click.option("--crosscoder", is_flag=True, help="One dictionary for all sites that are named.")
@click.option("--layer", type=click.IntRange(min=0), help="jacobian: block of the MLP.")
@click.option(
    "--jacobian-weight", type=float, help="jacobian: λ; default: k² / (2 d_model); 0 for none."
)
@click.option(
    "--jacobian-warmup", type=float, help="jacobian: share of the run over which λ rises."
)
@click.option("--jacobian-penalty", type=click.Choice(PENALTIES), help="jacobian; default: l1.")
@click.option("--jacobian-size", type=float, help="jacobian: where bending penalties bend.")
@click.option(
    "--jacobian-share", type=float, help="jacobian: share of tokens the term is taken over."
)
@click.option("--jacobian-bfloat16", is_flag=True, help="jacobian: multiply in half precision.")
# From what.
@click.option("--from", "stored", help="A store, or a file of activations.")
@click.option("--model", "model_name", help="Run this model instead of a store.")
@click.option("--corpus", help="With --model; default: stdlib.")
@click.option("--context", type=int, help="With --model: tokens of a block; default: up to 256.")
@click.option("--exclude-special", is_flag=True, help="With --model: leave out BOS tokens.")
@click.option("--site", "sites", multiple=True, help="Site that is read; default: the only one.")
@click.option("--site-out", "sites_out", multiple=True, help="Site that a transcoder writes.")
# How.
@click.option("--tokens", "n_tokens", type=float, default=2e6, show_default=True)
@click.option("--batch", "batch_tokens", type=int, default=4096, show_default=True)
@click.option("--rate", type=float, help="Adam's; default: the architecture's.")
@click.option("--warmup-steps", type=int, help="Of the rate; default: 1000, at most a twentieth.")
@click.option("--decay", type=float, help="Share of the run, at its end, of the rate's fall.")
@click.option("--clip", type=float, help="Largest norm of the gradient; 0: unlimited.")
@click.option("--start-b-dec", type=click.Choice(("mean", "geometric_median", "zero")))
@click.option("--remedy", type=click.Choice(("auxk", "resample", "none")), help="For the dead.")
@click.option("--dead-after", type=float, help="Tokens of silence; default: a twentieth.")
@click.option("--aux-weight", type=float, help="auxk's weight.")
@click.option("--k-aux", type=int, help="auxk: dead latents a token.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", help="Of training and --model; default: where the activations are.")
@click.option("--mesh", help="Under torchrun: dp=2,tp=2 shares tokens by 2, latents by 2.")
# What is written.
@click.option("--out", "directory", required=True, type=click.Path(path_type=Path))
@click.option("--checkpoint-seconds", type=float, help="Between checkpoints; default: 60.")
@click.option("--keep", type=int, help="Checkpoints that are kept; default: 2.")
@click.option("--log-steps", type=int, help="Steps of a line of the log; default: 10.")
@click.option("--html", type=click.Path(path_type=Path), help="Write curves here.")
@click.option("--log-axis", is_flag=True, help="Open that page on a log axis.")
@click.option("--tensorboard", "with_tensorboard", is_flag=True, help="Write its files too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train_command(directory: Path, html: Path | None, **options: Any) -> None:
    """Train SAEs; the same command again continues where it was stopped.

    --k, --sparsity and --site can be repeated: all are then trained from one pass. For transcoders
    give a --site-out for each --site. With --crosscoder all --site share one dictionary, or one
    --site and all --site-out, which come after it.

    Started with torchrun, its processes train together, as --mesh says.

    \b
    Examples:
      gossamer train --sae topk --d-sae 2048 --k 32 --from acts/ --out runs/r2
      gossamer train --d-sae 2048 --k 32 --model pico-python --site blocks.2.hook_resid_pre --out r2
      gossamer train --sae jacobian --layer 2 --d-sae 2048 --k 32 --model pico-python --out pair
      torchrun --nproc-per-node 2 -m gossamer train --mesh dp=2 --d-sae 2048 --k 32 --from acts/ …
    """
    with launched() as speaks:
        _train(directory, html, options, speaks=speaks)


def _train(directory: Path, html: Path | None, options: dict[str, Any], *, speaks: bool) -> None:
    """One process's part; that which `speaks` prints."""
    from gossamer.distributed import mesh_of
    from gossamer.training.config import RunConfig
    from gossamer.training.loop import train
    from gossamer.training.progress import tensorboard
    from gossamer.views.curves import curves_to_html

    device = options["device"]
    mesh = mesh_of(options["mesh"], "cuda" if str(device).startswith("cuda") else "cpu")
    if mesh.size > 1 and ":" in str(device):
        raise GossamerError(
            f"Each process of a mesh has a GPU of its own, got --device {device}; write "
            f"{device.split(':')[0]}."
        )
    if html is not None and directory not in html.parents:  # which is not there yet
        mesh.first(lambda: check_writable(html))
    check_own(options)
    pair = None
    configs = [] if options["kind"] == "jacobian" else configs_of(options)
    run = RunConfig(**options_given(options, "checkpoint_seconds", "keep", "log_steps"))
    callbacks = [tensorboard(directory / "tensorboard")] if options["with_tensorboard"] else []
    model = _model(options)
    if options["kind"] == "jacobian":
        pair = jacobian_config_of(options, model)
        configs = pair.members()
        options["sites"] = tuple(str(config.site) for config in configs)
    source = _source(options, model)
    if speaks:
        _say_epochs(source, configs[0])
    try:
        results = train(
            *(configs if pair is None else pair, source),
            model=model,
            directory=directory,
            callbacks=callbacks,
            run=run,
            device=device,
            mesh=mesh,
        )
    except KeyboardInterrupt:
        if speaks:
            _say_stopped(directory)
        sys.exit(130)
    if not speaks:
        return
    rows = [{"directory": str(each.directory), **each.history[-1]} for each in results]
    if html is not None:
        history = [row for each in results for row in each.history]
        curves_to_html(history, html, title=f"Training {directory}", log=options["log_axis"])
    if options["as_json"]:
        click.echo(json.dumps({"saes": rows}, indent=1))
    else:
        _print_table(rows)


def _model(options: dict[str, Any]) -> Any:
    """The model that --model names; None without it."""
    from gossamer.machine import device_of

    stored, name = options["stored"], options["model_name"]
    both = stored is not None and name is not None and options["kind"] != "jacobian"
    if both or (stored is None and name is None):
        raise GossamerError("Give either --from, a store or file, or --model with --site.")
    if options["device"] is not None:
        device_of(options["device"])
    if name is None:
        return None
    from gossamer.library import load_model

    return load_model(name, device=options["device"])


def _source(options: dict[str, Any], model: Any) -> "ActivationSource":
    """The activations that --from names, or else --model gives."""
    from gossamer.activations import LiveActivations, as_source
    from gossamer.corpus import as_corpus

    sites = list(dict.fromkeys([*options["sites"], *options["sites_out"]]))
    if options["stored"] is not None:
        for name in ("corpus", "context", "exclude_special"):
            if is_given(options[name]):
                raise GossamerError(
                    f"--{name.replace('_', '-')} is for --model; what --from names has been "
                    "harvested already."
                )
        return as_source(options["stored"], sites[0] if len(sites) == 1 else None)
    if not options["sites"]:
        raise GossamerError("With --model give at least one --site.")
    for site in sites:
        model.width(site)
    corpus = as_corpus("stdlib" if options["corpus"] is None else options["corpus"])
    how = (options["context"], options["exclude_special"])
    return LiveActivations(model, corpus, tuple(sites), *how)


def _say_epochs(source: "ActivationSource", config: "TrainConfig") -> None:
    n_rows, n_tokens = source.n_rows, config.n_steps * config.batch_tokens
    if n_rows is not None and n_tokens > n_rows:
        click.echo(f"{n_rows:,} tokens an epoch, {n_tokens / n_rows:.1f} epochs.", err=True)


def _say_stopped(directory: Path) -> None:
    from gossamer.training.checkpoints import checkpoints, step_of

    found = checkpoints(directory)
    where = f"after step {step_of(found[-1])}" if found else "before the first checkpoint"
    click.echo(f"Stopped {where}; run the same command again to go on.", err=True)


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
