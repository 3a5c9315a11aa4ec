"""Blocks of Jacobians: values and gradients equal the definition, whatever the chunks."""

from typing import Any

import pytest
import torch
from einops import einsum
from torch import Tensor

from gossamer.kernels import jacobian as kernel
from gossamer.kernels.jacobian import (
    Chain,
    Scaled,
    jacobian_blocks,
    jacobian_blocks_reference,
    jacobian_chain,
    jacobian_loop,
)

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


@pytest.mark.parametrize("numbers", [1, 8, 10**6])
@pytest.mark.parametrize("shared", ["first", "last"])
@pytest.mark.parametrize("norms", ["none", "held", "moving"])
@pytest.mark.parametrize("n_ways", [1, 2])
def test_a_chain_equals_the_definition(
    n_ways: int, norms: str, shared: str, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "CHAIN_ROWS", numbers)
    chain, starts, ends = links(n_ways, shared, norms)
    found = jacobian_chain(starts, ends, chain)
    expected = plain_chain(starts, ends, chain)
    torch.testing.assert_close(found, expected, **CLOSE)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), (starts, ends))
    theirs = torch.autograd.grad((expected * weights).sum(), (starts, ends), retain_graph=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    (alone,) = torch.autograd.grad(jacobian_chain(starts, ends.detach(), chain).sum(), starts)
    torch.testing.assert_close(alone, torch.autograd.grad(expected.sum(), starts)[0], **CLOSE)


@pytest.mark.parametrize("n_ways", [1, 2])
def test_a_chain_in_half_precision_is_close(n_ways: int) -> None:
    chain, starts, ends = links(n_ways, "first", "moving", width=64)
    starts, ends = (rows.detach().float().requires_grad_() for rows in (starts, ends))
    gradients = []
    for dtype in (None, torch.bfloat16):
        found = jacobian_chain(starts, ends, chain._replace(dtype=dtype))
        assert found.dtype == torch.float32
        gradients.append([found, *torch.autograd.grad(found.square().sum(), (starts, ends))])
    for full, half in zip(*gradients, strict=True):
        assert half.dtype == torch.float32
        assert 0 < (half - full).norm() < 0.02 * full.norm()


def links(
    n_ways: int, shared: str, norms: str, width: int = 5, d_mlp: int = 9, n_tokens: int = 7
) -> tuple[Chain, Tensor, Tensor]:
    """(chain, starts, ends): rows of `width` and one more, three and four a token."""
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    first = tuple(normal(width, d_mlp) for _ in range(1 if shared == "first" else n_ways))
    last = tuple(normal(d_mlp, width + 1) for _ in range(1 if shared == "last" else n_ways))
    slopes = tuple(normal(n_tokens, d_mlp) for _ in range(n_ways))
    places = torch.randint(0, 11, (n_tokens, 3)), torch.randint(0, 8, (n_tokens, 4))
    scaled = (None, None)
    if norms != "none":
        scales = [Scaled(normal(n_tokens).abs() + 1, normal(n_tokens, width + n)) for n in (0, 1)]
        scaled = (scales[0], scales[1]._replace(direction=None)) if norms == "held" else scales
    starts, ends = normal(11, width).requires_grad_(), normal(8, width + 1).requires_grad_()
    return Chain(first, slopes, last, places, tuple(scaled)), starts, ends


def plain_chain(starts: Tensor, ends: Tensor, chain: Chain) -> Tensor:
    """The definition, a token at a time."""
    blocks = []
    for t in range(len(chain.slopes[0])):
        rows = [
            table[places[t]] for table, places in zip((starts, ends), chain.places, strict=True)
        ]
        for side, scaled in enumerate(chain.scaled):
            if scaled is not None:
                n = torch.zeros_like(rows[side][0])
                n = n if scaled.direction is None else scaled.direction[t]
                along = torch.outer(n, n) / len(n)
                rows[side] = rows[side] @ (torch.eye(len(n)).double() - along) / scaled.scale[t]
        n_ways = len(chain.slopes)
        ways = zip(
            chain.first * (n_ways // len(chain.first)),
            chain.slopes,
            chain.last * (n_ways // len(chain.last)),
            strict=True,
        )
        weight = torch.stack([a @ torch.diag(slope[t]) @ b for a, slope, b in ways]).sum(0)
        blocks.append(rows[0] @ weight @ rows[1].T)
    return torch.stack(blocks)


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
    chain, starts, ends = links(1, "first", "none")
    for cut in ((slice(None), slice(0)), (slice(0), slice(None))):
        here = chain._replace(
            slopes=(chain.slopes[0][cut[0]],), places=tuple(places[cut] for places in chain.places)
        )
        found = jacobian_chain(starts, ends, here)
        assert found.shape == ((7, 0, 0) if cut[1] == slice(0) else (0, 3, 4))


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
