"""AbsTopK: signs are kept, size decides; the laws of every architecture run it as well."""

from pathlib import Path

import pytest
import torch

from gossamer.errors import ShapeError
from gossamer.saes import SAE, AbsTopK, TopK, load_native
from tests.tiny_saes import plain_latents, tiny_sae


def test_it_keeps_the_largest_in_size_with_their_signs() -> None:
    pre = torch.tensor([[3.0, -5.0, 1.0, 0.0, -2.0], [0.0, 0.0, -1.0, 0.0, 0.0]])
    found = AbsTopK(2).sparse(pre, torch.zeros(5))
    expected = torch.tensor([[3.0, -5.0, 0, 0, 0], [0, 0, -1.0, 0, 0]])
    assert torch.equal(found.to_dense(), expected)
    assert torch.equal(AbsTopK(2).active(pre, torch.zeros(5)), expected != 0)
    assert not torch.equal(TopK(2, relu=False).sparse(pre, torch.zeros(5)).to_dense(), expected)


def test_sparse_dense_and_oracle_agree_in_value_and_gradient() -> None:
    sae = tiny_sae("abstopk", "blocks.0.hook_resid_pre", 12)
    x = torch.randn(4, 7, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 7, 12, dtype=torch.float64)
    ways = (sae.encode(x), sae.encode_sparse(x), plain_latents(sae, x))
    outputs = [sae.decode(latents, x) for latents in ways]
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in outputs]
    for y, gradient in zip(outputs, gradients, strict=True):
        torch.testing.assert_close(y, outputs[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-12)
    assert (ways[0] < 0).any() and ((ways[0] != 0).sum(-1) == 3).all()


def test_turning_a_latent_round_turns_its_sign() -> None:
    """Encoder row, bias and decoder row times -1: the same SAE but for the latent's sign."""
    sae, x = tiny_sae("abstopk", "blocks.0.hook_resid_pre", 12), torch.randn(50, 12).double()
    signs = torch.ones(20).double()
    signs[::3] = -1
    turned = SAE(
        **sae.arguments()
        | {name: getattr(sae, name) * signs[:, None] for name in ("W_enc", "W_dec")}
        | {"b_enc": sae.b_enc * signs}
    )
    torch.testing.assert_close(turned(x), sae(x))
    torch.testing.assert_close(turned.encode(x), sae.encode(x) * signs)


def test_its_file_comes_back(tmp_path: Path) -> None:
    sae = tiny_sae("abstopk", "blocks.0.hook_resid_pre", 12)
    sae.save(tmp_path)
    back = load_native(tmp_path)
    assert isinstance(back.selection, AbsTopK) and back.selection.k == 3
    x = torch.randn(9, 12).double()
    assert torch.equal(back.encode(x), sae.encode(x))


def test_k_must_fit() -> None:
    with pytest.raises(ShapeError, match="at least 1, got k=0"):
        AbsTopK(0)
    with pytest.raises(ShapeError, match=r"k in 1..d_sae, got k=9 with d_sae=4"):
        AbsTopK(9).check(4)
