"""Measured effects are clean minus ablated, computed again over the plain model.

The reference takes from the value at the source's site what the source latent alone writes there
(or sets one embedding to zero), runs the oracle, and subtracts; nothing is held.
"""

from typing import Any

import pytest
import torch

import gossamer
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from tests.plain_edges import plain_effects
from tests.tiny_models import tiny_model
from tests.tiny_saes import OwnSAE, tiny_sae

IDS = [3, 1, 4, 15, 9, 2, 6]
FIRST, LAST = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"
CODERS = {
    "relu": lambda: [tiny_sae("relu", FIRST, 16), tiny_sae("jumprelu", LAST, 16, seed=1)],
    "normalized": lambda: [
        tiny_sae("relu", FIRST, 16, normalization="layer_norm"),
        tiny_sae("gated", LAST, 16, seed=1),
    ],
    "transcoder": lambda: [
        tiny_sae("relu", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out", skip=True),
        tiny_sae("relu", "blocks.2.mlp.hook_in", 16, site_out="blocks.2.hook_mlp_out", seed=1),
    ],
    "own": lambda: [OwnSAE(FIRST, 16), OwnSAE(LAST, 16, seed=1)],
}


def check(family: str, coders: dict[str, Any], source: Any, target: Any) -> list[Any]:
    """Every pair that is measured equals the plain difference; `edges` with hold, which the
    measurement must not know about."""
    model = tiny_model(family)
    hold = ("attention", "norms")
    edges = gossamer.edges(model, coders, IDS, source=source, target=target, hold=hold)
    assert isinstance(edges, gossamer.Edges)
    plain = plain_effects(model.language_model, coders, IDS, source, target)
    n_targets, n_sources = edges.gradients.shape
    pairs = [(t % n_targets, s) for t, s in enumerate(reversed(range(n_sources)))]
    measured = gossamer.measure(model, coders, edges, [*pairs, pairs[0]])
    with torch.no_grad():
        clean = plain.function(plain.point)
        for (target_row, column), found in zip([*pairs, pairs[0]], measured, strict=True):
            without = plain.point.clone()
            without[column] = 0
            effect = float(clean[target_row] - plain.function(without)[target_row])
            assert found.measured == pytest.approx(effect, rel=1e-9, abs=1e-9)
            assert found.edge == edges.edge(target_row, column)
            assert found.sign_agrees == (effect * found.edge.attribution > 0)
    assert max(abs(found.measured) for found in measured) > 1e-2
    return measured


@pytest.mark.parametrize("kind", CODERS)
def test_a_latents_effect_is_that_of_taking_away_what_it_writes(kind: str) -> None:
    coders = {coder.site_out: coder for coder in CODERS[kind]()}
    source, last = (Latents(site) for site in coders)
    n_sources = len(check("gpt2", coders, source, Logits(tokens=[1, 2, 3])))
    assert n_sources > 17 or kind == "own"  # more than run side by side
    check("gpt2", coders, source, LogitDifference(5, 9, position=-2))
    check("gpt2", coders, source, last)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_tokens_effect_is_that_of_taking_away_its_embedding(family: str) -> None:
    coders = {LAST: tiny_sae("topk", LAST, 16)}
    check(family, coders, Tokens(), Latents(LAST))
    check(family, coders, Tokens(), Logits(tokens=[1, 2, 3]))


def test_measured_and_predicted_agree_where_the_model_is_linear() -> None:
    """From the heads' outputs to the residual stream after them there is one matrix."""
    heads, middle = "blocks.1.attn.hook_z", "blocks.1.hook_resid_mid"
    model = tiny_model("llama")
    coders = [tiny_sae("relu", heads, model.width(heads)), tiny_sae("relu", middle, 16, seed=1)]
    edges = gossamer.edges(model, coders, IDS, source=Latents(heads), target=Latents(middle))
    assert isinstance(edges, gossamer.Edges)
    found = gossamer.measure(model, coders, edges, edges.strongest(20))
    assert all(each.sign_agrees for each in found)
    for each in found:
        assert each.measured == pytest.approx(each.edge.attribution, rel=1e-9)


def test_no_pairs_no_runs() -> None:
    model = tiny_model("gpt2")
    edges = gossamer.edges(model, None, IDS, source=Tokens(), target=Logits(top=1))
    assert isinstance(edges, gossamer.Edges) and gossamer.measure(model, None, edges, []) == []
