"""Active (latent, token) pairs of a corpus, gathered in one pass within a bound on memory.

While they fit every pair is kept. Past the bound whole blocks are dropped, latent by latent: kept
are those with the largest maxima, and a sample by a hash of (latent, block), which does not depend
on the order or size of batches. What is counted (firings, maxima, tokens, pairs of latents) counts
all pairs in any case.

What several processes gathered is put together in each of them, one process's pairs after another's
and within the same bound: each block was seen by one of them whole, so the same blocks are kept.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from gossamer.dashboards.together import Together
from gossamer.distributed import gathered, largest, ranks, spread, total
from gossamer.saes.sae import SparseLatents

MAX_PAIRS = 8_000_000
"""Pairs that are kept; 20 bytes each, several times that while they are sorted."""

LOOSE_WORDS = 2_000_000
"""Squares by latent and token that wait before they are added up."""

N_TOP = 32
"""Blocks with the largest maxima that are kept of each latent; more where more are shown."""

N_SAMPLED = 128
"""Blocks that are kept of each latent as a sample."""


class Pairs(NamedTuple):
    """Columns; `place` is block · context + position."""

    latents: Int64[Tensor, " n"]
    """Row of the latent among those that are watched."""

    places: Int64[Tensor, " n"]
    """Where in the corpus."""

    values: Float[Tensor, " n"]
    """Activations, none 0."""

    def chosen(self, which: Tensor) -> "Pairs":
        """Some of them."""
        return Pairs(self.latents[which], self.places[which], self.values[which])


@dataclass(slots=True)
class Gathered:
    """What is known after some batches."""

    context: int
    """Positions of a block."""

    firings: Int64[Tensor, " n_latents"]
    """Tokens on which each watched latent was active."""

    maxima: Float[Tensor, " n_latents"]
    """The largest activation of each."""

    rank: Int64[Tensor, " d_sae"]
    """Row of each latent of the SAE among those that are watched; -1 for the others."""

    together: Together | None
    """Tokens on which both of two were active; None where that is not counted."""

    all_firings: Int64[Tensor, " d_sae"]
    """Firings of every latent of the SAE."""

    n_top: int
    """Strongest blocks of each latent that are shown."""

    parts: list[Pairs]
    """Kept pairs."""

    n_kept: int = 0
    """How many those are."""

    sampled: bool = False
    """Whether some pairs were dropped."""

    loose: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """What `words` adds up."""

    def add(self, latents: SparseLatents, places: Int64[Tensor, " rows"]) -> Pairs:
        """Take in consecutive tokens; returns the watched pairs, in the order of places."""
        indices, offsets = latents.indices.cpu(), latents.offsets.cpu()
        self.all_firings += torch.bincount(indices, minlength=latents.d_sae)
        if self.together is not None:
            self.together.add_(indices, offsets)
        rows = torch.arange(len(places)).repeat_interleave(offsets.diff())
        columns = self.rank[indices]
        mine = columns >= 0
        values = latents.values.float().cpu()[mine]
        pairs = Pairs(columns[mine], places[rows[mine]], values)
        self.firings += torch.bincount(pairs.latents, minlength=len(self.firings))
        self.maxima.scatter_reduce_(0, pairs.latents, values, "amax")
        self.parts.append(pairs)
        self.n_kept += len(values)
        return pairs

    def fit(self) -> None:
        """Keep within the bound; all pairs of the blocks so far are there."""
        if self.n_kept > MAX_PAIRS:
            self._drop()

    def add_words(self, pairs: Pairs, tokens: Int64[Tensor, " n"], d_vocab: int) -> None:
        """Add up the squares of activations by latent and token."""
        self.loose.append((pairs.latents * d_vocab + tokens, pairs.values.double().square()))
        if sum(len(keys) for keys, _ in self.loose[1:]) > max(LOOSE_WORDS, len(self.loose[0][0])):
            self.words()

    def merge(self) -> None:
        """Put together what the processes that share the corpus have gathered, in each of them. It
        is then what one process would have, all pairs in the order of places."""
        if ranks().size == 1:
            self._settle()
            return
        self.firings, self.all_firings = total(self.firings), total(self.all_firings)
        self.maxima = largest(self.maxima)
        if self.together is not None:
            self.together.merge()
        mine, (keys, squares) = self.pairs(), self.words()
        self.parts, self.n_kept, self.loose = [], 0, []
        for rank, (n_pairs, n_words) in enumerate(gathered((len(mine.values), len(keys)))):
            self.parts.append(Pairs(*(_of(rank, column, n_pairs) for column in mine)))
            self.n_kept += n_pairs
            self.fit()
            self.loose.append((_of(rank, keys, n_words), _of(rank, squares, n_words)))
            self.words()
        self.sampled = int(self.firings.sum()) > MAX_PAIRS
        pairs = self.pairs()
        self.parts = [pairs.chosen(pairs.places.argsort(stable=True))]
        self._settle()

    def _settle(self) -> None:
        """Where pairs were dropped: keep of the last ones, too, no more than of the first."""
        if self.sampled:
            self._drop()

    def words(self) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
        """(latent · d_vocab + token, Σ activation²), the first sorted and unique."""
        if not self.loose:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
        keys, squares = (torch.cat(column) for column in zip(*self.loose, strict=True))
        unique, inverse = keys.unique(return_inverse=True)
        sums = squares.new_zeros(len(unique)).index_add_(0, inverse, squares)
        self.loose = [(unique, sums)]
        return unique, sums

    def pairs(self) -> Pairs:
        """All kept pairs in one."""
        if not self.parts:
            empty = torch.zeros(0, dtype=torch.long)
            return Pairs(empty, empty, torch.zeros(0))
        return Pairs(*(torch.cat(column) for column in zip(*self.parts, strict=True)))

    def in_sample(self, pairs: Pairs) -> Bool[Tensor, " n"]:
        """Which of the kept pairs are a fair sample: all, until some were dropped."""
        if not self.sampled:
            return torch.ones(len(pairs.values), dtype=torch.bool)
        groups, inverse = _groups(pairs, self.context)
        return (rank_within(groups.latents, groups.priorities) < N_SAMPLED)[inverse]

    def _drop(self) -> None:
        """Keep the strongest blocks and the sample of each latent."""
        pairs = self.pairs()
        groups, inverse = _groups(pairs, self.context)
        n_top = max(N_TOP, self.n_top)
        strongest = rank_within(groups.latents, -groups.maxima.double()) < n_top
        sample = rank_within(groups.latents, groups.priorities) < N_SAMPLED
        self.parts = [pairs.chosen((strongest | sample)[inverse])]
        self.n_kept = len(self.parts[0].values)
        self.sampled = True


def _of(rank: int, column: Tensor, n: int) -> Tensor:
    """The column of another process, which has n rows."""
    return spread(column if ranks().rank == rank else column.new_empty(n), rank)


class _Groups(NamedTuple):
    """Blocks in which a latent is active."""

    latents: Tensor
    maxima: Tensor
    priorities: Tensor


def _groups(pairs: Pairs, context: int) -> tuple[_Groups, Int64[Tensor, " n"]]:
    """The groups, and to which each pair belongs."""
    blocks = pairs.places // context
    n_blocks = int(blocks.max()) + 1 if len(blocks) else 1
    keys, inverse = (pairs.latents * n_blocks + blocks).unique(return_inverse=True)
    maxima = pairs.values.new_full((len(keys),), -torch.inf)
    maxima.scatter_reduce_(0, inverse, pairs.values, "amax")
    return _Groups(keys // n_blocks, maxima, scrambled(keys // n_blocks, keys % n_blocks)), inverse


def rank_within(groups: Int64[Tensor, " n"], by: Tensor) -> Int64[Tensor, " n"]:
    """The place of each within its group, smallest `by` first."""
    order = by.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    ordered = groups[order]
    starts = torch.searchsorted(ordered, ordered)  # the first of each run
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - starts
    return ranks


def scrambled(a: Int64[Tensor, " n"], b: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Numbers that look random and are a function of both (the finalizer of MurmurHash3)."""
    mixed = a * 0x9E3779B1 + b * 0x85EBCA6B
    for factor in (0x7F51AFD7ED558CCD, 0x44CEB9FE1A85EC53):
        mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * factor
    return mixed ^ ((mixed >> 33) & 0x7FFFFFFF)
