"""Train one of pico-python's sets of SAEs, all of its members from one pass over activations.

    python recipes/pico_python/train_saes.py resid --model DIRECTORY --out DIRECTORY

    resid            the residual stream before every block and after the last
    transcoders      what every MLP reads and writes, with a linear skip connection
    jacobian         a pair around the MLP of block 0, trained for a sparse Jacobian
    jacobian-plain   the same pair without that, to compare; it is not shipped

Run again it goes on where it was stopped. Rows of BOS are trained on like any other, since a splice
replaces them like any other.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

import gossamer
from gossamer.activations import LiveActivations

D_SAE = 2048
K = 32
CONTEXT = 512
LAYER = 0
"""Block of the Jacobian pair: its MLP is nearly linear (a linear map leaves 1.2 % of its variance),
and zeroing it costs 8.6 nats."""

WEIGHT = 1.4
"""Weight of its Jacobian."""

SIZE = 0.02
"""Size from which an entry costs ever less (`log`), twice that above which entries are counted."""

PAIR_BATCH = 2048
"""Tokens of a step of the pair: twice the steps of 4096, which so short a run needs."""

RESIDUAL = (*(f"blocks.{layer}.hook_resid_pre" for layer in range(4)), "blocks.3.hook_resid_post")
MLPS = tuple((f"blocks.{n}.mlp.hook_in", f"blocks.{n}.hook_mlp_out") for n in range(4))
RATES = {"resid": 2e-3, "transcoders": 3e-3, "jacobian": 2e-3, "jacobian-plain": 2e-3}
"""Adam's, by set."""

PARTS = {"resid": 1.0, "transcoders": 0.5, "jacobian": 0.5, "jacobian-plain": 0.5}
"""Share of --tokens that each SAE of a set sees."""


def config_of(name: str, n_tokens: int, seed: int) -> Any:
    """What `gossamer.train` takes for a set."""
    plain = gossamer.TrainConfig(
        sae=gossamer.TopKConfig(k=K),
        d_sae=D_SAE,
        n_tokens=int(n_tokens * PARTS[name]),
        optimizer=gossamer.OptimizerConfig(rate=RATES[name], warmup_steps=200, decay=0.5),
        dead=gossamer.DeadConfig(after_tokens=200_000),
        seed=seed,
    )
    if name == "resid":
        return [replace(plain, site=site) for site in RESIDUAL]
    if name == "transcoders":
        return [replace(plain, site=site, site_out=out, skip=True) for site, out in MLPS]
    return gossamer.JacobianConfig(
        each=replace(plain, batch_tokens=PAIR_BATCH),
        layer=LAYER,
        weight=WEIGHT if name == "jacobian" else 0.0,
        penalty="log",
        size=SIZE,
        share=0.125,
    )


def sites_of(name: str) -> tuple[str, ...]:
    """The sites that a set reads or writes."""
    if name == "resid":
        return RESIDUAL
    return tuple(
        site for pair in (MLPS if name == "transcoders" else [MLPS[LAYER]]) for site in pair
    )


@click.command()
@click.argument("name", type=click.Choice(tuple(RATES)))
@click.option("--model", type=click.Path(exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option(
    "--tokens",
    default=8_000_000,
    show_default=True,
    help="Tokens each SAE sees, those of transcoders and of the pair half of that.",
)
@click.option("--seed", default=0, show_default=True)
def main(name: str, model: str, out: Path, **options: int) -> None:
    """Train into OUT/runs/NAME, then write OUT/NAME/SITE with weights in float16."""
    loaded = gossamer.load_model(model)
    loaded.name = "pico-python"
    corpus = gossamer.as_corpus("stdlib")
    source = LiveActivations(loaded, corpus, sites_of(name), CONTEXT, shuffle_blocks=256)
    results = gossamer.train(
        config_of(name, options["tokens"], options["seed"]),
        source,
        directory=out / "runs" / name,
        callbacks=[lambda row: click.echo(row) if row["step"] % 100 == 0 else None],
    )
    for result in results:
        result.sae.to(torch.float16).save(out / name / result.sae.site_out)
    click.echo(f"{len(results)} SAEs in {out / name}")


if __name__ == "__main__":
    main()
