"""JumpReLU: each latent has a threshold θ of its own, trained through straight-through gradients.

With K(u) = 1[|u| < 1/2], bandwidth ε, and g the gradient of what comes out, the jump
a = p · 1[p > θ] and the step 1[p > θ] have

    jump    ∂p: 1[p > θ] g        ∂θ: -(θ/ε) K((p - θ)/ε) g        (arXiv 2407.14435, eq. 11, 12)
    step    ∂p: 0                 ∂θ: -(1/ε) K((p - θ)/ε) g

    l0      loss = E[‖e‖² + λ Σ_i step_i]
    target  loss = E[‖e‖² + λ (2 / L0*) (Σ_i step_i - L0*)²], which steers L0 to L0*
    tanh    loss = E[‖e‖² + λ Σ_i tanh(c a_i ‖W_dec,i‖)], the jump giving p the opposite of what it
            gives θ as well (transformer-circuits.pub/2025/january-update)

The step is taken of p, not of a, of which only the half above the threshold is left. θ itself is
trained, not its logarithm, which Adam would hardly move, and is kept at 0 or above.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.saes.jumprelu import JumpReLU
from gossamer.training.architecture import (
    AbstractArchitecture,
    Encoded,
    Moment,
    read_above,
    warmed,
)
from gossamer.training.ranges import check_not_negative, check_positive
from gossamer.training.relu import check_penalty
from gossamer.training.trainee import Trainee


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class JumpReLUConfig(AbstractArchitecture):
    """Thresholds and an L0 or a tanh penalty."""

    name: ClassVar[str] = "jumprelu"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = False
    """It does not."""

    is_signed: ClassVar[bool] = False
    """No."""

    penalty: Literal["l0", "tanh", "target"] = "tanh"
    """Which of the three losses."""

    target_l0: float | None = None
    """L0*, latents a token, with the penalty target."""

    coefficient: float | None = None
    """λ, for squared errors summed over dimensions and activations of mean norm sqrt(d); None: 5
    for tanh, 1 for target, 0.1 for l0. With l0 only θ feels it, and Adam divides its size out
    again: from about 1 on L0 falls no further (SAELens#719); search far below, on a log grid."""

    warmup: float = 1.0
    """Share of the run over which the penalty rises from 0."""

    bandwidth: float | None = None
    """ε, in units of the pre-activation; None: 2 for tanh, 0.1 for the others."""

    start_threshold: float = 0.1
    """θ of every latent at the start."""

    tanh_scale: float = 4.0
    """c, with the tanh penalty."""

    dead_weight: float = 3e-6
    """λ_P: weight of Σ_i relu(θ_i - p_i) ‖W_dec,i‖ over dead latents, which moves them back."""

    def check(self, d_sae: int) -> None:
        """The options, as any number of latents fits."""
        if self.penalty not in ("l0", "tanh", "target"):
            raise GossamerError(f'penalty is "l0", "tanh" or "target", got "{self.penalty}".')
        if (self.penalty == "target") != (self.target_l0 is not None):
            raise GossamerError(
                f'target_l0 is given with the penalty "target" and with no other, got '
                f'target_l0={self.target_l0} with "{self.penalty}".'
            )
        check_positive("target_l0", self.target_l0)
        check_penalty("coefficient", self.weight, self.warmup)
        check_positive("bandwidth", self.bandwidth)
        check_not_negative("start_threshold", self.start_threshold)
        check_positive("tanh_scale", self.tanh_scale)
        check_not_negative("dead_weight", self.dead_weight)

    @property
    def weight(self) -> float:
        """λ at the end of its warm-up."""
        derived = {"tanh": 5.0, "target": 1.0, "l0": 0.1}[self.penalty]
        return derived if self.coefficient is None else self.coefficient

    @property
    def width(self) -> float:
        """ε."""
        derived = 2.0 if self.penalty == "tanh" else 0.1
        return derived if self.bandwidth is None else self.bandwidth

    def learning_rate(self, d_sae: int) -> float:
        """2e-4 for tanh, 7e-5 for the others, as their papers."""
        return 2e-4 if self.penalty == "tanh" else 7e-5

    @property
    def unit_decoder(self) -> bool:
        """With all but tanh: they see no norms."""
        return self.penalty != "tanh"

    @property
    def subtract_b_dec(self) -> bool:
        """No."""
        return False

    def extra(self, b_enc: Float[Tensor, " d_sae"]) -> dict[str, Float[Tensor, " d_sae"]]:
        """θ."""
        return {"threshold": torch.full_like(b_enc, self.start_threshold)}

    def encode(self, trainee: Trainee, u: Float[Tensor, "batch d_in"]) -> Encoded:
        """All pairs that are active or give θ a gradient: p > θ - ε/2."""
        lowest = trainee.extra["threshold"] - self.width / 2
        return read_above(trainee, u, trainee.b_enc, lowest)

    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """The jump."""
        threshold = encoded.spread(trainee.extra["threshold"])
        return jump(encoded.pre, threshold, self.width, both=self.penalty == "tanh")

    def penalties(
        self, trainee: Trainee, encoded: Encoded, latents: Float[Tensor, "..."], moment: Moment
    ) -> dict[str, Float[Tensor, ""]]:
        """The sparsity term, and what moves dead latents."""
        weight = warmed(self.weight, self.warmup, moment.progress)
        threshold = trainee.extra["threshold"]
        if self.penalty == "tanh":
            norms = encoded.spread(trainee.decoder_norms())
            sparsity = (self.tanh_scale * latents * norms).tanh()
        else:
            sparsity = step(encoded.pre, encoded.spread(threshold), self.width)
        if self.target_l0 is not None:
            missed = encoded.by_token(sparsity) - self.target_l0
            size = encoded.mean(2 / self.target_l0 * missed.square())
        else:
            size = encoded.per_token(sparsity)
        terms = {self.penalty: weight * size}
        if self.dead_weight and moment.any_dead:
            dead = moment.dead
            pre = moment.u @ trainee.W_enc[dead].T + trainee.b_enc[dead]
            below = (threshold[dead] - pre).relu() * trainee.decoder_norms()[dead]
            terms["dead"] = self.dead_weight * encoded.per_token(below)
        return terms

    @torch.no_grad()
    def observe_(self, trainee: Trainee, latents: Float[Tensor, "..."], progress: float) -> None:
        """Keep θ at 0 or above."""
        trainee.extra["threshold"].clamp_(min=0)

    def selection(self, trainee: Trainee) -> JumpReLU:
        """The same rule."""
        return JumpReLU(trainee.extra["threshold"].detach())


def jump(
    pre: Float[Tensor, "..."],
    threshold: Float[Tensor, "..."],
    bandwidth: float,
    *,
    both: bool = False,
) -> Float[Tensor, "..."]:
    """pre where above the threshold, else 0; with `both`, p gets θ's gradient reversed as well."""
    return _Jump.apply(pre, threshold, bandwidth, both)


def step(
    pre: Float[Tensor, "..."], threshold: Float[Tensor, "..."], bandwidth: float
) -> Float[Tensor, "..."]:
    """1 where pre is above the threshold, else 0; only the threshold has a gradient."""
    return _Step.apply(pre, threshold, bandwidth)


class _Jump(torch.autograd.Function):
    """See the module's equations."""

    @staticmethod
    def forward(ctx: Any, pre, threshold, bandwidth, both):  # noqa: PLR0917  autograd's way
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.both = bandwidth, both
        return torch.where(pre > threshold, pre, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (pre, threshold) = gradients, ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        of_threshold = torch.where(near, -threshold / ctx.bandwidth, 0) * gradient
        of_pre = torch.where(pre > threshold, gradient, 0)
        return of_pre - of_threshold if ctx.both else of_pre, of_threshold, None, None


class _Step(torch.autograd.Function):
    """See the module's equations."""

    @staticmethod
    def forward(ctx: Any, pre, threshold, bandwidth):
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (pre, threshold) = gradients, ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, torch.where(near, -1 / ctx.bandwidth, 0) * gradient, None
