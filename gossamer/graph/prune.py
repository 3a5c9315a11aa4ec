"""Which nodes and edges carry most of the influence, and what leaving out the others costs.

The rule is circuit-tracer's: keep the nodes of largest influence that add up to a share of all of
it, and tokens, positions and targets always; normalise rows anew on what is kept; keep the edges of
largest score Ā[t, s]·(I_t + w_t) that add up to a share; then drop latents, errors, biases and
remainders without an edge out, and latents without an edge in, until nothing changes.

All of it streams over rows: besides columns of one number for each node, and the edges that are
kept, no more than a block of entries is in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from gossamer.graph.influence import Flow, edge_scores, flow
from gossamer.graph.nodes import Nodes
from gossamer.graph.rows import Rows
from gossamer.graph.threshold import check_share, cut


class Pruned(NamedTuple):
    """What was left out of a graph, for each node that stayed."""

    sums: Float[np.ndarray, " n"]
    """Σ of the edges into it that were dropped: reads − constant − Σ edges − residual."""

    sizes: Float[np.ndarray, " n"]
    """Σ|edge| of them: no set of the dropped nodes moves what it reads by more, in the linearised
    model."""

    influence: Float[np.ndarray, " n"]
    """Its influence in the whole graph; NaN where that was not asked for."""

    cumulative: Float[np.ndarray, " n"]
    """Share of all influence that nodes have down to this one, sorted by it; NaN likewise."""


class Scores(NamedTuple):
    """How far a graph goes without what its SAEs miss."""

    replacement: float
    """ΣI of tokens and positions / ΣI of those, errors and remainders; NaN when both are 0."""

    completeness: float
    """Share of (I + w), over all nodes, whose inputs are no errors or remainders."""


@dataclass(frozen=True)
class Reduced:
    """A part of the nodes, and of the edges between them."""

    chosen: Int[np.ndarray, " n_chosen"]
    """The nodes that stay, ascending."""

    rows: Rows
    """Edges between them, numbered anew."""

    sums: Float[np.ndarray, " n_chosen"]
    """See Pruned."""

    sizes: Float[np.ndarray, " n_chosen"]
    """See Pruned."""


class Pruning(NamedTuple):
    """What pruning came to."""

    reduced: Reduced
    """Nodes and edges that stay."""

    influence: Float[np.ndarray, " n"]
    """Of all nodes before."""

    cumulative: Float[np.ndarray, " n"]
    """See Pruned; of all nodes before."""

    node_threshold: float
    """Smallest influence that was kept for its own sake."""

    edge_threshold: float
    """Smallest score of an edge that was kept."""


def prune_rows(
    nodes: Nodes,
    rows: Rows,
    *,
    node_share: float,
    edge_share: float,
    keep: Bool[np.ndarray, " n"] | None = None,
) -> Pruning:
    """Nodes that carry `node_share` of the influence and edges that carry `edge_share` of the
    scores, both in (0, 1]; 1 keeps all of that stage, so that only dead ends go. Nodes in `keep`
    stay whatever they carry.

    Raises GossamerError for a share outside, a graph without target, or edges that are not finite.
    """
    check_share(node_share, "nodes")
    check_share(edge_share, "edges")
    whole = flow(rows, nodes.weights)
    node_cut = cut(partial(_one, whole.influence), node_share, np.dtype(np.float64))
    always = nodes.of_kind("token", "position") | (nodes.weights > 0)
    always |= False if keep is None else keep
    kept = (whole.influence >= node_cut.threshold) | always
    part = flow(rows, nodes.weights, kept=kept)
    reduced, smallest = None, 0.0
    if edge_share < 1:
        edge_cut = cut(partial(_scores, rows, part, kept), edge_share, rows.values.dtype)
        if edge_cut.total:
            smallest = edge_cut.threshold
            scored = (part, smallest, edge_cut.kept)
            reduced = reduce_rows(nodes, rows, kept, scored, always=always)
    reduced = reduced or reduce_rows(nodes, rows, kept, always=always)
    order = np.argsort(-whole.influence, kind="stable")
    cumulative = np.empty(len(nodes))
    cumulative[order] = np.cumsum(whole.influence[order]) / max(
        float(whole.influence.sum()), np.finfo(np.float64).tiny
    )
    return Pruning(reduced, whole.influence, cumulative, node_cut.threshold, smallest)


def reduce_rows(
    nodes: Nodes,
    rows: Rows,
    kept: Bool[np.ndarray, " n"],
    scored: tuple[Flow, float, int] | None = None,
    *,
    always: Bool[np.ndarray, " n"] | None = None,
) -> Reduced:
    """Edges between the nodes kept; of them, when `scored`, those whose score by that flow is at
    least the threshold given, of which there are so many. Dead ends are dropped but for nodes that
    stay `always`; None: all stay."""
    flowing, threshold, most = scored or (None, 0.0, int(rows.counts[kept].sum()))
    starts, counts = np.zeros((2, len(nodes)), np.int64)
    sums, sizes = np.zeros((2, len(nodes)))
    # Memory that is not written to is not taken, so more than is needed costs nothing.
    columns = np.empty(most, rows.columns.dtype)
    values = np.empty(most, rows.values.dtype)
    end = 0
    per_size = None if flowing is None else flowing.per_size
    for block in rows.blocks(kept):
        stays = kept[block.sources]
        if per_size is not None:
            stays &= edge_scores(block, per_size) >= threshold
        sums[block.targets], sizes[block.targets] = _left_out(block.values, stays, block.firsts)
        lengths = block.sums(stays.astype(np.int64))
        starts[block.targets] = end + np.cumsum(lengths) - lengths
        counts[block.targets] = lengths
        new = slice(end, end + int(lengths.sum()))
        columns[new], values[new] = block.sources[stays], block.values[stays]
        end = new.stop
    filtered = Rows(starts, counts, columns[:end], values[:end])
    if always is not None:
        kept = alive(nodes, filtered, kept, always)
    return _renumbered(filtered, kept, sums, sizes)


def alive(
    nodes: Nodes, rows: Rows, kept: Bool[np.ndarray, " n"], always: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Which of the kept nodes have an edge out that leads on, and, if latents, an edge in that
    comes from somewhere, or stay always.

    Two sweeps find what dropping again and again would: edges go forward, and what a sweep back
    keeps of the nodes that were reached was reached by nodes it keeps.
    """
    needs_in = nodes.are_read & ~always
    reached = kept & ~needs_in
    for target in np.flatnonzero(kept & needs_in & (rows.counts > 0)):
        reached[target] = reached[rows.row(int(target)).sources].any()
    leads_on = reached & always
    for target in np.flatnonzero(reached & (rows.counts > 0))[::-1]:
        if leads_on[target]:
            leads_on[rows.row(int(target)).sources] = True
    return leads_on & reached


def scores(nodes: Nodes, found: Flow, removed: Bool[np.ndarray, " n"] | None = None) -> Scores:
    """Replacement and completeness score. Tokens and positions count as tokens; errors and
    remainders as errors; biases, and latents without incoming edges, as neither.

    `removed` latents count as errors, and their rows are not to be read in the flow: their weight
    is moved onto the error, as for a subgraph in decoderesearch/circuit-tracer#42.
    """
    errors = nodes.of_kind("error", "remainder") | (False if removed is None else removed)
    tokens = float(found.influence[nodes.of_kind("token", "position")].sum())
    missed = float(found.influence[errors].sum())
    replacement = tokens / (tokens + missed) if tokens + missed else float("nan")
    # Σ_t (1 − Σ_{s in errors} Ā[t, s])·(I_t + w_t) is Σ(I + w) less what flows into errors.
    return Scores(replacement, 1 - missed / float(found.outflow.sum()))


def _one(values: Float[np.ndarray, " n"]) -> list[np.ndarray]:
    return [values]


def _scores(
    rows: Rows, flowing: Flow, kept: Bool[np.ndarray, " n"]
) -> Iterator[Float[np.ndarray, " n_entries"]]:
    per_size = flowing.per_size
    for block in rows.blocks(kept & (flowing.outflow > 0)):
        yield edge_scores(block, per_size, kept)


def _left_out(
    values: Float[np.ndarray, " n_entries"],
    stays: Bool[np.ndarray, " n_entries"],
    firsts: Int[np.ndarray, " n_rows"],
) -> tuple[Float[np.ndarray, " n_rows"], Float[np.ndarray, " n_rows"]]:
    """Sums and sums of sizes, over each row, of the entries that do not stay."""
    gone = np.where(stays, 0.0, values)
    return np.add.reduceat(gone, firsts), np.add.reduceat(np.abs(gone), firsts)


def _renumbered(
    rows: Rows,
    kept: Bool[np.ndarray, " n"],
    sums: Float[np.ndarray, " n"],
    sizes: Float[np.ndarray, " n"],
) -> Reduced:
    """Rows and sources that are kept, moved together in place, the kept nodes numbered from 0."""
    numbers = (np.cumsum(kept) - 1).astype(rows.columns.dtype)
    starts, counts = np.zeros((2, len(kept)), np.int64)
    end = 0
    for block in rows.blocks(kept):
        stays = kept[block.sources]
        gone_sums, gone_sizes = _left_out(block.values, stays, block.firsts)
        sums[block.targets] += gone_sums
        sizes[block.targets] += gone_sizes
        lengths = block.sums(stays.astype(np.int64))
        starts[block.targets] = end + np.cumsum(lengths) - lengths
        counts[block.targets] = lengths
        # Never beyond what was read: entries only move towards the front.
        new = slice(end, end + int(lengths.sum()))
        rows.columns[new], rows.values[new] = numbers[block.sources[stays]], block.values[stays]
        end = new.stop
    chosen = np.flatnonzero(kept)
    moved = Rows(starts[chosen], counts[chosen], rows.columns[:end], rows.values[:end])
    return Reduced(chosen, moved, sums[chosen], sizes[chosen])
