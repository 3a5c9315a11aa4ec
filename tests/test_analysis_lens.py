"""The logit lens both ways, logit tables, and two analyses side by side."""

import pytest
import torch

import gossamer
from gossamer.analysis.result import COLUMNS
from gossamer.errors import GossamerError, SiteError
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import tiny_sae

IDS = [1, 5, 7, 3, 9, 11]


def unembedded(model: gossamer.Model, vector: torch.Tensor) -> torch.Tensor:
    """A write vector's logits, from the definition."""
    language_model, adapter = model.language_model, model.layout.adapter
    norm = language_model.get_submodule(adapter.ln_final)
    if adapter.norm == "layer":
        vector = vector - vector.mean()
    return (
        language_model.lm_head.weight @ (vector * (adapter.gain_offset + norm.weight))
        if hasattr(language_model, "lm_head")
        else language_model.embed_out.weight @ (vector * norm.weight)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_latent_speaks_for_is_its_direct_effect_on_every_logit(family: str) -> None:
    """I20: with the final norm's centring and scale, the scores are direct effects over f."""
    model = tiny_model(family)
    sae = tiny_sae("topk", "blocks.1.hook_resid_pre", model.d_model)
    analysis = gossamer.analyze(model, IDS, 3, sae, top=None)
    active = gossamer.scalars(analysis.trace, "latent", "activation")[sae.site_out]
    assert active.positions is not None and active.units is not None
    last = int((active.positions == len(IDS) - 1).nonzero()[0])
    unit = int(active.units[last])
    scale = gossamer.run(model, IDS, record="ln_final.hook_scale").activations
    sigma = float(scale["ln_final.hook_scale"][0, -1, 0].detach())
    found = gossamer.lens(model, sae.site_out, unit, sae, top=37, scale=sigma)
    scores = {row.token_id: row.score for row in found.up}
    assert len(scores) == 37 and [r.token_id for r in found.down] == [
        r.token_id for r in reversed(found.up)
    ]
    plain = unembedded(model, sae.W_dec[unit]).detach() / sigma
    for token in (3, 17):
        direct = gossamer.scalars(
            gossamer.analyze(model, IDS, token, sae).trace, "latent", "direct"
        )[sae.site_out]
        torch.testing.assert_close(
            float(direct.values[last] / active.values[last]), scores[token], rtol=1e-9, atol=1e-12
        )
        torch.testing.assert_close(float(plain[token]), scores[token], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_input_tokens_are_ranked_by_the_pre_activation_on_their_embedding(family: str) -> None:
    """Each token's embedding as what the block receives, for a neuron and for a transcoder."""
    model = tiny_model(family)
    read = "blocks.0.hook_resid_pre" if model.layout.parallel else "blocks.0.hook_resid_mid"
    sae = tiny_sae("relu", "blocks.0.mlp.hook_in", model.d_model, site_out="blocks.0.hook_mlp_out")
    embeddings = torch.cat([
        gossamer.run(model, [token], record="hook_embed").activations["hook_embed"][0]
        for token in range(37)
    ])  # fmt: skip
    zero = gossamer.Set(read, embeddings[:, None], positions=0)
    trace = gossamer.run(
        model,
        [[0]] * 37,
        edits=[zero],
        record=["blocks.0.mlp.hook_pre", "blocks.0.mlp.hook_in"],
    )
    pre = trace.activations["blocks.0.mlp.hook_pre"][:, 0, 5]
    up = gossamer.lens(model, "blocks.0.mlp.hook_post", 5, top=37).read_up
    got = torch.tensor([row.score for row in sorted(up, key=lambda row: row.token_id)]).double()
    offset = (pre - got).mean()  # the bias
    torch.testing.assert_close(got + offset, pre.detach(), rtol=1e-6, atol=1e-8)
    latent = sae.pre_activations(trace.activations["blocks.0.mlp.hook_in"][:, 0])[:, 7]
    up = gossamer.lens(model, sae.site_out, 7, sae, top=37).read_up
    got = torch.tensor([row.score for row in sorted(up, key=lambda row: row.token_id)]).double()
    torch.testing.assert_close(got + sae.b_enc[7], latent.detach(), rtol=1e-6, atol=1e-8)


def test_a_node_behind_a_whole_layer_has_no_input_tokens() -> None:
    model = tiny_model("gpt2")
    sae = tiny_sae("topk", "blocks.1.hook_attn_out", model.d_model)
    found = gossamer.lens(model, sae.site_out, 3, sae)
    assert found.read_up == () and len(found.up) == 10


def test_what_has_no_unit_is_refused() -> None:
    model = tiny_model("gpt2")
    sae = tiny_sae("topk", "blocks.1.hook_resid_pre", model.d_model)
    with pytest.raises(SiteError, match="has no units"):
        gossamer.lens(model, "blocks.1.hook_resid_pre", 3)
    with pytest.raises(SiteError, match=r"choose from 0\.\.19"):
        gossamer.lens(model, sae.site_out, 20, sae)
    with pytest.raises(SiteError, match=r"choose from 0\.\.63"):
        gossamer.lens(model, "blocks.1.mlp.hook_post", 64)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_the_last_streams_lens_is_the_models_own_prediction(family: str) -> None:
    model = tiny_model(family)
    analysis = gossamer.analyze(model, IDS, 3)
    logits = gossamer.run(model, IDS).logits
    assert logits is not None and analysis.logits is not None
    torch.testing.assert_close(analysis.logits, logits[0, -1].detach(), rtol=1e-9, atol=1e-9)
    found = gossamer.logit_lens(analysis, top=4)
    assert list(found)[0] == "blocks.0.hook_resid_pre"
    last = found[f"blocks.{model.n_layers - 1}.hook_resid_post"]
    best = logits[0, -1].topk(4).indices.tolist()
    assert [row.token_id for row in last] == best
    with pytest.raises(GossamerError, match="Position 9"):
        gossamer.logit_lens(analysis, position=9)


def test_pinned_tokens_come_first_in_a_logit_table() -> None:
    model = tiny_model("gpt2")
    logits = torch.arange(37.0)
    rows = gossamer.logit_table(model, logits, top=3, pinned=[4, 36])
    assert [row.token_id for row in rows] == [4, 36, 35, 34]
    assert [row.pinned for row in rows] == [True, True, False, False]
    assert rows[1].relative == 32.0
    assert sum(row.probability for row in rows) < 1


def test_compared_rows_are_each_sides_own() -> None:
    """Union of both tables, complete on both sides, differences and all."""
    model = tiny_model("llama")
    saes = [tiny_sae("topk", "blocks.1.hook_resid_pre", model.d_model)]
    left = gossamer.analyze(model, IDS, gossamer.LogitDifference(3, 4), saes, top=5)
    right = gossamer.analyze(model, [1, 5, 8, 3, 9, 2], gossamer.LogitDifference(3, 4), saes, top=5)
    both = gossamer.compare(left, right)
    mine = {row.node: row for row in left.rows}
    theirs = {row.node: row for row in right.rows}
    nodes = {row.node for row in both.rows}
    assert mine.keys() <= nodes and theirs.keys() <= {row.right_node for row in both.rows}
    full = {
        side: {row.node: row for row in gossamer.analyze(
            model, ids, gossamer.LogitDifference(3, 4), saes, top=None).rows}
        for side, ids in (("left", IDS), ("right", [1, 5, 8, 3, 9, 2]))
    }  # fmt: skip
    for row in both.rows:
        for side, name in (("left", row.node), ("right", row.right_node)):
            other = full[side].get(name)
            for column in COLUMNS:
                value = getattr(row, side)[column]
                expected = 0.0 if other is None else getattr(other, column)
                assert value == expected or abs(value - expected) < 1e-12
        if row.left["direct"] is not None and row.right["direct"] is not None:
            assert row.difference["direct"] == row.left["direct"] - row.right["direct"]
    assert both.difference == left.value - right.value
    embeds = [row for row in both.rows if row.kind == "embedding" and row.node.endswith("@2")]
    assert all(row.right_node == "hook_embed/8@2" for row in embeds)


def test_prompts_of_different_lengths_line_up_from_either_end() -> None:
    model = tiny_model("gpt2")
    left = gossamer.analyze(model, IDS, 3, top=None)
    right = gossamer.analyze(model, IDS[2:], 3, top=4)
    ends = gossamer.compare(left, right, align="end")
    for row in ends.rows:
        if row.kind == "neuron" and row.right["direct"] is not None:
            where = [int(node.rsplit("@", 1)[1]) for node in (row.node, row.right_node)]
            assert where[0] - where[1] == 2
    assert any(row.right["direct"] is None for row in ends.rows)  # positions that the right lacks
    with pytest.raises(GossamerError, match="no edits"):
        gossamer.compare(left)
    with pytest.raises(GossamerError, match='"start" or "end"'):
        gossamer.compare(left, right, align="middle")
