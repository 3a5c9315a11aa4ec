"""Graph JSON: the published fields are there, ids are unique, reading gives back what was written.

Required fields and types are those of Neuronpedia's published schema, listed here anew; how a page
groups nodes and cuts texts is restated from circuit-tracer's. Files of circuit-tracer itself are
read in test_interop_circuit_tracer.py.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gossamer
from gossamer.attribution.attribute import attribute
from gossamer.errors import FormatError
from gossamer.graph.graph import Graph
from gossamer.interop.graph_json import read_graph_json, write_graph_json
from gossamer.interop.graph_json.layout import LARGEST_PAIR, pair, unpair
from gossamer.interop.graphs import load_graph
from tests.graph_mixes import IDS, MIXES, at
from tests.tiny_models import tiny_model

TEXT, INTEGER, NUMBER = {"string"}, {"integer"}, {"number"}
PUBLISHED: dict[str, dict[str, set[str]]] = {
    "metadata": {"slug": TEXT, "scan": TEXT, "prompt_tokens": {"array"}, "prompt": TEXT},
    "nodes": {
        "node_id": TEXT,
        "feature": {"integer", "null"},
        "layer": {"string", "integer"},
        "ctx_idx": INTEGER,
        "feature_type": TEXT,
        "jsNodeId": TEXT,
        "clerp": TEXT,
    },
    "links": {"source": TEXT, "target": TEXT, "weight": NUMBER},
}
"""Field to the JSON types that it may have; all of these are required."""

OPTIONAL = {
    "influence": {"number", "null"},
    "activation": {"number", "null"},
    "node_threshold": NUMBER,
    "pinnedIds": {"array"},
    "supernodes": {"array"},
    "linkType": TEXT,
    "clickedId": TEXT,
    "sg_pos": TEXT,
}
KNOWN_TYPES = {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}


def type_of(value: object) -> set[str]:
    """The JSON types of a value."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {str: "string", float: "number", list: "array", dict: "object", type(None): "null"}
    return {names[type(value)]}


def check(contents: dict[str, Any]) -> None:
    """Every published field, of the published type; nothing that JSON does not have."""
    assert set(contents) >= {"metadata", "qParams", "nodes", "links"}
    parts = {"metadata": [contents["metadata"]], "nodes": contents["nodes"]}
    for name, items in (parts | {"links": contents["links"]}).items():
        for item in items:
            for field, types in PUBLISHED[name].items():
                assert type_of(item[field]) & types, (name, field, item)
            for field in item.keys() & OPTIONAL.keys():
                assert type_of(item[field]) & OPTIONAL[field], (name, field, item)
    for field, value in contents["qParams"].items():
        assert type_of(value) & OPTIONAL[field]
    ids = [node["node_id"] for node in contents["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {link[end] for link in contents["links"] for end in ("source", "target")} <= set(ids)
    # A page keeps what it knows of a node under layer, feature and position, by type.
    groups = Counter(
        (node["layer"], node["feature"], node["ctx_idx"], "error" in node["feature_type"])
        for node in contents["nodes"]
    )
    assert max(groups.values()) == 1
    assert {node["feature_type"] for node in contents["nodes"]} <= KNOWN_TYPES
    for node in contents["nodes"]:
        assert abs(node["feature"]) <= LARGEST_PAIR
        if node["feature_type"] == "logit":
            probability = float(node["clerp"].split("(p=")[1].split(")")[0])
            assert probability == pytest.approx(node["token_prob"], abs=6e-4)
            assert node["clerp"].count('"') == 2


def strict(path: Path) -> dict[str, Any]:
    """The file's JSON; NaN and Infinity are none."""
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def same(one: Graph, other: Graph) -> None:
    """Equal in every number and name."""
    assert one.nodes.ids == other.nodes.ids and one.nodes.labels == other.nodes.labels
    for column in ("kinds", "units", "positions", "distractors"):
        assert (getattr(one.nodes, column) == getattr(other.nodes, column)).all()
    for column in ("values", "weights", "reads", "constants", "residuals"):
        a, b = getattr(one.nodes, column), getattr(other.nodes, column)
        assert np.array_equal(a, b, equal_nan=True), column
    for target in range(len(one.nodes)):
        for a, b in zip(one.rows.row(target), other.rows.row(target), strict=True):
            assert np.array_equal(a, b)
    assert (one.tokens, one.token_ids) == (other.tokens, other.token_ids)


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Two dictionaries in one layer, one layer without, a skip transcoder."""
    model = tiny_model("gpt2")
    ways = ("0.hook_resid_pre", "0.mlp.hook_in>0.hook_mlp_out", "2.mlp.hook_in>2.hook_mlp_out+")
    return attribute(model, at(model, *ways), IDS)


@pytest.fixture
def changed(graph: Graph, tmp_path: Path):
    """A function that writes the graph, changes the file's contents, and gives its path."""

    def make(change: Callable[[dict[str, Any]], Any]) -> Path:
        path = tmp_path / "changed.json"
        write_graph_json(graph, path)
        contents = json.loads(path.read_text())
        change(contents)
        path.write_text(json.dumps(contents))
        return path

    return make


@pytest.mark.parametrize("mix", MIXES)
def test_any_mix_of_dictionaries_is_written_with_every_field_and_read_back(
    mix: str, tmp_path: Path
) -> None:
    model = tiny_model("gpt2")
    whole = attribute(model, MIXES[mix](model), IDS)
    write_graph_json(whole, tmp_path / "whole.json", nodes=None)
    check(strict(tmp_path / "whole.json"))
    same(read_graph_json(tmp_path / "whole.json"), whole)
    pruned = whole.prune(0.9, 0.9)
    write_graph_json(pruned, tmp_path / "pruned.json")
    check(strict(tmp_path / "pruned.json"))
    read = load_graph(tmp_path / "pruned.json")
    same(read, pruned)
    assert read.pruned is not None and pruned.pruned is not None
    for a, b in zip(read.pruned, pruned.pruned, strict=True):
        assert np.array_equal(a, b)
    assert read.about["hold"] == list(pruned.about["hold"])


def test_a_graph_is_pruned_as_asked_and_says_so(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "my graph.json"
    write_graph_json(graph, path, nodes=0.7, edges=0.9, scan="gpt2-small")
    contents, expected = strict(path), graph.prune(0.7, 0.9)
    metadata = contents["metadata"]
    assert (metadata["slug"], metadata["scan"]) == ("my-graph", "gpt2-small")
    assert metadata["node_threshold"] == 0.7 and metadata["schema_version"] == 1
    assert metadata["pruning_settings"] == {"node_threshold": 0.7, "edge_threshold": 0.9}
    assert len(contents["nodes"]) == len(expected.nodes) < len(graph.nodes)
    assert len(contents["links"]) == len(expected.edges) < len(graph.edges)


def test_influence_is_the_share_down_to_each_node_of_the_whole_graph(
    graph: Graph, tmp_path: Path
) -> None:
    write_graph_json(graph, tmp_path / "g.json")
    influence = dict(zip(graph.nodes.ids, graph.influence(), strict=True))
    for node in strict(tmp_path / "g.json")["nodes"]:
        if node["feature_type"] == "logit":
            assert node["influence"] is None
            continue
        own = influence[node["gossamer"]["id"]]
        larger = sum(value for value in influence.values() if value > own)
        share = (larger + own) / sum(influence.values())
        assert node["influence"] == pytest.approx(share, abs=1e-12)


def test_an_error_is_not_called_like_a_latent_of_the_first_layer(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    saes = at(model, *(f"{i}.mlp.hook_in>{i}.hook_mlp_out" for i in range(3)), shift=1)
    whole = attribute(model, saes, IDS)
    write_graph_json(whole, tmp_path / "g.json", nodes=None)
    nodes = {node["node_id"]: node for node in strict(tmp_path / "g.json")["nodes"]}
    position = len(IDS) - 1
    assert nodes[f"2_-1_{position}"]["feature_type"] == "mlp reconstruction error"
    for node in nodes.values():
        if node["feature_type"] == "cross layer transcoder":
            layer, latent, at_position = map(int, node["node_id"].split("_"))
            assert unpair(node["feature"]) == (layer, latent) and node["layer"] == str(layer)
            assert at_position == node["ctx_idx"]


def test_a_second_dictionary_of_a_layer_has_pairs_of_a_layer_that_is_not_there(
    graph: Graph, tmp_path: Path
) -> None:
    write_graph_json(graph, tmp_path / "g.json", nodes=None)
    layers: dict[str, set[int]] = {}
    for node in strict(tmp_path / "g.json")["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            site = node["gossamer"]["id"].split("/")[0]
            layers.setdefault(site, set()).add(unpair(node["feature"])[0])
    assert layers["blocks.0.hook_mlp_out"] == {0} and layers["blocks.2.hook_mlp_out"] == {2}
    (other,) = layers["blocks.0.hook_resid_pre"]
    assert other > 3


@pytest.mark.parametrize("layer", [0, 1, 25, 80])
def test_pairs_are_exact_up_to_what_a_page_keeps(layer: int) -> None:
    for latent in (0, 1, layer, 24_575, 2**20 + 1, 134_000_000):
        number = pair(layer, latent)
        assert unpair(number) == (layer, latent)
        assert int(float(number)) == number
    assert len({pair(a, b) for a in range(40) for b in range(40)}) == 1600
    with pytest.raises(FormatError, match=r"at most 2\^53; latents up to about 1342"):
        pair(layer, 134_300_000)


def test_pins_and_supernodes_stay_by_the_graphs_own_ids(graph: Graph, tmp_path: Path) -> None:
    pruned = graph.prune()
    one, two, three = pruned.nodes.ids[-3:]
    params = {
        "pinnedIds": [one, "not there"],
        "supernodes": [["group", two, three]],
        "clickedId": one,
        "linkType": "input",
        "sg_pos": "1 2",
        "densityThreshold": 0.5,
    }
    about = {**pruned.about, "qParams": params}
    write_graph_json(replace(pruned, about=about), tmp_path / "g.json")
    contents = strict(tmp_path / "g.json")
    ids = {node["gossamer"]["id"]: node["node_id"] for node in contents["nodes"]}
    assert contents["qParams"]["pinnedIds"] == [ids[one], "not there"]
    assert contents["qParams"]["supernodes"] == [["group", ids[two], ids[three]]]
    read = read_graph_json(tmp_path / "g.json")
    assert read.about["qParams"] == params
    write_graph_json(read, tmp_path / "again.json")
    again = strict(tmp_path / "again.json")
    assert again["qParams"] == contents["qParams"]
    assert again["nodes"] == contents["nodes"]
    lines = [sorted(map(json.dumps, links)) for links in (again["links"], contents["links"])]
    assert lines[0] == lines[1]


def test_differences_and_latents_are_targets_too(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    saes = at(model, *(f"{i}.mlp.hook_in>{i}.hook_mlp_out" for i in range(3)))
    difference = attribute(model, saes, IDS, target=gossamer.LogitDifference(3, 5))
    latents = difference.nodes.of_kind("latent") & (difference.nodes.positions == 4)
    name = difference.nodes.id_of(int(np.flatnonzero(latents)[-1]))
    for number, made in enumerate((difference, attribute(model, saes, IDS, target=name))):
        path = tmp_path / f"{number}.json"
        write_graph_json(made, path, nodes=None)
        check(strict(path))
        same(read_graph_json(path), made)


def test_texts_that_a_page_would_cut_are_mended(graph: Graph, tmp_path: Path) -> None:
    labels = ['"a" (p=9)' if kind == 6 else "</script>" for kind in graph.nodes.kinds]
    nasty = replace(graph, nodes=replace(graph.nodes, labels=tuple(labels)))
    write_graph_json(nasty, tmp_path / "g.json", nodes=None)
    check(strict(tmp_path / "g.json"))
    same(read_graph_json(tmp_path / "g.json"), nasty)


@pytest.mark.parametrize("field", ["metadata", "qParams", "nodes", "links"])
def test_a_missing_part_is_named(field: str, changed) -> None:
    with pytest.raises(FormatError, match=f"lacks {field};"):
        read_graph_json(changed(lambda contents: contents.pop(field)))


@pytest.mark.parametrize(
    ("part", "field", "named"),
    [
        ("metadata", "scan", "scan in its metadata"),
        *(("nodes", field, f"{field} in node 0") for field in PUBLISHED["nodes"]),
        *(("links", field, f"{field} in link 0") for field in PUBLISHED["links"]),
    ],
)
def test_a_missing_field_is_named(part: str, field: str, named: str, changed) -> None:
    def change(contents: dict[str, Any]) -> None:
        (contents[part] if part == "metadata" else contents[part][0]).pop(field)

    with pytest.raises(FormatError, match=f"lacks {named}"):
        read_graph_json(changed(change))


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c["nodes"].append(c["nodes"][0]), "two nodes"),
    (lambda c: c["links"].append(c["links"][0]), "two links"),
    (lambda c: c["links"][0].update(weight="3"), "no number"),
    (lambda c: c["links"][0].update(weight=True), "no number"),
    (lambda c: c["links"][0].update(weight=float("nan")), "no JSON"),
    (lambda c: c["links"][0].update(c["links"][0], source=c["links"][0]["target"]), "backwards"),
    (lambda c: c["nodes"][0].update(ctx_idx=99), "ctx_idx 99 of 5"),
    (lambda c: c["nodes"][0].update(ctx_idx="0"), "ctx_idx '0'"),
    (lambda c: c["nodes"][0].update(gossamer={"id": 3}), "damaged gossamer part"),
    (lambda c: c["metadata"].update(prompt_tokens=3), "prompt_tokens"),
    (lambda c: _foreign(c["nodes"][0], feature_type="magic"), "type 'magic'"),
    (lambda c: _foreign(c["nodes"][0], node_id="x"), "does not say which token"),
]


def _foreign(node: dict[str, Any], **fields: Any) -> None:
    node.pop("gossamer")
    node.update(fields)


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_what_no_graph_has_is_refused(change, words: str, changed) -> None:
    with pytest.raises(FormatError, match=words):
        read_graph_json(changed(change))


def test_damaged_files_are_refused(changed, tmp_path: Path) -> None:
    whole = changed(lambda contents: None).read_bytes()
    path = tmp_path / "cut.json"
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(FormatError, match=r"truncated|no graph"):
            load_graph(path)
    for text, words in (("[]", "no graph"), ("{}", "metadata"), ("\ufeff {}", "metadata")):
        path.write_text(text)
        with pytest.raises(FormatError, match=words):
            load_graph(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(FormatError, match="no JSON"):
        load_graph(path)
    with pytest.raises(FormatError, match="no file"):
        read_graph_json(tmp_path / "nowhere.json")


def test_what_cannot_be_written_leaves_no_file(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    values = graph.rows.values.copy()
    values[3] = np.inf
    broken = replace(graph, rows=replace(graph.rows, values=values))
    for made, options, words in (
        (broken, {"nodes": None}, "finite"),
        (replace(graph, about={"x": float("nan")}), {}, "JSON cannot"),
        (replace(graph, about={"x": torch.zeros(1)}), {}, "JSON cannot"),
        (graph, {"slug": "a/b"}, "slug"),
    ):
        with pytest.raises(FormatError, match=words):
            write_graph_json(made, path, **options)
    assert not list(tmp_path.iterdir())


def test_a_graph_too_large_for_a_page_is_refused(graph: Graph, tmp_path: Path) -> None:
    n = 20_001
    columns = {
        name: np.resize(getattr(graph.nodes, name), n)
        for name in "kinds site_of units positions values weights reads constants residuals".split()
    }
    columns |= {"distractors": np.full(n, -1)}
    nodes = replace(graph.nodes, **columns, labels=("",) * n)
    rows = replace(graph.rows, starts=np.zeros(n, np.int64), counts=np.zeros(n, np.int64))
    with pytest.raises(FormatError, match=r"has 20001 nodes .* pruned further"):
        write_graph_json(replace(graph, nodes=nodes, rows=rows), tmp_path / "g.json", nodes=None)


def test_native_files_are_loaded_by_what_is_in_them(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "anything"
    graph.save(path)
    same(load_graph(path), graph)
