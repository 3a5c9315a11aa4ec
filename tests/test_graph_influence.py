"""Influence is the power series; thresholds are those of a sort; rows read in any way are equal."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gossamer.errors import DiskError, FormatError, GossamerError
from gossamer.graph import rows as rows_module
from gossamer.graph.graph import Graph
from gossamer.graph.influence import flow
from gossamer.graph.rows import COLUMNS, DONE, VALUES, Row, Rows, RowWriter, from_dense
from gossamer.graph.threshold import cut
from tests.plain_graph import influence, normalised, random_graph, sorted_threshold
from tests.small_disk import fill, small_disk

SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_influence_is_the_power_series_and_the_linear_solve(seed: int) -> None:
    graph, matrix = random_graph(seed, n_targets=1 + seed % 3)
    share, weights = normalised(matrix), graph.nodes.weights
    series, term = np.zeros(len(share)), weights
    for _ in range(len(share)):
        term = term @ share
        series += term
    assert not term.any()  # nothing is left after as many steps as there are nodes
    np.testing.assert_allclose(graph.influence(), series, rtol=1e-13, atol=0)
    np.testing.assert_allclose(graph.influence(), influence(matrix, weights), rtol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_flows_out_of_the_targets_arrives_at_the_leaves(seed: int) -> None:
    graph, matrix = random_graph(seed)
    leaves = ~matrix.any(1)
    assert graph.influence()[leaves].sum() == pytest.approx(graph.nodes.weights.sum(), rel=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_size_of_a_row_does_not_matter(seed: int) -> None:
    graph, matrix = random_graph(seed)
    factors = np.random.default_rng(seed).uniform(-5, 5, len(matrix))
    scaled = Graph(graph.nodes, from_dense(matrix * factors[:, None]), (), ())
    np.testing.assert_allclose(scaled.influence(), graph.influence(), rtol=1e-12)


def test_nodes_left_out_pass_nothing_on() -> None:
    graph, matrix = random_graph(1)
    kept = np.random.default_rng(1).random(len(matrix)) < 0.7
    kept[-2:] = True
    found = flow(graph.rows, graph.nodes.weights, kept=kept)
    inside = np.where(kept[:, None] & kept[None], matrix, 0)
    np.testing.assert_allclose(found.influence, influence(inside, graph.nodes.weights), rtol=1e-10)
    read = flow(graph.rows, graph.nodes.weights, read=kept)
    stopped = np.where(kept[:, None], matrix, 0)
    np.testing.assert_allclose(read.influence, influence(stopped, graph.nodes.weights), rtol=1e-10)


def test_a_graph_without_target_or_with_a_nan_is_refused() -> None:
    graph, matrix = random_graph(0)
    with pytest.raises(GossamerError, match="no target"):
        flow(graph.rows, np.zeros(len(matrix)))
    matrix[-1, 3] = np.nan
    with pytest.raises(GossamerError, match=f"node {len(matrix) - 1} .* finite"):
        flow(from_dense(matrix), graph.nodes.weights)


def values_of(kind: int, n: int, generator: np.random.Generator) -> np.ndarray:
    """Scores that a histogram of bits could get wrong."""
    return (
        generator.random(n),
        np.exp(20 * generator.normal(size=n)),  # over many exponents
        generator.integers(0, 3, n) * 0.1,  # ties and zeros
        np.zeros(n),
        np.full(n, 1e-45),  # the smallest float32
        1 + generator.integers(0, 5, n) * 2.0**-23,  # apart in the last bit only
        np.exp(-700 - 40 * generator.random(n)),  # below the normal float64, 0 in float32
        np.concatenate([np.full(n - 1, 1e-8), [1.0]]),
    )[kind]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", range(8))
def test_a_threshold_is_that_of_a_sort(kind: int, dtype: type) -> None:
    generator = np.random.default_rng(kind)
    for n in (1, 2, 7, 300):
        values = values_of(kind, n, generator).astype(dtype)
        blocks = np.array_split(values, 3)
        shares = (1e-9, 0.1, 0.5, 0.8, 0.98, 1 - 2**-53, 1.0, float(generator.random()))
        for share in shares:
            found = cut(partial(list, blocks), share, np.dtype(dtype))
            assert found.threshold == sorted_threshold(values, share)
            assert found.kept == (values >= found.threshold).sum()
            assert found.total == pytest.approx(values.sum(dtype=np.float64), rel=1e-12)


def test_a_threshold_of_nothing() -> None:
    assert cut(list, 0.5, np.dtype(np.float32)) == (0.0, 0, 0.0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_is_refused(share: float) -> None:
    with pytest.raises(GossamerError, match="above 0 and at most 1"):
        cut(list, share, np.dtype(np.float32))


def dense(rows: Rows) -> np.ndarray:
    """Back to a matrix."""
    matrix = np.zeros((rows.n_nodes, rows.n_nodes))
    for target, sources, values in rows.in_file_order():
        matrix[target, sources] = values
    return matrix


def test_rows_in_any_order_and_block_size_are_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, matrix = random_graph(2)
    writer = RowWriter(tmp_path, len(matrix), np.dtype(np.float64))
    order = np.random.default_rng(0).permutation(np.flatnonzero(matrix.any(1)))
    for target in order.tolist():
        writer.append([graph.rows.row(target)])
    rows, chosen = writer.rows(), np.arange(len(matrix)) % 3 > 0
    for size in (1, 7, 100, 1 << 20):
        monkeypatch.setattr(rows_module, "BLOCK", size)
        assert (dense(rows) == matrix).all()
        back = list(rows.backwards())
        assert [row.target for row in back] == sorted(order.tolist(), reverse=True)
        assert all((matrix[t, s] == v).all() for t, s, v in back)
        assert sum(len(row.sources) for row in back) == rows.n_entries
        for some in (rows.blocks(chosen), rows.blocks()):
            for block in some:
                targets = block.spread(block.targets)
                assert (matrix[targets, block.sources] == block.values).all()
                assert np.allclose(block.sums(block.values), matrix[block.targets].sum(1))
        read = [t for block in rows.blocks(chosen) for t in block.targets.tolist()]
        assert sorted(read) == [t for t in sorted(order.tolist()) if chosen[t]]
        np.testing.assert_array_equal(flow(rows, graph.nodes.weights).influence, graph.influence())


@pytest.mark.parametrize("sources", [[1, 3], [2, 2], [1, 0], [-1, 1], [0, 9]])
def test_edges_that_do_not_go_forward_are_refused(sources: list[int]) -> None:
    rows = Rows(
        np.array([0, 0, 0, 0]),
        np.array([0, 0, 0, 2]),
        np.array(sources, np.int32),
        np.ones(2, np.float32),
    )
    for way in (rows.blocks, rows.backwards, rows.in_file_order):
        with pytest.raises(FormatError, match="from nodes before it"):
            list(way())


def test_a_killed_computation_leaves_whole_rows(tmp_path: Path) -> None:
    first = Row(2, np.array([0, 1]), np.array([1.0, 2.0]))
    second = Row(3, np.array([1, 2]), np.array([3.0, 4.0]))
    writer = RowWriter(tmp_path, 4, np.dtype(np.float32))
    writer.append([first])
    for name, left in ((COLUMNS, b"\1\0\0"), (VALUES, b"\1"), (DONE, b"[3, 2")):
        with (tmp_path / name).open("ab") as file:
            file.write(left)
    again = RowWriter(tmp_path, 4, np.dtype(np.float32))
    assert again.done == {2: (0, 2)}
    again.append([second])
    rows = RowWriter(tmp_path, 4, np.dtype(np.float32)).rows()
    assert [row.values.tolist() for row in rows.backwards()] == [[3.0, 4.0], [1.0, 2.0]]
    assert list(rows.row(0).sources) == []
    (tmp_path / VALUES).write_bytes(b"")
    with pytest.raises(FormatError, match="shorter than its list of rows"):
        RowWriter(tmp_path, 4, np.dtype(np.float32))


def test_a_full_disk_is_said_and_the_rows_can_be_written_again(tmp_path: Path) -> None:
    row = Row(2999, np.arange(2000), np.ones(2000))
    with small_disk(tmp_path / "disk", 64) as disk:
        writer = RowWriter(disk, 3000, np.dtype(np.float32))
        writer.append([row])
        fill(disk, leave=10_000)
        with pytest.raises(DiskError, match="Make room"):
            writer.append([row._replace(target=2998)])
        (disk / "taken").unlink()
        writer.append([row._replace(target=2998)])
        assert dense(RowWriter(disk, 3000, np.dtype(np.float32)).rows()).sum() == 4000
