"""A table of edges over a corpus as one offline page, from plain rows: sorted and searched."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.views.blob import pack
from gossamer.views.page import page, write_page
from gossamer.views.text import show_token

NUMBERS = (
    "n_edges",
    "mean",
    "error",
    "sum",
    "size",
    "largest",
    "normalised",
    "n_source",
    "n_target",
)
"""Columns with numbers."""

TEXTS = ("source", "source_label", "target", "target_label", "offset")
"""Columns with texts."""


def edge_table_to_html(
    rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any], path: str | os.PathLike[str]
) -> Path:
    """Write the page.

    Args:
        rows: with NUMBERS and TEXTS, in the order in which they are shown first.
        about: model, corpus, n_tokens, n_edges, n_rows, offsets, and `by`, the column by which the
            rows were chosen.
        path: of the page.
    """
    arrays = {name: np.array([row[name] for row in rows], np.float32) for name in NUMBERS}
    texts = {name: [str(row[name]) for row in rows] for name in TEXTS}
    title = f"{about['model']}: {len(rows)} edges over {about['corpus']}"
    text = page(
        "edge_table.js",
        title=title,
        state={"title": title},
        data=pack(arrays, {**about, "title": title, "texts": texts}),
        fallback=_table(rows, title),
    )
    return write_page(path, text)


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The rows, for where no script runs."""
    lines = "".join(
        f"<tr><td>{html.escape(row['source'])}</td>"
        f"<td>{html.escape(show_token(row['source_label']))}</td>"
        f"<td>{html.escape(row['target'])}</td>"
        f"<td>{html.escape(show_token(row['target_label']))}</td>"
        f"<td>{html.escape(row['offset'])}</td><td>{row['n_edges']}</td><td>{row['mean']:+.4g}</td>"
        f"<td>{row['size']:.4g}</td></tr>"
        for row in rows
    )
    return (
        f"<table><caption>{html.escape(title)}</caption><thead><tr><th>source</th><th>fires on</th>"
        "<th>target</th><th>fires on</th><th>offset</th><th>edges</th><th>mean</th>"
        f"<th>sum of sizes</th></tr></thead><tbody>{lines}</tbody></table>"
    )
