"""Edges of one node: in equals out (I13), finite differences (I14), shares add up (I18), paths are
complete (I9)."""

import pytest
import torch

import gossamer
from gossamer.errors import GossamerError, SiteError
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import tiny_sae

IDS = [1, 5, 7, 3, 9, 11]
LAST = len(IDS) - 1


def coders(model: gossamer.Model) -> list[gossamer.SAE]:
    """SAEs at every kind of place."""
    d = model.d_model
    return [
        tiny_sae("topk", "blocks.1.hook_resid_pre", d),
        tiny_sae("jumprelu", "blocks.1.hook_attn_out", d),
        tiny_sae("topk", "blocks.0.mlp.hook_in", d, site_out="blocks.0.hook_mlp_out", skip=True),
        tiny_sae("relu", "blocks.2.hook_mlp_out", d),
        tiny_sae("gated", "blocks.2.attn.hook_z", model.width("blocks.2.attn.hook_z")),
        tiny_sae("topk", "blocks.1.mlp.hook_post", model.width("blocks.1.mlp.hook_post")),
    ]


def ids_of(found: gossamer.Scalars) -> list[str]:
    """Node ids of latents."""
    assert found.units is not None and found.positions is not None
    pairs = zip(found.units.tolist(), found.positions.tolist(), strict=True)
    return [f"{found.site}/{unit}@{position}" for unit, position in pairs]


def close(a: float | torch.Tensor, b: float | torch.Tensor) -> None:
    """Equal to float64's precision."""
    torch.testing.assert_close(
        torch.as_tensor(a, dtype=torch.float64),
        torch.as_tensor(b, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-11,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_out_of_a_node_are_edges_into_the_others(family: str) -> None:
    """I13: one Jacobian–vector product against a vector–Jacobian product for each target."""
    model = tiny_model(family)
    trace = gossamer.analyze(model, IDS, 3, coders(model)).trace
    source = ids_of(gossamer.scalars(trace, "latent", "activation")["blocks.0.hook_mlp_out"])[4]
    for kind in ("latent", "neuron"):
        for site, out in gossamer.scalars(trace, kind, "edge_out", node=source).items():
            if kind == "neuron" and site in trace.saes:
                continue  # there the name is a latent's
            if kind == "latent":
                targets = list(enumerate(ids_of(out)))[::3]
                values = out.values
            else:
                position = int(source.rsplit("@", 1)[1])
                targets = [(u, f"{site}/{u}@{position}") for u in (0, 3)]
                values = out.values[position]
            for place, target in targets:
                into = gossamer.scalars(trace, "latent", "edge_in", node=target)
                mine = into["blocks.0.hook_mlp_out"]
                close(mine.values[ids_of(mine).index(source)], values[place])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3"])
def test_edges_into_scores_are_upstream_tables(family: str) -> None:
    """Through the query, the key and both: out of one node, into one score, and the table."""
    model = tiny_model(family)
    saes = coders(model)
    trace = gossamer.analyze(model, IDS, 3, saes).trace
    ids = ids_of(gossamer.scalars(trace, "latent", "activation")["blocks.0.hook_mlp_out"])
    for route, place in (("q", 5), ("k", 3)):
        source = next(node for node in ids if node.endswith(f"@{place}"))
        out = gossamer.scalars(trace, "pair", "edge_out", node=source, route=route)
        score = "blocks.2.attn.hook_z/1@5<-3"
        into = gossamer.scalars(trace, "latent", "edge_in", node=score, route=route)
        mine = into["blocks.0.hook_mlp_out"]
        value = mine.values[ids_of(mine).index(source)]
        close(out["blocks.2.attn.hook_z"].values[5, 3, 1], value)
        table = gossamer.upstream(model, IDS, score, route, saes=saes, top=None)
        close(next(row.direct for row in table.rows if row.node == source), value)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox_sequential", "qwen3", "gemma2"])
def test_an_edge_is_a_finite_difference_with_the_scale_held(family: str) -> None:
    """I14: a little of what the node writes, put in just before the reader, its norm's scale
    kept."""
    model = tiny_model(family)
    trace = gossamer.analyze(model, IDS, 3, coders(model)).trace
    source, position = "blocks.0.mlp.hook_post/5@4", 4
    out = gossamer.scalars(trace, "neuron", "edge_out", node=source)["blocks.2.mlp.hook_post"]
    reader = "blocks.2.hook_resid_pre" if model.layout.parallel else "blocks.2.hook_resid_mid"
    size = 1e-4
    W_out = model.layout.part(0, model.layout.adapter.mlp.down)
    weight = W_out.weight if isinstance(W_out, torch.nn.Linear) else W_out.weight.T
    written = weight[:, 5] * trace.activations["blocks.0.mlp.hook_post"][0, position, 5]
    if model.layout.adapter.ln2_post is not None:
        post = model.layout.part(0, model.layout.adapter.ln2_post)
        scale = trace.activations["blocks.0.ln2_post.hook_scale"][0, position]
        written = written / scale * (model.layout.adapter.gain_offset + post.weight)
    clean = gossamer.run(model, IDS, record="blocks.2.ln2.hook_scale")
    pre = []
    for sign in (1, -1):
        edits = [
            gossamer.Steer(reader, sign * size * written.detach(), positions=position),
            gossamer.Patch("blocks.2.ln2.hook_scale", clean),
        ]
        seen = gossamer.run(model, IDS, edits=edits, record="blocks.2.mlp.hook_pre").activations
        pre.append(seen["blocks.2.mlp.hook_pre"][0].detach())
    difference = (pre[0] - pre[1]) / (2 * size)
    torch.testing.assert_close(out.values, difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["hook_attn_out", "attn.hook_z"])
def test_shares_of_heads_and_keys_add_up_to_a_latent(family: str, place: str) -> None:
    """I18: Σ A (v W_O) · E_m, and the biases, are the pre-activation."""
    model = tiny_model(family)
    site = f"blocks.1.{place}"
    sae = tiny_sae("topk", site, model.width(site), subtract_b_dec=True)
    analysis = gossamer.analyze(model, IDS, 3, sae)
    active = gossamer.scalars(analysis.trace, "latent", "activation")[site]
    assert active.units is not None and active.positions is not None
    for place_in_list in (0, len(active.units) - 1):
        unit, position = int(active.units[place_in_list]), int(active.positions[place_in_list])
        node = f"{site}/{unit}@{position}"
        share = gossamer.scalars(analysis.trace, "pair", "share", node=node)["blocks.1.attn.hook_z"]
        assert share.axes == ("key", "unit") and share.values.shape == (len(IDS), 4)
        assert not share.values[position + 1 :].any()
        row = sae.W_enc[unit]
        bias = sae.b_enc[unit] - row @ sae.b_dec
        if place == "hook_attn_out":
            output = model.layout.part(1, model.layout.adapter.attention.output)
            if getattr(output, "bias", None) is not None:
                bias = bias + row @ output.bias.detach()
        close(share.values.sum() + bias, active.values[place_in_list])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_paths_are_complete(family: str) -> None:
    """I9: a node's total effect is its direct one and what it gives through every neuron and every
    head's query, key and value, each by that node's own total effect. Norms held throughout; in the
    blocks behind, an edge counts with ∂s/∂ what it enters."""
    model = tiny_model(family)
    site = "blocks.1.mlp.hook_post"
    analysis = gossamer.analyze(model, IDS, gossamer.LogitDifference(3, 4))
    trace = analysis.trace
    direct = gossamer.scalars(trace, "neuron", "direct")[site].values
    total = gossamer.scalars(trace, "neuron", "total")[site].values
    position, unit = 4, 7
    node = f"{site}/{unit}@{position}"
    found = float(direct[position, unit])
    layer = "blocks.2."
    sites = [f"{layer}mlp.hook_pre", f"{layer}attn.hook_attn_scores", f"{layer}attn.hook_v"]
    held = [gossamer.Detach(s) for s in model.held_sites(("norms",))]
    run = gossamer.run(model, IDS, edits=held, record=[*sites, "ln_final.hook_normalized"])
    hidden = run.activations["ln_final.hook_normalized"][0, -1]
    norm = model.language_model.get_submodule(model.layout.adapter.ln_final)
    head = model.language_model.get_output_embeddings().weight
    gain = model.layout.adapter.gain_offset + norm.weight
    s = ((head[3] - head[4]) * gain * hidden).sum()
    by_pre, by_score, by_v = torch.autograd.grad(s, [run.activations[x] for x in sites])
    onto = gossamer.scalars(trace, "neuron", "edge_out", node=node)[f"{layer}mlp.hook_post"]
    found += float((onto.values * by_pre[0]).sum())
    if model.layout.adapter.mlp.pre_linear is not None:  # a gated MLP has a second way in
        found += _through(model, trace, node, s_site=f"{layer}mlp.hook_pre_linear")
    cap = getattr(model.language_model.config, "attn_logit_softcapping", None)
    scores = run.activations[sites[1]][0].detach()
    slope = 1 if cap is None else 1 - (scores.clamp(min=-cap) / cap) ** 2
    for route in ("q", "k"):
        onto = gossamer.scalars(trace, "pair", "edge_out", node=node, route=route)
        values = onto[f"{layer}attn.hook_z"].values.permute(2, 0, 1)
        found += float((values * by_score[0] * slope).sum())
    found += _through(model, trace, node, s_site=sites[2])
    close(found, total[position, unit])


def _through(model: gossamer.Model, trace: gossamer.Trace, node: str, *, s_site: str) -> float:
    """What a node gives through one place that reads the stream: its change there times ∂s/∂ it."""
    from gossamer.analysis.links import ways_of, written_by
    from gossamer.analysis.reading import read_before
    from gossamer.analysis.view import view_of
    from gossamer.sites import parse_node

    view = view_of(trace)
    position, written, _ = written_by(view, parse_node(node))
    moved = torch.zeros_like(view.at("hook_embed"))
    moved[position] = written
    ways = ways_of(trace, view, 0, ("norms",))
    change = ways.pushed(read_before(model, s_site), s_site, moved)
    held = [gossamer.Detach(s) for s in model.held_sites(("norms",))]
    run = gossamer.run(model, IDS, edits=held, record=[s_site, "ln_final.hook_normalized"])
    hidden = run.activations["ln_final.hook_normalized"][0, -1]
    norm = model.language_model.get_submodule(model.layout.adapter.ln_final)
    head = model.language_model.get_output_embeddings().weight
    gain = model.layout.adapter.gain_offset + norm.weight
    s = ((head[3] - head[4]) * gain * hidden).sum()
    (gradient,) = torch.autograd.grad(s, run.activations[s_site])
    return float((change * gradient[0]).sum())


def test_what_has_no_edges_is_refused() -> None:
    model = tiny_model("gpt2")
    trace = gossamer.analyze(model, IDS, 3, coders(model)).trace
    with pytest.raises(GossamerError, match="name the other one with node="):
        gossamer.scalars(trace, "latent", "edge_out")
    with pytest.raises(SiteError, match="writes nothing into the stream"):
        gossamer.scalars(trace, "latent", "edge_out", node="blocks.1.hook_resid_mid/3@2")
    with pytest.raises(SiteError, match="is not active"):
        active = set(ids_of(gossamer.scalars(trace, "latent", "activation")[
            "blocks.1.hook_resid_pre"]))  # fmt: skip
        absent = next(
            node
            for unit in range(20)
            if (node := f"blocks.1.hook_resid_pre/{unit}@2") not in active
        )
        gossamer.scalars(trace, "latent", "edge_out", node=absent)
    with pytest.raises(SiteError, match="heads have shares in latents"):
        gossamer.scalars(trace, "pair", "share", node="blocks.1.hook_resid_pre/3@2")
    with pytest.raises(GossamerError, match="node= belongs to"):
        gossamer.scalars(trace, "latent", "direct", node="blocks.1.hook_resid_pre/3@2")
    with pytest.raises(GossamerError, match="The residual stream is no node"):
        gossamer.scalars(trace, "residual", "edge_in", node="blocks.1.hook_resid_pre/3@2")
