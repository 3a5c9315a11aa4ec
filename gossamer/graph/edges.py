"""The edges of a graph, read lazily: of millions only those asked for become objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from gossamer.errors import GossamerError
from gossamer.graph.nodes import Nodes
from gossamer.graph.rows import Rows


class GraphEdge(NamedTuple):
    """One edge."""

    source: str
    """Id of the node that it comes from."""

    target: str
    """Id of the node that it goes into."""

    weight: float
    """What the source adds to the target's pre-activation or score."""

    source_label: str
    """What the source means, as far as is known."""

    target_label: str
    """What the target means."""

    offset: int
    """Positions from the source to the target."""


class EdgeArrays(NamedTuple):
    """Edges as columns of numbers."""

    sources: Int[np.ndarray, " m"]
    """Rows of the sources among the nodes (int32)."""

    targets: Int[np.ndarray, " m"]
    """Rows of the targets among the nodes (int64)."""

    weights: Float[np.ndarray, " m"]
    """Signed effects."""


@dataclass(frozen=True)
class GraphEdges:
    """All edges of a graph: `len`, iteration, numbers block by block, the strongest."""

    nodes: Nodes
    """Between which they go."""

    rows: Rows
    """Where their numbers are."""

    def __len__(self) -> int:
        return self.rows.n_entries

    def __iter__(self) -> Iterator[GraphEdge]:
        for block in self.blocks():
            yield from self.named(block)

    def blocks(self, targets: Bool[np.ndarray, " n_nodes"] | None = None) -> Iterator[EdgeArrays]:
        """The numbers of all edges, or of those into the chosen nodes, a million at a time."""
        for block in self.rows.blocks(targets):
            yield EdgeArrays(block.sources, block.spread(block.targets), block.values)

    def arrays(self) -> EdgeArrays:
        """The numbers of all edges at once, in the order in which rows lie: 16 bytes of memory for
        each, or 20 in float64."""
        parts = [EdgeArrays(*(np.array(column) for column in block)) for block in self.blocks()]
        return _together(parts, self.rows)

    def top(self, n: int = 20) -> list[GraphEdge]:
        """The n edges of largest |weight|, strongest first; equal ones by target, then source."""
        return self.named(self.strongest(n))

    def strongest(self, n: int, between: Bool[np.ndarray, " n_nodes"] | None = None) -> EdgeArrays:
        """The numbers of those edges, or of those between the chosen nodes; GossamerError for a
        negative n."""
        if n < 0:
            raise GossamerError(f"n is how many edges to give, got {n}; give 0 or more.")
        best = _together([], self.rows)
        for block in self.blocks(between):
            if between is not None:
                block = _taken(block, between[block.sources])
            best = _strongest(_together([best, _strongest(block, n)], self.rows), n)
        return best

    def into(self, target: int) -> EdgeArrays:
        """Numbers of the edges into one node, strongest first."""
        _, sources, values = self.rows.row(target)
        found = EdgeArrays(sources, np.full(len(sources), target), values)
        return _strongest(found, len(sources))

    def out_of(self, source: int) -> EdgeArrays:
        """Numbers of the edges out of one node, strongest first: a pass over the rows after it."""
        later = np.arange(self.rows.n_nodes) > source
        parts = [_taken(block, block.sources == source) for block in self.blocks(later)]
        found = _together(parts, self.rows)
        return _strongest(found, len(found.weights))

    def named(self, edges: EdgeArrays) -> list[GraphEdge]:
        """The same edges with ids and labels."""
        nodes = self.nodes
        offsets = nodes.positions[edges.targets] - nodes.positions[edges.sources]
        columns = (column.tolist() for column in (*edges, offsets))
        return [
            GraphEdge(
                nodes.id_of(source),
                nodes.id_of(target),
                weight,
                nodes.labels[source],
                nodes.labels[target],
                offset,
            )
            for source, target, weight, offset in zip(*columns, strict=True)
        ]


def _strongest(edges: EdgeArrays, n: int) -> EdgeArrays:
    """The n of largest |weight|, sorted; equal ones by target, then source."""
    sizes = np.abs(edges.weights)
    if 0 < n < len(sizes):
        least = np.partition(sizes, len(sizes) - n)[len(sizes) - n]
        edges = _taken(edges, sizes >= least)
        sizes = np.abs(edges.weights)
    order = np.lexsort((edges.sources, edges.targets, -sizes))[:n]
    return EdgeArrays(*(column[order] for column in edges))


def _taken(edges: EdgeArrays, chosen: Bool[np.ndarray, " m"]) -> EdgeArrays:
    return EdgeArrays(*(column[chosen] for column in edges))


def _together(parts: list[EdgeArrays], rows: Rows) -> EdgeArrays:
    """One after another, none of no parts."""
    nothing = EdgeArrays(np.zeros(0, np.int32), np.zeros(0, np.int64), rows.values[:0])
    return EdgeArrays(*(np.concatenate(columns) for columns in zip(nothing, *parts, strict=True)))
