"""Dashboards of latents as one offline page, from plain numbers."""

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gossamer.views.blob import pack
from gossamer.views.page import page, write_page
from gossamer.views.text import show_token

NEURONPEDIA = "www.neuronpedia.org"
"""Where a latent with an id has its public page."""


def latents_to_html(
    tensors: Mapping[str, Any], about: Mapping[str, Any], path: str | os.PathLike[str]
) -> Path:
    """Write a page: a list of latents, the card of one, and of a second beside it.

    Args:
        tensors: a dashboard's numbers by name, as its file has them.
        about: everything else, as JSON values.
        path: of the page.
    """
    arrays = {name: _narrow(np.asarray(values)) for name, values in tensors.items()}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    title = f"{about['site_out']}: {len(arrays['latents'])} latents"
    public = about["about"].get("neuronpedia_id")
    text = page(
        "latents.js",
        title=title,
        state={"title": title, "first": 0, "second": -1},
        data=pack(
            arrays,
            {
                **about,
                "shapes": shapes,
                "link": f"https://{NEURONPEDIA}/{public}" if public else "",
            },
        ),
        fallback=_table(arrays, about, title),
    )
    return write_page(path, text)


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)


def _table(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], title: str) -> str:
    """The latents in a line each, for where no script runs."""
    body = "".join(
        f"<tr><td>{latent}</td><td>{html.escape(show_token(name))}</td><td>{firings}</td></tr>"
        for latent, name, firings in zip(
            arrays["latents"].tolist(), about["names"], arrays["firings"].tolist(), strict=True
        )
    )
    heads = "<tr><th>latent</th><th>fires on</th><th>tokens</th></tr>"
    return f"<table><caption>{html.escape(title)}</caption>{heads}{body}</table>"
