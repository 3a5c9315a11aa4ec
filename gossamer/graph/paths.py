"""The strongest paths from one node to another, of all that there are.

A path's share is the product of Ā over its edges: the part of the target's input that comes from
the source this way. The shares of all paths together are ((I − Ā)⁻¹)[target, source].
"""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gossamer.errors import GossamerError
from gossamer.graph.influence import SMALLEST_SUM
from gossamer.graph.rows import Row, Rows


class GraphPath(NamedTuple):
    """A way from one node to another."""

    nodes: tuple[str, ...]
    """Ids, the source first."""

    share: float
    """Product of the normalised sizes of its edges."""

    weights: tuple[float, ...]
    """Its edges, signed; one less than nodes."""


class NumberedPath(NamedTuple):
    """The same by the rows of nodes."""

    nodes: tuple[int, ...]
    share: float
    weights: tuple[float, ...]


def strongest_paths(rows: Rows, source: int, target: int, n: int) -> list[NumberedPath]:
    """The n paths of largest share, the largest first; fewer when there are no more.

    First the best share with which each node is reached from the source, in one sweep forward; then
    paths grow back from the target, always the one that can become the best. The source
    stands before the target; GossamerError for n below 1.
    """
    if n < 1:
        raise GossamerError(f"n is how many paths to give, got {n}; give 1 or more.")
    best = _best_shares(rows, source, target)
    if best[target] == -np.inf:
        return []
    found: list[NumberedPath] = []
    # By (−log of the best share that it can reach), then the order in which it was met.
    open_paths: list[tuple[float, int, float, tuple[int, ...], tuple[float, ...]]]
    open_paths = [(-best[target], 0, 0.0, (target,), ())]
    met = 1
    while open_paths and len(found) < n:
        _, _, share, nodes, weights = heapq.heappop(open_paths)
        if nodes[0] == source:
            found.append(NumberedPath(nodes, float(np.exp(share)), weights))
            continue
        row = rows.row(nodes[0])
        _, sources, values = row
        logs = _logs(row)
        reaches = share + logs + best[sources]
        # Each way back is a path of its own, so the n best ways are enough.
        order = np.argsort(-reaches, kind="stable")[: n - len(found)]
        for i in order[reaches[order] > -np.inf].tolist():
            entry = (int(sources[i]), *nodes), (float(values[i]), *weights)
            heapq.heappush(open_paths, (-float(reaches[i]), met, share + float(logs[i]), *entry))
            met += 1
    return found


def _best_shares(rows: Rows, source: int, target: int) -> Float[np.ndarray, " n_nodes"]:
    """Log of the largest share of a path from the source to each node up to the target."""
    best = np.full(rows.n_nodes, -np.inf)
    best[source] = 0.0
    between = np.arange(rows.n_nodes)
    for row in rows.forwards((between > source) & (between <= target)):
        before = best[row.sources]
        if before.max() > -np.inf:
            best[row.target] = (_logs(row) + before).max()
    return best


def _logs(row: Row) -> Float[np.ndarray, " m"]:
    """Logs of the shares of a node's inputs."""
    sizes = np.abs(row.values, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.log(sizes / max(float(sizes.sum()), SMALLEST_SUM))
