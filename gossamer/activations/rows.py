"""Rows of activations, one for each token that counts: how a block gives them, how batches are cut.

Everything random is a function of a seed and a place in the data, so batch number n can be made
without the ones before it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.corpus import TokenBlock
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import remember
from gossamer.splice import flat

Rows = dict[str, Float[Tensor, "rows width"]]
"""Activations by site."""


class Group(NamedTuple):
    """Rows that are in memory together."""

    n_rows: int
    """How many."""

    load: Callable[[Int64[Tensor, " n"] | None], Rows]
    """Gives those at some places of the order in which they are handed out; None: all of them."""


@torch.no_grad()
def rows_of(
    model: Model, blocks: Sequence[TokenBlock], sites: Sequence[str], *, exclude_special: bool
) -> Rows:
    """Activations at each site of the tokens of some blocks that count, in order."""
    tokens, mask = padded(blocks)
    batch = TokenBatch(tokens.to(model.device), mask.to(model.device))
    seen: dict[str, Tensor] = {}
    model.forward(batch, {site: remember(seen, site) for site in sites}, to_the_end=False)
    chosen = counted(blocks, exclude_special=exclude_special).to(model.device)
    return {site: flat(seen[site])[chosen] for site in sites}


def counted(blocks: Sequence[TokenBlock], *, exclude_special: bool) -> Bool[Tensor, "blocks pos"]:
    """Which tokens of the padded blocks are rows: real ones, special ones unless excluded."""
    longest = max(len(block.tokens) for block in blocks)
    chosen = torch.zeros(len(blocks), longest, dtype=torch.bool)
    for row, block in zip(chosen, blocks, strict=True):
        row[: len(block.tokens)] = ~block.special if exclude_special else True
    return chosen


def padded(
    blocks: Sequence[TokenBlock],
) -> tuple[Int64[Tensor, "blocks pos"], Bool[Tensor, "blocks pos"]]:
    """Tokens and mask of blocks, the shorter ones filled up on the right."""
    longest = max(len(block.tokens) for block in blocks)
    tokens = torch.zeros(len(blocks), longest, dtype=torch.long)
    mask = torch.zeros(len(blocks), longest, dtype=torch.bool)
    for row, block in enumerate(blocks):
        tokens[row, : len(block.tokens)] = block.tokens
        mask[row, : len(block.tokens)] = True
    return tokens, mask


def in_groups(blocks: Iterable[TokenBlock], size: int) -> Iterator[list[TokenBlock]]:
    """Lists of `size` blocks; the last may be shorter."""
    group: list[TokenBlock] = []
    for block in blocks:
        group.append(block)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def order_of(count: int, *place: int) -> Int64[Tensor, " count"]:
    """A permutation that is a function of the numbers that name its place."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(count, generator=generator)


def cut(
    groups: Iterable[Group], size: int, start: int, part: tuple[int, int] = (0, 1)
) -> Iterator[Rows]:
    """Batches of `size` rows from number `start` on; groups before it are not loaded.

    Of each batch only part i of n, for `part=(i, n)`: what others have of it is not loaded.
    """
    low, high = (size * (part[0] + end) // part[1] for end in (0, 1))
    place, left = -size * start, None
    for group in groups:
        first, place = place, place + group.n_rows
        if place <= 0:
            continue
        places = torch.arange(max(0, -first), group.n_rows)
        within = (first + places) % size
        places = places[(low <= within) & (within < high)]
        rows: Any = group.load(None if len(places) == group.n_rows else places)
        if left is not None:
            rows = {site: torch.cat([left[site], values]) for site, values in rows.items()}
        count = len(next(iter(rows.values())))
        each = high - low
        for begin in range(0, count - each + 1, each):
            yield {site: values[begin : begin + each] for site, values in rows.items()}
        left = {site: values[count - count % each :] for site, values in rows.items()}
