"""A matrix of effects to look at: rows are targets, columns are sources, all of it plain data.

The view knows nothing of models: it is given numbers and texts, and shows them in a page or widget.
"""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Integer

from gossamer.errors import GossamerError, ShapeError
from gossamer.views.blob import pack
from gossamer.views.hosts import widget_class, write_view
from gossamer.views.text import show_token

if TYPE_CHECKING:
    from gossamer.views.state import MatrixState
    from gossamer.views.widget import MatrixWidget

MAX_ENTRIES = 36_000_000
"""Entries that a browser still shows at ease: 6,000 × 6,000, 144 MB of float32."""

FALLBACK_ROWS = 20
"""Entries in the static table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeColumn:
    """The nodes along one side of a matrix, in the order they are drawn: by position."""

    name: str
    """Where they are, such as "blocks.3.hook_resid_pre"."""

    ids: Sequence[str]
    """Node ids, each once."""

    positions: Integer[np.ndarray, " n"]
    """Position of each in the prompt."""

    tokens: Sequence[str]
    """The token at each node's position."""

    indices: Integer[np.ndarray, " n"]
    """Latent or token id."""

    values: Float[np.ndarray, " n"]
    """Activation, logit, or 1 for a source token."""

    labels: Sequence[str]
    """What each means; empty where it is not known."""

    excerpts: Sequence[Sequence[str]] = ()
    """Texts on which each fires; empty when there are none for any."""

    def __post_init__(self) -> None:
        lengths = {
            "ids": len(self.ids),
            "positions": len(self.positions),
            "tokens": len(self.tokens),
            "indices": len(self.indices),
            "values": len(self.values),
            "labels": len(self.labels),
            "excerpts": len(self.excerpts) or len(self.labels),
        }
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"The fields of {self.name} differ in length: {lengths}.")
        if len(set(self.ids)) < len(self.ids):
            twice = next(i for i in self.ids if list(self.ids).count(i) > 1)
            raise GossamerError(f"Node ids are unique; {twice!r} stands in {self.name} twice.")
        _check_finite(self.values, f"values of {self.name}")

    def __len__(self) -> int:
        return len(self.ids)

    def titles(self) -> list[str]:
        """One line for each node: `1234 ␣iff @3`."""
        return [
            f"{index} {show_token(token)} @{position}"
            for index, token, position in zip(
                self.indices.tolist(), self.tokens, self.positions.tolist(), strict=True
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixView:
    """A matrix of effects, what its rows and columns are, and what is chosen at first."""

    values: Float[np.ndarray, "n_targets n_sources"]
    """What is drawn; float32 in the browser."""

    rows: NodeColumn
    """The targets."""

    columns: NodeColumn
    """The sources."""

    gradients: Float[np.ndarray, "n_targets n_sources"] | None = None
    """Shown beside the values. Not stored where value = gradient × source activation gives them."""

    title: str = "Effects"
    """Heading of the view."""

    note: str = ""
    """A sentence under the heading: what was held, what was blocked."""

    prompt_tokens: Sequence[str] = ()
    """The prompt, token by token."""

    quantity: str = "attribution"
    """What the values are, in one word."""

    threshold: float = 0.0
    """Entries below it in size are hidden at first."""

    cross_only: bool = False
    """Whether only entries between different positions are shown at first."""

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.columns))
        for name, matrix in (("values", self.values), ("gradients", self.gradients)):
            if matrix is not None and matrix.shape != shape:
                raise ShapeError(
                    f"{name} has shape {matrix.shape}; with {shape[0]} rows (targets) and "
                    f"{shape[1]} columns (sources) it must be {shape}."
                )
        if self.values.size > MAX_ENTRIES:
            raise GossamerError(
                f"{shape[0]} × {shape[1]} entries are too many to look at; a page holds "
                f"{MAX_ENTRIES:,}: keep fewer sources or targets."
            )
        for name, matrix in (("values", self.values), ("gradients", self.gradients)):
            if matrix is not None:
                _check_finite(matrix, name)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the view as one HTML file that opens offline, in one move; returns its path."""
        return write_view(self, "matrix_page.js", path)

    def widget(self) -> "MatrixWidget":
        """The view under a notebook cell, with traits such as `selected` to read and to set."""
        return widget_class("MatrixWidget")(
            data=self.blob(), fallback=self.fallback_html(), **self._ids(), **self._choices()
        )

    def state(self) -> "MatrixState":
        """The choices of this view as observed traits, for a host of its own."""
        from gossamer.views.state import MatrixState

        return MatrixState(**self._ids(), **self._choices())

    def _ids(self) -> dict[str, Any]:
        return {"row_ids": tuple(self.rows.ids), "column_ids": tuple(self.columns.ids)}

    def _choices(self) -> dict[str, Any]:
        return {"threshold": float(self.threshold), "cross_only": self.cross_only}

    def blob(self) -> bytes:
        """The data as the browser reads it."""
        arrays: dict[str, np.ndarray] = {"values": self.values.astype(np.float32)}
        if self.gradients is not None and not self._gradients_follow():
            arrays["gradients"] = self.gradients.astype(np.float32)
        about: dict[str, Any] = {
            "title": self.title,
            "note": self.note,
            "quantity": self.quantity,
            "prompt_tokens": list(self.prompt_tokens),
            "has_gradients": self.gradients is not None,
        }
        for side, nodes in (("rows", self.rows), ("columns", self.columns)):
            arrays[f"{side}.positions"] = nodes.positions.astype(np.int32)
            arrays[f"{side}.indices"] = nodes.indices.astype(np.int32)
            arrays[f"{side}.values"] = nodes.values.astype(np.float32)
            about[side] = {
                "name": nodes.name,
                "ids": list(nodes.ids),
                "tokens": list(nodes.tokens),
                "labels": list(nodes.labels),
                "excerpts": [list(texts) for texts in nodes.excerpts],
            }
        return pack(arrays, about)

    def _gradients_follow(self) -> bool:
        """Whether value / source activation gives the gradients back, to float32's precision."""
        activations = self.columns.values.astype(np.float64)
        if self.gradients is None or not activations.all():
            return False
        return np.allclose(self.values / activations, self.gradients, rtol=1e-5, atol=0)

    def strongest(self, n: int) -> list[tuple[int, int]]:
        """(row, column) of the n entries of largest size that are not 0, strongest first."""
        sizes = np.abs(self.values).ravel()
        n = min(n, int(np.count_nonzero(sizes)))
        found = np.argpartition(-sizes, n - 1)[:n] if n else np.zeros(0, int)
        order = found[np.argsort(-sizes[found], kind="stable")]
        return [divmod(int(i), len(self.columns)) for i in order]

    def fallback_html(self) -> str:
        """The strongest entries as a static table, for where no script runs."""
        rows, columns = self.rows.titles(), self.columns.titles()
        lines = "".join(
            f"<tr><td>{html.escape(rows[r])}</td><td>{html.escape(show_token(self.rows.labels[r]))}</td>"
            f"<td>{html.escape(columns[c])}</td><td>{html.escape(show_token(self.columns.labels[c]))}</td>"
            f"<td>{self.values[r, c]:+.4g}</td></tr>"
            for r, c in self.strongest(FALLBACK_ROWS)
        )
        return (
            f"<table><caption>{html.escape(self.title)}: the strongest of {len(self.rows)} × "
            f"{len(self.columns)} entries</caption><thead><tr><th>target</th><th>means</th>"
            f"<th>source</th><th>means</th><th>{html.escape(self.quantity)}</th></tr></thead>"
            f"<tbody>{lines}</tbody></table>"
        )


def _check_finite(values: Float[np.ndarray, "..."], name: str) -> None:
    """GossamerError when a number is not finite in float32."""
    # A NaN makes the comparison false, as an infinity does.
    if values.size and not np.abs(values).max() <= np.finfo(np.float32).max:
        raise GossamerError(
            f"The {name} are not all finite float32 numbers; draw them without NaN and infinity."
        )
