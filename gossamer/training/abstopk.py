"""AbsTopK: each token keeps the k pre-activations that are largest in size (arXiv 2510.00404).

    a_i = p_i where |p_i| is among the k largest, else 0        loss = E‖y - ŷ‖², and AuxK

Latents have a sign, so that one of them stands for both ends of a direction. The step is as sparse
as TopK's. AuxK takes the dead latents that are largest in size, with their signs.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from gossamer.kernels.encode import encode_abs_topk
from gossamer.saes.abstopk import AbsTopK
from gossamer.training.architecture import AbstractArchitecture, Encoded, read_found
from gossamer.training.ranges import check_whole
from gossamer.training.sharded import kept_of, kept_pairs
from gossamer.training.topk import rate_of_width
from gossamer.training.trainee import Trainee


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AbsTopKConfig(AbstractArchitecture):
    """loss = E‖y - ŷ‖², and AuxK for dead latents; latents may be negative."""

    name: ClassVar[str] = "abstopk"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = True
    """It does."""

    is_signed: ClassVar[bool] = True
    """They can."""

    k: int
    """Latents kept for each token."""

    def check(self, d_sae: int) -> None:
        """k must be in 1..d_sae."""
        check_whole("k", self.k)
        AbsTopK(self.k).check(d_sae)

    def learning_rate(self, d_sae: int) -> float:
        """As TopK's."""
        return rate_of_width(d_sae)

    @property
    def unit_decoder(self) -> bool:
        """Yes: the reconstruction does not depend on the norms."""
        return True

    @property
    def subtract_b_dec(self) -> bool:
        """Yes."""
        return True

    def encode(self, trainee: Trainee, u: Float[Tensor, "batch d_in"]) -> Encoded:
        """The k pairs of each token."""
        k = min(self.k, len(trainee.b_enc))
        values, indices = encode_abs_topk(u, trainee.W_enc.detach(), trainee.b_enc.detach(), k)
        found = kept_pairs(values, indices, kept_of(values.abs(), self.k, trainee.mesh))
        return read_found(trainee, u, trainee.b_enc, found)

    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """The pre-activations themselves."""
        return encoded.pre

    def selection(self, trainee: Trainee) -> AbsTopK:
        """The same rule."""
        return AbsTopK(self.k)
