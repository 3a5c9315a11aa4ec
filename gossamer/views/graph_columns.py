"""The tables of a graph view: its nodes and its edges as columns, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Integer

from gossamer.errors import GossamerError, ShapeError

KINDS = ("latent", "error", "token", "position", "bias", "remainder", "logit")
"""What a node can be; each has its glyph."""

CLASSES = ("", "holds", "gate flips", "carried by attention", "cancels", "other")
"""What a check of an edge in the true model found; empty where it was not checked."""

SIDES = ("", "first", "second", "both", "changed")
"""Of two prompts: in which a node or edge is. "changed" is in both with another size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNodes:
    """Nodes, one in each row of every column."""

    ids: Sequence[str]
    """Node ids, each once."""

    kinds: Sequence[str]
    """Of KINDS."""

    rows: Integer[np.ndarray, " n"]
    """Row in the grid from 0 at the bottom: the place in `row_names`."""

    positions: Integer[np.ndarray, " n"]
    """Position in the prompt: the column in the grid."""

    indices: Integer[np.ndarray, " n"]
    """Latent or token id; −1 where there is none."""

    values: Float[np.ndarray, " n"]
    """Activation of a latent, score of a logit; 1 for a leaf."""

    labels: Sequence[str]
    """What each means: a latent's label, a token's text; empty where it is not known."""

    influence: Float[np.ndarray, " n"]
    """Influence on the targets, from 0 up, in the whole graph."""

    weights: Float[np.ndarray, " n"]
    """How much a target counts; 0 for everything else."""

    input_totals: Float[np.ndarray, " n"]
    """Sum of the sizes of all edges into each, before any was left out; 0 for a leaf."""

    sides: Sequence[str] = ()
    """Of SIDES; empty for a graph of one prompt."""

    excerpts: Sequence[Sequence[str]] = ()
    """Texts on which each fires; empty when there are none for any."""

    links: Sequence[str] = ()
    """An address with more about each, "" for none; shown as a link out, never fetched."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        _check_lengths(self, "nodes", n, optional=("sides", "excerpts", "links"))
        if len(set(self.ids)) < n:
            twice = next(i for i in self.ids if list(self.ids).count(i) > 1)
            raise GossamerError(f"Node ids are unique; {twice!r} stands among the nodes twice.")
        _check_known(self.kinds, KINDS, "kind of a node")
        _check_known(self.sides, SIDES, "side of a node")
        for name in ("values", "influence", "weights", "input_totals"):
            _check_finite(getattr(self, name), f"{name} of the nodes")
        for name in ("influence", "weights", "input_totals"):
            column = getattr(self, name)
            if n and column.min() < 0:
                raise GossamerError(f"{name} of nodes are from 0 up, got {column.min():.4g}.")
        for link in self.links:
            if link and not link.startswith("https://"):
                raise GossamerError(f"A link out begins with https://, got {link!r}.")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEdges:
    """Edges, one in each row of every column; in any order."""

    sources: Integer[np.ndarray, " m"]
    """Node from which each goes: its row among the nodes."""

    targets: Integer[np.ndarray, " m"]
    """Node into which each goes."""

    weights: Float[np.ndarray, " m"]
    """Signed effect of the source on what the target reads."""

    measured: Float[np.ndarray, " m"] | None = None
    """The same effect measured in the true model, NaN where it was not; None when none was."""

    classes: Sequence[str] = ()
    """Of CLASSES; empty when no edge was checked."""

    sides: Sequence[str] = ()
    """Of SIDES; empty for a graph of one prompt."""

    def __post_init__(self) -> None:
        m = len(self.sources)
        _check_lengths(self, "edges", m, optional=("measured", "classes", "sides"))
        _check_known(self.classes, CLASSES, "class of an edge")
        _check_known(self.sides, SIDES, "side of an edge")
        _check_finite(self.weights, "weights of the edges")
        if self.measured is not None:
            _check_finite(self.measured[~np.isnan(self.measured)], "measured effects")
        if m and (self.sources == self.targets).any():
            raise GossamerError("An edge goes from one node to another, not back into its own.")
        n = 1 + int(max(self.sources.max(), self.targets.max())) if m else 0
        pairs = self.targets.astype(np.int64) * n + self.sources
        if len(np.unique(pairs)) < m:
            raise GossamerError("Two nodes have one edge at most; add up those that stand twice.")

    def __len__(self) -> int:
        return len(self.sources)


def _check_lengths(
    table: GraphNodes | GraphEdges, name: str, n: int, *, optional: tuple[str, ...]
) -> None:
    """ShapeError when a column is neither n long nor one that may be left out."""
    lengths = {}
    for column in fields(table):
        values = getattr(table, column.name)
        length = 0 if values is None else len(values)
        if length != n and not (column.name in optional and length == 0):
            lengths[column.name] = length
    if lengths:
        raise ShapeError(f"There are {n} {name}, but columns of another length: {lengths}.")


def _check_known(values: Sequence[str], known: tuple[str, ...], what: str) -> None:
    """GossamerError when a word is none of those known."""
    for value in sorted(set(values) - set(known)):
        allowed = ", ".join(repr(one) for one in known)
        raise GossamerError(f"{value!r} is no {what}; write one of {allowed}.")


def _check_finite(values: Float[np.ndarray, "..."], name: str) -> None:
    """GossamerError when a number is not finite in float32."""
    # A NaN makes the comparison false, as an infinity does.
    if values.size and not np.abs(values).max() <= np.finfo(np.float32).max:
        raise GossamerError(
            f"The {name} are not all finite float32 numbers; draw them without NaN and infinity."
        )
