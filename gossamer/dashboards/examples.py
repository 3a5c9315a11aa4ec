"""Examples of a latent: windows of the corpus around its activations."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.dashboards.pairs import Gathered, Pairs, rank_within, scrambled

TOP = 0
"""The group of the strongest examples; quantiles are 1, 2, …, the strongest quantile first."""


class Examples(NamedTuple):
    """Windows, each of `width` tokens; filled up with -1 where the block ends."""

    latents: Int64[Tensor, " n"]
    """Row of the latent among those of the dashboard."""

    groups: Int64[Tensor, " n"]
    """0 for the strongest, from 1 on the quantile, the strongest first."""

    blocks: Int64[Tensor, " n"]
    """Which block of the corpus it is from."""

    positions: Int64[Tensor, " n"]
    """Position in the block of the token that was chosen."""

    tokens: Int64[Tensor, "n width"]
    """Token ids; -1 outside the block."""

    activations: Float[Tensor, "n width"]
    """What the latent is on each."""


def choose(
    gathered: Gathered, pairs: Pairs, *, n_top: int, n_quantiles: int, n_each: int
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """(which pairs to show, their groups): the strongest, no two from one block, then some drawn
    from each quantile of the activations."""
    blocks = pairs.places // gathered.context
    n_blocks = int(blocks.max()) + 1 if len(blocks) else 1
    keys = pairs.latents * n_blocks + blocks
    heads = (rank_within(keys, -pairs.values.double()) == 0).nonzero()[:, 0]
    best = heads[rank_within(pairs.latents[heads], -pairs.values[heads].double()) < n_top]
    fair = gathered.in_sample(pairs).nonzero()[:, 0]
    latents = pairs.latents[fair]
    place = rank_within(latents, -pairs.values[fair].double())
    counts = torch.bincount(latents, minlength=int(latents.max()) + 1 if len(latents) else 0)
    quantiles = place * n_quantiles // counts[latents].clamp(min=1)
    draw = scrambled(latents, pairs.places[fair])
    drawn = rank_within(latents * n_quantiles + quantiles, draw) < n_each
    which = torch.cat([best, fair[drawn]])
    groups = torch.cat([torch.zeros_like(best), quantiles[drawn] + 1])
    order = (pairs.values[which].neg()).argsort(stable=True)
    order = order[(pairs.latents[which] * (n_quantiles + 1) + groups)[order].argsort(stable=True)]
    return which[order], groups[order]


def windows(
    pairs: Pairs,
    chosen: tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]],
    tokens: Int64[Tensor, "blocks context"],
    *,
    before: int,
    after: int,
) -> Examples:
    """The chosen pairs with the tokens around them."""
    which, groups = chosen
    n_blocks, context = tokens.shape
    latents, places = pairs.latents[which], pairs.places[which]
    blocks, positions = places // context, places % context
    around = positions[:, None] + torch.arange(-before, after + 1)
    inside = (around >= 0) & (around < context)
    around = around.clamp(0, context - 1)
    ids = torch.where(inside, tokens[blocks[:, None], around], -1)
    size = n_blocks * context
    known, order = (pairs.latents * size + pairs.places).sort()
    wanted = latents[:, None] * size + blocks[:, None] * context + around
    at = torch.searchsorted(known, wanted).clamp(max=max(0, len(known) - 1))
    found = (known[at] == wanted) & inside & (ids >= 0) if len(known) else inside & False
    values = torch.where(found, pairs.values[order][at], 0.0) if len(known) else ids.float() * 0
    return Examples(latents, groups, blocks, positions, ids, values)
