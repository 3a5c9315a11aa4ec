"""The matrix widget in a real JupyterLab, both ways: what is chosen in the browser is read in the
next cell, and what a cell sets is seen in the browser.

The server is a process of its own on a loopback port, with every directory of Jupyter's a temporary
one; the browser must ask nothing of any other host.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import launched, needs, watched
from tests.hostile import hostile_view

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "a-token-of-this-test"
PATIENCE = 90  # seconds a busy machine may take to start a server or a kernel

CELLS = (
    "from tests.hostile import hostile_view\nw = hostile_view().widget()\nw",
    "print('chosen:', w.selected, w.cross_only)",
    "w.threshold = 0.7\nw.sources_by = w.row_ids[-1]",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[str]:
    """The address of a notebook in a running JupyterLab."""
    needs("anywidget", "jupyterlab")
    home = tmp_path_factory.mktemp("jupyter")
    work = home / "work"
    work.mkdir()
    (work / "matrix.ipynb").write_text(json.dumps(notebook()))
    configuration = home / "config" / "labconfig"
    configuration.mkdir(parents=True)
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (configuration / "page_config.json").write_text(json.dumps(news))
    places = {
        f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")
    }
    log = (home / "log").open("wb")
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
        yield f"{address(server, home)}lab/tree/matrix.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def notebook() -> dict:
    """A notebook file with the cells."""
    cells = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell-{number}",
            "metadata": {},
            "outputs": [],
            "source": source,
        }
        for number, source in enumerate(CELLS)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def address(server: subprocess.Popen, home: Path) -> str:
    """Where the server listens, once it says so."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        for file in (home / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text())["url"]
            except json.JSONDecodeError:  # half written
                pass
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start: {(home / 'log').read_text()[-2000:]}")


def test_a_selection_comes_back_and_a_setting_is_seen(lab: str) -> None:
    view = hostile_view()
    cross = view.rows.positions[:, None] != view.columns.positions[None]
    sizes = np.abs(view.values.astype(np.float32))
    row, column = np.unravel_index(np.where(cross, sizes, 0).argmax(), sizes.shape)
    with launched() as browser, watched(browser, lab, console=False) as page:
        page.set_default_timeout(PATIENCE * 1000)
        cells = page.locator(".jp-Notebook .jp-CodeCell")
        cells.first.wait_for()
        page.get_by_text("| Idle").wait_for()  # a cell run before the kernel is there is lost
        run(page, 0)
        page.wait_for_selector(".gossamer[data-ready=true]")
        page.locator(".gossamer .plot").focus()
        page.keyboard.press("c")  # in the notebook itself it would copy the cell
        page.wait_for_function(
            "() => document.querySelector('.gossamer input[type=checkbox]').checked"
        )
        page.keyboard.press("ArrowDown")  # the strongest entry shown
        page.locator(".gossamer .selection .id").first.wait_for()
        assert page.evaluate("window.broken") is None
        run(page, 1)
        printed = cells.nth(1).locator(".jp-OutputArea-output")
        printed.wait_for()
        expected = f"chosen: {[view.rows.ids[row], view.columns.ids[column]]} True"
        assert printed.text_content().strip() == expected
        run(page, 2)
        shown = int((cross & (sizes >= np.float32(0.7))).sum())
        status = page.locator(".gossamer .status").get_by_text(f"{shown} of 384")
        status.wait_for()
        assert "by effect" in page.locator(".gossamer .axis").text_content()


def run(page, number: int) -> None:
    """Run one cell and wait until it has its number."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(number)
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    cell.locator(".jp-InputPrompt").get_by_text(f"[{number + 1}]:").wait_for()
