"""The graph widget in a real JupyterLab: pins and groups made in the browser are read in the next
cell, and what a cell sets is seen in the browser. The server is that of `test_views_notebook.py`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.browser import launched, needs, watched
from tests.hostile_graph import hostile_graph
from tests.test_views_notebook import PATIENCE, ROOT, TOKEN, address, run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELLS = (
    "from tests.hostile_graph import hostile_graph\nw = hostile_graph().widget()\nw",
    "import json\nprint(json.dumps([w.selected, w.pinned, w.supernodes]))",
    "w.supernodes = {}\nw.pinned = w.pinned[:1] + [w.node_ids[-1]]\nw.hide_errors = True",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """The address of a notebook in a running JupyterLab."""
    needs("anywidget", "jupyterlab")
    home = tmp_path_factory.mktemp("jupyter")
    work = home / "work"
    work.mkdir()
    cells = [
        {"cell_type": "code", "execution_count": None, "id": f"cell-{i}", "metadata": {},
         "outputs": [], "source": source}
        for i, source in enumerate(CELLS)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (work / "graph.ipynb").write_text(json.dumps(book))
    configuration = home / "config" / "labconfig"
    configuration.mkdir(parents=True)
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (configuration / "page_config.json").write_text(json.dumps(news))
    places = {
        f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")
    }
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"),
                *("--ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}", f"--notebook-dir={work}"),
            ],
            env={**os.environ, **places, "PYTHONPATH": str(ROOT), "HOME": str(home)},
            stdout=log,
            stderr=log,
        )
        try:
            yield f"{address(server, home)}lab/tree/graph.ipynb?token={TOKEN}"
        finally:
            server.terminate()
            server.wait(30)


def test_pins_and_groups_come_back_and_a_setting_is_seen(lab: str) -> None:
    view = hostile_graph()
    with launched() as browser, watched(browser, lab, console=False) as page:
        page.set_default_timeout(PATIENCE * 1000)
        cells = page.locator(".jp-Notebook .jp-CodeCell")
        cells.first.wait_for()
        page.get_by_text("| Idle").wait_for()  # a cell run before the kernel is there is lost
        run(page, 0)
        page.wait_for_selector(".gossamer.graph[data-ready=true]")
        assert page.get_by_role("button", name="copy link").count() == 0, "there is no page to link"
        plot = page.locator(".gossamer .plot")
        plot.focus()
        selected = "document.querySelector('.nodes [aria-selected=true]')?.dataset.id"
        chosen = []
        for key in ("ArrowLeft", "ArrowDown"):  # in the notebook itself it would leave the cell
            page.keyboard.press(key)
            page.wait_for_function(
                f"at => {selected} && {selected} !== at", arg=(chosen or [""])[-1]
            )
            chosen.append(page.evaluate(selected))
            page.keyboard.press("p")  # elsewhere a command of the notebook
        page.wait_for_function("() => document.querySelectorAll('.area .box').length === 2")
        page.locator(".area").focus()
        for box in page.locator(".area .box").all():
            box.click(modifiers=["Shift"])
        page.keyboard.press("g")
        page.wait_for_function("() => document.querySelectorAll('.area .box').length === 1")
        assert page.evaluate("window.broken") is None
        run(page, 1)
        printed = cells.nth(1).locator(".jp-OutputArea-output")
        printed.wait_for()
        found, pinned, groups = json.loads(printed.text_content())
        assert (found, pinned) == (chosen[-1], chosen)
        assert {name: set(ids) for name, ids in groups.items()} == {"group 1": set(chosen)}
        run(page, 2)
        page.wait_for_function("() => document.querySelectorAll('.area .box').length === 2")
        keys = page.locator(".area .box").evaluate_all("all => all.map(e => e.dataset.key)")
        assert keys == [chosen[0], view.nodes.ids[-1]]
        assert page.get_by_label("hide errors").is_checked()
