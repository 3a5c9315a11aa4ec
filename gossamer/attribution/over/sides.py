"""What is counted of each latent by itself, beside edges: how often it is active, how much."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from gossamer.attribution.over.found import Active
from gossamer.attribution.over.sums import on_grid


class Side(NamedTuple):
    """The latents of one SAE over a corpus."""

    counts: Int64[np.ndarray, " d_sae"]
    """Tokens at which each is active."""

    sums: Float[np.ndarray, " d_sae"]
    """Σ of its activation."""


Sides = Mapping[str, Side]
"""By the site where the SAE writes."""


def no_sides(widths: Mapping[str, int]) -> Sides:
    """Nothing counted."""
    return {site: Side(np.zeros(d, np.int64), np.zeros(d)) for site, d in widths.items()}


def sides_of(latents: Mapping[str, Active], widths: Mapping[str, int], resolution: float) -> Sides:
    """Those of one prompt."""
    found = {}
    for site, each in latents.items():
        indices = each.latents.cpu().numpy()
        values = on_grid(each.values.detach().cpu().numpy(), resolution)
        d_sae = widths[site]
        sums = np.bincount(indices, values, d_sae)
        found[site] = Side(np.bincount(indices, minlength=d_sae), sums)
    return found


def both(a: Sides, b: Sides) -> Sides:
    """Added up."""
    return {site: Side(a[site].counts + b[site].counts, a[site].sums + b[site].sums) for site in a}
