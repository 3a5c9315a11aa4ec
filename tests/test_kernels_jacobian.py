"""Blocks of Jacobians: values and gradients equal the definition, whatever the chunks."""

from typing import Any

import pytest
import torch
from einops import einsum
from torch import Tensor

from gossamer.kernels import jacobian as kernel
from gossamer.kernels.jacobian import jacobian_blocks, jacobian_blocks_reference, jacobian_loop

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def operands(
    n_ways: int = 1, k_out: int = 3, k_in: int = 4, n_tokens: int = 7, d_mlp: int = 9
) -> tuple[Any, dict[str, Tensor]]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    reads = normal(11, d_mlp)
    writes = tuple(normal(8, d_mlp) for _ in range(n_ways))
    slopes = tuple(normal(n_tokens, d_mlp) for _ in range(n_ways))
    rows = {
        "out_rows": torch.randint(0, 11, (n_tokens, k_out)),
        "in_rows": torch.randint(0, 8, (n_tokens, k_in)),
    }
    return (reads, writes, slopes), rows


@pytest.mark.parametrize("numbers", [1, 60, 10**6])
@pytest.mark.parametrize("sizes", [{}, {"k_out": 1, "k_in": 1}, {"n_tokens": 1}, {"d_mlp": 1}])
@pytest.mark.parametrize("n_ways", [1, 2])
def test_values_and_gradients_equal_the_definition(
    n_ways: int, sizes: dict[str, int], numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "CHUNK_NUMBERS", numbers)
    tensors, rows = operands(n_ways, **sizes)
    found = jacobian_blocks(*tensors, **rows)
    expected = jacobian_blocks_reference(*tensors, **rows)
    torch.testing.assert_close(found, expected, **CLOSE)
    weights = torch.randn_like(found)
    flat = (tensors[0], *tensors[1], *tensors[2])
    ours = torch.autograd.grad((found * weights).sum(), flat)
    theirs = torch.autograd.grad((expected * weights).sum(), flat)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_gradcheck() -> None:
    tensors, rows = operands(2)
    flat = (tensors[0], *tensors[1], *tensors[2])
    assert torch.autograd.gradcheck(
        lambda reads, a, b, s, t: jacobian_blocks(reads, (a, b), (s, t), **rows), flat
    )


def test_no_active_latent_and_no_token_give_empty_blocks() -> None:
    tensors, rows = operands()
    none = {name: indices[:, :0] for name, indices in rows.items()}
    assert jacobian_blocks(*tensors, **none).shape == (7, 0, 0)
    reads, writes, _ = tensors
    empty = {name: indices[:0] for name, indices in rows.items()}
    assert jacobian_blocks(reads, writes, (torch.zeros(0, 9).double(),), **empty).shape == (0, 3, 4)


@torch.no_grad()
def test_the_three_nested_loops_and_the_einsum_that_they_replace_agree() -> None:
    """The benchmark at a sixteenth of its sizes: one SAE on both sides, a mask of halves."""
    d_model, d_mlp, d_sae, k, n_tokens = 48, 192, 3072, 4, 8
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    W_dec, W_in, W_out, W_enc = (
        normal(d_sae, d_model),
        normal(d_mlp, d_model),
        normal(d_model, d_mlp),
        normal(d_sae, d_model),
    )
    writes, reads = W_dec @ W_in.T, W_enc @ W_out
    mask = (normal(n_tokens, d_mlp) > 0).long()
    rows = {
        "in_rows": torch.randint(0, d_sae, (n_tokens, k)),
        "out_rows": torch.randint(0, d_sae, (n_tokens, k)),
    }
    found = jacobian_blocks(reads, (writes,), (mask.double(),), **rows)
    looped = jacobian_loop(reads, writes, mask.double(), **rows)
    torch.testing.assert_close(found, looped, **CLOSE)
    columns = reads.T.contiguous()
    by_einsum = einsum(
        writes[rows["in_rows"]],
        mask.double(),
        columns[:, rows["out_rows"]],
        "pos k_in d_mlp, pos d_mlp, d_mlp pos k_out -> pos k_in k_out",
    )
    torch.testing.assert_close(found, by_einsum.mT, **CLOSE)
    t, j, i = 3, 2, 1
    entry = 0.0
    for m in range(d_mlp):
        write = W_dec[rows["in_rows"][t, i]] @ W_in[m]
        entry += float(W_enc[rows["out_rows"][t, j]] @ W_out[:, m] * mask[t, m] * write)
    assert entry == pytest.approx(float(found[t, j, i]), rel=1e-10)
