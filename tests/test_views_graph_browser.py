"""The graph page in a real browser, on hostile texts, against the numbers it was made of.

Every page is opened from its file; it must log no error and request nothing but itself. The panel
of pinned nodes has its own file, `test_views_graph_subgraph.py`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from gossamer.views import GraphView
from gossamer.views.text import show_token
from tests.browser import launched, opened
from tests.hostile import HOSTILE
from tests.hostile_graph import hostile_graph

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def view() -> GraphView:
    return hostile_graph(threshold=0.0)


@pytest.fixture
def page(browser, view, tmp_path: Path) -> Iterator:
    path = view.to_html(tmp_path / "page.html")
    with opened(browser, path, viewport={"width": 1400, "height": 1000}) as found:
        yield found


def glyph(page, node: str):
    """The glyph of a node."""
    return page.locator(f'.nodes [data-id="{node}"]')


def point(page, node: str) -> tuple[float, float]:
    """Where a node is in the window."""
    page.locator(".plot").scroll_into_view_if_needed()
    box = glyph(page, node).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def places_of(page) -> np.ndarray:
    """Where each node stands in the plot; its glyph's box may have another middle."""
    read = "all => all.map(e => e.getAttribute('transform').match(/[-.0-9]+/g).map(Number))"
    return np.array(page.locator(".nodes [role=option]").evaluate_all(read))


def choose(page, node: str, **options: object) -> None:
    page.mouse.move(*point(page, node))
    page.mouse.click(*point(page, node), **options)


def wait(page, condition: str, arg: object = None) -> None:
    """Until a condition holds in the page: gestures are drawn in the next frame."""
    page.wait_for_function(condition, arg=arg)


def wait_selected(page, node: str) -> None:
    selected = "document.querySelector('.nodes [aria-selected=true]')"
    wait(page, f"node => ({selected}?.dataset.id ?? '') === node", node)


def wait_status(page, start: str) -> None:
    wait(page, "s => document.querySelector('.status').textContent.startsWith(s)", start)


def address(page) -> dict:
    """The state in the address, once it has followed."""
    page.wait_for_timeout(250)
    return json.loads(page.evaluate("decodeURIComponent(location.hash.slice(1)) || '{}'"))


def strongest_latent(view: GraphView) -> int:
    """The row of the latent in the middle rows that has the most edges."""
    degree = np.bincount(view.edges.targets, minlength=len(view.nodes))
    degree *= (np.array(view.nodes.kinds) == "latent") & (view.nodes.rows == 3)
    return int(degree.argmax())


def test_hostile_texts_are_only_text(page, view) -> None:
    assert page.evaluate("window.broken") is None
    assert page.locator("img, main script, iframe").count() == 0
    assert page.locator("h1").text_content() == view.title
    shown = page.locator(".token-name title").all_text_contents()
    assert shown == [f"{show_token(token)} at {i}" for i, token in enumerate(HOSTILE)]


def test_every_node_has_its_glyph_in_its_cell(page, view) -> None:
    nodes = view.nodes
    found = page.locator(".nodes [role=option]").evaluate_all(
        "all => all.map(e => [e.dataset.id, e.classList[1], e.getBoundingClientRect().x, "
        "e.getBoundingClientRect().y])"
    )
    assert [one[0] for one in found] == list(nodes.ids)
    assert [one[1] for one in found] == list(nodes.kinds)
    x, y = (np.array([one[k] for one in found]) for k in (2, 3))
    for position in range(len(HOSTILE) - 1):
        assert x[nodes.positions == position].max() < x[nodes.positions == position + 1].min()
    for row in range(5):
        assert y[nodes.rows == row].min() > y[nodes.rows == row + 1].max()


def test_hover_says_what_a_node_is_and_shift_keeps_it(page, view) -> None:
    node = strongest_latent(view)
    x, y = point(page, view.nodes.ids[node])
    page.mouse.move(x + 3, y + 2)
    tip = page.locator(".tip")
    tip.wait_for(state="visible")
    text = tip.text_content()
    assert view.nodes.ids[node] in text and show_token(view.nodes.labels[node]) in text
    page.keyboard.down("Shift")
    page.mouse.move(*point(page, view.nodes.ids[0]))
    assert view.nodes.ids[node] in tip.text_content()
    page.keyboard.up("Shift")
    page.mouse.move(*point(page, view.nodes.ids[0]))
    assert view.nodes.ids[0] in tip.text_content()
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_a_click_lists_inputs_and_outputs(page, view) -> None:
    node = strongest_latent(view)
    choose(page, view.nodes.ids[node])
    wait_selected(page, view.nodes.ids[node])
    edges = view.edges
    for title, here, there in (
        ("inputs", edges.targets, edges.sources),
        ("outputs", edges.sources, edges.targets),
    ):
        for sign, body in ((1, "of-positive"), (-1, "of-negative")):
            rows = [e for e in np.flatnonzero(here == node) if edges.weights[e] * sign > 0]
            rows.sort(key=lambda e: -abs(edges.weights[e]))
            lines = page.locator(f"table.{title} tbody.{body} tr[data-node]")
            found = lines.evaluate_all("all => all.map(line => +line.dataset.node)")
            assert found == [int(there[e]) for e in rows]
            for line, e in zip(lines.all(), rows, strict=True):
                cells = line.locator("td").all_text_contents()
                assert float(cells[3]) == pytest.approx(edges.weights[e], 1e-3)
                share = 100 * edges.weights[e] / view.nodes.input_totals[edges.targets[e]]
                assert float(cells[4].rstrip(" %")) == pytest.approx(share, abs=0.051)
                offset = int(view.nodes.positions[there[e]] - view.nodes.positions[node])
                assert (f"{'←' if offset < 0 else '→'}{abs(offset)}" in cells[2]) == bool(offset)
                if not np.isnan(edges.measured[e]):
                    assert float(cells[5].split()[0]) == pytest.approx(edges.measured[e], 1e-3)
                if edges.classes[e]:
                    mark = line.locator(".class-mark").get_attribute("aria-label")
                    assert mark == edges.classes[e]
    linked = page.locator(".nodes .linked").evaluate_all("all => all.map(e => +e.dataset.node)")
    around = {*edges.sources[edges.targets == node], *edges.targets[edges.sources == node]}
    assert set(linked) == set(map(int, around))


def test_with_nothing_selected_there_is_where_to_begin(page, view) -> None:
    first = page.locator(".starts").first.locator("tr[data-node]")
    targets = np.argsort(-view.nodes.weights, kind="stable")[: (view.nodes.weights > 0).sum()]
    found = first.evaluate_all("all => all.map(line => +line.dataset.node)")
    assert found == targets.tolist()
    page.locator(".plot").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    wait_selected(page, view.nodes.ids[targets[0]])


def test_filter_sort_and_follow_with_the_keyboard_alone(page, view) -> None:
    page.locator(".plot").focus()
    page.keyboard.press("ArrowLeft")  # the most influential, as nothing was selected
    best = int((view.nodes.influence + view.nodes.weights).argmax())
    wait_selected(page, view.nodes.ids[best])
    page.keyboard.press("Enter")
    focused = "document.activeElement.dataset.node"
    first = int(page.evaluate(focused))
    page.keyboard.press("ArrowDown")
    second = int(page.evaluate(focused))
    assert first != second
    page.keyboard.press("Enter")
    wait_selected(page, view.nodes.ids[second])
    page.keyboard.press("p")
    assert page.evaluate(focused) is not None, "the focus stays in the list"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.classList.contains('plot')")
    page.get_by_label("order of connections").select_option("token")
    lines = page.locator("table.inputs tbody.of-positive tr[data-node]")
    found = lines.evaluate_all("all => all.map(line => +line.dataset.node)")
    positions = view.nodes.positions[found].tolist()
    assert positions == sorted(positions)
    page.get_by_label("filter connections").fill("/error@")
    left = page.locator(".lists tr[data-node]").evaluate_all("all => all.map(e => e.dataset.node)")
    kinds = {view.nodes.kinds[int(i)] for i in left}
    assert kinds <= {"error"}


def test_arrows_walk_to_the_nearest_node_in_their_direction(page, view) -> None:
    start = view.nodes.ids[strongest_latent(view)]
    choose(page, start)
    wait_selected(page, start)
    at = start
    for key, axis, sign in (
        *(("ArrowUp", 1, -1), ("ArrowRight", 0, 1), ("ArrowDown", 1, 1), ("ArrowDown", 1, 1)),
        *(("ArrowLeft", 0, -1), ("ArrowLeft", 0, -1), ("ArrowUp", 1, -1)),
    ):
        places = dict(zip(view.nodes.ids, places_of(page), strict=True))
        far = {}
        for other, place in places.items():
            along, across = sign * (place - places[at])[axis], abs((place - places[at])[1 - axis])
            if other != at and along >= 0.5:
                far[other] = along + 2.5 * across
        page.keyboard.press(key)
        if far:
            best = min(far.values())
            wait(
                page,
                "at => document.querySelector('.nodes [aria-selected=true]').dataset.id !== at",
                at,
            )
            at = page.locator(".nodes [aria-selected=true]").get_attribute("data-id")
            assert far[at] == pytest.approx(best, abs=0.3)
    heard = page.locator("[aria-live=polite]").last.text_content()
    assert f"at {view.nodes.positions[list(view.nodes.ids).index(at)]}" in heard
    page.keyboard.press("Escape")
    wait_selected(page, "")


def test_find_by_id_label_and_token(page, view) -> None:
    page.locator(".plot").focus()
    page.keyboard.press("f")
    page.keyboard.type("0.hook_mlp_out/error")
    wanted = [i for i in view.nodes.ids if "0.hook_mlp_out/error" in i]
    wait(page, "n => document.querySelectorAll('.nodes .found').length === n", len(wanted))
    page.keyboard.press("Enter")
    first = max(wanted, key=lambda i: view.nodes.influence[list(view.nodes.ids).index(i)])
    wait_selected(page, first)
    page.keyboard.press("Escape")
    wait(page, "() => document.querySelectorAll('.nodes .found').length === 0")
    page.keyboard.press("f")
    page.keyboard.type("漢字")
    nodes = view.nodes
    n = sum(
        "漢字" in (nodes.labels[i] + HOSTILE[nodes.positions[i]]) for i in range(len(nodes.ids))
    )
    wait(page, "n => document.querySelectorAll('.nodes .found').length === n", n)


def shown_edges(view: GraphView, keep: Callable[[int], bool] = lambda i: True) -> np.ndarray:
    """Which edges have two ends that stay."""
    ends = np.array([keep(i) for i in range(len(view.nodes))])
    return ends[view.edges.sources] & ends[view.edges.targets]


def test_thresholds_and_filters_count_what_they_leave(page, view) -> None:
    m, n = len(view.edges), len(view.nodes)
    wait_status(page, f"{m:,} of {m:,} edges drawn; {n} of {n} nodes, with 100.0 %")
    field = page.get_by_label("smallest weight shown")
    field.fill("1.5")
    field.press("Enter")
    strong = np.abs(view.edges.weights.astype("f4")) >= 1.5
    wait_status(page, f"{strong.sum()} of {m:,} edges drawn")
    page.get_by_label("hide errors").check()
    kinds = np.array(view.nodes.kinds)
    left = shown_edges(view, lambda i: kinds[i] not in ("error", "remainder")) & strong
    wait_status(page, f"{left.sum()} of {m:,} edges drawn")
    page.get_by_label("hide biases").check()
    constant = ("error", "remainder", "bias", "position")
    left = shown_edges(view, lambda i: kinds[i] not in constant) & strong
    n_left = int((~np.isin(kinds, constant)).sum())
    wait_status(page, f"{left.sum()} of {m:,} edges drawn; {n_left} of {n} nodes")
    page.get_by_label("hide errors").uncheck()
    page.get_by_label("hide biases").uncheck()
    page.get_by_label("influence").fill("500")
    share = page.locator(".toolbar output").text_content()
    assert share == "75 %"
    keep = (view.cumulative() < 0.75) | (kinds == "token") | (view.nodes.weights > 0)
    left = shown_edges(view, keep.__getitem__) & strong
    influence = 100 * view.nodes.influence[keep].sum() / view.nodes.influence.sum()
    wait_status(
        page,
        f"{left.sum()} of {m:,} edges drawn; {keep.sum()} of {n} nodes, with {influence:.1f} %",
    )
    assert glyph(page, view.nodes.ids[int((~keep).argmax())]).is_hidden()


def test_link_types_and_classes(page, view) -> None:
    m = len(view.edges)
    pins = [strongest_latent(view), len(view.nodes) - 2]
    for pin in pins:
        choose(page, view.nodes.ids[pin], button="left")
        page.keyboard.press("p")
    wait(page, "() => document.querySelectorAll('.nodes .pinned').length === 2")
    from_, into = np.isin(view.edges.sources, pins), np.isin(view.edges.targets, pins)
    for name, kept in (
        *(("in", into), ("out", from_), ("both", from_ | into), ("pinned", from_ & into)),
        ("all", np.ones(m, bool)),
    ):
        page.get_by_label("which edges").select_option(name)
        wait_status(page, f"{kept.sum():,} of {m:,} edges drawn")
    page.get_by_label("not checked").uncheck()
    page.get_by_label("✓ holds").uncheck()
    kept = np.array([one not in ("", "holds") for one in view.edges.classes])
    wait_status(page, f"{kept.sum():,} of {m:,} edges drawn")
    assert set(address(page)["hidden_classes"]) == {"", "holds"}


def test_a_link_carries_the_reading(browser, view, tmp_path: Path) -> None:
    ids = list(view.nodes.ids)
    path = view.to_html(tmp_path / "page.html")
    said = {
        "pinned": [ids[3], ids[40]],
        "supernodes": {"pair": [ids[3], ids[40]]},
        "selected": ids[40],
        "threshold": 0.5,
        "links": "pinned",
        "colour_by": "check",
    }
    with opened(browser, path) as page:
        read(page, json.dumps(said))
        wait_selected(page, ids[40])
        page.reload()
        page.wait_for_selector("[data-ready=true]")
        wait_selected(page, ids[40])
        assert page.locator(".subgraph .box").count() == 1
        assert page.get_by_label("which edges").input_value() == "pinned"
        page.get_by_label("which edges").select_option("all")
        assert address(page) == {k: v for k, v in said.items() if k != "links"}


def test_a_link_that_does_not_fit_changes_nothing(page, view) -> None:
    ids = list(view.nodes.ids)
    wrong = {
        "pinned": [ids[3], "x"],
        "supernodes": {"pair": ["y"]},
        "selected": 4,
        "threshold": "<img>",
        "links": "nothing",
        "influence": 2,
        "places": {ids[3]: [1, "a"]},
        "hidden_classes": ["z"],
        "constructor": 1,
    }
    for text in (json.dumps(wrong), "[", "null", "3", '"a"'):
        read(page, text)
        page.wait_for_timeout(100)
        assert page.locator(".nodes .pinned").count() == 0
        wait_status(page, f"{len(view.edges):,} of")
    page.evaluate("location.hash = '%'")
    wait_status(page, f"{len(view.edges):,} of")


def read(page, text: str) -> None:
    """Follow a link to this page."""
    page.evaluate("hash => { location.hash = hash; }", quote(text))


def test_zoom_help_and_the_table(page, view) -> None:
    page.locator(".plot").focus()
    width = "parseFloat(document.querySelector('.inner').style.width)"
    before = page.evaluate(width)
    page.keyboard.press("+")
    page.keyboard.press("+")
    wait(page, f"before => {width} > 1.5 * before", before)
    node = view.nodes.ids[-1]
    page.keyboard.press("f")
    page.keyboard.type(node)
    page.keyboard.press("Enter")
    wait_selected(page, node)
    box, inside = glyph(page, node).bounding_box(), page.locator(".scroller").bounding_box()
    assert inside["x"] <= box["x"] <= inside["x"] + inside["width"], "it scrolled into view"
    page.locator(".plot").focus()
    page.keyboard.press("0")
    wait(page, f"before => {width} === before", before)
    page.keyboard.press("?")
    assert page.get_by_label("keys", exact=True).is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_label("keys", exact=True).is_hidden()
    page.get_by_text("nodes as a table").click()
    lines = page.locator("details tr[data-node]")
    order = np.argsort(-view.nodes.influence.astype("f4"), kind="stable")
    wait(page, "n => document.querySelectorAll('details tr[data-node]').length === n", len(order))
    found = lines.evaluate_all("all => all.map(line => +line.dataset.node)")
    assert found == order.tolist()
    lines.nth(3).click()
    wait_selected(page, view.nodes.ids[order[3]])
