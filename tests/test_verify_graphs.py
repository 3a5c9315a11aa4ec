"""Laws 5 and 6 on graphs that `attribute` makes: edges are what the linearised model answers."""

from typing import Any

import numpy as np
import pytest
import torch

from gossamer.attribution.attribute import attribute
from gossamer.attribution.targets import Latents, LogitDifference, Logits
from gossamer.attribution.verify import verify
from gossamer.attribution.verifying.faithfulness import faithfulness
from gossamer.attribution.verifying.fit import stage_of
from gossamer.attribution.verifying.measuring import Mode, measured, pairs_of
from gossamer.attribution.verifying.sources import changeable
from gossamer.errors import GossamerError
from gossamer.graph.graph import Graph
from tests.test_verify_modes import MIXES
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

IDS = [3, 1, 4, 15, 9]
CASES = [
    *((family, "mixed") for family in ("gpt2", "llama", "gemma2", "gpt_neox", "qwen3")),
    *(("gpt2", mix) for mix in MIXES if mix != "mixed"),
    ("gemma3", "transcoders"),
    ("mistral", "residual"),
]


def graph_of(family: str, mix: str, **options: Any) -> tuple[Graph, dict[str, Any]]:
    """A graph of a tiny model, and the SAEs it splices."""
    saes = {coder.site_out: coder for coder in MIXES[mix]()}
    options = {"target": Logits(tokens=[5, 7]), **options}
    graph = attribute(tiny_model(family), saes, IDS, **options)
    assert isinstance(graph, Graph)
    return graph, saes


def off(graph: Graph, family: str, saes: dict[str, Any], way: Any = "linear") -> float:
    """How far the measured effects of all edges are from them, in parts of the largest edge."""
    arrays = graph.edges.arrays()
    able = changeable(graph.nodes)[arrays.sources]
    sources, targets = (a[able].astype(np.int64) for a in (arrays.sources, arrays.targets))
    stage = stage_of(graph, tiny_model(family), saes, error="attached")
    pairs = pairs_of(stage, graph.nodes, sources, targets)
    found = measured(stage, pairs, [Mode("it", way, 1.0)], progress=False)["it"].effects
    assert len(found) > 20
    return float(np.abs(found - arrays.weights[able]).max() / np.abs(arrays.weights).max())


@pytest.mark.parametrize(("family", "mix"), CASES)
def test_every_edge_is_the_effect_of_its_source_in_the_linearised_model(
    family: str, mix: str
) -> None:
    graph, saes = graph_of(family, mix)
    assert off(graph, family, saes) < 1e-10


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {"effects": "gradient"},
        {"hold": ("norms",)},
        {"hold": ("attention",)},
        {"hold": ("attention", "norms", "mlps")},
        {"target": LogitDifference(5, 9, position=-2)},
        {"max_nodes": 95},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_whatever_is_held_edges_are_effects(family: str, options: dict[str, Any]) -> None:
    graph, saes = graph_of(family, "mixed", **options)
    assert off(graph, family, saes) < 1e-10


def test_a_latent_can_be_what_is_explained() -> None:
    site = "blocks.1.hook_mlp_out"
    graph, saes = graph_of("gpt2", "mixed", target=Latents(site, positions=3))
    assert {graph.nodes[int(t)].site for t in graph.nodes.targets} == {site}
    assert off(graph, "gpt2", saes) < 1e-10
    report = verify(graph, tiny_model("gpt2"), saes, 10, nodes=3)
    assert len(report.edges) == 10 and len(report.nodes) == 3


def test_with_a_dictionary_for_every_mlp_edges_are_effects_of_real_ablations() -> None:
    """Patterns and scales held, the model itself is linear: no tangent is involved."""
    graph, saes = graph_of("gpt2", "transcoders")
    assert off(graph, "gpt2", saes, "held") < 1e-10


def test_along_a_path_edges_are_no_tangents_at_its_end() -> None:
    graph, saes = graph_of("gpt2", "mixed", effects="integrated")
    assert off(graph, "gpt2", saes) > 1e-3


def test_in_float32_linear_effects_are_edges_to_rounding() -> None:
    model = tiny_model("llama", torch.float32)
    saes = {coder.site_out: coder.float() for coder in MIXES["mixed"]()}
    graph = attribute(model, saes, IDS, target=Logits(tokens=[5, 7]))
    assert isinstance(graph, Graph)
    report = verify(graph, model, saes, 60)
    weights = report.column("weight")
    assert np.abs(report.column("linear") - weights).max() < 1e-5 * np.abs(weights).max()
    assert report.about["dtype"] == "float32"


def test_a_graph_that_was_saved_and_pruned_can_be_verified(tmp_path: Any) -> None:
    graph, saes = graph_of("gpt2", "mixed")
    path = tmp_path / "graph.safetensors"
    graph.prune().save(path)
    report = verify(Graph.load(path), tiny_model("gpt2"), saes, 30, nodes=3)
    assert report.shares().modes["linear"] == 1 and report.about["model"] == graph.about["model"]
    curve = faithfulness(graph, tiny_model("gpt2"), saes, keep=[1.0])
    assert curve.points[0].faithfulness == pytest.approx(1)


def test_other_weights_are_known_by_their_digest() -> None:
    graph, saes = graph_of("gpt2", "transcoders")
    with pytest.raises(GossamerError, match="other weights"):
        verify(graph, tiny_model("gpt2_inverse_layer"), saes)
    site = "blocks.1.hook_mlp_out"
    other = tiny_sae("gated", "blocks.1.mlp.hook_in", 16, site_out=site, seed=8)
    with pytest.raises(GossamerError, match="splices another SAE"):
        verify(graph, tiny_model("gpt2"), {**saes, site: other})
