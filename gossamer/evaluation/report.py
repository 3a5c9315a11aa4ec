"""The report card of an SAE, and several of them with what they were measured on."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.evaluation.weights import RoundTrip
from gossamer.metrics import density_histogram
from gossamer.saes.native import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One SAE in its model; `docs/metrics.md` defines every number.

    None: the number is not defined there, a ratio whose denominator is 0 for example.
    """

    site_in: str
    """The site it reads."""

    site_out: str
    """The site it writes, where everything is scored."""

    mse: float
    """E‖y - ŷ‖², summed over dimensions; squared activations."""

    mse_per_dim: float
    """mse / d_out."""

    fvu: float
    """Fraction of variance unexplained over all tokens."""

    explained_variance: float
    """1 - fvu."""

    cosine: float
    """E cos(y, ŷ)."""

    l2_ratio: float
    """E ‖ŷ‖ / ‖y‖."""

    error_ratio: float
    """E ‖y - ŷ‖ / ‖y‖."""

    reconstruction_bias: float | None
    """E‖ŷ‖² / E⟨y, ŷ⟩; below 1 is shrinkage."""

    l0: float
    """Active latents per token."""

    l1: float
    """Σ|a| per token."""

    dead_fraction: float
    """Share of latents that were not active on any of these tokens."""

    ce_clean: float
    """Mean next-token loss of the model as it is, nats."""

    ce_patched: float
    """The same with ŷ in place of y, the error dropped."""

    ce_zero_ablated: float
    """The same with 0 in place of y."""

    ce_mean_ablated: float
    """The same with the mean of y over these tokens in place of y."""

    ce_increase: float
    """ce_patched - ce_clean."""

    ce_recovered_zero: float | None
    """Share of what zero ablation costs that the SAE keeps."""

    ce_recovered_mean: float | None
    """Share of what mean ablation costs that the SAE keeps."""

    kl: float
    """E KL(clean ‖ patched), nats."""

    kl_zero_ablated: float
    """E KL(clean ‖ zero ablated), nats."""

    kl_mean_ablated: float
    """E KL(clean ‖ mean ablated), nats."""

    top1_agreement: float
    """Share of places where clean and patched have the same most likely next token."""

    firings: Int64[Tensor, " d_sae"]
    """Tokens on which each latent was active."""

    by_position: Mapping[str, Float[Tensor, " context"]]
    """tokens, mse, l0, predicted, ce_clean, ce_patched, kl at each position; nan for none."""

    linear_round_trip: RoundTrip | None
    """One-hot latents through decoder and encoder, without biases and selection."""

    active_round_trip: RoundTrip | None
    """The same with biases and selection."""

    neighbours: Int64[Tensor, " d_sae"] | None
    """The latent whose decoder row is nearest to each one's."""

    neighbour_cosines: Float[Tensor, " d_sae"] | None
    """Their cosines."""

    logits: tuple[Tensor, Tensor, Tensor, Tensor] | None
    """Values and tokens of the largest and of the smallest logit effects, each (d_sae, n)."""

    def numbers(self) -> dict[str, float | None]:
        """The single numbers, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.type in _NUMBER}


_NUMBER = (float, float | None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NextTokens:
    """The most likely next tokens after a prompt, with and without an SAE."""

    prompt: str
    """The text."""

    site_out: str
    """Of the SAE that was spliced in, its error dropped."""

    clean: tuple[tuple[str, float], ...]
    """(token, probability) of the model as it is, most likely first."""

    patched: tuple[tuple[str, float], ...]
    """The same with the SAE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The cards of some SAEs, by the site each writes: `report["blocks.2.hook_resid_pre"].fvu`."""

    cards: Mapping[str, Card]
    """By site."""

    about: Mapping[str, Any]
    """Model, corpus, number of tokens and of predicted tokens, context: what to say beside it."""

    next_tokens: tuple[NextTokens, ...] = ()
    """For the prompts that were given."""

    tokens: Mapping[int, str] = field(default_factory=dict)
    """The tokens named in the cards' logit effects, as text."""

    def __getitem__(self, site: str) -> Card:
        return self.cards[site]

    def to_dict(self, *, latents: bool = True) -> dict[str, Any]:
        """Plain values. `latents=False` leaves out what has a number for each latent."""
        return {
            **self.about,
            "saes": {site: _plain(card, latents=latents) for site, card in self.cards.items()},
            "next_tokens": [
                {name: getattr(each, name) for name in ("prompt", "site_out", "clean", "patched")}
                for each in self.next_tokens
            ],
            **({"tokens": dict(self.tokens)} if latents else {}),
        }

    def to_json(self, path: str | os.PathLike[str], *, latents: bool = True) -> Path:
        """Write `to_dict` as JSON, in one move."""
        text = json.dumps(self.to_dict(latents=latents), allow_nan=False)
        write_text(text + "\n", Path(path))
        return Path(path)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        labels: Mapping[str, Any] = {},
        excerpts: Mapping[str, Mapping[int, Sequence[str]]] = {},
    ) -> Path:
        """Write the cards as one page that opens offline; `labels` by site name the latents, and
        `excerpts`, such as a dashboard's, are shown under the pointer."""
        from gossamer.views.cards import cards_to_html

        names = {
            site: [labels[site][i] for i in range(len(labels[site]))]
            for site in self.cards
            if labels.get(site) is not None
        }
        return cards_to_html(self.to_dict(), path, labels=names, excerpts=excerpts)


def _plain(card: Card, *, latents: bool) -> dict[str, Any]:
    counts, never = density_histogram(_densities(card))
    found: dict[str, Any] = {
        "site_in": card.site_in,
        "d_sae": len(card.firings),
        **card.numbers(),
        "density_histogram": {
            "first": -9,
            "width": 0.25,
            "counts": counts.tolist(),
            "never": never,
        },
        "by_position": {name: _finite(values) for name, values in card.by_position.items()},
    }
    for name in ("linear_round_trip", "active_round_trip"):
        trip = getattr(card, name)
        found[name] = None if trip is None else summary(trip)
    if card.neighbour_cosines is not None:
        found["neighbour_cosine"] = _quantiles(card.neighbour_cosines)
    if latents:
        found["latents"] = _columns(card)
    return found


def _densities(card: Card) -> Tensor:
    return card.firings.double() / card.by_position["tokens"].sum()


def summary(trip: RoundTrip) -> dict[str, dict[str, float | None]]:
    """Mean, median and fifth percentile of each ratio, and how many are above 1.

    Over the latents where the ratio is a number; `undefined` counts the others.
    """
    found = {}
    for name, ratios in trip._asdict().items():
        known = ratios[~ratios.isnan()]
        found[name] = {
            **_quantiles(known),
            "mean": known[known.isfinite()].mean().item() if known.isfinite().any() else None,
            "above_1": (known > 1).double().mean().item() if len(known) else None,
            "undefined": float(len(ratios) - len(known)),
        }
    return found


def _quantiles(values: Tensor) -> dict[str, float | None]:
    if len(values) == 0:
        return {"median": None, "p5": None, "p95": None}
    ordered = values.double().sort().values
    places = {"median": 0.5, "p5": 0.05, "p95": 0.95}
    at = {name: ordered[round(q * (len(ordered) - 1))].item() for name, q in places.items()}
    return {name: value if math.isfinite(value) else None for name, value in at.items()}


def _columns(card: Card) -> dict[str, Any]:
    """Everything that has a number for each latent."""
    columns: dict[str, Any] = {
        "firings": card.firings.tolist(),
        "density": _finite(_densities(card)),
    }
    for name in ("linear_round_trip", "active_round_trip"):
        trip = getattr(card, name)
        if trip is not None:
            columns |= {f"{name}_{k}": _finite(v) for k, v in trip._asdict().items()}
    if card.neighbours is not None and card.neighbour_cosines is not None:
        columns["neighbour"] = card.neighbours.tolist()
        columns["neighbour_cosine"] = _finite(card.neighbour_cosines)
    if card.logits is not None:
        names = ("top_values", "top_tokens", "bottom_values", "bottom_tokens")
        for name, values in zip(names, card.logits, strict=True):
            columns[f"logits_{name}"] = _rounded(values)
    return columns


def _rounded(values: Tensor) -> list[Any]:
    if not values.is_floating_point():
        return values.tolist()
    return [[float(f"{v:.5g}") for v in row] for row in values.tolist()]


def _finite(values: Tensor) -> list[float | None]:
    """Numbers, with None for what is none."""
    if not values.is_floating_point():
        return values.tolist()
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]


def share(part: float, whole: float) -> float | None:
    """part / whole; None where whole is 0."""
    return part / whole if whole else None


def at_positions(sums: Float[Tensor, "context n"], names: tuple[str, ...]) -> dict[str, Tensor]:
    """How many (the first column), and means by position of what was summed."""
    counts = sums[:, 0].cpu()
    means = [torch.where(counts > 0, c / counts, math.nan) for c in sums[:, 1:].cpu().T]
    return dict(zip(names, (counts, *means), strict=True))
