"""Measure the model and its SAEs on held-out files, as they are shipped.

    python recipes/pico_python/evaluate.py --model DIRECTORY --saes DIRECTORY --out FILE.json

The model: bits per byte of all held-out files, beside `xz -9` of the same bytes in one piece. The
SAEs and transcoders: what `gossamer evaluate --context 512 --tokens 131072` says of them. The
Jacobian pair: besides, what `gossamer jacobian --layer 0 --corpus stdlib --tokens 131072` counts,
and both for the same pair trained without its Jacobian.
"""

import json
import lzma
from pathlib import Path
from typing import Any

import click
import torch
from train_model import bits_per_byte
from train_saes import LAYER

import gossamer
from gossamer.corpus import SourceFile, split_stdlib
from gossamer.models.model import Model

SETS = ("resid", "transcoders", "jacobian")
"""Folders of SAEs; the last is a pair, evaluated as such."""


def evaluate_model(model: Model, held_out: list[SourceFile]) -> dict[str, Any]:
    """Bits per byte of the model, and of xz on all files in one piece."""
    contents = "".join(file.text for file in held_out).encode()
    return {
        "held_out_files": len(held_out),
        "held_out_bytes": len(contents),
        "bits_per_byte": bits_per_byte(model.language_model, model.tokenizer, held_out),
        "bits_per_byte_xz": 8 * len(lzma.compress(contents, preset=9)) / len(contents),
    }


def evaluate_pair(model: Model, directory: Path, n_tokens: int) -> dict[str, Any]:
    """Report cards of a Jacobian pair, and how sparse its Jacobian is over the same text."""
    saes = gossamer.load_saes(directory)
    before, after = (saes[f"blocks.{LAYER}.{kind}"] for kind in ("mlp.hook_in", "hook_mlp_out"))
    report = gossamer.jacobian_over(model, LAYER, before, after, n_tokens=n_tokens, context=512)
    cards = gossamer.evaluate(model, saes, "stdlib", n_tokens=n_tokens, context=512).cards
    return {
        "saes": {site: card.numbers() for site, card in cards.items()},
        "density": [each._asdict() for each in report.density],
        "mean_size": report.mean_size,
    }


@click.command()
@click.option("--model", "model_path", type=click.Path(exists=True), required=True)
@click.option("--saes", "saes_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--plain", type=click.Path(exists=True, path_type=Path), required=True,
              help="The Jacobian pair trained without its Jacobian.")  # fmt: skip
@click.option("--tokens", "n_tokens", default=131_072, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(model_path: str, saes_path: Path, out: Path, **options: Any) -> None:
    """Print the numbers, and write them as JSON."""
    model, n_tokens = gossamer.load_model(model_path), options["n_tokens"]
    with torch.no_grad():
        of_model = evaluate_model(model, split_stdlib()[1])
    click.echo(json.dumps(of_model))
    result: dict[str, Any] = {"model": of_model, "saes": {}}
    for name in SETS[:-1]:
        saes = gossamer.load_saes(saes_path / name)
        report = gossamer.evaluate(model, saes, "stdlib", n_tokens=n_tokens, context=512)
        result |= {"n_tokens": report.about["n_tokens"]}
        result["saes"][name] = {site: card.numbers() for site, card in report.cards.items()}
        for site, card in report.cards.items():
            click.echo(f"{site}: {json.dumps(card.numbers())}")
    pairs = {"jacobian": saes_path / "jacobian", "plain": options["plain"]}
    result["pairs"] = {name: evaluate_pair(model, each, n_tokens) for name, each in pairs.items()}
    result["saes"]["jacobian"] = result["pairs"]["jacobian"]["saes"]
    click.echo(json.dumps(result["pairs"]))
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
