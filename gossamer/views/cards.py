"""Report cards as one offline page, from the plain values of a report."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.views.blob import pack
from gossamer.views.page import page, write_page


def cards_to_html(
    report: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    labels: Mapping[str, Sequence[str]] = {},
    excerpts: Mapping[str, Mapping[int, Sequence[str]]] = {},
) -> Path:
    """Write a report as a page.

    Args:
        report: `saes` by site with their numbers and `latents`, `next_tokens`, `tokens` by id, and
            what was evaluated.
        path: of the page.
        labels: by site a short text for each latent.
        excerpts: by site and latent texts to show under the pointer.
    """
    arrays: dict[str, np.ndarray] = {}
    saes = {}
    for site, card in report["saes"].items():
        columns = card.get("latents", {})
        saes[site] = {name: value for name, value in card.items() if name != "latents"}
        saes[site]["columns"] = list(columns)
        for name, values in columns.items():
            arrays[f"{site}/{name}"] = _array(values)
    named = ("model", "corpus", "context", "n_tokens", "n_predicted")
    about = {
        "saes": saes,
        "next_tokens": report.get("next_tokens", []),
        "tokens": {str(i): text for i, text in report.get("tokens", {}).items()},
        "labels": {site: list(names) for site, names in labels.items()},
        "excerpts": {
            site: {str(latent): list(texts) for latent, texts in found.items() if texts}
            for site, found in excerpts.items()
            if site in saes
        },
        **{name: report.get(name) for name in named},
    }
    title = f"{report.get('model')}: {len(saes)} SAE{'s' if len(saes) > 1 else ''}"
    text = page(
        "cards.js",
        title=title,
        state={"title": title},
        data=pack(arrays, about),
        fallback=_table(saes, title),
    )
    return write_page(path, text)


def _array(values: Sequence[Any]) -> np.ndarray:
    """int32 or float32, with nan for None."""
    flat = np.array(values, dtype=object).reshape(-1)
    if all(isinstance(value, int) for value in flat):
        return flat.astype(np.int32)
    return np.array([np.nan if value is None else value for value in flat], dtype=np.float32)


def _table(saes: Mapping[str, Any], title: str) -> str:
    """The single numbers, for where no script runs."""
    names = [n for n, v in next(iter(saes.values()), {}).items() if isinstance(v, float)]
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in ("SAE", *names))
    body = ""
    for site, card in saes.items():
        cells = [site, *(f"{card[n]:.4g}" if card[n] is not None else "" for n in names)]
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<table><caption>{html.escape(title)}</caption><tr>{heads}</tr>{body}</table>"
