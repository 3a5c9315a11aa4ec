"""Circuits kept by themselves, against the plain model with the same latents cut by hand."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.activations.means import Means
from gossamer.attribution.verifying.faithfulness import FaithfulnessCurve, faithfulness
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.graph import Graph
from tests.plain_model import plain_run
from tests.plain_verify import Plain
from tests.tiny_models import tiny_model
from tests.tiny_saes import D_SAE, plain_decode, plain_latents, tiny_sae

IDS = [3, 1, 4, 15]
CODERS = [
    tiny_sae("topk", "blocks.0.hook_resid_post", 16),
    tiny_sae("relu", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out", skip=True),
    tiny_sae("jumprelu", "blocks.2.hook_attn_out", 16, seed=2),
]
SAES = {coder.site_out: coder for coder in CODERS}


def some_means() -> Means:
    """Means of nothing in particular."""
    generator = torch.Generator().manual_seed(5)

    def drawn(width: int) -> dict[str, Tensor]:
        return {
            site: torch.rand(width, generator=generator, dtype=torch.float64) / 3 for site in SAES
        }

    return Means({}, drawn(D_SAE), drawn(16), 1)


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def plain(request: pytest.FixtureRequest) -> Plain:
    return Plain(tiny_model(request.param), SAES, IDS, [(5, -1), (7, 9)])


@torch.no_grad()
def by_hand(
    plain: Plain, kept: set[tuple[str, int, int]], means: Means | None, keeps_errors: bool
) -> float:
    """Σ weight · target of a run in which only some (site, position, latent) are kept."""
    clean, read = plain.values, {}

    def splice(coder: Any, value: Tensor) -> Tensor:
        site, shape = coder.site_out, value.shape
        x = value.flatten(1) if coder.site_in == site else read[coder.site_in]
        latents = plain_latents(coder, x)
        for p in range(len(IDS)):
            for i in range(D_SAE):
                if (site, p, i) not in kept:
                    latents[p, i] = 0 if means is None else means.latents[site][i]
        value = plain_decode(coder, latents, x)
        before = clean[coder.site_in].flatten(1)
        if keeps_errors:
            rest = plain_decode(coder, plain_latents(coder, before), before)
            value = value + clean[site].flatten(1) - rest
        elif means is not None:
            value = value + means.errors[site]
        return value.reshape(shape)

    def note(site: str, value: Tensor) -> Tensor:
        read[site] = value.flatten(1)
        return value

    replace = {c.site_in: lambda v, s=c.site_in: note(s, v) for c in CODERS if c.is_transcoder}
    replace |= {c.site_out: lambda v, c=c: splice(c, v) for c in CODERS}
    run = plain_run(plain.model.language_model, IDS, replace)
    return float(plain._scores(run["ln_final.hook_normalized"]).mean())


def members(graph: Graph, nodes: Any) -> set[tuple[str, int, int]]:
    """Latent nodes as (site, position, latent)."""
    return {
        (graph.nodes[int(i)].site, graph.nodes[int(i)].position, int(graph.nodes.units[i]))
        for i in nodes
    }


@pytest.mark.parametrize("errors", ["kept", "ablated"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_the_curve_is_what_the_plain_model_gives(
    plain: Plain, ablation: Literal["zero", "mean"], errors: Literal["kept", "ablated"]
) -> None:
    graph = plain.graph()
    means = some_means() if ablation == "mean" else None
    latents = np.flatnonzero(graph.nodes.of_kind("latent"))
    ranked = sorted(latents, key=lambda i: -graph.influence()[i])
    counts = [0, 1, 4, len(latents) // 2, len(latents)]
    curve = faithfulness(
        graph, plain.model, SAES, keep=counts, ablation=ablation, means=means, errors=errors
    )
    assert [point.kept for point in curve.points] == counts
    values = [by_hand(plain, members(graph, ranked[:n]), means, errors == "kept") for n in counts]
    full = plain._scores(plain.values["ln_final.hook_normalized"]).mean().item()
    assert curve.full == pytest.approx(full, rel=1e-9) and curve.empty == pytest.approx(values[0])
    for point, value in zip(curve.points, values, strict=True):
        assert point.target == pytest.approx(value, rel=1e-9, abs=1e-10)
        share = (value - values[0]) / (full - values[0])
        assert point.faithfulness == pytest.approx(share, rel=1e-7, abs=1e-9)
    assert len({round(value, 6) for value in values}) >= 3


def test_all_latents_and_their_errors_are_the_model(plain: Plain) -> None:
    curve = faithfulness(plain.graph(), plain.model, SAES, keep=[0, 1.0])
    assert curve.points[0].faithfulness == 0 and curve.points[0].random == 0
    assert curve.points[-1].faithfulness == pytest.approx(1) == curve.points[-1].random


def test_random_orders_repeat_with_their_seed_and_are_averaged(plain: Plain) -> None:
    graph, keep = plain.graph(), [3, 6]
    curves = [
        faithfulness(graph, plain.model, SAES, keep=keep, n_random=2, seed=seed)
        for seed in (4, 4, 5)
    ]
    assert curves[0] == curves[1] and curves[0].points != curves[2].points
    generator = np.random.default_rng(4)
    latents = np.flatnonzero(graph.nodes.of_kind("latent"))
    orders = [generator.permutation(latents) for _ in range(2)]
    for n, point in zip(keep, curves[0].points, strict=True):
        values = [by_hand(plain, members(graph, order[:n]), None, True) for order in orders]
        expected = (np.mean(values) - curves[0].empty) / (curves[0].full - curves[0].empty)
        assert point.random == pytest.approx(expected, rel=1e-8)
    alone = faithfulness(graph, plain.model, SAES, keep=keep, n_random=0)
    assert math.isnan(alone.points[0].random)


def test_a_pruned_graph_keeps_only_what_it_has(plain: Plain) -> None:
    graph = plain.graph()
    few = graph.subgraph([n.id for n in graph.nodes if n.kind != "latent" or n.position > 1])
    curve = faithfulness(few, plain.model, SAES, keep=[1.0], n_random=0)
    kept = members(few, np.flatnonzero(few.nodes.of_kind("latent")))
    assert 0 < len(kept) < graph.nodes.of_kind("latent").sum()
    assert curve.points[0].target == pytest.approx(by_hand(plain, kept, None, True), rel=1e-9)


def test_what_cannot_be_asked_is_refused(plain: Plain) -> None:
    graph, model = plain.graph(), plain.model
    with pytest.raises(GossamerError, match="go together"):
        faithfulness(graph, model, SAES, ablation="mean")
    with pytest.raises(GossamerError, match="go together"):
        faithfulness(graph, model, SAES, means=some_means())
    lacking = Means({}, {}, {}, 1)
    with pytest.raises(SiteError, match="have nothing of the SAE at"):
        faithfulness(graph, model, SAES, ablation="mean", means=lacking)
    for keep in ([-1], [1.5], []):
        with pytest.raises(GossamerError, match="keep"):
            faithfulness(graph, model, SAES, keep=keep)


def test_the_page_and_the_table_have_every_point(plain: Plain, tmp_path: Path) -> None:
    curve = faithfulness(plain.graph(), plain.model, SAES)
    text = curve.to_html(tmp_path / "curve.html").read_text()
    assert "<script" not in text and text.count("<polyline") == 2
    frame = curve.to_dataframe()
    assert frame["kept"].tolist() == [point.kept for point in curve.points]
    for point in curve.points:
        assert f'<td class="n">{point.kept}</td>' in text
    assert curve.sentence in text and "of the target" in curve.sentence
    flat = FaithfulnessCurve(curve.points[:1], 1.0, 1.0, curve.about)
    assert flat.to_html(tmp_path / "flat.html").exists()
