"""Which edges and nodes are checked, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossamer.attribution.verify import verify
from gossamer.attribution.verifying.chosen import best_edges, chosen_nodes, named_edges
from gossamer.attribution.verifying.fit import stage_of
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.rows import from_dense
from tests.plain_verify import Plain
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

SITES = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")


def chain() -> Graph:
    """Two latents, an error, a bias, two more latents, a logit."""
    kinds = ("latent", "latent", "error", "bias", "latent", "latent", "logit")
    n = len(kinds)
    floats = np.full(n, 1.0)
    nodes = Nodes(
        sites=(*SITES, "logits"),
        kinds=np.array([KINDS.index(kind) for kind in kinds], np.int8),
        site_of=np.array([0, 0, 0, 0, 1, 1, 2], np.int32),
        units=np.array([3, 4, -1, -1, 5, 6, 7], np.int64),
        positions=np.zeros(n, np.int32),
        values=floats,
        weights=np.array([0.0] * 6 + [1.0]),
        reads=floats,
        constants=floats,
        residuals=floats,
        distractors=np.full(n, -1, np.int64),
        labels=("",) * n,
    )
    dense = np.zeros((n, n))
    dense[4, :4] = [1.0, -2.0, 3.0, 50.0]
    dense[5, :2] = [-4.0, 0.5]
    dense[6, 4:6] = [6.0, 0.1]
    return Graph(nodes, from_dense(dense), ("a",), (1,))


def pairs(graph: Graph, chosen: Any) -> list[tuple[str, str]]:
    """As ids."""
    ids = graph.nodes.ids
    return [(ids[s], ids[t]) for s, t in zip(chosen.sources, chosen.targets, strict=True)]


def test_the_strongest_edges_are_those_of_largest_weight_that_can_be_changed() -> None:
    graph = chain()
    chosen = best_edges(graph, 4, "strongest", 0)
    assert chosen.weights.tolist() == [6.0, -4.0, 3.0, -2.0]  # not the bias's 50
    assert pairs(graph, chosen)[2] == (f"{SITES[0]}/error@0", f"{SITES[1]}/5@0")
    assert len(best_edges(graph, 100, "strongest", 0).weights) == 7
    assert len(best_edges(graph, 0, "strongest", 0).weights) == 0


def test_the_scored_edges_are_those_of_the_highest_score() -> None:
    """By hand: the logit takes 6/6.1 of latent 5 and 0.1/6.1 of latent 6, these of what is
    theirs."""
    graph = chain()
    expected = {(4, 6): 6 / 6.1, (5, 6): 0.1 / 6.1}
    expected |= {(s, 4): w / 56 * 6 / 6.1 for s, w in ((0, 1), (1, 2), (2, 3))}
    expected |= {(s, 5): w / 4.5 * 0.1 / 6.1 for s, w in ((0, 4), (1, 0.5))}
    best = sorted(expected, key=lambda pair: -expected[pair])[:3]
    chosen = best_edges(graph, 3, "scored", 0)
    assert set(zip(chosen.sources.tolist(), chosen.targets.tolist(), strict=True)) == set(best)


def test_a_sample_is_in_proportion_to_the_score_and_repeats_with_its_seed() -> None:
    graph = chain()
    counts = {pair: 0 for pair in pairs(graph, best_edges(graph, 10, "strongest", 0))}
    for seed in range(600):
        counts[pairs(graph, best_edges(graph, 1, "sampled", seed))[0]] += 1
    scores = {(s, t): 0.0 for s, t in counts}
    ids = graph.nodes.ids
    for (s, t), score in {
        (4, 6): 6 / 6.1,
        (5, 6): 0.1 / 6.1,
        **{(s, 4): w / 56 * 6 / 6.1 for s, w in ((0, 1), (1, 2), (2, 3))},
        **{(s, 5): w / 4.5 * 0.1 / 6.1 for s, w in ((0, 4), (1, 0.5))},
    }.items():
        scores[ids[s], ids[t]] = score
    total = sum(scores.values())
    for pair, score in scores.items():
        expected = score / total
        assert abs(counts[pair] / 600 - expected) < 4 * (expected / 600) ** 0.5 + 1e-3
    one, two = (best_edges(graph, 3, "sampled", 7) for _ in range(2))
    assert one.sources.tolist() == two.sources.tolist()


def test_named_edges_and_nodes_come_as_they_are_named() -> None:
    graph = chain()
    ids = graph.nodes.ids
    found = named_edges(graph, [(ids[5], ids[6]), (ids[2], ids[4]), (ids[5], ids[6])])
    assert found.weights.tolist() == [0.1, 3.0, 0.1]
    assert chosen_nodes(graph, [ids[2], ids[0]], "strongest", 0).tolist() == [2, 0]
    assert chosen_nodes(graph, 2, "strongest", 0).tolist() == [4, 2]  # by influence
    assert sorted(chosen_nodes(graph, 100, "sampled", 1).tolist()) == [0, 1, 2, 4, 5]


def test_edges_and_nodes_that_cannot_be_checked_are_refused() -> None:
    graph = chain()
    ids = graph.nodes.ids
    with pytest.raises(SiteError, match="cannot be changed"):
        named_edges(graph, [(ids[3], ids[4])])
    with pytest.raises(SiteError, match="cannot be changed"):
        chosen_nodes(graph, [ids[3]], "strongest", 0)
    with pytest.raises(SiteError, match="has no edge from"):
        named_edges(graph, [(ids[2], ids[5])])
    with pytest.raises(SiteError, match="No node"):
        named_edges(graph, [("hook_embed/1@0", ids[5])])
    with pytest.raises(GossamerError, match="strongest, scored, sampled"):
        best_edges(graph, 3, "best", 0)
    with pytest.raises(GossamerError, match="0 or more"):
        best_edges(graph, -1, "strongest", 0)


@pytest.fixture(scope="module")
def plain() -> Plain:
    coders = [tiny_sae("topk", site, 16, seed=i) for i, site in enumerate(SITES)]
    return Plain(tiny_model("gpt2"), {c.site_out: c for c in coders}, [3, 1, 4], [(5, -1)])


def test_a_graph_of_another_model_or_other_saes_is_refused(plain: Plain) -> None:
    graph, model, saes = plain.graph(), plain.model, dict(plain.coders)
    with pytest.raises(SiteError, match=f"splices an SAE at {SITES[1]}"):
        verify(graph, model, {SITES[0]: saes[SITES[0]]})
    other = tiny_sae("topk", SITES[1], 16, seed=9)
    with pytest.raises(GossamerError, match="other SAEs"):
        verify(graph, model, {**saes, SITES[1]: other})
    with pytest.raises(GossamerError, match="another model"):
        verify(graph, tiny_model("gpt2_inverse_layer"), saes)
    with pytest.raises(GossamerError, match="another model"):
        verify(replace(graph, token_ids=(3, 1, 5)), model, saes)
    about = {**graph.about, "model_digest": "0" * 16}
    with pytest.raises(GossamerError, match="other weights"):
        verify(replace(graph, about=about), model, saes)
    about = {**graph.about, "saes": {site: "0" * 16 for site in saes}}
    with pytest.raises(GossamerError, match="splices another SAE"):
        verify(replace(graph, about=about), model, saes)


def test_what_cannot_be_asked_is_refused(plain: Plain) -> None:
    graph = plain.graph()
    with pytest.raises(PromptError):
        long = replace(graph, token_ids=(1,) * 40, tokens=("a",) * 40)
        verify(long, plain.model, plain.coders)
    with pytest.raises(GossamerError, match="not 0"):
        verify(graph, plain.model, plain.coders, small=0.0)
    with pytest.raises(GossamerError, match="tolerance a share"):
        verify(graph, plain.model, plain.coders, tolerance=0.0)
    with pytest.raises(GossamerError, match='"attached" or "frozen"'):
        stage_of(graph, plain.model, plain.coders, error="dropped")


def test_saes_beside_the_graphs_change_nothing(plain: Plain) -> None:
    graph = plain.graph()
    more = {**plain.coders, "blocks.2.hook_mlp_out": tiny_sae("relu", "blocks.2.hook_mlp_out", 16)}
    one, two = (verify(graph, plain.model, saes, 20) for saes in (plain.coders, more))
    assert one.edges == two.edges and len(one.edges) == 20
