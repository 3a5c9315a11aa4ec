"""What is read off a Jacobian: measured changes, sweeps, corpora, pages, the command line."""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from torch import Tensor

import gossamer
from gossamer.errors import GossamerError
from gossamer.jacobian import jacobian_over, measure_jacobian, mlp_jacobian, sweeps
from gossamer.jacobian import over as over_module
from gossamer.jacobian.entries import How
from gossamer.jacobian.response import shape_of
from tests.browser import launched, opened
from tests.plain_jacobian import plain_mlp
from tests.tiny_models import tiny_model
from tests.tiny_saes import OwnSAE, plain_active, plain_decode, plain_latents, plain_pre, tiny_sae

IDS = [3, 1, 4, 15, 9, 2, 6]
L = 1
IN, OUT = f"blocks.{L}.mlp.hook_in", f"blocks.{L}.hook_mlp_out"
MID, POST = f"blocks.{L}.hook_resid_mid", f"blocks.{L}.hook_resid_post"


def contents_of(page: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the rest that stand in a page."""
    found = re.search(r'id="data"[^>]*>([^<]*)<', page)
    assert found is not None
    blob = gzip.decompress(base64.b64decode(found[1]))
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return load(blob), json.loads(header["__metadata__"]["json"])


def pair(kind: str = "topk") -> tuple[Any, Any]:
    return tiny_sae(kind, IN, 16), tiny_sae("topk", OUT, 16, seed=1)


@pytest.mark.parametrize("by", [None, 0.2, -0.1])
@pytest.mark.parametrize("before", ["topk", "own"])
@torch.no_grad()
def test_measured_changes_equal_those_of_the_models_own_modules(before: str, by: Any) -> None:
    model = tiny_model("llama")
    first, second = pair()
    first = OwnSAE(IN, 16) if before == "own" else first
    found = mlp_jacobian(model, L, first, second, IDS)
    measured = measure_jacobian(found, by)
    seen = gossamer.run(model, IDS, record=[IN, OUT]).activations
    n_flips = 0
    for t in range(len(IDS)):
        x = seen[IN][0, t]
        f = plain_latents(first, x)
        clean = plain_mlp(model, L, x)
        for i, latent in enumerate(found.in_indices[t].tolist()):
            if latent < 0:
                continue
            changed = f.clone()
            changed[latent] *= 0 if by is None else 1 + by
            moved = x + plain_decode(first, changed, x) - plain_decode(first, f, x)
            after = plain_mlp(model, L, moved)
            flips = (plain_active(second, after) != plain_active(second, clean)).any()
            n_flips += int(flips)
            assert bool(measured.flips[t, i]) == bool(flips)
            effect = plain_pre(second, clean) - plain_pre(second, after)
            rows = found.out_indices[t][found.out_indices[t] >= 0]
            torch.testing.assert_close(
                measured.measured[t, : len(rows), i], effect[rows], rtol=1e-10, atol=1e-12
            )
    if by is None:
        assert n_flips > 0
    everything = measured.agreement()
    parts = [measured.agreement(flipped) for flipped in (False, True)]
    assert everything.pairs == sum(part.pairs for part in parts) == int(measured.exists.sum())


@torch.no_grad()
def test_without_the_way_past_the_mlp_it_is_left_out_of_what_is_measured_too() -> None:
    first, second = tiny_sae("topk", MID, 16), tiny_sae("topk", POST, 16, seed=1)
    for skip in (True, False):
        found = mlp_jacobian(tiny_model("gpt2"), L, first, second, IDS, skip=skip)
        assert measure_jacobian(found, 1e-6).agreement(False).error < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_with_rounding_noise_is_linear(dtype: torch.dtype) -> None:
    x = torch.linspace(0, 2, 41, dtype=dtype)
    noise = torch.finfo(dtype).eps * torch.sin(50 * x)
    assert shape_of(x, 3 + 3 * noise, 0.05) == "linear"
    assert shape_of(x, torch.where(x > 1, x, torch.nan), 0.05) == "other"


@torch.no_grad()
def test_small_nudges_do_what_was_predicted() -> None:
    first, second = pair()
    found = mlp_jacobian(tiny_model("gemma2"), L, first, second, IDS)
    small = measure_jacobian(found, 1e-6).agreement(False)
    assert small.correlation > 1 - 1e-9 and small.error < 1e-4 and small.signs > 0.99
    assert measure_jacobian(found).agreement().error > small.error


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (lambda x: 2 * x - 1, "linear"),
        (lambda x: 0 * x + 3, "linear"),
        (lambda x: torch.where(x > 0.7, x, 0.0), "jumprelu"),
        (lambda x: torch.where(x < 0.7, 2 - x, 0.0), "jumprelu"),
        (lambda x: x**2, "other"),
        (lambda x: torch.where((x > 0.5) & (x < 1.5), x, 0.0), "other"),
        (lambda x: 2 * x + 0.001 * torch.sin(40 * x), "linear"),
    ],
)
def test_shapes_are_told_apart(curve: Any, expected: str) -> None:
    x = torch.linspace(0, 2, 41, dtype=torch.float64)
    assert shape_of(x, curve(x), 0.05) == expected


@torch.no_grad()
def test_sweeps_take_a_latent_through_its_values() -> None:
    model = tiny_model("gpt2")
    first, second = pair()
    found = mlp_jacobian(model, L, first, second, IDS)
    place = found.strongest(1)[0]
    (swept,) = sweeps(found, [place])
    x = gossamer.run(model, IDS, record=[IN]).activations[IN][0, place[0]]
    f = plain_latents(first, x)
    assert float(swept.values[-1]) == pytest.approx(2 * float(f[swept.source]))
    for value, output in list(zip(swept.values, swept.outputs, strict=True))[::8]:
        moved = x + (value - f[swept.source]) * first.W_dec[swept.source]
        expected = plain_latents(second, plain_mlp(model, L, moved))[swept.target]
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    shapes = [each.shape for each in sweeps(found, 30)]
    assert len(shapes) == 30 and set(shapes) <= {"linear", "jumprelu", "other"}
    places = [found.strongest(9)[i] for i in (4, 0, 8, 0)]
    assert [(s.position, s.target, s.source) for s in sweeps(found, places)] == [
        (t, int(found.out_indices[t, j]), int(found.in_indices[t, i])) for t, j, i in places
    ]
    for wrong in ((99, 0, 0), (0, 0, -1)):
        with pytest.raises(GossamerError, match="There is no entry"):
            sweeps(found, [wrong])
    with pytest.raises(GossamerError, match="tolerance"):
        sweeps(found, 3, tolerance=0.0)


def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 37, (30,), generator=generator).tolist() for _ in range(9)]


def plain_table(found: Any, smallest: float) -> dict[tuple[int, int], list[float]]:
    table: dict[tuple[int, int], list[float]] = {}
    for t, j, i in (found.comparable.abs() > smallest).nonzero().tolist():
        key = int(found.out_indices[t, j]), int(found.in_indices[t, i])
        table.setdefault(key, []).append(float(found.comparable[t, j, i]))
    return table


@pytest.mark.parametrize("how", [How(), How(method="tables"), How(at="reconstruction")])
def test_a_corpus_adds_up_what_its_tokens_have(monkeypatch: Any, how: How) -> None:
    model, (first, second) = tiny_model("llama"), pair()
    ids = documents()
    # Several batches, in pieces, all of them in the sample that gives the units.
    monkeypatch.setattr(over_module, "BATCH_TOKENS", 60)
    monkeypatch.setattr(over_module, "MAX_ENTRIES", 20 * 9)
    report = jacobian_over(
        model, L, first, second, ids, context=30, n_tokens=270, how=how, smallest=0.05
    )
    prompts = mlp_jacobian(model, L, first, second, ids, at=how.at)
    table: dict[tuple[int, int], list[float]] = {}
    above = 0
    for found in prompts:
        for key, values in plain_table(found, 0.05).items():
            table.setdefault(key, []).extend(values)
        above += int((found.comparable.abs() > 0.01).sum())
    assert report.about["n_tokens"] == 270
    (density,) = [each for each in report.density if each.threshold == 0.01]
    assert density.entries == pytest.approx(above / 270)
    keys = list(zip(report.pairs.targets.tolist(), report.pairs.sources.tolist(), strict=True))
    assert keys == sorted(table)
    for place, key in enumerate(keys):
        assert int(report.pairs.counts[place]) == len(table[key])
        assert float(report.pairs.sums[place]) == pytest.approx(sum(table[key]), rel=1e-9)
    sizes = [sum(map(abs, table[t, s])) for t, s, _, _ in report.pairs.top(5)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(max(sum(map(abs, v)) for v in table.values()))
    with pytest.raises(GossamerError, match="Sizes of entries"):
        jacobian_over(model, L, first, second, ids, context=30, smallest=float("nan"))


def test_batches_add_up_and_a_full_table_says_what_it_dropped(monkeypatch: Any) -> None:
    model, (first, second) = tiny_model("gpt2"), pair()
    args = (model, L, first, second, documents())
    monkeypatch.setattr(over_module, "BATCH_TOKENS", 30)
    whole = jacobian_over(*args, context=30, n_tokens=200)
    assert whole.about["n_tokens"] == 200 and whole.pairs.left_out == 0
    monkeypatch.setattr(over_module, "MAX_PAIRS", 20)
    short = jacobian_over(*args, context=30, n_tokens=200)
    assert len(short.pairs.counts) == 20 and short.pairs.left_out > 0
    assert short.density == whole.density
    keys = zip(whole.pairs.targets.tolist(), whole.pairs.sources.tolist(), strict=True)
    true = dict(zip(keys, whole.pairs.sizes.tolist(), strict=True))
    kept = list(zip(short.pairs.targets.tolist(), short.pairs.sources.tolist(), strict=True))
    for key, size in zip(kept, short.pairs.sizes.tolist(), strict=True):
        assert true[key] - short.pairs.left_out <= size + 1e-9 <= true[key] + 1e-6
    assert max(size for key, size in true.items() if key not in kept) <= short.pairs.left_out + 1e-9


def test_bos_counts_for_nothing_over_a_text() -> None:
    model = gossamer.load_model("pico-python")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 10

    saes = [
        gossamer.SAE(
            W_enc=normal(300, 128),
            b_enc=normal(300),
            W_dec=normal(300, 128),
            b_dec=normal(128),
            selection=gossamer.saes.TopK(4),
            site_in=f"blocks.2.{kind}",
            prepend_bos=True,
        )
        for kind in ("mlp.hook_in", "hook_mlp_out")
    ]
    found = mlp_jacobian(model, 2, *saes, "x = 1\ny = 2")
    assert found.counted.tolist() == [False] + [True] * (len(found.tokens) - 1)
    sizes = found.comparable[1:].abs()
    assert found.density([0.01])[0].entries == pytest.approx(int((sizes > 0.01).sum()) / len(sizes))
    assert all(t > 0 for t, _, _ in found.strongest(1000))


def test_the_page_holds_the_numbers(tmp_path: Path) -> None:
    first, second = pair()
    found = mlp_jacobian(tiny_model("gpt2"), L, first, second, IDS)
    page = found.to_html(tmp_path / "page.html", sweeps=sweeps(found, 5)).read_text()
    assert "http://" not in page and "https://" not in page and "strongest pairs" in page
    arrays, about = contents_of(page)
    np.testing.assert_allclose(
        arrays["values"].reshape(found.values.shape), found.values, rtol=1e-6
    )
    assert [tuple(each["place"]) for each in about["strongest"]] == found.strongest(40)
    assert len(about["sweeps"]) == 5 and about["above"] == found.above(0.01).tolist()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


@pytest.mark.browser
def test_the_page_shows_the_block_of_a_token(browser, tmp_path: Path) -> None:
    first, second = pair()
    found = mlp_jacobian(tiny_model("gpt2"), L, first, second, IDS)
    path = found.to_html(tmp_path / "page.html", sweeps=sweeps(found, 5))
    place = found.strongest(1)[0]
    with opened(browser, path) as page:
        pressed = page.locator(".strip button[aria-pressed=true]")
        assert pressed.get_attribute("data-at") == str(place[0])
        assert page.locator(".curves figure").count() == 5
        page.locator(".strip button").nth(2).click()
        assert pressed.get_attribute("data-at") == "2"
        canvas = page.locator("canvas.block")
        canvas.focus()
        canvas.press("ArrowRight")
        text = page.locator(".sides .panel").inner_text()
        assert f"source {int(found.in_indices[2, 1])}" in text
        assert f"target {int(found.out_indices[2, 0])}" in text
        value = float(found.values[2, 0, 1])
        assert f"derivative: {'+' if value > 0 else ''}{value:.4g}"[:18] in text
        page.locator("tr[data-at]").first.click()
        assert pressed.get_attribute("data-at") == str(place[0])
        assert f"source {int(found.in_indices[place[0], place[2]])}" in (
            page.locator(".sides .panel").inner_text()
        )


def test_the_command_line_prints_what_the_functions_give(tmp_path: Path, capsys: Any) -> None:
    from gossamer.cli import cli

    saes = tmp_path / "pair"
    generator = torch.Generator().manual_seed(0)
    for place, kind in enumerate(("mlp.hook_in", "hook_mlp_out")):
        gossamer.SAE(
            W_enc=torch.randn(64, 128, generator=generator) / 10,
            b_enc=torch.zeros(64),
            W_dec=torch.randn(64, 128, generator=generator) / 10,
            b_dec=torch.zeros(128),
            selection=gossamer.saes.TopK(4),
            site_in=f"blocks.2.{kind}",
        ).save(saes / str(place))
    common = ["jacobian", "--layer", "2", "--saes", str(saes)]
    cli([*common, "a = 1", "--measure", "--json", "--html", str(tmp_path / "p.html")],
        standalone_mode=False)  # fmt: skip
    shown = json.loads(capsys.readouterr().out)
    found = mlp_jacobian(
        gossamer.load_model("pico-python"), 2, *gossamer.load_saes(saes).values(), "a = 1"
    )
    assert shown["entries"][0]["value"] == pytest.approx(found.top(1)[0].value)
    assert shown["measured"]["all"]["pairs"] == 16 * int(found.counted.sum())
    assert (tmp_path / "p.html").exists() and sum(shown["shapes"].values()) == min(
        64, shown["measured"]["all"]["pairs"]
    )
    cli([*common, "a = 1", "--measure"], standalone_mode=False)
    assert "strongest" in capsys.readouterr().out
    cli([*common, "--corpus", "stdlib", "--tokens", "500", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["n_tokens"] == 500
    cli([*common, "--corpus", "stdlib", "--tokens", "500"], standalone_mode=False)
    assert "comparable units" in capsys.readouterr().out
    cli([*common, "", "--measure", "--json"], standalone_mode=False)  # BOS alone: no pair counts
    bare = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert bare["measured"]["all"] == {
        **{"pairs": 0, "signs": None, "correlation": None, "ratio": None, "error": None}
    }
    for wrong, says in (
        ([*common, "a = 1", "--tokens", "5"], "--tokens is for --corpus"),
        (common, "Give either"),
        ([*common, "a", "--corpus", "stdlib"], "Give either"),
        ([*common, "--corpus", "stdlib", "--measure"], "leave out --corpus"),
        (["jacobian", "a", "--layer", "1", "--saes", str(saes)], "needs one SAE"),
    ):
        with pytest.raises(GossamerError, match=says):
            cli(wrong, standalone_mode=False)
