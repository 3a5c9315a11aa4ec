"""Readings of a graph: edges, neighbours, paths, groups, tables, pictures."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gossamer.errors import GossamerError, SiteError
from gossamer.graph import rows as rows_module
from gossamer.graph.drawing import grid_rows
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import Nodes
from gossamer.graph.rows import from_dense
from tests.plain_graph import normalised, random_graph, table

SEEDS = range(4)


def pairs(graph: Graph, edges: list) -> list[tuple[int, int, float]]:
    numbers = graph.nodes.numbers
    return [(numbers[edge.target], numbers[edge.source], edge.weight) for edge in edges]


def sorted_pairs(matrix: np.ndarray) -> list[tuple[int, int, float]]:
    """Every edge, strongest first, then by target and source."""
    there = [
        (int(t), int(s), float(matrix[t, s])) for t, s in zip(*np.nonzero(matrix), strict=True)
    ]
    return sorted(there, key=lambda one: (-abs(one[2]), *one[:2]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("block", [1, 60, 1 << 20])
def test_edges_are_the_matrix_and_the_strongest_come_first(
    seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "BLOCK", block)
    graph, matrix = random_graph(seed)
    matrix = np.sign(matrix) * np.minimum(np.round(np.abs(matrix)), 3)  # many ties
    graph = replace(graph, rows=from_dense(matrix))
    expected = sorted_pairs(matrix)
    assert len(graph.edges) == len(expected)
    assert sorted(pairs(graph, list(graph.edges))) == sorted(expected)
    for n in (0, 1, 5, 50, len(expected), len(expected) + 5):
        assert pairs(graph, graph.edges.top(n)) == expected[:n]
    between = np.arange(len(matrix)) % 2 == 0
    inside = sorted_pairs(np.where(between[:, None] & between, matrix, 0))
    found = graph.edges.strongest(7, between)
    assert list(zip(found.targets, found.sources, found.weights, strict=True)) == inside[:7]
    with pytest.raises(GossamerError, match="got -1"):
        graph.edges.top(-1)


@pytest.mark.parametrize("seed", SEEDS)
def test_edges_into_and_out_of_a_node(seed: int) -> None:
    graph, matrix = random_graph(seed)
    for node in range(len(matrix)):
        name = graph.nodes.id_of(node)
        row, column = np.zeros_like(matrix), np.zeros_like(matrix)
        row[node], column[:, node] = matrix[node], matrix[:, node]
        assert pairs(graph, graph.edges_into(name)) == sorted_pairs(row)
        assert pairs(graph, graph.edges_out_of(node)) == sorted_pairs(column)
        assert graph.edges_into(node, 2) == graph.edges_into(name)[:2]
        assert graph.edges_out_of(name, 2) == graph.edges_out_of(node)[:2]
    edge = graph.edges_into(-1, 1)[0]
    source, target = (graph.nodes[graph.nodes.numbers[i]] for i in (edge.source, edge.target))
    assert edge.offset == target.position - source.position
    assert (edge.source_label, edge.target_label) == (source.label, target.label)


def test_an_unknown_node_is_refused_with_near_names() -> None:
    graph, _ = random_graph(0)
    with pytest.raises(SiteError, match="blocks.0.hook_mlp_out/30@6"):
        graph.edges_into("blocks.0.hook_mlp_out/30@7")
    with pytest.raises(SiteError, match="row from 0 to 39"):
        graph.edges_into(40)
    with pytest.raises(SiteError, match="No node 'nothing'"):
        graph.subgraph(["nothing"])
    with pytest.raises(GossamerError, match="list of ids"):
        graph.subgraph("logits/39@7")


def test_ids_that_stand_twice_are_refused() -> None:
    graph, matrix = random_graph(0)
    units = graph.nodes.units.copy()
    units[20] = units[21]
    twice = Graph(replace(graph.nodes, units=units), graph.rows, (), ())
    with pytest.raises(GossamerError, match="Two nodes of the graph have the id"):
        twice.edges_into("logits/39@7")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("direction", ["in", "out", "both"])
def test_a_neighbourhood_is_what_so_many_steps_reach(seed: int, direction: str) -> None:
    graph, matrix = random_graph(seed, density=0.05)
    for threshold in (0.0, 1.0):
        step = np.abs(matrix) > threshold
        walk = {"in": step, "out": step.T, "both": step | step.T}[direction]
        for hops in (0, 1, 2, 50):
            reached = np.zeros(len(matrix), bool)
            reached[[25, 30]] = True
            for _ in range(hops):
                reached |= walk[reached].any(0)
            part = graph.neighbourhood(
                [25, graph.nodes.id_of(30)], hops=hops, direction=direction, threshold=threshold
            )
            assert part.nodes.ids == graph.subgraph(np.flatnonzero(reached).tolist()).nodes.ids
            assert part.nodes.ids == graph.nodes.take(np.flatnonzero(reached)).ids
            assert len(part.edges) == np.count_nonzero(matrix[np.ix_(reached, reached)])
    for bad in ({"direction": "up"}, {"hops": -1}):
        with pytest.raises(GossamerError):
            graph.neighbourhood([1], **bad)


def all_paths(share: np.ndarray, source: int, target: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every path, by its share, the largest first."""
    found, growing = [], [(1.0, (target,))]
    while growing:
        size, nodes = growing.pop()
        if nodes[0] == source:
            found.append((size, nodes))
            continue
        for before in range(source, nodes[0]):
            if share[nodes[0], before]:
                growing.append((size * share[nodes[0], before], (before, *nodes)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_paths_are_the_strongest_of_all(seed: int) -> None:
    graph, matrix = random_graph(seed, n=16, density=0.6)
    share, ids = normalised(matrix), graph.nodes.ids
    for source, target in itertools.product((0, 3, 6, 10), (9, 13, 14, 15)):
        if source >= target:
            with pytest.raises(GossamerError, match="does not come before"):
                graph.paths(source, target)
            continue
        every = all_paths(share, source, target)
        for n in (1, 4, 10_000):
            found = graph.paths(ids[source], target, n)
            assert len(found) == min(n, len(every))
            np.testing.assert_allclose(
                [path.share for path in found], [size for size, _ in every[:n]], rtol=1e-12
            )
        assert {path.nodes for path in found} == {tuple(ids[i] for i in p) for _, p in every}
        for path in found:
            steps = itertools.pairwise(graph.nodes.numbers[name] for name in path.nodes)
            assert list(path.weights) == [matrix[after, before] for before, after in steps]
        total = np.linalg.inv(np.eye(len(share)) - share)[target, source]
        assert sum(path.share for path in found) == pytest.approx(total, rel=1e-9, abs=1e-15)
    with pytest.raises(GossamerError, match="got 0"):
        graph.paths(0, 15, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_add_up_their_edges(seed: int) -> None:
    graph, matrix = random_graph(seed)
    members = {"a": [14, 20, 30], "b": [15, graph.nodes.id_of(16)], "leaf": [2]}
    groups = graph.group(members)
    sets = [[14, 20, 30], [15, 16], [2]]
    for t, targets in enumerate(sets):
        outside = np.setdiff1d(np.arange(len(matrix)), targets)
        total = np.abs(matrix[np.ix_(targets, outside)]).sum()
        assert groups.inputs[t] == pytest.approx(total, rel=1e-12)
        for s, sources in enumerate(sets):
            weight = matrix[np.ix_(targets, sources)].sum()
            assert groups.weights[t, s] == pytest.approx(weight, rel=1e-12)
            expected = 0.0 if s == t or not total else weight / total
            assert groups.shares[t, s] == pytest.approx(expected, rel=1e-12)
    assert {(edge.source, edge.target) for edge in groups.edges} == {
        (groups.names[s], groups.names[t])
        for t, s in zip(*np.nonzero(groups.weights), strict=True)
        if s != t
    }
    # One group of everything before a target takes all its input.
    last = len(matrix) - 1
    everything = graph.group({"all": list(range(last)), "target": [last]})
    assert everything.shares[1, 0] == pytest.approx(matrix[last].sum() / np.abs(matrix[last]).sum())
    for bad, said in (({"a": [1], "b": [1]}, "in the groups"), ({"a": []}, "no nodes")):
        with pytest.raises(GossamerError, match=said):
            graph.group(bad)


def test_residuals_are_shares_of_what_comes_in() -> None:
    graph, matrix = random_graph(0)
    inner = matrix.any(1)
    gaps = np.where(inner, np.linspace(-1, 1, len(matrix)), np.nan)
    gaps[20] = 0.0
    graph = replace(graph, nodes=replace(graph.nodes, residuals=gaps))
    expected = np.abs(gaps) / np.where(inner, np.abs(matrix).sum(1), 1)
    found = graph.residuals()
    np.testing.assert_allclose(found.shares, expected, rtol=1e-12)
    assert found.largest == np.nanmax(expected)
    assert found.node == graph.nodes.id_of(int(np.nanargmax(expected)))
    part = graph.prune(0.9, 0.9)  # of which the sizes that were dropped are a part
    places = [graph.nodes.numbers[name] for name in part.nodes.ids]
    np.testing.assert_allclose(part.residuals().shares, expected[places], rtol=1e-9)
    leaves = graph.subgraph([0, 1])
    assert leaves.residuals()[1:] == (0.0, "")


def test_tables_have_every_node_and_edge() -> None:
    graph, matrix = random_graph(0)
    nodes, edges = graph.to_dataframe("nodes"), graph.to_dataframe()
    assert list(nodes["id"]) == list(graph.nodes.ids)
    assert nodes["influence"].tolist() == graph.influence().tolist()
    assert list(nodes["token"])[:6] == ["a"] * 5 + [" b"]
    numbers = graph.nodes.numbers
    rebuilt = np.zeros_like(matrix)
    rebuilt[[numbers[i] for i in edges["target"]], [numbers[i] for i in edges["source"]]] = edges[
        "weight"
    ]
    np.testing.assert_array_equal(rebuilt, matrix)
    part = graph.prune(0.5, 0.5)
    assert part.to_dataframe("nodes")["dropped_size"].tolist() == part.pruned.sizes.tolist()
    assert np.isnan(graph.subgraph([0]).to_dataframe("nodes")["influence"]).all()
    with pytest.raises(GossamerError, match='"nodes" and "edges", got \'rows\''):
        graph.to_dataframe("rows")


def test_networkx_has_the_same_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    networkx = pytest.importorskip("networkx")
    graph, matrix = random_graph(0)
    drawn = graph.to_networkx()
    there = networkx.to_numpy_array(drawn, nodelist=graph.nodes.ids).T
    np.testing.assert_array_equal(there, matrix)
    assert networkx.is_directed_acyclic_graph(drawn)
    assert drawn.nodes[graph.nodes.id_of(20)]["kind"] == "latent"
    monkeypatch.setitem(sys.modules, "networkx", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    for call in (graph.to_networkx, graph.to_dataframe):
        with pytest.raises(GossamerError, match="needs the package"):
            call()


def test_rows_of_the_grid_go_up_with_the_model() -> None:
    sites = ["logits", "blocks.1.mlp", "blocks.1.hook_mlp_out", "hook_embed", "blocks.0.attn"]
    sites += ["blocks.1.hook_resid_pre", "ln_final", "blocks.10.hook_attn_out", "blocks.1.ln2"]
    names, rows = grid_rows(sites)
    assert names == ["embedding", "0 attn", "1 resid", "1 mlp", "10 attn", "final", "logits"]
    assert [names[row] for row in rows] == [
        *("logits", "1 mlp", "1 mlp", "embedding", "0 attn", "1 resid", "final", "10 attn"),
        "1 mlp",
    ]


def test_a_view_has_the_strongest_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    graph, matrix = random_graph(0)
    whole = graph.view()
    assert len(whole.nodes) == 40 and len(whole.edges) == np.count_nonzero(matrix)
    assert "Drawn" not in whole.note and "held: attention and norms" in whole.note
    np.testing.assert_array_equal(whole.nodes.influence, graph.influence())
    np.testing.assert_allclose(whole.nodes.input_totals, np.abs(matrix).sum(1))
    weakest = int(np.argmin(np.where(graph.nodes.of_kind("latent"), graph.influence(), np.inf)))
    excerpts = {"blocks.0.hook_mlp_out": {weakest: ["an example"]}}
    thin = graph.view(
        pinned=[weakest], supernodes={"s": [20, 21]}, excerpts=excerpts, max_nodes=5, max_edges=6
    )
    ids = list(thin.nodes.ids)
    assert "Pruned from 40 nodes" in thin.note and "6 strongest of" in thin.note
    assert graph.nodes.id_of(weakest) in ids and len(thin.edges) == 6
    assert thin.nodes.excerpts[ids.index(graph.nodes.id_of(weakest))] == ["an example"]
    # What was left out still counts in what nodes have in the whole graph.
    places = [graph.nodes.numbers[name] for name in ids]
    np.testing.assert_array_equal(thin.nodes.influence, graph.influence()[places])
    np.testing.assert_allclose(thin.nodes.input_totals, np.abs(matrix[places]).sum(1), rtol=1e-9)
    text = graph.to_html(tmp_path / "g.html", pinned=[weakest]).read_text()
    assert graph.nodes.id_of(weakest) in text
    graph.subgraph([0, 20, 25]).to_html(tmp_path / "part.html")  # there is no target in it
    with pytest.raises(GossamerError, match="0 or more; got -1"):
        graph.view(max_nodes=-1)


def test_a_difference_has_an_id_of_its_own() -> None:
    graph, matrix = random_graph(0)
    others = graph.nodes.distractors.copy()
    others[-1] = 7
    nodes: Nodes = replace(
        table(graph.nodes.kinds, graph.nodes.weights, matrix), distractors=others
    )
    assert nodes.id_of(39) == "logits/39-7@7" and nodes[39].unit == "39-7"
    assert nodes[-1].kind == "logit" and len(nodes[10:12]) == 2
