"""The way between two sites, against the model's own forward pass: every family, every pair."""

import itertools

import pytest
import torch
from torch import Tensor

from gossamer.models.between import Between
from gossamer.models.blocks import BlockSetting, noted
from gossamer.models.model import Model
from gossamer.models.taps import Tap, remember, weights_constant
from gossamer.sites import is_before
from tests.tiny_models import FAMILIES, tiny_language_model, tiny_model

IDS = [3, 14, 15, 9, 2, 6, 5]
NOT_WAYS = ("hook_scale", "hook_attn_scores", "hook_pattern", "hook_pos_embed")


def way(model: Model, source: str, target: str, at: dict[str, Tap] | None = None) -> Between:
    """Set up by a pass that stops as early as it may."""
    values: dict[str, Tensor] = {}
    settings: dict[int, BlockSetting] = {}
    sites = Between.needed(model.layout, source, target)
    with torch.no_grad(), noted(model.layout, settings):
        model.forward(model.batch([IDS]), {s: remember(values, s) for s in sites}, to_the_end=False)
    return Between(model.layout, source, target, settings, values, at or {})


def everywhere(model: Model) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}
    with torch.no_grad():
        model.forward(model.batch([IDS]), {s: remember(values, s) for s in model.sites})
    return values


@pytest.mark.parametrize("family", FAMILIES)
def test_the_clean_value_put_in_anywhere_comes_out_as_the_clean_value(family: str) -> None:
    model = tiny_model(family)
    clean = everywhere(model)
    sites = [s for s in model.sites if not s.endswith(NOT_WAYS)]
    ways = [pair for pair in itertools.product(sites, sites) if is_before(*pair)]
    assert len(ways) > 300
    ways = ways[:: len(ways) // 60]
    with torch.no_grad():
        for number, (source, target) in enumerate(ways):
            start, stop = (number % 4, 5) if number % 2 else (0, len(IDS))
            found = way(model, source, target).run(clean[source][:, :stop], start)
            expected = clean[target][:, start:stop]
            assert found.shape == expected.shape, (source, target)
            assert (found - expected).abs().max() <= 1e-11, (source, target)


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_logits_are_the_models_own(family: str) -> None:
    model = tiny_model(family)
    clean, source = everywhere(model), "blocks.1.hook_resid_pre"
    ids = torch.tensor([4, 9, 30])
    found = way(model, source, "logits").run(clean[source], len(IDS) - 1, ids)
    torch.testing.assert_close(found, clean["logits"][:, -1:, ids], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3"])
def test_its_gradient_is_that_of_the_models_own_run(family: str) -> None:
    """With patterns held and one site blocked on the way; a change upstream of nothing else."""
    model = tiny_model(family)
    source, target = "blocks.0.hook_attn_out", "blocks.2.mlp.hook_in"
    constants: dict[str, Tap] = dict.fromkeys(
        ("blocks.1.attn.hook_pattern", "blocks.1.hook_mlp_out"), Tensor.detach
    )
    leaf = everywhere(model)[source].clone().requires_grad_()
    read = way(model, source, target, constants).run(leaf, 3)
    seen: dict[str, Tensor] = {}
    taps: dict[str, Tap] = {source: lambda _: leaf, target: remember(seen, target), **constants}
    model.forward(model.batch([IDS]), taps)
    cotangent = torch.randn(read.shape, generator=torch.Generator().manual_seed(2)).double()
    (found,) = torch.autograd.grad(read, leaf, cotangent)
    (expected,) = torch.autograd.grad(seen[target][:, 3:], leaf, cotangent)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    assert (expected != 0).any()


def test_it_stops_at_the_target() -> None:
    """What lies behind is not run: a tap there is never called."""
    model = tiny_model("gpt2")
    calls: list[str] = []

    def tap(name: str) -> Tap:
        def note(value: Tensor) -> Tensor:
            calls.append(name)
            return value

        return note

    behind, target = "blocks.1.mlp.hook_in", "blocks.1.hook_attn_out"
    at = {target: tap("target"), behind: tap("behind")}
    source = "blocks.0.hook_resid_pre"
    found = way(model, source, target, at)
    assert found.blocks == range(2)
    found.run(everywhere(model)[source])
    assert calls == ["target"]


def test_weights_ask_for_gradients_again_after_an_error() -> None:
    model = Model(tiny_language_model("gpt2"))
    parameters = list(model.language_model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    parameters[0].requires_grad_(False)
    with pytest.raises(ValueError, match="stop"), weights_constant(model.layout):
        assert not any(p.requires_grad for p in parameters)
        raise ValueError("stop")
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
