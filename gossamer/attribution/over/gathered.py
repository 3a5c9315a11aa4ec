"""Edges gathered and added up as they come: rows of a few million edges, then runs of sums, in
memory up to a limit and in files beyond.

For each pair of SAEs the rows are sorted by target latent, 1/k of the work of sorting edges, and
some targets at a time are counted in an array of (targets at hand × latents of the source SAE), or
sorted where that array would be mostly empty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from gossamer.attribution.over.found import Found
from gossamer.attribution.over.sums import BYTES, Run, Sums, merged_runs, of_edges, on_grid

EDGES_AT_ONCE = 1 << 20
"""Edges that are added up together, about."""

KEPT_EDGES = 1 << 25
"""Edges that wait to be added up, at most about; 4 bytes each, or 8 in float64."""

ROWS_AT_ONCE = 1 << 20
"""Rows of sums that are merged together."""

Pair = tuple[str, str]
"""(site of the targets, site of the sources)."""


class LeftOut(NamedTuple):
    """Edges that are not in a table because they are small."""

    n_edges: int
    """How many."""

    size: float
    """Σ |A| over them."""


class _Rows(NamedTuple):
    """Rows that wait."""

    keys: Int64[np.ndarray, " n"]
    activations: Float[np.ndarray, " n"]
    places: Int64[np.ndarray, " n"]
    edges: Float[np.ndarray, "n k"]


@dataclass(slots=True)
class Gathered:
    """What was found since the last time it was taken."""

    widths: Mapping[str, int]
    """Latents by site."""

    resolution: float
    """Edges are rounded to multiples of it."""

    smallest: float
    """Edges up to this size are left out."""

    memory: int
    """Bytes that its sums may take before `spill` is called."""

    spill: Callable[[Pair, Run], None]
    """Takes a run away."""

    left_out: LeftOut = LeftOut(0, 0.0)
    n_edges: int = 0
    waiting: dict[Pair, list[_Rows]] = field(default_factory=dict)
    sources: dict[Pair, list[np.ndarray]] = field(default_factory=dict)
    n_waiting: int = 0
    runs: dict[Pair, list[list[Sums]]] = field(default_factory=dict)

    def add(self, found: Found) -> None:
        """Some rows of edges."""
        pair = found.pair
        self.n_waiting += found.edges.numel()
        tables = self.sources.setdefault(pair, [])
        first = sum(map(len, tables))
        tables.append(found.sources.cpu().numpy())
        rows = _Rows(
            (found.buckets * self.widths[pair[0]] + found.targets).cpu().numpy(),
            on_grid(found.activations.cpu().numpy(), self.resolution),
            found.places.cpu().numpy() + first,
            found.edges.cpu().numpy(),
        )
        self.waiting.setdefault(pair, []).append(rows)
        if self.n_waiting >= KEPT_EDGES:
            self.settle()

    def settle(self) -> None:
        """Add up what waits."""
        for pair, parts in self.waiting.items():
            run = self._run(pair, parts)
            if run:
                self.runs.setdefault(pair, []).append(run)
        self.waiting, self.sources, self.n_waiting = {}, {}, 0
        if self._taken() > self.memory // 2:
            for pair, runs in self.runs.items():
                if len(runs) > 1:
                    self.runs[pair] = [list(merged_runs(runs, ROWS_AT_ONCE))]
        if self._taken() > self.memory // 2:
            self.give()

    def give(self) -> None:
        """Hand over everything."""
        if self.n_waiting:
            self.settle()
        for pair, runs in self.runs.items():
            self.spill(pair, runs[0] if len(runs) == 1 else list(merged_runs(runs, ROWS_AT_ONCE)))
        self.runs = {}

    def _taken(self) -> int:
        return BYTES * sum(
            len(part.keys) for runs in self.runs.values() for run in runs for part in run
        )

    def _run(self, pair: Pair, parts: list[_Rows]) -> list[Sums]:
        """The sums of rows."""
        k = max(part.edges.shape[1] for part in parts)
        sources = np.concatenate([_widened(table, k, -1) for table in self.sources[pair]])
        keys, activations, places, edges = (
            np.concatenate(column)
            for column in zip(
                *(part._replace(edges=_widened(part.edges, k, 0)) for part in parts), strict=True
            )
        )
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        run = []
        for first, stop in _portions(keys, max(1, EDGES_AT_ONCE // max(1, k))):
            some = order[first:stop]
            latents = sources[places[some]]  # (n, k)
            values = edges[some].astype(np.float64)
            kept = self._kept(latents, values)
            wide = keys[first:stop, None] * self.widths[pair[1]] + latents
            owners = np.broadcast_to(activations[some, None], wide.shape)
            columns = [wide.reshape(-1), values.reshape(-1), owners.reshape(-1)]
            if not kept.all():
                columns = [column[kept.reshape(-1)] for column in columns]
            sums = of_edges(columns[0], columns[1], columns[2], self.resolution)
            if len(sums.keys):
                run.append(sums)
        return run

    def _kept(
        self, latents: Int64[np.ndarray, "n k"], edges: Float[np.ndarray, "n k"]
    ) -> Bool[np.ndarray, "n k"]:
        """Which edges there are, those that are left out counted."""
        sizes, there = np.abs(edges), (latents >= 0) & (edges != 0)
        kept = there & (sizes > self.smallest)
        self.n_edges += int(kept.sum())
        if self.smallest > 0:
            small = sizes[there & ~kept]
            size = self.left_out.size + float(on_grid(small, self.resolution).sum())
            self.left_out = LeftOut(self.left_out.n_edges + len(small), size)
        return kept


def _widened(rows: np.ndarray, k: int, filling: int) -> np.ndarray:
    """Rows with columns up to k."""
    if rows.shape[1] == k:
        return rows
    return np.pad(rows, ((0, 0), (0, k - rows.shape[1])), constant_values=filling)


def _portions(keys: Int64[np.ndarray, " n"], n_rows: int) -> list[tuple[int, int]]:
    """(first, stop) of portions of sorted rows, each of about `n_rows`; equal keys together."""
    ends = np.flatnonzero(np.diff(keys, append=-1)) + 1
    cuts, start = [], 0
    while start < len(keys):
        at = np.searchsorted(ends, start + n_rows)
        stop = int(ends[min(at, len(ends) - 1)])
        cuts.append((start, stop))
        start = stop
    return cuts
