"""AbsTopK: the k pre-activations of each token that are largest in size, with their signs."""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents, offsets_of_counts
from gossamer.saes.selection import AbstractSelection


@final
class AbsTopK(AbstractSelection):
    """latents = pre on the k with the largest |pre| (arXiv 2510.00404): one latent stands for both
    ends of a direction. Unlike TopK(relu=False), which keeps the k largest and so negative ones
    only where there are fewer than k positive ones."""

    name: ClassVar[str] = "abstopk"

    def __init__(self, k: int) -> None:
        """`k` latents for each token."""
        super().__init__()
        if k < 1:
            raise ShapeError(f"AbsTopK needs k of at least 1, got k={k}.")
        self.k = k

    def check(self, d_sae: int) -> None:
        """k must not exceed d_sae."""
        if self.k > d_sae:
            raise ShapeError(f"AbsTopK needs k in 1..d_sae, got k={self.k} with d_sae={d_sae}.")

    def scalars(self) -> dict[str, int | bool]:
        """k."""
        return {"k": self.k}

    def gain(self) -> None:
        """1."""
        return None

    def active(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, "*lead d_sae"]:
        """The selected ones that are not zero."""
        selected = torch.zeros_like(pre, dtype=torch.bool).scatter(-1, self._select(pre), True)
        return selected & (pre != 0)

    def sparse(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> SparseLatents:
        """The active ones straight from torch.topk, without a mask as wide as d_sae."""
        lead, d_sae = tuple(pre.shape[:-1]), pre.shape[-1]
        flat = pre.reshape(-1, d_sae)
        indices = self._select(flat).sort(dim=-1).values
        values = flat.gather(-1, indices)  # (n_rows, k)
        keep = values != 0
        return SparseLatents(
            values[keep], indices[keep], offsets_of_counts(keep.sum(-1)), lead, d_sae
        )

    def _select(self, pre: Float[Tensor, "*lead d_sae"]) -> Int64[Tensor, "*lead k"]:
        return pre.detach().abs().topk(self.k, dim=-1).indices
