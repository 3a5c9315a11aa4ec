"""What decides the result of a training run, and apart from it what is written on the way."""

from dataclasses import dataclass, field
from typing import Literal

from gossamer.errors import GossamerError
from gossamer.sites import parse_site
from gossamer.training.architecture import AbstractArchitecture
from gossamer.training.ranges import (
    check_not_negative,
    check_positive,
    check_share,
    check_whole,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Adam and its rate. Every moment of every weight is updated in every step, also of latents
    without a gradient: skipping those would be another optimizer."""

    rate: float | None = None
    """Learning rate after the warm-up; None: what the architecture's paper used."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay of the first and the second moment."""

    epsilon: float = 1e-8
    """Adam's epsilon."""

    warmup_steps: int | None = None
    """Steps over which the rate rises from 0; None: 1000, but at most a twentieth of the run."""

    decay: float = 0.2
    """Share of the run, at its end, over which the rate falls linearly to 0."""

    clip: float | None = 1.0
    """Largest norm of the gradient of all weights together; None: unlimited."""

    def __post_init__(self) -> None:
        check_positive("rate", self.rate)
        for beta in self.betas:
            check_share("Each of betas", beta, below_1=True)
        check_positive("epsilon", self.epsilon)
        check_whole("warmup_steps", self.warmup_steps, 0)
        check_share("decay", self.decay)
        check_positive("clip", self.clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadConfig:
    """When a latent counts as dead, and what is done about it."""

    after_tokens: int | float | None = None
    """Silent on this many tokens means dead; None: a twentieth of the run, at most 10 million."""

    remedy: Literal["auxk", "resample", "none"] | None = None
    """AuxK (arXiv 2406.04093, A.2), resampling (Bricken et al. 2023) or nothing; None: AuxK for
    architectures that select by rank, nothing for the others."""

    aux_weight: float = 1 / 32
    """α of AuxK."""

    k_aux: int | None = None
    """Dead latents that take part for each token in AuxK; None: half the width of the output."""

    resample_tokens: int | float | None = None
    """Dead latents are resampled each time this many tokens have passed, as long as the learning
    rate has not begun to fall; None: `after_tokens`. One stays dead until it is active."""

    def __post_init__(self) -> None:
        if self.remedy not in (None, "auxk", "resample", "none"):
            raise GossamerError(
                f'The remedy for dead latents is auxk, resample or none, got "{self.remedy}".'
            )
        check_whole("after_tokens", self.after_tokens)
        check_not_negative("aux_weight", self.aux_weight)
        check_whole("k_aux", self.k_aux)
        check_whole("resample_tokens", self.resample_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartConfig:
    """What is read off the first activations before the first step."""

    n_tokens: int | float = 100_000
    """Tokens over which the mean and the scale are taken, rounded up to whole batches; at most
    those of the run."""

    b_dec: Literal["mean", "geometric_median", "zero"] = "mean"
    """Where an autoencoder's b_dec starts; a transcoder's starts at the mean of its target."""

    def __post_init__(self) -> None:
        if self.b_dec not in ("mean", "geometric_median", "zero"):
            raise GossamerError(f'b_dec is mean, geometric_median or zero, got "{self.b_dec}".')
        check_whole("The n_tokens of the start", self.n_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One SAE or transcoder to be trained."""

    sae: AbstractArchitecture
    """TopKConfig, BatchTopKConfig, MatryoshkaConfig, AbsTopKConfig, ReLUConfig, PAnnealConfig,
    GatedConfig or JumpReLUConfig."""

    d_sae: int
    """Number of latents."""

    n_tokens: int | float
    """Tokens that it sees, a whole number (2e6 is one), rounded up to whole batches; several
    epochs where there are fewer."""

    site: str | tuple[str, ...] | None = None
    """The site it reads, several for a crosscoder, which writes them too; None: the only one that
    the source has."""

    site_out: str | tuple[str, ...] | None = None
    """The site a transcoder writes, several for one across layers; None: an autoencoder."""

    skip: bool = False
    """Whether a transcoder adds a linear map of its input (arXiv 2501.18823)."""

    batch_tokens: int = 4096
    """Tokens of one step."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Adam and its rate."""

    dead: DeadConfig = field(default_factory=DeadConfig)
    """What is done about dead latents."""

    start: StartConfig = field(default_factory=StartConfig)
    """How it begins."""

    seed: int = 0
    """Of the first weights, of resampling and, with the step, of the order of the data."""

    def __post_init__(self) -> None:
        for name in ("d_sae", "n_tokens", "batch_tokens"):
            check_whole(name, getattr(self, name))
        check_whole("seed", self.seed, 0, 2**32 - 1)
        self._check_sites()
        if self.skip and self.site_out in (None, self.site):
            raise GossamerError("A skip connection is for transcoders; give site_out as well.")
        self.sae.check(self.d_sae)
        is_transcoder = self.site is not None and self.site_out not in (None, self.site)
        if is_transcoder and self.sae.name == "relu" and self.sae.unit_decoder:
            raise GossamerError(
                'A transcoder\'s decoder norms are free, so an L1 with norm="unit" would only make '
                'them grow; write norm="decoder".'
            )
        if is_transcoder and self.sae.name == "panneal":
            raise GossamerError(
                "A transcoder's decoder norms are free, so the penalty of p-anneal, which sees "
                "none, would only make them grow; train an autoencoder, or take another."
            )
        if self.remedy == "auxk" and self.sae.name == "gated":
            raise GossamerError(
                "AuxK gives the gate of a gated SAE no gradient; write remedy resample or none."
            )

    def _check_sites(self) -> None:
        for sites in (self.sites_in, self.sites_out):
            for site in sites:
                parse_site(site)
            if len(set(sites)) < len(sites):
                raise GossamerError(
                    f"The sites of one dictionary differ, got {', '.join(sites)}; name each once."
                )
        if len(self.sites_in) > 1 and self.sites_out != self.sites_in:
            raise GossamerError(
                f"A crosscoder writes the sites that it reads, {', '.join(self.sites_in)}; leave "
                "site_out out, or give one site that is read."
            )

    @property
    def sites_in(self) -> tuple[str, ...]:
        """The sites it reads; none while that is left to the source."""
        return as_sites(self.site)

    @property
    def sites_out(self) -> tuple[str, ...]:
        """The sites it writes."""
        return self.sites_in if self.site_out is None else as_sites(self.site_out)

    @property
    def is_several(self) -> bool:
        """Whether it writes several sites."""
        return len(self.sites_out) > 1

    @property
    def written(self) -> str:
        """What it writes, in a word: the site, or the first and how many more."""
        more = f"+{len(self.sites_out) - 1}" if self.is_several else ""
        return self.sites_out[0] + more

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        return -(-int(self.n_tokens) // self.batch_tokens)

    @property
    def rate(self) -> float:
        """Learning rate after the warm-up."""
        given = self.optimizer.rate
        return self.sae.learning_rate(self.d_sae) if given is None else given

    @property
    def remedy(self) -> str:
        """What is done about dead latents."""
        derived = "auxk" if self.sae.selects_by_rank else "none"
        return self.dead.remedy or derived

    @property
    def dead_after(self) -> int:
        """Tokens of silence that mean dead."""
        derived = max(1, min(10_000_000, int(self.n_tokens) // 20))
        return derived if self.dead.after_tokens is None else int(self.dead.after_tokens)


def as_sites(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """None, one or several."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What is written on the way; none of it changes the result."""

    checkpoint_seconds: float = 60.0
    """A checkpoint is written when this long has passed since the last; 0: after every step."""

    keep: int = 2
    """Checkpoints that are kept, the newest ones."""

    log_steps: int = 10
    """Steps whose means make one line of the log."""

    progress: bool | None = None
    """A bar on standard error; None: where that is a terminal."""

    def __post_init__(self) -> None:
        check_not_negative("checkpoint_seconds", self.checkpoint_seconds)
        check_whole("keep", self.keep)
        check_whole("log_steps", self.log_steps)
