"""Training curves as one offline page: a quantity over tokens, a line for each SAE."""

import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gossamer.errors import GossamerError
from gossamer.views.page import page, write_page

NOT_CURVES = ("step", "tokens", "trainee", "site_out")
"""Names in a row that say where it stands."""


def curves_to_html(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str = "Training",
    log: bool = False,
) -> Path:
    """Write the rows of a training log as a page.

    A reader chooses the quantity and the axis; `log` is how the page opens. GossamerError when
    there are no rows.
    """
    if not rows:
        raise GossamerError("There are no curves to draw: the training log has no rows.")
    curves = [_curve([row for row in rows if row["trainee"] == place]) for place in _places(rows)]
    text = page(
        "curves.js",
        title=title,
        state={"about": {"title": title, "curves": curves}, "quantity": "fvu", "log": log},
        data=b"",
        fallback=_last_table(rows, title),
    )
    return write_page(path, text)


def _places(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({row["trainee"] for row in rows})


def _curve(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """One SAE's rows as columns; None where a row lacks a quantity or it is not finite."""
    names = list(dict.fromkeys(n for row in rows for n in row if n not in NOT_CURVES))
    return {
        "name": f"{rows[0]['trainee']} {rows[0]['site_out']}",
        "tokens": [row["tokens"] for row in rows],
        "values": {name: [_finite(row.get(name)) for row in rows] for name in names},
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _last_table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The last row of each SAE, for where no script runs."""
    names = [n for n in rows[-1] if n not in NOT_CURVES]
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in ("SAE", "tokens", *names))
    body = ""
    for place in _places(rows):
        row = [row for row in rows if row["trainee"] == place][-1]
        cells = [f"{place} {row['site_out']}", f"{row['tokens']}"]
        cells += [f"{row[name]:.4g}" if name in row else "" for name in names]
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<table><caption>{html.escape(title)}</caption><tr>{heads}</tr>{body}</table>"
