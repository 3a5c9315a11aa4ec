"""Law 7: the MLP Jacobian is the derivative, for every family, architecture, place and method."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import gossamer
from gossamer.errors import GossamerError, SiteError
from gossamer.jacobian import jacobian_of_weights, jacobian_tables, mlp_jacobian
from gossamer.jacobian.passage import passage
from gossamer.models.mlps import MLP
from tests.plain_jacobian import plain_jacobian
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import ARCHITECTURES, OwnSAE, plain_active, tiny_sae

IDS = [3, 1, 4, 15, 9, 2, 6]
L = 1
IN, NORMALIZED, MID = (
    f"blocks.{L}.{kind}" for kind in ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")
)
OUT, POST = f"blocks.{L}.hook_mlp_out", f"blocks.{L}.hook_resid_post"
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def check(family: str, before: Any, after: Any, **options: Any) -> Any:
    """The Jacobian, once it is seen to equal the plain one everywhere."""
    model = tiny_model(family)
    found = mlp_jacobian(model, L, before, after, IDS, **options)
    names = ("at", "hold", "skip")
    plain = plain_jacobian(
        model, L, before, after, IDS, **{n: options[n] for n in names if n in options}
    )
    dense = torch.stack([found.to_dense(t) for t in range(len(IDS))])
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(dense, plain, rtol=1e-12, atol=1e-12 * float(plain.abs().max()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family(family: str) -> None:
    check(family, tiny_sae("topk", IN, 16), tiny_sae("topk", OUT, 16, seed=1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_with_every_architecture_on_both_sides(family: str, architecture: str) -> None:
    check(family, tiny_sae(architecture, IN, 16), tiny_sae("relu", OUT, 16, seed=1))
    check(family, tiny_sae("relu", IN, 16), tiny_sae(architecture, OUT, 16, seed=1))


@pytest.mark.parametrize("method", ["rows", "tables"])
@pytest.mark.parametrize("at", ["input", "reconstruction"])
@pytest.mark.parametrize("hold", [(), ("norms",)])
@pytest.mark.parametrize(
    "places", [(IN, OUT), (NORMALIZED, OUT), (MID, OUT), (MID, POST), (IN, POST)]
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_at_every_place(family: str, places: Any, hold: Any, at: str, method: str) -> None:
    before, after = tiny_sae("jumprelu", places[0], 16), tiny_sae("topk", places[1], 16, seed=1)
    found = check(family, before, after, hold=hold, at=at, method=method)
    assert found.method == method


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_way_past_the_mlp_can_be_left_out(family: str) -> None:
    before, after = tiny_sae("topk", MID, 16), tiny_sae("topk", POST, 16, seed=1)
    whole = check(family, before, after)
    part = check(family, before, after, skip=False)
    assert not torch.allclose(whole.values, part.values)


@pytest.mark.parametrize("normalization", ["center", "layer_norm", "rescale"])
def test_with_normalizations(normalization: str) -> None:
    before = tiny_sae("topk", IN, 16, normalization=normalization)
    after = tiny_sae("topk", OUT, 16, seed=1, normalization=normalization)
    check("gpt2", before, after)
    check("llama", before, after, at="reconstruction")


def test_with_a_users_own_saes_and_transcoders() -> None:
    check("llama", OwnSAE(IN, 16), tiny_sae("topk", OUT, 16))
    check("gpt2", tiny_sae("topk", MID, 16), OwnSAE(POST, 16))
    transcoder = tiny_sae("topk", f"blocks.{L}.hook_resid_pre", 16, site_out=IN, skip=True)
    check("gpt2", transcoder, tiny_sae("gated", OUT, 16, seed=1))


def test_central_differences_agree() -> None:
    model = tiny_model("gemma2")
    before, after = tiny_sae("jumprelu", MID, 16), tiny_sae("gated", POST, 16, seed=1)
    found = mlp_jacobian(model, L, before, after, IDS)
    way, step = found.passage, 1e-6
    n_checked = 0
    for t, j, i in [(t, j, i) for t in range(len(IDS)) for j in range(2) for i in range(2)]:
        latent_in, latent_out = int(found.in_indices[t, i]), int(found.out_indices[t, j])
        if latent_in < 0 or latent_out < 0:
            continue
        moves = [found.point[t] + s * step * before.W_dec[latent_in] for s in (1, -1)]
        pre = [after.pre_activations(way.value(x[None]))[0, latent_out] for x in moves]
        numeric = (pre[0] - pre[1]) / (2 * step)
        torch.testing.assert_close(found.values[t, j, i], numeric, rtol=1e-7, atol=1e-9)
        n_checked += 1
    assert n_checked > 10


def test_entries_are_of_active_latents_and_nothing_else() -> None:
    model = tiny_model("gpt2")
    before, after = tiny_sae("relu", IN, 16), tiny_sae("relu", OUT, 16, seed=1)
    found = mlp_jacobian(model, L, before, after, IDS)
    trace = gossamer.run(model, IDS, record=[IN, OUT])
    for t in range(len(IDS)):
        for sae, site, indices in ((before, IN, found.in_indices), (after, OUT, found.out_indices)):
            active = plain_active(sae, trace.activations[site][0, t])
            assert indices[t][indices[t] >= 0].tolist() == active.nonzero()[:, 0].tolist()
    missing = (found.out_indices < 0)[..., None] | (found.in_indices < 0)[:, None]
    assert missing.any() and (found.values[missing] == 0).all()


def test_many_prompts_give_what_single_ones_give() -> None:
    model = tiny_model("llama")
    before, after = tiny_sae("relu", IN, 16), tiny_sae("relu", OUT, 16, seed=1)
    prompts = [IDS, [5, 6], [9, 9, 2, 30]]
    for prompt, found in zip(prompts, mlp_jacobian(model, L, before, after, prompts), strict=True):
        alone = mlp_jacobian(model, L, before, after, prompt)
        torch.testing.assert_close(found.values, alone.values, **CLOSE)
        assert torch.equal(found.in_indices, alone.in_indices)
        assert found.token_ids == alone.token_ids == tuple(prompt)


def test_tables_serve_many_calls_and_only_their_own_saes() -> None:
    model = tiny_model("gpt2")
    before, after = tiny_sae("topk", IN, 16), tiny_sae("topk", OUT, 16, seed=1)
    tables = jacobian_tables(model, L, before, after)
    found = mlp_jacobian(model, L, before, after, IDS, tables=tables)
    assert found.method == "tables"
    expected = mlp_jacobian(model, L, before, after, IDS, method="rows").values
    torch.testing.assert_close(found.values, expected, **CLOSE)
    with pytest.raises(GossamerError, match="made from other weights"):
        mlp_jacobian(model, L, before, tiny_sae("topk", OUT, 16, seed=7), IDS, tables=tables)
    with pytest.raises(GossamerError, match="make them with jacobian_tables"):
        mlp_jacobian(model, L, before, tiny_sae("topk", POST, 16), IDS, tables=tables)
    many = mlp_jacobian(model, L, before, after, [IDS] * 8)
    assert many[0].method == "tables"  # 56 tokens of 3 latents: more rows than there are latents
    few = mlp_jacobian(model, L, before, after, [IDS] * 8, memory=16_200)
    assert few[0].method == "rows"
    with pytest.raises(GossamerError, match="0.0 GB are allowed"):
        mlp_jacobian(model, L, before, after, [IDS] * 8, memory=0)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("method", ["rows", "tables"])
def test_models_and_saes_of_different_types(dtypes: Any, method: str) -> None:
    of_model, of_sae = (getattr(torch, name) for name in dtypes)
    model = tiny_model("gemma2", of_model)
    before, after = (
        tiny_sae("topk", site, 16, seed=n, dtype=of_sae) for n, site in enumerate((MID, OUT))
    )
    found = mlp_jacobian(model, L, before, after, IDS, method=method)
    assert found.values.dtype == of_sae and found.values.isfinite().all()
    tables = jacobian_tables(model, L, before, after)
    assert tables.reads.dtype == of_sae
    again = mlp_jacobian(model, L, before, after, IDS, tables=tables)
    torch.testing.assert_close(again.values, found.values, rtol=1e-4, atol=1e-5)
    report = gossamer.jacobian_over(model, L, before, after, [IDS * 2], n_tokens=14)
    assert report.about["n_tokens"] == 14
    with torch.inference_mode():
        mlp_jacobian(model, L, before, after, IDS)


@pytest.mark.parametrize("gated", [False, True])
def test_hidden_units_with_slope_zero_are_left_out(gated: bool) -> None:
    torch.manual_seed(0)
    m, d = 60, 16
    weight = torch.randn(m, d, dtype=torch.float64)
    mlp = MLP(
        W_in=weight,
        b_in=torch.full((m,), -8.0, dtype=torch.float64),
        W_gate=weight.flip(0) if gated else None,
        b_gate=torch.full((m,), -8.0, dtype=torch.float64) if gated else None,
        W_out=torch.randn(d, m, dtype=torch.float64),
        activation=torch.relu,
    )
    check_live(mlp, 0.0)


def check_live(mlp: MLP, skip_below: float) -> float:
    """Entries through few hidden units equal those through all, within the bound."""
    from gossamer.jacobian.products import from_rows
    from gossamer.jacobian.sides import active, reading, writing

    model = tiny_model("gpt2")
    way = replace(passage(model, L, (IN, OUT)), mlp=mlp)
    before, after = tiny_sae("topk", IN, 16), tiny_sae("topk", OUT, 16, seed=1)
    x = torch.randn(9, 16, dtype=torch.float64) * 1.5
    y = way.value(x)
    linear = way.linearize(x)
    sides = reading(after, y, active(after, y)), writing(before, x, active(before, x))
    live = torch.stack([s.abs() > skip_below for s in linear.slopes]).any(0)
    assert 0 < live.double().mean() < 0.2
    found, bound = from_rows(linear, *sides, skip_below=skip_below)
    whole = jacobian_of_weights(
        mlp,
        x,
        W_dec=before.W_dec,
        W_enc=after.W_enc,
        in_indices=sides[1].indices.clamp(min=0),
        out_indices=sides[0].indices.clamp(min=0),
    )
    exists = (sides[0].indices >= 0)[..., None] & (sides[1].indices >= 0)[:, None]
    assert ((found - whole)[exists]).abs().max() <= bound + 1e-12
    return bound


def test_tokens_without_a_live_hidden_unit_have_zero_entries() -> None:
    for places in ((IN, OUT), (MID, POST)):
        before, after = tiny_sae("topk", places[0], 16), tiny_sae("topk", places[1], 16, seed=1)
        found = mlp_jacobian(
            tiny_model("gpt2"), L, before, after, IDS, method="rows", skip_below=1e9, skip=False
        )
        assert (found.values == 0).all() and found.bound > 0


def test_the_bound_holds_behind_a_norm() -> None:
    """One gain of the norm is tiny: what it scales down counts before it, not after."""
    from gossamer.jacobian.products import from_rows
    from gossamer.jacobian.sides import active, reading, writing

    torch.manual_seed(0)
    for offset in range(6):
        mlp = MLP(
            W_in=torch.randn(60, 16, dtype=torch.float64),
            b_in=torch.full((60,), -9.0, dtype=torch.float64),
            W_out=torch.randn(16, 60, dtype=torch.float64) * (torch.arange(16) == offset)[:, None],
            activation=torch.nn.functional.gelu,
        )
        way = replace(passage(tiny_model("gemma2"), L, (IN, OUT)), mlp=mlp)
        before, after = tiny_sae("topk", IN, 16), tiny_sae("topk", OUT, 16, seed=1)
        x = torch.randn(9, 16, dtype=torch.float64) * 1.5
        linear, y = way.linearize(x), way.value(x)
        assert linear.norm_out is not None
        linear.norm_out.gain.copy_(torch.where(torch.arange(16) == offset, 1e-6, 1.0))
        sides = reading(after, y, active(after, y)), writing(before, x, active(before, x))
        found, bound = from_rows(linear, *sides, skip_below=0.1)
        whole, _ = from_rows(linear, *sides)
        assert 0 < (found - whole).abs().max() <= bound


def test_slopes_that_are_not_numbers_are_not_left_out() -> None:
    from gossamer.jacobian.products import from_rows
    from gossamer.jacobian.sides import active, reading, writing

    way = passage(tiny_model("gpt2"), L, (IN, OUT))
    before, after = tiny_sae("topk", IN, 16), tiny_sae("topk", OUT, 16, seed=1)
    x = torch.randn(3, 16, dtype=torch.float64)
    linear, y = way.linearize(x), way.value(x)
    slopes = torch.zeros_like(linear.slopes[0])
    slopes[1, 4] = torch.nan
    sides = reading(after, y, active(after, y)), writing(before, x, active(before, x))
    found, _ = from_rows(replace(linear, slopes=(slopes,)), *sides)
    assert found[1].isnan().any() and (found[0] == 0).all()


def test_small_slopes_can_be_left_out_within_a_stated_bound() -> None:
    torch.manual_seed(0)
    mlp = MLP(
        W_in=torch.randn(60, 16, dtype=torch.float64),
        b_in=torch.full((60,), -9.0, dtype=torch.float64),
        W_out=torch.randn(16, 60, dtype=torch.float64),
        activation=torch.nn.functional.gelu,
    )
    assert check_live(mlp, 0.05) > 0


def test_comparable_units_do_not_depend_on_how_latents_are_scaled() -> None:
    model = tiny_model("gpt2")
    before, after = tiny_sae("topk", IN, 16), tiny_sae("topk", OUT, 16, seed=1)
    found = mlp_jacobian(model, L, before, after, IDS)
    scaled = [
        gossamer.SAE(
            **{
                **sae.arguments(),
                **{"W_enc": c * sae.W_enc, "b_enc": c * sae.b_enc, "W_dec": sae.W_dec / c},
            }
        )
        for sae, c in ((before, 3.0), (after, 0.2))
    ]
    other = mlp_jacobian(model, L, *scaled, IDS)
    assert not torch.allclose(found.values, other.values)
    torch.testing.assert_close(found.comparable, other.comparable, **CLOSE)
    here = gossamer.run(model, IDS, record=[IN, OUT]).activations
    t, j, i = found.strongest(1)[0]
    expected = (
        found.values[t, j, i]
        * after.W_dec[found.out_indices[t, j]].norm()
        / before.W_dec[found.in_indices[t, i]].norm()
        * here[IN].square().mean().sqrt()
        / here[OUT].square().mean().sqrt()
    )
    torch.testing.assert_close(found.comparable[t, j, i], expected, **CLOSE)
    for each in found.density([0.0, 0.01, 1e9]):
        counted = (found.comparable.abs() > each.threshold).sum()
        assert each.entries == pytest.approx(int(counted) / len(IDS))
        assert each.share == pytest.approx(int(counted) / (9 * len(IDS)))
    assert found.above(0.01).sum() == found.density([0.01])[0].entries * len(IDS)


def test_strongest_entries_are_named() -> None:
    model = tiny_model("gpt2")
    before, after = tiny_sae("topk", IN, 16), tiny_sae("topk", OUT, 16, seed=1)
    found = mlp_jacobian(model, L, before, after, IDS)
    sizes = [abs(entry.attribution) for entry in found.top(500)]
    assert len(sizes) == 9 * len(IDS) and sizes == sorted(sizes, reverse=True)
    t, j, i = found.strongest(1)[0]
    first = found.top(1)[0]
    assert first.source == f"{IN}/{int(found.in_indices[t, i])}@{t}"
    assert first.target == f"{OUT}/{int(found.out_indices[t, j])}@{t}"
    assert first.attribution == pytest.approx(first.value * float(found.in_values[t, i]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"layer": 9}, "layer is a block"),
        ({"before": "blocks.0.mlp.hook_in"}, "needs latents that write one of"),
        ({"after": "blocks.1.hook_attn_out"}, "needs latents that read one of"),
        ({"hold": ("attention",)}, "norms"),
        ({"skip": True}, "there is none"),
        ({"at": "somewhere"}, "at is"),
        ({"method": "fast"}, "method is"),
        ({"skip_below": -1.0}, "skip_below"),
        ({"skip_below": 0.1, "method": "tables"}, 'method="rows"'),
    ],
)
def test_mistakes_are_sentences(wrong: dict[str, Any], says: str) -> None:
    options = dict(wrong)
    before = tiny_sae("topk", options.pop("before", IN), 16)
    after = tiny_sae("topk", options.pop("after", OUT), 16)
    layer = options.pop("layer", L)
    with pytest.raises((GossamerError, SiteError), match=says):
        mlp_jacobian(tiny_model("gpt2"), layer, before, after, IDS, **options)


def test_tables_refuse_rows_that_differ_by_token() -> None:
    before = tiny_sae("topk", IN, 16, normalization="layer_norm")
    after = tiny_sae("topk", OUT, 16)
    with pytest.raises(GossamerError, match='method="rows"'):
        mlp_jacobian(tiny_model("gpt2"), L, before, after, IDS, method="tables")
