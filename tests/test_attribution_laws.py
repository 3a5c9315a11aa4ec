"""Laws 3 and 4 over every kind of source and target, in every mode; all pairs of settings meet.

Each case is compared with the dense Jacobian of the oracle, row for row; some with differences of
runs; and with the chunk sizes that a budget may force.
"""

import itertools
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gossamer
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.errors import GossamerError
from gossamer.models.model import Model
from gossamer.saes import SAE, ReLU
from gossamer.sites import is_before
from tests.plain_edges import plain_effects
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

IDS = [3, 1, 4, 15, 9, 2]
SOURCES = {
    "tokens": None,
    "residual": "blocks.0.hook_resid_pre",
    "mid": "blocks.0.hook_resid_mid",
    "heads": "blocks.0.attn.hook_z",
    "attention": "blocks.0.hook_attn_out",
    "transcoder": "blocks.0.hook_mlp_out",
    "hidden": "blocks.0.mlp.hook_post",
}
TARGETS = {
    "same block": "blocks.0.hook_resid_post",
    "residual": "blocks.2.hook_resid_pre",
    "heads": "blocks.2.attn.hook_z",
    "transcoder": "blocks.2.hook_mlp_out",
    "last": "blocks.2.hook_resid_post",
    "logits": Logits(tokens=[2, 9, 30], position=-2),
    "difference": LogitDifference(3, 8),
}
FACTORS: dict[str, tuple[Any, ...]] = {
    "source": tuple(SOURCES),
    "target": tuple(TARGETS),
    "hold": ((), ("attention",), ("norms",), ("mlps",), ("attention", "norms", "mlps")),
    "direct": (False, True),
    "error": ("frozen", "attached", "detached", "dropped"),
    "kind": ("topk", "relu", "jumprelu", "gated"),
    "family": ("gpt2", "llama", "gemma2", "qwen3"),
    "memory": (None, "least"),
}


def cover(factors: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Few cases in which every two values of every two factors meet, chosen greedily."""
    names = list(factors)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(range(len(factors[a])), range(len(factors[b])))
    }
    cases = []
    while missing:
        case = dict(min(missing))
        for name in names:
            if name not in case:
                case[name] = max(
                    range(len(factors[name])),
                    key=lambda value, name=name, case=case: sum(
                        tuple(sorted(((name, value), other), key=lambda p: names.index(p[0])))
                        in missing
                        for other in case.items()
                    ),
                )
        ordered = [(name, case[name]) for name in names]
        missing -= set(itertools.combinations(ordered, 2))
        cases.append({name: factors[name][value] for name, value in ordered})
    return cases


CASES = cover(FACTORS)


def coders_of(case: dict[str, Any]) -> dict[str, Any]:
    """SAEs at both ends, a transcoder of the block between, and a residual SAE beside the way."""
    model = tiny_model(case["family"])
    ends = (SOURCES[case["source"]], TARGETS[case["target"]])
    sites = {"blocks.1.hook_mlp_out", *(site for site in ends if isinstance(site, str))}
    if case["direct"]:
        sites.add("blocks.1.hook_attn_out")
    coders = {}
    for seed, site in enumerate(sorted(sites)):
        transcodes = site.endswith("hook_mlp_out")
        read = site.replace("hook_mlp_out", "mlp.hook_in")
        coders[site] = tiny_sae(
            case["kind"],
            read,
            model.width(site),
            site_out=site if transcodes else None,
            skip=transcodes and seed % 2 == 0,
            seed=seed,
        )
        coders[site].b_enc.add_(0.7)  # so that some latents are active at small activations too
    return coders


def ends_of(case: dict[str, Any]) -> dict[str, Any]:
    source, target = SOURCES[case["source"]], TARGETS[case["target"]]
    return {
        "source": Tokens() if source is None else Latents(source),
        "target": Latents(target) if isinstance(target, str) else target,
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_effects_are_the_dense_jacobian_in_every_mode(case: dict[str, Any]) -> None:
    model, coders, ends = tiny_model(case["family"]), coders_of(case), ends_of(case)
    how = {name: case[name] for name in ("hold", "direct", "error")}
    plain = plain_effects(model.language_model, coders, IDS, **ends, **how)
    memory = None if case["memory"] is None else least(model, coders, ends, how)
    found = gossamer.edges(model, coders, IDS, **ends, **how, memory=memory)
    assert isinstance(found, gossamer.Edges)
    expected = plain.gradients()
    assert found.gradients.shape == expected.shape
    assert found.targets.positions.tolist() == [p for p, _ in plain.targets]
    scale = max(float(expected.abs().max()), 1.0)
    assert (found.gradients - expected).abs().max() <= 1e-10 * scale
    assert (found.attributions - expected * plain.point).abs().max() <= 1e-10 * scale * 10
    ahead = found.sources.positions > found.targets.positions[:, None]
    assert (found.gradients[ahead] == 0).all()  # law 4
    assert found.blocked or found.gradients.abs().max() > 1e-6


def least(model: Any, coders: Any, ends: Any, how: Any) -> int:
    """A budget that one more byte less would not do; found by halving."""
    low, high = 0, 10**8
    while high - low > 1000:
        middle = (low + high) // 2
        try:
            gossamer.edges(model, coders, IDS, **ends, **how, memory=middle)
            high = middle
        except GossamerError:
            low = middle
    return high


def test_the_cover_covers() -> None:
    assert 45 <= len(CASES) <= 75
    for a, b in itertools.combinations(FACTORS, 2):
        met = {(case[a], case[b]) for case in CASES}
        assert met == set(itertools.product(FACTORS[a], FACTORS[b]))
    order = [site for site in (*SOURCES.values(), *TARGETS.values()) if isinstance(site, str)]
    assert all(is_before(a, b) for a in order[:6] for b in order[6:])


@pytest.mark.parametrize("case", CASES[::9], ids=lambda case: "-".join(map(str, case.values())))
def test_effects_are_the_limit_of_differences(case: dict[str, Any]) -> None:
    model, coders, ends = tiny_model(case["family"]), coders_of(case), ends_of(case)
    how = {name: case[name] for name in ("hold", "direct", "error")}
    found = gossamer.edges(model, coders, IDS, **ends, **how)
    plain = plain_effects(model.language_model, coders, IDS, **ends, **how)
    assert isinstance(found, gossamer.Edges)
    torch.testing.assert_close(found.gradients, plain.differences(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_prompts_of_different_lengths_and_different_architectures_in_one_call(family: str) -> None:
    model = tiny_model(family)
    first, last = "blocks.0.hook_attn_out", "blocks.2.hook_resid_pre"
    coders = [tiny_sae("gated", first, 16), tiny_sae("jumprelu", last, 16, seed=1)]
    ends: dict[str, Any] = {"source": Latents(first), "target": Latents(last)}
    prompts = [IDS, IDS[:2], [7, *IDS, *IDS]]
    for ids, found in zip(prompts, gossamer.edges(model, coders, prompts, **ends), strict=True):
        plain = plain_effects(
            model.language_model, {c.site_out: c for c in coders}, ids, **ends
        ).gradients()
        torch.testing.assert_close(found.gradients, plain, rtol=1e-10, atol=1e-10)


def test_mlps_are_held_only_where_transcoders_stand() -> None:
    model, first = tiny_model("gpt2"), "blocks.0.hook_resid_pre"
    ends: dict[str, Any] = {"source": Latents(first), "target": Logits(tokens=[3])}
    coders = [tiny_sae("topk", first, 16)]
    with pytest.raises(GossamerError, match="hold='mlps'.*none of the SAEs passed.*write blocks.0"):
        gossamer.edges(model, coders, IDS, **ends, hold="mlps")
    mlp_out = "blocks.1.hook_mlp_out"
    coders.append(tiny_sae("topk", "blocks.1.mlp.hook_in", 16, site_out=mlp_out))
    held: Any = gossamer.edges(model, coders, IDS, **ends, hold="mlps")
    free: Any = gossamer.edges(model, coders, IDS, **ends)
    assert held.hold == ("mlps",) and (held.gradients - free.gradients).abs().max() > 1e-4


# By hand


def by_hand() -> tuple[Model, list[SAE]]:
    """Two blocks without MLPs; every query attends equally to all it may; values pass unchanged.

    Width 2, RMSNorm without epsilon. Both tokens embed as (1, −1). The source latent writes (1, 0),
    the target reads (2, 1) after the second block.
    """
    config = LlamaConfig(
        vocab_size=2,
        hidden_size=2,
        intermediate_size=1,
        num_hidden_layers=2,
        num_attention_heads=1,
        rms_norm_eps=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    language_model = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for name, weight in language_model.named_parameters():
            if "norm" in name:
                weight.fill_(1)
            elif "v_proj" in name or "o_proj" in name:
                weight.copy_(torch.eye(2))
            elif "embed_tokens" in name:
                weight.copy_(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
            else:
                weight.zero_()

    def sae(site: str, reads: list[float], writes: list[float]) -> SAE:
        return SAE(
            W_enc=torch.tensor([reads]).double(),
            b_enc=torch.zeros(1).double(),
            W_dec=torch.tensor([writes]).double(),
            b_dec=torch.zeros(2).double(),
            selection=ReLU(),
            site_in=site,
        )

    ends = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post")
    return Model(language_model), [sae(ends[0], [1, 0], [1, 0]), sae(ends[1], [2, 1], [1, 1])]


@pytest.mark.parametrize(
    ("hold", "across", "within"),
    [
        # n(x) = x / rms(x) has slope (1 − n nᵀ/2) / rms(x). For x = ±(c, −c) that is N / c with
        # N = ½ [[1, 1], [1, 1]], and N N = N.
        # First block:  x₀' = x₀ + n(x₀) = (2, −2);  x₁' = x₁ + ½ n(x₀) + ½ n(x₁) = (2, −2)
        #   dx₀' = (1 + N) dx₀;  dx₁' = ½ N dx₀ + (1 + ½ N) dx₁
        # Second block, where the slope is ½ N:  x₁'' = x₁' + ½ n(x₀') + ½ n(x₁')
        #   dx₁'' = ¼ N dx₀' + (1 + ¼ N) dx₁' = (¼·2 + ½ + ⅛) N dx₀ + (1 + ½ N + ¼ N + ⅛ N) dx₁
        # Written (1, 0), read (2, 1):  (2, 1) · (1, 0) = 2 and (2, 1) · N (1, 0) = 3/2, so
        #   from position 0:  9/8 · 3/2 = 27/16;   from position 1:  2 + 7/8 · 3/2 = 53/16
        ((), 27 / 16, 53 / 16),
        # With the norms' scales held their slopes are 1 and ½:
        #   dx₀' = 2 dx₀;  dx₁' = ½ dx₀ + 3/2 dx₁;  dx₁'' = ¼ dx₀' + 5/4 dx₁' = 9/8 dx₀ + 15/8 dx₁
        (("norms",), 9 / 8 * 2, 15 / 8 * 2),
    ],
)
def test_numbers_that_can_be_checked_by_hand(
    hold: tuple[str, ...], across: float, within: float
) -> None:
    model, saes = by_hand()
    found = gossamer.edges(
        model,
        saes,
        [0, 1],
        source=Latents(saes[0].site_out),
        target=Latents(saes[1].site_out, positions=1),
        hold=hold,
    )
    assert isinstance(found, gossamer.Edges)
    assert found.sources.values.tolist() == [1.0, 1.0]  # (1, 0) · (1, −1)
    assert found.targets.values.tolist() == pytest.approx([3.0])  # (2, 1) · (3, −3)
    assert found.gradients.tolist() == [pytest.approx([across, within], rel=1e-12)]
    assert found.attributions.tolist() == found.gradients.tolist()
