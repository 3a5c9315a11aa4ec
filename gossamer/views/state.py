"""What a reader of the matrix chooses, as observed traits: the same in every host, no Jupyter here.

A trait marked `sync` is sent to the browser and back. Values are replaced, never changed in place:
traits notice a new value only.
"""

import math
from typing import Any

from traitlets import Bool, Enum, Float, HasTraits, List, Tuple, Unicode, validate

from gossamer.errors import GossamerError, SiteError

SCALES = ("log", "root", "linear")
"""How a value becomes a strength of colour; "log" tells three decades apart."""

ORDERS = ("strength", "target", "source", "value", "gradient")
"""Columns the table can be sorted by; a minus sign before the name turns the order round."""


class MatrixState(HasTraits):
    """The choices of one matrix view."""

    selected = List(Unicode()).tag(sync=True)
    """Ids of the selected row and column; empty when nothing is selected."""

    threshold = Float(0.0).tag(sync=True)
    """Entries below it in size are hidden."""

    cross_only = Bool(False).tag(sync=True)
    """Whether entries whose two nodes share a position are hidden."""

    scale = Enum(SCALES, "log").tag(sync=True)
    """Colour by the logarithm of the size, by its square root, or by the size itself."""

    sources_by = Unicode("").tag(sync=True)
    """Id of the row whose entries order the columns, largest first; empty for prompt order."""

    targets_by = Unicode("").tag(sync=True)
    """Id of the column whose entries order the rows, largest first; empty for prompt order."""

    sort_by = Enum((*ORDERS, *(f"-{order}" for order in ORDERS)), "strength").tag(sync=True)
    """Order of the table."""

    row_ids = Tuple()
    """The ids that rows have."""

    column_ids = Tuple()
    """The ids that columns have."""

    @validate("selected")
    def _check_selected(self, proposal: Any) -> list[str]:
        value = proposal["value"]
        if value and len(value) != 2:
            raise GossamerError(
                f"A selection is [row id, column id], or [] for none; got {value!r}."
            )
        for node, ids, kind in zip(
            value, (self.row_ids, self.column_ids), ("row", "column"), strict=False
        ):
            _check_id(node, ids, kind)
        return value

    @validate("sources_by")
    def _check_sources_by(self, proposal: Any) -> str:
        return _check_id(proposal["value"], self.row_ids, "row")

    @validate("targets_by")
    def _check_targets_by(self, proposal: Any) -> str:
        return _check_id(proposal["value"], self.column_ids, "column")

    @validate("threshold")
    def _check_threshold(self, proposal: Any) -> float:
        value = proposal["value"]
        if not (math.isfinite(value) and value >= 0):
            raise GossamerError(f"A threshold is a finite number from 0 up, got {value}.")
        return value


def _check_id(node: str, ids: tuple[Any, ...], kind: str) -> str:
    """The id; SiteError when no row or column has it."""
    if node and node not in ids:
        known = ", ".join(ids[:3]) or "none"
        raise SiteError(
            f"No {kind} of this matrix is {node!r}; it has {len(ids)} {kind}s, such as: {known}."
        )
    return node
