"""How much of the targets each node accounts for, along all paths.

Of a node t let Ā[t, s] = |A[t, s]| / max(Σ_s |A[t, s]|, 1e-10), and w_t how much it counts as a
target. Influence is I = w·(Ā + Ā² + …). Edges go forward, so one sweep from the last node to the
first gives it: I += (I_t + w_t)·Ā[t, :], each row read once.

As "Circuit Tracing" (Ameisen et al. 2025) has it, and its public implementation circuit-tracer.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gossamer.errors import GossamerError
from gossamer.graph.rows import Block, Rows

SMALLEST_SUM = 1e-10
"""What a row's sum is at least divided by."""


class Flow(NamedTuple):
    """What the sweep found, in float64."""

    influence: Float[np.ndarray, " n_nodes"]
    """I; of a target, what it does by way of others, without its own weight."""

    outflow: Float[np.ndarray, " n_nodes"]
    """I + w: what a node passes on to its sources."""

    sums: Float[np.ndarray, " n_nodes"]
    """Σ|A[t, :]| over the sources that count; 0 for rows that were not read."""

    @property
    def per_size(self) -> Float[np.ndarray, " n_nodes"]:
        """What an edge into each node scores for each unit of its size: the score of an edge is
        Ā[t, s]·(I_t + w_t)."""
        return self.outflow / np.maximum(self.sums, SMALLEST_SUM)


def flow(
    rows: Rows,
    weights: Float[np.ndarray, " n_nodes"],
    *,
    kept: Bool[np.ndarray, " n_nodes"] | None = None,
    read: Bool[np.ndarray, " n_nodes"] | None = None,
) -> Flow:
    """Influence of all nodes on those with a weight.

    `kept`: nodes that are there; edges of others are left out before rows are normalised. `read`:
    nodes whose rows count; others keep what flows into them. Raises GossamerError without a target,
    or for an edge that is not a finite number.
    """
    if not (weights > 0).any():
        raise GossamerError(
            "The graph has no target, so nothing has an influence on one; give the nodes to be "
            "explained a weight above 0."
        )
    outflow = weights.astype(np.float64)
    sums = np.zeros(len(weights))
    chosen = kept if read is None else read if kept is None else kept & read
    for target, sources, values in rows.backwards(chosen):
        if not outflow[target]:
            continue
        if kept is not None:
            there = kept[sources]
            sources, values = sources[there], values[there]
        sizes = np.abs(values, dtype=np.float64)
        total = float(sizes.sum())
        if not np.isfinite(total):
            raise _not_finite(target)
        sums[target] = total
        sizes *= outflow[target] / max(total, SMALLEST_SUM)
        outflow[sources] += sizes  # a row has each source once
    return Flow(outflow - weights, outflow, sums)


def edge_scores(
    block: Block,
    per_size: Float[np.ndarray, " n_nodes"],
    kept: Bool[np.ndarray, " n_nodes"] | None = None,
) -> Float[np.ndarray, " n_entries"]:
    """The score of each edge, in the dtype of the values; 0 for those from nodes not kept."""
    scores = np.abs(block.values)
    factors = per_size[block.targets].astype(scores.dtype)
    scores *= block.spread(factors)
    if kept is not None:
        scores *= kept[block.sources]
    return scores


def sums_of_sizes(rows: Rows) -> Float[np.ndarray, " n_nodes"]:
    """Σ|A[t, :]| of every node; 0 for leaves."""
    sums = np.zeros(rows.n_nodes)
    for block in rows.blocks():
        sums[block.targets] = block.sums(np.abs(block.values, dtype=np.float64))
    return sums


def _not_finite(target: int) -> GossamerError:
    return GossamerError(
        f"Edges into node {target} of the graph are not all finite numbers; compute them again, in "
        "float32 or float64."
    )
