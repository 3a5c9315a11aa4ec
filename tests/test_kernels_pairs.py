"""Products over chosen pairs equal dense products over the same pairs, gradients too."""

import pytest
import torch
from torch import Tensor

from gossamer.kernels.pairs import (
    Pairs,
    pair_products,
    read_pairs,
    read_pairs_reference,
    write_pairs,
    write_pairs_reference,
)
from gossamer.kernels.sparse import offsets_of_counts
from tests.conftest import TOLERANCE


def chosen(n_rows: int, d_sae: int, density: float) -> Pairs:
    """Random pairs; the first row has none, nor has the last latent."""
    mask = torch.rand(n_rows, d_sae) < density
    mask[:1], mask[:, -1] = False, False
    return Pairs.of(mask.nonzero()[:, 1], offsets_of_counts(mask.sum(1)), d_sae)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("n_rows", [1, 2, 9])
@pytest.mark.parametrize(("d_sae", "width"), [(1, 1), (31, 5), (64, 33)])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_pairs_equal_their_references_in_value_and_gradient(
    n_rows: int, d_sae: int, width: int, density: float
) -> None:
    pairs = chosen(n_rows, d_sae, density)
    x, shift = doubles(n_rows, width), doubles(width)
    W_enc, b_enc, W_dec = doubles(d_sae, width), doubles(d_sae), doubles(d_sae, width)
    weight = torch.randn(n_rows, width, dtype=torch.float64)
    pre = read_pairs_reference(x - shift, W_enc, b_enc, pairs=pairs)
    y = write_pairs_reference(pre.relu() * pre, W_dec, pairs=pairs)
    values = pre.detach()
    # x gets its gradient through u; shift by its own way, u then being a constant for it.
    u = x - shift.detach()
    fast_pre = read_pairs(u, W_enc, b_enc, pairs=pairs, values=values, shift=shift)
    fast_y = write_pairs(fast_pre.relu() * fast_pre, W_dec, pairs=pairs)
    leaves = (x, shift, W_enc, b_enc, W_dec)
    plain = torch.autograd.grad((y * weight).sum(), leaves)
    fast = torch.autograd.grad((fast_y * weight).sum(), leaves)
    for one, other in zip((fast_y, *fast), (y, *plain), strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE[torch.float64], atol=1e-12)
    assert not fast[2][-1].any() and not fast[4][-1].any()  # the latent that was never chosen


def test_rows_and_latents_say_where_a_pair_stands() -> None:
    pairs = Pairs.of(torch.tensor([2, 0, 2, 1]), torch.tensor([0, 2, 2, 4]), 4)
    assert pairs.rows.tolist() == [0, 0, 2, 2]
    assert pairs.by_latent.tolist() == [1, 3, 0, 2]
    assert pairs.latent_offsets.tolist() == [0, 1, 2, 4, 4]
    assert (pairs.n_rows, pairs.d_sae) == (3, 4)


def test_pair_products_are_single_dot_products() -> None:
    u, W_enc = doubles(5, 7), doubles(11, 7)
    indices = torch.randint(0, 11, (5, 3))
    expected = torch.einsum("bd,bkd->bk", u, W_enc[indices])
    torch.testing.assert_close(pair_products(u, W_enc, indices), expected)
    assert not pair_products(u, W_enc, indices).requires_grad


def test_no_tensor_as_large_as_all_pairs_is_made() -> None:
    """Neither (batch, d_sae) nor (nnz, width): the largest is a weight's gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else (out,):
                sizes.append(each.numel() if isinstance(each, Tensor) else 0)
            return out

    n_rows, d_sae, width, k = 64, 128, 16, 32
    indices = torch.stack([torch.randperm(d_sae)[:k] for _ in range(n_rows)]).flatten()
    u, W_enc, b_enc, W_dec = (
        doubles(*shape) for shape in [(n_rows, width), (d_sae, width), (d_sae,), (d_sae, width)]
    )
    with Sizes():
        pairs = Pairs.of(indices, torch.arange(0, n_rows * k + 1, k), d_sae)
        values = torch.randn(n_rows * k, dtype=torch.float64)
        pre = read_pairs(u, W_enc, b_enc, pairs=pairs, values=values)
        write_pairs(pre, W_dec, pairs=pairs).square().sum().backward()
    assert max(sizes) == d_sae * width < n_rows * d_sae < n_rows * k * width
