"""What a node of a graph writes, and what is left of it when a share of it is taken away.

    latent f → (1 − share) f      error e → (1 − share) e      embedding x → (1 − share) x

A latent's change goes through its SAE's decoder, with the SAE's input as it was; everything else at
the site stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gossamer.attribution.nodes import Clean
from gossamer.errors import SiteError
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.saes.rows import write_rows
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.sites import BEFORE_BLOCKS

CHANGEABLE = ("latent", "error", "token", "position")
"""Kinds of nodes of which a share can be taken away."""


@dataclass(frozen=True, slots=True)
class Source:
    """One node that can be changed."""

    site: str
    """Where it writes."""

    position: int
    """In the prompt."""

    written: Float[Tensor, " width"]
    """What it writes there: activation times decoder row, error, or embedding."""

    latent: int | None
    """Of an SAE whose decoder is not linear in its latents, which one it is; else None."""


def changeable(nodes: Nodes) -> Bool[np.ndarray, " n"]:
    """Which nodes can be changed."""
    return nodes.of_kind(*CHANGEABLE)


def sources_of(
    nodes: Nodes, chosen: Int[np.ndarray, " n_chosen"], clean: Clean, saes: dict[str, SparseCoder]
) -> list[Source]:
    """What some nodes write, in the order given. SiteError for one that cannot be changed."""
    found: dict[int, Source] = {}
    for site in {int(nodes.site_of[i]) for i in chosen}:
        for kind in range(len(KINDS)):
            here = (nodes.site_of[chosen] == site) & (nodes.kinds[chosen] == kind)
            some = [int(i) for i in chosen[here]]
            if some:
                made = _written(nodes, some, clean, saes)
                found |= dict(zip(some, made, strict=True))
    return [found[int(i)] for i in chosen]


def _written(
    nodes: Nodes, some: Sequence[int], clean: Clean, saes: dict[str, SparseCoder]
) -> list[Source]:
    """The sources among nodes of one kind at one site."""
    node = nodes[some[0]]
    if node.kind not in CHANGEABLE or (node.kind in ("token", "position")) != (
        node.site in BEFORE_BLOCKS
    ):
        raise SiteError(
            f"{node.id} cannot be changed; latents, errors, tokens and position embeddings can."
        )
    positions = torch.as_tensor(nodes.positions[some].astype(np.int64))
    if node.kind in ("token", "position"):
        written, latents = clean.at(node.site)[positions], [None] * len(some)
    else:
        sae = saes[node.site]
        x = clean.at(sae.site_in)[positions]
        encoded = sae.encode(x)
        if node.kind == "error":
            written, latents = clean.at(node.site)[positions] - sae.decode(encoded, x), [None]
            latents *= len(some)
        else:
            units = torch.as_tensor(nodes.units[some])
            values = encoded[torch.arange(len(some)), units]
            written = values[:, None] * write_rows(sae, units.to(x.device), x)
            latents = [None if isinstance(sae, SAE) else int(unit) for unit in units]
    return [
        Source(node.site, int(position), row, latent)
        for position, row, latent in zip(positions, written, latents, strict=True)
    ]


def taken(
    source: Source, share: float, clean: Clean, saes: dict[str, SparseCoder]
) -> Float[Tensor, " width"]:
    """What is gone from the value at the source's site when a share of the source is taken away."""
    if source.latent is None:
        return share * source.written
    sae = saes[source.site]
    x = clean.at(sae.site_in)[source.position][None]
    before = sae.encode(x)
    after = before.clone()
    after[0, source.latent] *= 1 - share
    return (sae.decode(before, x) - sae.decode(after, x))[0]
