"""What `verify` found: edges and nodes beside what was measured, in numbers, words and a page."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from gossamer.attribution.verifying.classes import (
    CLASSES,
    IN_WORDS,
    MODES,
    CheckedEdge,
    CheckedNode,
    Class,
    agrees,
)
from gossamer.errors import FormatError, GossamerError
from gossamer.saes.native import write_text

FORMAT = "gossamer verification 1"
"""First field of a saved report."""


class Verdict(NamedTuple):
    """What a graph's page says of a checked edge."""

    kind: Class
    """Its class."""

    measured: float
    """The total effect of ablating its source."""


class Shares(NamedTuple):
    """Shares of the edges, between 0 and 1; NaN of none."""

    modes: dict[str, float]
    """Within the tolerance of their weight, by mode."""

    classes: dict[str, float]
    """Of each class."""


@dataclass(frozen=True)
class VerifyReport:
    """Edges and nodes of one graph, predicted and measured."""

    edges: tuple[CheckedEdge, ...]
    """Strongest first, or as they were named."""

    nodes: tuple[CheckedNode, ...] = ()
    """As they were chosen."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was measured: model, prompt, small, tolerance, error, choose, hold, seconds."""

    @property
    def tolerance(self) -> float:
        """How far a measured effect may be from the weight, in parts of it."""
        return float(self.about.get("tolerance", 0.2))

    def column(self, name: str) -> Float[np.ndarray, " n_edges"]:
        """One number of each edge: a mode, "weight" or "floor"."""
        return np.array([getattr(edge, name) for edge in self.edges], float)

    def shares(self) -> Shares:
        """How many edges hold, by mode and by class."""
        weights, floor, n = self.column("weight"), self.column("floor"), max(len(self.edges), 1)
        small = float(self.about.get("small", 0.1))
        modes = {}
        for mode in MODES:
            allowed = floor / abs(small) if mode.endswith("small") else floor
            within = agrees(self.column(mode), weights, self.tolerance, allowed)
            modes[mode] = float(within.mean()) if self.edges else float("nan")
        counts = {kind: sum(edge.kind == kind for edge in self.edges) for kind in CLASSES}
        return Shares(
            modes,
            {k: c / n if self.edges else float("nan") for k, c in counts.items()},
        )

    @cached_property
    def classes(self) -> dict[tuple[str, str], Verdict]:
        """Each edge's class and measured effect, by (source id, target id)."""
        return {(e.source, e.target): Verdict(e.kind, e.total) for e in self.edges}

    @property
    def sentence(self) -> str:
        """How many edges hold, in words."""
        if not self.edges:
            return "No edge was checked."
        held = sum(edge.kind == "holds" for edge in self.edges)
        verb = "holds" if held == 1 else "hold"
        return (
            f"{held} of {len(self.edges)} edges {verb} in the true model within "
            f"{self.tolerance:.0%}."
        )

    def lines(self) -> list[str]:
        """The report in words: how many hold, by class and by mode."""
        lines = [self.sentence]
        shares = self.shares()
        if self.edges:
            lines += [
                f"{round(share * len(self.edges)):6d}  {kind}"
                for kind, share in shares.classes.items()
            ]
            lines += self.remarks()
            lines.append(f"within {self.tolerance:.0%} of their weight:")
            lines += [f"{share:6.1%}  {IN_WORDS[mode]}" for mode, share in shares.modes.items()]
        if self.nodes:
            agree = sum(node.agrees for node in self.nodes)
            lines.append(f"{agree} of {len(self.nodes)} nodes move the target as the graph says.")
        return lines

    def remarks(self) -> list[str]:
        """What is behind two of the classes, in words: norms or attention; flips as predicted."""
        found = []
        carried = [edge for edge in self.edges if edge.kind == "carried by attention"]
        if carried:
            norms = sum(
                abs(e.norms_held - e.weight) <= self.tolerance * abs(e.weight) + e.floor
                for e in carried
            )
            found.append(
                f"{norms} of the {len(carried)} carried by attention agree with norm scales alone "
                "held."
            )
        flipped = [edge for edge in self.edges if edge.kind == "gate flips"]
        if flipped:
            moved = sum(self._moves(edge) for edge in flipped)
            found.append(
                f"{moved} of the {len(flipped)} whose target's gate flips move it by their weight "
                "all the same."
            )
        return found

    def _moves(self, edge: CheckedEdge) -> bool:
        """Whether direct and total effect of the ablation agree, whatever the gate does."""
        allowed = self.tolerance * abs(edge.weight) + edge.floor
        return all(abs(measured - edge.weight) <= allowed for measured in (edge.direct, edge.total))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a line for each edge, the fields of `CheckedEdge`."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise GossamerError(
                "to_dataframe needs the package pandas: pip install 'gossamer[notebook]'; "
                "or write the same numbers with save(path)."
            ) from error
        return pandas.DataFrame(self.edges, columns=list(CheckedEdge._fields))

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """A page that opens offline: predicted against measured, and every edge."""
        from gossamer.attribution.verifying.page import report_page
        from gossamer.views.page import write_page

        return write_page(path, report_page(self))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Everything as JSON, in one move; `VerifyReport.load` gives it back."""
        parts = {
            "format": FORMAT,
            "about": dict(self.about),
            "edges": [edge._asdict() for edge in self.edges],
            "nodes": [node._asdict() for node in self.nodes],
        }
        write_text(json.dumps(parts) + "\n", Path(path))
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "VerifyReport":
        """What `save` wrote. FormatError when the file is missing, damaged or of another kind."""
        try:
            parts = json.loads(Path(path).read_text(encoding="utf-8"))
            if parts["format"] != FORMAT:
                raise KeyError("format")
            edges = tuple(CheckedEdge(**edge) for edge in parts["edges"])
            nodes = tuple(CheckedNode(**node) for node in parts["nodes"])
            return VerifyReport(edges, nodes, dict(parts["about"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{path} is not a report of verify; give the path of one that its save wrote."
            ) from error
