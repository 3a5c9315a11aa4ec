"""What an architecture must say for the one training loop to train it.

For each batch the loop asks, in this order:

    encode      which (token, latent) pairs matter, with their pre-activations
    latents     what the latents of those pairs are
    penalties   the terms of the loss beside the squared error, by name

Every loss is summed over dimensions and averaged over tokens, in units in which the mean norm of an
activation is the square root of its width. An architecture is its own configuration: a frozen
dataclass of numbers, whose weights live in the `Trainee`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.distributed import Mesh
from gossamer.kernels.encode import encode_above
from gossamer.kernels.pairs import Pairs, read_pairs, write_pairs
from gossamer.saes.selection import AbstractSelection
from gossamer.training.trainee import Trainee

MAX_DENSITY = 0.04
"""Share of all pairs from which dense products are the faster way, by measurement on a CPU."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Pre-activations of one batch: of chosen pairs, or of all."""

    pre: Float[Tensor, "..."]
    """(nnz) with `pairs`, else (batch, d_sae); carries the gradient to the encoder."""

    pairs: Pairs | None
    """Which token and latent each entry belongs to; None for all of them, densely."""

    n_rows: int
    """Tokens in the batch."""

    mesh: Mesh = Mesh()
    """Processes that have the other latents."""

    def spread(self, values: Float[Tensor, " d_sae"]) -> Float[Tensor, "..."]:
        """A number for each latent, as a number for each entry of `pre`."""
        if self.pairs is None:
            return values.expand_as(self.pre)
        return values.index_select(0, self.pairs.indices)

    def decode(
        self, latents: Float[Tensor, "..."], W_dec: Float[Tensor, "d_sae d_out"]
    ) -> Float[Tensor, "batch d_out"]:
        """What the latents write, without b_dec."""
        if self.pairs is None:
            return self.mesh.added(latents @ W_dec)
        return self.mesh.added(write_pairs(latents, W_dec, pairs=self.pairs))

    def mean(self, values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The sum, averaged over the batch's tokens."""
        return values.sum() / self.n_rows

    def per_token(self, values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """The sum over latents, averaged over the batch's tokens."""
        return self.mesh.added(values.sum()) / self.n_rows

    def by_token(self, values: Float[Tensor, "..."]) -> Float[Tensor, " batch"]:
        """The sum over latents of each token."""
        if self.pairs is None:
            return self.mesh.added(values.sum(1))
        summed = values.new_zeros(self.n_rows).index_add(0, self.pairs.rows, values)
        return self.mesh.added(summed)

    def fired(self, latents: Float[Tensor, "..."]) -> Bool[Tensor, " d_sae"]:
        """Which latents here were active on some token."""
        if self.pairs is None:
            return (latents != 0).any(0)
        fired = torch.zeros(self.pairs.d_sae, dtype=torch.bool, device=latents.device)
        fired[self.pairs.indices[latents != 0]] = True
        return fired


@dataclass(frozen=True, slots=True)
class Moment:
    """What a batch's penalties may depend on beside the latents."""

    u: Float[Tensor, "batch d_in"]
    """What the encoder reads, without gradient."""

    x: Float[Tensor, "batch d_in"]
    """The scaled input."""

    target: Float[Tensor, "batch d_out"]
    """The scaled activation to be reconstructed."""

    dead: Int64[Tensor, " n_dead"]
    """Latents here that have been silent for long."""

    any_dead: bool
    """Whether there are such latents, here or elsewhere."""

    progress: float
    """Share of the run that is done, from 0 to 1."""


class AbstractArchitecture(ABC):
    """An architecture's numbers, and what it makes of a trainee's weights."""

    __slots__ = ()

    name: ClassVar[str]
    """The word for it on the command line."""

    selects_by_rank: ClassVar[bool]
    """Whether k latents are chosen whatever their size, so that the scale of the encoder is free
    and only AuxK tells dead latents anything."""

    is_signed: ClassVar[bool]
    """Whether latents can be negative."""

    @abstractmethod
    def check(self, d_sae: int) -> None:
        """Raise ShapeError when it does not fit `d_sae` latents."""

    @abstractmethod
    def learning_rate(self, d_sae: int) -> float:
        """Adam's rate where none is given."""

    @property
    @abstractmethod
    def unit_decoder(self) -> bool:
        """Whether an autoencoder's decoder rows have norm 1; else their norms are free."""

    @property
    @abstractmethod
    def subtract_b_dec(self) -> bool:
        """Whether an autoencoder reads x - b_dec."""

    def extra(self, b_enc: Float[Tensor, " d_sae"]) -> dict[str, Float[Tensor, " d_sae"]]:
        """Parameters of its own as they start, where b_enc starts like this; none unless said."""
        return {}

    def estimates(self) -> dict[str, Float[Tensor, ""]]:
        """Running numbers of its own that no gradient moves, as they start; none unless said."""
        return {}

    @abstractmethod
    def encode(self, trainee: Trainee, u: Float[Tensor, "batch d_in"]) -> Encoded:
        """The pairs that can matter to the loss, and their pre-activations."""

    @abstractmethod
    def latents(self, trainee: Trainee, encoded: Encoded) -> Float[Tensor, "..."]:
        """Activations of those pairs, 0 where not active."""

    def penalties(
        self, trainee: Trainee, encoded: Encoded, latents: Float[Tensor, "..."], moment: Moment
    ) -> dict[str, Float[Tensor, ""]]:
        """What is added to the squared error, by name; nothing unless said."""
        return {}

    def observe_(  # noqa: B027  most have nothing to do
        self, trainee: Trainee, latents: Float[Tensor, "..."], progress: float
    ) -> None:
        """Update `estimates`, and bring its parameters back to where they may be; `progress` is
        the batch's, as in `Moment`."""

    @abstractmethod
    def selection(self, trainee: Trainee) -> AbstractSelection:
        """The rule of the finished SAE, in the units of training."""


def read_all(
    trainee: Trainee, u: Float[Tensor, "batch d_in"], bias: Float[Tensor, " d_sae"]
) -> Encoded:
    """Every pre-activation, densely."""
    return Encoded((u - trainee.moved_shift()) @ trainee.W_enc.T + bias, None, len(u), trainee.mesh)


def read_above(
    trainee: Trainee,
    u: Float[Tensor, "batch d_in"],
    bias: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, " d_sae"],
) -> Encoded:
    """The pre-activations above the threshold, or all when that is faster."""
    found = encode_above(
        u,
        trainee.W_enc.detach(),
        bias.detach(),
        threshold.detach(),
        max_density=MAX_DENSITY,
    )
    if found is None:
        return read_all(trainee, u, bias)
    return read_found(trainee, u, bias, found)


def read_found(
    trainee: Trainee,
    u: Float[Tensor, "batch d_in"],
    bias: Float[Tensor, " d_sae"],
    found: tuple[Tensor, Tensor, Tensor],
) -> Encoded:
    """The pre-activations that `kernels/encode.py` found, with their gradient."""
    values, indices, offsets = found
    pairs = Pairs.of(indices, offsets, len(bias))
    pre = read_pairs(u, trainee.W_enc, bias, pairs=pairs, values=values, shift=trainee.shift)
    return Encoded(pre, pairs, len(u), trainee.mesh)


def warmed(coefficient: float, warmup: float, progress: float) -> float:
    """A coefficient that rises linearly from 0 over the first `warmup` of the run."""
    return coefficient * (min(1.0, progress / warmup) if warmup > 0 else 1.0)
