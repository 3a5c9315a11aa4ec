"""Head loadings against the oracle of graphs, and against runs in which one head carries nothing.

The oracle's edges are autograd of the plain model (`plain_attribution.py`). What a head carries is
what an edge loses when that head's z is 0 in the linearised run, by two derivatives of it.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.attribution.attribute import attribute
from gossamer.attribution.heads import loadings
from gossamer.attribution.heads.loadings import head_loadings
from gossamer.attribution.targets import LogitDifference, Logits
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.graph.graph import Graph
from gossamer.models.model import Model
from tests.graph_mixes import IDS, MIXES, at, mixed, plain_of
from tests.plain_attribution import PlainGraph
from tests.tiny_models import FAMILIES, tiny_model

MANY = 10**9
"""More moves than there are."""

TRANSCODERS = "0.mlp.hook_in>0.hook_mlp_out", "2.mlp.hook_in>2.hook_mlp_out"


Named = tuple[str, str, float]
"""Source, target and weight of an edge."""


def edges_of(plain: PlainGraph, n: int, *, crossing: bool = True) -> list[Named]:
    """About n edges with attention between their ends, or without: the strongest and others."""
    matrix = plain.edges.detach().numpy()
    columns, found = list(plain.leaves), []
    written = [max(float(v.abs().max()) for v in plain.leaves[name].values()) for name in columns]
    order = np.argsort(-np.abs(matrix), axis=None)
    for flat in [*order[: 5 * n], *order[:: max(1, len(order) // (20 * n))]]:
        t, s = np.unravel_index(flat, matrix.shape)
        between = behind(columns[s]) < before(plain, plain.targets[t])
        if between == crossing and written[s] > 1e-9:
            found.append((columns[s], plain.targets[t], float(matrix[t, s])))
    found = list(dict.fromkeys(found))
    return [*found[: n // 2], *found[n // 2 :: max(1, len(found) // n)]]


def behind(source: str) -> int:
    """How many blocks have run their attention before what a node writes is in the stream."""
    if not source.startswith("blocks."):
        return 0
    return int(source.split(".")[1]) + ("resid_pre" not in source)


def before(plain: PlainGraph, target: str) -> int:
    """How many blocks run their attention before a node reads."""
    if not target.startswith("blocks."):
        return 3
    site = plain.coders[target.split("/")[0]].site_in
    parallel = getattr(plain.model.config, "use_parallel_residual", False)
    beside = parallel and site.endswith(("hook_in", "ln2.hook_normalized", "hook_mlp_out"))
    return int(site.split(".")[1]) + (not ("resid_pre" in site or beside))


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_bypass_are_the_edge_at_every_layer_between(family: str) -> None:
    model = tiny_model(family)
    saes = mixed(model)
    plain = plain_of(model, saes)
    check(plain, model, saes, 60)


@pytest.mark.parametrize(
    "family, mix",
    [
        *(("gpt2", name) for name in MIXES if name not in ("none", "one layer")),
        *(("gpt_neox", name) for name in ("skip transcoders", "transcoders", "heads", "widths")),
    ],
)
def test_every_kind_of_dictionary_cuts_what_it_should(family: str, mix: str) -> None:
    model = tiny_model(family)
    saes = MIXES[mix](model)
    check(plain_of(model, saes), model, saes, 30)


def check(plain: PlainGraph, model: Model, saes: list[Any], n: int, **options: Any) -> None:
    """Weights are the oracle's, each layer adds up to them, and moves to heads; all is causal."""
    edges = edges_of(plain, n)
    assert edges
    found = head_loadings(model, saes, IDS, [edge[:2] for edge in edges], n_moves=MANY, **options)
    scale = max(1.0, float(plain.edges.abs().max()))
    for each, (source, target, weight) in zip(found, edges, strict=True):
        assert (each.source, each.target) == (source, target)
        assert abs(each.weight - weight) < 1e-10 * scale
        assert np.abs(each.residuals).max() < 1e-10 * scale
        begin, end = (int(name.rsplit("@", 1)[1]) for name in (source, target))
        assert each.offset == end - begin
        by_head = np.zeros_like(each.heads)
        for move in each.moves:
            assert begin <= move.key <= move.query <= end
            by_head[each.layers.index(move.layer), move.head] += move.loading
        np.testing.assert_allclose(by_head, each.heads, atol=1e-11 * scale)
        if end < begin:
            assert each.weight == 0 and not each.heads.any() and not each.bypass.any()
    assert any(np.abs(each.heads).max() > 1e-4 * scale for each in found)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_no_head_is_named_where_none_lies_between(family: str) -> None:
    model = tiny_model(family)
    saes = mixed(model)
    edges = edges_of(plain_of(model, saes), 16, crossing=False)
    assert any(weight for *_, weight in edges)
    for source, target, weight in edges:
        message = "No attention layer lies between" if weight else "lies between|go forward"
        with pytest.raises(GossamerError, match=message):
            head_loadings(model, saes, IDS, (source, target))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen3", "gemma2"])
def test_a_head_carries_what_the_linearised_run_lacks_without_it(family: str) -> None:
    model = tiny_model(family)
    saes = at(model, "0.hook_mlp_out", "2.hook_attn_out")
    plain = plain_of(model, saes)
    _ = plain.stacks, plain.straight, plain.constants
    edges = [edge for edge in edges_of(plain, 40) if edge[2]]
    found = head_loadings(model, saes, IDS, [edge[:2] for edge in edges])
    columns = list(plain.leaves)
    places = [(plain.targets.index(t), columns.index(s)) for s, t, _ in edges]
    whole = linear_edges(plain)
    for layer in range(3):
        for head in range(4):
            site = f"blocks.{layer}.attn.hook_z"
            plain.held[site] = partial(_without, head)
            less = whole - linear_edges(plain)
            del plain.held[site]
            for each, place in zip(found, places, strict=True):
                if layer in each.layers:
                    got = each.heads[each.layers.index(layer), head]
                    assert abs(got - float(less[place])) < 1e-10


def linear_edges(plain: PlainGraph) -> Tensor:
    """(n_targets, n_columns) in the run whose MLPs are straight lines."""
    scales = torch.ones(len(plain.leaves), dtype=torch.float64, requires_grad=True)
    reads = plain.at(scales, linear=True)
    units = torch.eye(len(reads), dtype=torch.float64)
    return torch.autograd.grad(reads, scales, units, is_grads_batched=True)[0]


def _without(head: int, z: Tensor) -> Tensor:
    keep = torch.ones_like(z)
    keep[:, head] = 0
    return z * keep


def test_no_head_carries_anything_through_a_spliced_attention() -> None:
    model = tiny_model("gpt2")
    saes = at(model, "0.hook_mlp_out", "1.hook_attn_out")
    plain = plain_of(model, saes)
    source = next(name for name in plain.leaves if name.startswith("blocks.0.hook_mlp_out/"))
    found = head_loadings(model, saes, IDS, (source, "logits/3@4"))[0]
    assert found.layers == (1, 2)
    assert not found.heads[0].any() and found.heads[1].any()
    assert all(move.layer == 2 for move in found.moves)


def test_held_mlps_pass_nothing_on() -> None:
    for family in ("gpt2", "gpt_neox"):
        model = tiny_model(family)
        saes = at(model, "0.hook_attn_out")
        hold = ("attention", "norms", "mlps")
        check(plain_of(model, saes, hold=hold), model, saes, 20, hold=hold)


def test_edges_together_are_edges_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    saes = mixed(model)
    pairs = [edge[:2] for edge in edges_of(plain_of(model, saes), 20)]
    together = head_loadings(model, saes, IDS, pairs)
    monkeypatch.setattr(loadings, "COLUMNS_AT_ONCE", 1)
    for one, other in zip(together, head_loadings(model, saes, IDS, pairs), strict=True):
        assert one.layers == other.layers
        np.testing.assert_allclose(one.heads, other.heads, atol=1e-12)
        np.testing.assert_allclose(one.bypass, other.bypass, atol=1e-12)


def test_a_graph_names_its_strongest_edges_across_positions() -> None:
    model = tiny_model("gemma3")
    saes = at(model, *TRANSCODERS)
    graph = attribute(model, saes, IDS)
    assert isinstance(graph, Graph)
    found = head_loadings(model, saes, graph, n_edges=7)
    edges = [edge for edge in graph.edges.top(len(graph.edges)) if edge.offset]
    assert [(e.source, e.target) for e in found] == [(e.source, e.target) for e in edges[:7]]
    for each, edge in zip(found, edges, strict=False):
        assert abs(each.weight - edge.weight) < 1e-5 * abs(edge.weight)
        assert each.offset == edge.offset
    named = head_loadings(model, saes, graph, edges[3])
    assert len(named) == 1 and named[0].target == edges[3].target
    difference = attribute(model, saes, IDS, LogitDifference(3, 5))
    assert isinstance(difference, Graph)
    assert any("3-5" in e.target for e in head_loadings(model, saes, difference, n_edges=50))


def test_what_can_be_read_off() -> None:
    model = tiny_model("gpt_neox")
    saes = at(model, "0.hook_mlp_out")
    source = next(name for name in plain_of(model, saes).leaves if "mlp_out" in name)
    found = head_loadings(model, saes, IDS, [(source, "logits/3@4"), (source, "logits/5@4")])
    each = found[0]
    rows = each.rows()
    for layer in each.layers:
        here = [row for row in rows if row.layer == layer]
        assert abs(sum(row.loading for row in here) - each.weight) < 1e-12
        assert abs(sum(row.share for row in here) - 1) < 1e-9
    assert {row.carrier for row in rows} == {"head", "bypass", "beside"}
    top = each.top(3)
    assert [abs(row.loading) for row in top] == sorted(
        (abs(row.loading) for row in rows if row.head is not None), reverse=True
    )[:3]
    assert each.top_moves(1, layer=each.layers[0])[0].layer == each.layers[0]
    best = found.top(1)[0]
    size = sum(abs(e.heads[e.layers.index(best.layer), best.head]) for e in found)
    assert abs(best.size - size) < 1e-12
    frame = found.to_dataframe()
    assert len(frame) == sum(len(e.rows()) for e in found)
    assert source in repr(each)


def test_what_cannot_be_answered_is_refused() -> None:
    model = tiny_model("gpt2")
    saes = at(model, *TRANSCODERS, "2.hook_resid_post")
    latent = next(n for n in plain_of(model, saes).leaves if n.startswith("blocks.0.hook_mlp_out/"))
    last = next(n for n in plain_of(model, saes).leaves if "2.hook_resid_post" in n)
    ask = partial(head_loadings, model, saes, IDS)
    refused = [
        ((last, "logits/3@4"), GossamerError, "No attention layer lies between"),
        ((last, latent), SiteError, "edges go forward"),
        (("logits/3@4", "logits/3@4"), SiteError, "writes nothing"),
        ((latent, "hook_embed/1@0"), SiteError, "reads nothing"),
        ((latent, "logits/99@4"), SiteError, "37 tokens"),
        (("hook_embed/9@0", "logits/3@4"), SiteError, "hook_embed/1@0"),
        (("hook_embed/1@40", "logits/3@4"), SiteError, "5 tokens"),
        (("blocks.1.hook_mlp_out/3@0", "logits/3@4"), SiteError, "no node of this prompt"),
        (("blocks.0.hook_mlp_out/99@0", "logits/3@4"), SiteError, "0..19"),
        (("blocks.0.attn.hook_z/1@4<-2", "logits/3@4"), SiteError, "is a head"),
        ((latent, "blocks.0.attn/bias@0"), SiteError, "reads nothing"),
        (("blocks.7.attn/bias@0", "logits/3@4"), SiteError, "writes nothing"),
        (("nonsense", "logits/3@4"), SiteError, "is not a node"),
        ([], GossamerError, "No edge"),
        ([latent], GossamerError, r"\(source id, target id\)"),
        (None, GossamerError, "give a Graph"),
    ]
    for edges, kind, message in refused:
        with pytest.raises(kind, match=message):
            ask(edges)
    encoded = saes[0].encode(plain_of(model, saes).x(saes[0]))
    silent = int((encoded[0] == 0).nonzero()[0])
    with pytest.raises(SiteError, match="is not active"):
        ask((f"blocks.0.hook_mlp_out/{silent}@0", "logits/3@4"))
    with pytest.raises(GossamerError, match="add 'attention'"):
        ask((latent, "logits/3@4"), hold=("norms",))
    with pytest.raises(PromptError, match="one prompt"):
        head_loadings(model, saes, [IDS, IDS], (latent, "logits/3@4"))
    found = ask((latent, "logits/3@4"))
    for wrong in (lambda: found[0].top(0), lambda: found[0].top_moves(3, layer=0)):
        with pytest.raises(GossamerError):
            wrong()


def test_a_graph_of_other_things_is_refused() -> None:
    model, other = tiny_model("llama"), tiny_model("mistral")
    saes = at(model, *TRANSCODERS)
    graph = attribute(model, saes, IDS, Logits(3))
    with pytest.raises(SiteError, match="splices an SAE at"):
        head_loadings(model, saes[:1], graph)
    with pytest.raises(GossamerError, match="of another model"):
        head_loadings(other, saes, graph, n_edges=20)
    further = [*saes, *at(model, "1.hook_resid_pre")]
    assert head_loadings(model, further, graph)[0].heads.any()
    with pytest.raises(SiteError, match="The graph has no node"):
        head_loadings(model, saes, graph, ("hook_embed/36@0", "logits/3@4"))
    gradients = attribute(model, saes, IDS, Logits(3), effects="gradient")
    with pytest.raises(GossamerError, match="direct edges apart"):
        head_loadings(model, saes, gradients)
    few = attribute(model, saes, IDS, Logits(3), max_nodes=60)
    assert isinstance(few, Graph) and isinstance(graph, Graph)
    assert len(few.nodes) <= 60 < len(graph.nodes)
    rest = next(name for name in few.nodes.ids if "hook_mlp_out/remainder" in name)
    with pytest.raises(GossamerError, match="max_nodes left out"):
        head_loadings(model, saes, few, (rest, "logits/3@4"))
    assert len(head_loadings(model, saes, few, n_edges=30)) == 30
