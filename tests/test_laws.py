"""The laws that hold for every family and every architecture claimed, numbered as in the design.

    2  splicing with errors changes no logit; with attached errors no upstream gradient either
    3  edges are derivatives: jacrev over the plain model, and finite differences, in float64
    4  an effect on an earlier position is exactly 0

Law 1 is in test_models.py, law 10 in test_saes_files.py. Every family with one architecture, every
architecture with one family; modes and argument forms are in test_splice.py and test_attribution_*.
"""

import itertools
from typing import Any

import pytest
import torch

import gossamer
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from tests.plain_edges import plain_effects
from tests.plain_model import plain_run
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import ARCHITECTURES, D_SAE, OwnSAE, tiny_sae

IDS = [3, 1, 4, 15, 9, 2]
START = "blocks.0.hook_resid_pre"
FIRST, LAST = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"
HOLDS = ((), ("attention",), ("norms",), ("attention", "norms"))
EXACT = {"rtol": 0, "atol": 0}


def pair(name: str, family: str = "gpt2", dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Two SAEs of one kind, with two blocks' attention and MLPs between them; by site written."""
    model = tiny_model(family)
    places = {FIRST: (FIRST, None), LAST: (LAST, None)}
    if name.startswith("transcoder"):
        places = {
            f"blocks.{layer}.hook_mlp_out": (
                f"blocks.{layer}.mlp.hook_in",
                f"blocks.{layer}.hook_mlp_out",
            )
            for layer in (0, 2)
        }
    if name == "at heads":
        places = {site: (site, None) for site in ("blocks.0.attn.hook_z", "blocks.2.attn.hook_z")}
    options: dict[str, Any] = {"dtype": dtype}
    if name.startswith("normalized"):
        options |= {"normalization": name.split()[1]}
    if name == "subtracting":
        options |= {"subtract_b_dec": True}
    coders: dict[str, Any] = {}
    for seed, (site, (site_in, site_out)) in enumerate(places.items()):
        width = model.width(site_in)
        if name == "own":
            coders[site] = OwnSAE(site_in, width, seed=seed, dtype=dtype)
        else:
            architecture = name if name in ARCHITECTURES else "relu"
            coders[site] = tiny_sae(
                architecture,
                site_in,
                width,
                site_out=site_out,
                skip=name == "transcoder with skip",
                seed=seed,
                **options,
            )
    return coders


KINDS = (
    *ARCHITECTURES,
    *("transcoder", "transcoder with skip", "at heads", "own", "subtracting"),
    *("normalized center", "normalized layer_norm", "normalized rescale"),
)
"""Everything an SAE can be."""

CASES = (
    *((family, "topk") for family in FAMILIES),
    *(("gpt2", kind) for kind in KINDS if kind != "topk"),
)
CROSSES = (("gemma3", "transcoder with skip"), ("gpt_neox", "gated"), ("qwen3", "at heads"))
each_case = pytest.mark.parametrize(("family", "kind"), (*CASES, *CROSSES))


# Law 2


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_splicing_changes_no_logit(family: str, kind: str, dtype: torch.dtype) -> None:
    model, coders = tiny_model(family, dtype), pair(kind, family, dtype)
    clean = gossamer.run(model, IDS)
    for error in ("attached", "detached"):
        trace = gossamer.run(model, IDS, coders, error=error)
        torch.testing.assert_close(trace.logits, clean.logits, **EXACT)
    frozen = gossamer.run(model, IDS, coders, error="frozen")
    # The frozen error was taken from another run and is added again: one rounding of each site.
    rounding = {torch.float32: 2e-4, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(frozen.logits, clean.logits, rtol=rounding, atol=rounding)
    dropped = gossamer.run(model, IDS, coders, error="dropped")
    assert (dropped.logits - clean.logits).abs().max() > 1e-2  # so the SAEs are really in the run


@each_case
def test_splicing_with_attached_errors_changes_no_gradient_upstream(family: str, kind: str) -> None:
    model, coders = tiny_model(family), pair(kind, family)
    leaf = plain_run(model.language_model, IDS)[START].detach().requires_grad_()
    logits = plain_run(model.language_model, IDS, {START: lambda _: leaf})["logits"]
    weights = torch.randn(logits.shape, dtype=torch.float64)
    expected = torch.autograd.grad((logits * weights).sum(), leaf)[0]
    trace = gossamer.run(model, IDS, coders, record=START)
    found = torch.autograd.grad((trace.logits[0] * weights).sum(), trace.activations[START])[0][0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    cut = gossamer.run(model, IDS, coders, record=START, error="detached")
    other = torch.autograd.grad((cut.logits[0] * weights).sum(), cut.activations[START])[0][0]
    assert (other - expected).abs().max() > 1e-3


def test_splicing_is_exact_however_large_the_reconstruction() -> None:
    """decode(f) + (y − decode(f)) would lose all of y here; the run does not."""
    model, sae = tiny_model("gpt2", torch.float32), pair("relu", dtype=torch.float32)[FIRST]
    sae.W_dec.mul_(1e9)
    trace = gossamer.run(model, IDS, sae)
    assert (trace.reconstructions[FIRST].abs() > 1e8).any()
    torch.testing.assert_close(trace.logits, gossamer.run(model, IDS).logits, **EXACT)


# Laws 3 and 4


def check_edges(
    family: str, coders: Any, source: Any, target: Any, hold: Any = (), **how: Any
) -> Any:
    """Edges equal the Jacobian of the oracle, row for row and column for column; returns both."""
    model = tiny_model(family)
    plain = plain_effects(model.language_model, coders, IDS, source, target, hold=hold, **how)
    found = gossamer.edges(model, coders, IDS, source=source, target=target, hold=hold, **how)
    expected = plain.gradients()
    columns = list(
        zip(found.sources.positions.tolist(), found.sources.indices.tolist(), strict=True)
    )
    rows = list(zip(found.targets.positions.tolist(), found.targets.indices.tolist(), strict=True))
    tokens = [(p, token) for p, token in enumerate(IDS)]
    assert columns == (tokens if isinstance(source, Tokens) else plain.sources)
    assert rows == plain.targets
    torch.testing.assert_close(found.gradients, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.attributions, expected * plain.point, rtol=1e-9, atol=1e-9)
    assert expected.abs().max() > 1e-3 or how.get("direct")
    ahead = torch.tensor([[s[0] > t[0] for s in plain.sources] for t in plain.targets])
    assert (found.gradients[ahead] == 0).all()  # law 4, exactly
    return found, plain


def ends(coders: Any) -> tuple[Any, Any, Any, Any]:
    first, last = coders
    return Latents(first), Latents(last), Logits(tokens=[3, 8, 36]), LogitDifference(7, 11)


@each_case
def test_edges_are_derivatives(family: str, kind: str) -> None:
    coders = pair(kind, family)
    source, latents, logits, difference = ends(coders)
    for hold in HOLDS:
        check_edges(family, coders, source, latents, hold)
    for hold, target in ((HOLDS[0], logits), (HOLDS[3], difference)):
        check_edges(family, coders, source, target, hold)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_have_the_derivative_by_a_scale_on_their_embedding(family: str) -> None:
    coders = pair("topk", family)
    _, latents, logits, _ = ends(coders)
    for hold, target in itertools.product(HOLDS[:4:3], (latents, logits)):
        found, _ = check_edges(family, coders, Tokens(), target, hold)
        assert found.sources.values.tolist() == [1.0] * len(IDS)


@pytest.mark.parametrize(
    ("family", "kind"), [("gemma2", "topk"), ("gpt2", "gated"), ("qwen3", "own")]
)
def test_the_oracles_derivative_is_the_limit_of_differences(family: str, kind: str) -> None:
    """The reference itself against central differences, with and without constants."""
    coders = pair(kind, family)
    source, latents, logits, _ = ends(coders)
    model = tiny_model(family).language_model
    for hold, target in itertools.product(HOLDS[:4:3], (latents, logits)):
        plain = plain_effects(model, coders, IDS, source, target, hold=hold)
        found = plain.differences()
        torch.testing.assert_close(plain.gradients(), found, rtol=1e-6, atol=1e-7)


@each_case
def test_edges_are_the_differences_of_two_runs(family: str, kind: str) -> None:
    """Central differences in the running model: an active latent a little more, a little less."""
    model, coders, step = tiny_model(family), pair(kind, family), 1e-5
    source, latents, logits, _ = ends(coders)
    edges = gossamer.edges(model, coders, IDS, source=source, target=latents)
    of_logits = gossamer.edges(model, coders, IDS, source=source, target=logits)
    columns = torch.randperm(len(edges.sources))[:6].tolist()
    chosen = [(int(edges.sources.positions[c]), int(edges.sources.indices[c])) for c in columns]
    edits = [
        gossamer.Steer(
            source.site, sign * step, latents=latent, positions=position, prompts=2 * row + side
        )
        for row, (position, latent) in enumerate(chosen)
        for side, sign in enumerate((1, -1))
    ]
    target = coders[latents.site]
    with torch.no_grad():
        trace = gossamer.run(
            model,
            [IDS] * (2 * len(chosen)),
            coders[source.site],
            edits,
            target.site_in,
            error="frozen",
        )
        read = trace.activations[target.site_in].flatten(2)
        pre = target.encode(read) if kind == "own" else target.pre_activations(read)
    moved = (pre[::2] - pre[1::2]) / (2 * step)
    expected = moved[:, edges.targets.positions, edges.targets.indices].T
    torch.testing.assert_close(edges.gradients[:, columns], expected, rtol=1e-6, atol=1e-6)
    moved = (trace.logits[::2] - trace.logits[1::2]) / (2 * step)
    expected = moved[:, of_logits.targets.positions, of_logits.targets.indices].T
    torch.testing.assert_close(of_logits.gradients[:, columns], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_moves_nothing_at_earlier_positions(family: str) -> None:
    """Law 4 in the running model, bit for bit, through SAEs at two sites."""
    model, coders, position = tiny_model(family), pair("topk", family), 4
    with torch.no_grad():
        clean = gossamer.run(model, IDS, coders)
        edits = [gossamer.Set(FIRST, 3.0, latents=range(D_SAE), positions=position)]
        edited = gossamer.run(model, IDS, coders, edits)
    torch.testing.assert_close(edited.logits[:, :position], clean.logits[:, :position], **EXACT)
    torch.testing.assert_close(
        edited.latents[LAST][:, :position], clean.latents[LAST][:, :position], **EXACT
    )
    assert (edited.logits - clean.logits)[:, position + 1 :].abs().amax((0, 2)).min() > 1e-6
