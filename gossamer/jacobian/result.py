"""A Jacobian of one prompt: the entries between active latents, token by token; readings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.jacobian.passage import Passage
from gossamer.saes.sae import SparseCoder
from gossamer.views.jacobian import jacobian_to_html

THRESHOLDS = (0.005, 0.01, 0.015, 0.02)
"""Sizes above which entries are counted, as the Jacobian SAEs' authors do (arXiv 2502.18147)."""


N_LISTED = 40
"""Pairs in the page's list."""

COUNTED_ABOVE = 0.01
"""Size from which the page counts the entries of a token."""


class Above(NamedTuple):
    """How many entries matter."""

    threshold: float
    """Size in comparable units; see `Jacobian.comparable`."""

    entries: float
    """Entries above it, a mean over tokens."""

    share: float
    """Of all entries there are."""


class Entry(NamedTuple):
    """One entry."""

    source: str
    """Node id of the latent before the MLP."""

    target: str
    """Node id of the latent after it."""

    source_label: str
    """What that fires on."""

    target_label: str
    """What this fires on."""

    token: str
    """The token at their position."""

    value: float
    """∂ target / ∂ source."""

    attribution: float
    """That times the source's activation."""


class Sweep(NamedTuple):
    """One pair, the latent before the MLP taken through its values; `gossamer.sweeps` makes it."""

    position: int
    """Where."""

    source: int
    """Latent before the MLP."""

    target: int
    """Latent after it."""

    values: Float[Tensor, " n_values"]
    """Values of the source, from 0 to twice its own."""

    outputs: Float[Tensor, " n_values"]
    """The target's activation at each, by its SAE's own rule."""

    shape: str
    """linear: one line; jumprelu: 0, and beyond some value one line; other."""


@dataclass(frozen=True, slots=True)
class Jacobian:
    """∂ (latents after an MLP) / ∂ (latents before it) at each position of a prompt.

    Entries exist for active latents alone; every other derivative is exactly 0, while the active
    sets stay what they are.
    """

    values: Float[Tensor, "pos k_out k_in"]
    """The entries; 0 where a token has fewer active latents."""

    out_indices: Int64[Tensor, "pos k_out"]
    """Latents after the MLP, the rows; −1 where there is none."""

    in_indices: Int64[Tensor, "pos k_in"]
    """Latents before it, the columns; −1 where there is none."""

    out_values: Float[Tensor, "pos k_out"]
    """Their activations."""

    in_values: Float[Tensor, "pos k_in"]
    """Theirs."""

    out_units: Float[Tensor, "pos k_out"]
    """What brings an activation after the MLP to comparable units."""

    in_units: Float[Tensor, "pos k_in"]
    """What brings one before it there."""

    tokens: tuple[str, ...]
    """The prompt, token by token."""

    token_ids: tuple[int, ...]
    """Its ids, BOS included."""

    counted: Bool[Tensor, " pos"]
    """False at BOS, which means over tokens leave out."""

    at: str
    """Where the MLP was evaluated."""

    method: str
    """How the entries were computed."""

    bound: float
    """What hidden units that were left out can add to an entry; 0 unless `skip_below` was given."""

    passage: Passage
    """From one site to the other."""

    saes: tuple[SparseCoder, SparseCoder]
    """The SAE before the MLP and the one after it."""

    read_in: Float[Tensor, "pos d_in"]
    """What the SAE before the MLP read."""

    point: Float[Tensor, "pos width"]
    """The activation before the MLP at which this is the derivative."""

    rest: Float[Tensor, "pos d_model"] | None
    """What else is in the residual stream after it, where that counts."""

    @property
    def comparable(self) -> Float[Tensor, "pos k_out k_in"]:
        """The entries for decoder rows of norm 1 and activations of mean square 1 at both sites.

        In these units Jacobians of different layers and models can be compared.
        """
        return comparable(self.values, self.out_units, self.in_units)

    def density(self, thresholds: Sequence[float] = THRESHOLDS) -> list[Above]:
        """How many entries are above each threshold, over the tokens that count."""
        sizes = self.comparable[self.counted].abs()
        n_tokens, n_entries = int(self.counted.sum()), int(self._exists()[self.counted].sum())
        return [
            Above(float(t), n / max(n_tokens, 1), n / max(n_entries, 1))
            for t in thresholds
            for n in [int((sizes > t).sum())]
        ]

    def above(self, threshold: float) -> Int64[Tensor, " pos"]:
        """How many entries of each token are above a threshold."""
        return (self.comparable.abs() > threshold).sum((1, 2))

    def strongest(self, n: int = 20) -> list[tuple[int, int, int]]:
        """(position, row, column) of the n entries of largest |attribution|, strongest first; BOS
        left out."""
        if n < 0:
            raise GossamerError(f"n is how many entries to give, got {n}; give 0 or more.")
        sizes = (self.values * self.in_values[:, None]).abs()
        sizes = torch.where(self._exists() & self.counted[:, None, None], sizes, -1.0)
        order = sizes.flatten().argsort(descending=True, stable=True)[:n]
        order = order[sizes.flatten()[order] >= 0]
        places = torch.unravel_index(order, sizes.shape)
        return [(int(t), int(j), int(i)) for t, j, i in zip(*places, strict=True)]

    def top(self, n: int = 20) -> list[Entry]:
        """The n entries of largest |attribution|."""
        return [self.entry(*place) for place in self.strongest(n)]

    def entry(self, position: int, row: int, column: int) -> Entry:
        """One entry, named."""
        target, source = (
            int(self.out_indices[position, row]),
            int(self.in_indices[position, column]),
        )
        value = float(self.values[position, row, column])
        before, after = self.saes
        return Entry(
            f"{before.site_out}/{source}@{position}",
            f"{after.site_out}/{target}@{position}",
            _label(before, source),
            _label(after, target),
            self.tokens[position],
            value,
            value * float(self.in_values[position, column]),
        )

    def to_dense(self, position: int) -> Float[Tensor, "d_out d_in"]:
        """All latents after the MLP by all before it, at one position."""
        sizes = [_n_latents(sae, self) for sae in reversed(self.saes)]
        dense = self.values.new_zeros(sizes[0], sizes[1])
        rows, columns = self.out_indices[position], self.in_indices[position]
        has = self._exists()[position]
        j, i = has.nonzero(as_tuple=True)
        dense[rows[j], columns[i]] = self.values[position][has]
        return dense

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        sweeps: Sequence[Sweep] = (),
        tolerance: float = 0.05,
    ) -> Path:
        """A page that opens offline: the block of each token, the strongest pairs, how sparse and,
        with what `gossamer.sweeps(jacobian)` gave within a tolerance, how linear."""
        places = self.strongest(N_LISTED)
        before, after = self.saes
        arrays = {
            "values": self.values,
            "comparable": self.comparable,
            "out_indices": self.out_indices,
            "in_indices": self.in_indices,
            "out_values": self.out_values,
            "in_values": self.in_values,
            "sweep_values": _stacked([sweep.values for sweep in sweeps]),
            "sweep_outputs": _stacked([sweep.outputs for sweep in sweeps]),
        }
        about = {
            "title": f"{self.passage.site_in} → {self.passage.site_out}",
            "note": self.note(),
            "tokens": list(self.tokens),
            "in_site": before.site_out,
            "out_site": after.site_out,
            "labels": {
                "in": _labels(before, self.in_indices),
                "out": _labels(after, self.out_indices),
            },
            "density": [list(each) for each in self.density()],
            "above": self.above(COUNTED_ABOVE).tolist(),
            "counted_above": COUNTED_ABOVE,
            "position": places[0][0] if places else 0,
            "strongest": [
                {**self.entry(*place)._asdict(), "place": list(place)} for place in places
            ],
            "sweeps": [
                {"position": s.position, "source": s.source, "target": s.target, "shape": s.shape}
                for s in sweeps
            ],
            "tolerance": tolerance,
        }
        numbers = {name: _numbers(value) for name, value in arrays.items()}
        return jacobian_to_html(numbers, about, path)

    def note(self) -> str:
        """How the numbers were made, in a sentence or two."""
        where = "its true input" if self.at == "input" else "what the first SAE makes of its input"
        parts = [
            f"Derivatives of latents by latents through one MLP, at {where}; active sets held."
        ]
        if self.passage.hold_norms:
            parts.append("Scales of norms held.")
        if self.passage.skip:
            parts.append("The way past the MLP counts.")
        if self.bound:
            parts.append(f"Small slopes left out: an entry can be off by {self.bound:.3g}.")
        return " ".join(parts)

    def _exists(self) -> Bool[Tensor, "pos k_out k_in"]:
        return (self.out_indices >= 0)[..., None] & (self.in_indices >= 0)[:, None]


def comparable(
    values: Float[Tensor, "n k_out k_in"],
    out_units: Float[Tensor, "n k_out"],
    in_units: Float[Tensor, "n k_in"],
) -> Float[Tensor, "n k_out k_in"]:
    """Entries in comparable units; 0 for a latent that writes nothing."""
    return values * out_units[..., None] / torch.where(in_units > 0, in_units, torch.inf)[:, None]


def _label(sae: SparseCoder, latent: int) -> str:
    labels: Any = getattr(sae, "labels", None)
    return labels[latent] if labels else ""


def _n_latents(sae: SparseCoder, jacobian: Jacobian) -> int:
    known = getattr(sae, "d_sae", None)
    if known is not None:
        return known
    width = jacobian.point.shape[1]
    return sae.encode(jacobian.point.new_zeros(1, width)).shape[-1]


def _labels(sae: SparseCoder, indices: Int64[Tensor, "pos k"]) -> dict[str, str]:
    """Of the latents that occur, by number."""
    found = {int(i): _label(sae, int(i)) for i in indices[indices >= 0].unique()}
    return {str(i): label for i, label in found.items() if label}


def _stacked(tensors: list[Tensor]) -> Float[Tensor, "n n_values"]:
    return torch.stack(tensors) if tensors else torch.zeros(0, 0)


def _numbers(tensor: Shaped[Tensor, "..."]) -> np.ndarray:
    """As numpy, which has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
