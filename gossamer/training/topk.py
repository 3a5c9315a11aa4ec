"""TopK: each token keeps its k largest pre-activations (arXiv 2406.04093).

The step is sparse from end to end: one dense product finds the pairs, and nothing else touches more
than k latents of a token.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from jaxtyping import Float
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.kernels.encode import encode_topk, encode_topk_bfloat16
from gossamer.saes.topk import TopK
from gossamer.training.architecture import AbstractArchitecture, Encoded, read_found
from gossamer.training.ranges import check_whole
from gossamer.training.sharded import kept_of, kept_pairs
from gossamer.training.trainee import Trainee


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopKConfig(AbstractArchitecture):
    """loss = E‖y - ŷ‖², and AuxK for dead latents."""

    name: ClassVar[str] = "topk"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = True
    """It does."""

    is_signed: ClassVar[bool] = False
    """No."""

    k: int
    """Latents kept for each token."""

    encode_in: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 finds 2k candidates in half precision and computes those again in full: faster where
    the processor multiplies bfloat16, with a rare latent near the k-th missed."""

    def check(self, d_sae: int) -> None:
        """k must be in 1..d_sae."""
        check_whole("k", self.k)
        TopK(self.k).check(d_sae)
        if self.encode_in not in ("float32", "bfloat16"):
            raise GossamerError(f'encode_in is "float32" or "bfloat16", got "{self.encode_in}".')

    def learning_rate(self, d_sae: int) -> float:
        """2e-4 at 16384 latents, and as one over the root of their number (arXiv 2406.04093)."""
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
        encode = encode_topk if self.encode_in == "float32" else encode_topk_bfloat16
        k = min(self.k, len(trainee.b_enc))
        values, indices = encode(u, trainee.W_enc.detach(), trainee.b_enc.detach(), k)
        found = kept_pairs(values, indices, kept_of(values, self.k, trainee.mesh))
        return read_found(trainee, u, trainee.b_enc, found)

    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """Their positive part."""
        return encoded.pre.relu()

    def selection(self, trainee: Trainee) -> TopK:
        """The same rule."""
        return TopK(self.k)


def rate_of_width(d_sae: int) -> float:
    """2e-4 / sqrt(d_sae / 2**14)."""
    return 2e-4 / (d_sae / 2**14) ** 0.5
