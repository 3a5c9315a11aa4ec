"""AbsTopK training: loss and gradients of dense autograd, signed directions found, saved signed."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gossamer.training.dead as dead_file
from gossamer.saes import AbsTopK
from gossamer.training.abstopk import AbsTopKConfig
from gossamer.training.config import DeadConfig, OptimizerConfig, TrainConfig
from gossamer.training.loop import train
from gossamer.training.start import first_look, new_trainee
from gossamer.training.step import descend_, new_optimizer, outcome
from gossamer.training.trainee import Trainee
from tests.test_training import D_SAE, KINDS, config_for, randomised
from tests.tiny_training import SITE, Rows, check_equal, dictionary_rows


def largest(pre: Tensor, k: int) -> Tensor:
    """Densely, the k largest in size."""
    mask = torch.zeros_like(pre).scatter(1, pre.abs().topk(k).indices, 1.0)
    return pre * mask


def plain_loss(config: TrainConfig, t: Trainee, x: Tensor, y: Tensor, k: int) -> Tensor:
    """Squared error and AuxK, both of signed latents, densely."""
    scaled, target = x * t.scale_in, y * t.scale_out
    u = scaled - t.b_dec if t.subtract_b_dec else scaled
    pre = u @ t.W_enc.T + t.b_enc
    skip = 0.0 if t.W_skip is None else scaled @ t.W_skip.T
    error = target - largest(pre, k) @ t.W_dec - t.b_dec - skip
    dead = (t.silent_tokens >= 100).nonzero()[:, 0]
    e = error.detach()
    missed = e - largest(pre[:, dead], 4) @ t.W_dec[dead]
    share = missed.square().sum() / (e - e.mean(0)).square().sum()
    return error.square().sum(1).mean() + 0.3 * e.shape[1] * share


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, D_SAE])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_loss_and_gradients_equal_dense_autograd(
    kind: str, k: int, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_file, "MAX_DENSITY", density)
    config = config_for(AbsTopKConfig(k=k), kind)
    trainee, x, y = randomised(config)
    found = outcome(config, trainee, x, y, step=0)
    check_equal(found.loss, plain_loss(config, trainee, x, y, k), list(trainee.parameters()))
    assert found.n_active == 11 * k and (found.latents < 0).any()
    assert found.fired[found.pairs.indices if found.pairs else 0].all()


@pytest.mark.parametrize("remedy", ["auxk", "none"])
def test_planted_dead_latents_fire_again_with_auxk_and_not_without(remedy: Any) -> None:
    """Half of them with rows so short that they are never chosen, of either sign."""
    x, _ = dictionary_rows(2000, 40, 16, 3)
    config = TrainConfig(
        sae=AbsTopKConfig(k=3),
        d_sae=40,
        n_tokens=200 * 128,
        batch_tokens=128,
        site=SITE,
        optimizer=OptimizerConfig(rate=3e-3),
        dead=DeadConfig(remedy=remedy, after_tokens=1280),
    )
    trainee = new_trainee(config, first_look(iter([{SITE: x}]), [SITE], 1))
    with torch.no_grad():
        trainee.W_enc[:20] *= 0.01
    optimizer = new_optimizer(config, trainee)
    for step, batch in zip(range(200), Rows({SITE: x}).batches(128, seed=0), strict=False):
        found = outcome(config, trainee, batch[SITE], batch[SITE], step=step)
        descend_(config, trainee, optimizer, found, step=step)
    _, u, _ = trainee.inputs(x, x)
    fired = (largest(u @ trainee.W_enc.T + trainee.b_enc, 3)[:, :20] != 0).any(0).sum()
    assert fired == 0 if remedy == "none" else fired >= 10


def test_each_latent_finds_both_ends_of_a_direction() -> None:
    """On sums of directions with either sign, half as many latents do as TopK would need."""
    directions = F.normalize(torch.randn(40, 24, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (8000, 40), generator=generator) * 2.0 - 1
    mask = torch.rand(8000, 40, generator=generator) < 3 / 40
    x = (signs * mask * (0.5 + torch.rand(8000, 40, generator=generator))) @ directions
    config = TrainConfig(
        sae=AbsTopKConfig(k=3),
        d_sae=40,
        n_tokens=60_000,
        batch_tokens=256,
        optimizer=OptimizerConfig(rate=5e-3),
    )
    sae = train(config, Rows({SITE: x})).sae
    assert isinstance(sae.selection, AbsTopK)
    cosines = (F.normalize(sae.W_dec, dim=1) @ directions.T).abs()
    assert cosines.max(0).values.mean() >= 0.95
    latents = sae.encode(x)
    assert 0.4 < (latents < 0).sum() / (latents != 0).sum() < 0.6
