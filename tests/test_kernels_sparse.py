"""Sparse latents come back dense, and decoding them equals a dense product, gradients too."""

import pytest
import torch
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents, sparse_decode, sparse_decode_reference
from tests.conftest import TOLERANCE


def dense_latents(*shape: int, density: float = 0.3) -> Tensor:
    """Random latents, most of them zero, in float64."""
    values = torch.randn(*shape, dtype=torch.float64)
    return values * (torch.rand(*shape) < density)


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (1, 1), (0, 7), (2, 0, 7)])
def test_dense_to_sparse_and_back_is_identity(shape: tuple[int, ...]) -> None:
    latents = dense_latents(*shape)
    sparse = SparseLatents.from_dense(latents)
    assert sparse.shape == shape[:-1]
    assert sparse.values.numel() == int((latents != 0).sum())
    assert torch.equal(sparse.to_dense(), latents)


def test_rows_and_indices_say_where_an_entry_stands() -> None:
    latents = torch.tensor(
        [[[0.0, 2.0, 3.0], [0.0, 0.0, 0.0]], [[5.0, 0.0, 0.0], [0.0, -7.0, 0.0]]]
    )
    sparse = SparseLatents.from_dense(latents)
    assert sparse.rows.tolist() == [0, 0, 2, 3]
    assert sparse.indices.tolist() == [1, 2, 0, 1]
    assert sparse.offsets.tolist() == [0, 2, 2, 3, 4]
    assert sparse.values.tolist() == [2.0, 3.0, 5.0, -7.0]


def test_gradients_pass_to_the_dense_latents_and_back() -> None:
    latents = dense_latents(4, 6).requires_grad_()
    weight = torch.randn(4, 6, dtype=torch.float64)
    (SparseLatents.from_dense(latents).to_dense() * weight).sum().backward()
    assert torch.equal(latents.grad, weight * (latents != 0))


def test_offsets_must_fit_the_leading_axes() -> None:
    sparse = SparseLatents.from_dense(dense_latents(4, 6))
    with pytest.raises(ShapeError, match=r"\(2, 3\) have 6 rows .* got 5 offsets"):
        SparseLatents(sparse.values, sparse.indices, sparse.offsets, (2, 3), 6)


@pytest.mark.parametrize("n_rows", [0, 1, 9])
@pytest.mark.parametrize(("d_sae", "d_out"), [(1, 1), (31, 5), (64, 33)])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_decode_equals_its_reference_in_value_and_gradient(
    n_rows: int, d_sae: int, d_out: int, density: float
) -> None:
    sparse = SparseLatents.from_dense(dense_latents(n_rows, d_sae, density=density))
    W_dec = torch.randn(d_sae, d_out, dtype=torch.float64, requires_grad=True)
    values = sparse.values.detach().requires_grad_()
    weight = torch.randn(n_rows, d_out, dtype=torch.float64)
    results = []
    for decode in (sparse_decode, sparse_decode_reference):
        y = decode(values, sparse.indices, sparse.offsets, W_dec)
        results.append((y, *torch.autograd.grad((y * weight).sum(), (values, W_dec))))
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=TOLERANCE[torch.float64], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_works_in_other_dtypes(dtype: torch.dtype) -> None:
    exact = dense_latents(6, 20)
    W_dec = torch.randn(20, 8, dtype=torch.float64)
    sparse = SparseLatents.from_dense(exact.to(dtype))
    y = sparse_decode(sparse.values, sparse.indices, sparse.offsets, W_dec.to(dtype))
    assert y.dtype == dtype
    error = (y.double() - exact @ W_dec).norm() / (exact @ W_dec).norm()
    assert error < TOLERANCE[dtype]
