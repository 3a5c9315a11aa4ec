"""One analysis beside the spliced forward and backward pass alone, and eight at once beside eight.

    python benchmarks/analyze.py [--rounds 5] [--threads 2] [--saes 12]

GPT-2 small's shape with random weights, 40 tokens, a TopK SAE (D = 24,576, k = 32) at every block's
hook_resid_pre, float32; tables of all heads, neurons and latents. In every round each contender
runs once, in turns forwards and backwards; medians count. Bars: one analysis at most 2.5 times the
spliced forward and backward; eight in one pass at least 1.3 times as fast as eight one by one.

The yardstick runs all SAEs in the pass (`gossamer.run`, attached errors) and differentiates the
logit difference by every residual stream. An analysis without edits of latents need not splice,
since that changes no number; `edited` is one that does, with its clean run beside it.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import gossamer
from gossamer.models.model import Model

WIDTH, D_SAE, K, TOKENS, AT_ONCE = 768, 24_576, 32, 40, 8
TARGET = gossamer.LogitDifference(318, 290)


def saes(model: Model, number: int) -> dict[str, gossamer.SAE]:
    """Random TopK SAEs, tied so that they reconstruct something."""
    from gossamer.saes import TopK

    found = {}
    for layer in range(number):
        generator = torch.Generator().manual_seed(layer)
        W_dec = torch.randn(D_SAE, WIDTH, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        site = f"blocks.{layer}.hook_resid_pre"
        model.check_site(site)
        found[site] = gossamer.SAE(
            W_enc=W_dec.clone(),
            b_enc=torch.zeros(D_SAE),
            W_dec=W_dec,
            b_dec=torch.zeros(WIDTH),
            selection=TopK(K),
            site_in=site,
        )
    return found


def yardstick(model: Model, coders: dict[str, gossamer.SAE], ids: list[int]) -> float:
    """The spliced forward pass, and the gradient by every stream."""
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    trace = gossamer.run(model, ids, coders, record=sites)
    assert trace.logits is not None
    value = trace.logits[0, -1, 318] - trace.logits[0, -1, 290]
    torch.autograd.grad(value, [trace.activations[site] for site in sites])
    return float(value.detach())


def contenders(
    model: Model, coders: dict[str, gossamer.SAE], prompts: list[list[int]]
) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    node = "blocks.5.hook_resid_pre"
    edits = gossamer.Ablate(node, latents=list(range(D_SAE)), positions=TOKENS // 2)
    requests = [gossamer.Request(prompt=ids, target=TARGET, saes=coders) for ids in prompts]
    return {
        "forward and backward": lambda: yardstick(model, coders, prompts[0]),
        "one analysis": lambda: gossamer.analyze(model, prompts[0], TARGET, coders),
        "one analysis, edited": lambda: gossamer.analyze(model, prompts[0], TARGET, coders, edits),
        "eight, one by one": lambda: [
            gossamer.analyze(model, ids, TARGET, coders) for ids in prompts
        ],
        "eight at once": lambda: gossamer.analyze_batch(model, requests),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--saes", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Model(GPT2LMHeadModel(GPT2Config()), name="gpt2-shape")
    prompts = [torch.randint(0, 50_000, (TOKENS,)).tolist() for _ in range(AT_ONCE)]
    ways = contenders(model, saes(model, options.saes), prompts)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peak = 0
    for number in range(-1, options.rounds):
        for name in list(ways) if number % 2 else list(reversed(ways)):
            started = time.perf_counter()
            found = ways[name]()
            if number >= 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
            if name == "one analysis":
                peak = max(peak, found.peak_bytes or 0)
            del found
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = medians["forward and backward"]
    for name, median in medians.items():
        click.echo(f"{name:22} {median:7.3f} s  {median / base:5.2f}x")
    ratio = medians["eight, one by one"] / medians["eight at once"]
    click.echo(
        f"one analysis: {medians['one analysis'] / base:.2f}x (bar 2.5), {peak / 1e6:.0f} MB"
    )
    click.echo(f"eight at once: {ratio:.2f} times as fast (bar 1.3)")


if __name__ == "__main__":
    main()
