"""Gated: one bias decides which latents are active, another how large they are.

    latents = 1[W_enc u + b_gate > 0] * relu(e^r_mag * (W_enc u) + b_mag)

With pre = e^r_mag * (W_enc u) + b_mag the gate opens where pre > b_mag - e^r_mag * b_gate: a gated
SAE is a JumpReLU SAE with that threshold (arXiv 2404.16014), and that is how it is computed.
"""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents
from gossamer.saes.selection import AbstractSelection


@final
class Gated(AbstractSelection):
    """The gate of a gated SAE (arXiv 2404.16014); b_enc of the SAE is the magnitude bias b_mag."""

    name: ClassVar[str] = "gated"
    b_gate: Tensor
    r_mag: Tensor

    def __init__(self, b_gate: Float[Tensor, "..."], r_mag: Float[Tensor, "..."]) -> None:
        """`b_gate` (d_sae), bias of the gate; `r_mag` (d_sae), log of the magnitude's gain."""
        super().__init__()
        self.register_buffer("b_gate", b_gate.detach().contiguous())
        self.register_buffer("r_mag", r_mag.detach().contiguous())

    def check(self, d_sae: int) -> None:
        """One gate bias and one gain for each latent."""
        for name, tensor in (("b_gate", self.b_gate), ("r_mag", self.r_mag)):
            if tuple(tensor.shape) != (d_sae,):
                raise ShapeError(
                    f"Gated needs {name} of shape ({d_sae},), one for each latent, "
                    f"got {tuple(tensor.shape)}."
                )

    def scalars(self) -> dict[str, int | bool]:
        """None."""
        return {}

    def gain(self) -> Float[Tensor, " d_sae"]:
        """e^r_mag."""
        return self.r_mag.exp()

    def active(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, "*lead d_sae"]:
        """Those whose gate is open and whose magnitude is positive."""
        return pre > (b_enc - self.gain() * self.b_gate).clamp(min=0)

    def sparse(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> SparseLatents:
        """Those alone."""
        return SparseLatents.from_mask(pre, self.active(pre, b_enc))
