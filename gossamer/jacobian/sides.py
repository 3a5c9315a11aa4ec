"""The active latents on one side of a Jacobian: which they are at each token, and their rows.

Tokens have different numbers of active latents: tables are as wide as the most, and −1 stands where
a token has fewer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.kernels.sparse import SparseLatents
from gossamer.saes.rows import read_rows, rows_are_constant, write_rows
from gossamer.saes.sae import SAE, SparseCoder


@dataclass(frozen=True, slots=True)
class Side:
    """Active latents of one SAE over some tokens."""

    indices: Int64[Tensor, "n k"]
    """Which latents; −1 where there is none."""

    values: Float[Tensor, "n k"]
    """Their activations; 0 where there is none."""

    places: Int64[Tensor, "n k"]
    """Which row belongs to each: the latent itself, or the entry where rows differ by token."""

    rows: Callable[[Int64[Tensor, " m"]], Float[Tensor, "m width"]]
    """The rows of some places."""

    def among(self, chunk: slice) -> tuple[Float[Tensor, "m width"], Int64[Tensor, "c k"]]:
        """Each row that a chunk of tokens needs, once, and where each entry finds its own."""
        here = self.places[chunk].clamp(min=0)
        unique, inverse = here.unique(return_inverse=True)
        return self.rows(unique), inverse.reshape(here.shape)


def active(sae: SparseCoder, x: Float[Tensor, "n d_in"]) -> SparseLatents:
    """The active latents of each token, by the SAE's own rule."""
    if isinstance(sae, SAE):
        return sae.encode_sparse(x)
    return SparseLatents.from_dense(sae.encode(x))


def reading(sae: SparseCoder, x: Float[Tensor, "n d_in"], latents: SparseLatents) -> Side:
    """Latents with the rows by which they read x."""
    return _side(latents, x, lambda indices, at: read_rows(sae, indices, at), sae)


def writing(sae: SparseCoder, x: Float[Tensor, "n d_in"], latents: SparseLatents) -> Side:
    """Latents with the rows that they write, x being what their SAE read."""
    return _side(latents, x, lambda indices, at: write_rows(sae, indices, at), sae)


def _side(
    latents: SparseLatents,
    x: Float[Tensor, "n d_in"],
    rows: Callable[[Tensor, Tensor], Tensor],
    sae: SparseCoder,
) -> Side:
    counts = latents.offsets.diff()
    k = int(counts.max()) if len(counts) else 0
    tokens = latents.rows
    columns = torch.arange(len(tokens), device=x.device) - latents.offsets[tokens]
    indices = latents.indices.new_full((len(counts), k), -1)
    values = latents.values.new_zeros(len(counts), k)
    indices[tokens, columns] = latents.indices
    values[tokens, columns] = latents.values.detach()
    if rows_are_constant(sae):
        return Side(
            indices, values, indices, lambda which: rows(which, x[:1].expand(len(which), -1))
        )
    entries = torch.full_like(indices, -1)
    entries[tokens, columns] = torch.arange(len(tokens), device=x.device)
    every = rows(latents.indices, x[tokens])
    return Side(indices, values, entries, lambda which: every[which])
