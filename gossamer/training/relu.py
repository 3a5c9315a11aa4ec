"""ReLU with an L1 penalty, in its two forms.

unit      E[‖e‖² + λ Σ_i a_i], decoder rows of norm 1, b_dec taken from the input
          (Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features)
decoder   E[‖e‖² + λ Σ_i a_i ‖W_dec,i‖], norms free
          (transformer-circuits.pub/2024/april-update)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.saes.relu import ReLU
from gossamer.training.architecture import (
    AbstractArchitecture,
    Encoded,
    Moment,
    read_above,
    warmed,
)
from gossamer.training.ranges import check_not_negative, check_share
from gossamer.training.trainee import Trainee


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReLUConfig(AbstractArchitecture):
    """Every positive pre-activation is active; L1 keeps them few."""

    name: ClassVar[str] = "relu"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = False
    """It does not."""

    is_signed: ClassVar[bool] = False
    """No."""

    l1: float = 5.0
    """λ, for squared errors summed over dimensions and activations of mean norm sqrt(d)."""

    norm: Literal["decoder", "unit"] = "decoder"
    """Whether the penalty counts decoder norms, or the norms are held at 1; a transcoder's are
    free, so it takes "decoder"."""

    warmup: float = 0.05
    """Share of the run over which the penalty rises from 0."""

    def check(self, d_sae: int) -> None:
        """The options, as any number of latents fits."""
        if self.norm not in ("decoder", "unit"):
            raise GossamerError(f'norm is "decoder" or "unit", got "{self.norm}".')
        check_penalty("l1", self.l1, self.warmup)

    def learning_rate(self, d_sae: int) -> float:
        """5e-5 (transformer-circuits.pub/2024/april-update)."""
        return 5e-5

    @property
    def unit_decoder(self) -> bool:
        """In the form "unit"."""
        return self.norm == "unit"

    @property
    def subtract_b_dec(self) -> bool:
        """In the form "unit"."""
        return self.norm == "unit"

    def encode(self, trainee: Trainee, u: Float[Tensor, "batch d_in"]) -> Encoded:
        """The positive pairs, or all where they are many."""
        return read_above(trainee, u, trainee.b_enc, torch.zeros_like(trainee.b_enc))

    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """Their positive part."""
        return encoded.pre.relu()

    def penalties(
        self, trainee: Trainee, encoded: Encoded, latents: Float[Tensor, "..."], moment: Moment
    ) -> dict[str, Float[Tensor, ""]]:
        """The L1 term."""
        weighted = latents
        if self.norm == "decoder":
            weighted = latents * encoded.spread(trainee.decoder_norms())
        return {"l1": warmed(self.l1, self.warmup, moment.progress) * encoded.per_token(weighted)}

    def selection(self, trainee: Trainee) -> ReLU:
        """The same rule."""
        return ReLU()


def check_penalty(name: str, coefficient: float, warmup: float) -> None:
    """GossamerError for a coefficient below 0, or a warm-up that is no share of the run."""
    check_not_negative(name, coefficient)
    check_share("The penalty's warmup", warmup)
