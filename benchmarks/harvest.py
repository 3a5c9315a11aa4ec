"""Harvest beside a Hugging Face forward that ends at the same block, over the same blocks.

    python benchmarks/harvest.py --layer 6 --rounds 5

A model of GPT-2-small's shape with random weights, float32. The yardstick is transformers' own
model cut off after that many blocks, in inference mode, its output thrown away; the harvest runs
the whole model's front part, stores shards with their hashes and writes the manifest. The two go by
turns; ratio = yardstick / harvest, so 1 means that storing costs nothing.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from gossamer.activations import harvest
from gossamer.models.model import Model


@click.command()
@click.option("--layer", default=6, show_default=True, help="The site is its hook_resid_pre.")
@click.option("--tokens", default=32_768, show_default=True)
@click.option("--context", default=256, show_default=True)
@click.option("--batch", default=16, show_default=True, help="Blocks at once.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(layer: int, tokens: int, context: int, **options: Any) -> None:
    """Print both times of every round, and the median ratio."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    whole: Any = GPT2LMHeadModel(GPT2Config()).eval()
    cut: Any = GPT2Model(GPT2Config(n_layer=layer)).eval()
    cut.load_state_dict(whole.transformer.state_dict(), strict=False)
    model = Model(whole, name="gpt2-small-shape")
    ids = torch.randint(50257, (tokens // context, context))

    def forward() -> None:
        with torch.inference_mode():
            for rows in ids.split(options["batch"]):
                cut(rows, use_cache=False)

    def store() -> None:
        with tempfile.TemporaryDirectory() as folder:
            harvest(
                model,
                ids,
                sites=[f"blocks.{layer}.hook_resid_pre"],
                directory=Path(folder) / "acts",
                n_tokens=ids.numel(),
                context=context,
                batch=options["batch"],
            )

    ratios = []
    for number in range(options["rounds"] + 1):
        seconds = {}
        for call in (forward, store) if number % 2 else (store, forward):
            start = time.perf_counter()
            call()
            seconds[call.__name__] = time.perf_counter() - start
        if number == 0:
            continue  # to warm up
        ratios.append(seconds["forward"] / seconds["store"])
        click.echo(
            f"forward {seconds['forward']:.2f} s, harvest {seconds['store']:.2f} s "
            f"({ids.numel() / seconds['store']:,.0f} tokens/s), ratio {ratios[-1]:.3f}"
        )
    click.echo(f"median ratio {statistics.median(ratios):.3f} (bar 0.95)")


if __name__ == "__main__":
    main()
