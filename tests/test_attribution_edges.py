"""Edges beyond law 3: what is blocked, the error's words, many prompts, parts, and their table.

Derivatives are compared with the oracle of `plain_edges.py`, parts with the whole.
"""

import itertools
from typing import Any

import pytest
import torch

import gossamer
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.saes import Labels
from tests.conftest import TOLERANCE
from tests.plain_edges import plain_effects
from tests.tiny_models import tiny_model
from tests.tiny_saes import D_SAE, OwnSAE, tiny_sae

IDS = [3, 1, 4, 15, 9, 2]
FIRST, BETWEEN, LAST = (f"blocks.{layer}.hook_resid_pre" for layer in (0, 1, 2))
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
BOTH = ("attention", "norms")


def residual(*sites: str, kind: str = "relu", dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return {s: tiny_sae(kind, s, 16, seed=n, dtype=dtype) for n, s in enumerate(sites)}


def transcoders(family: str) -> dict[str, Any]:
    """A transcoder for each MLP and an SAE at one attention's heads."""
    heads = "blocks.1.attn.hook_z"
    coders: dict[str, Any] = {
        heads: tiny_sae("topk", heads, tiny_model(family).width(heads), seed=9)
    }
    for layer in range(3):
        site = f"blocks.{layer}.hook_mlp_out"
        coders[site] = tiny_sae(
            "topk", f"blocks.{layer}.mlp.hook_in", 16, site_out=site, skip=True, seed=layer
        )
    return coders


def one(model: Any, coders: Any, prompt: Any = IDS, **how: Any) -> gossamer.Edges:
    found = gossamer.edges(model, coders, prompt, **how)
    assert isinstance(found, gossamer.Edges)
    return found


# What is blocked


@pytest.mark.parametrize("hold", [(), BOTH], ids=["nothing", "both"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "gpt_neox"])
def test_direct_edges_go_past_no_other_sae(family: str, hold: tuple[str, ...]) -> None:
    model, coders = tiny_model(family), transcoders(family)
    source, last = Latents("blocks.0.hook_mlp_out"), Latents("blocks.2.hook_mlp_out")
    for target in (last, Logits(tokens=[2, 9])):
        plain = plain_effects(
            model.language_model, coders, IDS, source, target, hold=hold, direct=True
        )
        found = one(model, coders, source=source, target=target, hold=hold, direct=True)
        torch.testing.assert_close(found.gradients, plain.gradients(), **CLOSE)
        total = one(model, coders, source=source, target=target, hold=hold)
        assert (found.gradients - total.gradients).abs().max() > 1e-3
        assert found.direct and not total.direct and found.hold == total.hold == hold


def test_nothing_passes_a_residual_sae_in_between() -> None:
    model, coders = tiny_model("llama"), residual(FIRST, BETWEEN, LAST)
    ends: dict[str, Any] = {"source": Latents(FIRST), "target": Latents(LAST)}
    blocked, free = one(model, coders, **ends, direct=True), one(model, coders, **ends)
    assert blocked.blocked and (blocked.gradients == 0).all()
    assert not free.blocked and (free.gradients != 0).any()
    ends = {"source": Latents(FIRST), "target": Latents(BETWEEN)}  # neighbours: direct is total
    direct = one(model, coders, **ends, direct=True)
    torch.testing.assert_close(direct.gradients, one(model, coders, **ends).gradients, **CLOSE)


def test_other_saes_passed_change_nothing_unless_direct() -> None:
    model, coders = tiny_model("gpt2"), residual(FIRST, BETWEEN, LAST)
    ends: dict[str, Any] = {"source": Latents(FIRST), "target": Latents(LAST)}
    alone = one(model, [coders[FIRST], coders[LAST]], **ends)
    assert torch.equal(one(model, coders, **ends).gradients, alone.gradients)


# The error


@pytest.mark.parametrize("hold", [(), ("attention",), ("norms",), BOTH], ids="+".join)
def test_without_its_error_the_source_is_its_reconstruction(hold: tuple[str, ...]) -> None:
    model, coders = tiny_model("gemma2"), residual(FIRST, LAST)
    for target in (Latents(LAST), LogitDifference(3, 8)):
        plain = plain_effects(
            model.language_model, coders, IDS, Latents(FIRST), target, hold=hold, error="dropped"
        )
        found = one(model, coders, source=Latents(FIRST), target=target, hold=hold, error="dropped")
        torch.testing.assert_close(found.gradients, plain.gradients(), **CLOSE)
        assert found.error == "dropped"
        kept = one(model, coders, source=Latents(FIRST), target=target, hold=hold)
        assert (found.gradients - kept.gradients).abs().max() > 1e-3


def test_the_error_is_a_constant_whatever_its_word() -> None:
    model, coders = tiny_model("gpt2"), residual(FIRST, LAST)
    ends: dict[str, Any] = {"source": Latents(FIRST), "target": Latents(LAST)}
    expected = one(model, coders, **ends).gradients
    for error in ("attached", "detached", "frozen"):
        torch.testing.assert_close(
            one(model, coders, **ends, error=error).gradients, expected, **CLOSE
        )


# Places


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("blocks.1.attn.hook_z", "blocks.1.hook_resid_mid"),
        ("blocks.1.hook_attn_out", "blocks.1.mlp.hook_in"),
        ("blocks.1.ln1.hook_normalized", "blocks.1.mlp.hook_pre"),
        ("blocks.1.mlp.hook_post", "blocks.1.hook_resid_post"),
        ("hook_embed", "blocks.0.attn.hook_q"),
        ("blocks.2.hook_resid_post", "ln_final.hook_normalized"),
    ],
)
def test_edges_join_any_two_places(source: str, target: str) -> None:
    model = tiny_model("qwen3")
    coders = {
        s: tiny_sae("topk", s, model.width(s), seed=n) for n, s in enumerate((source, target))
    }
    plain = plain_effects(model.language_model, coders, IDS, Latents(source), Latents(target))
    found = one(model, coders, source=Latents(source), target=Latents(target))
    torch.testing.assert_close(found.gradients, plain.gradients(), **CLOSE)
    assert found.gradients.abs().max() > 1e-3


@pytest.mark.parametrize("own", [False, True])
def test_one_sae_at_both_ends_gives_its_rows_against_its_rows(own: bool) -> None:
    model = tiny_model("gpt2")
    coders = {BETWEEN: OwnSAE(BETWEEN, 16) if own else tiny_sae("relu", BETWEEN, 16)}
    ends = (Latents(BETWEEN), Latents(BETWEEN))
    found = one(model, coders, source=ends[0], target=ends[1])
    expected = plain_effects(model.language_model, coders, IDS, *ends).gradients()
    torch.testing.assert_close(found.gradients, expected, **CLOSE)
    same = found.targets.positions[:, None] == found.sources.positions
    assert (found.gradients[~same] == 0).all() and (found.gradients[same] != 0).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [(Latents(LAST), Latents(FIRST)), (Latents(LAST), Latents(BETWEEN))],
)
def test_a_target_before_its_source_is_refused(source: Latents, target: Latents) -> None:
    with pytest.raises(
        SiteError, match=f"read at {target.site}, before {LAST}.*further downstream"
    ):
        one(tiny_model("gpt2"), residual(FIRST, BETWEEN, LAST), source=source, target=target)


def test_a_transcoder_is_upstream_of_what_is_read_after_it_writes() -> None:
    """It reads before the SAE it is asked about, and writes after it: that is no edge."""
    site = "blocks.1.mlp.hook_pre"
    model = tiny_model("gpt2")
    coders = [
        tiny_sae("topk", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out"),
        tiny_sae("topk", site, 64),
    ]
    with pytest.raises(SiteError, match=f"read at {site}, before blocks.1.hook_mlp_out"):
        one(model, coders, source=Latents("blocks.1.hook_mlp_out"), target=Latents(site))


# Prompts


def test_a_list_of_prompts_gives_each_what_it_gives_alone() -> None:
    model, coders = tiny_model("mistral"), residual(FIRST, LAST)
    how: dict[str, Any] = {"source": Latents(FIRST), "target": Latents(LAST), "hold": ("norms",)}
    prompts = [IDS, [8, 36], [5, 5, 5, 5, 5, 5, 5, 5, 7]]
    together = gossamer.edges(model, coders, prompts, **how)
    assert isinstance(together, list) and len(together) == 3
    for ids, found in zip(prompts, together, strict=True):
        alone = one(model, coders, ids, **how)
        assert found.token_ids == tuple(ids) and found.tokens == tuple(f"<{i}>" for i in ids)
        assert found.sources.ids == alone.sources.ids and found.targets.ids == alone.targets.ids
        torch.testing.assert_close(found.gradients, alone.gradients, **CLOSE)


@pytest.mark.parametrize(
    ("prompt", "many"),
    [
        (IDS, False),
        (tuple(IDS), False),
        (torch.tensor(IDS), False),
        ([IDS], True),
        ((IDS,), True),
        (torch.tensor([IDS]), True),
        ([torch.tensor(IDS)], True),
    ],
)
def test_one_prompt_gives_edges_and_a_list_a_list(prompt: Any, many: bool) -> None:
    found = gossamer.edges(tiny_model("gpt2"), None, prompt, source=Tokens(), target=Logits(top=1))
    assert isinstance(found, list) == many
    only = found[0] if isinstance(found, list) else found
    assert only.token_ids == tuple(IDS)


# Parts of the whole


def test_chosen_nodes_have_the_same_edges_as_among_all() -> None:
    """With more targets than are pulled back at once, and in parts of every size."""
    model, coders = tiny_model("gpt2"), residual(FIRST, LAST)
    prompt = [7, 3, 1, 4, 15, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
    whole = one(model, coders, prompt, source=Latents(FIRST), target=Latents(LAST))
    assert len(whole.targets) > 66 and len(whole.sources) > 20
    names = list(itertools.product(whole.targets.ids, whole.sources.ids))
    by_name = dict(zip(names, whole.gradients.flatten().tolist(), strict=True))
    for source, target in (
        (Latents(FIRST, positions=[2, -3]), Latents(LAST)),
        (Latents(FIRST), Latents(LAST, positions=5)),
        (Latents(FIRST, indices=range(0, D_SAE, 3)), Latents(LAST, indices=[1, 4])),
        (Latents(FIRST, top=5), Latents(LAST, top=34)),
    ):
        part = one(model, coders, prompt, source=source, target=target)
        assert 0 < part.gradients.numel() < whole.gradients.numel()
        expected = [by_name[n] for n in itertools.product(part.targets.ids, part.sources.ids)]
        torch.testing.assert_close(
            part.gradients.flatten(), torch.tensor(expected, dtype=torch.float64), **CLOSE
        )


def test_the_strongest_edges_come_first() -> None:
    model, coders = tiny_model("gpt2"), residual(FIRST, LAST)
    coders[FIRST] = tiny_sae(
        "relu", FIRST, 16, labels=Labels(tuple((f"w{i}",) for i in range(D_SAE)))
    )
    found = one(model, coders, source=Latents(FIRST), target=Latents(LAST))
    torch.testing.assert_close(
        found.attributions, found.gradients * found.sources.values, rtol=1e-15, atol=0
    )
    pairs = found.strongest(12)
    sizes = [abs(float(found.attributions[t, s])) for t, s in pairs]
    assert sizes == sorted(sizes, reverse=True) and len(set(pairs)) == 12
    assert sizes == found.attributions.abs().flatten().topk(12).values.tolist()
    for (target, source), edge in zip(pairs, found.top(12), strict=True):
        assert edge == found.edge(target, source)
        assert (edge.source, edge.target) == (found.sources.ids[source], found.targets.ids[target])
        assert edge.gradient == float(found.gradients[target, source])
        assert edge.attribution == float(found.attributions[target, source])
        assert edge.source_label == f"w{int(found.sources.indices[source])}"
    assert len(found.top(10**6)) == found.gradients.numel()


# Numbers


def test_edges_in_float32_are_those_of_float64_to_rounding() -> None:
    """The same active latents, and each gradient to a few hundred roundings of the largest."""
    ends: dict[str, Any] = {"source": Latents(FIRST), "target": Latents(LAST)}
    wide = one(tiny_model("llama"), residual(FIRST, LAST), **ends)
    coders = residual(FIRST, LAST, dtype=torch.float32)
    narrow = one(tiny_model("llama", torch.float32), coders, **ends)
    assert narrow.sources.ids == wide.sources.ids and narrow.targets.ids == wide.targets.ids
    assert narrow.gradients.dtype == torch.float32
    bound = float(TOLERANCE[torch.float32] * wide.gradients.abs().max())
    torch.testing.assert_close(narrow.gradients.double(), wide.gradients, rtol=0, atol=bound)


@pytest.mark.parametrize("of_saes", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def test_edges_of_a_bfloat16_model_are_above_its_noise_floor(of_saes: torch.dtype) -> None:
    """bf16 keeps 8 bits, 2^-9 ≈ 0.2 % a rounding; forward and backward through the blocks are about
    two hundred in a row, √200 · 0.2 % ≈ 3 % of the whole. SAEs load as float32 by default."""
    ends: dict[str, Any] = {
        "source": Latents(FIRST, indices=range(6)),
        "target": Logits(tokens=[1, 2, 3]),
    }
    wide = one(tiny_model("gpt2", torch.float32), residual(FIRST, dtype=torch.float32), **ends)
    coders = residual(FIRST, dtype=of_saes)
    narrow = one(tiny_model("gpt2", torch.bfloat16), coders, **ends)
    common = [name for name in wide.sources.ids if name in narrow.sources.ids]
    assert len(common) >= 0.8 * len(wide.sources)
    columns = [[e.sources.ids.index(name) for name in common] for e in (wide, narrow)]
    expected, found = wide.gradients[:, columns[0]], narrow.gradients[:, columns[1]].float()
    error = float((found - expected).norm() / expected.norm())
    assert 1e-5 < error < 2 * TOLERANCE[torch.bfloat16]


# Mistakes


def test_an_unknown_hold_and_an_sae_that_does_not_fit_are_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(
        GossamerError, match="Cannot hold 'norm'. hold takes any of: attention, norms"
    ):
        one(model, None, source=Tokens(), target=Logits(), hold=("norm",))
    with pytest.raises(ShapeError, match=f"d_in=12, but {FIRST}"):
        one(model, tiny_sae("topk", FIRST, 12), source=Tokens(), target=Logits())
    with pytest.raises(SiteError, match=f"Two SAEs write {FIRST}"):
        one(model, [*residual(FIRST).values()] * 2, source=Tokens(), target=Logits())


def test_a_residual_sae_where_a_transcoder_reads_blocks_the_way_to_it() -> None:
    model, coders = tiny_model("gpt2"), residual(FIRST, BETWEEN)
    after = LAST.replace("hook_resid_pre", "hook_resid_post")
    coders[after] = tiny_sae("topk", BETWEEN, 16, site_out=after)
    ends: dict[str, Any] = {"source": Latents(FIRST), "target": Latents(after)}
    blocked, free = one(model, coders, **ends, direct=True), one(model, coders, **ends)
    assert blocked.blocked and (blocked.gradients == 0).all()
    assert not free.blocked and (free.gradients != 0).any()


def test_no_edges_can_be_asked_for_but_not_fewer() -> None:
    edges = one(tiny_model("gpt2"), {}, source=Tokens(), target=Logits(top=2))
    assert edges.top(0) == []
    with pytest.raises(GossamerError, match="got -3; give 0 or more"):
        edges.strongest(-3)
