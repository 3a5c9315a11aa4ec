"""A table of edges over a corpus is what graphs of its prompts add up to, however it is made."""

import functools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.attribution.over.over import edges_over
from gossamer.attribution.over.table import EdgeRow, EdgeTable
from gossamer.errors import GossamerError, SiteError
from gossamer.sites import parse_node
from tests.tiny_models import tiny_model
from tests.tiny_saes import D_SAE, OwnSAE, tiny_sae

GENERATOR = np.random.default_rng(0)
CORPUS = [GENERATOR.integers(0, 37, n).tolist() for n in (7, 5, 8, 2, 8, 8)]
CONTEXT = 6  # two documents fit, the others are cut
FINE = 2.0**-44
MIXES: dict[str, Any] = {
    "transcoders": lambda: [_transcoder(0), _transcoder(1, "relu", skip=True), _transcoder(2)],
    "residual": lambda: [_residual(0, "relu"), _residual(1, "gated"), _residual(2)],
    "mixed": lambda: [
        _residual(0),
        tiny_sae("jumprelu", "blocks.0.hook_attn_out", 16),
        _transcoder(1),
        OwnSAE("blocks.2.mlp.hook_in", 16, "blocks.2.hook_mlp_out"),
    ],
}


def _transcoder(layer: int, kind: str = "topk", **options: Any) -> Any:
    site = f"blocks.{layer}.mlp.hook_in"
    return tiny_sae(kind, site, 16, site_out=f"blocks.{layer}.hook_mlp_out", seed=layer, **options)


def _residual(layer: int, kind: str = "topk") -> Any:
    return tiny_sae(kind, f"blocks.{layer}.hook_resid_pre", 16, seed=layer)


def saes_of(mix: str) -> dict[str, Any]:
    return {sae.site_out: sae for sae in MIXES[mix]()}


def table_of(mix: str = "transcoders", family: str = "gpt2", **options: Any) -> EdgeTable:
    given: dict[str, Any] = {"n_tokens": 10**6, "context": CONTEXT, "resolution": FINE}
    return edges_over(tiny_model(family), saes_of(mix), CORPUS, **given | options)


def rows_of(table: EdgeTable) -> dict[tuple[str, str, str], EdgeRow]:
    return {(row.source, row.target, row.offset): row for row in table.rows()}


def prompts() -> list[list[int]]:
    return [ids[i : i + CONTEXT] for ids in CORPUS for i in range(0, len(ids), CONTEXT)]


@functools.cache
def brute_force(mix: str, family: str) -> tuple[dict[Any, list[tuple[float, float]]], Any]:
    """(edge, target's activation) of every edge of the prompts' graphs; activations by latent."""
    model, saes = tiny_model(family), saes_of(mix)
    found: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    active: dict[str, list[float]] = defaultdict(list)
    last = list(saes)[-1]
    for ids in prompts():
        graph = gossamer.attribute(model, saes, ids, target=gossamer.Latents(last))
        assert isinstance(graph, gossamer.Graph)
        nodes = list(graph.nodes)
        for node in nodes:
            if node.kind == "latent":
                active[node.id.split("@")[0]].append(node.value)
        for source, target, weight in zip(*(c.tolist() for c in graph.edges.arrays()), strict=True):
            ends = nodes[source], nodes[target]
            if all(end.kind == "latent" for end in ends):
                at = [parse_node(end.id) for end in ends]
                offset = ("0", "1", "2+")[min(2, at[1].position - at[0].position)]
                key = (*(f"{each.site}/{each.unit}" for each in at), offset)
                found[key].append((weight, ends[1].value))
    return found, active


CASES = [
    ("transcoders", "gpt2"),
    ("transcoders", "llama"),
    ("transcoders", "gemma2"),
    ("residual", "gpt_neox"),
    ("mixed", "gpt2"),
    ("mixed", "qwen3"),
]


@pytest.mark.parametrize(("mix", "family"), CASES)
def test_it_is_what_graphs_add_up_to(mix: str, family: str) -> None:
    edges, active = brute_force(mix, family)
    table = table_of(mix, family, offsets="all")
    rows = rows_of(table)
    assert len(table) == len(rows) and rows.keys() == edges.keys() and len(rows) > 100
    assert {key[2] for key in rows} == {"0", "1", "2+"}
    for key, row in rows.items():
        a, f = np.array(edges[key]).T
        mean = a.sum() / len(a)
        error = math.sqrt(max(0, (a**2).mean() - mean**2) / len(a))
        expected = (a.sum(), np.abs(a).sum(), mean, np.abs(a).max())
        assert row.n_edges == len(a)
        assert np.allclose((row.sum, row.size, row.mean, row.largest), expected, 1e-9, 1e-11)
        assert math.isclose(row.error, error, rel_tol=1e-5, abs_tol=1e-6)
        ends = [active[node] for node in key[:2]]
        assert [row.n_source, row.n_target] == [len(values) for values in ends]
        assert math.isclose(row.normalised, (a * f).sum() / sum(ends[1]), abs_tol=1e-10)
    assert table.counted.n_edges == sum(map(len, edges.values()))
    assert (table.counted.n_tokens, table.counted.n_prompts) == (38, 10)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_edges_of_one_token_alone_are_those_of_all(family: str) -> None:
    for mix in ("transcoders", "mixed"):
        whole, own = (rows_of(table_of(mix, family, offsets=each)) for each in ("all", "same"))
        expected = {key: row for key, row in whole.items() if key[2] == "0"}
        assert own.keys() == expected.keys()
        for key, row in own.items():
            assert np.allclose(row[3:10], expected[key][3:10], 1e-9, 1e-10)


def test_the_normalised_weight_of_a_constant_edge_is_its_formula() -> None:
    """Without attention or a norm between, an edge is f_s · (W_s · E_t)."""
    first, second = _residual(1), tiny_sae("topk", "blocks.1.hook_resid_pre", 16, seed=9)
    second = tiny_sae(
        "topk", "blocks.1.hook_resid_pre", 16, site_out="blocks.1.hook_mlp_out", seed=9
    )
    model, saes = tiny_model("gpt2"), {sae.site_out: sae for sae in (first, second)}
    table = edges_over(model, saes, CORPUS, n_tokens=38, context=CONTEXT, resolution=FINE)
    latents = {site: [] for site in saes}
    for ids in prompts():
        trace = gossamer.run(model, ids, record=("blocks.1.hook_resid_pre",))
        x = trace.activations["blocks.1.hook_resid_pre"][0]
        for site, sae in saes.items():
            latents[site].append(sae.encode(x).detach().numpy())
    f_s, f_t = (np.concatenate(latents[sae.site_out]) for sae in (first, second))
    virtual = (second.W_enc @ first.W_dec.T).detach().numpy()
    expected = virtual * (f_t.T @ f_s) / np.maximum(f_t.sum(0), 1e-30)[:, None]
    found = np.zeros_like(expected)
    for row in table.rows():
        found[int(row.target.split("/")[1]), int(row.source.split("/")[1])] = row.normalised
    assert np.allclose(found, expected, atol=1e-10) and np.abs(found).max() > 0.01


def test_small_edges_are_left_out_and_counted() -> None:
    whole, cut = table_of(offsets="all"), table_of(offsets="all", smallest=0.02)
    sizes = np.array([a for edges in brute_force("transcoders", "gpt2")[0].values()
                      for a, _ in edges])  # fmt: skip
    small = np.abs(sizes)[np.abs(sizes) <= 0.02]
    assert cut.counted.n_left_out == len(small) > 0
    assert math.isclose(cut.counted.size_left_out, small.sum(), rel_tol=1e-9)
    assert cut.counted.n_edges == whole.counted.n_edges - len(small)
    assert all(row.largest > 0.02 for row in cut.rows()) and len(cut) < len(whole)


def test_the_strongest_rows_of_each_target_and_what_was_dropped() -> None:
    table = table_of("mixed", offsets="all")
    every: dict[str, list[EdgeRow]] = defaultdict(list)
    for row in table.rows():
        every[row.target].append(row)
    for by in ("size", "mean", "normalised"):
        few = table.strongest(3, by)
        kept: dict[str, list[EdgeRow]] = defaultdict(list)
        for row in few.rows():
            kept[row.target].append(row)
        assert few.dropped is not None and kept.keys() == every.keys()
        for target, rows in every.items():
            order = sorted(rows, key=lambda row: -abs(getattr(row, by)))
            assert {row[:3] for row in kept[target]} == {row[:3] for row in order[:3]}
            site, latent = target.rsplit("/", 1)
            lost = [column[int(latent)] for column in few.dropped[site]]
            rest = order[3:]
            expected = (
                len(rest),
                sum(row.sum for row in rest),
                sum(row.size for row in rest),
                max((abs(getattr(row, by)) for row in rest), default=0),
            )
            assert np.allclose(lost, expected)
    with pytest.raises(GossamerError, match="cannot be merged"):
        EdgeTable.merge([table.strongest(3)], Path("nowhere"))


def test_top_into_and_out_of_are_sorted_selections() -> None:
    table = table_of("mixed", offsets="all")
    rows = list(table.rows())
    for by in ("size", "sum", "mean", "n_edges", "largest", "normalised"):
        order = sorted(rows, key=lambda row: -abs(getattr(row, by)))
        assert [row[:3] for row in table.top(7, by)] == [row[:3] for row in order[:7]]
        for node in (order[0].target, order[0].source):
            into = [row[:3] for row in order if row.target == node]
            out = [row[:3] for row in order if row.source == node]
            assert [row[:3] for row in table.into(node, 5, by)] == into[:5]
            assert [row[:3] for row in table.out_of(node, 5, by)] == out[:5]
    assert table.top(0) == []
    frame = table.to_dataframe(4)
    assert list(frame.source) == [row.source for row in table.top(4)] and len(frame) == 4


def test_mistakes_are_told() -> None:
    table = table_of()
    for node in ("blocks.0.hook_mlp_out", f"blocks.0.hook_mlp_out/{D_SAE}", "logits/3"):
        with pytest.raises(SiteError, match="is no latent of this table"):
            table.into(node)
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"n_tokens": 0}, "1 or more, got 0"),
        ({"resolution": 0.1}, "a power of two"),
        ({"part": (2, 2)}, "0 ≤ i < n"),
        ({"smallest": math.nan}, "0 or more, got nan"),
        ({"part": (5, 6)}, "Part 5 of 6.*no tokens"),
        ({"resolution": 2.0**-60}, "take a coarser resolution"),
    )
    for options, words in mistakes:
        with pytest.raises(GossamerError, match=words):
            table_of(**options)
