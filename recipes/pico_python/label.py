"""Say what each latent fires on: its top tokens and example contexts, into the SAE's directory.

    python recipes/pico_python/label.py --model DIRECTORY --saes DIRECTORY --out FILE.json

Rows of training text are run through the model. A token's share in a latent is Σ activation² over
the places where the latent fires on it; the top tokens are those with the largest shares. A
context is the text before one of the latent's strongest activations, at most `--width` characters,
ending with the token on which it fires, line breaks without their indentation. The same pass counts
firings, so it also says which latents are dead; these get no label.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from evaluate import GROUP, spread_rows
from jaxtyping import Float, Int
from torch import Tensor
from train_model import token_stream

import gossamer
from gossamer.corpus import split_stdlib
from gossamer.metrics import dead_fraction
from gossamer.models.model import Model
from gossamer.saes import SAE, Labels
from gossamer.saes.labels import save_labels

N_STRONGEST = 16
"""Activations of each latent from which contexts are chosen."""

MIN_SHARE = 0.1
"""A top token has at least this part of the largest share."""


@dataclass(slots=True)
class Firings:
    """What is known of one SAE's latents after some rows."""

    counts: Int[Tensor, " d_sae"]
    """Tokens on which each fired."""

    shares: Float[Tensor, "d_vocab d_sae"]
    """Σ activation² by token."""

    strongest: Float[Tensor, "n d_sae"]
    """The largest activations of each, in no order."""

    places: Int[Tensor, "n d_sae"]
    """Where these are: row · context + position."""

    @classmethod
    def none(cls, d_vocab: int, d_sae: int) -> "Firings":
        """Before the first row."""
        return cls(
            torch.zeros(d_sae, dtype=torch.long),
            torch.zeros(d_vocab, d_sae),
            torch.zeros(0, d_sae),
            torch.zeros(0, d_sae, dtype=torch.long),
        )

    def add(
        self,
        latents: Float[Tensor, "tokens d_sae"],
        tokens: Int[Tensor, " tokens"],
        first_place: int,
    ) -> None:
        """Take in consecutive places of the text."""
        self.counts += (latents > 0).sum(0)
        self.shares.index_add_(0, tokens, latents.square())
        found = latents.topk(N_STRONGEST, dim=0)
        strongest = torch.cat([self.strongest, found.values])
        places = torch.cat([self.places, found.indices + first_place])
        kept = strongest.topk(N_STRONGEST, dim=0)
        self.strongest, self.places = kept.values, places.gather(0, kept.indices)


@torch.no_grad()
def watch(model: Model, saes: dict[str, SAE], rows: Int[Tensor, "rows pos"]) -> dict[str, Firings]:
    """The firings of all SAEs on `rows`; position 0, always the same, is left out."""
    found = {site: Firings.none(model.d_vocab, sae.d_sae) for site, sae in saes.items()}
    width = rows.shape[1]
    for first in range(0, len(rows), GROUP):
        group = rows[first : first + GROUP]
        trace = gossamer.run(model, group.tolist(), record=list(saes), logits=False)
        for site, sae in saes.items():
            latents = sae.encode(trace.activations[site])  # (batch, pos, d_sae)
            latents[:, 0] = 0
            found[site].add(latents.flatten(0, 1), group.flatten(), first * width)
    return found


def top_tokens(firings: Firings, strings: list[str], n: int) -> list[tuple[str, ...]]:
    """For each latent up to `n` tokens, the largest share first."""
    largest = firings.shares.topk(n, dim=0)
    shares = largest.values.T.tolist()
    indices = largest.indices.T.tolist()
    return [
        tuple(
            strings[token]
            for token, share in zip(tokens, values, strict=True)
            if share > 0 and share >= MIN_SHARE * values[0]
        )
        for tokens, values in zip(indices, shares, strict=True)
    ]


def context(row: list[str], position: int, width: int) -> str:
    """Whole tokens of a row that end at `position`, as many as fit in `width` characters."""
    text = row[position]
    for token in reversed(row[1:position]):
        if len(token) + len(text) > width:
            break
        text = token + text
    return text


def contexts(firings: Firings, rows: list[list[str]], n: int, width: int) -> list[tuple[str, ...]]:
    """For each latent up to `n` different contexts, the strongest activation first."""
    order = firings.strongest.argsort(dim=0, descending=True, stable=True)
    strongest = firings.strongest.gather(0, order).T.tolist()
    places = firings.places.gather(0, order).T.tolist()
    chosen: list[tuple[str, ...]] = []
    for values, where in zip(strongest, places, strict=True):
        texts = [
            context(rows[place // len(rows[0])], place % len(rows[0]), width)
            for value, place in zip(values, where, strict=True)
            if value > 0
        ]
        chosen.append(tuple(dict.fromkeys(texts))[:n])
    return chosen


@click.command()
@click.option("--model", "model_path", type=click.Path(exists=True), required=True)
@click.option("--saes", "saes_path", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--rows", "n_rows", default=2048, show_default=True, help="Training rows of 512.")
@click.option("--tokens", "n_tokens", default=4, show_default=True, help="Top tokens per latent.")
@click.option("--contexts", "n_contexts", default=1, show_default=True, help="Per latent.")
@click.option("--width", default=18, show_default=True, help="Longest context, in characters.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON of the counts.")
def main(model_path: str, saes_path: Path, out: Path, **options: int) -> None:
    """Write labels.json.gz beside every SAE, and the share of dead latents as JSON."""
    model = gossamer.load_model(model_path)
    saes = {s: sae for s, sae in gossamer.load_saes(saes_path).items() if isinstance(sae, SAE)}
    rows = spread_rows(token_stream(split_stdlib()[0], model.tokenizer), options["n_rows"])
    strings = [model.tokenizer.decode([token]) for token in range(model.d_vocab)]
    unindented = [re.sub(r"\s*\n\s*", "\n", string) for string in strings]
    row_strings = [[unindented[token] for token in row] for row in rows.tolist()]
    dead: dict[str, float] = {}
    for site, firings in watch(model, saes, rows).items():
        labels = Labels(
            tuple(top_tokens(firings, strings, options["n_tokens"])),
            tuple(contexts(firings, row_strings, options["n_contexts"], options["width"])),
        )
        save_labels(labels, saes_path / site)
        dead[site] = dead_fraction(firings.counts)
        click.echo(f"{site}: {dead[site]:.2%} of latents dead over {rows.numel():,} tokens")
    result = {"tokens": rows.numel(), "dead_fraction": dead}
    out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
