"""A Jacobian as one offline page, from plain numbers: the block of each token, strongest pairs."""

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.views.blob import pack
from gossamer.views.page import page, write_page
from gossamer.views.text import show_token


def jacobian_to_html(
    arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], path: str | os.PathLike[str]
) -> Path:
    """Write the page.

    Args:
        arrays: values (pos, k_out, k_in), comparable likewise, indices and activations of both
            sides, and the sweeps' values and outputs.
        about: title, note, tokens, labels, density, strongest entries, shapes, as JSON values.
        path: of the page.
    """
    narrow = {name: _narrow(array) for name, array in arrays.items()}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    text = page(
        "jacobian.js",
        title=str(about["title"]),
        state={"title": about["title"], "position": about["position"]},
        data=pack(narrow, {**about, "shapes": shapes}),
        fallback=_table(about),
    )
    return write_page(path, text)


def _narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)


def _table(about: Mapping[str, Any]) -> str:
    """The strongest entries, for where no script runs."""
    lines = "".join(
        f"<tr><td>{html.escape(e['source'])}</td><td>{html.escape(show_token(e['source_label']))}</td>"
        f"<td>{html.escape(e['target'])}</td><td>{html.escape(show_token(e['target_label']))}</td>"
        f"<td>{e['value']:+.4g}</td><td>{e['attribution']:+.4g}</td></tr>"
        for e in about["strongest"]
    )
    return (
        f"<table><caption>{html.escape(str(about['title']))}: strongest pairs</caption><thead><tr>"
        "<th>source</th><th>fires on</th><th>target</th><th>fires on</th><th>derivative</th>"
        f"<th>times activation</th></tr></thead><tbody>{lines}</tbody></table>"
    )
