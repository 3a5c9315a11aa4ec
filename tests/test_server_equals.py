"""Every verb over HTTP gives what the Python call gives, and what /openapi.json says it gives."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import gossamer
from gossamer.edits import Ablate, Detach, Patch, Scale, Set, Steer
from gossamer.errors import GossamerError
from gossamer.server import answers
from gossamer.server.app import create_app
from gossamer.server.config import ServerConfig
from gossamer.server.values import to_wire
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

IDS = [3, 1, 4, 1, 5, 9, 2]
OTHER = [2, 7, 1, 8]
HEAD = "blocks.2.attn.hook_z/1@5<-2"
SITES = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")


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
def client(
    model: gossamer.Model, saes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    app = create_app(model, saes, tmp_path_factory.mktemp("w"), ServerConfig(keep=64))
    with TestClient(app, base_url="http://127.0.0.1:8410") as found:
        yield found


def asked(client: TestClient, path: str, body: Any, shape: type, status: int = 200) -> Any:
    """The answer, which has the documented shape."""
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    shape.model_validate(response.json())  # pyright: ignore[reportAttributeAccessIssue]
    return response.json()


def close(got: Any, wanted: Any, path: str = "") -> None:
    """Equal, numbers up to rounding; costs and ids are not compared."""
    if isinstance(wanted, dict):
        left_out = {"seconds", "peak_bytes", "id"}
        assert set(got) - left_out == set(wanted) - left_out, path
        for key in set(wanted) - left_out:
            close(got[key], wanted[key], f"{path}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(got) == len(wanted), path
        for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
            close(a, b, f"{path}.{i}")
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-9, abs=1e-12), path
    elif not path.endswith("sentence"):
        assert got == wanted, path


def numbers(values: Any) -> torch.Tensor:
    """Nested lists as a tensor."""
    return torch.tensor(values, dtype=torch.float64)


def node(model: gossamer.Model, saes: Any, site: str, position: int = 3) -> str:
    """An active latent."""
    latents = gossamer.run(model, IDS, saes).latents[site][0, position]
    return f"{site}/{int(latents.abs().argmax())}@{position}"


DIRECTIONS = [
    None,
    7,
    [7, 9],
    gossamer.Logits([7, 9]),
    gossamer.Logits(top=3, position=2),
    gossamer.Logits(mass=0.3),
    gossamer.LogitDifference(7, [9, 11]),
    gossamer.LogitMinusMean([7]),
    gossamer.Probability([7, 9]),
    gossamer.LogProbability(7, position=4),
    gossamer.NodeValue("blocks.2.mlp.hook_post/12@4"),
    gossamer.NodeValue("blocks.2.mlp.hook_post/12@4", "post"),
    gossamer.ResidualDirection("blocks.1.hook_resid_post", torch.arange(16.0).double() - 3),
    gossamer.Through(HEAD, "q"),
    gossamer.Through(HEAD, "v", gossamer.LogitDifference(7, 9)),
]


@pytest.mark.parametrize("target", DIRECTIONS, ids=lambda t: type(t).__name__)
def test_analyze_of_every_direction(
    client: TestClient, model: gossamer.Model, saes: Any, target: Any
) -> None:
    body = {"prompt": IDS, "target": to_wire(target), "choice": {"top": 5}}
    try:
        wanted = gossamer.analyze(model, IDS, target, saes, top=5).to_dict()
    except GossamerError as mistake:  # the same sentence then
        response = client.post("/analyze", json=body)
        assert response.status_code == 422 and response.json()["message"] == str(mistake)
        return
    close(asked(client, "/analyze", body, answers.Analysis), {**wanted, "id": None})


RESID = SITES[0]
EDITS = [
    Ablate("blocks.1.mlp.hook_post/3@2"),
    Ablate("blocks.1.attn.hook_z/1@4"),
    Ablate("blocks.1.attn.hook_z/1@4<-2"),
    Ablate(RESID, latents=[1, 2, 3], positions=[1, -1]),
    Ablate(RESID, part="error", positions=2),
    Set(RESID, 2.5, latents=4),
    Set("blocks.0.hook_resid_post", torch.linspace(-1, 1, 16).double(), positions=3),
    Scale("blocks.1.mlp.hook_post", 0.5, units=[1, 5]),
    Steer("blocks.1.hook_resid_mid", torch.linspace(0, 1, 16).double()),
    Steer(RESID, -0.75, latents=2),
    Scale("blocks.1.hook_resid_mid", 0.0, along=torch.linspace(1, 2, 16).double()),
    Ablate("blocks.1.attn.hook_pattern", units=0, keys=[1], positions=4),
    Detach("blocks.1.hook_mlp_out"),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: f"{type(e).__name__}-{e.at}")
def test_analyze_with_every_edit(
    client: TestClient, model: gossamer.Model, saes: Any, edit: Any
) -> None:
    body = {"prompt": IDS, "target": 7, "edits": [to_wire(edit)], "choice": {"top": 5}}
    wanted = gossamer.analyze(model, IDS, 7, saes, edit, top=5).to_dict()
    got = asked(client, "/analyze", json.loads(json.dumps(body)), answers.Analysis)
    close(got, {**wanted, "id": None, "clean": {**wanted["clean"], "id": None}})


@pytest.mark.parametrize(
    "where",
    [
        {"at": "blocks.1.hook_resid_pre", "positions": 2},
        {"at": "blocks.1.mlp.hook_post/3@2"},
        {"at": RESID, "latents": [1, 2]},
        {"at": "blocks.1.attn.hook_z", "units": 1, "positions": [5, 6], "from_positions": [0, 3]},
    ],
    ids=str,
)
def test_a_patch_takes_a_clean_run(
    client: TestClient, model: gossamer.Model, saes: Any, where: dict[str, Any]
) -> None:
    site = where["at"].split("/")[0]
    source = gossamer.run(model, OTHER, saes, record=site)
    if "positions" not in where and "/" not in where["at"]:
        where = {**where, "positions": [0, 1]}
    patch = Patch(**where, source=source)
    wanted = gossamer.analyze(model, IDS, 7, saes, patch, top=5).to_dict()
    body = {"prompt": IDS, "target": 7, "choice": {"top": 5}}
    body["edits"] = [{"kind": "patch", "prompt": OTHER, **where}]
    got = asked(client, "/analyze", body, answers.Analysis)
    close(got, {**wanted, "id": None, "clean": {**wanted["clean"], "id": None}})


def test_the_other_arguments(client: TestClient, model: gossamer.Model, saes: Any) -> None:
    choice = gossamer.Choice(top=3, kinds=("pair", "latent"), cut=SITES[1], pairs=True)
    request = gossamer.Request(
        prompt=IDS, target=7, saes={SITES[1]: saes[SITES[1]]}, hold=("attention", "norms"),
        error="dropped", choice=choice,
    )  # fmt: skip
    body = to_wire(request) | {"saes": [SITES[1]]}
    (wanted,) = gossamer.analyze_batch(model, [request])
    close(asked(client, "/analyze", body, answers.Analysis), {**wanted.to_dict(), "id": None})
    body = {"prompt": IDS, "target": 7, "saes": None, "choice": {"top": 30}}
    plain = gossamer.analyze(model, IDS, 7).to_dict()
    close(asked(client, "/analyze", body, answers.Analysis), {**plain, "id": None})


def test_batch_upstream_and_compare(client: TestClient, model: gossamer.Model, saes: Any) -> None:
    edit = Ablate("blocks.1.mlp.hook_post/3@2")
    requests = [
        gossamer.Request(prompt=IDS, target=7, saes=saes, edits=edit),
        gossamer.Request(prompt=OTHER, saes=saes),
        gossamer.Request(prompt=IDS, saes=saes, upstream=gossamer.Through(HEAD, "k")),
    ]
    wanted = gossamer.analyze_batch(model, requests)
    bodies = [to_wire(request) for request in requests]
    bodies[0]["edits"] = [to_wire(edit)]
    bodies[2]["upstream"].pop("kind")
    got = asked(client, "/analyze_batch", {"requests": bodies}, answers.Analyses)["analyses"]
    for one, other in zip(got, wanted, strict=True):
        clean = None if other.clean is None else {**other.clean.to_dict(), "id": None}
        close(one, {**other.to_dict(), "id": None, "clean": clean})
    again = client.get(f"/analyses/{got[0]['id']}").json()
    assert again == got[0]
    both = asked(client, "/compare", {"left": got[0]["id"]}, answers.Comparison)
    close(both["rows"], gossamer.compare(wanted[0]).to_dict()["rows"])
    body = {"left": got[0]["id"], "right": got[1]["id"], "align": "end"}
    both = asked(client, "/compare", body, answers.Comparison)
    close(both["rows"], gossamer.compare(wanted[0], wanted[1], "end").to_dict()["rows"])
    up = asked(client, "/upstream", {"prompt": IDS, "node": HEAD, "through": "k"}, answers.Analysis)
    close(up, {**gossamer.upstream(model, IDS, HEAD, "k", saes=saes).to_dict(), "id": None})
    latent = node(model, saes, SITES[1])
    up = asked(client, "/upstream", {"prompt": IDS, "node": latent}, answers.Analysis)
    close(up, {**gossamer.upstream(model, IDS, latent, saes=saes).to_dict(), "id": None})


@pytest.mark.parametrize(
    ("kind", "metric", "more"),
    [
        ("head", "direct", {}),
        ("pair", "write_norm", {"reduce": ["key"], "site": "blocks.1.attn.hook_z"}),
        ("latent", "total", {}),
        ("latent", "activation", {"reduce": ["pos", "unit"]}),
        ("embedding", "edge_in", {"node": HEAD, "route": "q"}),
    ],
)
def test_scalars(
    client: TestClient, model: gossamer.Model, saes: Any, kind: str, metric: str, more: Any
) -> None:
    analysis = gossamer.analyze(model, IDS, 7, saes)
    wanted = gossamer.scalars(analysis.trace, kind, metric, **more)
    name = asked(client, "/analyze", {"prompt": IDS, "target": 7}, answers.Analysis)["id"]
    body = {"analysis": name, "kind": kind, "metric": metric, **more}
    got = asked(client, "/scalars", body, answers.Scalars)["scalars"]
    assert list(got) == list(wanted)
    for site, one in wanted.items():
        torch.testing.assert_close(numbers(got[site]["values"]), one.values)
        assert got[site]["axes"] == list(one.axes) and got[site]["shape"] == list(one.values.shape)
        for index in ("positions", "units"):
            value = getattr(one, index)
            assert got[site][index] == (None if value is None else value.tolist())


def test_lenses(client: TestClient, model: gossamer.Model, saes: Any) -> None:
    analysis = gossamer.analyze(model, IDS, 7, saes)
    name = asked(client, "/analyze", {"prompt": IDS, "target": 7}, answers.Analysis)["id"]
    got = asked(client, "/logit_lens", {"analysis": name, "top": 2}, answers.LogitLens)["sites"]
    wanted = gossamer.logit_lens(analysis, 2)
    close(got, {site: [row._asdict() for row in rows] for site, rows in wanted.items()})
    got = asked(client, "/lens", {"site": RESID, "unit": 3, "top": 4}, answers.Lens)
    found = gossamer.lens(model, RESID, 3, saes, 4)
    close(got, {side: [score._asdict() for score in s] for side, s in found._asdict().items()})


def test_run(client: TestClient, model: gossamer.Model, saes: Any) -> None:
    edit = Set(RESID, 2.5, latents=4, prompts=1)
    with torch.no_grad():
        trace = gossamer.run(model, [IDS, OTHER], saes, edit, "blocks.2.hook_resid_post")
    body = {"prompts": [IDS, OTHER], "edits": [to_wire(edit)], "position": None, "top_logits": 37}
    body |= {"record": ["blocks.2.hook_resid_post"], "top_latents": 20}
    got = asked(client, "/run", body, answers.Run)["prompts"]
    assert trace.logits is not None
    for row, one in enumerate(got):
        n = trace.lengths[row]
        assert one["token_ids"] == trace.tokens[row, :n].tolist()
        recorded = numbers(one["activations"]["blocks.2.hook_resid_post"])
        torch.testing.assert_close(recorded, trace.activations["blocks.2.hook_resid_post"][row, :n])
        for there in one["predictions"]:
            logits = trace.logits[row, there["position"]]
            for top in there["top"]:
                assert top["logit"] == pytest.approx(float(logits[top["token_id"]]))
        for site, positions in one["latents"].items():
            dense = torch.zeros(n, saes[site].d_sae, dtype=torch.float64)
            for there in positions:
                for latent in there["top"]:
                    dense[there["position"], latent["index"]] = latent["activation"]
            torch.testing.assert_close(dense, trace.latents[site][row, :n])
            norms = [there["error_norm"] for there in positions]
            assert norms == pytest.approx(trace.errors[site][row, :n].norm(dim=-1).tolist())


@pytest.mark.parametrize(
    ("source", "target", "how"),
    [
        (gossamer.Latents(SITES[0]), gossamer.Latents(SITES[1], positions=[3, -1], top=4), {}),
        (gossamer.Tokens(), gossamer.Logits(top=3), {"hold": ["attention", "norms"]}),
        (
            gossamer.Latents(SITES[0], indices=[0, 1, 2, 3]),
            gossamer.LogitDifference(7, 9),
            {"error": "dropped", "direct": True},
        ),
    ],
)
def test_edges(
    client: TestClient, model: gossamer.Model, saes: Any, source: Any, target: Any, how: Any
) -> None:
    wanted = gossamer.edges(model, saes, [IDS, OTHER], source=source, target=target, **how)
    body = {"prompt": [IDS, OTHER], "source": to_wire(source), "target": to_wire(target), **how}
    got = asked(client, "/edges", {**body, "matrix": True, "top": 7}, answers.Edges)["edges"]
    assert isinstance(wanted, list)
    for one, other in zip(got, wanted, strict=True):
        for name in ("gradients", "attributions"):
            value = getattr(other, name)
            torch.testing.assert_close(numbers(one[name]).reshape(value.shape), value)
        assert one["sources"]["ids"] == list(other.sources.ids)
        assert one["targets"]["ids"] == list(other.targets.ids)
        close(one["top"], [edge._asdict() for edge in other.top(7)])
        close(one["density"], other.density()._asdict())
        assert one["blocked"] == other.blocked and one["hold"] == list(other.hold)


def test_generate(client: TestClient, model: gossamer.Model, saes: Any) -> None:
    edit = Set(RESID, 9.0, latents=4)
    how: dict[str, Any] = {"n_tokens": 6, "temperature": 0.8, "seed": 3, "stop": [5]}
    wanted = gossamer.generate(model, IDS, saes, edit, **how)
    assert isinstance(wanted, gossamer.Generation)
    body = {"prompt": IDS, "edits": [to_wire(edit)], **how}
    got = asked(client, "/generate", {**body, "stream": False}, answers.Generations)
    close(got["generations"], [wanted.to_dict()])
    response = client.post("/generate", json=body)
    events = [line.split(": ", 1)[1] for line in response.text.splitlines() if "data: " in line]
    *tokens, last = [json.loads(each) for each in events]
    close(last["generations"], [wanted.to_dict()])
    mine = [token["token_id"] for token in tokens if token["edited"]]
    assert mine == list(wanted.token_ids)


def test_tokens_model_and_latents(tmp_path: Path) -> None:
    model, saes = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    app = create_app(model, saes, tmp_path)
    with TestClient(app, base_url="http://localhost") as client:
        text = "def add(self, other):\n    return self"
        got = asked(client, "/tokenize", {"prompt": text}, answers.TokenList)
        assert got == {"token_ids": model.tokenize(text), "tokens": model.token_strings(text)}
        about = client.get("/model").json()
        answers.ModelInfo.model_validate(about)
        assert about["sites"] == list(model.sites)
        site = "blocks.2.hook_resid_pre"
        latent = client.get(f"/latents/{site}/1740").json()
        answers.Latent.model_validate(latent)
        sae: Any = saes[site]
        assert latent["label"] == sae.labels[1740] and latent["own_label"] is None
        assert latent["decoder_norm"] == pytest.approx(float(sae.W_dec[1740].norm()))
        wanted = gossamer.analyze(model, text, ".", saes, top=5).to_dict()
        got = asked(
            client, "/analyze", {"prompt": text, "target": ".", "choice": {"top": 5}},
            answers.Analysis,
        )  # fmt: skip
        assert [row["label"] for row in got["rows"]] == [row["label"] for row in wanted["rows"]]
        rows = [row for row in got["rows"] if row["kind"] == "latent"]
        site, rest = rows[0]["node"].split("/")
        put = client.put(f"/latents/{site}/{rest.split('@')[0]}/label", json={"label": "mine"})
        assert put.json()["own_label"] == put.json()["label"] == "mine"
        again = client.get(f"/analyses/{got['id']}").json()
        assert {r["label"] for r in again["rows"] if r["node"] == rows[0]["node"]} == {"mine"}
    with TestClient(create_app(model, saes, tmp_path), base_url="http://localhost") as client:
        kept = client.get(f"/latents/{site}/{rest.split('@')[0]}").json()
        assert kept["label"] == "mine"


def test_bodies_are_the_values_both_ways() -> None:
    for value in [*DIRECTIONS[3:], *EDITS]:
        assert to_wire(value)["kind"] and json.dumps(to_wire(value))
