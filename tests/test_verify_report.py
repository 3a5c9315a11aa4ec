"""What a report says of its edges: classes, shares, words, files, and a page that opens offline."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gossamer.attribution.verify import verify
from gossamer.attribution.verifying.classes import (
    CLASSES,
    MODES,
    CheckedEdge,
    CheckedNode,
    class_of,
)
from gossamer.attribution.verifying.report import VerifyReport
from gossamer.errors import FormatError
from tests.plain_verify import Plain
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

IDS = [3, 1, 4, 15]


def edge(number: int, *, kind: str = "holds", weight: float = 1.0, **values: float) -> CheckedEdge:
    """An edge whose effects are its weight unless said otherwise."""
    measured = {mode: values.get(mode, weight) for mode in MODES}
    return CheckedEdge(
        source=f"blocks.0.hook_mlp_out/{number}@1",
        target="logits/3@2",
        source_label=f"<b>'{number}' & co",
        target_label="",
        weight=weight,
        **measured,
        flips_direct=kind == "gate flips",
        flips_total=False,
        others_direct=2,
        others_total=3,
        floor=1e-6,
        kind=kind,  # pyright: ignore[reportArgumentType]
    )


REPORT = VerifyReport(
    edges=(
        edge(1),
        edge(2, direct=1.15, total=0.85, direct_small=-3.0),
        edge(3, kind="gate flips", total_small=1.3),
        edge(4, kind="gate flips", direct=5.0),
        edge(5, kind="carried by attention", weight=-2.0, direct=-1.0, total=-1.0),
        edge(6, kind="cancels", total=float("nan")),
        edge(7, kind="other", held=0.5, weight=1e-9, total=5e-7),
    ),
    nodes=(CheckedNode("hook_embed/3@0", "x", 1.0, 1.1, 1.1, True),),
    about={"model": "tiny <model>", "prompt": "a\nb</script>", "small": 0.5, "tolerance": 0.2},
)


def test_the_class_is_the_first_that_applies() -> None:
    """Each class from the sentence that defines it, over every case there can be."""
    for direct, total, held, flips in itertools.product((False, True), repeat=4):
        applies = {
            "holds": direct and total and not flips,
            "gate flips": flips,
            "carried by attention": held and not direct,
            "cancels": direct and not total,
            "other": True,
        }
        first = next(name for name in CLASSES if applies[name])
        assert class_of(direct=direct, total=total, held=held, flips=flips) == first


def test_shares_count_what_lies_within_the_tolerance() -> None:
    shares = REPORT.shares()
    assert shares.classes == {
        name: count / 7 for name, count in zip(CLASSES, (2, 2, 1, 1, 1), strict=True)
    }
    assert shares.modes["linear"] == 1
    assert shares.modes["held"] == 6 / 7
    assert shares.modes["direct"] == 5 / 7
    assert shares.modes["direct_small"] == 6 / 7
    assert shares.modes["total_small"] == 6 / 7
    assert shares.modes["total"] == 5 / 7  # the last one by the floor, not the nan


def test_the_words_are_those_of_the_numbers() -> None:
    lines = REPORT.lines()
    assert REPORT.sentence == "2 of 7 edges hold in the true model within 20%." == lines[0]
    assert lines[1:6] == [
        f"{n:6d}  {kind}" for n, kind in zip((2, 2, 1, 1, 1), CLASSES, strict=True)
    ]
    assert "1 of the 1 carried by attention agree with norm scales alone held." in lines
    assert "1 of the 2 whose target's gate flips move it by their weight all the same." in lines
    assert lines[-1] == "1 of 1 nodes move the target as the graph says."
    assert VerifyReport(()).lines() == ["No edge was checked."]
    assert str(REPORT).splitlines() == lines


def test_a_page_can_ask_for_each_edges_class() -> None:
    verdict = REPORT.classes["blocks.0.hook_mlp_out/2@1", "logits/3@2"]
    assert verdict == ("holds", 0.85) and len(REPORT.classes) == 7


def test_a_saved_report_comes_back(tmp_path: Path) -> None:
    path = REPORT.save(tmp_path / "report.json")
    loaded = VerifyReport.load(path)
    assert str(loaded) == str(REPORT) and repr(loaded) == repr(REPORT)
    assert loaded.nodes == REPORT.nodes and loaded.edges[:5] == REPORT.edges[:5]
    text = path.read_text()
    for broken in (text[:-20], text.replace("gossamer verification 1", "x"), "[]", "{}", "3"):
        path.write_text(broken)
        with pytest.raises(FormatError, match="not a report of verify"):
            VerifyReport.load(path)
    with pytest.raises(FormatError):
        VerifyReport.load(tmp_path / "none.json")


def test_the_table_has_a_line_for_each_edge() -> None:
    frame = REPORT.to_dataframe()
    assert list(frame.columns) == list(CheckedEdge._fields) and len(frame) == 7
    assert frame["weight"].tolist() == [e.weight for e in REPORT.edges]
    assert VerifyReport(()).to_dataframe().empty


class Page(HTMLParser):
    """Circles, table cells and whatever could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_draws_every_edge_and_loads_nothing(tmp_path: Path) -> None:
    text = REPORT.to_html(tmp_path / "report.html").read_text()
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and "b" not in tags  # labels and prompts are text
    assert tags.count("circle") == 3 * 7 and tags.count("svg") == 3
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "default-src 'none'" in text
    for tag, attributes in page.tags:
        if tag == "circle":
            x, y = (float(str(attributes[name])) for name in ("cx", "cy"))
            assert 0 < x < 340 and 0 < y < 340
        if tag == "svg":
            assert "within 20%" in str(attributes["aria-label"])
    for name in (*CLASSES, "blocks.0.hook_mlp_out/4@1", "&lt;b&gt;&#x27;3&#x27; &amp; co"):
        assert name in text
    assert VerifyReport(()).to_html(tmp_path / "empty.html").exists()


def test_points_lie_on_the_diagonal_where_the_measurement_is_the_prediction(tmp_path: Path) -> None:
    edges = tuple(edge(i, weight=w) for i, w in enumerate((-2.0, -0.5, 1.0, 3.0)))
    page = Page(VerifyReport(edges).to_html(tmp_path / "report.html").read_text())
    places = [(float(str(a["cx"])), float(str(a["cy"]))) for tag, a in page.tags if tag == "circle"]
    assert len(places) == 12 and len({x for x, _ in places}) == 4
    assert all(x + y == pytest.approx(340, abs=0.11) for x, y in places)


@pytest.fixture(scope="module")
def report() -> VerifyReport:
    coders = [
        tiny_sae("topk", "blocks.0.hook_mlp_out", 16),
        tiny_sae("relu", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out", seed=1),
        tiny_sae("jumprelu", "blocks.1.hook_resid_post", 16, seed=2),
    ]
    saes = {coder.site_out: coder for coder in coders}
    plain = Plain(tiny_model("gpt2"), saes, IDS, [(5, -1), (7, 9)])
    return verify(plain.graph(), plain.model, saes, 300, nodes=5)


def test_classes_follow_from_what_was_measured(report: VerifyReport) -> None:
    """Read anew from the numbers of each edge, and every class there is comes up."""
    for e in report.edges:
        allowed = 0.2 * abs(e.weight) + e.floor
        near = {mode: abs(getattr(e, mode) - e.weight) <= allowed for mode in MODES}
        flips = e.flips_direct or e.flips_total
        assert near["linear"]
        kind = class_of(direct=near["direct"], total=near["total"], held=near["held"], flips=flips)
        assert e.kind == kind
    assert {e.kind for e in report.edges} == set(CLASSES)
    assert sum(report.shares().classes.values()) == pytest.approx(1)


def test_where_only_a_sum_lies_between_nothing_bends(report: VerifyReport) -> None:
    """From an MLP's output to the stream right behind it: every mode gives the edge."""
    straight = [
        e
        for e in report.edges
        if e.source.startswith("blocks.1.hook_mlp_out/")
        and e.target.startswith("blocks.1.hook_resid_post/")
    ]
    assert len(straight) > 5
    for e in straight:
        measured = np.array([getattr(e, mode) for mode in MODES])
        assert np.allclose(measured, e.weight, rtol=1e-8, atol=1e-10)
        assert e.kind == ("gate flips" if e.flips_direct or e.flips_total else "holds")
