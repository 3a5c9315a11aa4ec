"""What is to be trained, what is assumed of it, and what of it one process of a mesh has."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from gossamer.errors import GossamerError, ShapeError
from gossamer.kernels.encode import CANDIDATES
from gossamer.training.architecture import MAX_DENSITY
from gossamer.training.config import TrainConfig
from gossamer.training.matryoshka import MatryoshkaConfig
from gossamer.training.ranges import check_not_negative, check_positive, check_share, check_whole

WORD = 4
"""Bytes of float32, in which training computes."""

STORE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "none": 0}
"""Bytes of a stored number, by the store's dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One SAE or transcoder, and what is assumed of it."""

    config: TrainConfig
    """What is trained; its n_tokens, batch_tokens, d_sae and architecture count."""

    d_in: int
    """Width of what is read."""

    d_out: int | None = None
    """Width of what is written, of a transcoder; None: an autoencoder."""

    active: int | float | None = None
    """Mean active latents of a token; None: the k of architectures that have one."""

    dead: int | float = 0.0
    """Share of latents that are dead: AuxK costs nothing while there are none."""

    numbers: Literal["float32", "bfloat16"] = "float32"
    """float32: the step as it is. bfloat16: a hypothetical one, which Gossamer does not have:
    products, pre-activations and traffic in bfloat16, weights and Adam in float32 beside a
    bfloat16 copy, candidates exchanged in part, nothing read from a disk."""

    model_parameters: int | float = 0
    """Of the language model that is run, in all layers; 0: its cost is left out."""

    layer_share: int | float = 1.0
    """Share of its layers that come before the site."""

    store: Literal["bfloat16", "float16", "float32", "none"] = "bfloat16"
    """Dtype of stored activations; none: the model runs while the SAE trains."""

    checkpoint_seconds: int | float = 60.0
    """Between checkpoints."""

    def __post_init__(self) -> None:
        check_whole("d_in", self.d_in)
        check_whole("d_out", self.d_out)
        check_positive("active", self.active)
        check_share("dead", self.dead)
        check_not_negative("model_parameters", self.model_parameters)
        check_share("layer_share", self.layer_share)
        check_positive("checkpoint_seconds", self.checkpoint_seconds)
        for name, words in (("numbers", ("float32", "bfloat16")), ("store", tuple(STORE_BYTES))):
            if getattr(self, name) not in words:
                raise GossamerError(
                    f'{name} is one of {", ".join(words)}, got "{getattr(self, name)}".'
                )
        if self.per_token > self.config.d_sae:
            raise ShapeError(
                f"A token has at most d_sae={self.config.d_sae} active latents, got "
                f"{self.per_token}."
            )

    @property
    def per_token(self) -> float:
        """Mean active latents of a token. GossamerError where nothing says it."""
        given = getattr(self.config.sae, "k", None) if self.active is None else self.active
        if given is None:
            raise GossamerError(
                f"How many latents of a {self.config.sae.name} SAE are active depends on the "
                "activations; give the mean that you expect, as active (--k)."
            )
        return float(given)

    @property
    def is_autoencoder(self) -> bool:
        """Whether it writes what it reads."""
        return self.d_out is None

    @property
    def unit_decoder(self) -> bool:
        """Whether decoder rows are held at norm 1."""
        return self.is_autoencoder and self.config.sae.unit_decoder

    @property
    def subtract_b_dec(self) -> bool:
        """Whether b_dec is taken from what is read."""
        return self.is_autoencoder and self.config.sae.subtract_b_dec

    @property
    def is_dense(self) -> bool:
        """Whether so many latents are active that the step does dense products."""
        by_rank = self.config.sae.selects_by_rank
        return not by_rank and self.per_token > MAX_DENSITY * self.config.d_sae

    @property
    def n_extra(self) -> int:
        """Parameters of a latent beyond its rows and b_enc."""
        return len(self.config.sae.extra(torch.zeros(1)))

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Inner prefixes of a Matryoshka SAE."""
        sae = self.config.sae
        return sae.inner(self.config.d_sae) if isinstance(sae, MatryoshkaConfig) else ()


class Share(NamedTuple):
    """What one process has of a step: its tokens, its latents, and how wide everything is."""

    work: Work
    """The whole."""

    dp: int
    """Processes that share the tokens."""

    tp: int
    """Processes that share the latents."""

    @property
    def size(self) -> int:
        """All processes."""
        return self.dp * self.tp

    @property
    def b(self) -> int:
        """Tokens here, of the process that has most."""
        return -(-self.work.config.batch_tokens // self.dp)

    @property
    def f(self) -> int:
        """Latents here."""
        return self.work.config.d_sae // self.tp

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.work.d_in

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.work.d_in if self.work.d_out is None else self.work.d_out

    @property
    def k(self) -> int:
        """Latents that a token keeps, rounded up."""
        return max(1, int(-(-self.work.per_token // 1)))

    @property
    def candidates(self) -> int:
        """Latents of a token that are found here before it is known which are kept."""
        sae = self.work.config.sae
        return min(
            self.f, CANDIDATES * self.k if sae.name in ("batchtopk", "matryoshka") else self.k
        )

    @property
    def n_pairs(self) -> float:
        """Active (token, latent) pairs here, when all processes have about as many."""
        return self.b * self.work.per_token / self.tp

    @property
    def rows(self) -> float:
        """Numbers in W_enc and W_dec here."""
        return float(self.f * (self.d_in + self.d_out))

    @property
    def parameters(self) -> float:
        """All numbers here that Adam moves."""
        skip = self.d_in * self.d_out if self.work.config.skip else 0
        return self.rows + self.f * (1 + self.work.n_extra) + self.d_out + skip

    @property
    def n_dead(self) -> int:
        """Dead latents here."""
        return int(self.work.dead * self.f)

    @property
    def has_auxk(self) -> bool:
        """Whether AuxK has anything to do."""
        return self.work.config.remedy == "auxk" and self.n_dead > 0

    @property
    def k_aux(self) -> int:
        """Dead latents that take part for each token, of all processes."""
        given = self.work.config.dead.k_aux
        wanted = max(1, self.d_out // 2) if given is None else given
        return min(wanted, self.n_dead * self.tp)
