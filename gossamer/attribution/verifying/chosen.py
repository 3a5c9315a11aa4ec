"""Which edges and nodes of a graph are checked: named ones, the strongest, or a sample."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from gossamer.attribution.verifying.sources import changeable
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.graph import Graph
from gossamer.graph.influence import flow
from gossamer.graph.nodes import Nodes

Choose = Literal["strongest", "scored", "sampled"]
"""By |weight|; by the score by which edges are pruned; at random, in proportion to that score."""


class Chosen(NamedTuple):
    """Edges as columns."""

    sources: Int[np.ndarray, " n"]
    """Node that is changed."""

    targets: Int[np.ndarray, " n"]
    """Node that is read."""

    weights: Float[np.ndarray, " n"]
    """Edge between them."""


def named_edges(graph: Graph, pairs: Sequence[tuple[str, str]]) -> Chosen:
    """Edges by (source id, target id). SiteError for one that the graph does not have."""
    able = changeable(graph.nodes)
    found: list[tuple[int, int, float]] = []
    for source, target in pairs:
        s, t = graph.nodes.number(source), graph.nodes.number(target)
        if not able[s]:
            raise SiteError(
                f"{source} cannot be changed; latents, errors, tokens and position embeddings can."
            )
        row = graph.rows.row(t)
        at = np.flatnonzero(row.sources == s)
        if len(at) == 0:
            raise SiteError(
                f"The graph has no edge from {source} to {target}; name pairs (source id, target "
                "id) that graph.edges gives."
            )
        found.append((s, t, float(row.values[at[0]])))
    table = np.array(found, float).reshape(len(found), 3)
    return Chosen(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2])


def best_edges(graph: Graph, n: int, choose: str, seed: int) -> Chosen:
    """The n best edges whose sources can be changed, or n at random; strongest first."""
    if choose not in get_args(Choose):
        raise GossamerError(
            f"choose is one of {', '.join(get_args(Choose))}, got {choose!r}; to check certain "
            "edges, give their ids in edges=."
        )
    if n < 0:
        raise GossamerError(f"n_edges is how many edges to check, got {n}; give 0 or more.")
    key: Callable[[np.ndarray, np.ndarray], np.ndarray] = _size
    if choose != "strongest":
        per_size = flow(graph.rows, graph.nodes.weights).per_size
        key = partial(_score, per_size)
        if choose == "sampled":
            key = partial(_drawn, per_size, np.random.default_rng(seed))
    able = changeable(graph.nodes)
    none = Chosen(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    best = (np.zeros(0), none)
    for block in graph.edges.blocks():
        sizes = np.abs(block.weights.astype(np.float64))
        keys = key(block.targets, sizes)
        use = np.flatnonzero(able[block.sources] & (sizes > 0) & (keys > -np.inf))
        edges = Chosen(
            block.sources[use].astype(np.int64),
            block.targets[use].astype(np.int64),
            block.weights[use].astype(np.float64),
        )
        best = _together([best, (keys[use], edges)], n)
    order = np.argsort(-np.abs(best[1].weights), kind="stable")
    return Chosen(*(column[order] for column in best[1]))


def _size(
    _targets: Int[np.ndarray, " m"], sizes: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    return sizes


def _score(
    per_size: Float[np.ndarray, " n_nodes"],
    targets: Int[np.ndarray, " m"],
    sizes: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    return sizes * per_size[targets]


def _drawn(
    per_size: Float[np.ndarray, " n_nodes"],
    generator: np.random.Generator,
    targets: Int[np.ndarray, " m"],
    sizes: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    """Keys whose largest n are a sample in proportion to the score (Efraimidis and Spirakis,
    2006)."""
    scores = _score(per_size, targets, sizes)
    with np.errstate(divide="ignore"):
        return np.where(scores > 0, np.log(generator.random(len(sizes))) / scores, -np.inf)


def _together(parts: Sequence[tuple[np.ndarray, Chosen]], n: int) -> tuple[np.ndarray, Chosen]:
    """The n edges of the largest keys, and their keys."""
    keys = np.concatenate([part[0] for part in parts])
    columns = zip(*(part[1] for part in parts), strict=True)
    edges = Chosen(*(np.concatenate(column) for column in columns))
    order = np.argsort(-keys, kind="stable")[:n]
    return keys[order], Chosen(*(column[order] for column in edges))


def chosen_nodes(
    graph: Graph, nodes: int | Sequence[str], choose: str, seed: int
) -> Int[np.ndarray, " n"]:
    """Nodes by id, or how many: those of most influence that can be changed, or a sample in
    proportion to it."""
    able = changeable(graph.nodes)
    if isinstance(nodes, int):
        influence = np.where(able, graph.influence(), 0.0)
        keys = influence
        if choose == "sampled":
            uniform = np.random.default_rng(seed).random(len(keys))
            with np.errstate(divide="ignore"):
                keys = np.log(uniform) / influence
        order = np.argsort(-keys, kind="stable")[: max(nodes, 0)]
        return order[influence[order] > 0]
    return np.array([_node(graph.nodes, name, able) for name in nodes], int)


def _node(nodes: Nodes, name: str, able: Bool[np.ndarray, " n_nodes"]) -> int:
    number = nodes.number(name)
    if not able[number]:
        raise SiteError(
            f"{name} cannot be changed; latents, errors, tokens and position embeddings can."
        )
    return number
