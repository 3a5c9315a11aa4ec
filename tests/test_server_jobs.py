"""Jobs and results in the workspace: what they give, what is kept, and what a full disk does."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import gossamer
from gossamer.errors import DiskError
from gossamer.server import answers, jobs
from gossamer.server.app import create_app
from gossamer.server.store import Store
from tests.tiny_models import tiny_model

SITE = "blocks.2.hook_resid_pre"
TEXT = "def add(self, other):\n    return self\n\nimport os\n" * 40


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    model, saes = tiny_model("gpt2"), None
    with TestClient(create_app(model, saes, tmp_path), base_url="http://127.0.0.1") as found:
        yield found


def ended(client: TestClient, name: str) -> dict[str, Any]:
    """A job, once it has ended."""
    for _ in range(600):
        job = client.get(f"/jobs/{name}").json()
        if job["state"] in jobs.ENDED:
            answers.Job.model_validate(job)
            return job
        time.sleep(0.05)
    raise AssertionError(job)


def test_a_dashboard_is_the_functions(tmp_path: Path) -> None:
    model, saes = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    (tmp_path / "mine.txt").write_text(TEXT)
    app = create_app(model, saes, tmp_path)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        request = {"site": SITE, "latents": [5, 1740], "corpus": "mine.txt", "n_tokens": 400}
        body = {"kind": "dashboard", "request": request, "title": "mine"}
        name = client.post("/jobs", json=body).json()["id"]
        job = ended(client, name)
        assert (job["state"], job["phase"]) == ("done", "passes"), job
        result = client.get(f"/results/{name}").json()
        answers.Result.model_validate(result)
        assert client.get(f"/latents/{SITE}/1740").json()["dashboards"] == [name]
        assert client.get(f"/latents/{SITE}/6").json()["dashboards"] == []
        for corpus in ("../mine.txt", "/etc/hostname", "hf:x"):
            outside = {**body, "request": {**request, "corpus": corpus}}
            failed = ended(client, client.post("/jobs", json=outside).json()["id"])
            assert (
                failed["state"] == "failed" and "not in the workspace" in failed["error"]["message"]
            )
    sae: Any = saes[SITE]
    wanted = gossamer.dashboard(model, sae, tmp_path / "mine.txt", latents=[5, 1740], n_tokens=400)
    got = gossamer.Dashboard.load(tmp_path / "results" / f"{name}.safetensors")
    assert got.firings.tolist() == wanted.firings.tolist() and got.names == wanted.names
    assert got.maxima.tolist() == wanted.maxima.tolist()
    rows = result["answer"]["latents"]
    assert [row["density"] for row in rows] == wanted.densities.tolist()
    assert [row["examples"] for row in rows] == list(wanted.excerpts().values())


def test_a_jobs_answer_is_the_routes(client: TestClient) -> None:
    edges = {"prompt": [[3, 1, 4], [1, 5]], "source": {"kind": "tokens"}}
    edges["target"] = {"kind": "logits", "top": 2}
    texts = {"prompt": [3, 1, 4], "n_tokens": 4, "stream": False}
    batch = {"requests": [{"prompt": [3, 1, 4]}, {"prompt": [1, 5], "target": 7}]}
    for kind, request in (("edges", edges), ("generate", texts), ("analyze_batch", batch)):
        name = client.post("/jobs", json={"kind": kind, "request": request}).json()["id"]
        assert ended(client, name)["state"] == "done"
        result = client.get(f"/results/{name}").json()
        assert result["request"] == request
        route = client.post(f"/{kind}", json=request).json()
        key = {"edges": "edges", "generate": "generations", "analyze_batch": "analyses"}[kind]
        costs = {"id", "seconds", "peak_bytes"}
        for one, other in zip(result["answer"][key], route[key], strict=True):
            same = {k: v for k, v in one.items() if k not in costs}
            assert same == {k: v for k, v in other.items() if k not in costs}
    failing = {"requests": [{"prompt": [3]}, {"prompt": [3], "target": 99}]}
    body = {"kind": "analyze_batch", "request": failing}
    job = ended(client, client.post("/jobs", json=body).json()["id"])
    assert job["error"]["field"] == "requests.1.target"


def test_results_are_saved_listed_and_deleted(client: TestClient, tmp_path: Path) -> None:
    analysis = client.post("/analyze", json={"prompt": [3, 1, 4], "target": 7}).json()
    saved = client.post("/results", json={"analysis": analysis["id"], "title": "why"})
    assert saved.status_code == 201
    answers.ResultInfo.model_validate(saved.json())
    name = saved.json()["id"]
    assert [each["id"] for each in client.get("/results").json()["results"]] == [name]
    found = client.get(f"/results/{name}").json()
    assert found["answer"] == analysis and found["request"] == {"prompt": [3, 1, 4], "target": 7}
    assert client.delete(f"/results/{name}").json() == {"id": name}
    assert client.get(f"/results/{name}").status_code == 404
    assert client.get("/results").json() == {"results": []}
    assert list((tmp_path / "results").iterdir()) == []


def test_the_last_analyses_are_kept(client: TestClient) -> None:
    names = [client.post("/analyze", json={"prompt": [3, i]}).json()["id"] for i in range(20)]
    kept = [client.get(f"/analyses/{name}").status_code for name in names]
    assert kept == [404] * 4 + [200] * 16


def test_old_jobs_are_forgotten(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEEP", 2)
    body = {"kind": "generate", "request": {"prompt": [3], "n_tokens": 1}}
    names = []
    for _ in range(5):
        names.append(client.post("/jobs", json=body).json()["id"])
        ended(client, names[-1])
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == names[:1:-1]
    assert client.get(f"/results/{names[0]}").status_code == 200


def test_a_full_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"kind": "generate", "request": {"prompt": [3], "n_tokens": 1}}
    real = Store.save

    def full(self: Store, folder: str, name: str, content: Any) -> None:
        if folder == where:
            raise DiskError(f"{name} could not be written: the disk is full.")
        real(self, folder, name, content)

    monkeypatch.setattr(Store, "save", full)
    where = "jobs"
    response = client.post("/jobs", json=body)
    assert response.status_code == 507 and response.json()["code"] == "disk"
    assert client.get("/jobs").json() == {"jobs": []}
    where = "results"
    job = ended(client, client.post("/jobs", json=body).json()["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "disk")
    assert client.post("/analyze", json={"prompt": [3]}).status_code == 200


def test_a_stream_of_a_mistake_is_a_status(client: TestClient) -> None:
    response = client.post("/generate", json={"prompt": [3], "n_tokens": 1000})
    assert response.status_code == 422 and response.json()["code"] == "prompt"
