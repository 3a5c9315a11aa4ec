"""How the graph page looks in a real browser, and what it costs: colours, names, budgets.

Two prompts and checked edges have colours and filters of their own; the raw modules draw the page
that the joined one draws.
"""

import functools
import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from gossamer.views import GraphEdges, GraphView
from gossamer.views.joiner import WEB, read_module
from tests.browser import launched, opened, watched
from tests.hostile_graph import hostile_graph

pytestmark = pytest.mark.browser

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "graph_page.py"
SIZE = {"viewport": {"width": 1400, "height": 900}}
PAINTED = 1.5  # seconds from the start of navigation
FOLLOWED = 0.05  # seconds from a move of the pointer to the frame that shows it

HOVER = """async () => {
  const scroller = document.querySelector(".scroller");
  const box = scroller.getBoundingClientRect();
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  for (let i = 0; i < 60; i++) {
    const clientX = box.left + 20 + ((i * 137) % (box.width - 40));
    const clientY = box.top + 70 + ((i * 61) % 240);
    await frame();
    const start = performance.now();
    scroller.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
    await frame();
    times.push((performance.now() - start) / 1000);
  }
  return times;
}"""

COUNT = """wanted => {
  let found = 0;
  for (const canvas of document.querySelectorAll(".inner canvas")) {
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < data.length; i += 4) {
      if (data[i + 3] > 200 && wanted.every((one, k) => Math.abs(data[i + k] - one) < 6)) found++;
    }
  }
  return found;
}"""

CONTRAST = """selectors => {
  const channel = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (text) => {
    const [r, g, b] = text.match(/[0-9.]+/g).map((c) => channel(Number(c) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    const own = getComputedStyle(e).backgroundColor;
    return /, 0\\)$/.test(own) ? ground(e.parentElement) : own;
  };
  return selectors.flatMap((selector) => [...document.querySelectorAll(selector)].map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return [selector, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  }));
}"""

NAMELESS = """() => [...document.querySelectorAll("button, input, select, [role]")]
  .filter((e) => ["listbox", "option", null].includes(e.getAttribute("role")))
  .filter((e) => !e.closest("[hidden]"))
  .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim()
    || e.labels?.[0]?.textContent.trim()))
  .map((e) => e.outerHTML.slice(0, 80))"""


def large_graph(n_nodes: int, n_edges: int, **options: object) -> GraphView:
    """The random graph of `benchmarks/graph_page.py`."""
    spec = importlib.util.spec_from_file_location("graph_page", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark.graph_view(n_nodes, n_edges, **options)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


def one_edge(weight: float, **columns: object) -> GraphView:
    """A graph whose only edge is between the first token and a logit."""
    view = hostile_graph(threshold=0.0)
    last = len(view.nodes) - 1
    edge = GraphEdges(
        sources=np.array([0]), targets=np.array([last]), weights=np.array([weight]), **columns
    )
    return replace(view, edges=edge)


def drawn(page, colour: str) -> int:
    """Pixels of the canvases in a colour, nearly."""
    page.wait_for_timeout(100)
    return page.evaluate(COUNT, [int(colour[i : i + 2], 16) for i in (1, 3, 5)])


@pytest.mark.parametrize(
    ("scheme", "plus", "minus"), [("light", "#1b7837", "#7b3294"), ("dark", "#58c47d", "#c79be6")]
)
def test_sign_is_a_colour_and_a_dash(
    browser, tmp_path: Path, scheme: str, plus: str, minus: str
) -> None:
    found = {}
    for weight in (2.0, -2.0):
        path = one_edge(weight).to_html(tmp_path / "page.html")
        with opened(browser, path, **SIZE, color_scheme=scheme) as page:
            page.locator(f'.nodes [data-id="{one_edge(weight).nodes.ids[0]}"]').hover(force=True)
            found[weight] = (drawn(page, plus), drawn(page, minus))
    (solid, no_minus), (no_plus, dashed) = found[2.0], found[-2.0]
    assert no_minus == no_plus == 0
    assert 0 < dashed < 0.85 * solid


def test_two_prompts_have_colours_and_a_filter(browser, tmp_path: Path) -> None:
    for side, colour in (("first", "#1b5aa6"), ("second", "#c0570b"), ("changed", "#a3195b")):
        view = one_edge(2.0, sides=[side])
        with opened(browser, view.to_html(tmp_path / "page.html"), **SIZE) as page:
            page.locator(f'.nodes [data-id="{view.nodes.ids[0]}"]').hover(force=True)
            assert drawn(page, colour) > 0
    view = hostile_graph(sides=True, threshold=0.0)
    with opened(browser, view.to_html(tmp_path / "page.html"), **SIZE) as page:
        page.get_by_label("second prompt only").uncheck()
        sides = np.array(view.nodes.sides)
        kept = sides != "second"
        edges = np.array(view.edges.sides) != "second"
        edges &= kept[view.edges.sources] & kept[view.edges.targets]
        start = f"{edges.sum():,} of {len(edges):,} edges drawn; {kept.sum()} of {len(kept)} nodes"
        page.wait_for_function(
            "s => document.querySelector('.status').textContent.startsWith(s)", arg=start
        )
        strokes = page.locator(".nodes [role=option]").evaluate_all(
            "a => a.map(e => e.style.stroke)"
        )
        assert len({strokes[i] for i in np.flatnonzero(sides == "first")}) == 1
        assert strokes[int((sides == "first").argmax())] != strokes[int((sides == "both").argmax())]


def test_a_checked_edge_is_marked_in_the_colour_of_its_class(browser, tmp_path: Path) -> None:
    view = one_edge(2.0, classes=["gate flips"], measured=np.array([0.5]))
    path = view.to_html(tmp_path / "page.html")
    with opened(browser, path, **SIZE) as page:
        page.get_by_label("⇄ gate flips").wait_for()
        page.get_by_label("colour of edges").select_option("check")
        page.locator(f'.nodes [data-id="{view.nodes.ids[0]}"]').hover(force=True)
        with_mark = drawn(page, "#c0570b")
        assert with_mark > 0 and drawn(page, "#1b7837") == 0
        page.get_by_label("⇄ gate flips").uncheck()
        page.wait_for_function(
            "() => document.querySelector('.status').textContent.startsWith('0 of 1 edges')"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(browser, tmp_path: Path, scheme: str) -> None:
    view = hostile_graph(sides=True)
    view = replace(view, pinned=view.nodes.ids[20:24], supernodes={"g": view.nodes.ids[20:22]})
    path = view.to_html(tmp_path / "page.html")
    with opened(browser, path, **SIZE, color_scheme=scheme) as page:
        page.locator(".plot").focus()
        page.keyboard.press("ArrowDown")
        page.locator(".lists tr[data-edge]").first.wait_for()
        assert page.evaluate(NAMELESS) == []
        for box in page.locator("[role=listbox]").all():
            active = box.get_attribute("aria-activedescendant")
            assert box.locator(f'[id="{active}"][role=option]').count() == 1
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        read = [".status", ".faint", ".lists td", ".swatch span", ".class-mark", "h1", ".row-name"]
        faint = [pair for pair in page.evaluate(CONTRAST, read) if pair[1] < 3]
        assert not faint, faint[:5]


def test_the_page_fits_a_narrow_window(browser, tmp_path: Path) -> None:
    view = large_graph(600, 4000)
    path = view.to_html(tmp_path / "page.html")
    for width in (900, 480):
        size = {"width": width, "height": 900}
        with opened(browser, path, viewport=size) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.set_viewport_size({"width": 1300, "height": 900})
            page.wait_for_function(
                "() => parseFloat(document.querySelector('.inner').style.width) > 600"
            )


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """Files over loopback, for modules cannot be imported from file:// pages."""
    kind = functools.partial(Quiet, directory=str(directory))
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_raw_modules_draw_the_page_that_the_joined_one_draws(browser, tmp_path: Path) -> None:
    view = hostile_graph(sides=True)
    view = replace(view, pinned=view.nodes.ids[20:24])
    path = view.to_html(tmp_path / "joined.html")
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)
    head, _ = text.split('<script type="module">')
    script = f'{head}<script type="module">{read_module("graph_page.js")}</script></body></html>'
    (tmp_path / "raw.html").write_text(script, encoding="utf-8")
    for file in WEB.glob("*.js"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    found = []
    with served(tmp_path) as address:
        for name in ("joined", "raw"):
            with watched(browser, f"{address}/{name}.html", **SIZE) as page:
                page.wait_for_selector("[data-ready=true]")
                page.locator(".plot").focus()
                page.keyboard.press("ArrowDown")
                page.wait_for_selector(".lists tr[data-edge]")
                inside = page.locator("#view").inner_html()
                found.append(re.sub(r"graph-[a-z0-9]{4,8}-", "graph-", inside))
    assert found[0] == found[1] and len(found[0]) > 50_000


def test_the_budgets_hold(browser, tmp_path: Path) -> None:
    view = large_graph(2000, 20_000, threshold=0.0)
    path = view.to_html(tmp_path / "page.html")
    painted, followed = [], []
    for _ in range(3):  # the best of three: others use this machine too
        with opened(browser, path, **SIZE) as page:
            assert page.locator(".status").text_content().startswith("20,000 of 20,000 edges")
            marks = "performance.getEntriesByName('gossamer:painted')[0].startTime / 1000"
            painted.append(page.evaluate(marks))
            page.wait_for_timeout(500)
            followed.append(float(np.quantile(page.evaluate(HOVER), 0.95)))
    assert min(painted) < PAINTED, painted
    assert min(followed) < FOLLOWED, followed


def test_no_more_than_the_strongest_edges_are_drawn(browser, tmp_path: Path) -> None:
    view = large_graph(700, 23_000, threshold=0.0)
    with opened(browser, view.to_html(tmp_path / "page.html"), **SIZE) as page:
        status = page.locator(".status").text_content()
        assert status.startswith(
            "20,000 of 23,000 edges drawn, the strongest of 23,000 that pass; 700 of 700 nodes"
        )
