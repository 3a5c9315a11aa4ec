"""Graphs of a running server: stopped and gone on with, killed and started again, in a browser."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import gossamer
from gossamer.attribution.attribute import attribute
from gossamer.graph.graph import Graph
from gossamer.server.app import create_app
from tests.browser import launched, needs, watched
from tests.serving import serving

PROMPT = "def add(self, other):\n    return self"
LONG = (
    f"{PROMPT}\n\nclass Sum:\n    def __init__(self, first, second):\n        self.first = first\n"
)


@pytest.fixture(scope="module")
def model() -> gossamer.Model:
    return gossamer.load_model("pico-python")


@pytest.fixture(scope="module")
def saes() -> Any:
    return gossamer.load_saes("pico-python")


def same(path: Path, wanted: Any) -> None:
    """A graph's file holds the graph that Python makes."""
    got = Graph.load(path)
    assert got.nodes.ids == wanted.nodes.ids
    for one, other in zip(got.edges.arrays(), wanted.edges.arrays(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_cancelled_and_gone_on_with(model: Any, saes: Any, tmp_path: Path) -> None:
    """Short requests are answered between two batches; a rerun does not compute rows again."""
    app = create_app(model, saes, tmp_path)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        jobs = app.state.gossamer.jobs
        body = {"kind": "attribute", "request": {"prompt": LONG}}
        name = client.post("/jobs", json=body).json()["id"]
        while (job := jobs.get(name)).done * 3 < (job.total or 1):
            assert job.state in ("queued", "running"), job
            time.sleep(0.005)
        assert client.post("/analyze", json={"prompt": PROMPT}).status_code == 200
        assert jobs.get(name).state == "running"
        client.delete(f"/jobs/{name}")
        while jobs.get(name).state == "running":
            time.sleep(0.01)
        assert jobs.get(name).state == "cancelled"
        rows = tmp_path / "rows" / name / "0" / "rows.jsonl"
        n_rows = len(rows.read_text().splitlines())
        assert n_rows >= job.total / 3
        assert client.get("/graphs").json() == {"graphs": []}
        client.post(f"/jobs/{name}/rerun")
        while jobs.get(name).state in ("queued", "running"):
            time.sleep(0.01)
        again = [each for _, each in jobs.after(name, 1) if each.attempt == 2 and each.phase]
        assert again[-1].state == "done" and all(each.done >= n_rows for each in again)
        assert not (tmp_path / "rows" / name).exists()
    same(tmp_path / "graphs" / f"g-{name[2:]}.safetensors", attribute(model, saes, LONG))


@pytest.mark.slow
def test_killed_during_a_graph_and_started_again(model: Any, saes: Any, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        made = server.ask("POST", "/attribute", {"prompt": PROMPT})[2]["graphs"][0]
        report = server.ask("POST", "/verify", {"graph": made["id"], "n_edges": 5})[2]
        body = {"kind": "attribute", "request": {"prompt": LONG}}
        job = server.ask("POST", "/jobs", body)[2]["id"]
        for _, data in server.events(f"/jobs/{job}/events"):
            if data["done"] > 100:
                break
        server.kill(signal.SIGKILL)
    rows = tmp_path / "rows" / job / "0" / "rows.jsonl"
    before = rows.read_text()
    assert before.count("\n") > 100
    with serving(tmp_path) as server:
        assert server.ask("GET", f"/jobs/{job}")[2]["state"] == "interrupted"
        assert server.ask("GET", f"/graphs/{made['id']}/report")[2] == report
        assert server.ask("POST", f"/jobs/{job}/rerun")[0] == 202
        ended = server.wait(job, "done", "failed")
        assert (ended["state"], ended["attempt"]) == ("done", 2), ended["error"]
        listed = [each["id"] for each in server.ask("GET", "/graphs")[2]["graphs"]]
        assert listed == [f"g-{job[2:]}", made["id"]]
    same(tmp_path / "graphs" / f"{listed[0]}.safetensors", attribute(model, saes, LONG))


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine."""
    import uvicorn

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def address(model: Any, saes: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    needs("fastapi", "uvicorn")
    with running(create_app(model, saes, tmp_path_factory.mktemp("workspace"))) as found:
        yield found


def opens(browser: Any, address: str) -> Iterator[Any]:
    """A graph's page, opened by itself: no console error, no request elsewhere."""
    with watched(browser, address) as page:
        page.wait_for_selector("[data-ready=true]")
        yield page


@pytest.mark.browser
def test_the_graph_of_a_prompt_opens_from_the_debugger(browser, address, model, saes) -> None:
    wanted: Any = attribute(model, saes, PROMPT, max_nodes=900)
    with watched(browser, f"{address}?prompt=def+add(self,+other):%0A++++return+self") as page:
        page.wait_for_selector("body[data-ready=true]")
        page.get_by_label("at most nodes").fill("900")
        with page.context.expect_page() as opened:
            page.get_by_role("button", name="Graph of this prompt").click()
        page.wait_for_selector("#graph[aria-busy=false]")
        said = page.locator("#graph [role=status]").text_content() or ""
        assert said.startswith(f"900 nodes, {len(wanted.edges):,} edges; replacement score")
        href = page.get_by_role("link", name="Open the graph").get_attribute("href")
        opened.value.wait_for_selector("[data-ready=true]")
        assert opened.value.url == f"{address}{href}"
        opened.value.close()
        page.get_by_role("button", name="Check 50 edges").click()
        page.wait_for_selector("#graph[aria-busy=false] >> text=edges hold in the true model")
        page.get_by_label("at most nodes").fill("3")
        page.get_by_role("button", name="Graph of this prompt").click()
        page.wait_for_selector("#graph .error >> text=max_nodes=3 is less than")
    for page in opens(browser, f"{address}{href}"):
        assert page.locator("svg [data-id]").count() > 50
        assert page.get_by_text("gate flips").count() + page.get_by_text("holds").count() > 0


@pytest.mark.browser
def test_two_prompts_open_over_each_other(browser, address) -> None:
    query = "prompt=def+f(self):&second=def+f(cls):&align=end"
    with watched(browser, f"{address}?{query}") as page:
        page.wait_for_selector("body[data-ready=true]")
        with page.context.expect_page() as opened:
            page.get_by_role("button", name="Graph of this prompt").click()
        opened.value.wait_for_selector("[data-ready=true]")
        assert "/difference/" in opened.value.url
        assert page.get_by_role("button", name="Check 50 edges").count() == 0
        opened.value.close()
        # What a graph cannot explain is not offered.
        page.get_by_label("what of the targets is explained").select_option("kl")
        page.wait_for_selector("body[data-ready=true]")
        assert page.get_by_role("button", name="Graph of this prompt").is_disabled()
