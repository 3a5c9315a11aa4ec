"""Gated SAEs: one bias decides which latents are active, another how large they are.

    π = W_enc u + b_gate,  a = 1[π > 0] · relu(e^r ⊙ (W_enc u) + b_mag)
    loss = E[‖e‖² + λ Σ_i relu(π_i) + ‖y - ŷ_frozen(relu π)‖²]     (arXiv 2404.16014, eq. 8)

ŷ_frozen uses the decoder without gradient. Decoder norms are 1; a transcoder's are free, and there
the penalty counts relu(π_i) ‖W_dec,i‖, the norms without gradient, as the decoder is frozen.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.saes.gated import Gated
from gossamer.training.architecture import (
    AbstractArchitecture,
    Encoded,
    Moment,
    read_above,
    warmed,
)
from gossamer.training.relu import check_penalty
from gossamer.training.trainee import Trainee


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GatedConfig(AbstractArchitecture):
    """The gate carries the penalty, so that magnitudes do not shrink; b_enc is b_mag."""

    name: ClassVar[str] = "gated"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = False
    """It does not."""

    is_signed: ClassVar[bool] = False
    """No."""

    l1: float = 5.0
    """λ, for squared errors summed over dimensions and activations of mean norm sqrt(d)."""

    warmup: float = 0.05
    """Share of the run over which the penalty rises from 0."""

    def check(self, d_sae: int) -> None:
        """The options, as any number of latents fits."""
        check_penalty("l1", self.l1, self.warmup)

    def learning_rate(self, d_sae: int) -> float:
        """5e-5."""
        return 5e-5

    @property
    def unit_decoder(self) -> bool:
        """Yes."""
        return True

    @property
    def subtract_b_dec(self) -> bool:
        """Yes."""
        return True

    def extra(self, b_enc: Float[Tensor, " d_sae"]) -> dict[str, Float[Tensor, " d_sae"]]:
        """b_gate, as b_enc, and r_mag, 0."""
        return {"b_gate": b_enc.clone(), "r_mag": torch.zeros_like(b_enc)}

    def encode(self, trainee: Trainee, u: Float[Tensor, "batch d_in"]) -> Encoded:
        """π where the gate is open, or everywhere where that is often."""
        b_gate = trainee.extra["b_gate"]
        return read_above(trainee, u, b_gate, torch.zeros_like(b_gate))

    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """The magnitudes where the gate is open."""
        product = encoded.pre - encoded.spread(trainee.extra["b_gate"])
        gain = encoded.spread(trainee.extra["r_mag"].exp())
        magnitude = (gain * product + encoded.spread(trainee.b_enc)).relu()
        return torch.where(encoded.pre > 0, magnitude, 0)

    def penalties(
        self, trainee: Trainee, encoded: Encoded, latents: Float[Tensor, "..."], moment: Moment
    ) -> dict[str, Float[Tensor, ""]]:
        """L1 of the gate, and its reconstruction through the frozen decoder."""
        gate = encoded.pre.relu()
        decoded = encoded.decode(gate, trainee.W_dec.detach()) + trainee.b_dec.detach()
        if trainee.W_skip is not None:
            decoded = decoded + moment.x @ trainee.W_skip.detach().T
        weighted = gate
        if not trainee.unit_decoder:
            weighted = gate * encoded.spread(trainee.decoder_norms().detach())
        return {
            "l1": warmed(self.l1, self.warmup, moment.progress) * encoded.per_token(weighted),
            "gate": encoded.mean((moment.target - decoded).square()),
        }

    def selection(self, trainee: Trainee) -> Gated:
        """The same rule."""
        return Gated(b_gate=trainee.extra["b_gate"].detach(), r_mag=trainee.extra["r_mag"].detach())
