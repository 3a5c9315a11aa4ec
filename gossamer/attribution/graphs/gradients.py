"""Gradients of a batch of targets at one place of a run, targets sorted by position.

Right after they are read, each target has a gradient at its own position only; a tensor over all
positions is made when attention first spreads them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Gradient:
    """∂ reads / ∂ value at a place, for each target of a batch."""

    values: Float[Tensor, "*shape batch width"]
    """(batch, width) each at its own position, or (pos, batch, width) everywhere."""

    positions: Int64[Tensor, " batch"]
    """Each target's own position, ascending."""

    @property
    def is_sparse(self) -> bool:
        """Whether it is 0 but at the targets' own positions."""
        return self.values.ndim == 2

    def dense(self) -> Float[Tensor, "pos batch width"]:
        """Over all positions up to the last target's."""
        if not self.is_sparse:
            return self.values
        n = int(self.positions[-1]) + 1
        out = self.values.new_zeros(n, *self.values.shape)
        out[self.positions, torch.arange(len(self.positions), device=out.device)] = self.values
        return out

    def like(self, values: Tensor) -> "Gradient":
        """The same targets with other values."""
        return Gradient(values, self.positions)


def plus(a: Gradient | None, b: Gradient | None) -> Gradient | None:
    """The sum, as a tensor of its own; None stands for 0."""
    if a is None or b is None:
        return a if b is None else b
    if a.is_sparse == b.is_sparse:
        return a.like(a.values + b.values)
    sparse, whole = (a, b) if a.is_sparse else (b, a)
    return added(whole.like(whole.values.clone()), sparse)


def added(fresh: Gradient | None, other: Gradient | None) -> Gradient | None:
    """The sum, in the memory of `fresh`, which nobody else holds and is as dense as `other`."""
    if fresh is None or other is None:
        return other if fresh is None else fresh
    if other.is_sparse and not fresh.is_sparse:
        each = torch.arange(len(other.positions), device=other.values.device)
        fresh.values[other.positions, each] += other.values
    else:
        fresh.values.add_(other.values)
    return fresh
