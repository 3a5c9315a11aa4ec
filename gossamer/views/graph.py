"""An attribution graph to look at: nodes in a grid of positions and layers, and edges between them.

The view knows nothing of models: it is given numbers and texts, and shows them in a page or widget.
`graph_columns.py` has the tables that it is made of.
"""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.views.blob import pack
from gossamer.views.graph_columns import CLASSES, KINDS, SIDES, GraphEdges, GraphNodes
from gossamer.views.hosts import widget_class, write_view
from gossamer.views.text import show_token

if TYPE_CHECKING:
    from gossamer.views.graph_state import GraphState
    from gossamer.views.widget import GraphWidget

MAX_NODES = 20_000
"""Nodes that a browser still shows at ease."""

MAX_EDGES = 1_000_000
"""Edges that a page holds: 12 bytes each; of those that pass the filters it draws the strongest
20,000."""

SHOWN_EDGES = 400
"""Edges that the threshold lets through at first, where none is given."""

FALLBACK_ROWS = 20
"""Edges in the static table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphView:
    """A graph, the prompt it belongs to, and what is chosen at first."""

    nodes: GraphNodes
    """What is drawn as a glyph."""

    edges: GraphEdges
    """What is drawn as a line; perhaps only the strongest of a graph's."""

    tokens: Sequence[str]
    """The prompt, token by token: the columns of the grid."""

    row_names: Sequence[str]
    """The rows of the grid from the bottom up: "embedding", "0 attn", "0 mlp", …, "logits"."""

    title: str = "Attribution graph"
    """Heading of the view."""

    note: str = ""
    """A sentence under the heading: the model, what was held, what was pruned."""

    pinned: Sequence[str] = ()
    """Ids of the nodes in the subgraph at first."""

    supernodes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Groups in the subgraph at first: ids by name, each in one group at most."""

    threshold: float | None = None
    """Edges below it in size are hidden at first; None shows the `SHOWN_EDGES` strongest."""

    influence: float = 1.0
    """The most influential nodes that have this share of all influence are shown at first."""

    links: str = "all"
    """Which edges are drawn at first: "in", "out", "both" (of the pinned nodes), "pinned" (between
    them), "all"."""

    def __post_init__(self) -> None:
        nodes, edges, n = self.nodes, self.edges, len(self.nodes)
        if n > MAX_NODES or len(edges) > MAX_EDGES:
            raise GossamerError(
                f"{n:,} nodes and {len(edges):,} edges are too many to look at; a page holds "
                f"{MAX_NODES:,} and {MAX_EDGES:,}: prune the graph first."
            )
        for name, values, end, of in (
            ("rows", nodes.rows, len(self.row_names), "row names"),
            ("positions", nodes.positions, len(self.tokens), "tokens"),
            ("sources", edges.sources, n, "nodes"),
            ("targets", edges.targets, n, "nodes"),
        ):
            if len(values) and not (0 <= values.min() and values.max() < end):
                raise ShapeError(
                    f"{name} reach from {values.min()} to {values.max()}; with {end} {of} they "
                    f"stay from 0 to {end - 1}."
                )
        known = set(nodes.ids)
        for name in (*self.pinned, *(one for ids in self.supernodes.values() for one in ids)):
            if name not in known:
                raise SiteError(f"No node of this graph is {name!r}; pin ids that nodes.ids has.")

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the view as one HTML file that opens offline, in one move; returns its path."""
        return write_view(self, "graph_page.js", path)

    def widget(self) -> "GraphWidget":
        """The view under a notebook cell, with traits such as `pinned` to read and to set."""
        return widget_class("GraphWidget")(
            node_ids=tuple(self.nodes.ids),
            data=self.blob(),
            fallback=self.fallback_html(),
            **self._choices(),
        )

    def state(self) -> "GraphState":
        """The choices of this view as observed traits, for a host of its own."""
        from gossamer.views.graph_state import GraphState

        return GraphState(node_ids=tuple(self.nodes.ids), **self._choices())

    def _choices(self) -> dict[str, Any]:
        chosen = self.first_threshold() if self.threshold is None else self.threshold
        has_sides = any(self.nodes.sides) or any(self.edges.sides)
        return {
            "pinned": list(self.pinned),
            "supernodes": {name: list(ids) for name, ids in self.supernodes.items()},
            "threshold": chosen,
            "influence": self.influence,
            "links": self.links,
            "colour_by": "side" if has_sides else "sign",
        }

    def first_threshold(self) -> float:
        """The size of the edge with which `SHOWN_EDGES` are shown; 0 shows all of fewer."""
        sizes = np.abs(self.edges.weights)
        if len(sizes) <= SHOWN_EDGES:
            return 0.0
        least = np.partition(sizes, len(sizes) - SHOWN_EDGES)[len(sizes) - SHOWN_EDGES]
        # Rounded down, so that it reads well and never hides the edge itself.
        digits = int(2 - np.floor(np.log10(least))) if least > 0 else 0
        return float(np.floor(least * 10.0**digits) / 10.0**digits) if least > 0 else 0.0

    def cumulative(self) -> Float[np.ndarray, " n"]:
        """For each node the share of all influence that more influential nodes have: from 0 for
        the first up to 1. The smallest set with a share q of the influence is `cumulative < q`."""
        order = np.argsort(-self.nodes.influence, kind="stable")
        sizes = np.maximum(self.nodes.influence[order].astype(np.float64), 0)
        total = sizes.sum()
        shares = np.ones(len(order))
        if total > 0:
            before = np.concatenate([[0.0], np.cumsum(sizes)[:-1]])
            shares[order] = np.where(sizes > 0, np.minimum(before / total, 1 - 1e-7), 1.0)
        return shares

    def strongest(self) -> np.ndarray:
        """Rows of the edges, strongest first: the order in which the page has them."""
        return np.argsort(-np.abs(self.edges.weights), kind="stable")

    def blob(self) -> bytes:
        """Everything but the choices, as `web/graph_data.js` reads it."""
        nodes, edges, order = self.nodes, self.edges, self.strongest()
        codes = {name: i for i, name in enumerate(CLASSES)}
        sides = {name: i for i, name in enumerate(SIDES)}
        arrays: dict[str, np.ndarray] = {
            "kinds": np.array([KINDS.index(kind) for kind in nodes.kinds], np.int32),
            "cumulative": self.cumulative().astype(np.float32),
            "edges.sources": edges.sources[order].astype(np.int32),
            "edges.targets": edges.targets[order].astype(np.int32),
            "edges.weights": edges.weights[order].astype(np.float32),
        }
        for name in ("rows", "positions", "indices"):
            arrays[name] = getattr(nodes, name).astype(np.int32)
        for name in ("values", "influence", "weights", "input_totals"):
            arrays[name] = getattr(nodes, name).astype(np.float32)
        if edges.measured is not None:
            arrays["edges.measured"] = edges.measured[order].astype(np.float32)
        if edges.classes:
            found = np.array([codes[one] for one in edges.classes], np.int32)
            arrays["edges.classes"] = found[order]
        if edges.sides:
            arrays["edges.sides"] = np.array([sides[one] for one in edges.sides], np.int32)[order]
        if nodes.sides:
            arrays["sides"] = np.array([sides[one] for one in nodes.sides], np.int32)
        about = {
            "title": self.title,
            "note": self.note,
            "tokens": list(self.tokens),
            "row_names": list(self.row_names),
            "kinds": list(KINDS),
            "classes": list(CLASSES),
            "sides": list(SIDES),
            "ids": list(nodes.ids),
            "labels": list(nodes.labels),
            "excerpts": [list(texts) for texts in nodes.excerpts],
            "links": list(nodes.links),
        }
        return pack(arrays, about)

    def fallback_html(self) -> str:
        """The strongest edges as a static table, for where no script runs."""
        nodes, edges = self.nodes, self.edges
        cell = "<td>{}</td>".format
        lines = ""
        for i in self.strongest()[:FALLBACK_ROWS]:
            ends = [int(edges.sources[i]), int(edges.targets[i])]
            texts = [t for e in ends for t in (nodes.ids[e], show_token(nodes.labels[e]))]
            cells = "".join(cell(html.escape(text)) for text in texts)
            lines += f"<tr>{cells}{cell(f'{edges.weights[i]:+.4g}')}</tr>"
        return (
            f"<table><caption>{html.escape(self.title)}: the strongest of {len(edges):,} edges "
            f"between {len(nodes):,} nodes</caption><thead><tr><th>source</th><th>means</th>"
            "<th>target</th><th>means</th><th>weight</th></tr></thead>"
            f"<tbody>{lines}</tbody></table>"
        )
