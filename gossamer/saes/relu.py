"""ReLU: every latent with a positive pre-activation is active."""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from gossamer.kernels.sparse import SparseLatents
from gossamer.saes.selection import AbstractSelection


@final
class ReLU(AbstractSelection):
    """latents = max(pre, 0); the standard SAE (arXiv 2309.08600)."""

    name: ClassVar[str] = "relu"

    def check(self, d_sae: int) -> None:
        """ReLU fits any number of latents."""

    def scalars(self) -> dict[str, int | bool]:
        """None."""
        return {}

    def gain(self) -> None:
        """1."""
        return None

    def active(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, "*lead d_sae"]:
        """The positive ones."""
        return pre > 0

    def sparse(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> SparseLatents:
        """The positive ones alone."""
        return SparseLatents.from_mask(pre, self.active(pre, b_enc))
