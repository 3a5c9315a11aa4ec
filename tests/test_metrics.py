"""Metrics: the mean predictor scores 1, the perfect one 0, and no batch size changes a number."""

import pytest
import torch
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents
from gossamer.metrics import Unexplained, ce_recovered, dead_fraction, fvu, kl, l0
from tests.conftest import TOLERANCE

EXACT = TOLERANCE[torch.float64]


def activations(*shape: int) -> Tensor:
    """Random activations far from the origin, in float64."""
    return torch.randn(*shape, dtype=torch.float64) + 5


def test_the_mean_predictor_has_fvu_one_and_the_perfect_one_zero() -> None:
    y = activations(6, 5, 4)
    assert fvu(y, y.flatten(0, 1).mean(0).expand_as(y)) == pytest.approx(1, rel=EXACT)
    assert fvu(y, y) == 0


def test_a_constant_offset_counts_as_error() -> None:
    y = activations(50, 4)
    offset = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    expected = 50 * offset.square().sum() / (y - y.mean(0)).square().sum()
    assert fvu(y, y + offset) == pytest.approx(expected.item(), rel=EXACT)


def test_fvu_follows_its_definition_and_ignores_the_scale() -> None:
    y, reconstruction = activations(30, 4), activations(30, 4)
    expected = (y - reconstruction).square().sum() / (y - y.mean(0)).square().sum()
    assert fvu(y, reconstruction) == pytest.approx(expected.item(), rel=EXACT)
    assert fvu(y * 7, reconstruction * 7) == pytest.approx(expected.item(), rel=EXACT)


@pytest.mark.parametrize("batch", [1, 7, 30, 64])
def test_fvu_is_the_same_for_any_batch_size(batch: int) -> None:
    y = activations(64, 4).cumsum(0)  # the batches have very different means
    reconstruction = y + torch.randn_like(y)
    parts = [
        Unexplained.of(a, b)
        for a, b in zip(y.split(batch), reconstruction.split(batch), strict=True)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.n_tokens == 64
    assert total.fvu == pytest.approx(fvu(y, reconstruction), rel=EXACT)
    assert total.mse == pytest.approx((y - reconstruction).square().sum(1).mean().item(), rel=EXACT)
    assert torch.allclose(total.mean, y.mean(0), rtol=EXACT)


def test_a_large_mean_does_not_drown_the_variance_in_float32() -> None:
    y = torch.randn(1000, 4) + 1e4
    reconstruction = y.double().mean(0).float().expand_as(y)
    halves = Unexplained.of(y[:300], reconstruction[:300]) + Unexplained.of(
        y[300:], reconstruction[300:]
    )
    # Rounding the mean to float32 costs at most 1e-3 of an activation's unit variance, squared.
    assert halves.fvu == pytest.approx(1, abs=1e-5)


def test_fvu_refuses_what_has_no_variance() -> None:
    with pytest.raises(ShapeError, match="FVU is undefined over 3 tokens with one and the same"):
        fvu(torch.ones(3, 4), torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="FVU needs at least one token, got none"):
        fvu(torch.ones(0, 4), torch.ones(0, 4))


def test_l0_counts_what_is_not_zero_dense_or_sparse() -> None:
    latents = torch.tensor(
        [[[0.0, 2.0, -1.0], [0.0, 0.0, 0.0]], [[3.0, 0.0, 0.0], [1.0, 1.0, 4.0]]]
    )
    assert l0(latents) == 6 / 4
    assert l0(SparseLatents.from_dense(latents)) == 6 / 4
    with pytest.raises(ShapeError, match="L0 needs at least one token, got none"):
        l0(torch.zeros(0, 3))
    with pytest.raises(ShapeError, match="L0 needs at least one token, got none"):
        l0(SparseLatents.from_dense(torch.zeros(0, 3)))


def test_l0_of_sparse_latents_ignores_padding_entries() -> None:
    sparse = SparseLatents(
        torch.tensor([0.0, 2.0]), torch.tensor([0, 1]), torch.tensor([0, 2]), (1,), 3
    )
    assert l0(sparse) == 1


def test_ce_recovered_is_one_for_the_identity_and_zero_for_the_ablation() -> None:
    assert ce_recovered(2.0, 2.0, 7.0) == 1
    assert ce_recovered(2.0, 7.0, 7.0) == 0
    assert ce_recovered(2.0, 3.0, 7.0) == pytest.approx(0.8)
    assert ce_recovered(2.0, 8.0, 7.0) < 0
    with pytest.raises(ShapeError, match="ce_clean=2.0 and ce_ablated=2.0"):
        ce_recovered(2.0, 2.5, 2.0)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_kl_is_the_definition_in_every_chunk(chunk: int) -> None:
    clean, patched = torch.randn(2, 3, 5, 11, dtype=torch.float64).unbind(0)
    log_p, log_q = clean.log_softmax(-1), patched.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert torch.allclose(kl(clean, patched, chunk=chunk), expected, rtol=EXACT)


def test_kl_is_zero_for_the_same_distribution_and_infinite_where_words_are_ruled_out() -> None:
    logits = torch.randn(4, 9, dtype=torch.float64)
    assert kl(logits, logits + 3).abs().max() < EXACT
    barred = logits.clone()
    barred[:, 2] = -torch.inf
    assert kl(barred, barred).abs().max() < EXACT
    assert kl(barred, logits).isfinite().all()
    assert (kl(logits, barred) == torch.inf).all()


def test_kl_of_half_precision_is_computed_in_float32() -> None:
    clean, patched = torch.randn(2, 4, 300).bfloat16().unbind(0)
    found = kl(clean, patched)
    assert found.dtype == torch.float32
    expected = kl(clean.double(), patched.double()).float()
    assert torch.allclose(found, expected, rtol=TOLERANCE[torch.float32])


def test_kl_refuses_different_shapes() -> None:
    with pytest.raises(ShapeError, match=r"clean \(2, 5\) and patched \(3, 5\)"):
        kl(torch.zeros(2, 5), torch.zeros(3, 5))


def test_dead_fraction_counts_latents_without_firings() -> None:
    assert dead_fraction(torch.tensor([0, 3, 0, 1, 9])) == 2 / 5
    assert dead_fraction(torch.tensor([1, 1])) == 0
    with pytest.raises(ShapeError, match="needs at least one latent"):
        dead_fraction(torch.tensor([], dtype=torch.long))
