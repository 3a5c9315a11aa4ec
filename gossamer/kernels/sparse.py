"""Sparse latents as CSR rows, and decoding them without their zeros.

    y[r] = sum_{e in row r} values[e] * W_dec[indices[e]]

A TopK SAE with k of d_sae latents reads k rows of W_dec for each token instead of all d_sae.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ShapeError


@dataclass(frozen=True, slots=True)
class SparseLatents:
    """Active latents: CSR rows over the flattened leading axes, sorted by index within a row."""

    values: Float[Tensor, " nnz"]
    """Activation of each active latent."""

    indices: Int64[Tensor, " nnz"]
    """Which latent it is, in 0..d_sae - 1."""

    offsets: Int64[Tensor, " n_offsets"]
    """Row r holds the entries offsets[r] to offsets[r + 1]; n_rows + 1 numbers, the first 0."""

    shape: tuple[int, ...]
    """The leading axes, for example (batch, pos); their product is n_rows."""

    d_sae: int
    """Number of latents, active or not."""

    def __post_init__(self) -> None:
        if self.offsets.numel() != math.prod(self.shape) + 1:
            raise ShapeError(
                f"Leading axes {self.shape} have {math.prod(self.shape)} rows and need one offset "
                f"more than rows, got {self.offsets.numel()} offsets."
            )

    @classmethod
    def from_dense(cls, latents: Float[Tensor, "*lead d_sae"]) -> "SparseLatents":
        """The non-zero entries of dense latents; differentiable."""
        return cls.from_mask(latents, latents != 0)

    @classmethod
    def from_mask(
        cls, latents: Float[Tensor, "*lead d_sae"], active: Bool[Tensor, "*lead d_sae"]
    ) -> "SparseLatents":
        """The entries of `latents` where `active` is true; differentiable."""
        mask = active.flatten(0, -2) if active.ndim > 1 else active[None]
        rows, indices = mask.nonzero(as_tuple=True)
        values = latents.reshape(mask.shape)[rows, indices]
        return cls(
            values,
            indices,
            offsets_of_counts(mask.sum(-1)),
            tuple(active.shape[:-1]),
            mask.shape[-1],
        )

    @property
    def rows(self) -> Int64[Tensor, " nnz"]:
        """The row of each entry: its place in the flattened leading axes."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(counts, output_size=self.values.numel())

    def to_dense(self) -> Float[Tensor, "*lead d_sae"]:
        """Dense latents, zero where not active; differentiable."""
        dense = self.values.new_zeros(self.offsets.numel() - 1, self.d_sae)
        dense = dense.index_put((self.rows, self.indices), self.values)
        return dense.reshape(*self.shape, self.d_sae)


def offsets_of_counts(counts: Int64[Tensor, " n_rows"]) -> Int64[Tensor, " n_offsets"]:
    """CSR offsets of rows that hold `counts` entries: 0 and the running sum."""
    return F.pad(counts.cumsum(0), (1, 0))


def sparse_decode(
    values: Float[Tensor, " nnz"],
    indices: Int64[Tensor, " nnz"],
    offsets: Int64[Tensor, " n_offsets"],
    W_dec: Float[Tensor, "d_sae d_out"],
) -> Float[Tensor, "n_rows d_out"]:
    """Weighted sums of rows of W_dec; equals `sparse_decode_reference` in value and gradient.

    Differentiable in `values` and `W_dec`, which must share one dtype.
    """
    return F.embedding_bag(
        indices,
        W_dec,
        offsets,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )


def sparse_decode_reference(
    values: Float[Tensor, " nnz"],
    indices: Int64[Tensor, " nnz"],
    offsets: Int64[Tensor, " n_offsets"],
    W_dec: Float[Tensor, "d_sae d_out"],
) -> Float[Tensor, "n_rows d_out"]:
    """The definition: dense latents times W_dec."""
    latents = SparseLatents(values, indices, offsets, (offsets.numel() - 1,), W_dec.shape[0])
    return latents.to_dense() @ W_dec
