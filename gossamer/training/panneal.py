"""p-anneal: a ReLU SAE whose penalty turns from L1 towards L0 in the course of the run.

    loss = E[‖e‖² + λ_s Σ_i φ_s(a_i)],   φ_s(a) = a^p_s = a · max(a, δ)^(p_s - 1)

(Karvonen et al. 2024, arXiv 2408.00113). Decoder rows have norm 1. p is 1 up to a share of the run,
then falls to `p_end` in equal steps. At each of these λ is multiplied by the mean of Σ φ_s(a) over
that of Σ φ_{s+1}(a), running means over about ten batches, so that the penalty keeps its size while
its shape changes. Below δ, where the slope of a^p has no bound, φ goes straight to 0. The finished
SAE is a ReLU SAE.
"""

from dataclasses import dataclass
from typing import ClassVar, final

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
from gossamer.training.ranges import check_positive, check_share, check_whole
from gossamer.training.relu import check_penalty
from gossamer.training.trainee import Trainee

MEMORY = 0.9
"""What the running means of the penalties keep of themselves in each step."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PAnnealConfig(AbstractArchitecture):
    """Every positive pre-activation is active; an annealed Lp penalty keeps them few."""

    name: ClassVar[str] = "panneal"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = False
    """It does not."""

    is_signed: ClassVar[bool] = False
    """No."""

    l1: float = 5.0
    """λ while p is 1, for squared errors summed over dimensions and activations of mean norm
    sqrt(d)."""

    warmup: float = 0.05
    """Share of the run over which the penalty rises from 0."""

    p_end: float = 0.2
    """The last p, above 0: a^0 has no slope."""

    start: float = 0.1
    """Share of the run from which p falls."""

    n_falls: int = 10
    """Equal steps in which it falls, the last of them this many-th of the rest before its end."""

    floor: float = 1e-3
    """δ, in the units of training."""

    def check(self, d_sae: int) -> None:
        """The options, as any number of latents fits."""
        check_penalty("l1", self.l1, self.warmup)
        if not 0 < self.p_end <= 1:
            raise GossamerError(f"p_end must be above 0 and at most 1, got {self.p_end}.")
        check_share("start", self.start, below_1=True)
        check_whole("n_falls", self.n_falls)
        check_positive("floor", self.floor)

    def learning_rate(self, d_sae: int) -> float:
        """As ReLU's, 5e-5."""
        return 5e-5

    @property
    def unit_decoder(self) -> bool:
        """Yes: the penalty sees no norms."""
        return True

    @property
    def subtract_b_dec(self) -> bool:
        """Yes."""
        return True

    def falls(self, progress: float) -> int:
        """How many times p has fallen."""
        if progress < self.start:
            return 0
        done = int((progress - self.start) / (1 - self.start) * self.n_falls)
        return min(done + 1, self.n_falls)

    def power(self, falls: int) -> float:
        """p after so many falls."""
        return 1 - (1 - self.p_end) * min(falls, self.n_falls) / self.n_falls

    def estimates(self) -> dict[str, Float[Tensor, ""]]:
        """What λ has been multiplied by, after how many falls, and the running penalties with the
        p of now and with the next, negative before the first batch."""
        start = {"anneal_factor": 1.0, "anneal_falls": 0.0}
        start |= {"anneal_now": -1.0, "anneal_next": -1.0}
        return {name: torch.tensor(n, dtype=torch.float64) for name, n in start.items()}

    def encode(self, trainee: Trainee, u: Float[Tensor, "batch d_in"]) -> Encoded:
        """The positive pairs, or all where they are many."""
        return read_above(trainee, u, trainee.b_enc, torch.zeros_like(trainee.b_enc))

    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """Their positive part."""
        return encoded.pre.relu()

    def penalties(
        self, trainee: Trainee, encoded: Encoded, latents: Float[Tensor, "..."], moment: Moment
    ) -> dict[str, Float[Tensor, ""]]:
        """The Lp term."""
        falls = self.falls(moment.progress)
        weight = warmed(self.l1, self.warmup, moment.progress) * factor(trainee, falls)
        size = encoded.per_token(bent(latents, self.power(falls), self.floor))
        return {"lp": weight.to(size) * size}

    @torch.no_grad()
    def observe_(self, trainee: Trainee, latents: Float[Tensor, "..."], progress: float) -> None:
        """Take the batch into the running penalties; after a fall λ has its new size."""
        falls = self.falls(progress)
        fallen = trainee.get_buffer("anneal_falls") != falls
        trainee.get_buffer("anneal_factor").copy_(factor(trainee, falls))
        trainee.get_buffer("anneal_falls").fill_(falls)
        for name, n in (("anneal_now", falls), ("anneal_next", falls + 1)):
            running = trainee.get_buffer(name)
            size = bent(latents, self.power(n), self.floor).sum(dtype=torch.float64)
            size = trainee.mesh.add_(size, "all")
            moved = running * MEMORY + size * (1 - MEMORY)
            running.copy_(torch.where(fallen | (running < 0), size, moved))

    def selection(self, trainee: Trainee) -> ReLU:
        """ReLU."""
        return ReLU()


def factor(trainee: Trainee, falls: int) -> Float[Tensor, ""]:
    """What λ is multiplied by after so many falls of p. Where a short run takes several at once,
    each of them changes it as the first."""
    now, then = trainee.get_buffer("anneal_now"), trainee.get_buffer("anneal_next")
    more = falls - trainee.get_buffer("anneal_falls")
    ratio = torch.where((now > 0) & (then > 0), now / then, 1.0)
    return trainee.get_buffer("anneal_factor") * ratio.pow(more)


def bent(latents: Float[Tensor, "..."], p: float, floor: float) -> Float[Tensor, "..."]:
    """a^p from `floor` on, and a straight line to it from 0."""
    return latents if p == 1 else latents * latents.clamp(min=floor).pow(p - 1)
