"""The graph view without a browser: its tables, the file, the blob, the state, what is refused.

What the page does is tested in `test_views_graph_browser.py` and `test_views_graph_subgraph.py`.
"""

import base64
import dataclasses
import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from safetensors.numpy import load

from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.views import GraphEdges, GraphView
from gossamer.views.graph_columns import CLASSES, KINDS, SIDES
from gossamer.views.joiner import join
from tests.browser import needs
from tests.hostile import HOSTILE
from tests.hostile_graph import hostile_graph


def exported(view: GraphView, path: Path) -> str:
    return view.to_html(path / "page.html").read_text(encoding="utf-8")


def about(blob: bytes) -> dict:
    """The JSON in a blob."""
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return json.loads(header["__metadata__"]["json"])


@pytest.mark.parametrize("entry", ["graph_page.js", "graph_widget.js"])
def test_the_views_join(entry: str) -> None:
    text = join(entry)
    named = re.findall(r"^const module_(\w+) =", text, re.MULTILINE)
    assert len(named) == len(set(named)) and "graph_scores" in named
    assert text.count("export default") == (entry == "graph_widget.js")


# The file


def test_the_file_allows_its_one_script_and_no_request(tmp_path: Path) -> None:
    text = exported(hostile_graph(), tmp_path)
    script = re.search(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert script and policy
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")
    assert text.count("<script") == 3
    assert not re.search(r"<(img|iframe|link [^>]*href=\"[^d])", text)


def test_the_data_is_a_safetensors_file_with_the_edges_strongest_first(tmp_path: Path) -> None:
    view = hostile_graph(sides=True)
    packed = re.search(r'id="data">([^<]*)<', exported(view, tmp_path))
    assert packed
    blob = gzip.decompress(base64.b64decode(packed[1]))
    assert blob == view.blob()
    arrays = load(blob)
    order = np.argsort(-np.abs(view.edges.weights), kind="stable")
    for name in ("sources", "targets", "weights", "measured"):
        found = arrays[f"edges.{name}"]
        np.testing.assert_array_equal(found, getattr(view.edges, name)[order].astype(found.dtype))
    assert [CLASSES[i] for i in arrays["edges.classes"]] == [view.edges.classes[i] for i in order]
    assert [SIDES[i] for i in arrays["edges.sides"]] == [view.edges.sides[i] for i in order]
    assert [SIDES[i] for i in arrays["sides"]] == list(view.nodes.sides)
    assert [KINDS[i] for i in arrays["kinds"]] == list(view.nodes.kinds)
    np.testing.assert_array_equal(arrays["positions"], view.nodes.positions)
    np.testing.assert_array_equal(arrays["influence"], view.nodes.influence.astype("f4"))
    said = about(blob)
    assert said["ids"] == list(view.nodes.ids) and said["labels"] == list(view.nodes.labels)
    assert said["tokens"] == list(HOSTILE) and said["row_names"] == list(view.row_names)


def test_the_same_view_gives_the_same_file(tmp_path: Path) -> None:
    first = hostile_graph().to_html(tmp_path / "a.html").read_bytes()
    assert hostile_graph().to_html(str(tmp_path / "b.html")).read_bytes() == first


def test_the_static_table_has_the_strongest_edges_escaped() -> None:
    view = hostile_graph()
    text = view.fallback_html()
    assert "<script" not in text and "<img" not in text
    assert text.count("<tr>") == 21
    strongest = int(np.abs(view.edges.weights).argmax())
    first = text.split("<tr>")[2]
    assert view.nodes.ids[view.edges.sources[strongest]] in first
    assert view.nodes.ids[view.edges.targets[strongest]] in first
    assert f"{view.edges.weights[strongest]:+.4g}" in first


def test_the_smallest_set_with_a_share_of_the_influence() -> None:
    view = hostile_graph()
    shares, influence = view.cumulative(), view.nodes.influence
    for share in (0.1, 0.5, 0.9, 0.999):
        kept = shares < share
        assert influence[kept].sum() >= share * influence.sum() - 1e-9
        least = np.flatnonzero(kept)[influence[kept].argmin()]
        assert influence[kept].sum() - influence[least] < share * influence.sum()
        assert influence[kept].min() >= influence[~kept].max()
    assert (shares[influence == 0] == 1).all() and (shares[influence > 0] < 1).all()


def test_without_a_threshold_the_strongest_few_hundred_are_shown() -> None:
    view = hostile_graph()
    sizes = np.abs(view.edges.weights)
    shown = (sizes >= view.first_threshold()).sum()
    assert 400 <= shown <= 420 < len(sizes)
    assert view.state().threshold == view.first_threshold()
    few = dataclasses.replace(view, edges=GraphEdges(
        sources=np.array([0]), targets=np.array([30]), weights=np.array([1e-12])
    ))  # fmt: skip
    assert few.first_threshold() == 0.0
    assert dataclasses.replace(view, threshold=0.5).state().threshold == 0.5


# What is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kinds": ["feature"]}, "'feature' is no kind of a node"),
        ({"sides": ["left"]}, "'left' is no side"),
        ({"values": np.array([np.nan])}, "values of the nodes are not all finite"),
        ({"influence": np.array([-1.0])}, "influence of nodes are from 0 up"),
        ({"links": ["javascript:alert(1)"]}, "begins with https://"),
        ({"ids": ["a", "b"]}, "1|differ|another length"),
    ],
)
def test_nodes_refuse_what_cannot_be_drawn(changes: dict, says: str) -> None:
    nodes = hostile_graph().nodes
    one = {
        name: (column[:1] if len(column) else column)
        for name in nodes.__dataclass_fields__
        for column in [getattr(nodes, name)]
    }
    assert len(type(nodes)(**one)) == 1
    with pytest.raises((GossamerError, TypeCheckError), match=says):
        type(nodes)(**{**one, **changes})


def test_nodes_have_ids_of_their_own() -> None:
    nodes = hostile_graph().nodes
    with pytest.raises(GossamerError, match="twice"):
        dataclasses.replace(nodes, ids=[nodes.ids[0], *nodes.ids[:-1]])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"weights": np.array([1.0, np.inf])}, GossamerError, "not all finite"),
        ({"measured": np.array([1.0, np.inf])}, GossamerError, "not all finite"),
        ({"classes": ["holds"]}, ShapeError, "another length: {'classes': 1}"),
        ({"classes": ["holds", "fine"]}, GossamerError, "'fine' is no class of an edge"),
        ({"targets": np.array([0, 2])}, GossamerError, "not back into its own"),
        ({"sources": np.array([0, 0])}, GossamerError, "one edge at most"),
    ],
)
def test_edges_refuse_what_cannot_be_drawn(changes: dict, error, says: str) -> None:
    good = {
        "sources": np.array([0, 1]),
        "targets": np.array([2, 2]),
        "weights": np.array([1.0, -2.0]),
        "measured": np.array([np.nan, 1.0]),
    }
    assert len(GraphEdges(**good)) == 2
    with pytest.raises(error, match=re.escape(says)):
        GraphEdges(**{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"row_names": ["only one"]}, ShapeError, "rows reach from 0 to 5; with 1 row names"),
        ({"tokens": ["a", "b"]}, ShapeError, "positions reach from 0 to 7; with 2 tokens"),
        ({"pinned": ["nothing/1@0"]}, SiteError, "No node of this graph is 'nothing/1@0'"),
        ({"supernodes": {"g": ["nothing/1@0"]}}, SiteError, "No node of this graph"),
        ({"threshold": -1.0}, GossamerError, "finite number from 0 up"),
        ({"influence": 1.5}, GossamerError, "from 0 to 1"),
    ],
)
def test_a_view_refuses_what_does_not_fit(changes: dict, error, says: str) -> None:
    with pytest.raises(error, match=says):
        hostile_graph(**changes).state()


def test_a_graph_too_large_to_look_at_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("gossamer.views.graph.MAX_EDGES", 100)
    with pytest.raises(GossamerError, match="prune the graph first"):
        hostile_graph()


# The state


def test_the_state_takes_what_the_graph_has_and_nothing_else() -> None:
    view = hostile_graph()
    state, ids = view.state(), view.nodes.ids
    seen = []
    state.observe(lambda change: seen.append(change["new"]), "pinned")
    state.pinned = [ids[3], ids[4]]
    state.supernodes = {"both": [ids[3], ids[4]]}
    state.selected = ids[5]
    state.places = {ids[3]: [4.0, 5.0]}
    assert seen == [[ids[3], ids[4]]]
    for name, wrong, error, says in (
        ("selected", "x", SiteError, "No node of this graph is 'x'"),
        ("pinned", ["x"], SiteError, "No node"),
        ("pinned", [ids[1], ids[1]], GossamerError, "stands twice"),
        ("supernodes", {"a": [ids[1]], "b": [ids[1]]}, GossamerError, "stands twice"),
        ("supernodes", {" ": [ids[1]]}, GossamerError, "has a name"),
        ("supernodes", {"a": []}, GossamerError, "has nodes"),
        ("places", {ids[1]: [1.0]}, GossamerError, "x and y"),
        ("places", {ids[1]: [1.0, float("nan")]}, GossamerError, "x and y"),
        ("threshold", float("nan"), GossamerError, "finite number"),
        ("influence", -0.1, GossamerError, "from 0 to 1"),
    ):
        with pytest.raises(error, match=says):
            setattr(state, name, wrong)
    assert state.pinned == [ids[3], ids[4]]
    assert state.supernodes == {"both": [ids[3], ids[4]]}


def test_a_graph_of_two_prompts_is_coloured_by_prompt_at_first() -> None:
    assert hostile_graph(sides=True).state().colour_by == "side"
    assert hostile_graph().state().colour_by == "sign"


def test_the_state_needs_no_notebook() -> None:
    code = (
        "import sys, gossamer.views.graph_state, gossamer.views.graph\n"
        "print([m for m in ('anywidget', 'ipywidgets', 'IPython', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "anywidget" not in done.stdout and "IPython" not in done.stdout


def test_a_missing_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "gossamer.views.widget", raising=False)
    with pytest.raises(GossamerError, match=re.escape("pip install 'gossamer[notebook]'")):
        hostile_graph().widget()


def test_the_widget_has_the_state_and_the_data() -> None:
    needs("anywidget")
    view = hostile_graph()
    ids = list(view.nodes.ids[:2])
    widget = dataclasses.replace(view, pinned=ids, supernodes={"a": ids}).widget()
    assert widget.pinned == ids and widget.supernodes == {"a": ids}
    synced = set(widget.traits(sync=True))
    assert set(view.state().traits(sync=True)) | {"data", "_esm"} <= synced
    assert not {"node_ids", "fallback"} & synced
    assert widget.data == view.blob()
    assert widget.get_state("_esm")["_esm"] == join("graph_widget.js")
    bundle = widget._repr_mimebundle_()[0]
    assert bundle["text/html"] == view.fallback_html()
    with pytest.raises(SiteError):
        widget.pinned = ["a"]
