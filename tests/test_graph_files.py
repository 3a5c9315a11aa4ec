"""A graph comes back from its file as it was, and no other file comes back as a graph."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gossamer.errors import DiskError, FormatError, GossamerError
from gossamer.graph.graph import Graph
from gossamer.graph.rows import Rows, RowWriter
from tests.plain_graph import random_graph
from tests.small_disk import fill, small_disk


def assert_same(found: Graph, expected: Graph) -> None:
    """Bit by bit, NaN included."""
    for of in ("nodes", "rows"):
        one, other = getattr(found, of), getattr(expected, of)
        for column in fields(other):
            left, right = getattr(one, column.name), getattr(other, column.name)
            assert left.dtype == right.dtype if isinstance(right, np.ndarray) else left == right
            np.testing.assert_array_equal(left, right)
    assert (found.tokens, found.token_ids) == (expected.tokens, expected.token_ids)
    assert found.about == expected.about
    assert (found.pruned is None) == (expected.pruned is None)
    if found.pruned is not None and expected.pruned is not None:
        for left, right in zip(found.pruned, expected.pruned, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_save_then_load_is_the_identity(seed: int, dtype: type, tmp_path: Path) -> None:
    graph, _ = random_graph(seed, dtype=dtype)
    graph = replace(graph, tokens=("\ud83d", *graph.tokens[1:]))  # half of a character
    pruned = graph.prune(0.8, 0.9)
    parts = (graph, pruned, pruned.subgraph(pruned.nodes.ids[::3]), graph.subgraph([]))
    for one in parts:
        path = one.save(tmp_path / "graph.safetensors")
        assert_same(Graph.load(path), one)
        assert set(load_file(path)) >= {"rows.columns", "rows.values", "nodes.kinds"}
    assert list(tmp_path.iterdir()) == [path]


def test_edges_stay_in_the_file_and_a_file_can_be_saved_over_itself(tmp_path: Path) -> None:
    graph, _ = random_graph(0)
    path = graph.save(tmp_path / "graph.safetensors")
    loaded = Graph.load(path)
    assert isinstance(loaded.rows.values, np.memmap)
    assert isinstance(loaded.rows.columns, np.memmap)
    assert loaded.rows.values.flags.aligned and not loaded.rows.values.flags.writeable
    np.testing.assert_array_equal(loaded.influence(), graph.influence())
    loaded.save(path)
    assert_same(loaded, graph)
    assert_same(Graph.load(path), graph)
    path.unlink()
    assert_same(loaded, graph)


def test_rows_of_a_computation_are_saved_in_their_order(tmp_path: Path) -> None:
    graph, matrix = random_graph(1)
    writer = RowWriter(tmp_path, len(matrix), np.dtype(np.float64))
    writer.append([graph.rows.row(t) for t in range(len(matrix) - 1, -1, -1) if matrix[t].any()])
    mapped = replace(graph, rows=writer.rows())
    loaded = Graph.load(mapped.save(tmp_path / "g.safetensors"))
    assert_same(loaded, mapped)
    assert [tuple(edge) for edge in loaded.edges.top(5)] == graph.edges.top(5)


def test_a_file_that_is_not_a_whole_graph_is_refused(tmp_path: Path) -> None:
    path = random_graph(0)[0].save(tmp_path / "graph.safetensors")
    whole = path.read_bytes()
    with pytest.raises(FormatError, match="no file"):
        Graph.load(tmp_path / "other")
    with pytest.raises(FormatError, match="no file"):
        Graph.load(tmp_path)
    for n in (0, 4, 8, 9, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(FormatError, match="cannot be read as a safetensors file"):
            Graph.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FormatError, match="too much"):
        Graph.load(path)
    path.write_bytes(b"not a graph, whatever it is called")
    with pytest.raises(FormatError, match="cannot be read"):
        Graph.load(path)


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for metadata in (None, {"graph": "no json"}, {"graph": "[]"}, {"edges": "{}"}):
        save_file({"W_enc": np.ones((2, 3), np.float32)}, path, metadata)
        with pytest.raises(FormatError, match="holds no graph"):
            Graph.load(path)
    save_file({"W_enc": np.ones((2, 3), np.float16)}, path)
    with pytest.raises(FormatError, match="entry 'W_enc' is none of"):
        Graph.load(path)


Change = Callable[[dict[str, np.ndarray], dict[str, Any]], None]


def changed(path: Path, change: Change) -> Path:
    """The same file after a change of its arrays and of what its header says."""
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    about = json.loads(header["__metadata__"]["graph"])
    arrays = load_file(path)
    change(arrays, about)
    save_file(arrays, path, {"graph": json.dumps(about)})
    return path


def setting(name: str, index: int, value: float) -> Change:
    def change(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        arrays[name][index] = value

    return change


CHANGES: list[tuple[Change, str]] = [
    (lambda arrays, about: about.update(version=2), "has version 2.* update gossamer"),
    (lambda arrays, about: about.update(sites=["logits"]), "site_of are not all from 0 to 0"),
    (lambda arrays, about: about.update(sites=[1, 2, 3]), "sites are no list of str"),
    (lambda arrays, about: about.update(tokens="abc"), "tokens are no list"),
    (lambda arrays, about: about["tokens"].pop(), "as many token ids"),
    (lambda arrays, about: about.update(token_ids=[True] * 8), "token_ids are no list of int"),
    (lambda arrays, about: about.update(about=3), "says about itself"),
    (lambda arrays, about: about.pop("about"), "says about itself"),
    (lambda arrays, about: arrays.__delitem__("nodes.units"), "missing, or too many: nodes.units"),
    (lambda arrays, about: arrays.update(other=np.zeros(1)), "missing, or too many: other"),
    (
        lambda arrays, about: arrays.update(
            {"nodes.kinds": arrays["nodes.kinds"].astype(np.int32)}
        ),
        "nodes.kinds is no single column of I8",
    ),
    (
        lambda arrays, about: arrays.update({"rows.values": arrays["rows.values"][:-1]}),
        "each have a source and a size",
    ),
    (
        lambda arrays, about: arrays.update({"nodes.reads": arrays["nodes.reads"][:-1]}),
        "differ in length",
    ),
    (
        lambda arrays, about: arrays.update({"rows.starts": arrays["rows.starts"][:-1]}),
        "differ in length",
    ),
    (
        lambda arrays, about: arrays.update({"nodes.labels": np.frombuffer(b"{", np.uint8)}),
        "no sound graph",
    ),
    (
        lambda arrays, about: arrays.update({"pruned.sums": np.zeros(3)}),
        "missing, or too many: pruned.cumulative",
    ),
    (setting("nodes.kinds", 0, 7), "kinds are not all from 0 to 6"),
    (setting("nodes.kinds", 0, -1), "kinds are not all from 0"),
    (setting("nodes.positions", 3, -1), "positions are not all"),
    (setting("nodes.units", 3, -2), "units are not all"),
    (setting("rows.counts", -1, -1), "reach beyond"),
    (setting("rows.counts", -1, 1 << 62), "reach beyond"),
    (setting("rows.counts", 0, 1), "overlap"),
    (setting("rows.starts", -1, -1), "reach beyond"),
    (setting("rows.starts", -1, (1 << 63) - 1), "reach beyond"),
    (setting("rows.starts", -1, 0), "overlap"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_a_damaged_graph_is_refused(change: Change, said: str, tmp_path: Path) -> None:
    path = random_graph(0)[0].save(tmp_path / "graph.safetensors")
    with pytest.raises(FormatError, match=said):
        Graph.load(changed(path, change))


@pytest.mark.parametrize(("place", "value"), [(0, 1 << 30), (0, -1), (-1, 1 << 30), (2, 0)])
def test_edges_to_nowhere_are_refused_when_they_are_read(
    place: int, value: int, tmp_path: Path
) -> None:
    path = random_graph(0)[0].save(tmp_path / "graph.safetensors")
    graph = Graph.load(changed(path, setting("rows.columns", place, value)))
    for reading in (graph.influence, graph.prune, graph.residuals, lambda: graph.edges.top(3)):
        with pytest.raises(FormatError, match="from nodes before it"):
            reading()


def headers() -> list[bytes]:
    """Beginnings of files that a careless reader would trip over."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    odd = [
        [],
        {"a": 3},
        {"a": {**entry, "dtype": "F99"}},
        {"a": {**entry, "dtype": ["F32"]}},
        {"a": {**entry, "shape": [-2]}},
        {"a": {**entry, "shape": [True, 2]}},
        {"a": {**entry, "shape": [2.0]}},
        {"a": {**entry, "shape": [1 << 60, 1 << 60]}},
        {"a": {**entry, "shape": [1 << 61] * 100_000}},
        {"a": {**entry, "data_offsets": [0]}},
        {"a": {**entry, "data_offsets": [8, 0]}},
        {"a": {**entry, "data_offsets": [4, 12]}},
        {"a": entry, "b": entry},
        {"a": entry, "__metadata__": [1]},
    ]
    texts = [json.dumps(header).encode() for header in odd]
    texts += [b"[" * 200_000, b'{"a": \xff}', b'{"a": 1' * 3]
    return [len(text).to_bytes(8, "little") + text + bytes(8) for text in texts]


@pytest.mark.parametrize("number", range(len(headers())))
def test_hostile_headers_are_refused(number: int, tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    path.write_bytes(headers()[number])
    with pytest.raises(FormatError):
        Graph.load(path)


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.safetensors"
    path.write_bytes(((1 << 64) - 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match="length of a header"):
        Graph.load(path)


def test_what_cannot_be_saved_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    graph, _ = random_graph(0)
    with pytest.raises(GossamerError, match="not JSON"):
        replace(graph, about={"model": object()}).save(tmp_path / "g")
    with pytest.raises(DiskError, match="cannot be written"):
        graph.save(tmp_path / "nowhere" / "g")
    with pytest.raises(DiskError, match="cannot be written"):
        graph.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    graph, _ = random_graph(0)
    with small_disk(tmp_path / "disk", 64) as disk:
        path = graph.save(disk / "g.safetensors")
        fill(disk, leave=4096)
        with pytest.raises(DiskError, match="the disk is full"):
            graph.save(path)
        assert_same(Graph.load(path), graph)
        assert not (disk / "g.safetensors.partial").exists()


def test_a_graph_whose_parts_do_not_fit_is_refused() -> None:
    graph, _ = random_graph(0)
    with pytest.raises(GossamerError, match="nodes and rows for 2"):
        replace(graph, rows=Rows(*np.zeros((2, 2), np.int64), np.zeros(0, np.int32), np.zeros(0)))
    with pytest.raises(GossamerError, match="0 token ids"):
        replace(graph, token_ids=())
    wide = replace(graph.rows, columns=graph.rows.columns.astype(np.int64))
    with pytest.raises(GossamerError, match="got int64 and float64"):
        replace(graph, rows=wide)
