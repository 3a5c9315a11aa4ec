"""Cross-layer transcoders: sets of transcoders whose latents write at later layers, where all that
is written adds up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer.attribution.attribute import attribute
from gossamer.attribution.edges import edges
from gossamer.attribution.targets import Latents, Logits, Tokens
from gossamer.attribution.verify import measure, verify
from gossamer.attribution.verifying.faithfulness import faithfulness
from gossamer.edits import Ablate, Scale, Steer
from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.evaluation import evaluate
from gossamer.saes import SAE, ReLU, load_native
from gossamer.splice import as_saes, run
from tests.graph_mixes import IDS as PROMPT
from tests.graph_mixes import check_graph, plain_of
from tests.tiny_models import tiny_model
from tests.tiny_saes import plain_decode, plain_latents, tiny_clt, tiny_sae

IDS = [[3, 1, 4, 15, 9, 2, 6], [8, 36, 7]]
OUT = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(3))


def plain_sums(saes: list[SAE], x: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is made at each site, written out: y_m = own decode + Σ_i f_i W^{i→m}."""
    made = {sae.site_out: plain_decode(sae, plain_latents(sae, x[sae.site_in]), x[sae.site_in])
            for sae in saes}  # fmt: skip
    for sae in saes:
        for j, site in enumerate(sae.sites_later):
            assert sae.W_later is not None
            made[site] = made[site] + plain_latents(sae, x[sae.site_in]) @ sae.W_later[:, j]
    return made


def instead(site: str, rows: Tensor) -> list[Any]:
    """Edits that put these rows (pos, width) at a site of one prompt."""
    rows = rows.detach()
    return [Scale(site, 0.0), *(Steer(site, row, positions=p) for p, row in enumerate(rows))]


def test_its_members_come_back_from_their_files(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    for sae in tiny_clt(model, "jumprelu", skip=True):
        sae.save(tmp_path / sae.site_out)
        back = load_native(tmp_path / sae.site_out)
        assert back.sites_later == sae.sites_later and back.site_out == sae.site_out
        state = back.state_dict()
        assert all(torch.equal(state[name], value) for name, value in sae.state_dict().items())
    assert list(gossamer.load_saes(tmp_path)) == list(OUT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites_later": ()}, "given together, got W_later and sites_later empty"),
        ({"sites_later": (OUT[1], OUT[1])}, "different sites after"),
        ({"sites_later": (OUT[0], OUT[2])}, "different sites after"),
        ({"sites_later": OUT[1:2]}, r"W_later must have shape \(20, 1, 16\), got \(20, 2, 16\)"),
        ({"site_in": OUT[0]}, "is a transcoder without normalization"),
        ({"normalization": "layer_norm"}, "is a transcoder without normalization"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    sae = tiny_clt(tiny_model("gpt2"))[0]
    with pytest.raises(ShapeError, match=message):
        SAE(**{**sae.arguments(), **change})
    with pytest.raises(ShapeError, match=r"writes blocks.0.* blocks.2.hook_mlp_out, not blocks.7"):
        sae.weight_at("blocks.7.hook_mlp_out")


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("error", ["attached", "detached", "frozen"])
def test_splicing_with_errors_changes_nothing(family: str, error: Any) -> None:
    """Law 2, gradients upstream included where the error is attached; what is made is the sum."""
    model = tiny_model(family)
    saes = tiny_clt(model, "topk", "hook_resid_mid", skip=True)
    plain = run(model, IDS, record="hook_embed")
    trace = run(model, IDS, saes[::-1], record="hook_embed", error=error)
    torch.testing.assert_close(trace.logits, plain.logits)
    clean = run(model, IDS, record=[*OUT, *(sae.site_in for sae in saes)]).activations
    for site, made in plain_sums(saes, clean).items():
        torch.testing.assert_close(trace.reconstructions[site], made)
        torch.testing.assert_close(trace.errors[site], clean[site] - made)
    if error == "attached":
        grads = []
        for each in (plain, trace):
            assert each.logits is not None
            grads += torch.autograd.grad(each.logits[0, -1, 5], each.activations["hook_embed"])
        one, other = grads
        torch.testing.assert_close(one, other)


def test_errors_left_out_leave_the_sums_layer_by_layer() -> None:
    model = tiny_model("gpt2")
    saes = tiny_clt(model)
    sites = [sae.site_in for sae in saes]
    trace = run(model, IDS, saes, record=[*OUT, *sites], error="dropped")
    made = plain_sums(saes, trace.activations)
    for site in OUT:
        torch.testing.assert_close(trace.activations[site][0], made[site][0])


def test_an_edited_latent_writes_at_every_layer() -> None:
    """Steering at each site by what the latent writes there does the same."""
    model = tiny_model("gpt2")
    saes, ids = tiny_clt(model), [IDS[0]]
    clean = run(model, ids, saes)
    position, latent = clean.latents[OUT[0]][0].nonzero()[-1].tolist()
    size = clean.latents[OUT[0]][0, position, latent].detach()
    edited = run(model, ids, saes, Ablate(f"{OUT[0]}/{latent}@{position}"), record=OUT)
    steered = [
        Steer(site, -size * saes[0].weight_at(site)[latent], positions=position) for site in OUT
    ]
    torch.testing.assert_close(edited.logits, run(model, ids, edits=steered).logits)
    # Later layers' latents answer; with errors frozen so do they alone.
    frozen = run(model, ids, saes, Ablate(f"{OUT[0]}/{latent}@{position}"), error="frozen")
    assert not torch.equal(frozen.latents[OUT[2]], clean.latents[OUT[2]])
    assert frozen.logits is not None and edited.logits is not None
    assert not torch.allclose(frozen.logits, edited.logits)


def test_it_is_taken_whole_and_where_it_can_be() -> None:
    model = tiny_model("gpt2")
    saes = tiny_clt(model)
    with pytest.raises(SiteError, match=r"writes blocks.2.hook_mlp_out too.*Pass the whole"):
        run(model, IDS, saes[:2])
    with pytest.raises(SiteError, match="Two SAEs write blocks.1.hook_mlp_out"):
        run(model, IDS, [*saes, tiny_sae("relu", OUT[1], 16)])
    with pytest.raises(GossamerError, match="of a cross-layer transcoder and writes"):
        as_saes(saes)
    post = "blocks.2.mlp.hook_post"
    wrong = SAE(**{**saes[0].arguments(), "sites_later": (OUT[1], post)})
    others = [tiny_sae("relu", OUT[1], 16), tiny_sae("relu", post, 64)]
    with pytest.raises(ShapeError, match=r"has d_out=16, but blocks.2.mlp.hook_post of"):
        run(model, IDS, [wrong, *others])


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {}),
        ("gpt2", {"effects": "gradient"}),
        ("gpt2", {"engine": "plain", "hold": ("attention", "norms", "mlps")}),
        ("gemma2", {}),
    ],
)
def test_a_graph_is_what_the_oracle_says(family: str, options: Any) -> None:
    """Laws 4 and 5: edges through all that is written, complete, causal."""
    model = tiny_model(family)
    place = "hook_resid_mid" if options else "mlp.hook_in"
    saes = [*tiny_clt(model, "relu", place, skip=family == "gpt2"),
            tiny_sae("topk", "blocks.1.hook_attn_out", model.d_model)]  # fmt: skip
    hold = options.get("hold", () if "effects" in options else ("attention", "norms"))
    check_graph(attribute(model, saes, PROMPT, **options), plain_of(model, saes, hold=hold))


def test_a_graph_along_the_path_and_one_of_few_nodes() -> None:
    model = tiny_model("gpt2")
    saes = tiny_clt(model, "topk")
    plain = plain_of(model, saes, hold=("norms",))
    graph = attribute(model, saes, PROMPT, effects="integrated", steps=3)
    assert isinstance(graph, gossamer.Graph)
    rows, columns, expected = plain.targets, list(plain.leaves), plain.integrated(3).detach()
    arrays = graph.edges.arrays()
    assert len(arrays.weights) > 100
    for t, s, weight in zip(arrays.targets, arrays.sources, arrays.weights, strict=True):
        known = expected[rows.index(graph.nodes.ids[t]), columns.index(graph.nodes.ids[s])]
        assert weight == pytest.approx(float(known), rel=1e-8, abs=1e-11)
    few = attribute(model, saes, PROMPT, max_nodes=90)
    assert isinstance(few, gossamer.Graph)
    names = few.nodes.ids
    kept = [names[i] for i in few.nodes.of_kind("latent").nonzero()[0]]
    check_graph(few, plain_of(model, saes, kept=kept), every=False)


def test_edges_are_effects() -> None:
    """Law 6: changing a node moves each target by its edge in the linearised model."""
    model = tiny_model("gpt2")
    saes = tiny_clt(model)
    graph = attribute(model, saes, PROMPT)
    assert isinstance(graph, gossamer.Graph)
    arrays, ids = graph.edges.arrays(), graph.nodes.ids
    order = (-abs(arrays.weights)).argsort()
    pairs = [(ids[arrays.sources[i]], ids[arrays.targets[i]]) for i in order]
    known = [pair for pair in pairs if "/bias@" not in pair[0] and "/remainder@" not in pair[0]]
    inner = [pair for pair in known if all("mlp_out" in name for name in pair)]
    reports = [
        verify(graph, model, saes, edges=[*known[:20], *inner[:20]], nodes=4, error=error)
        for error in ("attached", "frozen")
    ]
    for edge in (edge for report in reports for edge in report.edges):
        assert edge.linear == pytest.approx(edge.weight, rel=1e-8, abs=1e-11)
    between = [edge for edge in reports[1].edges if (edge.source, edge.target) in inner[:20]]
    assert len({edge.source for edge in between}) > 3
    # The frozen total run is that of run(error="frozen") with the node ablated.
    for edge in between[::3]:
        site, place = edge.target.split("/")
        unit, position = map(int, place.split("@"))
        pair = [
            run(model, [PROMPT], saes, edits, error="frozen").pre_activations[site]
            for edits in ((), Ablate(edge.source))
        ]
        moved = (pair[0] - pair[1])[0, position, unit].item()
        assert edge.total == pytest.approx(moved, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("target", [Latents(OUT[2]), Logits(top=3)])
def test_edges_from_a_layer_go_by_all_that_it_writes(family: str, target: Any) -> None:
    """Finite differences of a run in which the source's writes alone change, errors frozen."""
    model = tiny_model(family)
    saes = tiny_clt(model, "topk")
    found: Any = edges(model, saes, PROMPT, source=Latents(OUT[0]), target=target)
    columns = range(0, len(found.sources), 4)
    assert len(found.sources) > 8 and found.gradients.abs().max() > 1e-3
    clean = run(model, [PROMPT], record=OUT).activations
    for column in columns:
        position, unit = int(found.sources.positions[column]), int(found.sources.indices[column])
        step, sides = 1e-5, []
        for sign in (1, -1):
            # Everything else that stands at a site it writes is constant.
            put = []
            for site in OUT:
                moved = clean[site][0].clone()
                moved[position] += sign * step * saes[0].weight_at(site)[unit]
                put += instead(site, moved)
            seen = run(model, [PROMPT], edits=put, record=[saes[2].site_in])
            if isinstance(target, Latents):
                pre = saes[2].pre_activations(seen.activations[saes[2].site_in])[0]
                sides.append(pre[found.targets.positions, found.targets.indices])
            else:
                assert seen.logits is not None
                sides.append(seen.logits[0, found.targets.positions, found.targets.indices])
        slope = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(found.gradients[:, column], slope, rtol=1e-5, atol=1e-7)
    later = found.sources.positions[None] > found.targets.positions[:, None]
    assert not found.gradients[later].any()


def test_edges_into_a_layer_and_what_ablating_does() -> None:
    model = tiny_model("gpt2")
    saes = tiny_clt(model, "topk")
    tokens: Any = edges(model, saes, PROMPT, source=Tokens(), target=Latents(OUT[1]))
    one: Any = edges(model, [tiny_sae("topk", saes[1].site_in, 16, site_out=OUT[1], seed=1)],
                     PROMPT, source=Tokens(), target=Latents(OUT[1]))  # fmt: skip
    torch.testing.assert_close(tokens.gradients, one.gradients)
    found: Any = edges(model, saes, PROMPT, source=Latents(OUT[0]), target=Logits(top=2))
    strongest = int(found.attributions[0].abs().argmax())
    (edge,) = measure(model, saes, found, [(0, strongest)])
    source = found.sources
    row = int(source.indices[strongest])
    size = source.values[strongest]
    # In that run what stands at later sites is what the model's MLPs gave, less what is gone.
    clean = run(model, [PROMPT], record=OUT)
    put = []
    for site in OUT:
        moved = clean.activations[site][0].detach().clone()
        moved[int(source.positions[strongest])] -= size * saes[0].weight_at(site)[row]
        put += instead(site, moved)
    logits = run(model, [PROMPT], edits=put).logits
    assert logits is not None and clean.logits is not None
    index = int(found.targets.indices[0])
    moved = (clean.logits[0, -1, index] - logits[0, -1, index]).item()
    assert edge.measured == pytest.approx(moved, rel=1e-9, abs=1e-12)
    with pytest.raises(GossamerError, match="one layer of it"):
        edges(model, saes, PROMPT, source=Latents(OUT[0]), target=Logits(), error="dropped")


@torch.no_grad()
def test_it_is_scored_at_each_site_with_what_earlier_layers_write() -> None:
    """FVU and loss against a plain loop; each site alone is replaced."""
    model = tiny_model("gpt2")
    saes = tiny_clt(model)
    report = evaluate(model, saes, IDS, n_tokens=8, context=8)
    assert list(report.cards) == list(OUT)
    sites = [*OUT, *(sae.site_in for sae in saes)]
    runs = [run(model, [ids], record=sites) for ids in IDS]
    x = {s: torch.cat([each.activations[s][0] for each in runs]) for s in sites}
    for site, guess in plain_sums(saes, x).items():
        card = report.cards[site]
        missed = (x[site] - guess).square().sum()
        varied = (x[site] - x[site].mean(0)).square().sum()
        assert card.fvu == pytest.approx((missed / varied).item())
        losses = []
        for ids, each in zip(IDS, runs, strict=True):
            put = instead(site, plain_sums(saes, each.activations)[site][0])
            logits = run(model, [ids], edits=put).logits
            assert logits is not None
            losses.append(-logits[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]])
        assert card.ce_patched == pytest.approx(torch.cat(losses).mean().item())


def test_one_layer_is_an_ordinary_transcoder() -> None:
    model = tiny_model("gpt2")
    alone = tiny_clt(model)[2]
    assert alone.W_later is None and isinstance(alone.selection, ReLU)
    assert as_saes(alone) == {OUT[2]: alone}


@torch.no_grad()
def test_circuits_of_all_latents_and_of_none() -> None:
    """All, with errors, are the model; none, without, leave the biases."""
    model = tiny_model("gpt2")
    saes = tiny_clt(model)
    graph = attribute(model, saes, PROMPT, target=Logits(top=1))
    assert isinstance(graph, gossamer.Graph)
    weight, token = float(graph.nodes.weights[-1]), int(graph.nodes.units[-1])
    none = [Ablate(site, latents=range(20)) for site in OUT]
    modes: Any = (("kept", "frozen"), ("ablated", "dropped"))
    for errors, error in modes:
        curve = faithfulness(graph, model, saes, keep=(0, 1.0), errors=errors, n_random=0)
        logits = run(model, [PROMPT], saes, none, error=error).logits
        assert logits is not None
        left = weight * (logits[0, -1, token] - logits[0, -1].mean())
        assert curve.empty == pytest.approx(left.item(), rel=1e-10)
        if errors == "kept":
            assert curve.points[-1].faithfulness == pytest.approx(1.0, rel=1e-10)
