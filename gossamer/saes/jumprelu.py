"""JumpReLU: a latent is active when its pre-activation exceeds a threshold of its own."""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents
from gossamer.saes.selection import AbstractSelection


@final
class JumpReLU(AbstractSelection):
    """latents = relu(pre) * (pre > threshold) (arXiv 2407.14435, eq. 3)."""

    name: ClassVar[str] = "jumprelu"
    threshold: Tensor

    def __init__(self, threshold: Float[Tensor, "..."]) -> None:
        """`threshold` (d_sae), in units of the pre-activation; a negative one acts as 0."""
        super().__init__()
        self.register_buffer("threshold", threshold.detach().contiguous())

    def check(self, d_sae: int) -> None:
        """One threshold for each latent."""
        if tuple(self.threshold.shape) != (d_sae,):
            raise ShapeError(
                f"JumpReLU needs a threshold of shape ({d_sae},), one for each latent, "
                f"got {tuple(self.threshold.shape)}."
            )

    def scalars(self) -> dict[str, int | bool]:
        """None."""
        return {}

    def gain(self) -> None:
        """1."""
        return None

    def active(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, "*lead d_sae"]:
        """Those above their threshold and above 0."""
        return pre > self.threshold.clamp(min=0)

    def sparse(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> SparseLatents:
        """Those above their threshold alone."""
        return SparseLatents.from_mask(pre, self.active(pre, b_enc))
