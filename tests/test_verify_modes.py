"""Every measured effect equals the plain model's, and linear ones equal edges: law 6.

The reference (`plain_verify.py`) runs the model written out in plain torch once for each source and
mode, with every node a factor on what it writes; edges are the Jacobian by those factors.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.attribution.verify import through_paths, verify
from gossamer.attribution.verifying.fit import stage_of
from gossamer.attribution.verifying.measuring import Mode, measured, pairs_of
from gossamer.graph.graph import Graph
from gossamer.graph.rows import from_dense
from tests.plain_verify import Plain
from tests.tiny_models import tiny_model
from tests.tiny_saes import OwnSAE, plain_active, tiny_sae

IDS = [3, 1, 4, 15, 9]
SMALL = -0.3
MIXES = {
    "mixed": lambda: [
        tiny_sae("topk", "blocks.0.hook_mlp_out", 16),
        tiny_sae("relu", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out", skip=True),
        tiny_sae("jumprelu", "blocks.2.hook_resid_post", 16, seed=2),
    ],
    "transcoders": lambda: [
        tiny_sae(
            "gated", f"blocks.{n}.mlp.hook_in", 16, site_out=f"blocks.{n}.hook_mlp_out", seed=n
        )
        for n in range(3)
    ],
    "residual": lambda: [
        tiny_sae("topk", "blocks.0.hook_resid_post", 16, normalization="layer_norm"),
        tiny_sae("relu", "blocks.1.hook_attn_out", 16, seed=1),
        tiny_sae("topk_signed", "blocks.2.hook_resid_pre", 16, seed=2),
    ],
    "shared": lambda: [  # a transcoder reads what an autoencoder wrote, at the same site
        tiny_sae("relu", "blocks.1.hook_resid_pre", 16, seed=3),
        tiny_sae("relu", "blocks.1.hook_resid_pre", 16, site_out="blocks.1.hook_mlp_out", seed=4),
    ],
    "own": lambda: [
        OwnSAE("blocks.0.hook_resid_post", 16),
        OwnSAE("blocks.2.mlp.hook_in", 16, "blocks.2.hook_mlp_out", seed=1),
    ],
}
CASES = [
    *((family, "mixed") for family in ("gpt2", "llama", "gemma2", "gpt_neox", "qwen3")),
    *(("gpt2", mix) for mix in MIXES if mix != "mixed"),
    ("gemma3", "transcoders"),
]


def plain_of(family: str, mix: str, hold: tuple[str, ...] = ("attention", "norms")) -> Plain:
    """One prompt of one tiny model with some SAEs."""
    coders = {coder.site_out: coder for coder in MIXES[mix]()}
    return Plain(tiny_model(family), coders, IDS, [(5, -1), (7, 9)], hold)


def some_edges(graph: Graph, n: int) -> list[tuple[str, str]]:
    """Edges of every kind of source and target, drawn with a seed."""
    ids, arrays = graph.nodes.ids, graph.edges.arrays()
    kinds = graph.nodes.kinds[arrays.sources] * 10 + graph.nodes.kinds[arrays.targets]
    generator, found = np.random.default_rng(0), []
    for kind in np.unique(kinds):
        which = np.flatnonzero(kinds == kind)
        for i in generator.permutation(which)[:n]:
            found.append((ids[arrays.sources[i]], ids[arrays.targets[i]]))
    return found


class Answers:
    """What the plain model answers to one source's change, kept by (source, way, share)."""

    def __init__(self, plain: Plain, graph: Graph, frozen: bool) -> None:
        self.plain, self.frozen = plain, frozen
        self.ones = torch.ones(len(plain.sources), dtype=plain.model.dtype)
        self.places = [place for _, place in plain.places()]
        self.names = [
            graph.nodes.ids[i] for i in [self._number(graph, name) for name, _ in plain.places()]
        ]
        self.known: dict[tuple[int, str, float], tuple[torch.Tensor, dict[str, Any]]] = {}

    @staticmethod
    def _number(graph: Graph, name: tuple[str, str, int, int]) -> int:
        site, kind, unit, position = name
        return next(
            i
            for i, node in enumerate(graph.nodes)
            if (node.site, node.kind, node.position) == (site, kind, position)
            and str(node.unit).split("-")[0] == str(unit)
        )

    def __call__(self, source: int, way: str, share: float) -> tuple[torch.Tensor, dict[str, Any]]:
        key = (source, way, share)
        if key not in self.known:
            alpha = self.ones.clone()
            alpha[source] -= share
            self.known[key] = self.plain.answer(alpha, way=way, frozen=self.frozen)
        return self.known[key]

    def effect(self, source: int, target: str, way: str, share: float) -> float:
        """Clean minus changed over the share."""
        place = self.places[self.names.index(target)]
        clean, changed = self(0, way, 0.0)[0][place], self(source, way, share)[0][place]
        return float(clean - changed) / share

    def flips(self, source: int, node: Any, way: str) -> tuple[bool, int]:
        """Whether the target's gate flipped, and how many others at its place."""
        if node.kind == "logit":
            return False, 0
        coder = self.plain.coders[node.site]
        before, after = (
            plain_active(coder, self(source, way, share)[1][node.site][node.position])
            for share in (0.0, 1.0)
        )
        changes = before != after
        return bool(changes[node.unit]), int(changes.sum()) - int(changes[node.unit])


@pytest.mark.parametrize(("family", "mix"), CASES)
@torch.no_grad()
def test_every_mode_is_what_the_plain_model_answers(family: str, mix: str) -> None:
    plain = plain_of(family, mix)
    graph = plain.graph()
    frozen = mix != "own" and family != "llama"
    pairs = some_edges(graph, 3 if family == "llama" else 2)
    assert len(pairs) >= 8
    report = verify(
        graph,
        plain.model,
        plain.coders,
        edges=pairs,
        small=SMALL,
        error="frozen" if frozen else "attached",
    )
    answers = Answers(plain, graph, frozen)
    for pair, edge in zip(pairs, report.edges, strict=True):
        assert (edge.source, edge.target) == pair
        source, target = (
            graph.nodes.number(edge.source),
            graph.nodes[graph.nodes.number(edge.target)],
        )
        close = {"rel": 1e-8, "abs": 1e-9}
        assert edge.linear == pytest.approx(edge.weight, **close)
        assert edge.held == pytest.approx(answers.effect(source, edge.target, "held", 1.0), **close)
        scales = answers.effect(source, edge.target, "scales", 1.0)
        assert edge.norms_held == pytest.approx(scales, **close)
        for way in ("direct", "total"):
            whole = answers.effect(source, edge.target, way, 1.0)
            small = answers.effect(source, edge.target, way, SMALL)
            assert getattr(edge, way) == pytest.approx(whole, **close)
            assert getattr(edge, f"{way}_small") == pytest.approx(small, **close)
            flips = (getattr(edge, f"flips_{way}"), getattr(edge, f"others_{way}"))
            assert flips == answers.flips(source, target, way)
    assert max(abs(edge.total) for edge in report.edges) > 1e-2


@pytest.mark.parametrize("hold", [(), ("norms",), ("attention",)])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_linear_effects_are_edges_whatever_is_held(family: str, hold: tuple[str, ...]) -> None:
    plain = plain_of(family, "mixed", hold)
    graph = plain.graph()
    report = verify(graph, plain.model, plain.coders, n_edges=10_000)
    assert len(report.edges) == graph.rows.n_entries
    weights = report.column("weight")
    assert np.abs(report.column("linear") - weights).max() < 1e-10 * np.abs(weights).max()


@pytest.mark.parametrize("share", [1.0, 0.1, -2.0, 1e-3])
def test_with_a_dictionary_for_every_mlp_a_held_run_moves_targets_by_their_edges(
    share: float,
) -> None:
    plain = plain_of("llama", "transcoders")
    graph = plain.graph()
    arrays = graph.edges.arrays()
    stage = stage_of(graph, plain.model, plain.coders, error="attached")
    pairs = pairs_of(
        stage, graph.nodes, arrays.sources.astype(np.int64), arrays.targets.astype(np.int64)
    )
    found = measured(stage, pairs, [Mode("held", "held", share)], progress=False)["held"].effects
    assert np.abs(found - arrays.weights).max() < 1e-10 * np.abs(arrays.weights).max() / abs(share)


@pytest.mark.parametrize("hold", [("attention", "norms"), ()])
def test_a_node_adds_up_over_all_paths(hold: tuple[str, ...]) -> None:
    plain = plain_of("gpt2", "mixed", hold)
    graph = plain.graph()
    nodes = graph.nodes
    dense = np.zeros((len(nodes), len(nodes)))
    for row in graph.rows.in_file_order():
        dense[row.target, row.sources] = row.values
    # With gates as they are, taking s away takes A[t, s] from t, and so that share of t's value.
    on = nodes.of_kind("latent")
    shares = np.where(on[:, None], dense / np.where(on, nodes.values, 1.0)[:, None], 0.0)
    paths = np.linalg.inv(np.eye(len(nodes)) - shares)
    expected = nodes.weights @ dense @ paths
    assert np.allclose(through_paths(graph), expected, rtol=1e-9, atol=1e-12)


def test_nodes_are_measured_on_what_the_graph_explains() -> None:
    plain = plain_of("gpt2", "transcoders")
    graph = plain.graph()
    report = verify(graph, plain.model, plain.coders, 0, nodes=6, small=SMALL)
    assert not report.edges and len(report.nodes) == 6
    answers = Answers(plain, graph, frozen=False)
    targets = [graph.nodes.ids[t] for t in graph.nodes.targets]
    influence = graph.influence()
    able = [i for i, node in enumerate(graph.nodes) if node.kind != "logit"]
    best = sorted(able, key=lambda i: -influence[i])[:6]
    assert [node.node for node in report.nodes] == [graph.nodes.ids[i] for i in best]
    with torch.no_grad():
        for node, i in zip(report.nodes, best, strict=True):
            for share, found in ((1.0, node.total), (SMALL, node.total_small)):
                effects = [answers.effect(i, target, "total", share) for target in targets]
                assert found == pytest.approx(sum(effects) / len(targets), rel=1e-8, abs=1e-9)
            within = abs(node.total - node.predicted) <= 0.2 * abs(node.predicted) + 1e-9
            assert node.agrees == within


def test_what_lies_after_the_last_target_changes_nothing() -> None:
    """Only positions up to the last target run, and the numbers are those of the whole prompt."""
    plain = plain_of("gpt2", "mixed")
    graph = plain.graph()
    early = [pair for pair in some_edges(graph, 20) if pair[1].endswith(("@0", "@1"))]
    late = [pair for pair in some_edges(graph, 20) if pair[1].endswith("@4")]
    assert early and late
    alone = verify(graph, plain.model, plain.coders, edges=early)
    beside = verify(graph, plain.model, plain.coders, edges=[*early, *late])
    for one, two in zip(alone.edges, beside.edges, strict=False):
        assert one.total == pytest.approx(two.total, rel=1e-9, abs=1e-12)
        assert one.kind == two.kind


def test_a_wrong_edge_is_found_out() -> None:
    """The measurement does not lean on the weights it checks."""
    plain = plain_of("llama", "transcoders")
    graph = plain.graph()
    dense = np.zeros((len(graph.nodes), len(graph.nodes)))
    for row in graph.rows.in_file_order():
        dense[row.target, row.sources] = 2 * row.values
    wrong = verify(replace(graph, rows=from_dense(dense)), plain.model, plain.coders, 50)
    assert wrong.shares().modes["linear"] == 0 and wrong.shares().classes["holds"] < 0.2
