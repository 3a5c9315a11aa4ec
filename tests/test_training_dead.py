"""Dead latents: AuxK, resampling, and what they do to the SAE that is saved."""

from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer.training.dead as dead_file
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.config import (
    DeadConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.loop import train
from gossamer.training.relu import ReLUConfig
from gossamer.training.start import first_look, new_trainee
from gossamer.training.step import descend_, new_optimizer, outcome
from gossamer.training.topk import TopKConfig
from gossamer.training.trainee import Trainee
from tests.test_training import KINDS, config_for, plain_latents, randomised
from tests.tiny_training import OTHER, SITE, Rows, dictionary_rows


def test_auxk_gives_the_dead_and_only_the_dead_a_gradient() -> None:
    config = config_for(TopKConfig(k=3), "autoencoder")
    trainee, x, y = randomised(config)
    terms = outcome(config, trainee, x, y, step=0).terms
    of_encoder, of_decoder = torch.autograd.grad(terms["auxk"], (trainee.W_enc, trainee.W_dec))
    assert not of_encoder[1::2].any() and not of_decoder[1::2].any()
    assert of_encoder[::2].any(1).sum() > 2 and of_decoder[::2].any(1).sum() > 2


def test_auxk_of_an_error_that_does_not_vary_is_zero_and_moves_nothing() -> None:
    for kind in ("autoencoder", "transcoder"):
        config = config_for(TopKConfig(k=3), kind)
        trainee, x, y = randomised(config)
        for dtype in (torch.float64, torch.float32):
            trainee, x, error = trainee.to(dtype), x.to(dtype), torch.ones_like(y, dtype=dtype)
            dead = trainee.dead(100)
            term = dead_file.auxk(trainee, x, 0.1 * error / 3, dead=dead, k_aux=4)
            weights = (trainee.W_enc, trainee.W_dec, trainee.b_enc)
            assert term == 0
            assert not any(gradient.any() for gradient in torch.autograd.grad(term, weights))


BREEDS = {
    "topk": TopKConfig(k=3),
    "batchtopk": BatchTopKConfig(k=3),
    "relu": ReLUConfig(l1=0.5),
    "gated": GatedConfig(l1=0.5),
    "jumprelu": JumpReLUConfig(coefficient=0.5),
}
"""One of each architecture, sparse on the rows below."""


def n_steps(remedy: Any) -> int:
    """AuxK takes longer than resampling."""
    return 300 if remedy == "auxk" else 150


def planted(breed: str, kind: str, remedy: Any) -> tuple[TrainConfig, Trainee, dict[str, Tensor]]:
    """A trainee half of whose latents are dead, and its rows."""
    x, _ = dictionary_rows(2000, 40, 16, 3)
    rows = {SITE: x, OTHER: (x @ torch.randn(16, 9)).square()}
    config = TrainConfig(
        sae=BREEDS[breed],
        d_sae=40,
        n_tokens=n_steps(remedy) * 128,
        batch_tokens=128,
        site=SITE,
        site_out=None if kind == "autoencoder" else OTHER,
        optimizer=OptimizerConfig(rate=3e-3),
        dead=DeadConfig(remedy=remedy, after_tokens=1280, resample_tokens=2560),
    )
    trainee = new_trainee(config, first_look(iter([rows]), [SITE, OTHER], 1))
    bias = trainee.extra["b_gate"] if breed == "gated" else trainee.b_enc
    with torch.no_grad():
        # Too low to be chosen; AuxK needs them high enough to be positive.
        bias[:20] -= 0.5 if remedy == "auxk" else 10.0
    return config, trainee, rows


@pytest.mark.parametrize(
    ("breed", "kind", "remedy"),
    [
        *(("topk", kind, remedy) for kind in KINDS[:2] for remedy in ("auxk", "none")),
        *((breed, kind, "resample") for breed in BREEDS for kind in KINDS[:2]),
    ],
)
def test_planted_dead_latents_fire_again_with_a_remedy_and_not_without(
    breed: str, kind: str, remedy: Any
) -> None:
    """Fire on rows of the same kind that were not trained on, and not on all of them."""
    config, trainee, rows = planted(breed, kind, remedy)
    site_out = config.site_out or SITE
    optimizer = new_optimizer(config, trainee)
    for step, batch in zip(range(n_steps(remedy)), Rows(rows).batches(128, seed=0), strict=False):
        found = outcome(config, trainee, batch[SITE], batch[site_out], step=step)
        descend_(config, trainee, optimizer, found, step=step)
    x, _ = dictionary_rows(2000, 40, 16, 3, seed=0)
    fresh = x[torch.randperm(2000)][:1000] + 0.01 * torch.randn(1000, 16)
    scaled, u, _ = trainee.inputs(fresh, fresh)
    latents = plain_latents(config.sae, trainee, u)[0][:, :20]
    n_fire = int((latents > 0).any(0).sum())
    assert n_fire == 0 if remedy == "none" else n_fire >= 15
    assert not (latents > 0).all(0).any()


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("breed", BREEDS)
def test_resampled_latents_are_centred(breed: str, kind: str) -> None:
    """Just resampled, none is active on nearly every token; and each is dead until it is active."""
    config, trainee, rows = planted(breed, kind, "resample")
    y = rows[config.site_out or SITE]
    trainee.silent_tokens[:20] = 5000
    found = outcome(config, trainee, rows[SITE], y, step=0)
    generator = torch.Generator().manual_seed(0)
    dead = torch.arange(20)
    dead_file.resample_(*(trainee, dead, found.u, found.error), sae=config.sae, generator=generator)
    pre = found.u @ trainee.W_enc.T + (
        trainee.extra["b_gate"] if breed == "gated" else trainee.b_enc
    )
    share = (pre[:, :20] > 0).double().mean(0)
    assert share.min() > 0.1 and share.max() < 0.9
    assert len(trainee.dead(1280)) >= 20


def test_nothing_is_resampled_once_the_rate_falls() -> None:
    """The SAE that is saved is as good on fresh rows as the log says, and says who is dead."""
    x, _ = dictionary_rows(6000, 40, 16, 3)
    config = TrainConfig(
        sae=ReLUConfig(l1=8.0),
        d_sae=64,
        n_tokens=100 * 64,
        batch_tokens=64,
        optimizer=OptimizerConfig(rate=5e-3),
        dead=DeadConfig(remedy="resample", after_tokens=640, resample_tokens=64),
    )
    result = train(config, Rows({SITE: x[:3000]}), run=RunConfig(log_steps=1))
    logged = result.history[-1]
    fresh = x[3000:]
    error = (fresh - result.sae(fresh)).square().sum() / (fresh - fresh.mean(0)).square().sum()
    assert error.item() == pytest.approx(logged["fvu"], rel=0.1)
    fired = (result.sae.encode(x[:3000]) > 0).any(0)
    assert logged["dead"] >= (~fired).double().mean() > 0.2
