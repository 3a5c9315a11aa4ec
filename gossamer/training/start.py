"""Where training begins: scales, biases and directions, from a first look at the activations.

    autoencoder   decoder rows random, of norm 1 or 0.1; W_enc = c W_dec; b_dec the mean (or the
                  geometric median); b_enc 0
    transcoder    encoder rows random, whitened by the input's covariance, of norm 1; W_dec 0; b_dec
                  the mean of the target; b_enc = -W_enc · mean of the input; W_skip 0

c is 1, but for architectures that select by rank the multiple that reconstructs the sample best:
of many directions those with the largest products are chosen, and the transpose itself would come
out several times too long.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import GossamerError
from gossamer.training.architecture import Encoded
from gossamer.training.config import TrainConfig
from gossamer.training.trainee import Form, Trainee

SAMPLE_TOKENS = 8192
"""Tokens that are kept for what needs them one by one."""

FREE_NORM = 0.1
"""Norm of decoder rows at the start where it is free."""

FLAT = 0.01
"""Variation below this share of the mean counts as none when a transcoder's rows are drawn."""


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What one site's activations are like, in the model's units."""

    mean: Float64[Tensor, " width"]
    """Mean activation."""

    scale: Float64[Tensor, "..."]
    """What makes the mean norm E‖x‖ the square root of the width; one for each column where several
    sites are side by side."""

    sample: Float[Tensor, "n width"]
    """Some of them."""


def first_look(
    batches: Iterator[Mapping[str, Tensor]], sites: Sequence[str], n_tokens: int
) -> dict[str, FirstLook]:
    """Read at least `n_tokens` tokens, all sites from the same batches."""
    sums = dict.fromkeys(sites, torch.zeros((), dtype=torch.float64))
    norms = dict(sums)
    samples: dict[str, list[Tensor]] = {site: [] for site in sites}
    seen = kept = 0
    while seen < n_tokens:
        batch = next(batches)
        for site in sites:
            x = batch[site]
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            sums[site] = sums[site].to(x.device) + x.double().sum(0)
            norms[site] = norms[site].to(x.device) + x.norm(dim=1).double().sum()
            if not torch.isfinite(norms[site]):
                raise GossamerError(
                    f"The activations of {site} are not finite in the batch of step "
                    f"{seen // len(x)}, before training has begun; harvest them again."
                )
            if kept < SAMPLE_TOKENS:
                samples[site].append(x[: SAMPLE_TOKENS - kept])
        size = len(batch[sites[0]])
        seen, kept = seen + size, kept + size
    looks = {}
    for site in sites:
        if not norms[site] > 0:
            raise GossamerError(
                f"The activations of {site} are all 0 over the first {seen} tokens; harvest them "
                "again, or train on another site."
            )
        mean = sums[site] / seen
        scale = mean.new_tensor(len(mean)).sqrt() / (norms[site] / seen)
        looks[site] = FirstLook(mean, scale, torch.cat(samples[site]))
    return looks


def side_by_side(
    sites: Sequence[str], batch: Mapping[str, Float[Tensor, "batch _"]]
) -> Float[Tensor, "batch width"]:
    """The activations of one site, or of several in their order."""
    return batch[sites[0]] if len(sites) == 1 else torch.cat([batch[site] for site in sites], 1)


def _together(looks: Sequence[FirstLook]) -> FirstLook:
    """Of several sites side by side."""
    if len(looks) == 1:
        return looks[0]
    return FirstLook(
        torch.cat([look.mean for look in looks]),
        torch.cat([look.scale.expand(len(look.mean)) for look in looks]),
        torch.cat([look.sample for look in looks], dim=1),
    )


def new_trainee(config: TrainConfig, looks: Mapping[str, FirstLook]) -> Trainee:
    """A trainee before its first step. `config.site` must be set."""
    assert config.site is not None
    source, target = (
        _together([looks[site] for site in sites]) for sites in (config.sites_in, config.sites_out)
    )
    is_autoencoder = config.sites_out == config.sites_in
    generator = torch.Generator().manual_seed(config.seed)
    make = _autoencoder if is_autoencoder else _transcoder
    made = make(config, source, target, generator)
    weights = {name: tensor.to(source.sample) for name, tensor in made.items()}
    trainee = Trainee(
        weights,
        extra=config.sae.extra(weights["b_enc"]),
        estimates={n: t.to(source.mean.device) for n, t in config.sae.estimates().items()},
        scales=(source.scale, target.scale),
        form=Form(
            is_autoencoder=is_autoencoder,
            subtract_b_dec=is_autoencoder and config.sae.subtract_b_dec,
            unit_decoder=is_autoencoder and config.sae.unit_decoder,
            widths=tuple(len(looks[site].mean) for site in config.sites_out),
        ),
    )
    if is_autoencoder and config.sae.selects_by_rank:
        _stretch_(config, trainee, source.sample)
    return trainee


def geometric_median(x: Float[Tensor, "n width"], n_steps: int = 100) -> Float[Tensor, " width"]:
    """The point with the smallest sum of distances to the rows of x, by Weiszfeld's steps."""
    point = x.mean(0)
    for _ in range(n_steps):
        weights = 1 / (x - point).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
        moved = (weights[:, None] * x).sum(0) / weights.sum()
        if (moved - point).norm() <= 1e-6 * point.norm():
            return moved
        point = moved
    return point


def _autoencoder(
    config: TrainConfig, source: FirstLook, target: FirstLook, generator: torch.Generator
) -> dict[str, Tensor]:
    width = len(source.mean)
    rows = F.normalize(torch.randn(config.d_sae, width, generator=generator), dim=1)
    W_dec = rows if config.sae.unit_decoder else FREE_NORM * rows
    match config.start.b_dec:
        case "mean":
            center = source.mean
        case "geometric_median":
            scale = source.scale.to(source.sample)
            center = geometric_median(source.sample * scale).double() / source.scale
        case "zero":
            center = torch.zeros_like(source.mean)
    return {
        "W_enc": W_dec.clone(),
        "b_enc": torch.zeros(config.d_sae),
        "W_dec": W_dec,
        "b_dec": center * source.scale,
    }


def _transcoder(
    config: TrainConfig, source: FirstLook, target: FirstLook, generator: torch.Generator
) -> dict[str, Tensor]:
    d_in, d_out = len(source.mean), len(target.mean)
    random = torch.randn(config.d_sae, d_in, generator=generator, dtype=torch.float64)
    W_enc = F.normalize(random @ _whitening(source), dim=1)
    weights = {
        "W_enc": W_enc,
        "b_enc": -(W_enc @ (source.mean * source.scale).cpu()),
        "W_dec": torch.zeros(config.d_sae, d_out),
        "b_dec": target.mean * target.scale,
    }
    if config.skip:
        weights["W_skip"] = torch.zeros(d_out, d_in)
    return weights


def _whitening(look: FirstLook) -> Float64[Tensor, "width width"]:
    """(C + ε mean eigenvalue)^(-1/2), C the covariance of the sample.

    Rows that have gone through it read all of the input's variation alike. Random rows read little
    but its few largest directions, so that a few of them always win and the rest die at once.
    """
    x = look.sample.double().cpu()
    x = x - x.mean(0)
    sizes, directions = torch.linalg.eigh(x.T @ x / len(x))
    floor = FLAT * sizes.mean() + torch.finfo(sizes.dtype).tiny
    return (directions * (sizes.clamp(min=0) + floor).rsqrt()) @ directions.T


@torch.no_grad()
def _stretch_(config: TrainConfig, trainee: Trainee, sample: Float[Tensor, "n width"]) -> None:
    """Multiply W_enc by what reconstructs the sample best."""
    _, u, _ = trainee.inputs(sample, sample)
    encoded: Encoded = config.sae.encode(trainee, u)
    decoded = encoded.decode(config.sae.latents(trainee, encoded), trainee.W_dec)
    size = decoded.square().sum()
    if size > 0:
        trainee.W_enc.mul_((u * decoded).sum() / size)
