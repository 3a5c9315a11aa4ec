"""`gossamer plan`: what a training run will take, before it is started."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gossamer.cli.options import Count
from gossamer.errors import GossamerError

if TYPE_CHECKING:
    from gossamer.plan import Hardware, Plan, Work
    from gossamer.training.architecture import AbstractArchitecture

KINDS = (
    *("topk", "batchtopk", "matryoshka", "abstopk"),
    *("relu", "panneal", "gated", "jumprelu"),
)
"""Words for the architectures."""

RATES = ("flops", "half_flops", "model_flops", "bandwidth", "link", "network", "latency", "disk")
RATES += ("memory", "per_node", "select_passes")
"""Numbers of the hardware that options overwrite."""


@click.command("plan", short_help="What a training run will take of time, memory and traffic.")
# What is trained.
@click.option("--tokens", "n_tokens", type=Count(), default="1e9", show_default=True)
@click.option("--d-model", type=Count(), default="4096", show_default=True, help="Width read.")
@click.option("--d-out", type=Count(), help="Width written, of a transcoder.")
@click.option("--d-sae", type=Count(), required=True, help="Number of latents.")
@click.option("--sae", "kind", type=click.Choice(KINDS), default="topk", show_default=True)
@click.option(
    *("--k", "k"), type=Count(), default="64", show_default=True, help="Active latents a token."
)
@click.option("--batch", "batch_tokens", type=Count(), default="131072", show_default=True)
@click.option("--skip", is_flag=True, help="Of a transcoder: a linear skip connection.")
@click.option("--dead", type=float, default=0.0, show_default=True, help="Share of dead latents.")
@click.option("--checkpoint-seconds", type=float, default=60.0, show_default=True)
# On what.
@click.option("--gpus", type=Count(), default="1", show_default=True, help="Processes in all.")
@click.option("--dp", type=Count(), help="Those that share the tokens; default: the fastest.")
@click.option("--tp", type=Count(), help="Those that share the latents; default: the fastest.")
@click.option("--hardware", default="h100", show_default=True, help="Rates: h100 or cpu.")
@click.option("--flops", type=float, help="FLOP/s of float32 products.")
@click.option("--half-flops", type=float, help="FLOP/s of bfloat16 products.")
@click.option("--model-flops", type=float, help="FLOP/s of the language model.")
@click.option("--bandwidth", type=float, help="Bytes/s of the device's memory.")
@click.option("--link", type=float, help="Bytes/s to processes of the node.")
@click.option("--network", type=float, help="Bytes/s to other nodes.")
@click.option("--latency", type=float, help="Seconds of an empty collective.")
@click.option("--disk", type=float, help="Bytes/s of a process from and to files.")
@click.option("--memory", type=float, help="Bytes of a device.")
@click.option("--per-node", type=Count(), help="Processes of a node.")
@click.option("--select-passes", type=float, help="Passes over pre-activations that choose.")
# From what.
@click.option("--model-params", type=float, default=0.0, help="Of the language model; default: 0.")
@click.option(
    "--layer-share", type=float, default=1.0, show_default=True, help="Of its layers, that run."
)
@click.option(
    "--store",
    type=click.Choice(("bfloat16", "float16", "float32", "none")),
    default="bfloat16",
    show_default=True,
    help="Activations on disk; none: the model runs beside.",
)
@click.option(
    "--numbers",
    type=click.Choice(("float32", "bfloat16")),
    default="float32",
    show_default=True,
    help="float32, as training is; bfloat16, as it might be.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan_command(as_json: bool, **options: Any) -> None:
    """Say what training one SAE takes: arithmetic from the rates of the hardware, nothing is run.

    docs/scale.md has the formulas. Without --dp and --tp all layouts are planned and the fastest
    that fits is taken.

    \b
    Examples:
      gossamer plan --tokens 1e10 --d-sae 1e6 --gpus 64
      gossamer plan --d-model 768 --d-sae 24576 --k 32 --batch 4096 --model-params 124e6
    """
    from gossamer.plan import plan

    machine = _hardware(options)
    mesh = {name: options[name] for name in ("gpus", "dp", "tp")}
    found = plan(_work(options), hardware=machine, **mesh)
    if as_json:
        click.echo(found.to_json())
    else:
        _print(found)


def _hardware(options: dict[str, Any]) -> "Hardware":
    from gossamer.plan.hardware import hardware_of

    given = {name: options[name] for name in RATES if options[name] is not None}
    return replace(hardware_of(options["hardware"]), **given)


def _work(options: dict[str, Any]) -> "Work":
    from gossamer.plan import Work
    from gossamer.training.config import TrainConfig

    if options["skip"] and options["d_out"] is None:
        raise GossamerError("A skip connection is for transcoders; give --d-out as well.")
    # Sites only say that it is a transcoder; which they are costs nothing.
    sites = {"site": "blocks.0.mlp.hook_in", "site_out": "blocks.0.hook_mlp_out"}
    config = TrainConfig(
        sae=architecture_of(options["kind"], options["k"]),
        skip=options["skip"],
        **(sites if options["d_out"] is not None else {}),
        **{name: options[name] for name in ("d_sae", "n_tokens", "batch_tokens")},
    )
    return Work(
        config=config,
        d_in=options["d_model"],
        active=options["k"],
        model_parameters=options["model_params"],
        **{
            name: options[name]
            for name in ("d_out", "dead", "numbers", "layer_share", "store", "checkpoint_seconds")
        },
    )


def architecture_of(kind: str, k: int) -> "AbstractArchitecture":
    """An architecture with its defaults; those with a penalty have no k."""
    from gossamer.training.abstopk import AbsTopKConfig
    from gossamer.training.batchtopk import BatchTopKConfig
    from gossamer.training.gated import GatedConfig
    from gossamer.training.jumprelu import JumpReLUConfig
    from gossamer.training.matryoshka import MatryoshkaConfig
    from gossamer.training.panneal import PAnnealConfig
    from gossamer.training.relu import ReLUConfig
    from gossamer.training.topk import TopKConfig

    by_rank = (TopKConfig, BatchTopKConfig, MatryoshkaConfig, AbsTopKConfig)
    found: dict[str, AbstractArchitecture] = {each.name: each(k=k) for each in by_rank}
    free = (ReLUConfig, PAnnealConfig, GatedConfig, JumpReLUConfig)
    return {**found, **{each.name: each() for each in free}}[kind]


def _print(found: "Plan") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    config, share = found.work.config, found.share
    about = (
        f"{config.sae.name}, {config.d_sae:,} latents, {share.d_in} → {share.d_out}, "
        f"{found.work.per_token:g} active, {config.batch_tokens:,} tokens a step, "
        f"{found.work.numbers}; {found.gpus} × {found.hardware.name}, dp={found.dp} tp={found.tp}"
    )
    table = Table(title=about, title_justify="left")
    for name in ("part", "ms a step", "share", "TFLOP", "GB", ""):
        table.add_column(name, justify="left" if name in ("part", "") else "right")
    notes = {"before": "before training", "between": "on average"}
    for part in found.parts:
        row = (_short(part.seconds * 1e3), f"{part.seconds / found.step_seconds:.1%}")
        sizes = (_short(n) if n else "" for n in (part.flop / 1e12, part.bytes / 1e9))
        table.add_row(part.name, *row, *sizes, notes.get(part.when, ""))
    table.add_section()
    table.add_row("a step", _short(found.step_seconds * 1e3), "100.0%", "", "", "")
    console.print(table)
    console.print(_totals(found), markup=False, highlight=False)
    for remark in found.remarks:
        console.print(remark, markup=False, highlight=False, style="yellow")


def _short(n: float) -> str:
    """Three digits, or all before the point."""
    return f"{n:,.0f}" if n >= 100 else f"{n:.3g}"


def _totals(found: "Plan") -> str:
    """Hours, memory, disk, traffic and other layouts, a line each."""
    from gossamer.machine import readable

    holds = ", ".join(f"{name} {readable(int(n))}" for name, n in found.memory.items())
    disk = found.disk
    lines = [
        f"{found.n_steps:,} steps at {found.tokens_per_second:,.0f} tokens/s: training "
        f"{_short(found.training_hours)} h, harvest {_short(found.harvest_hours)} h, in all "
        f"{_short(found.hours)} h, {_short(found.gpu_hours)} GPU-hours",
        f"memory of a process: {readable(int(found.memory_bytes))} of "
        f"{readable(int(found.hardware.memory))} ({holds}); a batch on the host "
        f"{readable(int(found.host_bytes))}",
        f"disk: store {readable(int(disk['store']))}, a checkpoint "
        f"{readable(int(disk['checkpoint']))}",
    ]
    for group in ("tp", "dp", "all"):
        some = [each for each in found.collectives if each.group == group]
        if some:
            n, size = (
                sum(each.count for each in some),
                sum(each.count * each.bytes for each in some),
            )
            lines.append(f"over {group}: {n} collectives a step, {readable(size)}")
    others = [layout for layout in found.layouts if (layout.dp, layout.tp) != (found.dp, found.tp)]
    for each in others[:3]:
        room = "" if each.fits else ", does not fit"
        lines.append(
            f"instead dp={each.dp} tp={each.tp}: {_short(each.step_seconds * 1e3)} ms a step, "
            f"{readable(int(each.memory_bytes))}{room}"
        )
    return "\n".join(lines)
