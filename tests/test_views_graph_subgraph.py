"""The panel of pinned nodes in a real browser: scores, supernodes, undo, the file for a paper.

Scores and combined weights are held against plain sums over the edges.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gossamer.graph.influence import flow
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.prune import scores
from gossamer.graph.rows import from_dense
from gossamer.views import GraphView
from tests.browser import launched, opened
from tests.hostile_graph import hostile_graph

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


def latents(view: GraphView) -> list[int]:
    """Latents by influence, largest first."""
    order = np.argsort(-view.nodes.influence, kind="stable")
    return [int(i) for i in order if view.nodes.kinds[i] == "latent"]


def plain_scores(view: GraphView, pinned: list[int]) -> tuple[float, float]:
    """Completeness and replacement of a set of nodes, by powers of a dense matrix."""
    nodes, kinds = view.nodes, np.array(view.nodes.kinds)
    part = np.zeros((len(nodes), len(nodes)))
    sizes = np.abs(view.edges.weights)
    part[view.edges.targets, view.edges.sources] = sizes / nodes.input_totals[view.edges.targets]
    kept = np.isin(kinds, ("token", "position", "bias")) | (nodes.weights > 0)
    kept[pinned] = True
    kept &= ~np.isin(kinds, ("error", "remainder"))
    inside = part * kept[None] * kept[:, None]
    flow, step = nodes.weights.copy(), nodes.weights.copy()
    for _ in range(len(nodes)):
        step = step @ inside
        flow += step
    missed = ((1 - inside.sum(1)) * flow)[kept & (nodes.input_totals > 0)].sum()
    tokens = flow[np.isin(kinds, ("token", "position"))].sum()
    return 1 - missed / (flow.sum() + missed), tokens / (tokens + missed)


def shown_scores(page) -> tuple[float, float]:
    found = page.locator(".subgraph .scores").evaluate("e => ({ ...e.dataset })")
    return float(found["completeness"]), float(found["replacement"])


def state(page) -> dict:
    """What the address says, once it has followed."""
    page.wait_for_timeout(250)
    return json.loads(page.evaluate("decodeURIComponent(location.hash.slice(1)) || '{}'"))


def wait_boxes(page, n: int) -> None:
    page.wait_for_function("n => document.querySelectorAll('.area .box').length === n", arg=n)


def pin(page, node: str) -> None:
    page.mouse.click(*middle(page.locator(f'.nodes [data-id="{node}"]')))
    page.wait_for_function(
        "n => document.querySelector('.nodes [aria-selected=true]')?.dataset.id === n", arg=node
    )
    page.locator(".plot").press("p")


def middle(locator) -> tuple[float, float]:
    locator.scroll_into_view_if_needed()
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def box(page, key: str):
    return page.locator(f'.area .box[data-key="{key}"]')


SIZE = {"viewport": {"width": 1400, "height": 1300}}


def test_scores_of_the_pins_equal_plain_sums(browser, tmp_path: Path) -> None:
    view = hostile_graph()
    order = latents(view)
    path = view.to_html(tmp_path / "page.html")
    with opened(browser, path, **SIZE) as page:
        assert shown_scores(page) == pytest.approx(plain_scores(view, []), abs=1e-6)
        before = shown_scores(page)
        for n in (1, 2, 3):
            pin(page, view.nodes.ids[order[n - 1]])
            wait_boxes(page, n)
            assert shown_scores(page) == pytest.approx(plain_scores(view, order[:n]), abs=1e-6)
        assert shown_scores(page) > before
    everything = replace(view, pinned=view.nodes.ids)
    with opened(browser, everything.to_html(path), **SIZE) as page:
        whole = plain_scores(view, list(range(len(view.nodes))))
        assert shown_scores(page) == pytest.approx(whole, abs=1e-6)
        assert 0.5 < whole[0] < 1


def test_scores_are_those_of_the_graph(browser, tmp_path: Path) -> None:
    """Where the page has every edge, scores of its pins are the library's of the same subgraph."""
    view = hostile_graph()
    totals = np.bincount(view.edges.targets, np.abs(view.edges.weights), len(view.nodes))
    view = replace(view, nodes=replace(view.nodes, input_totals=totals))
    for n in (0, 5, len(view.nodes)):
        pinned = [view.nodes.ids[i] for i in latents(view)[:n]]
        path = replace(view, pinned=pinned).to_html(tmp_path / "page.html")
        with opened(browser, path, **SIZE) as page:
            assert shown_scores(page) == pytest.approx(library_scores(view, pinned), abs=1e-6)


def library_scores(view: GraphView, pinned: list[str]) -> tuple[float, float]:
    """What the library says of a subgraph."""
    n = len(view.nodes)
    matrix, zeros, minus = np.zeros((n, n)), np.zeros(n), np.full(n, -1, np.int64)
    matrix[view.edges.targets, view.edges.sources] = view.edges.weights
    floats = ("values", "reads", "constants", "residuals")
    nodes = Nodes(
        sites=("logits",),
        labels=tuple(view.nodes.labels),
        kinds=np.array([KINDS.index(kind) for kind in view.nodes.kinds], np.int8),
        site_of=np.zeros(n, np.int32),
        positions=view.nodes.positions.astype(np.int32),
        weights=view.nodes.weights,
        units=minus,
        distractors=minus,
        **dict.fromkeys(floats, zeros),
    )
    removed = nodes.of_kind("latent") & ~np.isin(view.nodes.ids, pinned)
    flowing = flow(from_dense(matrix), nodes.weights, read=~removed)
    found = scores(nodes, flowing, removed)
    return found.completeness, found.replacement


def test_groups_and_their_combined_weights(browser, tmp_path: Path) -> None:
    view = hostile_graph(threshold=0.0)
    ids = view.nodes.ids
    logit = len(ids) - 2
    picked = [i for i in latents(view) if view.nodes.rows[i] < 4][:3]
    view = replace(view, pinned=[ids[i] for i in (*picked, logit)])
    with opened(browser, view.to_html(tmp_path / "page.html"), **SIZE) as page:
        wait_boxes(page, 4)
        # G is held while two are clicked in the plot and one in the panel.
        page.locator(".plot").focus()
        page.keyboard.down("g")
        page.mouse.click(*middle(page.locator(f'.nodes [data-id="{ids[picked[0]]}"]')))
        page.mouse.click(*middle(page.locator(f'.nodes [data-id="{ids[picked[1]]}"]')))
        box(page, ids[picked[2]]).click()
        page.keyboard.up("g")
        wait_boxes(page, 2)
        groups = state(page)["supernodes"]
        assert [set(its) for its in groups.values()] == [{ids[i] for i in picked}]
        weights, totals = view.edges.weights, view.nodes.input_totals
        source = np.isin(view.edges.sources, picked) & (view.edges.targets == logit)
        weight, share = weights[source].sum(), weights[source].sum() / totals[logit]
        said = page.locator(".area .link title").first.text_content().split(", ")
        assert float(said[0]) == pytest.approx(weight, 1e-3)
        assert float(said[1].split()[0]) == pytest.approx(100 * share, abs=0.051)
        inside = np.isin(view.edges.sources, picked) & np.isin(view.edges.targets, picked)
        assert inside.any(), "so that leaving out what comes from inside matters below"
    other = [i for i in latents(view) if i not in picked and view.nodes.rows[i] == 1][0]
    view = replace(view, pinned=[ids[other]], supernodes={"g": [ids[i] for i in picked]})
    with opened(browser, view.to_html(tmp_path / "page.html"), **SIZE) as page:
        into = (view.edges.sources == other) & np.isin(view.edges.targets, picked)
        outside = totals[picked].sum() - np.abs(weights[inside]).sum()
        if into.any():
            said = page.locator(".area .link title").first.text_content().split(", ")
            assert float(said[0]) == pytest.approx(weights[into].sum(), 1e-3)
            share = 100 * weights[into].sum() / outside
            assert float(said[1].split()[0]) == pytest.approx(share, abs=0.051)


def test_the_keyboard_alone_groups_names_moves_and_takes_back(browser, tmp_path: Path) -> None:
    view = hostile_graph()
    ids = [view.nodes.ids[i] for i in latents(view)[:3]]
    view = replace(view, pinned=ids)
    with opened(browser, view.to_html(tmp_path / "page.html"), **SIZE) as page:
        wait_boxes(page, 3)
        area = page.locator(".area")
        area.focus()
        keys = [area.press(key) for key in ("Space", "ArrowUp", "ArrowDown", "ArrowLeft")]
        assert keys and page.locator(".area .chosen").count() == 1
        for one in page.locator(".area .box").all():
            if "chosen" not in one.get_attribute("class"):
                one.click(modifiers=["Shift"])
        assert page.locator(".area .chosen").count() == 3
        area.press("g")
        wait_boxes(page, 1)
        area.press("r")
        page.keyboard.type("says “hello” <b>")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => document.querySelector('.area .box text').textContent.includes('says')"
        )
        assert list(state(page)["supernodes"]) == ["says “hello” <b>"]
        area.press("Shift+ArrowRight")
        moved = state(page)["places"]
        assert list(moved) == [page.locator(".area .box").get_attribute("data-key")]
        area.press("u")
        wait_boxes(page, 3)
        for n in (1, 1, 1, 3):  # places, name, group: back to three pins
            area.press("Control+z")
            wait_boxes(page, n)
        assert state(page) == {}
        area.press("Control+y")
        wait_boxes(page, 1)
        area.press("p")
        wait_boxes(page, 0)
        assert state(page) == {"pinned": []}


def test_a_marquee_chooses_and_a_drag_moves(browser, tmp_path: Path) -> None:
    view = hostile_graph()
    ids = [view.nodes.ids[i] for i in latents(view)[:2]]
    with opened(browser, replace(view, pinned=ids).to_html(tmp_path / "a.html"), **SIZE) as page:
        wait_boxes(page, 2)
        x, y = middle(box(page, ids[0]))
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 37, y + 21, steps=3)
        page.mouse.up()
        place = state(page)["places"][ids[0]]
        page.wait_for_timeout(50)
        assert middle(box(page, ids[0])) == pytest.approx((x + 37, y + 21), abs=2)
        assert len(place) == 2
        area = page.locator(".area svg").bounding_box()
        page.mouse.move(area["x"] + 2, area["y"] + 2)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] - 2, area["y"] + area["height"] - 2, steps=4)
        page.mouse.up()
        assert page.locator(".area .chosen").count() == 2
        page.get_by_role("button", name="group 2", exact=True).click()
        wait_boxes(page, 1)
        page.get_by_role("button", name="undo", exact=True).click()
        wait_boxes(page, 2)
        page.get_by_role("button", name="arrange").click()
        page.wait_for_timeout(50)
        assert state(page) == {}


def test_the_picture_is_a_file_of_its_own(browser, tmp_path: Path) -> None:
    view = hostile_graph()
    ids = [view.nodes.ids[i] for i in latents(view)[:5]]
    view = replace(view, pinned=ids, supernodes={"</svg><script>": ids[:2]})
    path = view.to_html(tmp_path / "page.html")
    with opened(browser, path, **SIZE, color_scheme="dark") as page:
        with page.expect_download() as waiting:
            page.get_by_role("button", name="save SVG").click()
        waiting.value.save_as(tmp_path / "subgraph.svg")
    root = ET.parse(tmp_path / "subgraph.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tags = [one.tag.split("}")[1] for one in root.iter()]
    assert "script" not in tags and tags.count("text") == 2 * 4
    texts = " ".join(one.text or "" for one in root.iter())
    assert "</svg><script>" in texts
    assert root[0].get("fill") == "#ffffff", "light, also from a dark page"
