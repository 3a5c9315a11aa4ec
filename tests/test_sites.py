"""Names of sites and nodes: one parser, one printer, one order.

Checked against the examples of the design and the data flow of a block, written out here.
"""

import itertools

import pytest

from gossamer.errors import SiteError
from gossamer.sites import (
    AFTER_BLOCKS,
    BEFORE_BLOCKS,
    BLOCK_KINDS,
    NodeId,
    is_before,
    parse_node,
    parse_site,
    unknown_site,
)

DESIGNED = (
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("mlp.hook_in", "mlp.hook_pre", "mlp.hook_post", "ln2.hook_normalized"),
    *("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z"),
    *("attn.hook_attn_scores", "attn.hook_pattern"),
)
"""Kinds of site that the design names, inside a block."""

DATA_FLOW = (
    ("hook_embed", "blocks.0.hook_resid_pre"),
    ("hook_pos_embed", "blocks.0.hook_resid_pre"),
    ("blocks.1.hook_resid_pre", "blocks.1.ln1.hook_normalized"),
    ("blocks.1.ln1.hook_scale", "blocks.1.ln1.hook_normalized"),
    ("blocks.1.ln1.hook_normalized", "blocks.1.attn.hook_q"),
    ("blocks.1.ln1.hook_normalized", "blocks.1.attn.hook_v"),
    ("blocks.1.attn.hook_q", "blocks.1.attn.q_norm.hook_scale"),
    ("blocks.1.attn.q_norm.hook_scale", "blocks.1.attn.hook_rot_q"),
    ("blocks.1.attn.hook_k", "blocks.1.attn.hook_rot_k"),
    ("blocks.1.attn.hook_rot_q", "blocks.1.attn.hook_attn_scores"),
    ("blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern"),
    ("blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"),
    ("blocks.1.attn.hook_v", "blocks.1.attn.hook_z"),
    ("blocks.1.attn.hook_z", "blocks.1.hook_attn_out"),
    ("blocks.1.ln1_post.hook_scale", "blocks.1.hook_attn_out"),
    ("blocks.1.hook_attn_out", "blocks.1.hook_resid_mid"),
    ("blocks.1.hook_resid_mid", "blocks.1.ln2.hook_normalized"),
    ("blocks.1.ln2.hook_normalized", "blocks.1.mlp.hook_in"),
    ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_pre"),
    ("blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"),
    ("blocks.1.mlp.hook_pre_linear", "blocks.1.mlp.hook_post"),
    ("blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"),
    ("blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"),
    ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"),
    ("blocks.2.hook_resid_post", "blocks.10.hook_resid_pre"),  # layers are numbers, not text
    ("blocks.10.hook_resid_post", "ln_final.hook_normalized"),
    ("ln_final.hook_scale", "ln_final.hook_normalized"),
    ("ln_final.hook_normalized", "logits"),
)
"""Pairs where the second is computed from the first."""

EVERY = (
    *BEFORE_BLOCKS,
    *(f"blocks.{layer}.{kind}" for layer in (0, 3, 12) for kind in BLOCK_KINDS),
    *AFTER_BLOCKS,
)


def test_every_site_the_design_names_is_known() -> None:
    for name in (
        "hook_embed",
        "ln_final.hook_normalized",
        *(f"blocks.3.{kind}" for kind in DESIGNED),
    ):
        assert str(parse_site(name)) == name


@pytest.mark.parametrize("name", EVERY)
def test_sites_come_back_as_they_were_written(name: str) -> None:
    site = parse_site(name)
    assert str(site) == name
    assert site.layer == (int(name.split(".")[1]) if name.startswith("blocks.") else None)


@pytest.mark.parametrize(("first", "second"), DATA_FLOW)
def test_order_is_the_order_of_computation(first: str, second: str) -> None:
    assert is_before(first, second) and not is_before(second, first)
    assert parse_site(first) < parse_site(second)


def test_order_is_total_and_strict() -> None:
    assert all(not is_before(name, name) for name in EVERY)
    for a, b in itertools.pairwise(EVERY):
        assert is_before(a, b) and not is_before(b, a)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.3.hook_mpl_out", "blocks.3.hook_mlp_out"),
        ("blocks.7.hook_resid_per", "blocks.7.hook_resid_pre"),
        ("hook_emebd", "hook_embed"),
        ("blocks.2.attn.hook_patern", "blocks.2.attn.hook_pattern"),
        ("ln_final.hook_normalised", "ln_final.hook_normalized"),
    ],
)
def test_a_misspelt_site_names_the_near_one(name: str, near: str) -> None:
    with pytest.raises(SiteError) as caught:
        parse_site(name)
    assert f'"{name}"' in str(caught.value) and near in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("", "blocks", "blocks.3", "blocks.3.", "blocks..hook_z", "blocks.x.hook_resid_pre"),
        *("blocks.-1.hook_resid_pre", "hook_resid_pre"),
        *("blocks.3.hook_resid_pre ", "blocks.3.hook_resid_pre/1@2"),
        *("blocks.03.hook_resid_pre", "blocks.٣.hook_resid_pre", "blocks.3.hook_resid_pre\n"),
    ],
)
def test_what_is_not_a_site_is_refused(name: str) -> None:
    with pytest.raises(SiteError, match="No site"):
        parse_site(name)


def test_an_unknown_site_lists_at_most_five_names() -> None:
    message = str(unknown_site("zzz", [f"blocks.0.{kind}" for kind in BLOCK_KINDS]))
    assert message.count("blocks.0.") == 5


NODES = {
    "blocks.3.hook_resid_pre/1234@7": NodeId("blocks.3.hook_resid_pre", 1234, 7),
    "blocks.3.hook_resid_pre/error@7": NodeId("blocks.3.hook_resid_pre", "error", 7),
    "hook_embed/15496@0": NodeId("hook_embed", 15496, 0),
    "hook_pos_embed/7@7": NodeId("hook_pos_embed", 7, 7),
    "blocks.3.attn/bias@7": NodeId("blocks.3.attn", "bias", 7),
    "blocks.3.mlp/remainder@7": NodeId("blocks.3.mlp", "remainder", 7),
    "blocks.9.attn.hook_z/6@14<-4": NodeId("blocks.9.attn.hook_z", 6, 14, 4),
    "logits/318@14": NodeId("logits", 318, 14),
}
"""The examples of the design, and what they say."""


@pytest.mark.parametrize("text", NODES)
def test_nodes_are_read_and_written(text: str) -> None:
    assert parse_node(text) == NODES[text]
    assert str(NODES[text]) == text


def test_any_node_comes_back() -> None:
    for site, unit, position, key in itertools.product(
        ("blocks.11.attn.hook_z", "logits"), (0, 49151, "error"), (0, 1023), (None, 0, 7)
    ):
        node = NodeId(site, unit, position, key)
        assert parse_node(str(node)) == node


@pytest.mark.parametrize(
    "text",
    [
        *("", "logits", "logits/318", "logits@14", "/318@14"),
        *("logits/@14", "logits/318@", "logits/318@x", "logits/-1@3", "logits/3@-1"),
        *("logits/warning@3", "logits/3@4<-", "logits/3@4<-x", "a/b/3@4"),
        *("logits/318@14 ", "logits/٣@1", "logits/007@1", "logits/7@01"),
    ],
)
def test_what_is_not_a_node_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SiteError, match="is not a node.*blocks.3.hook_resid_pre/1234@7"):
        parse_node(text)
