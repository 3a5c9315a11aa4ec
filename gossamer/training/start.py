"""Where training begins: scales, biases and directions, from a first look at the activations.

    autoencoder   decoder rows random, of norm 1 or 0.1; W_enc = c W_dec; b_dec the mean (or the
                  geometric median); b_enc 0
    transcoder    encoder rows random, whitened by the input's covariance, of norm 1; W_dec 0; b_dec
                  the mean of the target; b_enc = -W_enc · mean of the input; W_skip 0

c is 1, but for architectures that select by rank the multiple that reconstructs the sample best:
of many directions those with the largest products are chosen, and the transpose itself would come
out several times too long.

Random rows come in blocks of their own seeds, so that each process of a mesh draws those of its own
latents, and all together draw what one process does.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from gossamer.distributed import Mesh
from gossamer.errors import GossamerError
from gossamer.training.architecture import Encoded
from gossamer.training.config import TrainConfig
from gossamer.training.trainee import Form, Trainee

SAMPLE_TOKENS = 8192
"""Tokens that are kept for what needs them one by one."""

FREE_NORM = 0.1
"""Norm of decoder rows at the start where it is free."""

BLOCK_ROWS = 4096
"""Random rows drawn from one seed."""

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


def the_same(looks: Mapping[str, FirstLook], mesh: Mesh) -> Mapping[str, FirstLook]:
    """What the first process saw, in all of them."""
    if mesh.size == 1:
        return looks
    return {
        site: FirstLook(*(mesh.copy_(t.clone()) for t in (look.mean, look.scale, look.sample)))
        for site, look in looks.items()
    }


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


def new_trainee(
    config: TrainConfig, looks: Mapping[str, FirstLook], mesh: Mesh | None = None
) -> Trainee:
    """A trainee before its first step, or what is here of it. `config.site` must be set."""
    assert config.site is not None
    source, target = (
        _together([looks[site] for site in sites]) for sites in (config.sites_in, config.sites_out)
    )
    is_autoencoder = config.sites_out == config.sites_in
    mesh = Mesh() if mesh is None else mesh
    make = _autoencoder if is_autoencoder else _transcoder
    made = make(config, source, target, mesh.latents(config.d_sae))
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
            mesh=mesh,
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
    config: TrainConfig, source: FirstLook, target: FirstLook, latents: slice
) -> dict[str, Tensor]:
    width = len(source.mean)
    rows = F.normalize(random_rows(config.seed, latents, config.d_sae, width), dim=1)
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
        "b_enc": torch.zeros(len(rows)),
        "W_dec": W_dec,
        "b_dec": center * source.scale,
    }


def _transcoder(
    config: TrainConfig, source: FirstLook, target: FirstLook, latents: slice
) -> dict[str, Tensor]:
    d_in, d_out = len(source.mean), len(target.mean)
    random = random_rows(config.seed, latents, config.d_sae, d_in, dtype=torch.float64)
    W_enc = F.normalize(random @ _whitening(source), dim=1)
    weights = {
        "W_enc": W_enc,
        "b_enc": -(W_enc @ (source.mean * source.scale).cpu()),
        "W_dec": torch.zeros(len(W_enc), d_out),
        "b_dec": target.mean * target.scale,
    }
    if config.skip:
        weights["W_skip"] = torch.zeros(d_out, d_in)
    return weights


def random_rows(
    seed: int, rows: slice, n_rows: int, width: int, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "rows width"]:
    """Some of `n_rows` normal rows, which are a function of the seed and their number."""
    parts = []
    for start in range(rows.start // BLOCK_ROWS * BLOCK_ROWS, rows.stop, BLOCK_ROWS):
        block = start // BLOCK_ROWS
        text = hashlib.sha256(f"{seed} {block}".encode()).digest()
        number = int.from_bytes(text[:8], "little") >> 1 if block else seed
        generator = torch.Generator().manual_seed(number)
        n = min(BLOCK_ROWS, n_rows - start)
        whole = torch.randn(n, width, generator=generator, dtype=dtype)
        parts.append(whole[max(0, rows.start - start) : rows.stop - start])
    return torch.cat(parts)


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
    sample = sample[trainee.mesh.tokens(len(sample))]
    _, u, _ = trainee.inputs(sample, sample)
    encoded: Encoded = config.sae.encode(trainee, u)
    decoded = encoded.decode(config.sae.latents(trainee, encoded), trainee.W_dec)
    sums = torch.stack([decoded.square().sum(), (u * decoded).sum()])
    size, product = trainee.mesh.add_(sums, "dp")
    if size > 0:
        trainee.W_enc.mul_(product / size)
