"""Graphs with crosscoders: laws 4 to 6 against the oracle of graphs.

A crosscoder is given to the oracle as one coder at each of its sites whose latents are constants,
and what these give under one name is added up.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.attribution.attribute import attribute
from gossamer.attribution.targets import Latents, LogitDifference
from gossamer.attribution.verify import verify
from gossamer.attribution.verifying.faithfulness import faithfulness
from gossamer.edits import Ablate
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.graph import Graph
from gossamer.saes import Crosscoder
from gossamer.splice import run
from tests.graph_mixes import IDS, at, check_graph, check_laws, close, dense, plain_of
from tests.plain_attribution import PlainGraph
from tests.test_attribution_crosscoder import crosscoder
from tests.tiny_models import tiny_model

PRE, Z, MID, OUT = (
    *("blocks.0.hook_resid_pre", "blocks.1.attn.hook_z"),
    *("blocks.1.hook_resid_mid", "blocks.2.hook_mlp_out"),
)
FIRST, SECOND = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"


class PlainFace:
    """A crosscoder at one site: latents that are what they are, whatever stands there."""

    normalization = "none"

    def __init__(self, latents: Tensor, W_dec: Tensor, b_dec: Tensor, site: str) -> None:
        self.latents, self.W_dec, self.b_dec = latents, W_dec, b_dec
        self.site_in = self.site_out = site

    def encode(self, x: Tensor) -> Tensor:
        return self.latents

    def decode(self, latents: Tensor, x: Any = None) -> Tensor:
        return latents @ self.W_dec + self.b_dec


@dataclass
class Oracle:
    """What `check_graph` compares with: columns of one name added up, no rows of crosscoders."""

    plain: PlainGraph
    names: dict[str, str]
    """First site by site of each crosscoder."""

    def __post_init__(self) -> None:
        self.column_of = [self.named(name) for name in self.plain.leaves]
        self.leaves = list(dict.fromkeys(self.column_of))
        self.rows = [
            i for i, t in enumerate(self.plain.targets) if t.split("/")[0] not in self.names
        ]
        self.targets = [self.plain.targets[i] for i in self.rows]
        self.edges = self.summed(self.plain.edges)
        self.reads = self.plain.reads[self.rows]
        self.constants = self.plain.constants[self.rows]

    def named(self, name: str) -> str:
        site, unit = name.split("/")
        return f"{self.names.get(site, site)}/{unit}" if unit[0].isdigit() else name

    def summed(self, edges: Tensor) -> Tensor:
        where = torch.tensor([self.leaves.index(name) for name in self.column_of])
        zero = torch.zeros(len(self.rows), len(self.leaves)).double()
        return zero.index_add(1, where, edges[self.rows].detach())

    def changed(self, node: str, step: float) -> Tensor:
        """The linearised model's answer to a step of one node, wherever it writes."""
        scales = torch.ones(len(self.column_of)).double()
        scales[[i for i, name in enumerate(self.column_of) if name == node]] += step
        before = torch.ones_like(scales)
        with torch.no_grad():
            change = self.plain.at(scales, linear=True) - self.plain.at(before, linear=True)
        return change[self.rows] / step


def oracle(model: Any, saes: list[Any], **options: Any) -> Oracle:
    coders, names = [], {}
    clean = plain_of(model, []).clean
    for sae in saes:
        if not isinstance(sae, Crosscoder):
            coders.append(sae)
            continue
        x = {site: clean[site].flatten(1) for site in sae.reads}
        latents, first = sae.encode(x), min(sae.writes, key=model.sites.index)
        for site, columns in sae.columns().items():
            weights = sae.joint.W_dec[:, columns], sae.joint.b_dec[columns]
            coders.append(PlainFace(latents, *weights, site))
            names[site] = first
    return Oracle(plain_of(model, coders, **options), names)


def mix(model: Any) -> list[Any]:
    """Two crosscoders that interleave, a transcoder with a skip and residual SAEs."""
    ways = ("0.hook_attn_out", "1.mlp.hook_in>1.hook_mlp_out+", "2.hook_resid_pre")
    return [crosscoder(model, OUT, PRE, Z, seed=1), *at(model, *ways), *beside(model)]


def beside(model: Any) -> list[Any]:
    return [crosscoder(model, FIRST, "blocks.2.hook_attn_out", seed=2)]


@pytest.mark.parametrize("hold", [("attention", "norms"), ("attention", "norms", "mlps"), ()])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_edges_add_up_and_are_effects(family: str, hold: tuple[str, ...]) -> None:
    """Every edge is the oracle's, and what a node does in the linearised model."""
    model = tiny_model(family)
    saes = mix(model)
    effects: Any = "direct"
    graph: Any = attribute(model, saes, IDS, hold=hold, effects=effects)
    plain = oracle(model, saes, hold=hold)
    check_graph(graph, plain)
    nodes, matrix = graph.nodes, dense(graph)
    leaves = [i for i, node in enumerate(nodes) if node.kind == "latent" and np.isnan(node.reads)]
    assert {nodes[i].site for i in leaves} == {PRE, FIRST}
    assert not matrix[leaves].any() and (np.abs(matrix[:, leaves]).sum(0) > 0).any()
    if hold == ("attention", "norms"):
        here = [nodes.numbers[name] for name in plain.targets]
        for i in (*leaves[:3], *leaves[-2:], nodes.numbers[f"{Z}/error@3"]):
            close(matrix[here, i], plain.changed(nodes[i].id, 0.37))
        other: Any = attribute(model, saes, IDS, hold=hold, engine="plain")
        assert other.nodes.ids == nodes.ids
        close(dense(other), matrix)


def test_a_crosscoder_alone_cuts_what_it_stands_on() -> None:
    model = tiny_model("llama")
    saes = [crosscoder(model, PRE, "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre")]
    graph: Any = attribute(model, saes, IDS)
    check_graph(graph, oracle(model, saes))
    tokens = graph.nodes.of_kind("token")
    assert not dense(graph)[:, tokens].any()  # nothing goes past the first site
    partial: Any = attribute(model, saes[0].faces()["blocks.1.hook_resid_pre"], IDS)
    check_laws(partial, dense(partial))
    assert {n.site for n in partial.nodes if n.kind == "latent"} == {"blocks.1.hook_resid_pre"}


def test_integrated_gradients_scale_it_everywhere_at_once() -> None:
    model = tiny_model("gpt2")
    saes = [crosscoder(model, PRE, Z, OUT, seed=1), *at(model, "1.hook_attn_out")]
    graph: Any = attribute(model, saes, IDS, effects="integrated", steps=3)
    plain = oracle(model, saes, hold=("norms",))
    expected = plain.summed(plain.plain.integrated(3))
    here = [graph.nodes.numbers[name] for name in plain.targets]
    known = [name for name in plain.leaves if name in graph.nodes.numbers]
    found = dense(graph)[np.ix_(here, [graph.nodes.numbers[name] for name in known])]
    close(found, expected[:, [plain.leaves.index(name) for name in known]])


def test_fewer_nodes_pruned_kept_and_shown(tmp_path: Path) -> None:
    """Limits fold its latents into a remainder, pruning keeps them as the leaves they are."""
    model = tiny_model("gpt2")
    saes = mix(model)
    told: list[tuple[int, int]] = []
    whole: Any = attribute(model, saes, IDS, progress=lambda *numbers: told.append(numbers))
    assert told[-1][0] == told[-1][1]
    latents = whole.nodes.of_kind("latent")
    fixed = len(whole.nodes) - int(latents.sum())
    few: Any = attribute(model, saes, IDS, max_nodes=fixed + 60)
    check_laws(few, dense(few))
    assert few.nodes.of_kind("latent").sum() < latents.sum()
    pruned = whole.prune(0.9, 0.99)
    stayed = [n for n in pruned.nodes if n.kind == "latent" and np.isnan(n.reads)]
    influence = dict(zip(whole.nodes.ids, whole.influence(), strict=True))
    strongest = max((n.id for n in whole.nodes if n.site == PRE), key=lambda name: influence[name])
    assert strongest in {node.id for node in stayed}
    total = whole.influence()[~whole.nodes.are_read].sum()
    assert total == pytest.approx(whole.nodes.weights.sum())
    assert 0 < whole.completeness() < 1
    whole.save(tmp_path / "graph.safetensors")
    back = Graph.load(tmp_path / "graph.safetensors")
    assert back.nodes.ids == whole.nodes.ids and (dense(back) == dense(whole)).all()
    np.testing.assert_array_equal(back.nodes.are_read, whole.nodes.are_read)
    assert strongest in pruned.to_html(tmp_path / "graph.html").read_text()


def test_verify_changes_it_at_all_its_sites() -> None:
    model = tiny_model("gpt2")
    saes = mix(model)
    graph: Any = attribute(model, saes, IDS)
    report = verify(graph, model, saes, n_edges=200, choose="strongest", nodes=5)
    assert any(edge.source.startswith(PRE + "/") for edge in report.edges)
    for edge in report.edges:
        assert edge.linear == pytest.approx(edge.weight, rel=1e-9, abs=1e-11)
    frozen = verify(graph, model, saes, n_edges=50, choose="strongest", error="frozen")
    assert any(edge.kind == "holds" for edge in frozen.edges)
    leaf = next(n for n in graph.nodes if n.kind == "latent" and n.site == PRE)
    with pytest.raises(SiteError, match="no edge from"):
        verify(graph, model, saes, edges=[("hook_embed/1@0", leaf.id)])
    with pytest.raises(GossamerError, match="another SAE"):
        verify(graph, model, [crosscoder(model, OUT, PRE, Z, seed=5), *saes[1:]])


def test_circuits_keep_its_latents_as_they_were() -> None:
    """All that a graph has give the model back, a part the run in which the others are ablated."""
    model = tiny_model("gpt2")
    whole = crosscoder(model, PRE, Z, OUT)
    graph: Any = attribute(model, whole, IDS, LogitDifference(3, 8))
    curve = faithfulness(graph, model, whole, keep=[0, 2, 1.0], n_random=0)
    assert curve.points[-1].faithfulness == pytest.approx(1)
    latents = [node for node in graph.nodes if node.kind == "latent"]
    influence = graph.influence()
    kept = sorted(latents, key=lambda n: -influence[graph.nodes.numbers[n.id]])[:2]
    clean = run(model, IDS, whole).latents[PRE][0]
    gone = [
        Ablate(f"{PRE}/{i}@{p}")
        for p, i in clean.nonzero().tolist()
        if f"{PRE}/{i}@{p}" not in {node.id for node in kept}
    ]
    logits: Any = run(model, IDS, whole, gone, error="frozen").logits[0, -1]
    assert curve.points[1].target == pytest.approx((logits[3] - logits[8]).item())


def test_its_latents_are_no_target_of_a_graph() -> None:
    model = tiny_model("gpt2")
    whole = crosscoder(model, PRE, Z)
    for target in (Latents(Z), f"{PRE}/3@1"):
        with pytest.raises(GossamerError, match="leaves.*Take gossamer.edges"):
            attribute(model, whole, IDS, target)
    with pytest.raises(SiteError, match="A graph takes SAEs at"):
        attribute(model, crosscoder(model, PRE, "blocks.1.attn.hook_v").faces()[PRE], IDS)
