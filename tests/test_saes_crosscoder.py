"""Crosscoders: what they compute, their files, how a run splices and an evaluation scores them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.analysis.analyze import analyze
from gossamer.attribution.attribute import attribute
from gossamer.attribution.targets import Logits
from gossamer.edits import Ablate, Steer
from gossamer.errors import FormatError, GossamerError, ShapeError
from gossamer.evaluation import evaluate
from gossamer.generation.generate import generate
from gossamer.saes import SAE, AbsTopK, Crosscoder, TopK, load_crosscoder, load_native
from gossamer.splice import as_saes, run
from tests.graph_mixes import IDS as PROMPT
from tests.graph_mixes import check_graph, plain_of
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

A, B, C = "blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_pre"
READ, OUT = "blocks.0.mlp.hook_in", ("blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")
IDS = [[3, 1, 4, 15, 9, 2, 6], [8, 36, 7]]
N = 20


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def crosscoder(model: Any, sites: tuple[str, ...] = (A, B, C), **options: Any) -> Crosscoder:
    widths = {site: model.width(site) for site in sites}
    return Crosscoder(
        W_enc={s: normal(N, w, seed=i) / w for i, (s, w) in enumerate(widths.items())},
        b_enc=0.1 * normal(N, seed=7),
        W_dec={s: normal(N, w, seed=10 + i) / N**0.5 for i, (s, w) in enumerate(widths.items())},
        b_dec={s: 0.2 * normal(w, seed=20 + i) for i, (s, w) in enumerate(widths.items())},
        selection=options.pop("selection", TopK(4)),
        **options,
    )


def across(width: int = 16, skip: bool = False) -> Crosscoder:
    """One site in, the MLP outputs of two layers out."""
    return Crosscoder(
        W_enc={READ: normal(N, width) / 4},
        b_enc=0.1 * normal(N, seed=7),
        W_dec={site: normal(N, width, seed=3 + i) / 4 for i, site in enumerate(OUT)},
        b_dec={site: normal(width, seed=5 + i) for i, site in enumerate(OUT)},
        W_skip={s: normal(width, width, seed=9 + i) for i, s in enumerate(OUT)} if skip else None,
        selection=TopK(4),
    )


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("selection", [TopK(4), AbsTopK(4)])
def test_it_is_a_sum_over_sites(subtract: bool, selection: Any) -> None:
    whole = crosscoder(tiny_model("gpt2"), selection=selection, subtract_b_dec=subtract)
    x = {site: normal(5, 2, width, seed=30) for site, width in whole.reads.items()}
    given, columns = whole.joint, whole.columns()
    pre = given.b_enc.expand(5, 2, N)
    for site, value in x.items():
        u = value - given.b_dec[columns[site]] if subtract else value
        pre = pre + u @ given.W_enc[:, columns[site]].T
    ranked = pre.abs() if isinstance(selection, AbsTopK) else pre
    mask = torch.zeros_like(pre).scatter(-1, ranked.topk(4).indices, 1.0)
    latents = pre * mask if isinstance(selection, AbsTopK) else pre.relu() * mask
    torch.testing.assert_close(whole.encode(x), latents)
    torch.testing.assert_close(whole.encode_sparse(x).to_dense(), latents)
    for site, y in whole(x).items():
        plain = latents @ given.W_dec[:, columns[site]] + given.b_dec[columns[site]]
        torch.testing.assert_close(y, plain)


def test_its_file_comes_back_and_is_taken_for_nothing_else(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    for number, whole in enumerate((crosscoder(model), across(skip=True))):
        whole.save(tmp_path / str(number))
        back = load_crosscoder(tmp_path / str(number))
        assert (back.reads, back.writes) == (whole.reads, whole.writes)
        state = back.state_dict()
        assert all(torch.equal(tensor, state[n]) for n, tensor in whole.state_dict().items())
        with pytest.raises(FormatError, match="load it with gossamer.saes.load_crosscoder"):
            load_native(tmp_path / str(number))
    tiny_sae("topk", A, 16).save(tmp_path / "plain")
    with pytest.raises(FormatError, match="load it with load_sae"):
        load_crosscoder(tmp_path / "plain")


def test_relative_norms_say_which_site_a_latent_is_of() -> None:
    whole = crosscoder(tiny_model("gpt2"), (A, C), metadata={"scales": {A: 2.0, C: 0.5}})
    whole.joint.W_dec[3, :16] = 0
    found, norms = whole.relative_norms(), whole.joint.W_dec.view(N, 2, 16).norm(dim=2)
    torch.testing.assert_close(found.sum(1), torch.ones(N).double())
    assert found[3].tolist() == [0.0, 1.0]
    torch.testing.assert_close(found[:, 0], 2 * norms[:, 0] / (2 * norms[:, 0] + norms[:, 1] / 2))


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("error", ["attached", "detached", "frozen"])
def test_splicing_with_errors_changes_nothing(family: str, error: Any) -> None:
    """Law 2, gradients upstream included where the error is attached."""
    model = tiny_model(family)
    whole = crosscoder(model, (A, C) if family == "gemma2" else (A, B, C))
    plain = run(model, IDS, record="hook_embed")
    trace = run(model, IDS, whole, record="hook_embed", error=error)
    torch.testing.assert_close(trace.logits, plain.logits)
    assert set(trace.latents) == set(whole.writes) == set(trace.errors)
    assert len({id(t._base) for t in trace.latents.values()}) == 1  # one set of latents
    clean = run(model, IDS, record=tuple(whole.reads)).activations
    latents = whole.encode({site: value.flatten(2) for site, value in clean.items()})
    for site in whole.writes:
        torch.testing.assert_close(trace.latents[site], latents)
        torch.testing.assert_close(trace.reconstructions[site], whole.decode(latents)[site])
    if error == "attached":
        (one,), (other,) = (
            torch.autograd.grad(each.logits[0, -1, 5], each.activations["hook_embed"])
            for each in (plain, trace)
        )
        torch.testing.assert_close(one, other)


def test_errors_left_out_leave_what_it_makes_of_the_clean_run() -> None:
    model, record = tiny_model("gpt2"), (A, C)
    whole = crosscoder(model, record)
    clean = run(model, IDS, record=record).activations
    trace = run(model, IDS, whole, record=record, error="dropped")
    expected = whole(clean)
    for site in record:
        torch.testing.assert_close(trace.activations[site][0], expected[site][0])


def test_an_edit_of_a_latent_is_made_at_all_its_sites() -> None:
    model, record = tiny_model("gpt2"), (A, C)
    whole = crosscoder(model, record)
    clean = run(model, [IDS[0]], whole, record=record)
    position, latent = clean.latents[A][0].nonzero()[-1].tolist()
    size = clean.latents[A][0, position, latent]
    found = run(model, [IDS[0]], whole, Ablate(f"{C}/{latent}@{position}"), record=record)
    row = whole.joint.W_dec[latent]
    moved = found.activations[A] - clean.activations[A]
    torch.testing.assert_close(moved[0, position], -size * row[:16])
    torch.testing.assert_close(found.latents[C][0, position, latent], torch.zeros(()).double())
    torch.testing.assert_close(
        found.reconstructions[C][0, position] - clean.reconstructions[C][0, position],
        -size * row[16:],
    )
    value = run(model, [IDS[0]], whole, Steer(A, torch.ones(16).double()), record=record)
    torch.testing.assert_close(value.latents[C], clean.latents[C])  # those of the clean run


@torch.no_grad()
def test_it_is_scored_at_each_site() -> None:
    """FVU against a plain loop; each site alone is replaced, from a clean run of all."""
    model = tiny_model("gpt2")
    whole = crosscoder(model, (A, C))
    report = evaluate(model, whole, IDS, n_tokens=8, context=8)
    assert set(report.cards) == {A, C}
    runs = [run(model, ids, record=(A, C)) for ids in IDS]
    x = {s: torch.cat([each.activations[s][0] for each in runs]) for s in (A, C)}
    guess = whole(x)
    for site, card in report.cards.items():
        missed = (x[site] - guess[site]).square().sum()
        varied = (x[site] - x[site].mean(0)).square().sum()
        assert card.fvu == pytest.approx((missed / varied).item())
        losses = []
        for ids, each in zip(IDS, runs, strict=True):
            put = whole.decode(whole.encode({s: each.activations[s] for s in (A, C)}))[site]
            patched = run(model, ids, edits=Steer(site, put - each.activations[site])).logits
            assert patched is not None
            losses.append(-patched[0].log_softmax(-1)[range(len(ids) - 1), ids[1:]])
        assert card.ce_patched == pytest.approx(torch.cat(losses).mean().item())
        assert card.l0 == 4.0 and card.linear_round_trip is None


def test_what_knows_no_clean_run_says_so() -> None:
    model = tiny_model("gpt2")
    whole = crosscoder(model, (A, C))
    for refused in (
        lambda: generate(model, IDS[0], whole, n_tokens=2),
        lambda: analyze(model, IDS[0], Logits(), whole),
        lambda: as_saes([whole]),
        lambda: whole.faces()[A].encode(normal(2, 16)),
    ):
        with pytest.raises(GossamerError, match="reads .* at once.*clean run beforehand"):
            refused()


@pytest.mark.parametrize("skip", [False, True])
def test_across_layers_it_is_transcoders_that_share_an_encoder(skip: bool) -> None:
    """So it is spliced, edited and scored as they are, live."""
    model, whole = tiny_model("gpt2"), across(skip=skip)
    parts: Any = as_saes(whole)
    assert list(parts) == list(OUT) and all(isinstance(part, SAE) for part in parts.values())
    x = normal(4, 3, 16, seed=2)
    for site, part in parts.items():
        torch.testing.assert_close(part.encode(x), whole.encode({READ: x}))
        torch.testing.assert_close(part(x), whole({READ: x})[site])
    trace = run(model, IDS, whole)
    torch.testing.assert_close(trace.logits, run(model, IDS).logits)
    assert torch.equal(trace.latents[OUT[0]], trace.latents[OUT[1]])
    assert set(evaluate(model, whole, IDS, n_tokens=8, context=8).cards) == set(OUT)


def test_a_graph_across_layers_adds_up() -> None:
    """Law 5: what its latents write at both layers is all that they do."""
    model = tiny_model("gpt2")
    coders = [*as_saes(across()).values(), tiny_sae("relu", "blocks.2.hook_resid_mid", 16)]
    check_graph(attribute(model, [across(), coders[-1]], PROMPT), plain_of(model, coders))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_dec": {A: torch.zeros(4)}}, "given for the same sites"),
        ({"W_enc": {A: torch.zeros(9, 4), B: torch.zeros(9, 4)}}, "writes the sites that it reads"),
        ({"W_dec": {A: torch.zeros(9, 4)}, "b_dec": {A: torch.zeros(4)}}, "at least two sites"),
        ({"W_skip": {A: torch.zeros(4, 8), C: torch.zeros(4, 8)}}, "reads one site"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    both = {A: torch.zeros(9, 4), C: torch.zeros(9, 4)}
    parts: Any = {"W_enc": both, "W_dec": both, "b_dec": {A: torch.zeros(4), C: torch.zeros(4)}}
    if "W_dec" in change:
        parts["W_enc"] = {A: torch.zeros(9, 4)}
    with pytest.raises(ShapeError, match=message):
        Crosscoder(b_enc=torch.zeros(9), selection=TopK(2), **parts | change)
