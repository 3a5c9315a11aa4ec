"""Graphs over every mix of dictionaries, architecture and normalization; see `graph_mixes.py`."""

from typing import Any

import numpy as np
import pytest

from gossamer.attribution.attribute import attribute
from gossamer.errors import GossamerError
from gossamer.sites import parse_node
from tests.graph_mixes import IDS, MIXES, at, check_graph, close, dense, fits, mixed, plain_of
from tests.plain_attribution import PlainGraph
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import ARCHITECTURES, OwnSAE, tiny_sae

NORMALIZATIONS = ("none", "center", "layer_norm", "rescale")


@pytest.mark.parametrize("name", MIXES)
def test_every_mix(name) -> None:
    model = tiny_model("gpt2")
    coders = MIXES[name](model)
    check_graph(attribute(model, coders, IDS), plain_of(model, coders))


@pytest.mark.parametrize("name", MIXES)
def test_every_mix_with_another_family(name) -> None:
    families = [family for family in FAMILIES if fits(tiny_model(family), name)]
    model = tiny_model(families[3 * list(MIXES).index(name) % len(families)])
    coders = MIXES[name](model)
    check_graph(attribute(model, coders, IDS, engine="plain"), plain_of(model, coders))


@pytest.mark.parametrize(
    ("family", "name"), [("gpt_neox", "knots"), ("gemma2", "knots"), ("gemma3", "everything")]
)
def test_crosses(family, name) -> None:
    model = tiny_model(family)
    coders = MIXES[name](model)
    check_graph(attribute(model, coders, IDS), plain_of(model, coders))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_and_normalization(architecture, normalization) -> None:
    """At each kind of site; one subtracts its b_dec. Transcoders cannot centre."""
    model = tiny_model("gemma2" if normalization == "layer_norm" else "gpt2")
    sites = ("blocks.0.hook_attn_out", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out")
    coders = [
        tiny_sae(
            architecture,
            site,
            model.width(site),
            seed=seed,
            normalization=normalization,
            subtract_b_dec=seed == 1,
        )
        for seed, site in enumerate((*sites, "blocks.2.attn.hook_z"))
    ]
    if normalization != "center":
        options: dict[str, Any] = {"site_out": "blocks.2.hook_mlp_out", "skip": True, "seed": 9}
        options["normalization"] = normalization
        coders.append(tiny_sae(architecture, "blocks.2.mlp.hook_in", 16, **options))
    check_graph(attribute(model, coders, IDS), plain_of(model, coders))


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_coder_of_the_users_own(family) -> None:
    """Curved on both sides: rows are derivatives, and what is not linear is a remainder."""
    model = tiny_model(family)
    coders = [
        OwnSAE("blocks.0.hook_attn_out", 16),
        OwnSAE("blocks.1.mlp.hook_in", 16, "blocks.1.hook_mlp_out", seed=1),
        *at(model, "2.hook_resid_pre"),
    ]
    check_graph(attribute(model, coders, IDS), plain_of(model, coders))


def test_saes_come_as_one_as_several_and_as_a_mapping() -> None:
    model = tiny_model("gpt2")
    coders = at(model, "1.hook_attn_out")
    expected: Any = attribute(model, coders, IDS)
    for saes in (coders[0], tuple(coders), {coders[0].site_out: coders[0]}):
        found: Any = attribute(model, saes, IDS)
        assert found.nodes.ids == expected.nodes.ids
        assert (dense(found) == dense(expected)).all()


def test_without_latents_that_are_active() -> None:
    """A dictionary that is silent is an error, a bias and nothing else."""
    model = tiny_model("gpt2")
    coders = at(model, "0.mlp.hook_in>0.hook_mlp_out", "1.hook_resid_pre")
    for coder in coders:
        coder.b_enc.sub_(1e3)
        coder.selection = tiny_sae("relu", "blocks.0.hook_mlp_out", 16).selection
    plain = plain_of(model, coders)
    assert not any(plain.active.values())
    check_graph(attribute(model, coders, IDS), plain)


@pytest.mark.parametrize(
    "way",
    ["1.mlp.hook_post", "1.attn.hook_v", "0.hook_mlp_out>1.hook_mlp_out+", "1.hook_mlp_out+"],
)
def test_dictionaries_where_no_node_can_stand_are_refused(way) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(GossamerError, match=r"blocks\.1\..*[Ll]eave (it|this SAE) out"):
        attribute(model, at(model, way), IDS)


# The latents of most influence


def counted(graph: Any) -> tuple[set[str], int]:
    """(ids of latents, how many other nodes, where each site has a remainder)."""
    latents = {node.id for node in graph.nodes if node.kind == "latent"}
    errors = {node.id for node in graph.nodes if node.kind == "error"}
    places = {name.replace("/error", "/remainder") for name in errors}
    return latents, len((set(graph.nodes.ids) | places) - latents)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.5])
def test_some_latents_are_nodes_and_the_others_their_sites_remainders(family, share) -> None:
    model = tiny_model(family)
    coders = mixed(model)
    active, others = counted(attribute(model, coders, IDS))
    limit = others + int(share * len(active))
    graph: Any = attribute(model, coders, IDS, max_nodes=limit)
    kept, _ = counted(graph)
    assert kept <= active and len(graph.nodes) <= limit
    assert (kept == active) == (share > 1) and (len(kept) > 0) == (share > 0)
    check_graph(graph, plain_of(model, coders, kept=sorted(kept)))


def test_latents_that_stay_are_those_of_most_influence() -> None:
    """On a graph of two sites, where the first round decides: what is next to the logits."""
    model = tiny_model("gpt2")
    coders = MIXES["transcoders"](model)
    whole: Any = attribute(model, coders, IDS)
    active, others = counted(whole)
    matrix = np.abs(dense(whole))
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-10)
    influence = np.zeros(len(matrix))
    for t in range(len(matrix))[::-1]:
        influence += (influence[t] + whole.nodes.weights[t]) * share[t]
    part: Any = attribute(model, coders, IDS, max_nodes=others + len(active) // 2)
    kept, _ = counted(part)
    of = {name: influence[whole.nodes.numbers[name]] for name in active}
    assert sum(of[name] for name in kept) > 0.9 * sum(sorted(of.values())[-len(kept) :])


def test_what_is_left_out_moves_into_remainders_alone() -> None:
    """Edges between nodes that stay are those of the whole graph."""
    model = tiny_model("qwen3")
    coders = mixed(model)
    whole: Any = attribute(model, coders, IDS)
    active, others = counted(whole)
    part: Any = attribute(model, coders, IDS, max_nodes=others + len(active) // 3)
    both = [name for name in part.nodes.ids if name in whole.nodes.numbers]
    few, many = dense(part), dense(whole)
    rows = [n for n in both if not np.isnan(part.nodes.reads[part.nodes.numbers[n]])]
    few = few[[part.nodes.numbers[n] for n in rows]]
    many = many[[whole.nodes.numbers[n] for n in rows]]
    for name in both:
        node = None if name.startswith("logits") else parse_node(name)
        if node is None or node.unit != "remainder" or node.site not in model.sites:
            close(few[:, part.nodes.numbers[name]], many[:, whole.nodes.numbers[name]])


def test_a_graph_of_nothing_but_the_model() -> None:
    """Without dictionaries only tokens, positions, biases and remainders lead to logits."""
    model = tiny_model("gpt2")
    graph: Any = attribute(model, [], IDS)
    plain: PlainGraph = plain_of(model, [])
    check_graph(graph, plain)
    kinds = {node.kind for node in graph.nodes}
    assert kinds == {"token", "position", "bias", "remainder", "logit"}
