"""Matryoshka BatchTopK: prefixes of the latents, each of which must reconstruct by itself.

    ŷ_m = Σ_{i < m} a_i W_dec,i + b_dec [+ W_skip x]
    loss = E‖y - ŷ_N‖² + Σ_j w_j E‖y - ŷ_{m_j}‖²,  m_1 < m_2 < … < N      (arXiv 2503.17547)

and AuxK for dead latents. Latents are chosen by a BatchTopK over all of them, so the finished SAE
is one of BatchTopK, in which general latents stand before special ones: the first m latents alone
are a smaller SAE. Each segment between two prefixes is decoded once.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.pairs import Pairs, write_pairs
from gossamer.kernels.sparse import offsets_of_counts
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.topk import TopK
from gossamer.training.architecture import AbstractArchitecture, Encoded, Moment
from gossamer.training.batchtopk import follow_, new_threshold, one_threshold, read_batch
from gossamer.training.ranges import check_not_negative, check_share, check_whole
from gossamer.training.topk import rate_of_width
from gossamer.training.trainee import Trainee

SHARES = (1 / 32, 3 / 32, 7 / 32, 15 / 32)
"""Prefixes as shares of all latents: the paper's 2048, 6144, 14336 and 30720 of 65536."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MatryoshkaConfig(AbstractArchitecture):
    """BatchTopK whose prefixes reconstruct as well; saved as JumpReLU with one threshold."""

    name: ClassVar[str] = "matryoshka"
    """The word for it."""

    selects_by_rank: ClassVar[bool] = True
    """It does."""

    is_signed: ClassVar[bool] = False
    """No."""

    k: int
    """Latents kept for each token on average, of all latents together."""

    prefixes: tuple[int, ...] | None = None
    """Latents of each prefix, rising, without the last, which is all of them; None: 1/32, 3/32,
    7/32 and 15/32 of them."""

    weights: tuple[float, ...] | None = None
    """w_j of each of these; that of all latents is 1. None: 1."""

    threshold_decay: float = 0.999
    """What the running threshold keeps of itself in each step; it starts as the first value."""

    def check(self, d_sae: int) -> None:
        """k must be in 1..d_sae, prefixes rise below d_sae, and each have a weight."""
        check_whole("k", self.k)
        TopK(self.k).check(d_sae)
        check_share("threshold_decay", self.threshold_decay, below_1=True)
        inner = self.inner(d_sae)
        if not inner or any(a >= b for a, b in pairwise((0, *inner, d_sae))):
            raise ShapeError(
                f"Matryoshka prefixes rise from at least 1 to less than d_sae={d_sae}, got "
                f"{', '.join(map(str, inner)) or 'none'}; leave d_sae itself out."
            )
        if self.weights is not None and len(self.weights) != len(inner):
            raise ShapeError(
                f"Each of {len(inner)} Matryoshka prefixes needs a weight, got "
                f"{len(self.weights)}; leave out that of all latents, which is 1."
            )
        for weight in self.weights or ():
            check_not_negative("The weight of a prefix", weight)

    def inner(self, d_sae: int) -> tuple[int, ...]:
        """Latents of each prefix but the last."""
        if self.prefixes is not None:
            return tuple(self.prefixes)
        sizes = (round(share * d_sae) for share in SHARES)
        return tuple(dict.fromkeys(size for size in sizes if 0 < size < d_sae))

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

    def penalties(
        self, trainee: Trainee, encoded: Encoded, latents: Float[Tensor, "..."], moment: Moment
    ) -> dict[str, Float[Tensor, ""]]:
        """The weighted squared errors of the prefixes, as one term."""
        assert encoded.pairs is not None  # BatchTopK
        inner = self.inner(trainee.d_sae)
        decoded = moment.target.new_zeros(moment.target.shape)
        total = decoded.new_zeros(())
        weights = self.weights or (1.0,) * len(inner)
        before = trainee.latents.start
        for (first, end), weight in zip(pairwise((0, *inner)), weights, strict=True):
            ends = (first - before, end - before)  # as they are counted here
            written = segment(latents, trainee.W_dec, encoded.pairs, ends)
            decoded = decoded + encoded.mesh.added(written)
            missed = moment.target - trainee.output(decoded, moment.x)
            total = total + weight * encoded.mean(missed.square())
        return {"prefixes": total}

    def observe_(self, trainee: Trainee, latents: Float[Tensor, "..."], progress: float) -> None:
        """Take the batch's smallest kept value into the running threshold."""
        follow_(trainee, latents, self.threshold_decay)

    def selection(self, trainee: Trainee) -> JumpReLU:
        """One threshold for all latents: the running one, until it is set from fresh batches."""
        return one_threshold(trainee)


def segment(
    latents: Float[Tensor, " nnz"],
    W_dec: Float[Tensor, "d_sae d_out"],
    pairs: Pairs,
    ends: tuple[int, int],
) -> Float[Tensor, "batch d_out"]:
    """What the latents from ends[0] to before ends[1] write; equals `segment_reference`."""
    chosen = ((pairs.indices >= ends[0]) & (pairs.indices < ends[1])).nonzero()[:, 0]
    counts = pairs.rows[chosen].bincount(minlength=pairs.n_rows)
    some = Pairs.of(pairs.indices[chosen], offsets_of_counts(counts), pairs.d_sae)
    return write_pairs(latents[chosen], W_dec, pairs=some)


def segment_reference(
    latents: Float[Tensor, " nnz"],
    W_dec: Float[Tensor, "d_sae d_out"],
    pairs: Pairs,
    ends: tuple[int, int],
) -> Float[Tensor, "batch d_out"]:
    """The definition: dense latents of the segment times its rows."""
    dense = latents.new_zeros(pairs.n_rows, pairs.d_sae)
    dense = dense.index_put((pairs.rows, pairs.indices), latents)
    return dense[:, slice(*ends)] @ W_dec[slice(*ends)]
