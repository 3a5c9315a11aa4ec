"""Pruning is the rule, step by step; it only ever takes away; and it says what it took."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gossamer.errors import GossamerError
from gossamer.graph import rows as rows_module
from gossamer.graph.graph import Graph
from gossamer.graph.prune import prune_rows
from gossamer.graph.rows import Rows, from_dense
from tests.plain_graph import influence, normalised, pruned, random_graph, sorted_threshold, table

SEEDS = range(6)
SHARES = (1e-6, 0.3, 0.6, 0.8, 0.95, 0.999, 1.0)
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "graph_prune.py"


def dense(graph: Graph, whole: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Which of the whole graph's nodes are there, and the edges in its numbering."""
    places = np.array([whole.nodes.numbers[name] for name in graph.nodes.ids], int)
    there, matrix = np.zeros(len(whole.nodes), bool), np.zeros((len(whole.nodes),) * 2)
    there[places] = True
    sources, targets, weights = graph.edges.arrays()
    matrix[places[targets], places[sources]] = weights
    return there, matrix


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n_targets", [1, 3])
def test_pruning_is_the_rule_step_by_step(
    seed: int, n_targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, matrix = random_graph(seed, n_targets=n_targets)
    for nodes in SHARES[::2]:
        for edges in SHARES[::2]:
            monkeypatch.setattr(rows_module, "BLOCK", 50 if edges < 0.9 else 1 << 20)
            kept, there = pruned(graph, matrix, nodes, edges)
            found, weights = dense(graph.prune(nodes, edges), graph)
            np.testing.assert_array_equal(found, kept)
            np.testing.assert_array_equal(weights, np.where(there, matrix, 0))


@pytest.mark.parametrize("seed", SEEDS)
def test_less_is_kept_of_less(seed: int) -> None:
    graph, _ = random_graph(seed)
    for which in range(2):
        before = None
        for share in SHARES:
            shares = (share, 1.0) if which == 0 else (0.9, share)
            found, weights = dense(graph.prune(*shares), graph)
            if before is not None:
                assert (found >= before[0]).all()
                assert ((weights != 0) >= (before[1] != 0)).all()
            before = found, weights


@pytest.mark.parametrize("seed", SEEDS)
def test_kept_influence_reaches_the_threshold(seed: int) -> None:
    graph, _ = random_graph(seed)
    weights = graph.nodes.weights
    for share in SHARES:
        found = prune_rows(graph.nodes, graph.rows, node_share=share, edge_share=1.0)
        reached = found.influence[found.influence >= found.node_threshold].sum()
        assert reached >= share * found.influence.sum() * (1 - 1e-14)
        always = graph.nodes.of_kind("token", "position") | (weights > 0)
        assert (always | (found.influence >= found.node_threshold))[found.reduced.chosen].all()
        assert set(np.flatnonzero(always)) <= set(found.reduced.chosen.tolist())


def test_one_keeps_all_but_dead_ends() -> None:
    graph, matrix = random_graph(3)
    whole = graph.prune(1.0, 1.0)
    kept, there = pruned(graph, matrix, 1.0, 1.0)
    found, weights = dense(whole, graph)
    np.testing.assert_array_equal(found, kept)
    np.testing.assert_array_equal(weights, np.where(there, matrix, 0))
    again = whole.prune(1.0, 1.0)  # no dead ends are left
    assert again.nodes.ids == whole.nodes.ids and len(again.edges) == len(whole.edges)
    assert again.pruned is not None and not (again.pruned.sizes - whole.pruned.sizes).any()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_latent_that_is_kept_has_an_edge_in_and_an_edge_out(seed: int) -> None:
    graph, _ = random_graph(seed, density=0.1)
    for nodes, edges in ((0.5, 0.5), (0.8, 0.98), (1.0, 0.9), (1.0, 1.0)):
        part = graph.prune(nodes, edges)
        sources, targets, _ = part.edges.arrays()
        inputs, outputs = np.bincount(targets, minlength=1), np.bincount(sources, minlength=1)
        for i, node in enumerate(part.nodes):
            if node.kind == "latent":
                assert inputs[i] > 0
            if node.kind in ("latent", "error", "bias", "remainder"):
                assert outputs[i] > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_dropped_is_told_for_each_node(seed: int) -> None:
    graph, matrix = random_graph(seed)
    part = graph.prune(0.7, 0.9)
    twice = part.prune(0.8, 0.9)
    for reduced in (part, twice, twice.subgraph(twice.nodes.ids[::2])):
        lost = reduced.pruned
        assert lost is not None
        there, weights = dense(reduced, graph)
        gone = (matrix - weights)[there]
        np.testing.assert_allclose(lost.sums, gone.sum(1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(lost.sizes, np.abs(gone).sum(1), rtol=1e-9, atol=1e-9)
        reads = reduced.nodes.constants + weights[there].sum(1) + lost.sums
        reads += reduced.nodes.residuals
        known = ~np.isnan(reads)
        np.testing.assert_allclose(reads[known], reduced.nodes.reads[known], rtol=1e-9)
        np.testing.assert_array_equal(lost.influence, graph.influence()[there])
    order = np.argsort(-part.pruned.influence, kind="stable")
    assert (np.diff(part.pruned.cumulative[order]) >= 0).all()
    assert part.about["pruned"]["n_edges"] == twice.about["pruned"]["n_edges"] == len(graph.edges)


def test_chosen_nodes_stay_though_they_carry_little() -> None:
    graph, _ = random_graph(4)
    weakest = int(np.argmin(np.where(graph.nodes.of_kind("latent"), graph.influence(), np.inf)))
    name = graph.nodes.id_of(weakest)
    assert name not in graph.prune(0.3, 0.9).nodes.numbers
    assert name in graph.prune(0.3, 0.9, keep=[name]).nodes.numbers


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_are_their_definitions(seed: int) -> None:
    graph, matrix = random_graph(seed)
    for one in (graph, graph.prune(0.8, 0.95)):
        there, part = dense(one, graph)
        part, nodes = part[np.ix_(there, there)], one.nodes
        found = influence(part, nodes.weights)
        wrong = nodes.of_kind("error", "remainder")
        tokens = found[nodes.of_kind("token", "position")].sum()
        expected = tokens / (tokens + found[wrong].sum())
        assert one.replacement_score() == pytest.approx(expected, rel=1e-10)
        flow = found + nodes.weights
        right = ((1 - normalised(part)[:, wrong].sum(1)) * flow).sum() / flow.sum()
        assert one.completeness() == pytest.approx(right, rel=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_subgraph_scores_as_if_errors_wrote_what_is_not_in_it(seed: int) -> None:
    graph, matrix = random_graph(seed)
    latents = np.flatnonzero(graph.nodes.of_kind("latent"))
    pins = [graph.nodes.id_of(int(i)) for i in latents[::2]]
    removed = np.setdiff1d(latents, latents[::2])
    errors = np.flatnonzero(graph.nodes.of_kind("error"))
    moved = np.abs(matrix)
    moved[:, errors[0]] += moved[:, removed].sum(1)
    moved[:, removed] = 0
    moved[removed] = 0
    other = Graph(graph.nodes, from_dense(moved), (), ())
    whole, part, expected = graph.scores(), graph.scores(pins), other.scores()
    assert part.replacement == pytest.approx(expected.replacement, rel=1e-10)
    # What is not in the graph has no inputs of its own to be complete.
    assert part.completeness == pytest.approx(expected.completeness, rel=1e-10)
    assert part.replacement <= whole.replacement
    assert graph.scores(graph.nodes.ids) == whole


def test_single_precision_prunes_to_the_same_within_its_rounding() -> None:
    graph, matrix = random_graph(5, n=80, dtype=np.float32)
    part = graph.prune(0.8, 0.9)
    assert part.rows.values.dtype == np.float32
    there, weights = dense(part, graph)
    inside = np.where(there[:, None] & there[None], matrix, 0)
    found = influence(inside, graph.nodes.weights)
    marks = normalised(inside) * (found + graph.nodes.weights)[:, None]
    assert marks[weights != 0].sum() >= 0.89 * marks.sum()
    smallest = sorted_threshold(marks, 0.9)
    assert (marks[weights != 0] > 0.5 * smallest).all()


def test_shares_outside_and_graphs_without_targets_are_refused() -> None:
    graph, matrix = random_graph(0)
    for shares in ((0.0, 0.5), (0.5, 0.0), (1.01, 0.5), (0.5, -1.0)):
        with pytest.raises(GossamerError, match="above 0 and at most 1"):
            graph.prune(*shares)
    nodes = table(graph.nodes.kinds, np.zeros(len(matrix)), matrix)
    with pytest.raises(GossamerError, match="no target"):
        Graph(nodes, graph.rows, (), ()).prune()


def test_a_graph_without_edges_keeps_what_is_always_kept() -> None:
    graph, matrix = random_graph(0)
    n = len(matrix)
    nothing = Rows(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(0, np.int32), np.zeros(0))
    empty = Graph(graph.nodes, nothing, (), ())
    part = empty.prune()
    assert {node.kind for node in part.nodes} == {"token", "position", "logit"}
    assert len(part.edges) == 0 and empty.completeness() == 1
    assert np.isnan(empty.replacement_score())


def test_edges_in_files_are_pruned_without_being_held(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("graph_prune", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.write(tmp_path, 9000, 16_000_000)
    command = [sys.executable, str(BENCHMARK), "--inside", str(tmp_path), "--nodes", "9000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Of 128 MB in files one block of 8 MB is there at a time, with what is made of it.
    assert found["entries"] * 8 > 120e6
    assert found["peak"] - found["before"] < 100e6
