"""circuit-tracer's graphs: read as they are, and equal to the graphs that this package computes.

The fixtures are graphs that circuit-tracer computed in float64 of a random GPT-2 of three layers
with random transcoders, and of the bundled pico-python with its trained skip transcoders, with what
it says about them: adjacency, influence, masks, scores (`fixtures/circuit_tracer_fixtures.sh` makes
them and lets circuit-tracer read what our writers wrote). Its weights are the Hugging Face model's,
nothing folded or centred.

What can be compared. A row of a latent or logit has the same meaning in both: what each source adds
to its pre-activation, or to its score less the mean score, with patterns and norm scales held, MLPs
cut and the skip of a transcoder kept. The same entries: from every latent and error at positions
from 1 on, and from every token, its word embedding alone. Not comparable: position 0, where
circuit-tracer has no latents and an error of 0 (here both are there, and so is their influence on
later positions); position embeddings, decoder, attention and norm biases, which it has not. So its
rows do not add up to what is read, and influence and pruning are compared on its own adjacency.
"""

import json
import pickle
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2LMHeadModel

import gossamer
from gossamer.attribution.attribute import attribute
from gossamer.errors import FormatError
from gossamer.graph.graph import Graph
from gossamer.interop.circuit_tracer import read_graph_pt, write_graph_pt
from gossamer.interop.graph_json import read_graph_json, write_graph_json
from gossamer.interop.graphs import load_graph
from gossamer.models.model import Model
from gossamer.saes import SAE, JumpReLU, ReLU, TopK
from tests.test_interop_graph_json import check, same, strict

FIXTURES = Path(__file__).parent / "fixtures" / "circuit_tracer"
PICO = Path(gossamer.__file__).parent / "assets" / "pico-python"
IDS, PICO_IDS = [0, 7, 31, 7, 12, 40], [0, 315, 1290, 27]
SELECTIONS = {
    "relu": lambda tensors: ReLU(),
    "jumprelu": lambda tensors: JumpReLU(tensors["activation_function.threshold"]),
    "topk": lambda tensors: TopK(4),
    "topk_negative": lambda tensors: TopK(6, relu=False),
    "skip": lambda tensors: ReLU(),
}


@cache
def expected(case: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / case / "expected.safetensors")


@cache
def model_of(case: str) -> Model:
    place = PICO if case == "pico" else FIXTURES / "model"
    return gossamer.load_model(GPT2LMHeadModel.from_pretrained(place, dtype=torch.float64))


@cache
def transcoders(case: str) -> list[SAE]:
    saes = []
    for layer in range(model_of(case).n_layers):
        site_in, site_out = f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out"
        if case == "pico":
            saes.append(gossamer.load_sae(PICO / "transcoders" / site_out, dtype=torch.float64))
            continue
        tensors = load_file(FIXTURES / case / f"layer_{layer}.safetensors")
        weights = {name: tensors.get(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        chosen = SELECTIONS[case](tensors)
        skip = tensors.get("W_skip")
        sites = {"site_in": site_in, "site_out": site_out}
        saes.append(SAE(**weights, W_skip=skip, selection=chosen, **sites))
    return saes


@cache
def ours(case: str) -> Graph:
    prompt = PICO_IDS if case == "pico" else IDS
    made = attribute(model_of(case), transcoders(case), prompt)
    assert isinstance(made, Graph)
    return made


def their_ids(case: str) -> list[str]:
    """The nodes in circuit-tracer's order, in this package's words."""
    known, prompt = expected(case), PICO_IDS if case == "pico" else IDS
    n_layers = model_of(case).n_layers
    ids = [f"blocks.{layer}.hook_mlp_out/{i}@{p}" for layer, p, i in known["latents"].tolist()]
    for layer in range(n_layers):
        ids += [f"blocks.{layer}.hook_mlp_out/error@{p}" for p in range(len(prompt))]
    ids += [f"hook_embed/{token}@{p}" for p, token in enumerate(prompt)]
    return ids + [f"logits/{token}@{len(prompt) - 1}" for token in known["logits"].tolist()]


def their_matrix(case: str) -> np.ndarray:
    known = expected(case)
    if "adjacency" in known:
        return known["adjacency"].numpy()
    n = len(known["influence"])
    matrix = np.zeros((n, n))
    matrix[tuple(known["entries"].long().T.numpy())] = known["values"].double().numpy()
    return matrix


def dense(graph: Graph, ids: list[str]) -> np.ndarray:
    """The edges between these nodes, in this order."""
    places = np.array([graph.nodes.number(name) for name in ids])
    matrix = np.zeros((len(graph.nodes),) * 2)
    edges = graph.edges.arrays()
    matrix[edges.targets, edges.sources] = edges.weights
    return matrix[places][:, places]


def test_fixtures_are_there_and_small() -> None:
    assert {path.name for path in FIXTURES.iterdir()} >= {*SELECTIONS, "pico", "model"}
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 2_000_000
    assert expected("topk_negative")["activations"].min() < -1


@pytest.mark.parametrize("case", [*SELECTIONS, "pico"])
def test_edges_of_latents_errors_and_tokens_equal_circuit_tracers(case: str) -> None:
    graph, ids, theirs = ours(case), their_ids(case), their_matrix(case)
    found = dense(graph, ids)
    # Its errors at position 0 are 0, and so are the edges from them.
    first = np.array([name.endswith("/error@0") for name in ids])
    assert not theirs[:, first].any() and found[:, first].any()
    found[:, first] = 0
    tolerance = 1e-7 if case == "pico" else 1e-13  # pico's edges are kept in float32
    assert np.abs(found - theirs).max() <= tolerance * np.abs(theirs).max()
    assert (theirs != 0).sum() > 1000
    # Nothing else of ours stands beside them but position 0, positions, biases, remainders.
    others = {node.kind for node in graph.nodes if node.id not in set(ids) and node.position}
    assert others <= {"position", "bias", "remainder"}
    assert graph.residuals().largest < 1e-12


@pytest.mark.parametrize("case", [*SELECTIONS, "pico"])
def test_activations_and_targets_equal_circuit_tracers(case: str) -> None:
    graph, ids, known = ours(case), their_ids(case), expected(case)
    rows = [graph.nodes.number(name) for name in ids]
    n, k = len(known["activations"]), len(known["logits"])
    assert np.allclose(graph.nodes.values[rows[:n]], known["activations"], rtol=1e-12, atol=1e-13)
    weights, probabilities = graph.nodes.weights[rows[-k:]], known["probabilities"]
    assert np.allclose(weights, probabilities, rtol=1e-12, atol=0)
    assert len(graph.nodes.targets) == k


@pytest.mark.parametrize("case", SELECTIONS)
def test_its_files_are_read_as_they_are(case: str) -> None:
    graph = load_graph(FIXTURES / case / "graph.pt")
    ids, known = their_ids(case), expected(case)
    assert set(ids) == set(graph.nodes.ids) and len(ids) == len(graph.nodes)
    assert (dense(graph, ids) == their_matrix(case)).all()
    rows = [graph.nodes.number(name) for name in ids]
    assert (
        graph.nodes.values[rows[: len(known["activations"])]] == known["activations"].numpy()
    ).all()
    assert graph.token_ids == tuple(IDS) and graph.tokens[1] == "#7"
    assert graph.about["scan"] == f"tiny/{case}" and graph.about["n_layers"] == 3
    labels = [graph.nodes.labels[i] for i in graph.nodes.targets]
    assert labels == [f"w{token}" for token in known["logits"].tolist()]


@pytest.mark.parametrize("case", SELECTIONS)
def test_influence_and_pruning_equal_circuit_tracers_on_its_own_adjacency(case: str) -> None:
    graph = read_graph_pt(FIXTURES / case / "graph.pt")
    ids, known = their_ids(case), expected(case)
    rows = np.array([graph.nodes.number(name) for name in ids])
    assert np.abs(graph.influence()[rows] - known["influence"].numpy()).max() < 1e-14
    assert graph.replacement_score() == pytest.approx(float(known["scores"][0]), abs=1e-13)
    assert graph.completeness() == pytest.approx(float(known["scores"][1]), abs=1e-13)
    pruned = graph.prune(0.8, 0.98)
    kept = {name for name, stays in zip(ids, known["node_mask"].tolist(), strict=True) if stays}
    assert set(pruned.nodes.ids) == kept
    edges = {(edge.source, edge.target) for edge in pruned.edges}
    assert edges == {(ids[s], ids[t]) for t, s in known["edges"].tolist()}
    assert pruned.pruned is not None
    places = [ids.index(name) for name in pruned.nodes.ids]
    shares = known["cumulative"].numpy()[places]
    some = ~pruned.nodes.of_kind("logit")  # influence 0: any order among them
    some &= pruned.pruned.influence > 0
    assert np.abs(pruned.pruned.cumulative - shares)[some].max() < 1e-13


@pytest.mark.parametrize("case", ["relu", "topk_negative", "pico"])
def test_its_json_is_read_and_written_with_the_same_links(case: str, tmp_path: Path) -> None:
    source = strict(FIXTURES / case / "graph.json")
    graph = read_graph_json(FIXTURES / case / "graph.json")
    ids, matrix = their_ids(case), their_matrix(case)
    assert len(graph.nodes) == len(source["nodes"]) and set(graph.nodes.ids) <= set(ids)
    assert len(graph.edges) == len(source["links"])
    for edge in graph.edges:
        there = matrix[ids.index(edge.target), ids.index(edge.source)]
        assert edge.weight == pytest.approx(there, rel=1e-6)
    if case != "pico":
        pruned = read_graph_pt(FIXTURES / case / "graph.pt").prune(0.8, 0.98)
        assert set(pruned.nodes.ids) == set(graph.nodes.ids)
    write_graph_json(graph, tmp_path / "g.json", slug="graph")
    again = strict(tmp_path / "g.json")
    check(again)
    old = {node["node_id"]: node for node in source["nodes"]}
    for node in again["nodes"]:
        if "error" in node["feature_type"]:  # theirs are called 0_{layer}_{position}
            layer, _, position = node["node_id"].split("_")
            assert f"0_{layer}_{position}" in old
            continue
        other = old[node["node_id"]]
        fields = ("feature", "layer", "ctx_idx", "feature_type", "activation", "token_prob")
        for field in (*fields, "influence", "is_target_logit", "run_idx", "reverse_ctx_idx"):
            assert node[field] == other[field], (node["node_id"], field)
    for key in source["metadata"]:
        assert again["metadata"][key] == source["metadata"][key]


def test_an_error_called_like_a_latent_is_refused_where_it_matters(tmp_path: Path) -> None:
    contents = strict(FIXTURES / "relu" / "graph.json")
    error = next(n for n in contents["nodes"] if "error" in n["feature_type"])
    latent = next(n for n in contents["nodes"] if n["layer"] == "0" and n["activation"])
    _, layer, position = error["node_id"].split("_")
    twin = {**latent, "node_id": error["node_id"], "ctx_idx": int(position)}
    contents["nodes"].append(twin)
    path = tmp_path / "g.json"
    path.write_text(json.dumps(contents))
    with pytest.raises(FormatError, match="calls a latent and an error"):
        read_graph_json(path)
    contents["links"] = [x for x in contents["links"] if x["source"] != error["node_id"]]
    path.write_text(json.dumps(contents))
    graph = read_graph_json(path)
    assert f"blocks.{layer}.hook_mlp_out/error@{position}" in graph.nodes.ids
    assert f"blocks.0.hook_mlp_out/{layer}@{position}" in graph.nodes.ids
    write_graph_json(graph, tmp_path / "new.json")
    check(strict(tmp_path / "new.json"))


@pytest.mark.parametrize("case", SELECTIONS)
def test_what_is_written_is_read_back(case: str, tmp_path: Path) -> None:
    graph = read_graph_pt(FIXTURES / case / "graph.pt")
    write_graph_pt(graph, tmp_path / "g.pt")
    again = load_graph(tmp_path / "g.pt")
    same(again, graph)
    assert again.about == graph.about
    archive = zipfile.ZipFile(tmp_path / "g.pt")
    (text,) = (archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    assert b"circuit_tracer.attribution.targets\nLogitTarget" in text and b"gossamer" not in text


def test_an_own_graph_is_written_without_what_has_no_place_there(tmp_path: Path) -> None:
    graph = ours("topk")
    write_graph_pt(graph, tmp_path / "g.pt")
    again = load_graph(tmp_path / "g.pt")
    kept = graph.nodes.of_kind("latent", "error", "token", "logit")
    names = [name for name, stays in zip(graph.nodes.ids, kept, strict=True) if stays]
    assert set(again.nodes.ids) == set(names)
    assert (dense(again, names) == dense(graph, names)).all()
    two = [*transcoders("topk"), replace_site(transcoders("topk")[1])]
    wide = attribute(model_of("topk"), two, IDS)
    with pytest.raises(FormatError, match=r"one dictionary for each layer"):
        write_graph_pt(wide, tmp_path / "wide.pt")
    latent = next(name for name in graph.nodes.ids if name.startswith("blocks.2.hook_mlp_out/"))
    aimed = attribute(model_of("topk"), transcoders("topk"), IDS, target=latent)
    with pytest.raises(FormatError, match=r"explain logits at the last position"):
        write_graph_pt(aimed, tmp_path / "aimed.pt")
    assert not (tmp_path / "wide.pt").exists()


def replace_site(sae: SAE) -> SAE:
    """The same weights as an SAE of the residual stream."""
    parts = {**sae.arguments(), "site_in": "blocks.1.hook_resid_pre", "W_skip": None}
    return SAE(**{**parts, "site_out": "blocks.1.hook_resid_pre"})


class Attack:
    """Runs something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__("os").mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "g.pt"
    torch.save({"adjacency_matrix": Attack(ran)}, path)
    with pytest.raises(FormatError, match=r"names posix\.mkdir, which could run code"):
        load_graph(path)
    path.write_bytes(pickle.dumps(Attack(ran)))
    with pytest.raises(FormatError, match=r"run code|truncated or no \.pt"):
        load_graph(path)
    torch.save({"adjacency_matrix": np.zeros(3)}, path)
    with pytest.raises(FormatError, match=r"names numpy\.\S+, which could run code"):
        load_graph(path)
    assert not ran.exists()


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole, path = (FIXTURES / "topk" / "graph.pt").read_bytes(), tmp_path / "g.pt"
    for end in (4, 100, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError, match=r"g\.pt is truncated or no \.pt file"):
            load_graph(path)
    with pytest.raises(FormatError, match="no file"):
        read_graph_pt(tmp_path / "nowhere.pt")


def changed_parts(**changes: object) -> dict[str, object]:
    """The parts of a small graph, some changed; None leaves one out."""
    n_tokens, latents = 2, torch.tensor([[0, 1, 3], [1, 1, 5]])
    parts: dict[str, object] = {
        "input_string": "a b",
        "input_tokens": torch.tensor([1, 2]),
        "adjacency_matrix": torch.zeros(2 + 3 * n_tokens + 1, 9),
        "active_features": latents,
        "activation_values": torch.ones(2),
        "selected_features": torch.tensor([0, 1]),
        "logit_targets": torch.tensor([4]),
        "logit_probabilities": torch.tensor([0.9]),
        "cfg": {"n_layers": 2},
    }
    parts |= changes
    return {name: value for name, value in parts.items() if value is not None}


BACKWARDS = torch.zeros(9, 9)
BACKWARDS[0, 1] = 1.0
BAD: list[tuple[dict[str, object], str]] = [
    *(({name: None}, f"lacks {name};") for name in changed_parts() if name != "cfg"),
    ({"cfg": None}, "lacks cfg"),
    ({"cfg": {}}, "how many layers"),
    (
        {"cfg": {"n_layers": 3}},
        r"adjacency_matrix \(9, 9\); with its other parts it must be \(11, 11\)",
    ),
    ({"input_tokens": torch.tensor(1)}, "input_tokens"),
    ({"activation_values": torch.ones(3)}, "activation_values"),
    ({"active_features": torch.tensor([[0, 1, 3], [2, 1, 5]])}, "outside its"),
    ({"active_features": torch.tensor([[0, -1, 3], [1, 1, 5]])}, "outside its"),
    ({"selected_features": torch.tensor([0, 2])}, "not places"),
    ({"selected_features": torch.tensor([1, 1])}, "not places"),
    ({"logit_targets": [3]}, "logit_targets"),
    ({"adjacency_matrix": torch.zeros(9, 9, dtype=torch.int32)}, "not in floats"),
    ({"adjacency_matrix": torch.ones(1, 1).expand(9, 9)}, "goes backwards"),
    ({"adjacency_matrix": BACKWARDS}, "goes backwards"),
    ({"adjacency_matrix": BACKWARDS.T * torch.inf}, "no finite number"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_what_no_graph_has_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    torch.save(changed_parts(), tmp_path / "good.pt")
    assert len(load_graph(tmp_path / "good.pt").nodes) == 9
    torch.save(changed_parts(**changes), tmp_path / "g.pt")
    with pytest.raises(FormatError, match=words):
        load_graph(tmp_path / "g.pt")


def test_tokens_can_be_given(tmp_path: Path) -> None:
    torch.save(changed_parts(), tmp_path / "g.pt")
    graph = read_graph_pt(tmp_path / "g.pt", tokens=["a", " b"], site="hook_attn_out")
    assert graph.tokens == ("a", " b") and "blocks.1.hook_attn_out/5@1" in graph.nodes.ids
    with pytest.raises(FormatError, match=r"has 2 tokens, got texts of 1"):
        read_graph_pt(tmp_path / "g.pt", tokens=["a"])


def test_a_graph_too_large_for_one_matrix_is_refused(tmp_path: Path) -> None:
    graph = read_graph_pt(FIXTURES / "topk" / "graph.pt")
    long = replace(graph, about={**graph.about, "n_layers": 5000})
    with pytest.raises(FormatError, match=r"makes a matrix of \d+ GiB, .* prune it first"):
        write_graph_pt(long, tmp_path / "g.pt")
