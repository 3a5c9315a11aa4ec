"""A training step of a Jacobian-SAE pair, with and without its Jacobian, side by side.

    python benchmarks/jacobian_pair.py [--rounds 5]

d = 768, 3072 hidden units (GELU, random weights), 24576 latents, k = 32 in both SAEs, 4096 tokens,
two threads, float32. In every round each contender makes one step, in turns forwards and backwards,
on the same weights; medians count. Activations are sparse sums of directions that fire as words do,
the r-th in proportion to 1 / r (`zipf`), or all alike (`uniform`, in which nearly every latent
occurs in a batch). Bars: all tokens at most 3 times the plain step, a quarter of them 1.5 times.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gossamer.models.model import Model
from gossamer.training.config import TrainConfig
from gossamer.training.joint import JacobianConfig, Joint, jacobian_term
from gossamer.training.start import first_look, new_trainee
from gossamer.training.step import new_optimizer, outcome, update_
from gossamer.training.topk import TopKConfig

WIDTH, D_SAE, K, BATCH = 768, 24576, 32, 4096
N_DIRECTIONS = 8192
CONTENDERS = {"plain pair": (0.0, 1.0), "Jacobian": (1.0, 1.0), "a quarter": (1.0, 0.25)}
BARS = {"Jacobian": 3.0, "a quarter": 1.5}


def activations(model: Model, firing: str) -> dict[str, torch.Tensor]:
    """What the MLP reads and writes."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(N_DIRECTIONS, WIDTH, generator=generator)
    ranks = torch.arange(1, N_DIRECTIONS + 1).float()
    shares = 1 / ranks if firing == "zipf" else torch.ones(N_DIRECTIONS)
    shares = (40 * shares / shares.sum()).clamp(max=0.5)
    codes = (torch.rand(2 * BATCH, N_DIRECTIONS, generator=generator) < shares).float()
    x = codes @ directions + 0.3 * torch.randn(2 * BATCH, WIDTH, generator=generator)
    x = x / x.square().mean().sqrt()
    mlp: Any = model.layout.part(0, "mlp")
    with torch.no_grad():
        return {"blocks.0.mlp.hook_in": x, "blocks.0.hook_mlp_out": mlp(x)}


def steps(model: Model, rows: dict[str, torch.Tensor]) -> dict[str, Callable[[int], int]]:
    """A step of each contender; it returns the rows that its Jacobian touched."""
    each = TrainConfig(sae=TopKConfig(k=K), d_sae=D_SAE, n_tokens=1_000_000, batch_tokens=BATCH)
    config = JacobianConfig(each=each, layer=0, weight=1.0, warmup=0.0)
    members = config.members()
    looks = first_look(iter([rows]), list(rows), BATCH)
    trainees = [new_trainee(member, looks) for member in members]
    optimizers = [new_optimizer(*pair) for pair in zip(members, trainees, strict=True)]

    def made(weight: float, share: float) -> Callable[[int], int]:
        joint = Joint.of(replace(config, weight=weight, share=share), None, model)

        def step(number: int) -> int:
            batch = {site: x[number % 2 * BATCH :][:BATCH] for site, x in rows.items()}
            outcomes = []
            for member, trainee, optimizer in zip(members, trainees, optimizers, strict=True):
                optimizer.zero_grad(set_to_none=True)
                x = batch[str(member.site)]
                outcomes.append(outcome(member, trainee, x, x, step=number))
            losses = [found.loss for found in outcomes]
            if weight:
                losses.append(jacobian_term(joint, trainees, outcomes, batch, step=number))
            torch.stack(losses).sum().backward()
            for place, member in enumerate(members):
                update_(member, trainees[place], optimizers[place], outcomes[place], step=number)
            pairs = [found.pairs for found in outcomes]
            return sum(len(each.indices.unique()) for each in pairs if each is not None)

        return step

    return {name: made(*how) for name, how in CONTENDERS.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--firing", nargs="*", default=["zipf", "uniform"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shape = GPT2Config(n_layer=1, vocab_size=64, bos_token_id=0, eos_token_id=0)
    model = Model(GPT2LMHeadModel(shape))
    for firing in options.firing:
        ways = steps(model, activations(model, firing))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        touched = 0
        for number in range(-1, options.rounds):
            order = list(ways) if number % 2 else list(reversed(ways))
            for name in order:
                started = time.perf_counter()
                touched = ways[name](abs(number))
                if number >= 0:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
        plain = statistics.median(seconds["plain pair"])
        click.echo(f"{firing}: {touched / (2 * D_SAE):.0%} of all latents occur in a batch")
        for name, times in seconds.items():
            median = statistics.median(times)
            bar = f" (bar {BARS[name]})" if name in BARS else ""
            click.echo(f"  {name:12} {median:7.3f} s  {median / plain:5.2f}x{bar}")


if __name__ == "__main__":
    main()
