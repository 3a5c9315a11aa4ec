"""What the latents after an MLP really do when one before it is changed, beside what J predicts.

A change of latent i from f_i to v moves the activation before the MLP by (v − f_i) W_i; everything
else there, the SAE's error with it, stays. Then the MLP runs, and the SAE after it reads and
selects anew: a latent that enters or leaves its active set is a flip, to which J is blind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.jacobian.result import Jacobian, Sweep
from gossamer.saes.rows import write_rows
from gossamer.saes.sae import SAE, SparseCoder

ROWS_AT_ONCE = 1024
"""Changed activations whose dense latents are in memory at once."""

N_VALUES = 41
"""Values of a latent that a sweep tries."""

Shape = Literal["linear", "jumprelu", "other"]


class Agreement(NamedTuple):
    """How J's predictions and the measured changes compare, over some pairs."""

    pairs: int
    """How many."""

    signs: float
    """Share whose measured change has the predicted sign."""

    correlation: float
    """Of predicted and measured."""

    ratio: float
    """Σ|measured| / Σ|predicted|."""

    error: float
    """Σ|measured − predicted| / Σ|predicted|."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Every pair of active latents: what J predicts of a change, and what it does."""

    predicted: Float[Tensor, "pos k_out k_in"]
    """J times the change taken away: clean minus edited."""

    measured: Float[Tensor, "pos k_out k_in"]
    """Pre-activation in the clean run minus that with the change."""

    flips: Bool[Tensor, "pos k_in"]
    """Whether the change made any latent after the MLP enter or leave the active set."""

    exists: Bool[Tensor, "pos k_out k_in"]
    """Which entries are pairs, BOS left out."""

    def agreement(self, flipped: bool | None = None) -> Agreement:
        """Over all pairs, or those whose change flipped something, or those where it did not."""
        chosen = self.exists
        if flipped is not None:
            chosen = chosen & (self.flips == flipped)[:, None]
        p, m = self.predicted[chosen].double(), self.measured[chosen].double()
        if len(p) == 0:
            return Agreement(0, *[float("nan")] * 4)
        size = p.abs().sum()
        centred = p - p.mean(), m - m.mean()
        spread = centred[0].norm() * centred[1].norm()
        return Agreement(
            len(p),
            float((p.sign() == m.sign()).double().mean()),
            float((centred[0] @ centred[1]) / spread),
            float(m.abs().sum() / size),
            float((m - p).abs().sum() / size),
        )


@torch.no_grad()
def measure_jacobian(jacobian: Jacobian, by: float | None = None) -> Measured:
    """Change each active latent before the MLP, one at a time, and see what those after it do.

    `by` None ablates it; 0.1 adds a tenth of its value.
    """
    share = 1.0 if by is None else -by  # what is taken away, in values of the latent
    if share == 0:
        raise GossamerError("by=0 changes nothing; write None to ablate, 0.1 to add a tenth.")
    tokens, columns = (jacobian.in_indices >= 0).nonzero(as_tuple=True)
    changes = -share * jacobian.in_values[tokens, columns]
    latents = jacobian.in_indices[tokens, columns]
    measured = torch.zeros_like(jacobian.values)
    flips = torch.zeros_like(jacobian.in_indices, dtype=torch.bool)
    clean, clean_active = _read(jacobian, jacobian.point, torch.arange(len(jacobian.tokens)))
    wanted = jacobian.out_indices.clamp(min=0)
    before = clean.gather(1, wanted)
    for rows in torch.arange(len(tokens)).split(ROWS_AT_ONCE):
        at = tokens[rows]
        moved = _moved(jacobian, at, latents[rows], changes[rows])
        pre, active = _read(jacobian, moved, at)
        measured[at, :, columns[rows]] = (before[at] - pre.gather(1, wanted[at])).to(measured)
        flips[at, columns[rows]] = (active != clean_active[at]).any(1)
    exists = (jacobian.out_indices >= 0)[..., None] & (jacobian.in_indices >= 0)[:, None]
    exists = exists & jacobian.counted[:, None, None]
    predicted = share * jacobian.values * jacobian.in_values[:, None]
    return Measured(predicted, torch.where(exists, measured, 0.0), flips, exists)


@torch.no_grad()
def sweeps(
    jacobian: Jacobian,
    places: Sequence[tuple[int, int, int]] | int = 64,
    *,
    tolerance: float = 0.05,
    n_values: int = N_VALUES,
) -> list[Sweep]:
    """Take latents before the MLP from 0 to twice their values, and see how one after it answers.

    Args:
        jacobian: which pairs there are.
        places: (position, row, column) of some entries, or how many of the strongest.
        tolerance: how far an output may be from its line, as a share of the outputs' range.
        n_values: values that are tried.
    """
    if not 0 < tolerance < 1 or n_values < 5:
        raise GossamerError(
            "tolerance is a share of the range, between 0 and 1, and n_values at least 5, got "
            f"{tolerance} and {n_values}."
        )
    chosen = jacobian.strongest(places) if isinstance(places, int) else list(places)
    for place in chosen:
        _check_place(jacobian, place)
    found: dict[tuple[int, int, int], Sweep] = {}
    for position, column in dict.fromkeys((t, i) for t, _, i in chosen):
        source, value = jacobian.in_indices[position, column], jacobian.in_values[position, column]
        grid = torch.linspace(0, 2, n_values, dtype=value.dtype, device=value.device) * value
        at = torch.full((n_values,), position, device=value.device)
        moved = _moved(jacobian, at, source.expand(n_values), grid - value)
        pre, active = _read(jacobian, moved, at)
        outputs = torch.where(active, pre, 0.0)
        for row in [j for t, j, i in chosen if (t, i) == (position, column)]:
            target = int(jacobian.out_indices[position, row])
            curve = outputs[:, target].cpu()
            shape = shape_of(grid.cpu(), curve, tolerance)
            swept = Sweep(position, int(source), target, grid.cpu(), curve, shape)
            found[position, row, column] = swept
    return [found[place] for place in chosen]


def _check_place(jacobian: Jacobian, place: tuple[int, int, int]) -> None:
    """GossamerError unless there is an entry."""
    within = all(0 <= at < size for at, size in zip(place, jacobian.values.shape, strict=True))
    t, j, i = place
    if not within or jacobian.out_indices[t, j] < 0 or jacobian.in_indices[t, i] < 0:
        raise GossamerError(
            f"There is no entry at (position, row, column) = {place} of a Jacobian of shape "
            f"{tuple(jacobian.values.shape)}; take places that strongest() gives."
        )


def shape_of(
    values: Float[Tensor, " n_values"], outputs: Float[Tensor, " n_values"], tolerance: float
) -> Shape:
    """What kind of function the outputs are of the values; see `Sweep.shape`."""
    x, y = values.double(), outputs.double()
    if not torch.isfinite(y).all():
        return "other"
    rounding = 8 * torch.finfo(outputs.dtype).eps * float(y.abs().max())
    allowed = tolerance * float(y.max() - y.min()) + rounding
    if _off_the_line(x, y) <= allowed:
        return "linear"
    active = (y != 0).nonzero()[:, 0]
    first, last = int(active[0]), int(active[-1])
    in_one_piece = last - first + 1 == len(active) and (first == 0 or last == len(y) - 1)
    if in_one_piece and len(active) >= 3:
        if _off_the_line(x[first : last + 1], y[first : last + 1]) <= allowed:
            return "jumprelu"
    return "other"


def _off_the_line(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """The largest distance from the line of least squares."""
    basis = torch.stack([x, torch.ones_like(x)], 1)
    line = torch.linalg.lstsq(basis, y[:, None]).solution
    return float((basis @ line - y[:, None]).abs().max())


def _moved(
    jacobian: Jacobian,
    tokens: Int64[Tensor, " n"],
    latents: Int64[Tensor, " n"],
    changes: Float[Tensor, " n"],
) -> Float[Tensor, "n width"]:
    """The activation before the MLP after a change of one latent each."""
    sae, point = jacobian.saes[0], jacobian.point[tokens]
    x = jacobian.read_in[tokens]
    if isinstance(sae, SAE):
        return point + (changes[:, None] * write_rows(sae, latents, x)).to(point)
    clean = sae.encode(x)
    changed = clean.index_put((torch.arange(len(tokens)), latents), changes, accumulate=True)
    return point + (sae.decode(changed, x) - sae.decode(clean, x)).to(point)


def _read(
    jacobian: Jacobian, x: Float[Tensor, "n width"], tokens: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, "n d_sae"], Bool[Tensor, "n d_sae"]]:
    """Pre-activations after the MLP, and which latents are active."""
    rest = None if jacobian.rest is None else jacobian.rest[tokens]
    y = jacobian.passage.value(x, rest)
    sae: SparseCoder = jacobian.saes[1]
    if isinstance(sae, SAE):
        pre = sae.pre_activations(y)
        return pre, sae.activate(pre) != 0
    latents = sae.encode(y)
    return latents, latents != 0
