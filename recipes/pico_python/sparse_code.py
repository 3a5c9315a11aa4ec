"""A TopK encoder and decoder whose backward pass reads only the active latents.

A training step of an SAE with k of d_sae latents active costs one dense product, the encoder's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def largest(
    pre: Float[Tensor, "batch d_sae"], k: int
) -> tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The k largest of each row and where they stand, in no order; faster than `topk` of the row.

    Latents that are equal modulo d_sae / 8 form a group. The k largest lie in the k groups with the
    largest maxima, so only those 8 k entries are searched.
    """
    grouped = pre.view(len(pre), 8, -1)
    groups = grouped.amax(1).topk(k, sorted=False).indices
    candidates = grouped.gather(2, groups[:, None].expand(-1, 8, -1)).flatten(1)  # (batch, 8 k)
    values, places = candidates.topk(k, sorted=False)
    indices = groups.gather(1, places % k) + places // k * grouped.shape[2]
    return values, indices


class SparseCode(torch.autograd.Function):
    """(u, W_enc, b_enc, W_dec, k) → (Σ_j values_j W_dec[indices_j], values, indices).

    Only the encoder's forward product is dense: the gradient of a weight row is a bag sum over the
    tokens on which its latent fired.
    """

    @staticmethod
    def forward(ctx, u, W_enc, b_enc, W_dec, k):  # noqa: PLR0917  the shape that autograd asks for
        """Encode, select, decode."""
        values, indices = largest(torch.addmm(b_enc, u, W_enc.T), k)
        values = values.relu_()
        ctx.save_for_backward(u, W_enc, W_dec, values, indices)
        ctx.mark_non_differentiable(values, indices)
        return (
            F.embedding_bag(indices, W_dec, mode="sum", per_sample_weights=values),
            values,
            indices,
        )

    @staticmethod
    def backward(ctx, *gradients):
        """Gradients of the four tensors; the selection is a constant."""
        gradient = gradients[0]
        u, W_enc, W_dec, values, indices = ctx.saved_tensors
        n_rows, k, n_latents = *values.shape, len(W_dec)
        columns, order = indices.sort(dim=1)
        values = values.gather(1, order)
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, n_rows * k + 1, k),
            columns.flatten(),
            torch.zeros(n_rows * k, dtype=u.dtype),
            size=(n_rows, n_latents),
            check_invariants=False,
        )
        towards = torch.sparse.sampled_addmm(pattern, gradient, W_dec.T).values().view(n_rows, k)
        towards = towards * (values > 0)
        latents = columns.flatten()
        by_latent = latents.argsort(stable=True)
        tokens = by_latent // k
        offsets = F.pad(latents.bincount(minlength=n_latents).cumsum(0), (1, 0))

        def bags(rows: Tensor, weights: Tensor) -> Tensor:
            weights = weights.flatten()[by_latent]
            return F.embedding_bag(
                tokens,
                rows,
                offsets,
                mode="sum",
                per_sample_weights=weights,
                include_last_offset=True,
            )

        gradient_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, latents, towards.flatten())
        gradient_u = F.embedding_bag(columns, W_enc, mode="sum", per_sample_weights=towards)
        return gradient_u, bags(u, towards), gradient_b_enc, bags(gradient, values), None
