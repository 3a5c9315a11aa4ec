"""Blocks run as plain functions, against the model's own forward pass: every family, every site."""

import pytest
import torch
from torch import Tensor

from gossamer.models.blocks import BlockSetting, Span, noted
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import Tap
from tests.tiny_models import FAMILIES, tiny_language_model

IDS = [3, 14, 15, 9, 2, 6, 5]


def keeper(seen: dict[str, Tensor], site: str) -> Tap:
    def keep(value: Tensor) -> Tensor:
        seen[site] = value
        return value

    return keep


def whole_run(model: Model) -> tuple[TokenBatch, dict[int, BlockSetting], dict[str, Tensor]]:
    """A forward pass of two prompts: what it told its blocks, and every site's value."""
    batch = model.batch([IDS, IDS[::-1][:5]])
    settings: dict[int, BlockSetting] = {}
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), noted(model.layout, settings):
        model.forward(batch, {site: keeper(seen, site) for site in model.sites})
    return batch, settings, seen


@pytest.mark.floor
@pytest.mark.parametrize("family", FAMILIES)
def test_a_span_passes_through_the_values_of_the_models_own_forward(family: str) -> None:
    model = Model(tiny_language_model(family))
    batch, settings, expected = whole_run(model)
    sites = [s for s in model.sites if s.startswith(("blocks.1.", "blocks.2."))]
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        Span(model.layout, settings, 1, 2).run(
            expected["blocks.1.hook_resid_pre"], {s: keeper(seen, s) for s in sites}
        )
    assert set(seen) == set(sites)
    for site in sites:
        real = batch.mask.reshape(*batch.mask.shape, *[1] * (seen[site].ndim - 2))
        if site.endswith(("hook_attn_scores", "hook_pattern")):
            real = batch.mask[:, None, :, None]
        difference = torch.where(real, seen[site] - expected[site], 0.0).nan_to_num(0.0)
        assert seen[site].shape == expected[site].shape, site
        assert difference.abs().max() <= 1e-12, site


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_and_late_queries_give_the_same_rows(family: str) -> None:
    model = Model(tiny_language_model(family))
    _, settings, expected = whole_run(model)
    x = expected["blocks.0.hook_resid_pre"][:, :5]
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        out = Span(model.layout, settings, 0, 2).run(
            x, {"blocks.2.hook_mlp_out": keeper(seen, "blocks.2.hook_mlp_out")}, start=3
        )
    for value, site in (
        (out, "blocks.2.hook_resid_post"),
        (seen["blocks.2.hook_mlp_out"], "blocks.2.hook_mlp_out"),
    ):
        assert value.shape == (2, 2, model.d_model)
        assert (value - expected[site][:, 3:5]).abs().max() <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_span_are_those_of_the_models_own_forward(family: str) -> None:
    model = Model(tiny_language_model(family))
    batch, settings, expected = whole_run(model)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(batch.tokens.shape + (model.d_model,), generator=generator).double()
    cotangent = cotangent * batch.mask[..., None]
    leaf = expected["blocks.0.hook_resid_pre"].clone().requires_grad_()
    out = Span(model.layout, settings, 0, 2).run(leaf, {})
    (found,) = torch.autograd.grad(out, leaf, cotangent)

    seen: dict[str, Tensor] = {}
    taps: dict[str, Tap] = {
        "blocks.0.hook_resid_pre": lambda _value: leaf,
        "blocks.2.hook_resid_post": keeper(seen, "blocks.2.hook_resid_post"),
    }
    model.forward(batch, taps)
    (wanted,) = torch.autograd.grad(seen["blocks.2.hook_resid_post"], leaf, cotangent)
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
