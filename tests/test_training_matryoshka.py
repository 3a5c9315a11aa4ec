"""Matryoshka: loss and gradients of dense autograd, every prefix an SAE, saved as BatchTopK is."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.errors import GossamerError, ShapeError
from gossamer.kernels.pairs import Pairs
from gossamer.saes import SAE, JumpReLU
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.config import OptimizerConfig, TrainConfig
from gossamer.training.loop import train
from gossamer.training.matryoshka import MatryoshkaConfig, segment, segment_reference
from gossamer.training.step import outcome
from gossamer.training.trainee import Trainee
from tests.test_training import D_SAE, KINDS, config_for, plain_auxk, randomised
from tests.tiny_training import SITE, Rows, check_equal, dictionary_rows

SIZES = {
    "paper": MatryoshkaConfig(k=3),
    "given": MatryoshkaConfig(k=3, prefixes=(1, 9, 22), weights=(0.5, 0.0, 3.0)),
    "one": MatryoshkaConfig(k=5, prefixes=(7,)),
}


def plain_loss(config: TrainConfig, t: Trainee, x: Tensor, y: Tensor) -> Tensor:
    """Each prefix decoded by itself from dense latents."""
    sae: Any = config.sae
    scaled, target = x * t.scale_in, y * t.scale_out
    u = scaled - t.b_dec if t.subtract_b_dec else scaled
    pre = u @ t.W_enc.T + t.b_enc
    mask = torch.zeros(pre.numel()).double()
    mask[pre.flatten().topk(sae.k * len(u)).indices] = 1.0
    latents = pre.relu() * mask.view_as(pre)
    skip = 0.0 if t.W_skip is None else scaled @ t.W_skip.T
    inner = sae.prefixes or (1, 2, 5, 11)  # of 23: 0.7, 2.2, 5.0 and 10.8
    weights = sae.weights or (1.0,) * len(inner)
    loss, error = torch.zeros(()).double(), target
    for size, weight in zip((*inner, D_SAE), (*weights, 1.0), strict=True):
        error = target - latents[:, :size] @ t.W_dec[:size] - t.b_dec - skip
        loss = loss + weight * error.square().sum(1).mean()
    dead = (t.silent_tokens >= 100).nonzero()[:, 0]
    return loss + plain_auxk(config, t, u, error.detach(), dead)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("bias", [0.0, -50.0, 3.0])
def test_loss_and_gradients_equal_dense_autograd(name: str, kind: str, bias: float) -> None:
    """Also with no active latent at all."""
    config = config_for(SIZES[name], kind)
    trainee, x, y = randomised(config, bias)
    found = outcome(config, trainee, x, y, step=0)
    check_equal(found.loss, plain_loss(config, trainee, x, y), list(trainee.parameters()))
    assert set(found.terms) == {"mse", "prefixes", "auxk"}


@pytest.mark.parametrize("ends", [(0, 4), (4, 13), (5, 6), (7, 7)])
@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0, 0), (13, 1, 2)])
def test_a_segment_equals_its_reference(ends: tuple[int, int], counts: tuple[int, ...]) -> None:
    indices = torch.cat([torch.randperm(13)[:n] for n in counts])
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    pairs = Pairs.of(indices, offsets, 13)
    latents = torch.rand(len(indices), dtype=torch.float64, requires_grad=True)
    W_dec = torch.randn(13, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5).double()
    one, other = (
        (each(latents, W_dec, pairs, ends) * weight).sum() for each in (segment, segment_reference)
    )
    check_equal(one, other, [latents, W_dec])


def trained(sae: Any, x: Tensor) -> SAE:
    config = TrainConfig(
        sae=sae,
        d_sae=64,
        n_tokens=40_000,
        batch_tokens=256,
        optimizer=OptimizerConfig(rate=4e-3),
    )
    return train(config, Rows({SITE: x})).sae


def fvu_of_prefix(sae: SAE, x: Tensor, size: int) -> float:
    guess = sae.encode(x)[:, :size] @ sae.W_dec[:size] + sae.b_dec
    return ((x - guess).square().sum() / (x - x.mean(0)).square().sum()).item()


def test_prefixes_reconstruct_and_the_sae_is_a_batchtopk_one() -> None:
    x, _ = dictionary_rows(4000, 48, 24, 4)
    nested = trained(MatryoshkaConfig(k=4, prefixes=(8, 24)), x)
    plain = trained(BatchTopKConfig(k=4), x)
    for size in (8, 24):
        assert fvu_of_prefix(nested, x, size) < fvu_of_prefix(plain, x, size) - 0.1
    assert fvu_of_prefix(nested, x, 64) < 0.3
    assert isinstance(nested.selection, JumpReLU)
    assert len(set(nested.selection.threshold.tolist())) == 1
    assert (nested.encode(x) != 0).sum(1).double().mean() == pytest.approx(4, rel=0.02)
    assert nested.metadata["prefixes"] == [8, 24, 64] and nested.metadata["k"] == 4


def test_the_prefixes_of_the_paper() -> None:
    assert MatryoshkaConfig(k=1).inner(65536) == (2048, 6144, 14336, 30720)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prefixes": (4, 4)}, ShapeError, "rise from at least 1 to less than d_sae=23, got 4, 4"),
        ({"prefixes": (4, 23)}, ShapeError, "leave d_sae itself out"),
        ({"prefixes": (0, 4)}, ShapeError, "got 0, 4"),
        ({"prefixes": ()}, ShapeError, "got none"),
        ({"prefixes": (4, 9), "weights": (1.0,)}, ShapeError, "2 Matryoshka prefixes .* got 1"),
        ({"prefixes": (4,), "weights": (-1.0,)}, GossamerError, "at least 0, got -1"),
        ({"k": 24}, ShapeError, "k=24 with d_sae=23"),
    ],
)
def test_mistakes_end_in_one_sentence(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        config_for(MatryoshkaConfig(**{"k": 3, **options}), "autoencoder")
