"""Graphs over HTTP: the functions' numbers, the functions' files, kept in the workspace."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import gossamer
from gossamer.attribution.attribute import attribute
from gossamer.attribution.contrast import contrast
from gossamer.attribution.targets import Latents, LogitDifference, Logits
from gossamer.attribution.verify import verify
from gossamer.errors import GossamerError
from gossamer.graph.difference import compare_graphs
from gossamer.graph.graph import Graph
from gossamer.interop.graph_json import write_graph_json
from gossamer.server import answers
from gossamer.server.app import create_app
from gossamer.server.values import to_wire
from gossamer.server.verbs import graphs as verbs
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

IDS = [3, 1, 4, 1, 5, 9]
OTHER = [2, 7, 1, 5, 9]
SITES = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")
URL = "http://127.0.0.1:8410"


@pytest.fixture(scope="module")
def model() -> gossamer.Model:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def saes(model: gossamer.Model) -> dict[str, Any]:
    found = {site: tiny_sae("topk", site, model.d_model, seed=i) for i, site in enumerate(SITES)}
    out = "blocks.1.hook_mlp_out"
    found[out] = tiny_sae("relu", "blocks.1.mlp.hook_in", model.d_model, site_out=out, seed=5)
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def client(model: gossamer.Model, saes: Any, workspace: Path) -> Iterator[TestClient]:
    with TestClient(create_app(model, saes, workspace), base_url=URL) as found:
        yield found


@pytest.fixture(scope="module")
def wanted(model: gossamer.Model, saes: Any) -> Graph:
    """The graph that Python makes of IDS."""
    found = attribute(model, saes, IDS)
    assert isinstance(found, Graph)
    return found


@pytest.fixture(scope="module")
def name(client: TestClient) -> str:
    """The id of the same graph in the workspace."""
    return asked(client, "POST", "/attribute", answers.Attribution, {"prompt": IDS})["graphs"][0][
        "id"
    ]


def asked(
    client: TestClient, method: str, path: str, shape: type, body: Any = None
) -> dict[str, Any]:
    """The answer, which has the documented shape."""
    response = client.request(method, path, json=body)
    assert response.status_code == 200, response.text
    shape.model_validate(response.json())  # pyright: ignore[reportAttributeAccessIssue]
    return response.json()


def saved(client: TestClient, graph: str, tmp_path: Path) -> Graph:
    """A graph as its file says it is."""
    path = tmp_path / f"{graph}.safetensors"
    path.write_bytes(client.get(f"/graphs/{graph}/file").content)
    return Graph.load(path)


def same(got: Graph, wanted: Graph) -> None:
    """Equal in nodes, edges and what they add up to."""
    assert got.nodes.ids == wanted.nodes.ids and got.nodes.labels == wanted.nodes.labels
    assert got.tokens == wanted.tokens and got.token_ids == wanted.token_ids
    for one, other in zip(got.edges.arrays(), wanted.edges.arrays(), strict=True):
        np.testing.assert_array_equal(one, other)
    for column in ("values", "weights", "reads", "constants", "residuals"):
        np.testing.assert_array_equal(getattr(got.nodes, column), getattr(wanted.nodes, column))
    for key in ("target", "effects", "hold", "saes", "max_nodes", "model_digest"):
        assert got.about[key] == wanted.about[key]


def identical(text: str, path: Path) -> None:
    """The text is the file's; pytest would compare long ones letter by letter for minutes."""
    is_the_file = text == path.read_text()
    assert is_the_file


def ended(client: TestClient, job: str) -> dict[str, Any]:
    """A job, once it has ended."""
    end = time.monotonic() + 60
    while (found := client.get(f"/jobs/{job}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


WAYS: list[dict[str, Any]] = [
    {},
    {"target": Logits([7, 9]), "hold": ["norms", "attention", "mlps"]},
    {"target": LogitDifference(7, 9, 3), "effects": "gradient"},
    {"target": Latents(SITES[1], positions=[4]), "max_nodes": 100},
    {"target": "logits/7@4", "effects": "integrated", "steps": 3},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(sorted(way)))
def test_attribute_is_the_function(
    client: TestClient, model: gossamer.Model, saes: Any, tmp_path: Path, way: dict[str, Any]
) -> None:
    body = {"prompt": IDS, **{key: to_wire(value) for key, value in way.items()}, "title": "mine"}
    answer = asked(client, "POST", "/attribute", answers.Attribution, body)
    (one,) = answer["graphs"]
    graph: Any = attribute(model, saes, IDS, **way)
    same(saved(client, one["id"], tmp_path), graph)
    assert (one["n_nodes"], one["n_edges"]) == (len(graph.nodes), len(graph.edges))
    assert one["title"] == "mine" and one["request"] == body and answer["comparison"] is None
    assert one["replacement_score"] == pytest.approx(graph.replacement_score(), nan_ok=True)
    assert one["completeness"] == pytest.approx(graph.completeness())
    assert one["largest_residual"] == pytest.approx(graph.residuals().largest)
    assert [node["id"] for node in one["targets"]] == [
        graph.nodes.ids[i] for i in graph.nodes.targets
    ]
    assert sum(one["kinds"].values()) == one["n_nodes"]
    assert asked(client, "GET", f"/graphs/{one['id']}", answers.Graph) == one


def test_a_graph_read_in_parts(client: TestClient, name: str, wanted: Graph) -> None:
    def edges(query: str) -> Any:
        path = f"/graphs/{name}/edges{query}"
        return asked(client, "GET", path, answers.GraphEdges)["edges"]

    assert edges("?n=7") == [edge._asdict() for edge in wanted.edges.top(7)]
    target = wanted.nodes.ids[int(wanted.nodes.targets[0])]
    into = wanted.edges_into(target, 5)
    assert edges(f"?node={target}&n=5") == [edge._asdict() for edge in into]
    source = into[0].source
    out = wanted.edges_out_of(source)
    assert edges(f"?node={source}&direction=out&n=9999") == [edge._asdict() for edge in out]


def test_a_neighbourhood_is_cut_to_what_is_asked(
    client: TestClient, name: str, wanted: Graph
) -> None:
    source = wanted.edges_into(int(wanted.nodes.targets[0]), 1)[0].source
    near = wanted.neighbourhood([source], hops=1)
    path = f"/graphs/{name}/neighbourhood?nodes={source}"
    whole = asked(client, "GET", f"{path}&max_nodes=5000&max_edges=50000", answers.Neighbourhood)
    assert [node["id"] for node in whole["nodes"]] == list(near.nodes.ids)
    assert whole["edges"] == [edge._asdict() for edge in near.edges.top(50000)]
    influence = dict(zip(wanted.nodes.ids, wanted.influence().tolist(), strict=True))
    assert {n["id"]: n["influence"] for n in whole["nodes"]} == {
        node: influence[node] for node in near.nodes.ids
    }
    part = asked(client, "GET", f"{path}&max_nodes=6&max_edges=4", answers.Neighbourhood)
    assert (part["n_nodes"], part["n_edges"]) == (len(near.nodes), len(near.edges))
    ids = [node["id"] for node in part["nodes"]]
    others = sorted((i for i in near.nodes.ids if i != source), key=lambda i: -influence[i])
    assert len(ids) == 6 and set(ids) == {source, *others[:5]}
    between = [e for e in near.edges.top(50000) if {e.source, e.target} <= set(ids)]
    assert part["edges"] == [edge._asdict() for edge in between[:4]]
    far = asked(client, "GET", f"{path}&hops=0", answers.Neighbourhood)
    assert [node["id"] for node in far["nodes"]] == [source]


def test_pages_and_json_are_the_functions_files(
    client: TestClient, name: str, wanted: Graph, tmp_path: Path
) -> None:
    pin = wanted.nodes.ids[3]
    wanted.to_html(tmp_path / "page.html", pinned=[pin], max_nodes=40, max_edges=60)
    page = client.get(f"/graphs/{name}/page?pinned={pin}&max_nodes=40&max_edges=60")
    identical(page.text, tmp_path / "page.html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    write_graph_json(wanted, tmp_path / "g.json", slug=name, nodes=0.9, edges=0.9)
    found = client.get(f"/graphs/{name}/json?nodes=0.9&edges=0.9")
    assert found.headers["content-type"] == "application/json"
    identical(found.text, tmp_path / "g.json")


def test_verify_is_the_function_and_marks_the_page(
    client: TestClient, model: gossamer.Model, saes: Any, wanted: Graph, tmp_path: Path
) -> None:
    one = asked(client, "POST", "/attribute", answers.Attribution, {"prompt": IDS})["graphs"][0]
    name = one["id"]
    assert client.get(f"/graphs/{name}/report").json() is None and one["verified"] is None
    body = {"graph": name, "n_edges": 12, "nodes": 3, "choose": "sampled", "seed": 4}
    got = asked(client, "POST", "/verify", answers.Report, body)
    report = verify(wanted, model, saes, 12, nodes=3, choose="sampled", seed=4)
    assert got["edges"] == [edge._asdict() for edge in report.edges]
    assert got["nodes"] == [node._asdict() for node in report.nodes]
    assert got["modes"] == report.shares().modes and got["sentence"] == report.sentence
    assert asked(client, "GET", f"/graphs/{name}/report", answers.Report) == got
    assert client.get(f"/graphs/{name}").json()["verified"] == report.sentence
    wanted.to_html(tmp_path / "page.html", verified=report.classes)
    identical(client.get(f"/graphs/{name}/page").text, tmp_path / "page.html")
    pair = [report.edges[0].source, report.edges[0].target]
    body = {"graph": name, "edges": [pair], "small": 0.2, "error": "frozen"}
    got = asked(client, "POST", "/verify", answers.Report, body)
    again = verify(wanted, model, saes, edges=[(pair[0], pair[1])], small=0.2, error="frozen")
    assert got["edges"] == [edge._asdict() for edge in again.edges]
    # The last report counts, and goes with its graph.
    assert client.get(f"/graphs/{name}/report").json()["edges"] == got["edges"]


def test_two_prompts_side_by_side(
    client: TestClient, model: gossamer.Model, saes: Any, tmp_path: Path
) -> None:
    body = {"prompt": IDS, "against": OTHER, "align": "start"}
    answer = asked(client, "POST", "/attribute", answers.Attribution, body)
    target = contrast(model, IDS, OTHER)
    graphs: Any = attribute(model, saes, [IDS, OTHER], target)
    for one, graph in zip(answer["graphs"], graphs, strict=True):
        same(saved(client, one["id"], tmp_path), graph)
    difference = compare_graphs(graphs[0], graphs[1], "start")
    found = answer["comparison"]
    assert found["counts"] == difference.counts() and not found["pruned"]
    assert found["top"] == [edge._asdict() for edge in difference.top(20)]
    difference.to_html(tmp_path / "page.html")
    page = client.get(found["page"])
    identical(page.text, tmp_path / "page.html")
    names = {"first": answer["graphs"][0]["id"], "second": answer["graphs"][1]["id"]}
    body = {**names, "align": [[0, 1], [2, 2]], "tolerance": 0.4, "top": 5, "side": "changed"}
    got = asked(client, "POST", "/compare_graphs", answers.GraphComparison, body)
    other = compare_graphs(graphs[0], graphs[1], {0: 1, 2: 2}, tolerance=0.4)
    assert got["counts"] == other.counts()
    assert got["top"] == [edge._asdict() for edge in other.top(5, "changed")]
    other.to_html(tmp_path / "page.html")
    identical(client.get(got["page"]).text, tmp_path / "page.html")


def test_large_graphs_are_pruned_before_they_are_compared(
    client: TestClient, name: str, wanted: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "LARGE", 10)
    body = {"first": name, "second": name}
    got = asked(client, "POST", "/compare_graphs", answers.GraphComparison, body)
    pruned = wanted.prune()
    assert got["pruned"] and got["counts"] == compare_graphs(pruned, pruned).counts()


def test_labels_that_were_saved_here(
    model: gossamer.Model, saes: Any, wanted: Graph, tmp_path: Path
) -> None:
    with TestClient(create_app(model, saes, tmp_path), base_url=URL) as client:
        name = client.post("/attribute", json={"prompt": IDS}).json()["graphs"][0]["id"]
        node = next(node for node in wanted.nodes if node.kind == "latent")
        client.put(f"/latents/{node.site}/{node.unit}/label", json={"label": "mine"})
        edge = client.get(f"/graphs/{name}/edges?node={node.id}&direction=out&n=1").json()
        assert edge["edges"][0]["source_label"] == "mine"
        assert "mine" in client.get(f"/graphs/{name}/json?nodes=1&edges=1").text


def test_kept_listed_and_deleted(model: gossamer.Model, saes: Any, tmp_path: Path) -> None:
    """Another server on the workspace has the same graphs, reports and pages."""
    with TestClient(create_app(model, saes, tmp_path), base_url=URL) as client:
        request = {"prompt": [IDS, OTHER]}
        body = {"kind": "attribute", "request": request, "title": "two"}
        job = ended(client, client.post("/jobs", json=body).json()["id"])
        assert (job["state"], job["phase"]) == ("done", "edges, prompt 2 of 2"), job
        made = client.get(f"/results/{job['result']}").json()["answer"]
        answers.Attribution.model_validate(made)
        first, second = (each["id"] for each in made["graphs"])
        assert first == job["id"].replace("j-", "g-") and made["graphs"][1]["title"] == "two"
        checking = {"kind": "verify", "request": {"graph": first, "n_edges": 3}}
        job = ended(client, client.post("/jobs", json=checking).json()["id"])
        report = client.get(f"/results/{job['result']}").json()["answer"]
        answers.Report.model_validate(report)
        page = client.get(f"/graphs/{first}/page").text
        listed = asked(client, "GET", "/graphs", answers.GraphList)["graphs"]
        assert [each["id"] for each in listed] == [second, first]
        assert [each["verified"] for each in listed] == [None, report["sentence"]]
    (tmp_path / "graphs" / "g-00000000000000ff.safetensors").write_bytes(b"half")
    (tmp_path / "rows" / "j-00000000000000ff").mkdir()
    (tmp_path / "graphs" / "mine.safetensors").write_bytes(b"not the server's")
    with TestClient(create_app(model, saes, tmp_path), base_url=URL) as client:
        assert client.get("/graphs").json()["graphs"] == listed
        is_the_page = client.get(f"/graphs/{first}/page").text == page
        assert is_the_page
        assert client.get(f"/graphs/{first}/report").json() == report
        assert client.get(f"/graphs/{second}").json() == made["graphs"][1]
        for name in (first, second):
            assert client.delete(f"/graphs/{name}").json() == {"id": name}
            for part in ("", "/page", "/json", "/file", "/edges", "/report"):
                assert client.get(f"/graphs/{name}{part}").status_code == 404
        assert client.get("/graphs").json() == {"graphs": []}
    left = [
        path.name
        for folder in ("graphs", "reports", "rows")
        for path in (tmp_path / folder).iterdir()
    ]
    assert left == ["mine.safetensors"]


MISTAKES: list[tuple[dict[str, Any], str, str | None]] = [
    ({"target": "nonsense"}, "site", "target"),
    ({"target": {"kind": "logits", "tokens": [99999]}}, "prompt", "target"),
    ({"target": {"kind": "logits", "position": 40}}, "prompt", "target"),
    ({"target": {"kind": "latents", "site": "blocks.0.hook_resid_pre"}}, "site", "target"),
    ({"target": {"kind": "logit_difference", "token": [1, 2], "distractor": 3}}, "value", None),
    ({"target": {"kind": "kl"}}, "validation", "target"),
    ({"prompt": []}, "prompt", "prompt"),
    ({"prompt": [3] * 4000}, "prompt", "prompt"),
    ({"prompt": [IDS, OTHER], "against": IDS}, "value", "against"),
    ({"against": []}, "prompt", "against"),
    ({"against": OTHER, "align": [[0, 0], [0, 1]]}, "prompt", "align"),
    ({"saes": ["x"]}, "site", "saes"),
    ({"hold": ["x"]}, "value", "hold"),
    ({"effects": "gradient", "hold": ["norms"]}, "value", None),
    ({"effects": "zap"}, "validation", "effects"),
    ({"max_nodes": 3}, "value", None),
    ({"max_nodes": 0}, "validation", "max_nodes"),
    ({"steps": 0}, "validation", "steps"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "field"), MISTAKES, ids=str)
def test_a_mistake_is_one_sentence(
    client: TestClient, change: dict[str, Any], code: str, field: str | None
) -> None:
    response = client.post("/attribute", json={"prompt": IDS, **change})
    body = response.json()
    answers.Error.model_validate(body)
    assert (response.status_code, body["code"], body["field"]) == (422, code, field), body
    assert "Traceback" not in body["message"] and "\n" not in body["message"].strip()


def test_what_a_graph_does_not_have(client: TestClient, name: str, model: Any) -> None:
    bad = [
        f"/graphs/{name}/{part}"
        for part in (
            *("edges?node=zap", "edges?n=-1", "edges?direction=up", "neighbourhood"),
            *("neighbourhood?nodes=zap", "neighbourhood?nodes=zap&hops=-1", "page?pinned=zap"),
            *("page?max_nodes=-1", "json?nodes=0", f"difference/{name}/page?align=zap"),
            *(f"difference/{name}/page?tolerance=2", f"difference/{name}/page?align=99:0"),
        )
    ]
    for path in bad:
        response = client.get(path)
        assert response.status_code == 422, path
        answers.Error.model_validate(response.json())
    for request in ({"edges": [["a", "b"]]}, {"nodes": ["a"]}, {"small": 0}, {"n_edges": -1}):
        assert client.post("/verify", json={"graph": name, **request}).status_code == 422
    none = "g-0123456789abcdef"
    assert client.post("/verify", json={"graph": none}).status_code == 404
    both = {"first": name, "second": none}
    assert client.post("/compare_graphs", json=both).status_code == 404
    for other in (none, "..%2f..%2fetc%2fpasswd", "j-0123456789abcdef", "x" * 60):
        assert client.get(f"/graphs/{other}").status_code == 404


def test_more_rows_than_the_server_allows(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbs, "MAX_ROWS", 5)
    body = client.post("/attribute", json={"prompt": IDS}).json()
    assert body["field"] == "max_nodes" and "5 are allowed" in body["message"]


def test_a_graph_of_other_saes(model: gossamer.Model, saes: Any, tmp_path: Path) -> None:
    with TestClient(create_app(model, saes, tmp_path), base_url=URL) as client:
        name = client.post("/attribute", json={"prompt": IDS}).json()["graphs"][0]["id"]
    with TestClient(create_app(model, None, tmp_path), base_url=URL) as client:
        response = client.post("/verify", json={"graph": name})
        assert (response.status_code, response.json()["code"]) == (422, "site")
        with pytest.raises(GossamerError) as found:
            verify(Graph.load(tmp_path / "graphs" / f"{name}.safetensors"), model, None)
        assert response.json()["message"] == str(found.value)
