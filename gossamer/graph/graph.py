"""One prompt's graph: what drives what, how much of it is explained, and the ways to read it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float

from gossamer.errors import GossamerError, ShapeError, check_writable
from gossamer.graph.drawing import Drawing, draw, show
from gossamer.graph.edges import GraphEdge, GraphEdges
from gossamer.graph.files import Parts, read_graph, write_graph
from gossamer.graph.groups import Groups, group_rows
from gossamer.graph.influence import Flow, flow, sums_of_sizes
from gossamer.graph.nodes import Nodes
from gossamer.graph.paths import GraphPath, strongest_paths
from gossamer.graph.prune import Pruned, Reduced, Scores, prune_rows, reduce_rows, scores
from gossamer.graph.rows import Rows
from gossamer.graph.tables import edge_table, node_table, to_networkx

if TYPE_CHECKING:
    from gossamer.views.graph import GraphView

Named = int | str
"""A node by its row, or by its id."""

Excerpts = Mapping[str, Mapping[int, Sequence[str]]]
"""Texts on which latents fire, by site and latent."""

Verified = Mapping[tuple[str, str], tuple[str, float]]
"""(class, measured effect) of checked edges, by (source id, target id)."""


class Residuals(NamedTuple):
    """How nearly edges add up to what nodes read."""

    shares: Float[np.ndarray, " n"]
    """|residual| / Σ|edge| of each node, edges that pruning dropped included; NaN for a leaf."""

    largest: float
    """The largest of them; 0 when nothing is read."""

    node: str
    """The node that has it; empty when nothing is read."""


@final
@dataclass(frozen=True, eq=False)
class Graph:
    """The nodes of one prompt and the direct effects between them.

    The edge from s to t is A[t, s]: what s adds to what t reads, so
    reads[t] = constants[t] + Σ_s A[t, s] + residuals[t], and what pruning dropped besides.
    """

    nodes: Nodes
    """In an order in which every edge goes forward."""

    rows: Rows
    """Edges into each node."""

    tokens: tuple[str, ...]
    """The prompt, token by token."""

    token_ids: tuple[int, ...]
    """The prompt's token ids, BOS included."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, as JSON values: model, SAEs, what was held; and what pruning did."""

    pruned: Pruned | None = None
    """What was left out, for each node; None of a whole graph."""

    def __post_init__(self) -> None:
        if self.rows.n_nodes != len(self.nodes):
            raise ShapeError(
                f"The graph has {len(self.nodes)} nodes and rows for {self.rows.n_nodes}; give each"
                " node a row, empty for a leaf."
            )
        if len(self.tokens) != len(self.token_ids):
            raise ShapeError(
                f"The graph has {len(self.tokens)} tokens and {len(self.token_ids)} token ids; give"
                " as many of both."
            )
        kinds = (self.rows.columns.dtype.name, self.rows.values.dtype.name)
        if kinds not in (("int32", "float32"), ("int32", "float64")):
            raise ShapeError(
                f"Edges have sources in int32 and sizes in float32 or float64, got {kinds[0]} and "
                f"{kinds[1]}; convert them."
            )

    @property
    def edges(self) -> GraphEdges:
        """All edges, read lazily."""
        return GraphEdges(self.nodes, self.rows)

    @cached_property
    def _flow(self) -> Flow:
        return flow(self.rows, self.nodes.weights)

    def influence(self) -> Float[np.ndarray, " n"]:
        """How much of the targets each node accounts for, along all paths: w·(Ā + Ā² + …), of this
        graph as it is. Over the leaves it sums to Σw, if no other node lacks edges. GossamerError
        without a target."""
        return self._flow.influence.copy()

    def prune(
        self, nodes: float = 0.8, edges: float = 0.98, *, keep: Iterable[Named] = ()
    ) -> "Graph":
        """The nodes that carry the share `nodes` of all influence, and tokens, positions, targets
        and those in `keep`; of the edges between them those that carry the share `edges`; without
        dead ends.

        1 keeps all of that stage. Residuals stay those of the whole graph, and `pruned` says for
        each node what it lost. GossamerError for a share outside (0, 1], or no target.
        """
        found = prune_rows(
            self.nodes, self.rows, node_share=nodes, edge_share=edges, keep=self._mask(keep)
        )
        before = self.about.get("pruned", {})
        about = {
            "nodes": nodes,
            "edges": edges,
            "n_nodes": before.get("n_nodes", len(self.nodes)),
            "n_edges": before.get("n_edges", self.rows.n_entries),
            "node_threshold": found.node_threshold,
            "edge_threshold": found.edge_threshold,
        }
        return self._reduced(
            found.reduced, {"pruned": about}, influence=(found.influence, found.cumulative)
        )

    def completeness(self) -> float:
        """Share of (I + w), summed over all nodes, whose inputs are no errors or remainders: 1 when
        nothing that the SAEs miss plays a part. Biases and positions do not lower it."""
        return self.scores().completeness

    def replacement_score(self) -> float:
        """Share of the influence that ends in tokens and positions, of what ends there or in errors
        and remainders. Biases count as neither; NaN when nothing ends in any of them."""
        return self.scores().replacement

    def scores(self, nodes: Iterable[Named] | None = None) -> Scores:
        """Both scores; of the subgraph of some nodes, such as pins, when they are given: then the
        weight of other latents counts as error, tokens, positions, biases and targets stay."""
        if nodes is None:
            return scores(self.nodes, self._flow)
        stays = self._mask(nodes) | (self.nodes.weights > 0)
        removed = self.nodes.of_kind("latent") & ~stays
        return scores(self.nodes, flow(self.rows, self.nodes.weights, read=~removed), removed)

    def residuals(self) -> Residuals:
        """How nearly the edges into each node add up to what it reads."""
        sizes = sums_of_sizes(self.rows) + (0.0 if self.pruned is None else self.pruned.sizes)
        gaps = np.abs(self.nodes.residuals)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(gaps == 0, 0.0, gaps / sizes)
        if np.isnan(shares).all():
            return Residuals(shares, 0.0, "")
        worst = int(np.nanargmax(shares))
        return Residuals(shares, float(shares[worst]), self.nodes.id_of(worst))

    def edges_into(self, node: Named, n: int | None = None) -> list[GraphEdge]:
        """Edges into a node, strongest first; the first n, or all."""
        found = self.edges.into(self.nodes.number(node))
        return self.edges.named(type(found)(*(column[:n] for column in found)))

    def edges_out_of(self, node: Named, n: int | None = None) -> list[GraphEdge]:
        """Edges out of a node, strongest first; the first n, or all. Reads the rows after it."""
        found = self.edges.out_of(self.nodes.number(node))
        return self.edges.named(type(found)(*(column[:n] for column in found)))

    def subgraph(self, nodes: Iterable[Named]) -> "Graph":
        """These nodes and the edges between them; dead ends stay. `pruned` says what each lost."""
        return self._part(self._mask(nodes))

    def neighbourhood(
        self,
        nodes: Iterable[Named],
        *,
        hops: int = 1,
        direction: str = "both",
        threshold: float = 0.0,
    ) -> "Graph":
        """These nodes, those within so many edges of them, and all edges between these.

        Only edges of |weight| above `threshold` are walked: "in" to sources, "out" to targets.
        GossamerError for another direction, or hops below 0.
        """
        if direction not in ("in", "out", "both") or hops < 0:
            raise GossamerError(
                f'Neighbours are "in", "out" or "both", within 0 or more hops; got {direction!r} '
                f"and {hops}."
            )
        inside = self._mask(nodes)
        for _ in range(hops):
            before = inside.copy()
            for block in self.edges.blocks():
                walked = np.abs(block.weights) > threshold
                sources, targets = block.sources[walked], block.targets[walked]
                if direction != "out":
                    inside[sources[before[targets]]] = True
                if direction != "in":
                    inside[targets[before[sources]]] = True
            if (inside == before).all():
                break
        return self._part(inside)

    def paths(self, source: Named, target: Named, n: int = 10) -> list[GraphPath]:
        """The n paths of largest share from one node to another: products of |A| normalised over
        each node's inputs. GossamerError when the source does not stand before the target."""
        ends = (self.nodes.number(source), self.nodes.number(target))
        if ends[0] >= ends[1]:
            raise GossamerError(
                f"{self.nodes.id_of(ends[0])} does not come before {self.nodes.id_of(ends[1])}, so "
                "no path leads from it; name the earlier node first."
            )
        return [
            GraphPath(
                tuple(self.nodes.id_of(node) for node in path.nodes), path.share, path.weights
            )
            for path in strongest_paths(self.rows, *ends, n)
        ]

    def group(self, members: Mapping[str, Sequence[Named]]) -> Groups:
        """The graph seen as supernodes, by name: signed edges between members summed, and their
        share of all that comes into a group from outside it. GossamerError for a node in two groups
        or a group of none, SiteError for an unknown node."""
        numbers = {
            name: [self.nodes.number(node) for node in nodes] for name, nodes in members.items()
        }
        return group_rows(self.rows, numbers, self.nodes.ids)

    def to_dataframe(self, table: str = "edges") -> Any:
        """A pandas DataFrame of the "edges" or the "nodes", one a line."""
        if table == "edges":
            return edge_table(self.edges)
        if table == "nodes":
            influence = self._flow.influence if len(self.nodes.targets) else None
            return node_table(self.nodes, self.tokens, influence, self.pruned)
        raise GossamerError(f'A graph has tables "nodes" and "edges", got {table!r}.')

    def to_networkx(self) -> Any:
        """A networkx DiGraph: nodes by id with kind, site, unit, position, value, label, weight;
        edges with weight. GossamerError when networkx is not installed."""
        return to_networkx(self.edges)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Everything in one safetensors file, written in one move; `Graph.load` gives it back."""
        path = Path(path)
        check_writable(path)
        parts = (self.nodes, self.rows, self.tokens, self.token_ids, self.about, self.pruned)
        write_graph(Parts(*parts), path)
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Graph":
        """What `save` wrote; edges stay in the file and are read when they are used. FormatError
        when the file is missing, damaged, of another kind or of a later version."""
        return Graph(*read_graph(Path(path)))

    def view(
        self,
        *,
        pinned: Sequence[Named] = (),
        supernodes: Mapping[str, Sequence[Named]] | None = None,
        excerpts: Excerpts | None = None,
        verified: Verified | None = None,
        max_nodes: int = 3_000,
        max_edges: int = 20_000,
    ) -> "GraphView":
        """The graph to look at, some nodes pinned or grouped at first.

        A whole graph that is larger than the limits is pruned; then the most influential nodes and
        the strongest edges between them are drawn, and the note says how many of how many.
        `excerpts`, by site and latent, are texts shown with a node: {board.site_out:
        board.excerpts()} of a Dashboard. `verified` marks edges that were checked: the `classes`
        of a report of `gossamer.verify`.
        """
        numbers = [self.nodes.number(node) for node in pinned]
        groups = {
            name: [self.nodes.number(node) for node in nodes]
            for name, nodes in (supernodes or {}).items()
        }
        named = {*numbers, *(node for nodes in groups.values() for node in nodes)}
        graph, has_target = self, len(self.nodes.targets) > 0
        large = len(self.nodes) > max_nodes or self.rows.n_entries > max_edges
        if large and self.pruned is None and has_target:
            graph = self.prune(keep=named)
        return draw(
            graph.edges,
            Drawing(
                pinned=[self.nodes.id_of(node) for node in numbers],
                supernodes={
                    name: [self.nodes.id_of(node) for node in nodes]
                    for name, nodes in groups.items()
                },
                excerpts=excerpts or {},
                verified=verified or {},
                max_nodes=max_nodes,
                max_edges=max_edges,
            ),
            tokens=graph.tokens,
            about=graph.about,
            influence=graph._flow.influence if has_target else None,
            pruned=graph.pruned,
        )

    def to_html(self, path: str | os.PathLike[str], **choices: Any) -> Path:
        """The view as one HTML file that opens offline; returns its path. Choices as of `view`."""
        return self.view(**choices).to_html(path)

    def show(self, **choices: Any) -> Any:
        """In a notebook the view as a widget, whose `pinned` reads and sets the chosen nodes;
        elsewhere the page, opened in the browser, and its path. Choices as of `view`."""
        return show(self.view(**choices), "graph.html")

    def _mask(self, nodes: Iterable[Named]) -> Bool[np.ndarray, " n"]:
        mask = np.zeros(len(self.nodes), bool)
        if isinstance(nodes, str):
            raise GossamerError(
                f"Nodes are a list of ids, got the text {nodes!r}; write [{nodes!r}]."
            )
        mask[[self.nodes.number(node) for node in nodes]] = True
        return mask

    def _part(self, kept: Bool[np.ndarray, " n"]) -> "Graph":
        found = reduce_rows(self.nodes, self.rows, kept)
        of = {"n_nodes": len(self.nodes), "n_edges": self.rows.n_entries}
        return self._reduced(found, {"part_of": of})

    def _reduced(
        self,
        found: Reduced,
        about: Mapping[str, Any],
        influence: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]] | None = None,
    ) -> "Graph":
        """The part of this graph; what it lost is added to what this one had lost already."""
        chosen, old = found.chosen, self.pruned
        sums, sizes = found.sums, found.sizes
        known = influence or (np.full(len(self.nodes), np.nan),) * 2
        if old is not None:
            sums, sizes = sums + old.sums[chosen], sizes + old.sizes[chosen]
            if influence is None or not np.isnan(old.influence).any():
                known = old.influence, old.cumulative
        pruned = Pruned(sums, sizes, known[0][chosen], known[1][chosen])
        return replace(
            self,
            nodes=self.nodes.take(chosen),
            rows=found.rows,
            about={**self.about, **about},
            pruned=pruned,
        )
