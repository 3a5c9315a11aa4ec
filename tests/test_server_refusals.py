"""What the server refuses, how it says so, and that nothing else is disturbed by it."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import gossamer
from gossamer.cli import cli
from gossamer.errors import GossamerError
from gossamer.models.model import Model
from gossamer.server import answers
from gossamer.server.app import create_app
from gossamer.server.config import ServerConfig
from gossamer.server.store import Store
from gossamer.server.worker import Task
from tests.tiny_models import tiny_language_model

TEXT = "def add(self, other):\n    return self"
URL = "http://127.0.0.1:8410"


@pytest.fixture(scope="module")
def model() -> gossamer.Model:
    return gossamer.load_model("pico-python")


@pytest.fixture(scope="module")
def client(model: gossamer.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    saes = gossamer.load_saes("pico-python")
    app = create_app(model, saes, tmp_path_factory.mktemp("w"))
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as found:
        yield found


def refused(response: Any, status: int, code: str, field: str | None = None) -> str:
    """The sentence of an answer in the one shape."""
    assert response.status_code == status, response.text
    body = response.json()
    answers.Error.model_validate(body)
    assert (body["code"], body["field"]) == (code, field), body
    assert "Traceback" not in body["message"] and "\n" not in body["message"].strip()
    return body["message"]


AFTER = {"kind": "node_value", "node": "blocks.1.hook_resid_pre/7@3"}
EDIT = {"kind": "ablate", "at": "blocks.3.mlp.hook_post/1@3"}
MISTAKES = [
    ({"target": {"kind": "node_value", "node": "blocks.9.hook_resid_pre/7@3"}}, "site", "target",
     "--node blocks.9.hook_resid_pre/7@3"),
    ({"target": {"kind": "node_value", "node": "nonsense"}}, "site", "target", "--node nonsense"),
    ({"target": {"kind": "node_value", "node": "blocks.3.hook_resid_pre/7@99"}}, "prompt", "target",
     "--node blocks.3.hook_resid_pre/7@99"),
    ({"edits": [{"kind": "ablate", "at": "blocks.1.mlp.hook_post/1@99"}]}, "prompt", "edits",
     "--ablate blocks.1.mlp.hook_post/1@99"),
    ({"edits": [{"kind": "ablate", "at": "what"}]}, "site", "edits", "--ablate what"),
    ({"target": " golf club"}, "prompt", "target", "--target:' golf club'"),
    ({"target": AFTER, "edits": [EDIT]}, "site", "edits",
     "--node blocks.1.hook_resid_pre/7@3 --ablate blocks.3.mlp.hook_post/1@3"),
    ({"upstream": {"node": "blocks.2.hook_resid_pre/5@3"}}, "site", "upstream",
     "--upstream blocks.2.hook_resid_pre/5@3"),
    ({"prompt": "a " * 600}, "prompt", "prompt", None),
    ({"prompt": ""}, None, None, None),
    ({"prompt": []}, "prompt", "prompt", None),
    ({"prompt": [4096]}, "prompt", "prompt", None),
    ({"hold": ["x"]}, "value", "hold", "--hold x"),
    ({"choice": {"cut": "blocks.1.zap"}}, "site", "choice.cut", "--cut blocks.1.zap"),
    ({"choice": {"kinds": ["zap"]}}, "value", "choice", "--kind zap"),
    ({"saes": ["x"]}, "site", "saes", None),
    ({"prompt": [{"role": "user", "content": "a"}]}, "prompt", "prompt", None),
]  # fmt: skip
"""What is added to the body, the code, the field, and the same on the command line."""


@pytest.mark.parametrize(("change", "code", "field", "_"), MISTAKES, ids=str)
def test_a_mistake_is_one_sentence(
    client: TestClient, change: Any, code: str | None, field: str | None, _: Any
) -> None:
    response = client.post("/analyze", json={"prompt": TEXT, **change})
    if code is None:  # BOS makes a prompt of an empty text
        assert response.status_code == 200
        return
    refused(response, 422, code, field)
    assert client.post("/analyze", json={"prompt": TEXT}).status_code == 200


@pytest.mark.parametrize(
    ("change", "line"), [(change, line) for change, _, _, line in MISTAKES if line], ids=str
)
def test_the_command_line_says_the_same(client: TestClient, change: Any, line: str) -> None:
    arguments = [line.partition(":")[0], line.partition(":")[2].strip("'")]
    arguments = arguments if ":" in line else line.split()
    result = CliRunner().invoke(cli, ["analyze", TEXT, *arguments])
    assert isinstance(result.exception, GossamerError)  # main() prints it and exits 2
    said = client.post("/analyze", json={"prompt": TEXT, **change}).json()["message"]
    assert str(result.exception) == said


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({}, "prompt", "required"),
        ({"prompt": 3}, "prompt", "string"),
        ({"prompt": ["a"]}, "prompt.0", "integer"),
        ({"prompt": "a", "zap": 1}, "zap", "not permitted"),
        ({"prompt": "a", "choice": {"top": 0}}, "choice.top", "greater"),
        ({"prompt": "a", "choice": {"top": "5"}}, "choice.top", "integer"),
        ({"prompt": "a", "edits": [{"kind": "zap"}]}, "edits.0", "'ablate'"),
        ({"prompt": "a", "edits": [{"kind": "set", "at": "x"}]}, "edits.0.value", "required"),
        ({"prompt": "a", "target": {"kind": "kl", "position": 2.5}}, "target.position", "integer"),
        ({"prompt": "a", "target": [2**70]}, "target.0", "2147483648"),
        ([1], None, "object"),
    ],
    ids=str,
)
def test_a_body_of_another_shape(
    client: TestClient, body: Any, field: str | None, words: str
) -> None:
    assert words in refused(client.post("/analyze", json=body), 422, "validation", field)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_are_none_are_refused(client: TestClient, number: str) -> None:
    text = f'{{"prompt": "a", "target": {{"kind": "logits", "mass": {number}}}}}'
    response = client.post("/analyze", content=text, headers={"content-type": "application/json"})
    refused(response, 422, "validation", "target.mass")


@pytest.mark.parametrize(
    "text", ['{"prompt": ', "[" * 100_000, '{"prompt": ' + "1" * 5000 + "}", b"\xff\xfe{}"],
    ids=["cut", "deep", "long number", "bytes"],
)  # fmt: skip
def test_no_json(client: TestClient, text: str | bytes) -> None:
    response = client.post("/analyze", content=text, headers={"content-type": "application/json"})
    refused(response, 400, "json")


def test_a_body_of_another_type(client: TestClient) -> None:
    response = client.post("/analyze", content="{}", headers={"content-type": "text/plain"})
    assert "application/json" in refused(response, 400, "json")


@pytest.mark.parametrize("depth", [3, 200, 300, 900])
def test_traces_within_traces(client: TestClient, depth: int) -> None:
    head = '{"kind": "through", "node": "blocks.2.attn.hook_z/1@5<-2", "downstream": '
    text = f'{{"prompt": [1, 2, 3, 4, 5, 6], "target": {head * depth}5{"}" * depth}}}'
    response = client.post("/analyze", content=text, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert len(response.json()["message"]) < 1000


def test_lone_surrogates_are_refused(client: TestClient) -> None:
    text = '{"prompt": "\\ud800"}'
    response = client.post("/analyze", content=text, headers={"content-type": "application/json"})
    assert response.status_code == 422
    answers.Error.model_validate(response.json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/run", {"prompts": [5] * 6}),
        ("/analyze", {"prompt": [5] * 6}),
        ("/generate", {"prompt": [5] * 6, "n_tokens": 2}),
        ("/edges", {"prompt": [5] * 6, "source": {"kind": "tokens"}, "target": {"kind": "logits"}}),
    ],
)
def test_a_model_that_gives_nan(tmp_path: Path, path: str, body: Any) -> None:
    broken = tiny_language_model("gpt2")
    with torch.no_grad():
        broken.get_parameter("transformer.wpe.weight")[4] = torch.nan
    with TestClient(create_app(Model(broken), None, tmp_path), base_url=URL) as client:
        message = refused(client.post(path, json=body), 422, "value")
        assert "finite" in message
        fine = {key: [3] if value == [5] * 6 else value for key, value in body.items()}
        assert client.post(path, json=fine).status_code == 200


def test_ids_that_are_not_there(client: TestClient) -> None:
    for path in ("jobs", "results", "analyses"):
        for name in ("j-0123456789abcdef", "..%2f..%2fetc%2fpasswd", "%00", "x" * 60):
            refused(client.get(f"/{path}/{name}"), 404, "not_found")
    refused(client.get("/latents/blocks.2.hook_resid_pre/99999"), 404, "not_found")
    refused(client.get("/latents/zap/1"), 404, "not_found")
    refused(client.post("/scalars", json={"analysis": "a-0123456789abcdef", "kind": "head",
                                          "metric": "direct"}), 404, "not_found")  # fmt: skip
    refused(client.get("/zap"), 404, "not_found")
    refused(client.put("/analyze"), 405, "method")


def test_host_and_origin(client: TestClient) -> None:
    for host in ("evil.example", "evil.example:8410", "127.0.0.1.evil.example", "[::2]", ""):
        refused(client.get("/health", headers={"host": host}), 400, "host")
    for host in ("localhost:1", "127.0.0.1", "[::1]:8410", "LOCALHOST"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:1"):
        response = client.post("/tokenize", json={"prompt": "a"}, headers={"origin": origin})
        refused(response, 403, "origin")
    response = client.post("/tokenize", json={"prompt": "a"}, headers={"origin": URL})
    assert response.status_code == 200
    # Under DNS rebinding both say the same foreign name.
    names = {"host": "evil.example", "origin": "http://evil.example"}
    refused(client.get("/health", headers=names), 400, "host")


def test_headers_of_every_answer(client: TestClient) -> None:
    for path in ("/", "/health", "/zap", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; style-src")
        assert headers["x-content-type-options"] == "nosniff"


def test_a_token(model: gossamer.Model, tmp_path: Path) -> None:
    config = ServerConfig(host="0.0.0.0", token="a-secret-token", allow_hosts=("box.local",))
    app = create_app(model, None, tmp_path, config)
    with TestClient(app, base_url="http://box.local", follow_redirects=False) as client:
        assert client.get("/health").status_code == 200
        refused(client.get("/model"), 401, "token")
        wrong = {"authorization": "Bearer a-secret-tokem"}
        refused(client.get("/model", headers=wrong), 401, "token")
        right = {"authorization": "Bearer a-secret-token"}
        assert client.get("/model", headers=right).status_code == 200
        refused(client.get("/?token=no"), 401, "token")
        response = client.get("/?token=a-secret-token&prompt=x")
        assert response.status_code == 303 and response.headers["location"] == "./?prompt=x"
        assert "HttpOnly" in response.headers["set-cookie"]
        assert client.get("/model").status_code == 200  # with the cookie
        refused(client.get("/model", headers={"host": "other.local"}), 400, "host")
    for given in ({"host": "0.0.0.0"}, {"host": "a b"}, {"token": "short"}, {"queue": 0}):
        with pytest.raises(GossamerError):
            ServerConfig(**given)


def test_sizes(model: gossamer.Model, tmp_path: Path) -> None:
    config = ServerConfig(body_bytes=1000, memory=1 << 20)
    with TestClient(create_app(model, None, tmp_path, config), base_url=URL) as client:
        refused(client.post("/tokenize", json={"prompt": "a" * 2000}), 413, "too_large")
        parts = iter([b'{"prompt": "', b"a" * 2000, b'"}'])
        response = client.post("/tokenize", content=parts)  # of no stated length
        refused(response, 413, "too_large")
        body = {"prompt": [5] * 200}
        assert "allowed" in refused(client.post("/analyze", json=body), 422, "value")
        assert "allows" in refused(client.post("/run", json={"prompts": [5] * 200}), 422, "value")


def test_a_corpus_stays_in_the_workspace(model: gossamer.Model, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "link.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "w" / "mine.txt").write_text("import os\n" * 50)
    store = Store(tmp_path / "w")
    for given in ("../outside.txt", str(tmp_path / "outside.txt"), "link.txt", "no", "a\0b",
                  "ü" * 200):  # fmt: skip
        with pytest.raises(GossamerError, match="not in the workspace"):
            store.inside(given)
    assert store.inside("mine.txt") == tmp_path / "w" / "mine.txt"
    with pytest.raises(GossamerError, match="Another server"):
        Store(tmp_path / "w")
    store.close()
    (tmp_path / "w" / "labels.json").write_text("{")
    with pytest.raises(GossamerError, match="damaged"):
        Store(tmp_path / "w")


def test_openapi_has_examples_and_the_one_shape(client: TestClient) -> None:
    page = client.get("/openapi.json").json()
    assert len(page["paths"]) >= 20
    for path, verbs in page["paths"].items():
        for verb, operation in verbs.items():
            assert operation["description"], (verb, path)
            for status in ("422", "429", "500"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema["$ref"].endswith("/Error"), (verb, path)
            if "requestBody" not in operation:
                continue
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            if "$ref" in schema:
                name = schema["$ref"].rsplit("/", 1)[1]
                assert page["components"]["schemas"][name]["examples"], path
    assert json.dumps(page).count("HTTPValidationError") == 0


def test_the_examples_are_taken(client: TestClient) -> None:
    page = client.get("/openapi.json").json()
    for path in ("/analyze", "/analyze_batch", "/upstream", "/tokenize", "/run", "/edges",
                 "/generate", "/lens"):  # fmt: skip
        schema = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].rsplit("/", 1)[1]
        for body in page["components"]["schemas"][name]["examples"]:
            assert client.post(path, json=body).status_code == 200, path


def test_busy_slow_and_broken(
    model: gossamer.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServerConfig(queue=1, timeout=0.3)
    app = create_app(model, None, tmp_path, config)
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as client:
        worker, go = app.state.gossamer.worker, threading.Event()
        worker.submit(Task(lambda _: go.wait(10)))
        while worker.counts()[0]:
            time.sleep(0.01)
        for path in ("/tokenize", "/generate"):
            refused(client.post(path, json={"prompt": [5]}), 504, "timeout")
        worker.submit(Task(lambda _: None))
        response = client.post("/analyze", json={"prompt": [5]})
        refused(response, 429, "busy")
        assert int(response.headers["retry-after"]) >= 1
        assert client.get("/health").json()["waiting"] == 1
        go.set()
        while worker.counts()[0]:
            time.sleep(0.01)
        with monkeypatch.context() as patch:
            patch.setattr("gossamer.server.routes.about.tokenize_answer", lambda *_: 1 / 0)
            refused(client.post("/tokenize", json={"prompt": [5]}), 500, "internal")
            patch.setattr("gossamer.server.routes.runs.run_answer", out_of_memory)
            refused(client.post("/run", json={"prompts": [5]}), 507, "memory")
        assert client.post("/tokenize", json={"prompt": [5]}).status_code == 200


def out_of_memory(*_: object) -> None:
    """As torch says it on a CPU."""
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def test_there_are_no_sockets(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws"):
        pass
