"""p-anneal: loss and gradients of dense autograd at every p, and a penalty that keeps its size."""

from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer.training.architecture as architecture_file
from gossamer.errors import GossamerError
from gossamer.saes import ReLU
from gossamer.training.config import DeadConfig, OptimizerConfig, TrainConfig
from gossamer.training.loop import train
from gossamer.training.panneal import PAnnealConfig, bent, factor
from gossamer.training.relu import ReLUConfig
from gossamer.training.step import outcome
from gossamer.training.trainee import Trainee
from tests.test_training import config_for, randomised
from tests.tiny_training import OTHER, SITE, Rows, check_equal, dictionary_rows

STEEP = PAnnealConfig(l1=0.7, warmup=0.0, p_end=0.3, start=0.5, n_falls=2, floor=0.05)


def plain_loss(t: Trainee, x: Tensor, weight: float, p: float) -> Tensor:
    """Densely, the power taken of each latent by itself."""
    target = x * t.scale_in
    latents = ((target - t.b_dec) @ t.W_enc.T + t.b_enc).relu()
    error = target - latents @ t.W_dec - t.b_dec
    above = latents > 0.05
    size = torch.where(above, torch.where(above, latents, 1.0) ** p, latents * 0.05 ** (p - 1))
    return error.square().sum(1).mean() + weight * size.sum(1).mean()


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize(("step", "p"), [(0, 1.0), (18, 1.0), (19, 0.65), (29, 0.3), (39, 0.3)])
@pytest.mark.parametrize("bias", [0.0, -50.0])
def test_loss_and_gradients_equal_dense_autograd(
    density: float, step: int, p: float, bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture_file, "MAX_DENSITY", density)
    config = config_for(STEEP, "autoencoder", dead=DeadConfig(remedy="none"))  # 40 steps
    trainee, x, y = randomised(config, bias)
    trainee.get_buffer("anneal_factor").fill_(1.7)
    found = outcome(config, trainee, x, y, step=step)
    weight = 0.7 * 1.7  # no batch has been seen, so that no fall has changed it
    check_equal(found.loss, plain_loss(trainee, x, weight, p), list(trainee.parameters()))


def test_the_penalty_keeps_its_size_when_p_falls() -> None:
    """On the batches that were seen last, λ φ before a fall and after it are the same."""
    trainee, x, _ = randomised(config_for(STEEP, "autoencoder", dead=DeadConfig(remedy="none")))
    latents = (x @ trainee.W_enc.T).relu().detach()

    def penalty(falls: int) -> float:
        size = bent(latents, STEEP.power(falls), STEEP.floor).sum()
        return float(factor(trainee, falls) * size)

    before = penalty(0)
    for progress in (0.1, 0.4, 0.5, 0.6, 0.8, 1.0):
        STEEP.observe_(trainee, latents, progress)
        falls = STEEP.falls(progress)
        assert penalty(falls) == pytest.approx(before, rel=1e-9)
        if falls < STEEP.n_falls:
            assert penalty(falls + 1) == pytest.approx(before, rel=1e-9)
    assert trainee.get_buffer("anneal_falls") == 2
    assert trainee.get_buffer("anneal_factor") != 1.0


def test_silent_batches_leave_the_size_alone() -> None:
    trainee, x, _ = randomised(config_for(STEEP, "autoencoder", dead=DeadConfig(remedy="none")))
    for progress in (0.1, 0.5, 0.9):
        STEEP.observe_(trainee, torch.zeros(5).double(), progress)
    assert trainee.get_buffer("anneal_factor") == 1.0


def test_p_falls_in_equal_steps() -> None:
    sae = PAnnealConfig(p_end=0.2, start=0.2, n_falls=4)
    powers = [sae.power(sae.falls(n / 10 + 0.05)) for n in range(10)]
    assert powers == pytest.approx([1, 1, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2])
    flat = PAnnealConfig(p_end=1.0)
    assert flat.power(flat.falls(1.0)) == 1.0


def test_at_the_same_error_fewer_latents_are_active_than_with_l1() -> None:
    """What annealing is for: L1 keeps many small latents, and shrinks the large ones."""
    x, _ = dictionary_rows(4000, 48, 24, 4)
    found = {}
    for sae in (PAnnealConfig(l1=2.0), ReLUConfig(l1=2.0, norm="unit")):
        config = TrainConfig(
            sae=sae,
            d_sae=64,
            n_tokens=80_000,
            batch_tokens=256,
            optimizer=OptimizerConfig(rate=3e-3),
        )
        result = train(config, Rows({SITE: x})).sae
        assert isinstance(result.selection, ReLU)
        error = (x - result(x)).square().sum() / (x - x.mean(0)).square().sum()
        found[sae.name] = (error.item(), (result.encode(x) > 0).sum(1).double().mean().item())
    assert found["panneal"][0] < found["relu"][0] and found["panneal"][1] < found["relu"][1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_end": 0.0}, "p_end must be above 0 and at most 1, got 0.0"),
        ({"p_end": 1.5}, "got 1.5"),
        ({"start": 1.0}, "start must be at least 0 and below 1"),
        ({"n_falls": 0}, "n_falls must be a whole number of at least 1"),
        ({"floor": 0.0}, "floor must be a finite number above 0"),
        ({"l1": -1.0}, "l1 must be"),
    ],
)
def test_mistakes_end_in_one_sentence(options: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        config_for(PAnnealConfig(**options), "autoencoder")


def test_a_transcoder_is_refused() -> None:
    with pytest.raises(GossamerError, match="decoder norms are free"):
        TrainConfig(sae=PAnnealConfig(), d_sae=4, n_tokens=4, site=SITE, site_out=OTHER)
