"""Edges as sparse rows: for each target the sources that have an edge into it, and its size.

Rows lie one after another in two flat arrays, in the order in which they were computed; the arrays
may be files mapped into memory, of which the system keeps only what is being read. A node without
incoming edges (a leaf, or one that was not computed) has no row.
"""

import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from gossamer.errors import DiskError, FormatError

COLUMNS, VALUES, DONE = "columns.i32", "values.bin", "rows.jsonl"
"""Files of rows that are being computed."""

BLOCK = 1 << 20
"""Entries that are read at once."""


class Row(NamedTuple):
    """The edges into one node."""

    target: int
    """The node."""

    sources: Int[np.ndarray, " n_sources"]
    """The nodes whose edges these are, ascending."""

    values: Float[np.ndarray, " n_sources"]
    """Signed effects on the target's pre-activation."""


class Block(NamedTuple):
    """Some whole rows, one after another."""

    targets: Int[np.ndarray, " n_rows"]
    """Whose rows."""

    counts: Int[np.ndarray, " n_rows"]
    """Entries of each, at least 1."""

    sources: Int[np.ndarray, " n_entries"]
    """Sources of all entries."""

    values: Float[np.ndarray, " n_entries"]
    """Effects of all entries."""

    @property
    def firsts(self) -> Int[np.ndarray, " n_rows"]:
        """Where each row begins among the entries."""
        return np.cumsum(self.counts) - self.counts

    def rows(self) -> list[Row]:
        """Each row by itself."""
        ends = np.cumsum(self.counts).tolist()
        parts = [slice(end - n, end) for end, n in zip(ends, self.counts.tolist(), strict=True)]
        return [
            Row(target, self.sources[part], self.values[part])
            for target, part in zip(self.targets.tolist(), parts, strict=True)
        ]

    def spread(self, of_rows: Shaped[np.ndarray, " n_rows"]) -> Shaped[np.ndarray, " n_entries"]:
        """A value of each row as one of each entry."""
        return np.repeat(of_rows, self.counts)

    def sums(self, of_entries: Shaped[np.ndarray, " n_entries"]) -> Shaped[np.ndarray, " n_rows"]:
        """A value of each entry summed over each row."""
        return np.add.reduceat(of_entries, self.firsts)


@dataclass(frozen=True)
class Rows:
    """Sparse rows of a square matrix: rows are targets, columns sources."""

    starts: Int[np.ndarray, " n_nodes"]
    """Where each node's row begins in the flat arrays (int64)."""

    counts: Int[np.ndarray, " n_nodes"]
    """How many entries it has (int64)."""

    columns: Int[np.ndarray, " n_entries"]
    """Sources (int32), ascending within a row; may be a memory map."""

    values: Float[np.ndarray, " n_entries"]
    """Effects (float32 or float64); may be a memory map."""

    @property
    def n_nodes(self) -> int:
        """Rows and columns of the matrix."""
        return len(self.starts)

    @property
    def n_entries(self) -> int:
        """Entries that are stored."""
        return int(self.counts.sum())

    def row(self, target: int) -> Row:
        """The edges into one node; none for a leaf."""
        start = int(self.starts[target])
        part = slice(start, start + int(self.counts[target]))
        return Row(target, np.asarray(self.columns)[part], np.asarray(self.values)[part])

    def blocks(self, chosen: Bool[np.ndarray, " n_nodes"] | None = None) -> Iterator[Block]:
        """Every row with entries, or those of the chosen targets, in the order in which they lie:
        the fast way through a memory map, of which one block at a time stays in memory.

        FormatError for a row that is not ascending and before its target: an edge goes forward.
        """
        filled = self._filled(chosen)
        filled = filled[np.argsort(self.starts[filled], kind="stable")]
        for targets in _parts(filled, self.counts):
            yield self._block(targets)
            release(self.columns, self.values)

    def in_file_order(self) -> Iterator[Row]:
        """Every row with entries, in the order in which they lie."""
        for block in self.blocks():
            yield from block.rows()

    def backwards(self, chosen: Bool[np.ndarray, " n_nodes"] | None = None) -> Iterator[Row]:
        """Every row with entries, or those of the chosen targets, from the last node to the first;
        FormatError as `blocks` raises it."""
        for targets in _parts(self._filled(chosen)[::-1], self.counts):
            yield from reversed(self._block(targets[::-1]).rows())
            release(self.columns, self.values)

    def forwards(self, chosen: Bool[np.ndarray, " n_nodes"] | None = None) -> Iterator[Row]:
        """The same from the first node to the last."""
        for targets in _parts(self._filled(chosen), self.counts):
            yield from self._block(targets).rows()
            release(self.columns, self.values)

    def _filled(self, chosen: Bool[np.ndarray, " n_nodes"] | None) -> Int[np.ndarray, " n_rows"]:
        return np.flatnonzero(self.counts if chosen is None else (self.counts > 0) & chosen)

    def _block(self, targets: Int[np.ndarray, " n_rows"]) -> Block:
        """These rows, as a view where they lie side by side, else as a copy."""
        starts, counts = self.starts[targets], self.counts[targets]
        apart = np.flatnonzero(starts[1:] != starts[:-1] + counts[:-1])
        begins = starts[np.concatenate([[0], apart + 1])]
        ends = (starts + counts)[np.concatenate([apart, [-1]])]
        parts = [slice(int(begin), int(end)) for begin, end in zip(begins, ends, strict=True)]
        sources, values = (
            flat[parts[0]] if len(parts) == 1 else np.concatenate([flat[part] for part in parts])
            for flat in (np.asarray(self.columns), np.asarray(self.values))
        )
        block = Block(targets, counts, sources, values)
        firsts = block.firsts
        ascends = sources[1:] > sources[:-1]
        ascends[firsts[1:] - 1] = True
        forward = sources[firsts + counts - 1] < targets
        if not (ascends.all() and forward.all() and (sources[firsts] >= 0).all()):
            raise FormatError(
                f"The edges into some node of {int(targets.min())}…{int(targets.max())} do not come"
                " from nodes before it, each once and ascending; the graph is damaged, compute it "
                "again."
            )
        return block


def _parts(
    targets: Int[np.ndarray, " n_rows"], counts: Int[np.ndarray, " n_nodes"]
) -> list[Int[np.ndarray, " some_rows"]]:
    """Rows in portions of about BLOCK entries."""
    if not len(targets):
        return []
    portion = np.cumsum(counts[targets]) // BLOCK
    return np.split(targets, np.flatnonzero(portion[1:] != portion[:-1]) + 1)


def release(*arrays: np.ndarray) -> None:
    """Let go of the pages of arrays that are files mapped for reading: the system has them still,
    but they no longer count as this process's memory."""
    for array in arrays:
        if getattr(array, "mode", None) == "r":
            base = array
            while isinstance(base, np.ndarray):
                base = base.base
            if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                base.madvise(mmap.MADV_DONTNEED)


@dataclass
class RowWriter:
    """Rows written to a directory as they are computed; what is there already is kept.

    A process that is killed leaves whole rows: the list of rows grows after their entries lie on
    disk, and what a killed one left beyond its list is cut off.
    """

    directory: Path
    """Where; it exists."""

    n_nodes: int
    """Rows and columns of the matrix."""

    dtype: np.dtype
    """Of the values."""

    done: dict[int, tuple[int, int]] = field(default_factory=dict)
    """(start, count) of each row that is written."""

    end: int = 0
    """Entries written."""

    def __post_init__(self) -> None:
        listed = self.directory / DONE
        if listed.exists():
            text = listed.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]  # a killed process may leave half a line
            if whole != text:
                os.truncate(listed, len(whole))
            try:
                for line in whole.splitlines():
                    self._list(*json.loads(line))
            except (ValueError, TypeError) as problem:
                raise FormatError(
                    f"{listed} is damaged; remove {self.directory} and compute the graph again."
                ) from problem
        for name, size in ((COLUMNS, 4), (VALUES, self.dtype.itemsize)):
            path = self.directory / name
            path.touch()
            if path.stat().st_size < self.end * size:
                raise FormatError(
                    f"{path} is shorter than its list of rows; remove {self.directory} and compute "
                    "the graph again."
                )
            os.truncate(path, self.end * size)

    def _list(self, target: int, start: int, count: int) -> None:
        """Take down a row that is there; rows lie one after another. ValueError for another."""
        whole = all(type(each) is int for each in (target, start, count))
        if not whole or not 0 <= target < self.n_nodes or start != self.end or count < 0:
            raise ValueError("no row of this matrix, behind the last one")
        self.done[target] = (start, count)
        self.end += count

    def append(self, rows: list[Row]) -> None:
        """Write rows behind those that are there. DiskError when the disk refuses; then what was
        there stays, and the same rows can be appended again."""
        try:
            self._append(rows)
        except OSError as problem:
            raise DiskError(
                f"Edges cannot be written to {self.directory}: {problem.strerror or problem}. Make "
                "room, or name another place."
            ) from problem

    def _append(self, rows: list[Row]) -> None:
        for name, dtype, arrays in (
            (COLUMNS, np.dtype(np.int32), [row.sources for row in rows]),
            (VALUES, self.dtype, [row.values for row in rows]),
        ):
            with (self.directory / name).open("r+b") as file:
                file.seek(self.end * dtype.itemsize)
                file.truncate()  # what a write that failed left
                for array in arrays:
                    file.write(np.ascontiguousarray(array, dtype).data)
        done, end, lines = {}, self.end, []
        for row in rows:
            done[row.target] = (end, len(row.sources))
            lines.append(json.dumps([row.target, end, len(row.sources)]))
            end += len(row.sources)
        listed = self.directory / DONE
        size = listed.stat().st_size if listed.exists() else 0
        try:
            with listed.open("a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError:
            os.truncate(listed, size)
            raise
        self.done |= done
        self.end = end

    def rows(self) -> Rows:
        """What is written so far, mapped into memory."""
        starts, counts = np.zeros((2, self.n_nodes), np.int64)
        for target, (start, count) in self.done.items():
            starts[target], counts[target] = start, count
        mapped = [
            np.memmap(self.directory / name, dtype, "r") if self.end else np.zeros(0, dtype)
            for name, dtype in ((COLUMNS, np.dtype(np.int32)), (VALUES, self.dtype))
        ]
        return Rows(starts, counts, *mapped)


def from_dense(matrix: Float[np.ndarray, "n_nodes n_nodes"]) -> Rows:
    """The entries of a dense matrix that are not 0."""
    targets, sources = np.nonzero(matrix)
    counts = np.bincount(targets, minlength=len(matrix)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    return Rows(starts, counts, sources.astype(np.int32), matrix[targets, sources])
