"""The matrix page in a real browser, on hostile texts, against the numbers it was made of.

Every page is opened from its file; it must log no error and request nothing but itself.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gossamer.views import MatrixView, NodeColumn
from gossamer.views.text import show_token
from tests.browser import launched, opened
from tests.hostile import HOSTILE, hostile_view

pytestmark = pytest.mark.browser

WALK = 3 * (("ArrowUp", -1, 0), ("ArrowLeft", 0, -1), ("ArrowDown", 1, 0), ("ArrowRight", 0, 1))
NUMBER = re.compile(r"[-+]\d+\.\d+(?:e-\d+)?")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


@pytest.fixture
def view() -> MatrixView:
    return hostile_view()


@pytest.fixture
def page(browser, view, tmp_path: Path) -> Iterator:
    with opened(browser, view.to_html(tmp_path / "page.html")) as found:
        yield found


def cell_point(page, view: MatrixView, row: int, column: int) -> tuple[float, float]:
    """Where a drawn cell's middle is in the window, when the whole matrix is in view."""
    plot = page.locator(".plot")
    plot.scroll_into_view_if_needed()
    x, y, width, height = map(float, plot.get_attribute("data-cells").split())
    box = plot.bounding_box()
    return (
        box["x"] + x + (column + 0.5) * width / len(view.columns),
        box["y"] + y + (row + 0.5) * height / len(view.rows),
    )


def name_point(page, view: MatrixView, row: int) -> tuple[float, float]:
    """Where a drawn row's name is."""
    x, y = cell_point(page, view, row, 0)
    return page.locator(".plot").bounding_box()["x"] + 20, y


def listed(page, which: str = "tbody tr") -> list[tuple[int, int]]:
    """(row, column) of the table's lines."""
    read = "lines => lines.map(line => [+line.dataset.row, +line.dataset.column])"
    return [tuple(pair) for pair in page.locator(which).evaluate_all(read)]


def wait_for_count(page, n: int) -> None:
    page.wait_for_function(
        "n => document.querySelector('.status').textContent.startsWith(`${n} of `)", arg=str(n)
    )


def by_size(view: MatrixView, shown: np.ndarray) -> list[tuple[int, int]]:
    """Shown entries, strongest first, in the precision that the page has."""
    sizes = np.where(shown, np.abs(view.values.astype(np.float32)), -1).ravel()
    order = np.argsort(-sizes, kind="stable")[: int(shown.sum())]
    return [divmod(int(i), len(view.columns)) for i in order]


def crossing(view: MatrixView) -> np.ndarray:
    return view.rows.positions[:, None] != view.columns.positions[None]


def expected_node(side: NodeColumn, node: int) -> list[str]:
    """What a card says of a node."""
    return [
        f"{show_token(side.tokens[node])} at position {side.positions[node]}",
        side.ids[node],
        f"means {show_token(side.labels[node])}",
    ]


def test_hostile_texts_are_only_text(page, view) -> None:
    assert page.evaluate("window.broken") is None
    assert page.locator("img, main script, iframe").count() == 0
    assert page.locator("h1").text_content() == view.title
    assert page.locator("header p").text_content() == view.note
    assert page.title() == view.title


def test_the_browser_shows_tokens_as_python_does(page) -> None:
    shown = page.locator(".prompt bdi").all_text_contents()
    assert shown == [show_token(token) for token in HOSTILE]


def test_the_file_forbids_scripts_and_requests_of_others(browser, view, tmp_path: Path) -> None:
    """The page's own policy stops what a token would have to do, were it ever read as markup."""
    page = browser.new_page()
    page.goto(view.to_html(tmp_path / "page.html").as_uri())
    page.evaluate("""() => {
      window.seen = [];
      document.addEventListener("securitypolicyviolation", e => seen.push(e.effectiveDirective));
      const script = document.createElement("script");
      script.textContent = "window.broken = 1";
      const image = document.createElement("img");
      image.setAttribute("onerror", "window.broken = 2");
      image.src = "http://127.0.0.1:9/x.png";
      document.body.append(script, image);
    }""")
    page.wait_for_function("() => window.seen.length >= 3")
    seen = set(page.evaluate("window.seen"))
    assert seen == {"script-src-elem", "script-src-attr", "img-src"}
    assert page.evaluate("window.broken") is None
    page.close()


def test_hover_says_both_nodes_and_the_effect(page, view) -> None:
    row, column = 9, 4
    page.mouse.move(*cell_point(page, view, row, column))
    tip = page.locator(".tip")
    tip.wait_for(state="visible")
    text = tip.text_content()
    for line in expected_node(view.rows, row) + expected_node(view.columns, column):
        assert line in text
    numbers = [float(n) for n in NUMBER.findall(tip.locator(".effect").text_content())]
    assert numbers == pytest.approx([view.values[row, column], view.gradients[row, column]], 1e-3)
    for kind, side, node in (("source", view.columns, column), ("target", view.rows, row)):
        marked = page.locator(f".prompt .{kind}").all_text_contents()
        assert marked == [show_token(side.tokens[node])]
    page.mouse.move(1, 1)
    assert tip.is_hidden()


def test_the_table_lists_the_entries_strongest_first(page, view) -> None:
    wait_for_count(page, np.count_nonzero(view.values))
    assert listed(page) == by_size(view, view.values != 0)
    first = page.locator("tbody tr").first.text_content()
    row, column = by_size(view, view.values != 0)[0]
    for side, node in ((view.columns, column), (view.rows, row)):
        assert show_token(side.tokens[node]) in first
        assert show_token(side.labels[node]) in first
        assert f"@{side.positions[node]} {side.indices[node]}" in first


def test_cross_position_filter_and_threshold(page, view) -> None:
    before = page.locator(".ticks").text_content()
    page.get_by_label("cross-position only").check()
    shown = crossing(view) & (view.values != 0)
    wait_for_count(page, shown.sum())
    assert listed(page) == by_size(view, shown)
    assert page.locator(".ticks").text_content() != before, "colours rescale to what is visible"
    page.get_by_label("smallest size shown").fill("0.7")
    page.get_by_label("smallest size shown").press("Enter")
    shown &= np.abs(view.values) >= 0.7
    assert 0 < shown.sum() < 100
    wait_for_count(page, shown.sum())
    assert listed(page) == by_size(view, shown)
    slider = page.locator("input[type=range]")
    assert slider.get_attribute("aria-valuetext") == "0.7"
    slider.fill("0")
    wait_for_count(page, (crossing(view) & (view.values != 0)).sum())


def test_headings_sort_both_ways(page, view) -> None:
    everything = by_size(view, view.values != 0)
    columns = {
        "attribution": lambda rc: -view.values[rc],
        "gradient": lambda rc: -view.gradients[rc],
        "source": lambda rc: rc[1],
        "target": lambda rc: rc[0],
    }
    for name, key in columns.items():
        heading = page.get_by_role("columnheader", name=name)
        heading.get_by_role("button").click()
        up = name in {"source", "target"}
        assert heading.get_attribute("aria-sort") == ("ascending" if up else "descending")
        assert listed(page) == sorted(everything, key=key)
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == ("descending" if up else "ascending")
        assert [key(rc) for rc in listed(page)] == sorted(map(key, everything), reverse=True)


def test_clicks_select_a_cell_and_a_line(page, view) -> None:
    row, column = 12, 3
    page.mouse.click(*cell_point(page, view, row, column))
    panel = page.locator(".selection")
    for line in expected_node(view.rows, row) + expected_node(view.columns, column):
        assert line in panel.text_content()
    assert listed(page, "tr[aria-current=true]") == [(row, column)]
    line = page.locator("tbody tr").nth(2)
    line.click()
    row, column = listed(page)[2]
    assert view.rows.ids[row] in panel.text_content()
    assert view.columns.ids[column] in panel.text_content()
    line.press("ArrowDown")
    page.keyboard.press("Enter")
    row, column = listed(page)[3]
    assert view.columns.ids[column] in panel.text_content()
    heard = page.locator("[aria-live=polite]").first.text_content()
    assert f"{view.columns.indices[column]} at" in heard


def test_arrows_walk_over_shown_entries(page, view) -> None:
    page.get_by_label("smallest size shown").fill("0.9")
    page.get_by_label("smallest size shown").press("Enter")
    page.locator(".plot").focus()
    page.keyboard.press("c")
    shown = crossing(view) & (np.abs(view.values) >= 0.9)
    wait_for_count(page, shown.sum())
    page.keyboard.press("ArrowDown")  # the strongest, when none was selected
    row, column = by_size(view, shown)[0]
    panel = page.locator(".selection")
    assert view.rows.ids[row] in panel.text_content()
    jumps = []
    for key, down, right in WALK:
        page.keyboard.press(key)
        r, c = row + down, column + right
        while 0 <= r < len(view.rows) and 0 <= c < len(view.columns) and not shown[r, c]:
            r, c = r + down, c + right
        if 0 <= r < len(view.rows) and 0 <= c < len(view.columns):
            jumps.append(abs(r - row) + abs(c - column))
            row, column = r, c
        text = panel.text_content()
        assert view.rows.ids[row] in text and view.columns.ids[column] in text
    assert max(jumps) > 1, "no entry was skipped, so the walk shows nothing"
    page.keyboard.press("Escape")
    assert "nothing selected" in panel.text_content()


def test_keys_zoom_and_help(page, view) -> None:
    page.locator(".plot").focus()
    assert page.get_by_label("keys", exact=True).is_hidden()
    page.keyboard.press("?")
    assert page.get_by_label("keys", exact=True).is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_label("keys", exact=True).is_hidden()
    everything = np.count_nonzero(view.values)
    page.keyboard.press("+")
    status = "document.querySelector('.status').textContent"
    page.wait_for_function(f"() => {status}.includes('in view')")
    assert len(listed(page)) < everything
    page.keyboard.press("-")
    wait_for_count(page, everything)
    x, y = cell_point(page, view, 13, 18)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    page.wait_for_function(f"() => {status}.includes('in view')")
    page.mouse.move(x + 1, y)
    under = page.locator(".tip").text_content()
    assert view.rows.ids[13] in under and view.columns.ids[18] in under, "it stays where it was"
    page.mouse.down()
    page.mouse.move(*cell_point(page, view, 12, 12), steps=4)
    page.mouse.up()
    assert "nothing selected" in page.locator(".selection").text_content(), "a drag selects nothing"
    page.mouse.dblclick(*cell_point(page, view, 8, 8))
    page.wait_for_function(f"() => !{status}.includes('in view')")


def test_a_name_orders_the_other_side_by_its_effects(page, view) -> None:
    target = len(view.rows) - 1
    page.mouse.click(*name_point(page, view, target))
    axis = page.locator(".axis")
    page.wait_for_function(
        "() => document.querySelector('.axis').textContent.includes('by effect')"
    )
    order = np.argsort(-np.abs(view.values[target].astype(np.float32)), kind="stable")
    for place in (0, 5):
        page.mouse.move(*cell_point(page, view, target, place))
        assert view.columns.ids[order[place]] in page.locator(".tip").text_content()
    page.get_by_role("button", name="prompt order").click()
    page.wait_for_function(
        "() => !document.querySelector('.axis').textContent.includes('by effect')"
    )
    assert axis.text_content().count("by effect") == 0


def test_gradients_that_do_not_follow_are_shown_as_given(browser, view, tmp_path: Path) -> None:
    other = hostile_view(gradients=view.values * 3 + 1)
    with opened(browser, other.to_html(tmp_path / "page.html")) as page:
        page.mouse.move(*cell_point(page, other, 9, 4))
        text = page.locator(".tip .gradient").text_content()
        assert float(text) == pytest.approx(other.gradients[9, 4], 1e-3)


def test_without_gradients_none_are_shown(browser, tmp_path: Path) -> None:
    with opened(browser, hostile_view(gradients=None).to_html(tmp_path / "page.html")) as page:
        assert page.get_by_role("columnheader", name="gradient").count() == 0


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_small_and_empty_matrices_open(browser, tmp_path: Path, shape: tuple[int, int]) -> None:
    view = plain_view(np.ones(shape))
    with opened(browser, view.to_html(tmp_path / "page.html")) as page:
        wait_for_count(page, view.values.size)
        page.locator(".plot").focus()
        for key in ("ArrowDown", "ArrowRight", "+", "-", "c"):
            page.keyboard.press(key)


def test_lone_entries_are_seen_from_afar(browser, tmp_path: Path) -> None:
    """Cells outnumber pixels, and still a strong entry among weak ones keeps its full colour."""
    values = np.full((1500, 3000), 1e-4)
    values[[300, 500, 700, 900, 1100, 1300], np.arange(1600, 1606)] = -2.0
    with opened(browser, plain_view(values).to_html(tmp_path / "page.html")) as page:
        blue = page.evaluate("""() => {
          const canvas = document.querySelector("canvas");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let n = 0;
          for (let i = 0; i < data.length; i += 4)
            if (data[i] === 10 && data[i + 1] === 42 && data[i + 2] === 94) n++;
          return n;
        }""")
        assert 6 <= blue <= 54


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_paint_their_own_ground(browser, view, tmp_path: Path, scheme: str) -> None:
    path = view.to_html(tmp_path / "page.html")
    with opened(browser, path, color_scheme=scheme) as page:
        ground = page.evaluate(
            "getComputedStyle(document.querySelector('.gossamer')).backgroundColor"
        )
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 30)"}[scheme]


def plain_view(values: np.ndarray) -> MatrixView:
    """A matrix with one node at each position."""

    def side(name: str, n: int) -> NodeColumn:
        return NodeColumn(
            name=name,
            ids=[f"{name}/{i}@{i}" for i in range(n)],
            positions=np.arange(n),
            tokens=["t"] * n,
            indices=np.arange(n),
            values=np.ones(n),
            labels=[""] * n,
        )

    rows, columns = side("targets", values.shape[0]), side("sources", values.shape[1])
    return MatrixView(values=values, rows=rows, columns=columns)
