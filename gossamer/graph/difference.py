"""Two graphs side by side: what only one of them has, what changed, what is shared.

A node of one graph is that of the other when site and unit are the same and their positions stand
for each other; for a position embedding the position alone decides. Likewise an edge, by its ends.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float, Int

from gossamer.errors import GossamerError
from gossamer.graph.alignment import Axis, axis_of
from gossamer.graph.drawing import grid_rows, note, show
from gossamer.graph.graph import Graph
from gossamer.graph.influence import sums_of_sizes
from gossamer.graph.nodes import KINDS, Node, Nodes

if TYPE_CHECKING:
    from gossamer.views.graph import GraphView

Side = Literal["first", "second", "both", "changed"]
"""Where something is: in one graph, in both alike, or in both with another size."""

SIDES: tuple[Side, ...] = ("first", "second", "both", "changed")
"""The same as numbers."""


class NodePair(NamedTuple):
    """A node of one graph or both."""

    id: str
    """Its id in the first graph; in the second, followed by " (second)", where it is only there."""

    side: Side
    """Where it is; "changed" where values differ by more than the tolerance."""

    label: str
    """What it means."""

    values: tuple[float, float]
    """Activation or score in either; NaN where it is not there."""

    influence: tuple[float, float]
    """On either graph's targets; NaN where it is not there."""


class EdgePair(NamedTuple):
    """An edge of one graph or both."""

    source: str
    """Id of a NodePair."""

    target: str
    """Likewise."""

    side: Side
    """Where it is."""

    first: float
    """Its weight in the first graph, 0 where it is not there."""

    second: float
    """Its weight in the second."""


class BothEdges(NamedTuple):
    """Edges of both graphs as columns."""

    sources: Int[np.ndarray, " m"]
    """Rows among all nodes."""

    targets: Int[np.ndarray, " m"]
    """Likewise."""

    first: Float[np.ndarray, " m"]
    """Weights in the first graph."""

    second: Float[np.ndarray, " m"]
    """Weights in the second."""

    sides: Int[np.ndarray, " m"]
    """Places in SIDES."""


@final
@dataclass(frozen=True, eq=False)
class GraphDifference:
    """What two graphs share and what not. Prune large graphs first: all edges are held at once."""

    first: Graph
    """One."""

    second: Graph
    """The other."""

    axis: Axis
    """How their positions pair."""

    tolerance: float
    """Sizes that differ by more than this share of the larger one have changed."""

    @cached_property
    def _rows(self) -> tuple[Int[np.ndarray, " n_first"], Int[np.ndarray, " n_second"]]:
        """The number of each node among all: the first graph's, then what only the second has."""
        mine, theirs = self.first.nodes, self.second.nodes
        known = {key: i for i, key in enumerate(_keys(mine, self.axis.first))}
        rows, new = [], len(mine)
        for key in _keys(theirs, self.axis.second):
            rows.append(known.get(key, new))
            new += key not in known
        return np.arange(len(mine)), np.array(rows, np.int64)

    @cached_property
    def _only_second(self) -> Int[np.ndarray, " n_new"]:
        return np.flatnonzero(self._rows[1] >= len(self.first.nodes))

    @cached_property
    def nodes(self) -> tuple[NodePair, ...]:
        """All nodes: the first graph's in its order, then those that only the second has."""
        n = len(self.first.nodes) + len(self._only_second)
        values, influence = np.full((2, n), np.nan), np.full((2, n), np.nan)
        there = np.zeros((2, n), bool)
        for side, (graph, rows) in enumerate(
            zip((self.first, self.second), self._rows, strict=True)
        ):
            values[side, rows], influence[side, rows] = graph.nodes.values, graph.influence()
            there[side, rows] = True
        names = [*self.first.nodes.ids]
        names += [f"{self.second.nodes.id_of(int(i))} (second)" for i in self._only_second]
        labels = self._all("label")
        sides = _sides(values, there, self.tolerance)
        return tuple(
            NodePair(name, SIDES[side], label, (a, b), (i, j))
            for name, side, label, a, b, i, j in zip(
                names, sides.tolist(), labels, *values.tolist(), *influence.tolist(), strict=True
            )
        )

    @cached_property
    def edges(self) -> BothEdges:
        """All edges."""
        n = len(self.first.nodes) + len(self._only_second)
        keys, weights = [], []
        for graph, rows in zip((self.first, self.second), self._rows, strict=True):
            sources, targets, values = graph.edges.arrays()
            keys.append(rows[targets] * n + rows[sources])
            weights.append(values.astype(np.float64))
        every = np.union1d(*keys)
        both, there = np.zeros((2, len(every))), np.zeros((2, len(every)), bool)
        for side in (0, 1):
            at = np.searchsorted(every, keys[side])
            both[side, at], there[side, at] = weights[side], True
        sides = _sides(both, there, self.tolerance)
        return BothEdges(every % n, every // n, both[0], both[1], sides)

    def counts(self) -> dict[str, dict[Side, int]]:
        """How many "nodes" and "edges" are where."""
        nodes = [node.side for node in self.nodes]
        edges = np.bincount(self.edges.sides, minlength=len(SIDES)).tolist()
        return {
            "nodes": {side: nodes.count(side) for side in SIDES},
            "edges": dict(zip(SIDES, edges, strict=True)),
        }

    def top(self, n: int = 20, side: Side | None = None) -> list[EdgePair]:
        """The n edges whose weights differ most, of one side or all."""
        if n < 0 or (side is not None and side not in SIDES):
            raise GossamerError(
                f"top takes how many edges, 0 or more, and one of {', '.join(SIDES)}; got {n} and "
                f"{side!r}."
            )
        edges = self.edges
        gaps = np.abs(edges.first - edges.second)
        if side is not None:
            gaps = np.where(edges.sides == SIDES.index(side), gaps, -1.0)
        order = np.argsort(-gaps, kind="stable")[:n]
        return [self._pair(int(i)) for i in order if gaps[i] >= 0]

    def _pair(self, i: int) -> EdgePair:
        edges, nodes = self.edges, self.nodes
        ends = nodes[int(edges.sources[i])].id, nodes[int(edges.targets[i])].id
        side = SIDES[int(edges.sides[i])]
        return EdgePair(*ends, side, float(edges.first[i]), float(edges.second[i]))

    def to_dataframe(self, table: str = "edges") -> Any:
        """A pandas DataFrame of the "edges" or the "nodes" of both, one a line."""
        from gossamer.graph.tables import pandas_or_error

        pandas = pandas_or_error()
        if table == "edges":
            return pandas.DataFrame([self._pair(i) for i in range(len(self.edges.sides))])
        if table == "nodes":
            return pandas.DataFrame(self.nodes)
        raise GossamerError(f'A difference has tables "nodes" and "edges", got {table!r}.')

    def view(self, *, max_nodes: int = 3_000, max_edges: int = 20_000) -> "GraphView":
        """Both graphs drawn over each other, coloured by side; of edges in both the first's weight,
        of the others their own. The most influential nodes and strongest edges are drawn."""
        from gossamer.views.graph import GraphView
        from gossamer.views.graph_columns import GraphEdges

        edges, nodes = self.edges, self.nodes
        influence = np.fmax(*np.array([node.influence for node in nodes]).T)
        weights = self._target_weights()
        rank = np.argsort(-np.where(weights > 0, np.inf, influence), kind="stable")
        drawn = np.zeros(len(nodes), bool)
        drawn[rank[:max_nodes]] = True
        shown = np.where(edges.first != 0, edges.first, edges.second)
        between = drawn[edges.sources] & drawn[edges.targets]
        best = np.flatnonzero(between)
        best = best[np.argsort(-np.abs(shown[best]), kind="stable")[:max_edges]]
        number = np.cumsum(drawn) - 1
        return GraphView(
            nodes=self._columns(np.flatnonzero(drawn), influence, weights),
            edges=GraphEdges(
                sources=number[edges.sources[best]],
                targets=number[edges.targets[best]],
                weights=shown[best],
                sides=[SIDES[side] for side in edges.sides[best].tolist()],
            ),
            tokens=self._tokens(),
            row_names=grid_rows(self._all("site"))[0],
            title="Two prompts",
            note=note(self.first.about, (len(nodes), len(shown)), (int(drawn.sum()), len(best))),
        )

    def to_html(self, path: str | os.PathLike[str], **limits: int) -> Path:
        """The view as one HTML file that opens offline; returns its path."""
        return self.view(**limits).to_html(path)

    def show(self, **limits: int) -> Any:
        """In a notebook the view as a widget; elsewhere the page, opened in the browser."""
        return show(self.view(**limits), "difference.html")

    def _all(self, name: str) -> list[Any]:
        """A field of every node, from the graph that it is first in."""
        return [getattr(node, name) for node in self._members]

    @cached_property
    def _members(self) -> list[Node]:
        return [*self.first.nodes, *(self.second.nodes[int(i)] for i in self._only_second)]

    def _target_weights(self) -> Float[np.ndarray, " n"]:
        return np.array(self._all("weight"))

    def _tokens(self) -> list[str]:
        """The token of each column; both where they differ."""
        texts: list[list[str]] = [[] for _ in range(self.axis.n_columns)]
        for graph, columns in zip((self.first, self.second), self.axis, strict=True):
            for token, column in zip(graph.tokens, columns.tolist(), strict=True):
                if token not in texts[column]:
                    texts[column].append(token)
        return [" | ".join(each) for each in texts]

    def _columns(
        self,
        chosen: Int[np.ndarray, " n_chosen"],
        influence: Float[np.ndarray, " n"],
        weights: Float[np.ndarray, " n"],
    ) -> Any:
        """The view's table of nodes."""
        from gossamer.views.graph_columns import GraphNodes

        nodes = [self.nodes[int(i)] for i in chosen]
        positions = np.concatenate(
            [
                self.axis.first[self.first.nodes.positions],
                self.axis.second[self.second.nodes.positions[self._only_second]],
            ]
        )
        totals = np.zeros(len(self.nodes))
        for graph, rows in zip((self.second, self.first), self._rows[::-1], strict=True):
            lost = 0.0 if graph.pruned is None else graph.pruned.sizes
            totals[rows] = sums_of_sizes(graph.rows) + lost
        rows = grid_rows(self._all("site"))[1]
        units = [unit if isinstance(unit, int) else -1 for unit in self._all("unit")]
        values = np.fmax(*np.array([node.values for node in nodes]).T)
        return GraphNodes(
            ids=[node.id for node in nodes],
            kinds=[self._members[int(i)].kind for i in chosen],
            rows=rows[chosen],
            positions=positions[chosen],
            indices=np.array(units)[chosen],
            values=np.where(np.isfinite(values), values, 0.0),
            labels=[node.label for node in nodes],
            influence=influence[chosen],
            weights=weights[chosen],
            input_totals=totals[chosen],
            sides=[node.side for node in nodes],
        )


def compare_graphs(
    first: Graph,
    second: Graph,
    align: str | Mapping[int, int] = "end",
    *,
    tolerance: float = 0.2,
) -> GraphDifference:
    """Two graphs side by side, of two prompts or of one prompt in two models.

    Args:
        first: one.
        second: the other.
        align: which positions stand for each other: "end" counts from the end, "start" from the
            start; or a mapping from the first's positions to the second's.
        tolerance: sizes that differ by more than this share of the larger one have changed.

    Raises PromptError for a mapping that leaves a prompt or crosses itself.
    """
    if not 0 <= tolerance < 1:
        raise GossamerError(f"tolerance is a share from 0 to below 1, got {tolerance}.")
    axis = axis_of(len(first.tokens), len(second.tokens), align)
    return GraphDifference(first, second, axis, tolerance)


def _keys(nodes: Nodes, columns: Int[np.ndarray, " n_positions"]) -> list[tuple[Any, ...]]:
    """What makes a node the same in both graphs."""
    same = KINDS.index("position")
    units = np.where(nodes.kinds == same, -1, nodes.units)
    return list(
        zip(
            [nodes.sites[i] for i in nodes.site_of.tolist()],
            nodes.kinds.tolist(),
            units.tolist(),
            nodes.distractors.tolist(),
            columns[nodes.positions].tolist(),
            strict=True,
        )
    )


def _sides(
    sizes: Float[np.ndarray, "2 n"], there: Bool[np.ndarray, "2 n"], tolerance: float
) -> Int[np.ndarray, " n"]:
    """Places in SIDES, of what is in the first graph, the second, or both."""
    largest = np.fmax(*np.abs(sizes))
    with np.errstate(invalid="ignore"):
        changed = np.abs(sizes[0] - sizes[1]) > tolerance * largest
    both = np.where(changed, SIDES.index("changed"), SIDES.index("both"))
    alone = np.where(there[0], SIDES.index("first"), SIDES.index("second"))
    return np.where(there[0] & there[1], both, alone)
