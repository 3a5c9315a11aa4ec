"""What is selected in pieces equals what is selected from all pre-activations at once."""

import pytest
import torch
from torch import Tensor

import gossamer.kernels.encode as encode
from gossamer.kernels.encode import (
    encode_above,
    encode_above_reference,
    encode_abs_topk,
    encode_abs_topk_reference,
    encode_batch_topk,
    encode_batch_topk_reference,
    encode_topk,
    encode_topk_bfloat16,
    encode_topk_reference,
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK_ROWS", 4)


def weights(n_rows: int, d_sae: int, bias: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """u, W_enc and b_enc; `bias` moves all pre-activations."""
    u, W_enc = torch.randn(n_rows, 6).double(), torch.randn(d_sae, 6).double()
    return u, W_enc, torch.randn(d_sae).double() + bias


def dense(values: Tensor, indices: Tensor, offsets: Tensor, d_sae: int) -> Tensor:
    rows = torch.repeat_interleave(offsets.diff())
    found = torch.zeros(len(offsets) - 1, d_sae, dtype=values.dtype)
    assert len({*zip(rows.tolist(), indices.tolist(), strict=True)}) == len(rows)  # no pair twice
    return found.index_put((rows, indices), values)


@pytest.mark.parametrize("n_rows", [1, 4, 11])
@pytest.mark.parametrize(("d_sae", "k"), [(1, 1), (13, 1), (13, 5), (13, 13)])
@pytest.mark.parametrize("signed", [False, True])
def test_topk(n_rows: int, d_sae: int, k: int, signed: bool) -> None:
    parts = weights(n_rows, d_sae)
    fast, plain = (encode_topk, encode_topk_reference)
    if signed:
        fast, plain = (encode_abs_topk, encode_abs_topk_reference)
    values, indices = fast(*parts, k)
    plain_values, plain_indices = plain(*parts, k)
    torch.testing.assert_close(values.sort().values, plain_values.sort().values)
    assert torch.equal(indices.sort().values, plain_indices.sort().values)


def test_topk_from_bfloat16_candidates_has_exact_values_and_nearly_all_latents() -> None:
    torch.manual_seed(1)
    u, W_enc, b_enc = torch.randn(64, 128), torch.randn(2048, 128), torch.randn(2048)
    values, indices = encode_topk_bfloat16(u, W_enc, b_enc, 16)
    exact = (u @ W_enc.T + b_enc).gather(1, indices)
    torch.testing.assert_close(values, exact, rtol=1e-4, atol=1e-4)
    _, plain = encode_topk_reference(u, W_enc, b_enc, 16)
    _, rough = encode_topk_reference(u.bfloat16(), W_enc.bfloat16(), b_enc.bfloat16(), 16)

    def kept(found: Tensor) -> float:
        return (found[:, :, None] == plain[:, None]).any(-1).float().mean().item()

    assert kept(rough) < 0.995 < 0.9995 < kept(indices)


def test_topk_from_bfloat16_with_nearly_all_latents_selected() -> None:
    u, W_enc, b_enc = (part.float() for part in weights(3, 5))
    values, indices = encode_topk_bfloat16(u, W_enc, b_enc, 5)
    assert indices.sort().values.tolist() == [[0, 1, 2, 3, 4]] * 3
    torch.testing.assert_close(values, (u @ W_enc.T + b_enc).gather(1, indices))


@pytest.mark.parametrize("n_rows", [1, 4, 11])
@pytest.mark.parametrize(("d_sae", "k"), [(1, 1), (40, 1), (40, 3), (13, 13)])
@pytest.mark.parametrize("bias", [-100.0, -3.0, 0.0, 100.0])
@pytest.mark.parametrize("outlier", [1.0, 50.0])
def test_batch_topk(n_rows: int, d_sae: int, k: int, bias: float, outlier: float) -> None:
    """A token with very large pre-activations takes more than its 4k candidates."""
    u, W_enc, b_enc = weights(n_rows, d_sae, bias)
    u[0] *= outlier
    found = dense(*encode_batch_topk(u, W_enc, b_enc, k), d_sae)
    plain = dense(*encode_batch_topk_reference(u, W_enc, b_enc, k), d_sae)
    torch.testing.assert_close(found, plain)
    assert (found > 0).sum() <= k * n_rows
    if bias == 100.0 and outlier == 1.0:
        assert (found > 0).sum() == k * n_rows


def test_batch_topk_looks_again_where_candidates_were_too_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one candidate for each token the first look is wrong; the second makes it right."""
    u, W_enc, b_enc = weights(8, 40)
    u[0] *= 50
    first = encode._largest  # what the first look alone would give
    monkeypatch.setattr(encode, "CANDIDATES", 1)
    plain = dense(*encode_batch_topk_reference(u, W_enc, b_enc, 3), 40)
    torch.testing.assert_close(dense(*encode_batch_topk(u, W_enc, b_enc, 3), 40), plain)
    values, _ = encode_topk(u, W_enc, b_enc, 3)
    assert first((values.flatten(), values.flatten(), values.flatten()), 24)[0].sum() < plain.sum()


@pytest.mark.parametrize("n_rows", [1, 4, 11])
@pytest.mark.parametrize("level", [-100.0, 0.0, 1.0, 100.0])
def test_above(n_rows: int, level: float) -> None:
    parts = weights(n_rows, 13)
    threshold = level + torch.rand(13).double()
    found = encode_above(*parts, threshold)
    plain = encode_above_reference(*parts, threshold)
    assert found is not None
    torch.testing.assert_close(dense(*found, 13), dense(*plain, 13))
    assert torch.equal(found[2], plain[2])


def test_above_gives_up_when_there_are_too_many() -> None:
    parts = weights(11, 13)
    density = len(encode_above_reference(*parts, torch.zeros(13).double())[0]) / (11 * 13)
    zero = torch.zeros(13).double()
    assert encode_above(*parts, zero, max_density=density * 0.9) is None
    assert encode_above(*parts, zero, max_density=density * 1.1) is not None
