"""Readings of edges: shares, sums, orders, tables, files, the page; against the matrix itself."""

import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import gossamer
from gossamer.errors import FormatError, GossamerError
from tests.browser import launched, opened
from tests.tiny_models import tiny_model
from tests.tiny_saes import D_SAE, tiny_sae

IDS = [3, 1, 4, 15, 9, 2]
FIRST, LAST = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre"
FROM, TO = gossamer.Latents(FIRST), gossamer.Latents(LAST)
LOGITS = gossamer.Logits(tokens=[5, 7, 11])


def found(target: Any = TO, source: Any = FROM) -> Any:
    coders = [tiny_sae("topk", s, 16, seed=n) for n, s in enumerate((FIRST, LAST))]
    return gossamer.edges(tiny_model("gpt2"), coders, IDS, source=source, target=target)


@pytest.mark.parametrize(
    ("source", "target", "possible"),
    [
        (gossamer.Latents(FIRST), gossamer.Latents(LAST), D_SAE * D_SAE),
        (gossamer.Tokens(), gossamer.Latents(LAST), len(IDS) * D_SAE),
        (gossamer.Latents(FIRST), LOGITS, D_SAE * 3),
    ],
)
def test_density_counts_pairs(source: Any, target: Any, possible: int) -> None:
    edges = found(target, source)
    pairs = [
        (int(t), int(s), float(a))
        for t, row in zip(edges.targets.positions, edges.attributions, strict=True)
        for s, a in zip(edges.sources.positions, row, strict=True)
    ]
    density = edges.density(0.05)
    assert density.possible == possible
    assert density.computed == pytest.approx(len(pairs) / possible)
    assert density.causal == pytest.approx(sum(s <= t for t, s, _ in pairs) / possible)
    above = sum(abs(a) > 0.05 for *_, a in pairs)
    assert 0 < above < len(pairs) and density.above == pytest.approx(above / possible)


def test_l1_sums_sizes() -> None:
    edges = found()
    l1 = edges.l1()
    assert l1.attributions == pytest.approx(sum(abs(a) for a in edges.attributions.flatten()))
    assert l1.sources == pytest.approx(sum(abs(v) for v in edges.sources.values))
    assert l1.targets == pytest.approx(sum(abs(v) for v in edges.targets.values))


def test_edges_between_positions_are_those_of_a_double_loop() -> None:
    edges = found()
    expected = [
        (t, s)
        for t in range(len(edges.targets))
        for s in range(len(edges.sources))
        if edges.targets.positions[t] != edges.sources.positions[s]
        and abs(edges.attributions[t, s]) > 0.1
    ]
    crossing = edges.cross_position(0.1)
    assert 0 < len(expected) < len(edges.cross_position())
    assert {(e.target, e.source) for e in crossing} == {
        (edges.targets.ids[t], edges.sources.ids[s]) for t, s in expected
    }
    sizes = [abs(e.attribution) for e in crossing]
    assert sizes == sorted(sizes, reverse=True)
    for edge in edges.cross_position():
        positions = [int(name.split("@")[1]) for name in (edge.target, edge.source)]
        assert edge.offset == positions[0] - positions[1] > 0


def test_sources_sorted_by_one_target() -> None:
    edges = found(LOGITS)
    name = edges.targets.ids[1]
    by_size = edges.into(name)
    assert [e.target for e in by_size] == [name] * len(edges.sources)
    sizes = [abs(e.attribution) for e in by_size]
    assert sizes == sorted(sizes, reverse=True)
    gradients = [e.gradient for e in edges.into(1, 5, by="gradient", signed=True)]
    assert gradients == edges.gradients[1].sort(descending=True).values[:5].tolist()
    with pytest.raises(GossamerError, match=r"No target 'x'.*0\.\.2 or a node id such as logits/5"):
        edges.into("x")
    with pytest.raises(GossamerError, match="No target 3"):
        edges.into(3)


def test_the_table_has_a_line_for_each_pair_in_causal_order(tmp_path: Path) -> None:
    edges = found()
    frame = edges.to_dataframe()
    causal = edges.targets.positions[:, None] >= edges.sources.positions
    assert len(frame) == int(causal.sum())
    assert frame["attribution"].tolist() == edges.attributions[causal].tolist()
    assert frame["gradient"].tolist() == edges.gradients[causal].tolist()
    assert (frame["target_position"] - frame["source_position"] == frame["offset"]).all()
    one = frame.iloc[7]
    row, column = edges.targets.ids.index(one["target"]), edges.sources.ids.index(one["source"])
    assert one["attribution"] == float(edges.attributions[row, column])
    assert one["source_token"] == edges.sources.tokens[column]
    assert one["target_value"] == float(edges.targets.values[row])
    with edges.to_csv(tmp_path / "edges.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(frame.columns) and len(lines) == len(frame)
    assert [float(line["attribution"]) for line in lines] == frame["attribution"].tolist()


def test_without_pandas_the_table_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GossamerError, match="pip install 'gossamer.notebook.*to_csv"):
        found().to_dataframe()


@pytest.mark.parametrize(
    "target", [gossamer.Latents(LAST), gossamer.LogitDifference(5, 7)], ids=["latents", "logits"]
)
def test_files_come_back(target: Any, tmp_path: Path) -> None:
    edges = found(target)
    again = gossamer.Edges.load(edges.save(tmp_path / "edges.safetensors"))
    same(edges, again)
    assert [file.name for file in tmp_path.iterdir()] == ["edges.safetensors"]


def same(value: Any, other: Any) -> None:
    """Equal to the last bit and type, field by field."""
    assert type(value) is type(other)
    if isinstance(value, torch.Tensor):
        assert value.dtype == other.dtype and torch.equal(value, other)
    elif hasattr(value, "__dataclass_fields__"):
        for field in fields(value):
            same(getattr(value, field.name), getattr(other, field.name))
    else:
        assert value == other


def test_a_file_that_holds_no_edges_is_refused_in_words(tmp_path: Path) -> None:
    path = found().save(tmp_path / "good")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-9])
    (tmp_path / "text").write_text("edges")
    tiny_sae("topk", FIRST, 16).save(tmp_path / "sae")
    weights = next((tmp_path / "sae").glob("*.safetensors"))
    for file, words in (
        (tmp_path / "cut", "is damaged"),
        (tmp_path / "text", "is damaged"),
        (weights, "holds no edges of version 1"),
        (tmp_path / "none", "There is no file"),
    ):
        with pytest.raises(FormatError, match=words):
            gossamer.Edges.load(file)
    for write in (found().save, found().to_csv):
        with pytest.raises(GossamerError, match="cannot be written; name a file in a directory"):
            write(tmp_path / "nowhere" / "file")


def test_outside_a_notebook_show_opens_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr("webbrowser.open", seen.append)
    path = found().show(cross_only=True)
    assert seen == [path.as_uri()] and FIRST in path.read_text()


def test_the_note_says_how_the_numbers_were_made() -> None:
    coders = [tiny_sae("topk", s, 16) for s in (FIRST, "blocks.1.hook_resid_pre", LAST)]
    edges: Any = gossamer.edges(
        tiny_model("gpt2"),
        coders,
        IDS,
        source=gossamer.Latents(FIRST),
        target=gossamer.Latents(LAST),
        hold=("attention", "norms"),
        direct=True,
        error="dropped",
    )
    note = edges.view().note
    for words in ("held: attention and norms", "other SAEs are blocked", "left out", "Every path"):
        assert words in note
    assert "held: nothing" in found().view().note


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as running:
        yield running


@pytest.mark.browser
def test_the_page_of_real_edges_shows_their_numbers(browser: Any, tmp_path: Path) -> None:
    edges = found()
    with opened(browser, edges.to_html(tmp_path / "edges.html")) as page:
        assert f"{FIRST} → {LAST}" in page.locator("body").inner_text()
        first = page.locator("tbody tr").first.inner_text()
        strongest = edges.top(1)[0]
        for name in (strongest.source, strongest.target):
            index, position = name.split("/")[1].split("@")
            assert re.search(rf"\S+ @{position} {index}\t", first), first
        sign = "-" if strongest.attribution < 0 else "+"
        assert f"{sign}{abs(strongest.attribution):.4g}"[:5] in first.replace("−", "-")
