"""Two graphs side by side, against a plain comparison of dictionaries; the page in a browser."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.errors import GossamerError
from gossamer.graph.alignment import axis_of
from gossamer.graph.difference import SIDES, GraphDifference, compare_graphs
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS
from tests.browser import launched, opened
from tests.plain_graph import random_graph

ALIGNS: tuple[Any, ...] = ("start", "end", {0: 1, 2: 3, 4: 4}, {})


def graphs(seed: int) -> tuple[Graph, Graph]:
    """A graph of 8 positions and one of 7, which share many nodes and some edges; the first has a
    position embedding whose unit is its position."""
    first, _ = random_graph(seed)
    second, _ = random_graph(seed + 10, 35)
    half = np.arange(len(first.rows.values)) % 2 == 0
    n = len(second.rows.values)
    near = np.where(half[:n], first.rows.values[:n], second.rows.values)
    second = replace(second, rows=replace(second.rows, values=near))
    return first, second


def stands_for(p: int, side: int, lengths: tuple[int, int], align: Any) -> tuple[int, ...]:
    """The pair of positions that a position is in, or itself and its side alone."""
    if isinstance(align, Mapping):
        pairs = list(align.items())
    elif align == "start":
        pairs = [(i, i) for i in range(min(lengths))]
    else:
        pairs = [(lengths[0] - i, lengths[1] - i) for i in range(1, min(lengths) + 1)]
    return next((pair for pair in pairs if pair[side] == p), (-1, p, side))


def keyed(graph: Graph, side: int, lengths: tuple[int, int], align: Any) -> list[tuple]:
    """What each node is known by in both graphs."""
    found = []
    for node, distractor in zip(graph.nodes, graph.nodes.distractors.tolist(), strict=True):
        unit = None if node.kind == "position" else node.unit
        place = stands_for(node.position, side, lengths, align)
        found.append((node.site, node.kind, unit, distractor, place))
    return found


def plain_sides(one: dict, other: dict, tolerance: float) -> dict[Any, tuple[str, Any, Any]]:
    """(side, size in the first, in the second) of everything."""
    found = {}
    for key in {**one, **other}:
        a, b = one.get(key), other.get(key)
        if a is None or b is None:
            side = "second" if a is None else "first"
        else:
            side = "changed" if abs(a - b) > tolerance * max(abs(a), abs(b)) else "both"
        found[key] = (side, a, b)
    return found


def edges_by(graph: Graph, keys: list[tuple]) -> dict[tuple, float]:
    numbers = graph.nodes.numbers
    return {(keys[numbers[e.source]], keys[numbers[e.target]]): e.weight for e in graph.edges}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("align", ALIGNS, ids=str)
def test_nodes_and_edges_are_those_of_a_plain_comparison(align: Any, seed: int) -> None:
    first, second = graphs(seed)
    lengths = len(first.tokens), len(second.tokens)
    found = compare_graphs(first, second, align, tolerance=0.1)
    keys = [keyed(g, side, lengths, align) for side, g in enumerate((first, second))]
    values = [
        dict(zip(k, g.nodes.values.tolist(), strict=True))
        for k, g in zip(keys, (first, second), strict=True)
    ]
    expected = plain_sides(values[0], values[1], 0.1)
    by_key = list(dict.fromkeys([*keys[0], *keys[1]]))
    assert len(found.nodes) == len(by_key)
    for key, node in zip(by_key, found.nodes, strict=True):
        side, *sizes = expected[key]
        assert node.side == side
        np.testing.assert_equal(node.values, [np.nan if each is None else each for each in sizes])
    edges = plain_sides(edges_by(first, keys[0]), edges_by(second, keys[1]), 0.1)
    got = {
        (by_key[s], by_key[t]): (SIDES[side], a, b)
        for s, t, a, b, side in zip(*(column.tolist() for column in found.edges), strict=True)
    }
    assert got == {key: (side, a or 0.0, b or 0.0) for key, (side, a, b) in edges.items()}
    counts = found.counts()["edges"]
    assert counts == {side: sum(each[0] == side for each in edges.values()) for side in SIDES}
    check_top(found, edges)


def check_top(found: GraphDifference, edges: dict) -> None:
    gaps = sorted((abs((a or 0) - (b or 0)) for _, a, b in edges.values()), reverse=True)
    np.testing.assert_allclose([abs(e.first - e.second) for e in found.top(9)], gaps[:9])
    for side in SIDES:
        n = found.counts()["edges"][side]
        assert [e.side for e in found.top(10**6, side)] == [side] * n
    names = {node.id for node in found.nodes}
    assert len(names) == len(found.nodes)
    assert all({e.source, e.target} <= names for e in found.top(30))
    with pytest.raises(GossamerError, match="got -1"):
        found.top(-1)


@pytest.mark.parametrize("align", ["start", "end"])
def test_a_graph_and_itself_differ_in_nothing(align: str) -> None:
    graph, _ = random_graph(3)
    found = compare_graphs(graph, graph, align, tolerance=0.0)
    for counts, n in zip(
        found.counts().values(), (len(graph.nodes), len(graph.edges)), strict=True
    ):
        assert counts == {"first": 0, "second": 0, "both": n, "changed": 0}
    assert all(edge.first == edge.second for edge in found.top())
    assert found.view().tokens == [*graph.tokens]


def test_values_that_are_not_known_stand_where_they_are() -> None:
    """Foreign files may leave an activation out."""
    graph, _ = random_graph(0)
    blank = replace(graph, nodes=replace(graph.nodes, values=np.full(len(graph.nodes), np.nan)))
    found = compare_graphs(blank, blank)
    assert found.counts()["nodes"]["both"] == len(graph.nodes)
    assert len(found.view().nodes.ids) == len(graph.nodes)


@pytest.mark.parametrize("lengths", [(1, 1), (3, 7), (7, 3), (1, 6)])
@pytest.mark.parametrize("align", ["start", "end", {}, {0: 0}], ids=str)
def test_an_axis_keeps_both_orders_and_pairs_what_it_should(lengths: Any, align: Any) -> None:
    axis = axis_of(lengths[0], lengths[1], align)
    for columns in axis:
        assert (np.diff(columns) > 0).all()
    assert set(axis.first.tolist()) | set(axis.second.tolist()) == set(range(axis.n_columns))
    for p in range(lengths[0]):
        for q in range(lengths[1]):
            paired = stands_for(p, 0, lengths, align) == (p, q)
            assert (axis.first[p] == axis.second[q]) == paired


def test_tokens_that_differ_are_both_shown() -> None:
    first, second = graphs(0)
    second = replace(second, tokens=("x", *second.tokens[1:]))
    view = compare_graphs(first, second, "start").view()
    assert view.tokens[0] == f"{first.tokens[0]} | x" and view.tokens[1] == first.tokens[1]
    assert view.tokens[-1] == first.tokens[-1] and len(view.tokens) == len(first.tokens)
    by_end = compare_graphs(first, second, "end").view()
    assert by_end.tokens[0] == first.tokens[0] and by_end.tokens[1] == f"{first.tokens[1]} | x"


def test_graphs_of_different_targets_have_their_own_targets() -> None:
    first, _ = random_graph(1)
    logits = first.nodes.kinds == KINDS.index("logit")
    units = np.where(logits, first.nodes.units + 100, first.nodes.units)
    second = replace(first, nodes=replace(first.nodes, units=units))
    found = compare_graphs(first, second)
    n = int(logits.sum())
    nodes = found.counts()["nodes"]
    assert (nodes["first"], nodes["second"]) == (n, n)
    assert [node.id for node in found.nodes[-n:]] == [
        f"{second.nodes.id_of(int(i))} (second)" for i in np.flatnonzero(logits)
    ]


def test_the_view_draws_the_most_influential_and_says_what_it_left_out() -> None:
    found = compare_graphs(*graphs(1))
    view = found.view(max_nodes=12, max_edges=20)
    assert len(view.nodes.ids) == 12 and len(view.edges.sources) <= 20
    influence = {node.id: np.nanmax(node.influence) for node in found.nodes}
    targets = {node.id for node in found.nodes if node.id.startswith("logits/")}
    others = sorted((influence[i] for i in influence if i not in targets), reverse=True)
    assert targets <= set(view.nodes.ids)
    shown = [influence[i] for i in view.nodes.ids if i not in targets]
    np.testing.assert_allclose(sorted(shown, reverse=True), others[: len(shown)])
    assert set(view.edges.sides) <= set(SIDES)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@pytest.mark.browser
def test_the_page_opens_and_shows_the_sides(browser: Any, tmp_path: Path) -> None:
    found = compare_graphs(*graphs(0), tolerance=0.1)
    path = found.to_html(tmp_path / "difference.html")
    with opened(browser, path, viewport={"width": 1300, "height": 900}) as page:
        assert page.locator(".nodes [role=option]").count() == len(found.view().nodes.ids)
        text = page.locator("body").inner_text()
        assert "Two prompts" in text
        for side in ("first", "second", "changed"):
            assert side in text
