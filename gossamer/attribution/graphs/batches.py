"""Rows of a graph, a batch of targets at a time.

A batch is read at one place and sorted by position; it is pulled back through its cone, and what
comes back at a place is multiplied with what the nodes there write, position by position, so that
neither a (pos, d_sae) tensor nor a gathered (n_sources, d_model) one is made for each target.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.attribution.graphs.columns import Columns, Sources, Targets
from gossamer.attribution.graphs.gradients import Gradient
from gossamer.attribution.graphs.walk import Engine, pulled_back
from gossamer.errors import GossamerError
from gossamer.graph.rows import Row


class AtOnce(NamedTuple):
    """How large a batch may be."""

    rows: int
    """Most targets × positions."""

    targets: int
    """Most targets."""


class Batch(NamedTuple):
    """Targets that are pulled back together."""

    targets: Targets
    """Of these."""

    some: Int64[Tensor, " batch"]
    """These, sorted by position."""

    n_positions: int
    """Positions of their cone."""

    @property
    def cost(self) -> int:
        """Rows of matrix products, in all blocks together."""
        return len(self.some) * self.n_positions * (self.targets.place.layer + 1)


def batches(
    columns: Columns, chosen: Bool[np.ndarray, " n_nodes"], at_once: AtOnce
) -> Iterator[Batch]:
    """The chosen nodes' batches, the last place first; one target at least."""
    for targets in sorted(columns.targets, key=lambda each: each.place, reverse=True):
        mine = torch.from_numpy(chosen[targets.columns.cpu().numpy()])
        some = mine.nonzero()[:, 0].to(targets.columns.device)
        positions = targets.positions[some].tolist()
        start = 0
        for i in range(1, len(positions) + 1):
            full = i - start == at_once.targets
            if i < len(positions):
                full |= (i + 1 - start) * (positions[i] + 1) > at_once.rows
            if i == len(positions) or full:
                yield Batch(targets, some[start:i], positions[i - 1] + 1)
                start = i


def rows_of(engines: Sequence[Engine], columns: Columns, batch: Batch) -> list[Row]:
    """The edges into each target of a batch, mean over the engines; those that are 0 left out."""
    targets, some = batch.targets, batch.some
    read = targets.read(some)
    positions = targets.positions[some]
    block = read.new_zeros(len(some), columns.n_before(targets.place))
    for engine in engines:
        gradient = Gradient(read.to(engine.run.model.dtype), positions)
        for place, back in pulled_back(engine, targets.place, gradient):
            if place in columns.sources:
                _contract(back, columns.sources[place], block)
    if len(engines) > 1:
        block /= len(engines)
    if not block.isfinite().all():
        raise GossamerError(
            f"Edges into nodes read at layer {targets.place.layer} are not finite; check the SAEs' "
            "weights, or load model and SAEs in a wider dtype."
        )
    dense = (block if block.element_size() >= 4 else block.float()).cpu().numpy()
    rows = []
    for i, target in enumerate(targets.columns[some].tolist()):
        sources = np.flatnonzero(dense[i])
        rows.append(Row(target, sources.astype(np.int32), dense[i, sources]))
    return rows


def _contract(gradient: Gradient, sources: Sources, block: Float[Tensor, "batch n_nodes"]) -> None:
    """Add what the sources at one place give to each target."""
    if gradient.is_sparse:
        _contract_at_one(gradient, sources, block)
        return
    n = min(len(gradient.values), len(sources.rows))
    read = torch.bmm(gradient.values[:n], sources.rows[:n].transpose(1, 2))  # (pos, batch, most)
    there = sources.ends[n - 1]
    flat = read.transpose(0, 1).flatten(1).index_select(1, sources.filled[:there])
    block.index_add_(1, sources.columns[:there], flat)
    for position, columns, rows in sources.crowds:
        if position < n:
            block.index_add_(1, columns, gradient.values[position] @ rows.T)


def _contract_at_one(
    gradient: Gradient, sources: Sources, block: Float[Tensor, "batch n_nodes"]
) -> None:
    """The same where each target reads its own position alone."""
    positions, counts = gradient.positions.unique_consecutive(return_counts=True)
    crowds = {crowd.position: crowd for crowd in sources.crowds}
    end = 0
    for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
        mine, targets = gradient.values[end : end + count], block[end : end + count]
        end += count
        if position >= len(sources.ends):
            return
        first = sources.ends[position - 1] if position else 0
        columns = sources.columns[first : sources.ends[position]]
        targets.index_add_(1, columns, mine @ sources.rows[position, : len(columns)].T)
        if position in crowds:
            crowd = crowds[position]
            targets.index_add_(1, crowd.columns, mine @ crowd.rows.T)
