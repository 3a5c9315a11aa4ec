"""Laws 3 to 6 for graphs of every family: edges are derivatives, causal, complete, and effects.

The oracle is `plain_attribution.py`: autograd of the plain model, one scale for each node. It is
itself held to differences of runs, and to the clean run.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.attribution.attribute import attribute
from gossamer.attribution.targets import Latents, LogitDifference, Logits
from gossamer.sites import parse_node
from tests.graph_mixes import IDS, MIXES, check_graph, close, dense, mixed, plain_of
from tests.plain_attribution import PlainGraph
from tests.plain_model import plain_run
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import tiny_sae

SHAPES = ("gpt2", "gpt_neox", "gpt_neox_sequential", "qwen3", "gemma2")
"""One family of each shape of block, where not all are needed."""

HELD = ("attention", "norms")


# The oracle


@pytest.mark.parametrize("hold", [HELD, (), ("norms", "mlps")], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_the_oracle_is_the_clean_run_and_its_edges_are_differences(family, hold) -> None:
    model = tiny_model(family)
    plain = plain_of(model, mixed(model), hold=hold)
    clean = [plain.read(site, plain.x(coder)) for site, coder in plain.coders.items()]
    close(plain.reads.detach(), torch.cat([*clean, plain.score(plain.clean)]))
    close(plain.reads.detach(), (plain.constants + plain.edges.sum(1)).detach())
    for column, node in list(enumerate(plain.leaves))[::41]:
        differences = plain.difference(node, 1e-4)
        assert (differences - plain.edges[:, column]).abs().max() < 1e-6


@pytest.mark.parametrize("family", SHAPES)
def test_the_oracle_splices_without_changing_a_logit(family) -> None:
    model = tiny_model(family)
    plain = plain_of(model, mixed(model))
    spliced = plain.values_at(torch.ones(len(plain.leaves), dtype=torch.float64))
    for site, value in plain_run(model.language_model, IDS).items():
        close(spliced[site].detach(), value)


# Every family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_one_dictionary_of_each_kind(family) -> None:
    model = tiny_model(family)
    coders = mixed(model, FAMILIES.index(family))
    plain = plain_of(model, coders)
    for engine in (None, "plain"):
        check_graph(attribute(model, coders, IDS, engine=engine), plain)


@pytest.mark.parametrize("family", SHAPES)
def test_every_shape_of_block_with_transcoders_alone(family) -> None:
    model = tiny_model(family)
    coders = MIXES["skip transcoders"](model)
    check_graph(attribute(model, coders, IDS), plain_of(model, coders))


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("n", [1, 9])
def test_prompts_of_one_token_and_beyond_every_window(family, n) -> None:
    model = tiny_model(family)
    coders, ids = mixed(model), [*IDS, *IDS][:n]
    check_graph(attribute(model, coders, ids), plain_of(model, coders, ids))


@pytest.mark.parametrize("factor", [1 + 1e-6, -1.0, 0.0])
def test_the_comparison_sees_one_edge_that_is_wrong(factor) -> None:
    model = tiny_model("gpt2")
    coders = mixed(model)
    graph: Any = attribute(model, coders, IDS)
    plain = plain_of(model, coders)
    entry = int(np.argsort(np.abs(graph.rows.values))[-len(graph.rows.values) // 4])
    values = np.array(graph.rows.values)
    values[entry] *= factor
    with pytest.raises(AssertionError, match="1 of .* expected"):
        check_graph(replace(graph, rows=replace(graph.rows, values=values)), plain)


# Edges are effects


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("name", ["skip transcoders", "Jacobian pairs"])
def test_a_node_moves_every_other_by_its_edge_in_the_linearised_model(family, name) -> None:
    """Law 6: at any size of change, since that model is a straight line."""
    model = tiny_model(family)
    coders = MIXES[name](model)
    graph: Any = attribute(model, coders, IDS)
    plain, matrix, ids = plain_of(model, coders), dense(graph), graph.nodes.ids
    rows = [graph.nodes.numbers[target] for target in plain.targets]
    for column, node in enumerate(ids):
        if column % 37 == 0 and not node.startswith("logits/"):
            close(matrix[rows, column], plain.difference(node, 0.7, linear=True))


def test_several_changes_add_up() -> None:
    model = tiny_model("gemma2")
    coders = MIXES["transcoders"](model)
    graph: Any = attribute(model, coders, IDS)
    plain = plain_of(model, coders)
    scales = torch.rand(len(plain.leaves), dtype=torch.float64) * 2
    moved = (plain.at(scales, linear=True) - plain.reads).detach().numpy()
    matrix, numbers = dense(graph), graph.nodes.numbers
    expected = np.zeros(len(plain.targets))
    for scale, node in zip(scales.tolist(), plain.leaves, strict=True):
        if node in numbers:
            rows = [numbers[target] for target in plain.targets]
            expected += (scale - 1) * matrix[rows, numbers[node]]
    close(moved, expected)


# Nodes


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3"])
def test_nodes_are_what_the_clean_run_says(family) -> None:
    model = tiny_model(family)
    coders = mixed(model)
    graph: Any = attribute(model, coders, IDS)
    plain, nodes = plain_of(model, coders), graph.nodes
    latents = {
        f"{site}/{i}@{p}": float(value)
        for site, coder in plain.coders.items()
        for (p, i), value in zip(plain.active[site], plain.read(site, plain.x(coder)), strict=True)
    }
    logits = {f"logits/{t}@{len(IDS) - 1}": p for t, p in plain.logits.items()}
    for node in nodes:
        parsed = parse_node(node.id)
        assert (node.site, node.unit, node.position) == (parsed.site, parsed.unit, parsed.position)
        if node.kind == "latent":
            close(node.value, latents.pop(node.id))
            assert node.weight == 0
        elif node.kind == "logit":
            close(node.weight, logits.pop(node.id))
        else:
            assert node.value == 1 and node.weight == 0
    assert not latents and not logits
    tokens = [node.id for node in nodes if node.kind == "token"]
    assert sorted(tokens) == sorted(f"hook_embed/{t}@{p}" for p, t in enumerate(IDS))
    assert graph.token_ids == tuple(IDS) and len(graph.tokens) == len(IDS)
    assert list(nodes.targets) == [i for i, node in enumerate(nodes) if node.kind == "logit"]


# By hand


def test_a_transcoder_edge_without_attention_or_norm_between() -> None:
    """Two writers of one block's stream read by the next SAE: f_s · (W_s · E_t), no more."""
    model = tiny_model("gpt2")
    source = tiny_sae("topk", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out")
    reader = tiny_sae("relu", "blocks.2.hook_resid_pre", 16, seed=1)
    graph: Any = attribute(model, [source, reader], IDS)
    matrix, nodes = dense(graph), graph.nodes
    found = 0
    for target in nodes:
        for start in nodes:
            if target.site == reader.site_out and start.site == source.site_out:
                if target.kind == start.kind == "latent" and target.position == start.position:
                    expected = start.value * (source.W_dec[start.unit] @ reader.W_enc[target.unit])
                    place = nodes.numbers[target.id], nodes.numbers[start.id]
                    close(matrix[place], expected)
                    found += 1
    assert found > 10


# Targets


TARGETS: dict[str, Any] = {
    "named": Logits(tokens=[2, 30, 9]),
    "top": Logits(top=3),
    "mass": Logits(mass=0.4),
    "earlier": Logits(tokens=[4], position=-3),
    "difference": LogitDifference(3, 8),
    "difference, earlier": LogitDifference(3, 8, position=1),
}


@pytest.mark.parametrize("name", TARGETS)
def test_logits_and_differences_as_targets(name) -> None:
    model = tiny_model(("gpt2", "gemma2")[len(name) % 2])
    coders, target = mixed(model), TARGETS[name]
    graph: Any = attribute(model, coders, IDS, target)
    plain = plain_of(model, coders, target=target)
    check_graph(graph, plain, every="earlier" not in name)
    weights = {graph.nodes.ids[i]: graph.nodes.weights[i] for i in graph.nodes.targets}
    position = target.position % len(IDS)
    if "difference" in name:
        assert weights == {f"logits/3-8@{position}": 1}
    else:
        assert weights == {
            f"logits/{t}@{position}": pytest.approx(p) for t, p in plain.logits.items()
        }
    assert graph.nodes.positions.max() == position


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_latents_as_targets(family) -> None:
    model = tiny_model(family)
    coders = mixed(model)
    plain = plain_of(model, coders, target=Latents("blocks.2.hook_resid_pre"))
    p, i = plain.active["blocks.2.hook_resid_pre"][
        len(plain.active["blocks.2.hook_resid_pre"]) // 2
    ]
    target = Latents("blocks.2.hook_resid_pre", positions=p, indices=i)
    graph: Any = attribute(model, coders, IDS, target)
    check_graph(graph, plain, every=False)
    by_name: Any = attribute(model, coders, IDS, f"blocks.2.hook_resid_pre/{i}@{p}")
    assert by_name.nodes.ids == graph.nodes.ids and (dense(by_name) == dense(graph)).all()
    nodes = graph.nodes
    assert [nodes.ids[t] for t in nodes.targets] == [f"blocks.2.hook_resid_pre/{i}@{p}"]
    assert nodes.weights[nodes.targets].tolist() == [1]
    assert not nodes.of_kind("logit").any() and nodes.positions.max() == p
    last = nodes.targets[0]
    others = [node for node in nodes if node.kind == "latent" and node.id != nodes.ids[last]]
    assert others and not any(node.site.startswith("blocks.2") for node in others)


def test_latents_as_targets_at_several_positions() -> None:
    model = tiny_model("qwen3")
    coders = mixed(model)
    plain: PlainGraph = plain_of(model, coders, target=Latents("blocks.2.hook_mlp_out"))
    graph: Any = attribute(model, coders, IDS, Latents("blocks.2.hook_mlp_out", top=4))
    check_graph(graph, plain, every=False)
    assert len(graph.nodes.targets) == 4 and (graph.nodes.weights[graph.nodes.targets] == 1).all()
