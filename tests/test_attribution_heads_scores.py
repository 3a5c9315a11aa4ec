"""QK attributions against the plain model: every part of the stream, what a head makes of it, and
the score that all pairs add up to.

What a node writes is `PlainAnalysis.write`; what a head makes of a vector is the plain model's
rotated query or key of a stream that is this vector, less that of a stream of zeros, every scale
held.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer
from gossamer.attribution.heads import pairs
from gossamer.attribution.heads.pairs import KINDS, QKAttributions, Side
from gossamer.attribution.heads.scores import qk_attributions
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.models.model import Model
from tests.graph_mixes import at
from tests.plain_analysis import PlainAnalysis
from tests.plain_model import plain_run
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import OwnSAE

IDS = [1, 5, 7, 3, 9, 11]
"""A prompt longer than the windows of Mistral and Gemma."""

HEAD, QUERY, KEY, AGAINST = 2, 4, 2, 3

SETS: dict[str, Callable[[Model], list[Any]]] = {
    "none": lambda _: [],
    "residual, then others": lambda m: at(
        m, "0.hook_mlp_out", "0.hook_resid_post", "1.attn.hook_z", "1.mlp.hook_in>1.hook_mlp_out+"
    ),
    "outputs": lambda m: at(
        m, "0.hook_attn_out", "0.mlp.hook_in>0.hook_mlp_out", "1.mlp.hook_post"
    ),
    "at the block": lambda m: at(m, "0.hook_mlp_out", "2.hook_resid_pre"),
    "behind": lambda m: at(m, "1.hook_attn_out", "2.hook_mlp_out", "2.hook_resid_post"),
    "normalized": lambda m: at(m, "1.hook_resid_pre", normalization="layer_norm"),
    "a user's own": lambda m: [OwnSAE("blocks.1.hook_mlp_out", 16)],
}
"""Which SAEs stand where, and so which cut of the stream before block 2 is taken."""


def ask(model: Model, saes: Any, layer: int = 2, **options: Any) -> QKAttributions:
    return qk_attributions(
        model, saes, IDS, f"blocks.{layer}.attn.hook_z/{HEAD}@{QUERY}<-{KEY}", **options
    )


@cache
def clean(family: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return plain_run(tiny_model(family).language_model, IDS)


def plain_side(family: str, layer: int, which: str, vector: Tensor, position: int) -> Tensor:
    """(d_head,) what the head makes of a stream that is a vector at one position and else 0."""
    model, values = tiny_model(family), clean(family)
    held: dict[str, Callable[[Tensor], Tensor]] = {
        site: partial(_constant, v) for site, v in values.items() if site.endswith("hook_scale")
    }
    stream = torch.zeros_like(values[f"blocks.{layer}.hook_resid_pre"])
    stream[position] = vector
    held[f"blocks.{layer}.hook_resid_pre"] = partial(_constant, stream)
    with torch.no_grad():
        run = plain_run(model.language_model, IDS, held)
    rotary = model.layout.adapter.attention.rotary
    found = run[f"blocks.{layer}.attn.hook_{'rot_' if rotary else ''}{which}"][position]
    return found[HEAD if which == "q" else HEAD * len(found) // 4]


def _constant(value: Tensor, _: Tensor) -> Tensor:
    return value


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETS)
def test_pairs_add_up_to_the_score(family: str, name: str) -> None:
    model = tiny_model(family)
    saes, values = SETS[name](model), clean(family)
    for layer in (0, 2):
        found = ask(model, saes if layer else at(model, "0.hook_resid_pre"), layer)
        query, key = (
            plain_side(family, layer, which, values[f"blocks.{layer}.hook_resid_pre"][p], p)
            for which, p in (("q", QUERY), ("k", KEY))
        )
        score = float(query @ key) * found.scaling
        capped = score if found.softcap is None else found.softcap * np.tanh(score / found.softcap)
        seen = values[f"blocks.{layer}.attn.hook_attn_scores"][HEAD, QUERY, KEY]
        assert abs(capped - float(seen)) < 1e-10
        assert abs(found.score - score) < 1e-10
        assert abs(found.sum_of_pairs() - score) < 1e-9 * found.sum_of_sizes()
        table = found.table()
        assert abs(np.abs(table).sum() - found.sum_of_sizes()) < 1e-9 * found.sum_of_sizes()
        np.testing.assert_allclose(found.query_scores, table.sum(1), atol=1e-11)
        np.testing.assert_allclose(found.key_scores, table.sum(0), atol=1e-11)
        pattern = values[f"blocks.{layer}.attn.hook_pattern"][HEAD, QUERY, KEY]
        assert abs(found.pattern[0] - float(pattern)) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["none", "residual, then others", "outputs"])
def test_every_part_is_what_its_node_writes_as_the_head_reads_it(family: str, name: str) -> None:
    model = tiny_model(family)
    saes, values = SETS[name](model), clean(family)
    found = ask(model, saes)
    read = "blocks.2.hook_resid_pre"
    plain = PlainAnalysis(model.language_model, IDS, lambda v: v[read].sum(), read, saes)
    for side, which, position in ((found.query, "q", QUERY), (found.key, "k", KEY)):
        zero = plain_side(family, 2, which, torch.zeros(16, dtype=torch.float64), position)
        total = torch.zeros(16, dtype=torch.float64)
        assert len(set(side.ids)) == len(side) and set(side.kinds) <= set(KINDS)
        for i, node in enumerate(side.ids):
            if node.startswith("blocks.2.attn.hook_"):
                np.testing.assert_allclose(side.vectors[i], zero, atol=1e-11)
                continue
            if side.kinds[i] == "layer":
                written = values[node.split("/")[0]][position]
            else:
                written = plain.write(node)
                activation = plain.activation(node)
                assert (
                    activation is None
                    or side.kinds[i] != "latent"
                    or (abs(side.values[i] - activation) < 1e-10)
                )
            total += written
            made = plain_side(family, 2, which, written, position) - zero
            np.testing.assert_allclose(side.vectors[i], made, atol=1e-10)
        torch.testing.assert_close(total, values[read][position], rtol=1e-9, atol=1e-10)


def test_the_latest_sae_at_the_stream_and_later_writers_stand_for_it() -> None:
    model = tiny_model("gpt2")
    found = ask(model, SETS["residual, then others"](model))
    sites = {node.split("/")[0] for node in found.query.ids}
    assert sites == {
        "blocks.0.hook_resid_post",
        *("blocks.1.attn.hook_z", "blocks.1.attn", "blocks.1.hook_mlp_out"),
        "blocks.2.attn.hook_q",
    }
    assert {node.split("/")[0] for node in ask(model, []).key.ids} == {
        *("hook_embed", "hook_pos_embed", "blocks.2.attn.hook_k"),
        *(f"blocks.{m}.{kind}" for m in (0, 1) for kind in ("attn.hook_z", "attn", "hook_mlp_out")),
    }
    assert "hook_embed/9@4" in ask(model, []).query.ids
    assert f"blocks.1.attn.hook_z/3@{KEY}" in ask(model, []).key.ids


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_difference_is_one_key_less_the_other(family: str) -> None:
    model = tiny_model(family)
    saes = SETS["outputs"](model)
    both = ask(model, saes, against=AGAINST)
    one = ask(model, saes)
    other = qk_attributions(model, saes, IDS, f"blocks.2.attn.hook_z/{HEAD}@{QUERY}<-{AGAINST}")
    assert abs(both.score - (one.score - other.score)) < 1e-11
    assert abs(both.sum_of_pairs() - both.score) < 1e-9 * both.sum_of_sizes()
    np.testing.assert_allclose(
        both.table(), np.concatenate([one.table(), -other.table()], 1), atol=1e-12
    )
    assert set(both.key.positions) == {KEY, AGAINST} and len(both.pattern) == 2
    assert ask(model, saes, against=AGAINST - len(IDS)).score == both.score


def test_the_strongest_pairs_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("qwen2")
    found = ask(model, SETS["residual, then others"](model))
    table = found.table()
    order = np.argsort(-np.abs(table), axis=None, kind="stable")
    for at_once in (pairs.PAIRS_AT_ONCE, 1, 3 * len(found.key)):
        monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", at_once)
        for n in (1, 7, table.size + 5):
            got = found.pairs(n)
            assert len(got) == min(n, table.size)
            for pair, flat in zip(got, order, strict=False):
                assert abs(pair.score) == pytest.approx(abs(table.flat[flat]), rel=1e-12)
                assert pair.score == pytest.approx(found.pair(pair.query.node, pair.key.node))
        assert abs(found.sum_of_pairs() - found.score) < 1e-9 * found.sum_of_sizes()
    latents = found.pairs(10**6, kinds=("latent",))
    assert len(latents) == found.query.kinds.count("latent") * found.key.kinds.count("latent") > 3
    assert {pair.key.kind for pair in latents} == {"latent"}
    parts = found.query_parts
    assert [p.score for p in parts] == sorted((p.score for p in parts), key=abs, reverse=True)
    assert sum(p.score for p in parts) == pytest.approx(found.score)
    frame = found.to_dataframe(5)
    assert len(frame) == 5 and frame.score.iloc[0] == pytest.approx(found.pairs(1)[0].score)
    assert "4<-2" in repr(found)


def test_a_score_is_of_its_own_prefix_alone() -> None:
    model = tiny_model("llama")
    saes = SETS["outputs"](model)
    head = f"blocks.2.attn.hook_z/{HEAD}@{QUERY}<-{KEY}"
    one, other = (qk_attributions(model, saes, IDS[:5] + rest, head) for rest in ([], [30, 2]))
    assert one.query.ids == other.query.ids
    np.testing.assert_allclose(one.table(), other.table(), atol=1e-11)


def test_in_float32_the_sum_is_the_score_up_to_its_rounding() -> None:
    model = tiny_model("gemma2", torch.float32)
    found = ask(model, at(model, "0.hook_mlp_out", "1.hook_resid_post"))
    assert abs(found.sum_of_pairs() - found.score) < 1e-5 * found.sum_of_sizes()


def test_too_many_pairs_for_a_table_have_their_strongest_and_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 1 << 12)
    generator = np.random.default_rng(0)
    n = 300
    sides = [
        Side(
            ids=tuple(f"blocks.0.hook_resid_pre/{i}@{p}" for i in range(n)),
            kinds=("latent",) * n,
            positions=np.full(n, p),
            values=np.ones(n),
            labels=("",) * n,
            vectors=vectors,
        )
        for p, vectors in enumerate(generator.normal(size=(2, n, 4)))
    ]
    found = QKAttributions("head", None, 0.0, (0.0,), None, 0.5, sides[0], sides[1])
    with pytest.raises(GossamerError, match="too many for one table"):
        found.table()
    best = found.pairs(3)
    every = np.sort(np.abs(0.5 * sides[0].vectors @ sides[1].vectors.T), axis=None)[::-1]
    assert [abs(pair.score) for pair in best] == pytest.approx(every[:3])
    assert found.sum_of_pairs() == pytest.approx(float(found.query_scores.sum()))


def test_what_cannot_be_answered_is_refused() -> None:
    model = tiny_model("mistral")
    refused = [
        ("blocks.2.attn.hook_z/3@2<-4", SiteError, "after query 2"),
        ("blocks.2.attn.hook_z/3@5<-0", SiteError, "outside its window"),
        ("blocks.2.attn.hook_z/9@4<-2", SiteError, "0..3"),
        ("blocks.2.attn.hook_z/3@4", SiteError, "no head with a query and a key"),
        ("blocks.2.hook_mlp_out/3@4<-2", SiteError, "no head with a query and a key"),
        ("blocks.9.attn.hook_z/3@4<-2", SiteError, "0..2"),
        ("blocks.2.attn.hook_z/3@9<-2", PromptError, "6 tokens"),
        ("nonsense", SiteError, "is not a node"),
    ]
    for head, kind, message in refused:
        with pytest.raises(kind, match=message):
            qk_attributions(model, [], IDS, head)
    for against, kind in ((KEY, GossamerError), (9, PromptError), (5, SiteError), (0, SiteError)):
        with pytest.raises(kind):
            ask(model, [], against=against)
    with pytest.raises(PromptError, match="one prompt"):
        qk_attributions(model, [], [IDS, IDS], "blocks.2.attn.hook_z/3@4<-2")
    found = ask(model, [])
    for wrong, message in (
        (lambda: found.pairs(0), "1 or more"),
        (lambda: found.pairs(3, kinds=("latents",)), "Kinds of parts are"),
        (lambda: found.pair("hook_embed/1@0", found.key.ids[0]), "query_parts"),
    ):
        with pytest.raises(GossamerError, match=message):
            wrong()
    assert found.pairs(3, kinds=("latent",)) == []


def test_pico_python_looks_back_with_its_latents() -> None:
    model = gossamer.load_model("pico-python", dtype=torch.float64)
    saes = gossamer.load_saes("pico-python/resid")
    text = "def area(width, height):\n    return width *"
    n = len(model.tokenize(text))
    trace = gossamer.run(model, text, record=("blocks.2.attn.hook_pattern",))
    pattern = trace.activations["blocks.2.attn.hook_pattern"][0, :, n - 1, 1 : n - 1]
    head, key = divmod(int(pattern.argmax()), n - 2)
    node = f"blocks.2.attn.hook_z/{head}@{n - 1}<-{key + 1}"
    found = qk_attributions(model, saes, text, node, against=0)
    best = found.pairs(5, kinds=("latent",))
    assert abs(found.sum_of_pairs() - found.score) < 1e-6 * found.sum_of_sizes()
    assert len(best) == 5 and all(pair.query.label and pair.key.label for pair in best)
