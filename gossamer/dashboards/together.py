"""How often pairs of latents are active on the same token.

A token with k active latents has at most k² pairs, so the pairs are counted one by one; only where
latents are so dense that a product over all latents is cheaper is that taken.
"""

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from gossamer.distributed import total

MAX_ENTRIES = 256_000_000
"""Entries of the table (watched latents × all latents, 4 bytes each); a larger one is not made."""

TOKENS_AT_ONCE = 256
"""Tokens whose pairs are in memory at once, those with like numbers of latents together."""

ROWS_AT_ONCE = 1024
"""Rows of the table that are added up over processes at once."""

PRODUCT_FROM = 1 / 500
"""Share of all entries from which on the product is faster."""


def why_not(n_latents: int, d_sae: int) -> str | None:
    """Why the table is not made, in a sentence; None when it is."""
    if n_latents * d_sae <= MAX_ENTRIES:
        return None
    return (
        f"Which latents fire together is not counted: {n_latents:,} × {d_sae:,} pairs are more "
        f"than the {MAX_ENTRIES:,} that are kept; ask for fewer latents."
    )


class Together:
    """Tokens on which a watched latent and another latent were both active."""

    def __init__(self, watched: Int64[Tensor, " n_latents"], d_sae: int) -> None:
        self.rank = torch.full((d_sae,), -1)
        self.rank[watched] = torch.arange(len(watched))
        self._table = torch.zeros(len(watched), d_sae + 1, dtype=torch.int32)  # + the padding's

    @property
    def counts(self) -> Int32[Tensor, "n_latents d_sae"]:
        """By watched latent and by latent."""
        return self._table[:, :-1]

    def add_(self, indices: Int64[Tensor, " nnz"], offsets: Int64[Tensor, " n_offsets"]) -> None:
        """Count tokens; token r has the active latents indices[offsets[r] : offsets[r + 1]]."""
        counts = offsets.diff()
        if int(counts.square().sum()) > len(counts) * len(self.rank) ** 2 * PRODUCT_FROM:
            self._add_product(indices, counts)
            return
        for some in counts.argsort().split(TOKENS_AT_ONCE):
            column = torch.arange(int(counts[some].max()))
            inside = column < counts[some, None]
            place = (offsets[some, None] + column).clamp(max=max(0, len(indices) - 1))
            if inside.any():
                self._add_pairs(indices[place].masked_fill(~inside, len(self.rank)))

    def merge(self) -> None:
        """Add up what the processes that share the corpus have counted, in each of them."""
        for rows in self._table.split(ROWS_AT_ONCE):
            rows.copy_(total(rows))

    def _add_pairs(self, latents: Int64[Tensor, "tokens k"]) -> None:
        """Latents by token, filled up with d_sae."""
        width = len(self.rank) + 1
        row = torch.cat([self.rank, self.rank.new_tensor([-1])])[latents]
        tokens, places = (row >= 0).nonzero(as_tuple=True)
        keys = row[tokens, places, None] * width + latents[tokens]  # (entries, k)
        one = self._table.new_ones(()).expand(keys.numel())
        self._table.view(-1).index_add_(0, keys.view(-1), one)

    def _add_product(self, indices: Int64[Tensor, " nnz"], counts: Int64[Tensor, " rows"]) -> None:
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        active = torch.zeros(len(counts), len(self.rank))
        active[rows, indices] = 1
        watched = self.rank.argsort()[-len(self._table) :]  # in the order of their rows
        self.counts.add_((active[:, watched].T @ active).int())  # exact below 2²⁴ tokens at once
