"""What a node of a graph writes, and what is left of it when a share of it is taken away.

    latent f → (1 − share) f      error e → (1 − share) e      embedding x → (1 − share) x

A latent's change goes through its SAE's decoder, with the SAE's input as it was; everything else at
the site stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gossamer.attribution.nodes import Clean
from gossamer.errors import SiteError
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.saes.crosscoder import Face, encode_read, parts_at, read_by
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.sets import earlier, rows_written
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

    elsewhere: Mapping[str, Float[Tensor, " width"]] = field(default_factory=dict)
    """What it writes at other sites, of a latent that writes several."""


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
    elsewhere: list[dict[str, Tensor]] = [{} for _ in some]
    if node.kind in ("token", "position"):
        written, latents = clean.at(node.site)[positions], [None] * len(some)
    else:
        sae = saes[node.site]
        x = read_by(sae, clean.at)[positions]
        encoded = encode_read(sae, x)
        if node.kind == "error":
            written, latents = clean.at(node.site)[positions] - sae.decode(encoded, x), [None]
            latents *= len(some)
            for other in earlier(saes, node.site):
                before = other.encode(clean.at(other.site_in)[positions])
                written = written - before @ other.weight_at(node.site)
        else:
            units = torch.as_tensor(nodes.units[some])
            values = encoded[torch.arange(len(some)), units]
            rows = {
                site: values[:, None] * each
                for part in parts_at(node.site, saes)
                for site, each in rows_written(part, units.to(x.device), x).items()
            }
            written = rows.pop(node.site)
            elsewhere = [{site: each[i] for site, each in rows.items()} for i in range(len(some))]
            latents = [None if isinstance(sae, SAE | Face) else int(unit) for unit in units]
    return [
        Source(node.site, int(position), row, latent, others)
        for position, row, latent, others in zip(
            positions, written, latents, elsewhere, strict=True
        )
    ]


def taken(
    source: Source, share: float, clean: Clean, saes: dict[str, SparseCoder]
) -> dict[str, Float[Tensor, " width"]]:
    """What is gone from the values at the source's sites when a share of the source is taken
    away."""
    here = _taken_here(source, share, clean, saes)
    return {source.site: here, **{site: share * row for site, row in source.elsewhere.items()}}


def _taken_here(
    source: Source, share: float, clean: Clean, saes: dict[str, SparseCoder]
) -> Float[Tensor, " width"]:
    """The same at its first site."""
    if source.latent is None:
        return share * source.written
    sae = saes[source.site]
    x = clean.at(sae.site_in)[source.position][None]
    before = sae.encode(x)
    after = before.clone()
    after[0, source.latent] *= 1 - share
    return (sae.decode(before, x) - sae.decode(after, x))[0]
