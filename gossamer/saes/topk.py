"""TopK: the k largest pre-activations of each token are selected."""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents, offsets_of_counts
from gossamer.saes.selection import AbstractSelection


@final
class TopK(AbstractSelection):
    """latents = pre on the k that torch.topk chooses (arXiv 2406.04093, eq. 2)."""

    name: ClassVar[str] = "topk"

    def __init__(self, k: int, relu: bool = True) -> None:
        """`k` latents for each token; with `relu=False` selected negative values are kept."""
        super().__init__()
        if k < 1:
            raise ShapeError(f"TopK needs k of at least 1, got k={k}.")
        self.k = k
        self.relu = relu

    def check(self, d_sae: int) -> None:
        """k must not exceed d_sae."""
        if self.k > d_sae:
            raise ShapeError(f"TopK needs k in 1..d_sae, got k={self.k} with d_sae={d_sae}.")

    def scalars(self) -> dict[str, int | bool]:
        """k and relu."""
        return {"k": self.k, "relu": self.relu}

    def gain(self) -> None:
        """1."""
        return None

    def active(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, "*lead d_sae"]:
        """The selected ones that are positive, or without `relu` those that are not zero."""
        values, indices = self._select(pre)
        return torch.zeros_like(pre, dtype=torch.bool).scatter(-1, indices, self._is_active(values))

    def sparse(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> SparseLatents:
        """The active ones straight from torch.topk, without a mask as wide as d_sae."""
        lead, d_sae = tuple(pre.shape[:-1]), pre.shape[-1]
        _, indices = self._select(pre.detach().reshape(-1, d_sae))
        indices = indices.sort(dim=-1).values
        values = pre.reshape(-1, d_sae).gather(-1, indices)  # (n_rows, k)
        keep = self._is_active(values)
        return SparseLatents(
            values[keep], indices[keep], offsets_of_counts(keep.sum(-1)), lead, d_sae
        )

    def _select(
        self, pre: Float[Tensor, "*lead d_sae"]
    ) -> tuple[Float[Tensor, "*lead k"], Int64[Tensor, "*lead k"]]:
        values, indices = torch.topk(pre, self.k, dim=-1)
        return values, indices

    def _is_active(self, values: Float[Tensor, "*lead k"]) -> Bool[Tensor, "*lead k"]:
        return values > 0 if self.relu else values != 0
