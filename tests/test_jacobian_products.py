"""Entries by a chain and by shared rows: both equal the derivative, and the cheaper is taken."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.jacobian import jacobian_of_weights, products
from gossamer.jacobian.passage import Linear
from gossamer.models.mlps import mlp_of
from tests.test_jacobian import CLOSE, IN, MID, OUT, POST, L, check
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae


@pytest.mark.parametrize("kinds", [("topk", "relu"), ("relu", "topk"), ("topk", "topk")])
@pytest.mark.parametrize("way", ["chain", "shared"])
@pytest.mark.parametrize("places", [(IN, OUT), (MID, POST)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_rows_by_a_chain_and_shared(
    family: str, places: Any, way: str, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain and gated MLPs, from either side, whichever is cheaper."""
    monkeypatch.setattr(products, "sharing_pays", lambda *_, **__: way == "shared")
    unused = {"chain": "_entries", "shared": "_chained"}[way]
    monkeypatch.setattr(products, unused, None)
    before, after = (tiny_sae(kinds[n], places[n], 16, seed=n) for n in range(2))
    check(family, before, after, method="rows")


def test_rows_are_shared_where_many_tokens_have_the_same_latents() -> None:
    weight = torch.zeros(3000, 768)
    slopes = torch.zeros(64, 3000)
    linear = Linear((weight,), weight.T, weight.T, (slopes,), None, None, False)

    def pays(n_unique: int, ways: int = 1, memory: int | None = None) -> bool:
        rows = torch.zeros(n_unique, 768), torch.zeros(64, 32, dtype=torch.long)
        return products.sharing_pays(
            replace(linear, ways=(weight,) * ways), rows, rows, memory=memory
        )

    assert pays(400) and pays(1300) and not pays(1400) and not pays(2048)
    assert pays(400, memory=2 * 400 * 3000 * 4) and not pays(400, memory=2 * 400 * 3000 * 4 - 1)
    assert not pays(400, ways=2, memory=2 * 400 * 3000 * 4)


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_gradient_from_weights_equals_double_autograd(
    family: str, sharing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "sharing_pays", lambda *_, **__: sharing)
    mlp = mlp_of(tiny_model(family).layout, L)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_dec, W_enc, x = normal(20, 16), normal(20, 16), normal(5, 16)
    in_indices, out_indices = (torch.randint(0, 20, (5, 4), generator=generator) for _ in "io")
    W_dec.requires_grad_(), W_enc.requires_grad_()
    found = jacobian_of_weights(
        mlp, x, W_dec=W_dec, W_enc=W_enc, in_indices=in_indices, out_indices=out_indices
    )
    got = torch.autograd.grad(found.abs().mean(), (W_dec, W_enc))

    def entries(t: int) -> Tensor:
        def latents(f: Tensor) -> Tensor:
            return mlp(x[t] + (f @ W_dec[in_indices[t]])) @ W_enc[out_indices[t]].T

        zeros = torch.zeros(4, dtype=torch.float64)
        return torch.autograd.functional.jacobian(latents, zeros, create_graph=True)

    plain = torch.stack([entries(t) for t in range(5)])
    torch.testing.assert_close(found, plain, **CLOSE)
    expected = torch.autograd.grad(plain.abs().mean(), (W_dec, W_enc))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
