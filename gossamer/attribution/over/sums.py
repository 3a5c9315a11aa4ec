"""Sums over edges by a key, sorted by it: made from edges, merged in windows, never in a dense
latents × latents form.

Every edge is first rounded to a multiple of the table's resolution, a power of two, and so is each
number derived of it. Sums of such numbers are exact in float64 while they stay below 2⁵³ · r, hence
independent of order: parts of a corpus, taken in any order, cut and merged in any way, give the
same bits.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from gossamer.errors import GossamerError
from gossamer.graph.rows import release

DENSE = 4
"""Cells a key: keys denser than this are counted in an array over their range, others sorted."""

BYTES = 56
"""Of one key and its columns."""


class Sums(NamedTuple):
    """Columns by key; keys ascend and each stands once."""

    keys: Int64[np.ndarray, " n"]
    """(bucket · d_sae of the target + target latent) · d_sae of the source + source latent."""

    counts: Int64[np.ndarray, " n"]
    """Edges."""

    sums: Float[np.ndarray, " n"]
    """Σ A."""

    sizes: Float[np.ndarray, " n"]
    """Σ |A|."""

    squares: Float[np.ndarray, " n"]
    """Σ A²."""

    weighted: Float[np.ndarray, " n"]
    """Σ A · f of the target."""

    largest: Float[np.ndarray, " n"]
    """max |A|."""

    def between(self, first: int, stop: int) -> "Sums":
        """Rows number first … stop − 1."""
        return Sums(*(column[first:stop] for column in self))

    def within(self, low: int, high: int) -> "Sums":
        """Rows with low ≤ key < high."""
        first, stop = np.searchsorted(self.keys, [low, high])
        return self.between(int(first), int(stop))

    def at(self, rows: Int64[np.ndarray, " m"]) -> "Sums":
        """Some rows, ascending."""
        return Sums(*(np.asarray(column[rows]) for column in self))


Run = Sequence[Sums]
"""Segments, each one's keys above those of the one before it."""


def empty() -> Sums:
    """No rows."""
    keys, number = np.zeros(0, np.int64), np.zeros(0)
    return Sums(keys, keys, number, number, number, number, number)


def on_grid(values: Float[np.ndarray, "*shape"], resolution: float) -> Float[np.ndarray, "*shape"]:
    """The nearest multiples of the resolution, float64."""
    rounded = values.astype(np.float64) * (1 / resolution)
    np.rint(rounded, out=rounded)
    rounded *= resolution
    return rounded


def of_edges(
    keys: Int64[np.ndarray, " n"],
    edges: Float[np.ndarray, " n"],
    activations: Float[np.ndarray, " n"],
    resolution: float,
) -> Sums:
    """The sums of edges into targets with these activations; keys in any order."""
    if not len(keys):
        return empty()
    found, places, n_cells = _places(keys)
    edges = on_grid(edges, resolution)
    sizes = np.abs(edges)
    columns = [edges, sizes, on_grid(edges * edges, resolution)]
    columns.append(on_grid(edges * activations, resolution))
    return _added(keys, (found, places, n_cells), None, [*columns, sizes])


def merged(parts: Sequence[Sums]) -> Sums:
    """Rows of equal key added up."""
    parts = [part for part in parts if len(part.keys)]
    if len(parts) < 2:
        return Sums(*(np.asarray(column) for column in parts[0])) if parts else empty()
    keys, counts, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _added(keys, _places(keys), counts.astype(np.float64), columns)


def _places(keys: Int64[np.ndarray, " n"]) -> tuple[np.ndarray | None, np.ndarray, int]:
    """(distinct keys or None, a cell for each key, number of cells)."""
    first = keys.min()
    span = int(keys.max() - first) + 1
    if span <= DENSE * len(keys):
        return None, keys - first, span
    found, places = np.unique(keys, return_inverse=True)
    return found, places, len(found)


def _added(
    keys: Int64[np.ndarray, " n"],
    cells: tuple[np.ndarray | None, np.ndarray, int],
    counts: Float[np.ndarray, " n"] | None,
    columns: Sequence[Float[np.ndarray, " n"]],
) -> Sums:
    """Columns by key; the last one's maximum, the others' sums."""
    found, places, n_cells = cells
    counted = np.bincount(places, counts, n_cells).astype(np.int64)
    some = slice(None)
    if found is None:
        some = np.flatnonzero(counted)
        found = some + keys.min()
    sums, sizes, squares, weighted = (
        np.bincount(places, column, n_cells)[some] for column in columns[:-1]
    )
    largest = np.zeros(n_cells)
    np.maximum.at(largest, places, columns[-1])
    return Sums(found, counted[some], sums, sizes, squares, weighted, largest[some])


def check_exact(sums: Sums, resolution: float) -> None:
    """GossamerError when a sum is so large that its last bits may depend on the order."""
    limit = 2.0**53 * resolution
    for column in (sums.sizes, sums.squares, sums.weighted):
        if len(column) and np.abs(column).max() >= limit:
            raise GossamerError(
                f"A sum over edges reached {np.abs(column).max():.3g}, and with resolution "
                f"{resolution:.3g} sums are exact below {limit:.3g} only; take a coarser "
                "resolution, such as 2**-16."
            )


def merged_runs(runs: Sequence[Run], at_once: int) -> Iterator[Sums]:
    """One run from several, in segments of at most `at_once` rows, all but the last of at least
    half as many; at most as many are read at once."""
    cursors = [_Cursor(run) for run in runs]
    waiting: list[Sums] = []
    n_waiting = 0
    while cursors := [cursor for cursor in cursors if cursor.on_a_row()]:
        step = max(1, at_once // 2 // len(cursors))
        high = min(cursor.key_after(step) for cursor in cursors)
        part = merged([cursor.taken(high, step) for cursor in cursors])
        if n_waiting + len(part.keys) > at_once:
            yield _joined(waiting)
            waiting, n_waiting = [], 0
        waiting.append(part)
        n_waiting += len(part.keys)
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[Sums]) -> Sums:
    """One after another."""
    if len(parts) == 1:
        return parts[0]
    return Sums(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class _Cursor:
    """A place in a run."""

    def __init__(self, run: Run) -> None:
        self.run, self.segment, self.row = run, 0, 0

    def on_a_row(self) -> bool:
        """Whether there is a row left; moves on to its segment."""
        while self.segment < len(self.run) and self.row == len(self.run[self.segment].keys):
            release(*self.run[self.segment])  # of files that are mapped
            self.segment, self.row = self.segment + 1, 0
        return self.segment < len(self.run)

    def key_after(self, step: int) -> int:
        """Above the keys of the next `step` rows, or of those that the segment still has."""
        keys = self.run[self.segment].keys
        return int(keys[min(self.row + step, len(keys)) - 1]) + 1

    def taken(self, high: int, step: int) -> Sums:
        """The rows with keys below `high`, which are the next."""
        segment = self.run[self.segment]
        keys = segment.keys[self.row : self.row + step]
        first, self.row = self.row, self.row + int(np.searchsorted(keys, high))
        return segment.between(first, self.row)
