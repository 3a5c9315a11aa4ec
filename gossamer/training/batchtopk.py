"""BatchTopK: a batch keeps its k · batch largest pre-activations (arXiv 2412.06410).

A token alone has no batch to compete in, so the finished SAE compares with one threshold: the
smallest value that was kept, averaged over batches. That follows every turn of the training with a
delay; at the end the threshold is set once so that the mean L0 over fresh batches is k.

The rank is of p alone. An autoencoder's decoder norms are 1; a transcoder's are free and start at
0, where a rank of p ‖W_dec‖ would choose nothing, so there a latent can gain rank by a longer
encoder row and a shorter decoder row. The threshold is one number for all latents either way.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.kernels.encode import encode_batch_topk
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.topk import TopK
from gossamer.training.architecture import AbstractArchitecture, Encoded, read_found
from gossamer.training.ranges import check_share, check_whole
from gossamer.training.sharded import encode_batch_topk_over
from gossamer.training.topk import rate_of_width
from gossamer.training.trainee import Trainee


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTopKConfig(AbstractArchitecture):
    """loss = E‖y - ŷ‖², and AuxK for dead latents; saved as JumpReLU with one threshold."""

    name: ClassVar[str] = "batchtopk"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = True
    """It does."""

    is_signed: ClassVar[bool] = False
    """No."""

    k: int
    """Latents kept for each token on average."""

    threshold_decay: float = 0.999
    """What the running threshold keeps of itself in each step; it starts as the first value."""

    def check(self, d_sae: int) -> None:
        """k must be in 1..d_sae."""
        check_whole("k", self.k)
        TopK(self.k).check(d_sae)
        check_share("threshold_decay", self.threshold_decay, below_1=True)

    def learning_rate(self, d_sae: int) -> float:
        """As TopK's."""
        return rate_of_width(d_sae)

    @property
    def unit_decoder(self) -> bool:
        """Yes: latents would trade norm for rank."""
        return True

    @property
    def subtract_b_dec(self) -> bool:
        """Yes."""
        return True

    def estimates(self) -> dict[str, Float[Tensor, ""]]:
        """The running threshold."""
        return new_threshold()

    def encode(self, trainee: Trainee, u: Float[Tensor, "batch d_in"]) -> Encoded:
        """The pairs that the batch keeps; all are positive."""
        return read_batch(trainee, u, self.k)

    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """The pre-activations themselves."""
        return encoded.pre

    def observe_(self, trainee: Trainee, latents: Float[Tensor, "..."], progress: float) -> None:
        """Take the batch's smallest kept value into the running threshold."""
        follow_(trainee, latents, self.threshold_decay)

    def selection(self, trainee: Trainee) -> JumpReLU:
        """One threshold for all latents: the running one, until it is set from fresh batches."""
        return one_threshold(trainee)


def new_threshold() -> dict[str, Float[Tensor, ""]]:
    """The running threshold, negative before the first batch with an active latent."""
    return {"running_threshold": torch.tensor(-1.0, dtype=torch.float64)}


def read_batch(trainee: Trainee, u: Float[Tensor, "batch d_in"], k: int) -> Encoded:
    """The pairs that a batch keeps."""
    encoder = (trainee.W_enc.detach(), trainee.b_enc.detach())
    if trainee.mesh.size > 1:
        found = encode_batch_topk_over(u, *encoder, k=k, mesh=trainee.mesh)
    else:
        found = encode_batch_topk(u, *encoder, k)
    return read_found(trainee, u, trainee.b_enc, found)


def follow_(trainee: Trainee, latents: Float[Tensor, "..."], decay: float) -> None:
    """Take a batch's smallest kept value into the running threshold."""
    running = trainee.get_buffer("running_threshold")
    smallest = running.new_full((), torch.inf)
    if latents.numel():
        smallest = latents.detach().min().double()
    smallest = -trainee.mesh.largest_(-smallest, "all")
    moved = running * decay + smallest * (1 - decay)
    moved = torch.where(running < 0, smallest, moved)
    running.copy_(torch.where(smallest.isinf(), running, moved))


def one_threshold(trainee: Trainee) -> JumpReLU:
    """The running threshold for all latents."""
    threshold = trainee.get_buffer("running_threshold").clamp(min=0)
    return JumpReLU(threshold.to(trainee.b_enc).expand(len(trainee.b_enc)))
