"""The K strongest rows into each target latent of a table, and an account of the others."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from gossamer.attribution.over.found import BUCKETS
from gossamer.attribution.over.gathered import Pair
from gossamer.attribution.over.sums import Run, Sums
from gossamer.errors import GossamerError

TARGETS_AT_ONCE = 64
"""Target latents whose rows are looked at together."""


class Dropped(NamedTuple):
    """What a table lacks of each target latent of one site."""

    counts: Int64[np.ndarray, " d_sae"]
    """Rows that were dropped."""

    sums: Float[np.ndarray, " d_sae"]
    """Σ over them of Σ A."""

    sizes: Float[np.ndarray, " d_sae"]
    """Σ over them of Σ |A|."""

    best: Float[np.ndarray, " d_sae"]
    """The largest number by which rows were ranked, among them; 0 when none was dropped."""


Score = Callable[[Pair, Sums], np.ndarray]
"""What rows are ranked by."""


def strongest(
    pairs: Mapping[Pair, Run], widths: Mapping[str, int], k: int, score: Score
) -> tuple[dict[Pair, Run], dict[str, Dropped]]:
    """The k strongest rows into each target latent, over all sources and offsets, ties in the order
    of the pairs; and what each target lost, by site."""
    if k < 1:
        raise GossamerError(f"k is how many rows to keep of each target, 1 or more, got {k}.")
    kept: dict[Pair, list[Sums]] = {pair: [] for pair in pairs}
    dropped: dict[str, Dropped] = {}
    for site in widths:
        some = {pair: run for pair, run in pairs.items() if pair[0] == site}
        if some:
            dropped[site] = _of_site(some, widths, (k, score), kept)
    return {pair: _in_order(parts) for pair, parts in kept.items()}, dropped


def _of_site(
    pairs: Mapping[Pair, Run],
    widths: Mapping[str, int],
    how: tuple[int, Score],
    kept: dict[Pair, list[Sums]],
) -> Dropped:
    """The strongest rows of one site's targets, into `kept`, and what was dropped."""
    k, score = how
    d_sae = widths[next(iter(pairs))[0]]
    lost = Dropped(np.zeros(d_sae, np.int64), np.zeros(d_sae), np.zeros(d_sae), np.zeros(d_sae))
    for first in range(0, d_sae, TARGETS_AT_ONCE):
        some = range(first, min(first + TARGETS_AT_ONCE, d_sae))
        parts = [(pair, part) for pair in pairs for part in _rows_into(pairs, widths, pair, some)]
        if not parts:
            continue
        scores = np.concatenate([score(pair, part) for pair, part in parts])
        targets = np.concatenate([part.keys // widths[pair[1]] % d_sae for pair, part in parts])
        order = np.lexsort((-scores, targets))  # stable
        firsts = np.searchsorted(targets[order], targets[order])
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - firsts
        start = 0
        for pair, part in parts:
            here = slice(start, start := start + len(part.keys))
            keep = rank[here] < k
            kept[pair].append(part.at(np.flatnonzero(keep)))
            away = part.at(np.flatnonzero(~keep))
            owners = targets[here][~keep]
            lost.counts[:] += np.bincount(owners, minlength=d_sae)
            lost.sums[:] += np.bincount(owners, away.sums, d_sae)
            lost.sizes[:] += np.bincount(owners, away.sizes, d_sae)
            np.maximum.at(lost.best, owners, scores[here][~keep])
    return lost


def _rows_into(
    pairs: Mapping[Pair, Run], widths: Mapping[str, int], pair: Pair, targets: range
) -> list[Sums]:
    """The rows of one pair into some target latents."""
    width, d_sae = widths[pair[1]], widths[pair[0]]
    found = []
    for bucket in range(len(BUCKETS)):
        low, high = ((bucket * d_sae + t) * width for t in (targets.start, targets.stop))
        found += [segment.within(low, high) for segment in pairs[pair]]
    return [part for part in found if len(part.keys)]


def _in_order(parts: Sequence[Sums]) -> list[Sums]:
    """One segment, keys ascending."""
    if not parts:
        return []
    whole = Sums(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return [whole.at(np.argsort(whole.keys))]
