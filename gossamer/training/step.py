"""One step of one trainee: loss, gradients, Adam, and the count of silence."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.kernels.pairs import Pairs
from gossamer.training.architecture import Moment
from gossamer.training.config import TrainConfig
from gossamer.training.dead import auxk, dead_counts, forget_, resample_
from gossamer.training.schedules import learning_rate, progress
from gossamer.training.trainee import Trainee


class NotFiniteError(GossamerError):
    """The loss or its gradient is not finite; no weight has been changed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch gave."""

    terms: dict[str, Float[Tensor, ""]]
    """The terms of the loss, by name; their sum is what is descended."""

    squared_error: Float[Tensor, ""]
    """Σ‖y - ŷ‖² over the batch, scaled units."""

    variation: Float[Tensor, ""]
    """Σ‖y - ȳ‖² over the batch, ȳ its mean."""

    n_active: Float[Tensor, ""]
    """Active latents, summed over the batch."""

    fired: Bool[Tensor, " d_sae"]
    """Which latents here were active on some token, here or elsewhere."""

    n_tokens: int
    """Tokens of the batch, here and elsewhere."""

    whole_loss: Float[Tensor, ""]
    """The loss of all these tokens, without gradient; not finite where an activation is not."""

    u: Float[Tensor, "batch d_in"]
    """What was encoded."""

    error: Float[Tensor, "batch d_out"]
    """y - ŷ, without gradient."""

    latents: Float[Tensor, "..."]
    """The latents that were looked at, without gradient."""

    pairs: Pairs | None
    """Which (token, latent) pairs those are; None for all of them."""

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()

    def sums(self) -> Float64[Tensor, " 5"]:
        """Loss, squared error, variation, active latents and 1, to be added up over steps."""
        one = torch.ones_like(self.n_active)
        parts = (self.loss, self.squared_error, self.variation, self.n_active, one)
        return torch.stack([part.detach().double() for part in parts])


def outcome(
    config: TrainConfig,
    trainee: Trainee,
    x: Float[Tensor, "batch d_in"],
    y: Float[Tensor, "batch d_out"],
    *,
    step: int,
    n_tokens: int | None = None,
) -> Outcome:
    """The loss of one batch, in the model's units, and what else is known after it.

    Where other processes have some of the tokens, `n_tokens` is the number of all, and the terms
    are what those here add to the loss; None: all are here.
    """
    scaled, u, target = trainee.inputs(x, y)
    architecture, n_tokens = config.sae, len(x) if n_tokens is None else n_tokens
    encoded = architecture.encode(trainee, u)
    latents = architecture.latents(trainee, encoded)
    error = target - trainee.output(encoded.decode(latents, trainee.W_dec), scaled)
    squared_error = error.square().sum()
    dead = trainee.dead(config.dead_after)
    counts = dead_counts(trainee, dead)
    moment = Moment(u, scaled, target, dead, sum(counts) > 0, progress(config, step))
    terms = {"mse": squared_error / len(x)}
    terms |= architecture.penalties(trainee, encoded, latents, moment)
    if n_tokens != len(x):
        terms = {name: term * (len(x) / n_tokens) for name, term in terms.items()}
    if config.remedy == "auxk" and sum(counts):
        d_out = target.shape[1]
        k_aux = max(1, d_out // 2) if config.dead.k_aux is None else config.dead.k_aux
        # A target's mean square is about d_out: that brings α to the same unit as the error.
        weight = config.dead.aux_weight * d_out
        signed = architecture.is_signed
        options = {"dead": dead, "k_aux": k_aux, "signed": signed, "counts": counts}
        terms["auxk"] = weight * auxk(trainee, scaled, error.detach(), **options)
    latents = latents.detach()
    loss = torch.stack([term.detach() for term in terms.values()]).sum()
    if trainee.mesh.size > 1 and scaled is not target:
        loss = loss + (scaled * 0).sum()  # what is not finite there may be read by no latent
    fired = encoded.fired(latents)
    fired, mean, whole_loss = _of_all(trainee, fired, target, loss, n_tokens=n_tokens)
    return Outcome(
        terms,
        squared_error.detach(),
        (target - mean).square().sum(),
        latents.count_nonzero().to(target),
        fired,
        n_tokens,
        whole_loss,
        u,
        error.detach(),
        latents,
        encoded.pairs,
    )


def _of_all(
    trainee: Trainee,
    fired: Bool[Tensor, " d_sae"],
    target: Float[Tensor, "batch d_out"],
    loss: Float[Tensor, ""],
    *,
    n_tokens: int,
) -> tuple[Bool[Tensor, " d_sae"], Float[Tensor, " d_out"], Float[Tensor, ""]]:
    """Which latents were active, the mean target and the loss, over the tokens of all processes."""
    if trainee.mesh.dp == 1:
        return fired, target.mean(0), loss
    parts = torch.cat([fired.to(target), target.sum(0), loss.to(target)[None]])
    trainee.mesh.add_(parts, "dp")
    n = len(fired)
    return parts[:n] > 0, parts[n:-1] / n_tokens, parts[-1]


def descend_(
    config: TrainConfig,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    found: Outcome,
    *,
    step: int,
) -> None:
    """Gradients, Adam's step and everything that follows it. NotFiniteError, before anything has
    changed."""
    optimizer.zero_grad(set_to_none=True)
    found.loss.backward()
    update_(config, trainee, optimizer, found, step=step)


def update_(
    config: TrainConfig,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    found: Outcome,
    *,
    step: int,
) -> None:
    """The step that the gradients say, and everything that follows it. NotFiniteError, before
    anything has changed."""
    trainee.gather_gradients_()
    trainee.constrain_gradient_()
    # What is raised must be raised in all processes, so their loss is looked at as well.
    _clip_(trainee, config.optimizer.clip, found.loss.detach() + found.whole_loss)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    optimizer.step()
    trainee.constrain_()
    config.sae.observe_(trainee, found.latents, progress(config, step))
    trainee.silent_tokens += found.n_tokens
    trainee.silent_tokens.masked_fill_(found.fired, 0)
    if config.remedy == "resample":
        _maybe_resample_(config, trainee, optimizer, found, step=step)


def _clip_(trainee: Trainee, limit: float | None, loss: Float[Tensor, ""]) -> None:
    """Shrink all gradients when their common norm exceeds the limit, and only then."""
    gradients = [p.grad for p in trainee.parameters() if p.grad is not None]
    norm = trainee.gradient_norm()
    if not torch.isfinite(norm + loss):
        raise NotFiniteError("The loss or its gradient is not finite; lower the learning rate.")
    if limit is not None and norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)


def _maybe_resample_(
    config: TrainConfig,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    found: Outcome,
    *,
    step: int,
) -> None:
    every = int(config.dead.resample_tokens or config.dead_after)
    done = (step + 1) * config.batch_tokens
    if done // every == step * config.batch_tokens // every:
        return
    # A latent that is new when the rate falls is never learnt, and does harm in the SAE.
    if progress(config, step) >= 1 - config.optimizer.decay:
        return
    dead = trainee.dead(config.dead_after)
    if sum(dead_counts(trainee, dead)) == 0:
        return
    # A function of seed and step alone, so that a resumed run draws the same.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    resample_(trainee, dead, found.u, found.error, sae=config.sae, generator=generator)
    forget_(optimizer, trainee, dead)


def new_optimizer(config: TrainConfig, trainee: Trainee) -> torch.optim.Adam:
    """Adam over all weights, fused: seven times as fast as the plain one on a CPU."""
    options = config.optimizer
    return torch.optim.Adam(
        trainee.parameters(), lr=config.rate, betas=options.betas, eps=options.epsilon, fused=True
    )
