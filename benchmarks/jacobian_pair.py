"""A training step of a Jacobian-SAE pair, with and without its Jacobian, side by side.

    python benchmarks/jacobian_pair.py [--rounds 5]

d = 768, 3072 hidden units (GELU, random weights), 24576 latents, k = 32 in both SAEs, 4096 tokens,
two threads. In every round each contender makes two steps, in turns forwards and backwards, on the
same weights, and the second counts: as in training it follows one of its own kind, and finds memory
as that left it. Medians count. Activations are sparse sums of directions:

    trained   a trained pair: the rows of both SAEs are the directions, k of which each token draws
              with odds spread as the latents' frequencies are in pico-python's pair (the standard
              deviation of log10 is 0.80 before the MLP and 0.67 after it). What the second SAE
              reads is drawn as well, since the directions of an MLP of random weights are not
              known; no time depends on that.
    zipf      an untrained pair, as it starts; directions fire as words do, the r-th in proportion
              to 1 / r
    uniform   the same, but all alike: nearly every latent occurs in a batch

Bars: all tokens at most 3 times the plain step, a quarter of them 1.5 times.

    python benchmarks/jacobian_pair.py --frequencies

measures those spreads: over 204,800 held-out tokens, with the share of latents that occur on as
many tokens as a quarter of a batch is here, latent for latent.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

import gossamer
from gossamer.corpus import split_stdlib
from gossamer.library import load_model
from gossamer.models.model import Model
from gossamer.training.config import TrainConfig
from gossamer.training.joint import JacobianConfig, Joint, drawn_tokens, jacobian_term
from gossamer.training.start import first_look, new_trainee
from gossamer.training.step import new_optimizer, outcome, update_
from gossamer.training.topk import TopKConfig

WIDTH, D_SAE, K, BATCH = 768, 24576, 32, 4096
N_DIRECTIONS = 8192
FIRINGS = ("trained", "zipf", "uniform")
SPREADS = {"blocks.0.mlp.hook_in": 0.80, "blocks.0.hook_mlp_out": 0.67}
CONTENDERS: dict[str, dict[str, Any]] = {
    "plain pair": {"weight": 0.0},
    "all tokens": {},
    "all tokens, bfloat16": {"multiply_in": "bfloat16"},
    "a quarter": {"share": 0.25},
    "a quarter, bfloat16": {"share": 0.25, "multiply_in": "bfloat16"},
}
BARS = {"all tokens": 3.0, "a quarter": 1.5}


def directions_and_rows(spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Unit directions of a trained SAE, and activations made of k of them each."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(D_SAE, WIDTH, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    log_odds = spread * math.log(10) * torch.randn(D_SAE, generator=generator)
    rows = []
    for _ in range(2 * BATCH // 512):
        # The k largest of log-odds plus Gumbel noise: a draw without putting back.
        noise = torch.rand(512, D_SAE, generator=generator).log_().neg_().log_().neg_()
        chosen = (noise + log_odds).topk(K).indices
        sizes = 1 + 0.2 * torch.rand(chosen.shape, generator=generator)
        rows.append(F.embedding_bag(chosen, directions, mode="sum", per_sample_weights=sizes))
    return directions, torch.cat(rows)


def activations(model: Model, firing: str) -> dict[str, Tensor]:
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


def steps(model: Model, firing: str) -> dict[str, Callable[[int], list[float]]]:
    """A step of each contender; it returns the share of each SAE's latents that its Jacobian
    touched."""
    each = TrainConfig(sae=TopKConfig(k=K), d_sae=D_SAE, n_tokens=1_000_000, batch_tokens=BATCH)
    config = JacobianConfig(each=each, layer=0, weight=1.0, warmup=0.0)
    members = config.members()
    if firing == "trained":
        made_of = {site: directions_and_rows(SPREADS[site], n) for n, site in enumerate(SPREADS)}
        rows = {site: made for site, (_, made) in made_of.items()}
    else:
        made_of, rows = {}, activations(model, firing)
    looks = first_look(iter([rows]), list(rows), BATCH)
    trainees = [new_trainee(member, looks) for member in members]
    for member, trainee in zip(members, trainees, strict=True):
        if made_of:
            directions, _ = made_of[str(member.site)]
            trainee.load_state_dict(
                trainee.state_dict()
                | {"W_enc": directions, "W_dec": directions, "b_dec": torch.zeros(WIDTH)}
            )
    optimizers = [new_optimizer(*pair) for pair in zip(members, trainees, strict=True)]

    def made(options: dict[str, Any]) -> Callable[[int], list[float]]:
        joint = Joint.of(replace(config, **options), None, model)

        def step(number: int) -> list[float]:
            batch = {site: x[number % 2 * BATCH :][:BATCH] for site, x in rows.items()}
            outcomes = []
            for member, trainee, optimizer in zip(members, trainees, optimizers, strict=True):
                optimizer.zero_grad(set_to_none=True)
                x = batch[str(member.site)]
                outcomes.append(outcome(member, trainee, x, x, step=number))
            losses = [found.loss for found in outcomes]
            if joint.config.weight:
                losses.append(jacobian_term(joint, trainees, outcomes, batch, step=number))
            torch.stack(losses).sum().backward()
            for place, member in enumerate(members):
                update_(member, trainees[place], optimizers[place], outcomes[place], step=number)
            drawn = drawn_tokens(joint.config, BATCH, number)
            pairs = [found.pairs for found in outcomes if found.pairs is not None]
            indices = [each.indices.view(BATCH, K)[drawn] for each in pairs]
            return [len(each.unique()) / D_SAE for each in indices]

        return step

    return {name: made(options) for name, options in CONTENDERS.items()}


def compare(firing: str, model: Model, n_rounds: int) -> None:
    """Print a table of one way of firing."""
    ways = steps(model, firing)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    touched: dict[str, list[float]] = {}
    for number in range(-1, n_rounds):
        order = list(ways) if number % 2 else list(reversed(ways))
        for name in order:
            ways[name](abs(number) + 1)
            started = time.perf_counter()
            touched[name] = ways[name](abs(number))
            if number >= 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    plain = statistics.median(seconds["plain pair"])
    every, part = (
        " and ".join(f"{share:.0%}" for share in touched[name])
        for name in ("all tokens", "a quarter")
    )
    click.echo(f"{firing}: latents that occur, before and after: {every}; in a quarter: {part}")
    for name, times in seconds.items():
        median = statistics.median(times)
        bar = next((f" (bar {most})" for way, most in BARS.items() if name.startswith(way)), "")
        click.echo(f"  {name:22} {median:7.3f} s  {median / plain:5.2f}x{bar}")


def frequencies() -> None:
    """Print how the firing frequencies of the shipped SAEs are spread."""
    model = load_model("pico-python")
    pieces = [model.tokenize(file.text) for file in split_stdlib()[1]]
    blocks = [ids[at : at + 256] for ids in pieces for at in range(0, len(ids) - 255, 256)][:800]
    click.echo("log10 of the frequency: mean, standard deviation; occur on as many tokens")
    for name in ("pico-python/jacobian", "pico-python"):
        loaded = gossamer.load_saes(name)
        saes = {site: sae for site, sae in loaded.items() if isinstance(sae, gossamer.SAE)}
        counts = {site: torch.zeros(sae.d_sae) for site, sae in saes.items()}
        occur: dict[str, list[float]] = {site: [] for site in saes}
        for at in range(0, len(blocks), 16):
            seen = gossamer.run(model, blocks[at : at + 16], record=list(saes), logits=False)
            for site, sae in saes.items():
                found = sae.encode_sparse(seen.activations[site].flatten(0, 1))
                counts[site] += torch.bincount(found.indices, minlength=sae.d_sae)
                every = max(1, round(16 * 256 * D_SAE / (BATCH / 4 * sae.d_sae)))
                chosen = found.indices[found.rows % every == 0]
                occur[site].append(len(chosen.unique()) / sae.d_sae)
        for site, count in counts.items():
            logs = (count[count > 0] / (256 * len(blocks))).log10()
            share = statistics.mean(occur[site])
            click.echo(f"  {name:21} {site:26} {logs.mean():6.2f} {logs.std():5.2f} {share:5.0%}")


def main() -> None:
    """Print a table for each way of firing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--firing", nargs="*", default=FIRINGS, choices=FIRINGS)
    parser.add_argument("--frequencies", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.frequencies:
        with torch.no_grad():
            frequencies()
        return
    shape = GPT2Config(n_layer=1, vocab_size=64, bos_token_id=0, eos_token_id=0)
    model = Model(GPT2LMHeadModel(shape))
    for firing in options.firing:
        compare(firing, model, options.rounds)


if __name__ == "__main__":
    main()
