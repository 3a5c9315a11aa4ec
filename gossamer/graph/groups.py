"""Supernodes: nodes that mean the same taken together, and the edges between such groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gossamer.errors import GossamerError
from gossamer.graph.influence import SMALLEST_SUM
from gossamer.graph.rows import Rows


class GroupEdge(NamedTuple):
    """What one group does to another."""

    source: str
    """Name of the group that it comes from."""

    target: str
    """Name of the group that it goes into."""

    weight: float
    """Sum of the signed edges from members of the one to members of the other."""

    share: float
    """The same over the sum of the sizes of all edges into the target from outside it."""


@dataclass(frozen=True)
class Groups:
    """A graph seen as groups of its nodes; nodes in no group are seen only as inputs."""

    names: tuple[str, ...]
    """In the order given."""

    members: tuple[tuple[str, ...], ...]
    """Ids of the nodes in each."""

    weights: Float[np.ndarray, "n_groups n_groups"]
    """Signed sums of edges: rows are targets, columns sources. On the diagonal the edges inside a
    group."""

    inputs: Float[np.ndarray, " n_groups"]
    """Sizes of all edges into members from nodes outside the group, grouped or not, summed."""

    @property
    def shares(self) -> Float[np.ndarray, "n_groups n_groups"]:
        """Weights over inputs; 0 on the diagonal: a group is explained by what is outside it."""
        shares = self.weights / np.maximum(self.inputs, SMALLEST_SUM)[:, None]
        np.fill_diagonal(shares, 0.0)
        return shares

    @property
    def edges(self) -> list[GroupEdge]:
        """Edges between different groups that are not 0, the strongest first."""
        between = np.where(np.eye(len(self.names), dtype=bool), 0.0, self.weights)
        targets, sources = np.nonzero(between)
        order = np.argsort(-np.abs(between[targets, sources]), kind="stable")
        shares = self.shares
        return [
            GroupEdge(self.names[s], self.names[t], float(self.weights[t, s]), float(shares[t, s]))
            for t, s in zip(targets[order].tolist(), sources[order].tolist(), strict=True)
        ]


def group_rows(rows: Rows, members: Mapping[str, Sequence[int]], ids: Sequence[str]) -> Groups:
    """Edges summed over groups of nodes, in one pass over the rows of their members.

    GossamerError for a group without nodes, or a node that is in two.
    """
    place = np.full(rows.n_nodes, -1)
    for number, (name, nodes) in enumerate(members.items()):
        if not len(nodes):
            raise GossamerError(f'The group "{name}" has no nodes; give it some, or leave it out.')
        for node in nodes:
            if place[node] >= 0:
                raise GossamerError(
                    f'{ids[node]} is in the groups "{list(members)[place[node]]}" and "{name}"; '
                    "put each node in one group, once."
                )
            place[node] = number
    n = len(members)
    sums, inputs = np.zeros(n * n), np.zeros(n)
    for block in rows.blocks(place >= 0):
        targets, sources = block.spread(place[block.targets]), place[block.sources]
        values = block.values.astype(np.float64)
        inside = sources >= 0
        cells = targets[inside] * n + sources[inside]
        sums += np.bincount(cells, values[inside], n * n)
        outside = sources != targets
        inputs += np.bincount(targets[outside], np.abs(values[outside]), n)
    names = tuple(tuple(ids[node] for node in nodes) for nodes in members.values())
    return Groups(tuple(members), names, sums.reshape(n, n), inputs)
