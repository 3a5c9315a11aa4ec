"""Which rows are computed, in which order, and what becomes of the latents that get none.

All of them where the graph may keep every node. Else the targets' rows come first, and then, round
by round, those of the latents that influence the targets most by the rows that are there already;
what the left-out latents of a site and position write becomes part of the remainder there, so that
edges still add up.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from gossamer.attribution.graphs.batches import AtOnce, batches, rows_of
from gossamer.attribution.graphs.columns import Columns
from gossamer.attribution.graphs.walk import Engine
from gossamer.attribution.progress import Progress, said
from gossamer.errors import GossamerError
from gossamer.graph.influence import flow
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.rows import Row, Rows, RowWriter

ROUNDS = 8
"""Rounds in which the latents of a limited graph are chosen, beside the targets'."""


def must_stay(nodes: Nodes) -> Bool[np.ndarray, " n_nodes"]:
    """Nodes that no limit leaves out: everything but latents, and targets."""
    return ~nodes.of_kind("latent") | (nodes.weights > 0)


def n_chosen(nodes: Nodes, max_nodes: int | None) -> int:
    """How many latents beside the targets a graph keeps. GossamerError when the limit does not
    hold the rest."""
    fixed = int(must_stay(nodes).sum())
    if max_nodes is not None and max_nodes < fixed:
        raise GossamerError(
            f"max_nodes={max_nodes:,} is less than the {fixed:,} nodes that every graph of this "
            "prompt has: targets, tokens, positions, errors, biases and remainders. Allow more, or "
            "take a shorter prompt or fewer SAEs."
        )
    every = len(nodes) - fixed
    return every if max_nodes is None else min(every, max_nodes - fixed)


def computed(
    columns: Columns,
    engines: Sequence[Engine],
    directory: Path,
    *,
    n_latents: int,
    at_once: AtOnce,
    progress: Progress,
) -> tuple[Rows, Bool[np.ndarray, " n_nodes"]]:
    """(rows, which nodes stay). Rows that `directory` holds already are not computed again."""
    nodes = columns.nodes
    dtype = np.dtype(np.float64 if columns.sources and _is_wide(columns) else np.float32)
    writer = RowWriter(directory, len(nodes), dtype)
    fixed = must_stay(nodes)
    chosen = fixed & (nodes.weights > 0)
    leaves = ~fixed & np.isnan(nodes.reads)  # a crosscoder's latents have no rows
    every = n_latents == int((~fixed).sum())
    if every:
        chosen |= ~fixed
    todo = int(chosen.sum()) if every else int(chosen.sum()) + n_latents
    with tqdm(
        total=todo, desc="edges", unit="row", disable=None if progress is True else True
    ) as bar:

        def told(done: int) -> None:
            _told(progress, bar, done + int((chosen & leaves).sum()))

        _write(columns, engines, writer, chosen, at_once, told)
        left = 0 if every else n_latents
        step = max(1, -(-n_latents // ROUNDS))
        while left:
            influence = flow(writer.rows(), nodes.weights, read=chosen).influence
            influence = np.where(chosen | fixed, -1.0, influence)
            best = np.argsort(-influence, kind="stable")[: min(step, left)]
            chosen[best] = True
            left -= len(best)
            _write(columns, engines, writer, chosen, at_once, told)
    return writer.rows(), chosen | fixed


def _is_wide(columns: Columns) -> bool:
    return next(iter(columns.sources.values())).rows.element_size() == 8


def _write(  # noqa: PLR0917  what is computed, with what, where to
    columns: Columns,
    engines: Sequence[Engine],
    writer: RowWriter,
    chosen: Bool[np.ndarray, " n_nodes"],
    at_once: AtOnce,
    told: Callable[[int], None],
) -> None:
    """The chosen rows that are not there yet."""
    missing = chosen.copy()
    missing[list(writer.done)] = False
    told(len(writer.done))
    for batch in batches(columns, missing, at_once):
        writer.append(rows_of(engines, columns, batch))
        told(len(writer.done))


def _told(progress: Progress, bar: Any, done: int) -> None:
    """Say how many rows there are, on the bar and to who wants to know."""
    bar.update(done - bar.n)
    said(progress, done, bar.total)


def folded(
    nodes: Nodes, rows: Rows, kept: Bool[np.ndarray, " n_nodes"], directory: Path
) -> tuple[Nodes, Rows]:
    """The graph without the nodes that are not kept, their edges added to those of the remainders
    at their sites and positions."""
    into = _remainders(nodes, kept)
    number = np.cumsum(kept) - 1
    column = np.where(kept, number, number[into])
    writer = RowWriter(directory, int(kept.sum()), rows.values.dtype)
    for row in rows.in_file_order():
        if not kept[row.target] or int(number[row.target]) in writer.done:
            continue
        order = np.argsort(column[row.sources], kind="stable")
        sources, firsts = np.unique(column[row.sources][order], return_index=True)
        values = np.add.reduceat(row.values[order], firsts)
        writer.append([Row(int(number[row.target]), sources.astype(np.int32), values)])
    return nodes.take(np.flatnonzero(kept)), writer.rows()


def _remainders(nodes: Nodes, kept: Bool[np.ndarray, " n_nodes"]) -> Int[np.ndarray, " n_nodes"]:
    """For each left-out node the remainder at its site and position."""
    where = np.flatnonzero(nodes.kinds == KINDS.index("remainder"))
    key = nodes.site_of.astype(np.int64) * (int(nodes.positions.max()) + 1) + nodes.positions
    order = where[np.argsort(key[where])]
    into = np.arange(len(nodes))
    left = np.flatnonzero(~kept)
    found = np.searchsorted(key[order], key[left])
    into[left] = order[found]
    return into
