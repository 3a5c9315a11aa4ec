"""Places along a run where nodes write and are read, in forward order.

    embedding < (layer 0: resid_pre, z, attn_out, …, resid_post) < … < final

A spliced site is two places: *before* its splice, where its own SAE reads and where the constants
of the module behind it are added, and *after* it, where its nodes have written.
"""

from typing import NamedTuple

from gossamer.errors import SiteError
from gossamer.sites import parse_site

STATIONS = (
    "hook_resid_pre",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_normalized",
    "mlp.hook_in",
    "hook_mlp_out",
    "hook_resid_post",
)
"""Kinds of site where SAEs of a graph may read and write, in forward order."""

PRE, Z, ATTN_OUT, MID, NORMALIZED, IN, MLP_OUT, POST = range(len(STATIONS))
"""The same as numbers."""


class Place(NamedTuple):
    """A place; places compare in forward order."""

    layer: int
    """The block; −1 for the embedding, the number of blocks behind the last one."""

    station: int
    """Number in STATIONS."""

    after: bool
    """After the splice there."""


EMBEDDING = Place(-1, 0, True)
"""Where tokens and positions write."""


def final(n_layers: int) -> Place:
    """What the final norm gives: where logits are read."""
    return Place(n_layers, 0, True)


def place_of(site: str, *, after: bool) -> Place:
    """The place of a site. SiteError for a kind where no SAE of a graph can stand."""
    parsed = parse_site(site)
    if parsed.layer is None or parsed.kind not in STATIONS:
        raise SiteError(
            f"A graph takes SAEs at {', '.join(STATIONS)} of a block, got one at {site}; leave it "
            "out of saes."
        )
    return Place(parsed.layer, STATIONS.index(parsed.kind), after)


def site_at(layer: int, station: int) -> str:
    """The site of a station."""
    return f"blocks.{layer}.{STATIONS[station]}"
