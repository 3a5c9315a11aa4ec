"""What an architecture is: the rule that selects which pre-activations become latents.

    pre = gain * (W_enc u) + b_enc        latents = pre where active, else 0

Everything else about an SAE is the same for every architecture, so a selection is a small module of
its own that an SAE is composed with. Because a latent equals its pre-activation where it is active,
the derivative of an active latent is the derivative of its pre-activation.
"""

from abc import abstractmethod
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from gossamer.kernels.sparse import SparseLatents


class AbstractSelection(nn.Module):
    """A selection rule. Its buffers, and the values of `scalars`, are all it consists of."""

    name: ClassVar[str]
    """The word for this rule in files."""

    @abstractmethod
    def check(self, d_sae: int) -> None:
        """Raise ShapeError when this rule does not fit `d_sae` latents."""

    @abstractmethod
    def scalars(self) -> dict[str, int | bool]:
        """The constructor's arguments that are not tensors."""

    @abstractmethod
    def gain(self) -> Float[Tensor, " d_sae"] | None:
        """What multiplies each encoder row in the pre-activation; None for 1."""

    @abstractmethod
    def active(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, "*lead d_sae"]:
        """Which latents are selected and not zero, from their pre-activations."""

    @abstractmethod
    def sparse(
        self, pre: Float[Tensor, "*lead d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> SparseLatents:
        """The active latents alone: `pre` where `active`, without the rest."""
