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
from gossamer.graph.rows import Row


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
    columns: Columns, chosen: Bool[np.ndarray, " n_nodes"], rows_at_once: int
) -> Iterator[Batch]:
    """The chosen nodes' batches, the last place first; targets × positions ≤ `rows_at_once`."""
    for targets in sorted(columns.targets, key=lambda each: each.place, reverse=True):
        mine = torch.from_numpy(chosen[targets.columns.cpu().numpy()])
        some = mine.nonzero()[:, 0].to(targets.columns.device)
        positions = targets.positions[some].tolist()
        start = 0
        for i in range(1, len(positions) + 1):
            full = i < len(positions) and (i + 1 - start) * (positions[i] + 1) > rows_at_once
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
    dense = block.cpu().numpy()
    rows = []
    for i, target in enumerate(targets.columns[some].tolist()):
        sources = np.flatnonzero(dense[i])
        rows.append(Row(target, sources.astype(np.int32), dense[i, sources]))
    return rows


def _contract(gradient: Gradient, sources: Sources, block: Float[Tensor, "batch n_nodes"]) -> None:
    """Add what the sources at one place give to each target."""
    targets = _by_position(gradient) if gradient.is_sparse else None
    n = len(gradient.values)
    for (position, mine), columns in zip(sources.by_position, sources.columns, strict=True):
        if targets is None:
            if position >= n:
                return
            block[:, columns].addmm_(gradient.values[position], sources.rows[mine].T)
        elif position in targets:  # each target reads its own position alone
            some = targets[position]
            block[some, columns].addmm_(gradient.values[some], sources.rows[mine].T)


def _by_position(gradient: Gradient) -> dict[int, slice]:
    """Where the targets of each position stand."""
    positions, counts = gradient.positions.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    pairs = zip(positions.tolist(), ends, counts.tolist(), strict=True)
    return {position: slice(end - count, end) for position, end, count in pairs}
