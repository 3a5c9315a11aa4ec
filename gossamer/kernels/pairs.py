"""Products over chosen (token, latent) pairs, whose gradients touch no other pair.

    read    pre[e] = <u[row e], W_enc[latent e]> + b_enc[latent e]
    write   y[r]   = sum_{e in row r} latents[e] W_dec[latent e]

A training step of an SAE with k of d_sae latents active then costs one dense product, the one that
finds the pairs (`encode.py`). The gradient of a weight row is a sum over the tokens on which its
latent was chosen: a bag sum over the pairs sorted by latent, one sort for the step. Every bag is
summed in the order of its tokens, so the result does not depend on the number of threads.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels.sparse import offsets_of_counts


@dataclass(frozen=True, slots=True)
class Pairs:
    """Chosen (token, latent) pairs, by token and by latent."""

    indices: Int64[Tensor, " nnz"]
    """Latent of each pair; the pairs of a token stand together."""

    offsets: Int64[Tensor, " n_offsets"]
    """Token r has the pairs offsets[r] to offsets[r + 1]; n_rows + 1 numbers."""

    rows: Int64[Tensor, " nnz"]
    """Token of each pair."""

    by_latent: Int64[Tensor, " nnz"]
    """The order of the pairs that sorts them by latent, and by token within one."""

    latent_offsets: Int64[Tensor, " n_latent_offsets"]
    """In that order latent i has the pairs latent_offsets[i] to latent_offsets[i + 1]."""

    @classmethod
    def of(
        cls, indices: Int64[Tensor, " nnz"], offsets: Int64[Tensor, " n_offsets"], d_sae: int
    ) -> "Pairs":
        """From CSR rows; the order within a row is free."""
        counts = torch.bincount(indices, minlength=d_sae)
        return cls(
            indices,
            offsets,
            torch.repeat_interleave(offsets.diff(), output_size=len(indices)),
            indices.argsort(stable=True),
            offsets_of_counts(counts),
        )

    @property
    def n_rows(self) -> int:
        """Tokens, also those without a pair."""
        return len(self.offsets) - 1

    @property
    def d_sae(self) -> int:
        """Latents, chosen or not."""
        return len(self.latent_offsets) - 1


def read_pairs(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    *,
    pairs: Pairs,
    values: Float[Tensor, " nnz"],
    shift: Float[Tensor, " d_in"] | None = None,
) -> Float[Tensor, " nnz"]:
    """The pre-activations of the pairs; `values`, known from finding them, with their gradient.

    Differentiable in u, W_enc and b_enc, and in `shift` where u is x - shift: its gradient is one
    product of a vector and a matrix, so u itself need not carry any.
    """
    return _Read.apply(u, W_enc, b_enc, shift, values, pairs)


def write_pairs(
    latents: Float[Tensor, " nnz"], W_dec: Float[Tensor, "d_sae d_out"], *, pairs: Pairs
) -> Float[Tensor, "batch d_out"]:
    """Sums of decoder rows, weighted by the latents of the pairs; differentiable in both."""
    summed = _bags(W_dec.detach(), pairs.indices, pairs.offsets, latents)
    return _Write.apply(summed, W_dec, latents.detach(), pairs)


def pair_products(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    indices: Int64[Tensor, "batch k"],
) -> Float[Tensor, "batch k"]:
    """<u[r], W_enc[indices[r, j]]>, in the dtype of both; constants.

    A bag sum's derivative by its weights is this product, and torch has a fast kernel for that.
    """
    with torch.enable_grad():
        weights = torch.zeros(indices.shape, dtype=u.dtype, device=u.device, requires_grad=True)
        summed = F.embedding_bag(indices, W_enc.detach(), mode="sum", per_sample_weights=weights)
    return torch.autograd.grad(summed, weights, u.detach())[0]


class _Read(torch.autograd.Function):
    """Gradients of pre-activations whose values are known."""

    @staticmethod
    def forward(ctx: Any, u, W_enc, b_enc, shift, values, pairs):  # noqa: PLR0917  autograd's way
        ctx.save_for_backward(u, W_enc)
        ctx.pairs = pairs
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), pairs = gradients, ctx.pairs
        u, W_enc = ctx.saved_tensors
        of_W = _by_latent(u, gradient, pairs) if ctx.needs_input_grad[1] else None
        of_b = gradient.new_zeros(len(W_enc)).index_add_(0, pairs.indices, gradient)
        of_u = of_shift = None
        if ctx.needs_input_grad[0]:
            of_u = _bags(W_enc, pairs.indices, pairs.offsets, gradient)
        if ctx.needs_input_grad[3]:
            of_shift = -(of_b @ W_enc)
        return of_u, of_W, of_b, of_shift, None, None


class _Write(torch.autograd.Function):
    """The sum as it is, with the gradient of W_dec, which the bag sum would take densely."""

    @staticmethod
    def forward(ctx: Any, summed, W_dec, latents, pairs):  # noqa: PLR0917  autograd's way
        ctx.save_for_backward(latents)
        ctx.pairs = pairs
        return summed.view_as(summed)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (latents,) = gradients, ctx.saved_tensors
        of_W = _by_latent(gradient, latents, ctx.pairs) if ctx.needs_input_grad[1] else None
        return gradient, of_W, None, None


def _by_latent(
    rows: Float[Tensor, "batch width"], weights: Float[Tensor, " nnz"], pairs: Pairs
) -> Float[Tensor, "d_sae width"]:
    """For each latent the weighted sum of its tokens' rows; zero for one without pairs."""
    order = pairs.by_latent
    return _bags(rows, pairs.rows[order], pairs.latent_offsets, weights[order])


def _bags(
    table: Float[Tensor, "n width"],
    indices: Int64[Tensor, " nnz"],
    offsets: Int64[Tensor, " n_offsets"],
    weights: Float[Tensor, " nnz"],
) -> Float[Tensor, "n_bags width"]:
    return F.embedding_bag(
        indices,
        table,
        offsets,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )


def read_pairs_reference(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    *,
    pairs: Pairs,
) -> Float[Tensor, " nnz"]:
    """The definition: all pre-activations, then the chosen ones."""
    return (u @ W_enc.T + b_enc)[pairs.rows, pairs.indices]


def write_pairs_reference(
    latents: Float[Tensor, " nnz"], W_dec: Float[Tensor, "d_sae d_out"], *, pairs: Pairs
) -> Float[Tensor, "batch d_out"]:
    """The definition: dense latents times W_dec."""
    dense = latents.new_zeros(pairs.n_rows, pairs.d_sae)
    return dense.index_put((pairs.rows, pairs.indices), latents) @ W_dec
