"""Graphs in the workspace: each a safetensors file, what is said of it as JSON, and what checking
it found."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import numpy as np

from gossamer.attribution.verifying.report import VerifyReport
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS
from gossamer.server.store import Store

OPEN = 4
"""Graphs whose files are kept open, for more questions."""


@final
class Graphs:
    """All graphs of a workspace; the last ones that were read stay open."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._guard = threading.RLock()
        self._open: OrderedDict[str, Graph] = OrderedDict()

    def add(self, graph: Graph, name: str, known: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a graph under an id, with its title and request; what is said of it."""
        path = self.store.path("graphs", name, ".safetensors")
        graph.save(path)
        with self._guard:
            self._open.pop(name, None)
            self.store.path("reports", name).unlink(missing_ok=True)
            graph = self._opened(name)
        content = {"id": name, **known, "created": time.time(), **summary(graph), "verified": None}
        self.store.save("graphs", name, content)
        return content

    def get(self, name: str) -> Graph:
        """One graph, its edges in the file. Refusal 404 when there is none."""
        with self._guard:
            self.about(name)
            return self._opened(name)

    def _opened(self, name: str) -> Graph:
        if name not in self._open:
            self._open[name] = Graph.load(self.store.path("graphs", name, ".safetensors"))
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def labelled(self, name: str) -> Graph:
        """The same, with the labels that were saved here."""
        graph, nodes = self.get(name), self.get(name).nodes
        if not self.store.has_labels:
            return graph
        labels, latents = list(nodes.labels), nodes.of_kind("latent")
        for i in np.flatnonzero(latents).tolist():
            own = self.store.label(nodes.sites[int(nodes.site_of[i])], int(nodes.units[i]))
            labels[i] = labels[i] if own is None else own
        return replace(graph, nodes=replace(nodes, labels=tuple(labels)))

    def about(self, name: str) -> dict[str, Any]:
        """What is said of one. Refusal 404 when there is none."""
        return self.store.load("graphs", name)

    def report(self, name: str) -> VerifyReport | None:
        """What checking it found last, if it was checked. Refusal 404 when there is no graph."""
        path = self.store.path("reports", name)
        return VerifyReport.load(path) if self.about(name)["verified"] is not None else None

    def check(self, name: str, report: VerifyReport) -> None:
        """Keep what checking it found, in place of an older report."""
        with self._guard:
            content = self.about(name)
            report.save(self.store.path("reports", name))
            self.store.save("graphs", name, {**content, "verified": report.sentence})

    def delete(self, name: str) -> None:
        """Take one away, with its report. Refusal 404 when there is none."""
        with self._guard:
            self.store.delete("graphs", name)
            self._open.pop(name, None)


def summary(graph: Graph) -> dict[str, Any]:
    """What a graph is, how much of it its SAEs explain, and how nearly its edges add up."""
    nodes, scores, residuals = graph.nodes, graph.scores(), graph.residuals()
    counts = np.bincount(nodes.kinds, minlength=len(KINDS)).tolist()
    return {
        "prompt": "".join(graph.tokens),
        "target": str(graph.about.get("target", "")),
        "tokens": list(graph.tokens),
        "token_ids": list(graph.token_ids),
        "n_nodes": len(nodes),
        "n_edges": len(graph.edges),
        "kinds": dict(zip(KINDS, counts, strict=True)),
        "targets": [node_values(graph, int(i)) for i in nodes.targets],
        "replacement_score": scores.replacement,
        "completeness": scores.completeness,
        "largest_residual": residuals.largest,
        "residual_node": residuals.node,
        "about": dict(graph.about),
    }


def node_values(graph: Graph, i: int) -> dict[str, Any]:
    """One node as plain values."""
    node = graph.nodes[i]
    return {**node._asdict(), "unit": str(node.unit), "token": graph.tokens[node.position]}
