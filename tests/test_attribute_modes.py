"""Every way of holding, of treating MLPs and of differentiating; several prompts at once."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.attribution.attribute import attribute
from gossamer.attribution.targets import LogitDifference
from tests.graph_mixes import IDS, MIXES, at, check_graph, close, dense, mixed, plain_of
from tests.tiny_models import tiny_model

HOLDABLE = ("attention", "norms", "mlps")
HOLDS = [some for n in range(4) for some in itertools.combinations(HOLDABLE, n)]


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
@pytest.mark.parametrize("hold", HOLDS, ids="+".join)
def test_every_way_of_holding(family, hold) -> None:
    model = tiny_model(family)
    coders = mixed(model, 1)
    check_graph(attribute(model, coders, IDS, hold=hold), plain_of(model, coders, hold=hold))


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
@pytest.mark.parametrize("name", ["one layer", "MLP outputs", "widths", "Jacobian pairs"])
def test_mlps_are_straight_lines_or_held(family, name) -> None:
    model = tiny_model(family)
    coders = MIXES[name](model)
    held: Any = attribute(model, coders, IDS, hold=HOLDABLE)
    check_graph(held, plain_of(model, coders, hold=HOLDABLE))
    free: Any = attribute(model, coders, IDS)
    check_graph(free, plain_of(model, coders))
    assert held.nodes.ids == free.nodes.ids
    assert np.abs(dense(held) - dense(free)).max() > 1e-4
    module = next(node for node in held.nodes if node.site.endswith(".mlp"))
    assert module.kind == "remainder"


# True gradients


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3", "gemma2"])
@pytest.mark.parametrize("name", ["skip transcoders", "heads"])
def test_true_gradients(family, name) -> None:
    model = tiny_model(family)
    coders = MIXES[name](model)
    graph: Any = attribute(model, coders, IDS, effects="gradient")
    check_graph(graph, plain_of(model, coders, hold=()))
    kinds = {node.kind for node in graph.nodes if node.site.endswith(".attn")}
    assert kinds == {"remainder"}


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_true_gradients_are_the_limit_of_differences(family) -> None:
    model = tiny_model(family)
    coders = mixed(model)
    graph: Any = attribute(model, coders, IDS, effects="gradient")
    plain, matrix, numbers = plain_of(model, coders, hold=()), dense(graph), graph.nodes.numbers
    rows = [numbers[target] for target in plain.targets]
    for node in list(numbers)[::17]:
        if not node.startswith("logits/"):
            off = np.abs(matrix[rows, numbers[node]] - plain.difference(node, 1e-4).numpy())
            assert off.max() < 1e-6


# Integrated gradients


def integrated(model, coders, hold, steps) -> tuple[Any, Any]:
    """(graph, oracle)."""
    graph = attribute(model, coders, IDS, effects="integrated", hold=hold, steps=steps)
    return graph, plain_of(model, coders, hold=("norms",) if hold is None else hold)


@pytest.mark.parametrize("hold", [None, (), ("attention",), HOLDABLE], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_integrated_gradients_are_means_over_the_path(family, hold) -> None:
    model = tiny_model(family)
    coders = mixed(model, 1)
    graph, plain = integrated(model, coders, hold, 3)
    nodes, matrix = graph.nodes, dense(graph)
    assert not nodes.of_kind("bias", "remainder").any()
    expected = plain.integrated(3)
    rows = [nodes.numbers[target] for target in plain.targets]
    for column, node in enumerate(plain.leaves):
        if node in nodes.numbers:
            close(matrix[rows, nodes.numbers[node]], expected[:, column])
    ones = torch.ones(len(plain.leaves), dtype=torch.float64)
    close(nodes.constants[rows], plain.at(plain.scales_at(0.0)))
    close(nodes.reads[rows], plain.at(ones))
    assert not np.triu(matrix).any()


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_what_midpoints_miss_falls_with_the_square_of_their_number(family) -> None:
    model = tiny_model(family)
    coders = at(model, "1.mlp.hook_in>1.hook_mlp_out", "2.hook_attn_out")
    gaps = []
    for steps in (8, 16):
        graph, _ = integrated(model, coders, None, steps)
        gaps.append(np.nanmax(np.abs(graph.nodes.residuals)))
    assert gaps[0] > 1e-6 and 3.5 < gaps[0] / gaps[1] < 4.5


def test_where_the_map_is_linear_integrated_gradients_are_gradients() -> None:
    model = tiny_model("gemma2")
    coders = MIXES["skip transcoders"](model)
    one: Any = attribute(
        model, coders, IDS, effects="integrated", hold=("attention", "norms"), steps=2
    )
    other: Any = attribute(model, coders, IDS)
    both = [name for name in one.nodes.ids if name in other.nodes.numbers]
    assert both == list(one.nodes.ids)
    places = [other.nodes.numbers[name] for name in both]
    close(dense(one), dense(other)[np.ix_(places, places)])
    assert np.nanmax(np.abs(one.nodes.residuals)) < 1e-10


# Several prompts


@pytest.mark.parametrize("options", [{}, {"effects": "gradient"}, {"max_nodes": 300}], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_prompts_of_different_lengths_give_what_single_calls_give(family, options) -> None:
    model = tiny_model(family)
    coders = mixed(model)
    prompts = [IDS, IDS[:1], [7, *IDS, *IDS], IDS[2:]]
    together: Any = attribute(model, coders, prompts, **options)
    assert isinstance(together, list) and len(together) == len(prompts)
    for ids, found in zip(prompts, together, strict=True):
        alone: Any = attribute(model, coders, ids, **options)
        assert found.nodes.ids == alone.nodes.ids and found.token_ids == tuple(ids)
        close(dense(found), dense(alone))
        for column in ("reads", "constants", "values", "weights"):
            got, expected = (getattr(graph.nodes, column) for graph in (found, alone))
            close(np.nan_to_num(got), np.nan_to_num(expected))


def test_a_prompt_among_others_equals_the_oracle() -> None:
    model = tiny_model("mistral")
    coders = mixed(model)
    prompts = [[2, 4], [*IDS, 8, 8, 6]]
    target = LogitDifference(3, 8, position=-2)
    graphs: Any = attribute(model, coders, prompts, target)
    for ids, graph in zip(prompts, graphs, strict=True):
        check_graph(graph, plain_of(model, coders, ids, target=target), every=False)


# Types and engines


@pytest.mark.parametrize("engine", [None, "plain"])
def test_how_much_is_computed_at_once_changes_no_edge(monkeypatch, engine) -> None:
    """Down to one target of a prompt that is longer than that."""
    model = tiny_model("gemma2")
    coders = at(model, "0.mlp.hook_in>0.hook_mlp_out", "1.attn.hook_z", "2.hook_attn_out")
    plain = plain_of(model, coders)
    for rows_at_once in (1, 17, 10**6):
        monkeypatch.setattr("gossamer.attribution.graphs.plan.ROWS_ON_CPU", rows_at_once)
        check_graph(attribute(model, coders, IDS, engine=engine), plain)


@pytest.mark.parametrize(
    "options", [{}, {"max_nodes": 300}, {"effects": "integrated", "steps": 2}], ids=str
)
def test_a_call_goes_on_where_it_was_cancelled(tmp_path, options) -> None:
    model = tiny_model("gpt2")
    coders = at(model, "0.mlp.hook_in>0.hook_mlp_out", "1.hook_attn_out", "2.hook_resid_pre")
    whole: Any = attribute(model, coders, IDS, directory=tmp_path, **options)
    expected, ids = dense(whole), whole.nodes.ids
    listed = next(tmp_path.rglob("rows.jsonl"))
    lines = listed.read_text().splitlines(keepends=True)
    listed.write_text("".join(lines[: len(lines) // 3]))
    found: Any = attribute(model, coders, IDS, directory=tmp_path, **options)
    assert found.nodes.ids == ids
    close(dense(found), expected)


def test_single_precision_is_near_double_precision() -> None:
    family = "gpt2"
    double, single = tiny_model(family), tiny_model(family, torch.float32)
    ways = ("0.mlp.hook_in>0.hook_mlp_out", "1.attn.hook_z", "2.hook_resid_pre")
    wide: Any = attribute(double, at(double, *ways), IDS)
    slim: Any = attribute(single, at(single, *ways, dtype=torch.float32), IDS)
    assert wide.nodes.ids == slim.nodes.ids
    off = np.abs(dense(slim) - dense(wide)).max()
    assert off < 1e-5 * np.abs(dense(wide)).max()
