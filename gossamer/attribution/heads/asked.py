"""Which edges are taken apart: named ones, or the strongest of a graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from gossamer.attribution.heads.carried import EdgeLoadings
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.graph import Graph
from gossamer.saes.sae import SparseCoder

AGREES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far an edge may be from a graph's, relative to all that is added up; 0.05 for half types."""


def spliced_by(graph: Graph, coders: Mapping[str, SparseCoder]) -> dict[str, SparseCoder]:
    """Those of the SAEs that the graph splices. GossamerError for a graph whose edges are not
    direct, SiteError for one with other SAEs."""
    effects = graph.about.get("effects", "direct")
    if effects != "direct":
        raise GossamerError(
            f"Loadings take direct edges apart, and this graph's effects are {effects!r}; "
            'attribute again with effects="direct".'
        )
    made = graph.about.get("saes", coders)
    missing = sorted(set(made) - set(coders))
    if missing:
        raise SiteError(
            f"The graph splices an SAE at {missing[0]}, and the SAEs passed write "
            f"{', '.join(coders) or 'nowhere'}; pass those that the graph was made with."
        )
    return {site: sae for site, sae in coders.items() if site in made}


def pairs_of(graph: Graph | None, edges: Any, n: int) -> list[tuple[str, str]]:
    """(source id, target id) of each edge asked for."""
    if edges is None:
        return _strongest(graph, n)
    one = isinstance(edges, tuple) and len(edges) >= 2 and isinstance(edges[0], str)
    given: list[Any] = [edges] if one else list(edges)
    pairs: list[tuple[str, str]] = []
    for edge in given:
        ends = list(edge[:2]) if isinstance(edge, tuple | list) else []
        if len(ends) != 2 or not all(isinstance(name, str) for name in ends):
            raise GossamerError(
                f"An edge is (source id, target id) or one of graph.edges, got {str(edge)[:60]!r}."
            )
        pairs.append((ends[0], ends[1]))
    if not pairs:
        raise GossamerError("No edge was given; name at least one.")
    if graph is not None:
        _check_nodes(graph, pairs)
    return pairs


def _check_nodes(graph: Graph, pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse nodes that the graph does not have, or that hold latents that it left out."""
    numbers, mixed = graph.nodes.numbers, _mixed(graph)
    for name in (name for pair in pairs for name in pair):
        if name not in numbers:
            raise SiteError(
                f"The graph has no node {name}; name nodes as graph.nodes.ids gives them."
            )
        if mixed[numbers[name]]:
            raise GossamerError(
                f"{name} stands for the latents that max_nodes left out of the graph, and other "
                "heads carry each of them; name another node, or attribute with more nodes."
            )


def _mixed(graph: Graph) -> Bool[np.ndarray, " n_nodes"]:
    """Which nodes may hold latents that a limit left out: remainders of SAEs."""
    if graph.about.get("max_nodes") is None:
        return np.zeros(len(graph.nodes), bool)
    of_saes = np.array(["hook_" in site for site in graph.nodes.sites])
    return graph.nodes.of_kind("remainder") & of_saes[graph.nodes.site_of]


def _strongest(graph: Graph | None, n: int) -> list[tuple[str, str]]:
    """The strongest edges between different positions."""
    if graph is None:
        raise GossamerError(
            "Name the edges, (source id, target id), or give a Graph in place of the prompt."
        )
    if n < 1:
        raise GossamerError(f"n_edges is how many edges to take apart, 1 or more, got {n}.")
    best: list[tuple[float, int, int]] = []
    positions = graph.nodes.positions
    whole = ~_mixed(graph)
    for block in graph.edges.blocks():
        moves = np.flatnonzero(
            (positions[block.sources] != positions[block.targets]) & whole[block.sources]
        )
        sizes = np.abs(block.weights[moves])
        some = moves[np.argsort(-sizes, kind="stable")[:n]]
        best += [
            (abs(float(block.weights[i])), int(block.sources[i]), int(block.targets[i]))
            for i in some
        ]
        best = sorted(best, key=lambda each: -each[0])[:n]
    if not best:
        raise GossamerError("The graph has no edge between different positions; name edges.")
    return [(graph.nodes.id_of(source), graph.nodes.id_of(target)) for _, source, target in best]


def check_weight(graph: Graph, found: EdgeLoadings, dtype: torch.dtype) -> None:
    """Refuse a graph that gives the edge another weight."""
    numbers = graph.nodes.numbers
    row = graph.rows.row(numbers[found.target])
    at = np.flatnonzero(row.sources == numbers[found.source])
    if not len(at):
        return  # an edge that was pruned
    weight = float(row.values[at[0]])
    size = float((np.abs(found.heads).sum(1) + np.abs(found.bypass) + np.abs(found.beside)).max())
    coarse = np.asarray(row.values).dtype == np.float32
    tolerance = max(AGREES.get(dtype, 0.05), AGREES[torch.float32] if coarse else 0.0)
    if abs(weight - found.weight) > tolerance * max(size, abs(weight)):
        raise GossamerError(
            f"The graph's edge from {found.source} to {found.target} is {weight:.6g}, and this "
            f"model with these SAEs gives {found.weight:.6g}; the graph is of another model or "
            "other SAEs, or its remainders hold latents that it left out."
        )
