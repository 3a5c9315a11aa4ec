"""Reverse mode in bands, forward mode, every chunk size: all equal to one product at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.attribution import products
from gossamer.attribution.nodes import (
    Clean,
    Directions,
    active_latents,
    logit_nodes,
    token_nodes,
)
from gossamer.attribution.products import (
    Ends,
    at_one_site,
    bands,
    cheaper_forward,
    pulled_back,
    pushed_forward,
)
from gossamer.attribution.targets import Latents, LogitDifference, Logits
from gossamer.models.between import Between
from gossamer.models.blocks import BlockSetting, noted
from gossamer.models.taps import Tap, remember
from gossamer.saes.rows import read_rows, write_rows
from tests.plain_injection import plain_products
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

IDS = [3, 1, 4, 15, 9, 2, 6, 5, 3]
FIRST, LAST = "blocks.0.hook_resid_mid", "blocks.2.hook_attn_out"
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
HELD: dict[str, Tap] = dict.fromkeys(
    ("blocks.1.attn.hook_pattern", "blocks.2.ln1.hook_scale"), Tensor.detach
)
TARGETS: dict[str, Any] = {
    "latents": Latents(LAST),
    "logits": Logits(tokens=[9, 2, 30], position=6),
    "difference": LogitDifference(3, 8, position=5),
}


def ends(target: Any, family: str = "llama", at: dict[str, Tap] | None = None) -> Ends:
    """Latents at FIRST on `target`, as `edges` would set them up."""
    model = tiny_model(family)
    values: dict[str, Tensor] = {}
    settings: dict[int, BlockSetting] = {}
    with torch.no_grad(), noted(model.layout, settings):
        model.forward(model.batch([IDS]), {s: remember(values, s) for s in model.sites})
        clean = Clean(model, IDS, model.token_strings(IDS), values)
        first, last = (tiny_sae("topk", s, 16, seed=n) for n, s in enumerate((FIRST, LAST)))
        nodes = active_latents(Latents(FIRST), first, clean)
        sources = Directions(
            nodes, FIRST, write_rows(first, nodes.indices, clean.at(FIRST)[nodes.positions])
        )
        if isinstance(target, Latents):
            nodes = active_latents(target, last, clean)
            targets = Directions(
                nodes, LAST, read_rows(last, nodes.indices, clean.at(LAST)[nodes.positions])
            )
        else:
            targets = Directions(logit_nodes(target, clean), "logits", None)
    between = Between(model.layout, FIRST, targets.site, settings, values, at or {})
    return Ends(between, values[FIRST], sources, targets)


@pytest.mark.parametrize("held", [{}, HELD], ids=["free", "held"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_mode_and_chunk_size_equals_one_product_at_a_time(
    target: str, held: dict[str, Tap], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = ends(TARGETS[target], at=held)
    expected = plain_products(tiny_model("llama"), IDS, work, held)
    assert expected.abs().max() > 1e-3
    for band in (1, 5, 1000):
        monkeypatch.setattr(products, "BAND", band)
        for at_once in (1, 2, 7, 64):
            found, blocked = pulled_back(work, at_once)
            assert not blocked
            torch.testing.assert_close(found, expected, **CLOSE)
    for at_once in (1, 3, 64):
        found, blocked = pushed_forward(work, at_once)
        assert not blocked
        torch.testing.assert_close(found, expected, **CLOSE)
    ahead = work.sources.nodes.positions > work.targets.nodes.positions[:, None]
    assert ahead.any() and (pushed_forward(work, 64)[0][ahead] == 0).all()
    assert (pulled_back(work, 64)[0][ahead] == 0).all()


def test_a_blocked_way_gives_zeros_and_says_so() -> None:
    work = ends(Latents(LAST), at={"blocks.2.hook_resid_pre": Tensor.detach})
    for mode in (pulled_back, pushed_forward):
        found, blocked = mode(work, 8)
        assert blocked and (found == 0).all()


def test_no_targets_and_no_sources_give_empty_effects() -> None:
    for source, target in (([10**6], None), (None, [10**6])):
        work = ends(Latents(LAST))
        keep = {"sources": source, "targets": target}
        parts = {
            name: none_of(getattr(work, name)) if keep[name] else getattr(work, name)
            for name in keep
        }
        work = Ends(work.between, work.value, parts["sources"], parts["targets"])
        found, _ = pulled_back(work, 8)
        assert found.shape == (len(work.targets.nodes), len(work.sources.nodes))
        assert not cheaper_forward(work) or source is not None


def none_of(directions: Directions) -> Directions:
    """The same without nodes."""
    nodes, rows = directions.nodes, directions.rows
    assert rows is not None
    table = type(nodes)(
        nodes.site, nodes.positions[:0], nodes.indices[:0], nodes.values[:0], (), (), nodes.units
    )
    return Directions(table, directions.site, rows[:0])


def test_at_one_site_rows_meet_at_their_position() -> None:
    work = ends(Latents(LAST))
    both = Directions(work.sources.nodes, FIRST, work.sources.rows)
    found = at_one_site(Ends(None, work.value, both, both))
    assert both.rows is not None
    same = both.nodes.positions == both.nodes.positions[:, None]
    torch.testing.assert_close(found, (both.rows @ both.rows.T) * same, **CLOSE)


def test_bands_keep_positions_whole_and_cover_every_target_once() -> None:
    positions = [0, 0, 1, 3, 3, 3, 4, 7]
    assert [positions[b] for b in bands(positions, 1)] == [[0, 0], [1], [3, 3, 3], [4], [7]]
    assert [positions[b] for b in bands(positions, 3)] == [[0, 0, 1], [3, 3, 3], [4, 7]]
    assert list(bands(positions, 100)) == [slice(0, 8)] and list(bands([], 3)) == []


def test_the_side_with_far_fewer_nodes_is_the_one_that_is_moved() -> None:
    model, work = tiny_model("llama"), ends(Latents(LAST))
    assert not cheaper_forward(work)
    clean = Clean(model, IDS, model.token_strings(IDS), {})
    few = token_nodes(clean)
    assert work.sources.rows is not None and len(work.targets.nodes) > 2 * len(few)
    tokens = Directions(few, FIRST, work.sources.rows[: len(few)])
    assert cheaper_forward(Ends(work.between, work.value, tokens, work.targets))
    logit = ends(LogitDifference(3, 8))
    assert not cheaper_forward(logit)
