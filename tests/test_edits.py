"""Each edit does what its word says, where it says, and nowhere else.

Raw sites are compared with the oracle, a plain function put in at that site; edits of latents with
what the changed latents decode to. In padded batches every prompt has its own positions.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.edits import Ablate, AbstractEdit, Detach, Patch, Scale, Set, Steer, apply_edits
from gossamer.errors import GossamerError, PromptError, ShapeError, SiteError
from gossamer.splice import run
from tests.plain_model import plain_run
from tests.tiny_models import tiny_model
from tests.tiny_saes import ARCHITECTURES, D_SAE, OwnSAE, plain_decode, plain_latents, tiny_sae

LONG = [3, 1, 4, 15, 9, 2, 6]
SHORT = [8, 36, 7]
MIDDLE = "blocks.1.hook_resid_pre"
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

VECTOR = torch.linspace(-1, 1, 16, dtype=torch.float64)
OTHER = torch.linspace(2, 3, 7 * 16, dtype=torch.float64).reshape(7, 16)

EDITS: dict[str, tuple[Callable[..., AbstractEdit], Callable[[Tensor], Tensor]]] = {
    "ablate": (Ablate, lambda v: 0 * v),
    "set number": (lambda at, **o: Set(at, 0.7, **o), lambda v: 0 * v + 0.7),
    "set": (lambda at, **o: Set(at, VECTOR, **o), lambda v: VECTOR.expand_as(v)),
    "scale": (lambda at, **o: Scale(at, -1.5, **o), lambda v: -1.5 * v),
    "steer": (lambda at, **o: Steer(at, VECTOR, **o), lambda v: v + VECTOR),
    "patch": (lambda at, **o: Patch(at, OTHER, **o), lambda v: OTHER),
    "detach": (Detach, lambda v: v.detach()),
}
"""Each edit, and the function it stands for on (pos, 16)."""


@pytest.mark.parametrize("positions", [None, 3, [0, -1]], ids=str)
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_at_a_raw_site_is_a_function_there(name: str, positions: Any) -> None:
    model = tiny_model("qwen3")
    make, function = EDITS[name]
    start = "blocks.0.hook_resid_pre"
    where = torch.zeros(len(LONG), 1, dtype=torch.bool)
    where[slice(None) if positions is None else positions] = True
    leaf = plain_run(model.language_model, LONG)[start].detach().requires_grad_()
    expected = plain_run(
        model.language_model,
        LONG,
        {start: lambda _: leaf, MIDDLE: lambda v: torch.where(where, function(v), v)},
    )
    trace = run(model, LONG, edits=make(MIDDLE, positions=positions), record=[start, MIDDLE])
    torch.testing.assert_close(trace.activations[MIDDLE][0], expected[MIDDLE], **CLOSE)
    torch.testing.assert_close(trace.logits[0], expected["logits"], **CLOSE)
    weights = torch.randn(expected["logits"].shape, dtype=torch.float64)
    found, wanted = (
        torch.autograd.grad((logits * weights).sum(), at, materialize_grads=True)[0]
        for logits, at in (
            (trace.logits[0], trace.activations[start]),
            (expected["logits"], leaf),
        )
    )
    torch.testing.assert_close(found[0], wanted, **CLOSE)
    forgets = positions is None and name not in ("scale", "steer")
    assert wanted.any() != forgets  # nothing before the site matters where all of it is replaced


@pytest.mark.parametrize(
    ("site", "factor"),
    [
        ("blocks.1.attn.hook_q", -2.0),  # (batch, pos, heads, d_head)
        ("blocks.1.attn.q_norm.hook_scale", 2.0),  # computed with the heads before the positions
        ("blocks.1.attn.hook_pattern", 0.0),  # (batch, heads, query, key)
        ("blocks.1.ln2.hook_scale", 2.0),
        ("hook_embed", 3.0),
        ("logits", 2.0),
    ],
)
def test_positions_are_found_whatever_the_axes_of_a_site(site: str, factor: float) -> None:
    """Gemma-3, two prompts of different lengths; an edit of a pattern is one of its queries."""
    model = tiny_model("gemma3")

    def scaled(value: Tensor) -> Tensor:
        value = value.clone()
        if site.endswith("hook_pattern"):
            value[:, -2] *= factor
        else:
            value[-2] *= factor
        return value

    trace = run(model, [LONG, SHORT], edits=Scale(site, factor, positions=-2))
    for row, ids in enumerate((LONG, SHORT)):
        expected = plain_run(model.language_model, ids, {site: scaled})["logits"]
        torch.testing.assert_close(trace.logits[row, : len(ids)], expected, **CLOSE)
        clean = plain_run(model.language_model, ids)["logits"]
        assert (expected - clean).abs().max() > 1e-3


def test_edits_choose_prompts_positions_and_keep_their_order() -> None:
    model = tiny_model("gpt2")
    edits = [
        Steer(MIDDLE, 1.0, positions=0),
        Scale(MIDDLE, 2.0, positions=0, prompts=1),
        Set(MIDDLE, 5.0, positions=-1, prompts=[0, 2]),
        Ablate("blocks.2.hook_resid_pre", prompts=()),
    ]
    prompts = [LONG, SHORT, SHORT]
    clean = run(model, prompts, record=MIDDLE).activations[MIDDLE]
    found = run(model, prompts, edits=edits, record=MIDDLE).activations[MIDDLE]
    expected = clean.clone()
    expected[:, 0] += 1
    expected[1, 0] *= 2
    expected[0, 6] = expected[2, 2] = 5
    torch.testing.assert_close(found, expected, **CLOSE)


CODERS = {
    **{name: lambda name=name: tiny_sae(name, MIDDLE, 16) for name in ARCHITECTURES},
    "normalized": lambda: tiny_sae("topk", MIDDLE, 16, normalization="layer_norm"),
    "transcoder": lambda: tiny_sae(
        "topk", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out", skip=True
    ),
    "own": lambda: OwnSAE(MIDDLE, 16),
}

LATENT_EDITS: dict[str, tuple[Callable[..., AbstractEdit], Callable[[Tensor], Tensor]]] = {
    "ablate": (Ablate, lambda f: 0 * f),
    "set": (lambda at, **o: Set(at, 2.5, **o), lambda f: 0 * f + 2.5),
    "scale": (lambda at, **o: Scale(at, 3.0, **o), lambda f: 3 * f),
    "steer": (lambda at, **o: Steer(at, 0.5, **o), lambda f: f + 0.5),
}


@pytest.mark.parametrize(
    ("name", "coder"), [("set", c) for c in CODERS] + [(n, "topk") for n in LATENT_EDITS]
)
def test_an_edited_latent_changes_the_output_by_what_it_decodes_to(name: str, coder: str) -> None:
    """value = decode(edited) + (value − decode(unedited)): the error is that of the clean run."""
    model, sae = tiny_model("gpt2"), CODERS[coder]()
    make, function = LATENT_EDITS[name]
    with torch.no_grad():
        clean = plain_run(model.language_model, LONG)
        x, y = clean[sae.site_in], clean[sae.site_out]
        latents = plain_latents(sae, x)
    position = 4
    chosen = [int(latents[position].abs().argmax()), 11]
    edited = latents.clone()
    edited[position, chosen] = function(latents[position, chosen])
    value = plain_decode(sae, edited, x) + (y - plain_decode(sae, latents, x))
    expected = plain_run(model.language_model, LONG, {sae.site_out: lambda _: value})["logits"]
    edit = make(sae.site_out, latents=chosen, positions=position)
    for error in ("attached", "frozen"):
        trace = run(model, LONG, sae, edit, error=error)
        torch.testing.assert_close(trace.latents[sae.site_out][0], edited, **CLOSE)
        torch.testing.assert_close(trace.logits[0], expected, **CLOSE)
    assert (expected - clean["logits"])[position:].abs().max() > 1e-2


def test_a_latent_at_a_position_is_named_as_a_node() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("relu", MIDDLE, 16)
    latent = int(run(model, LONG, sae).latents[MIDDLE][0, 3].argmax())
    by_name = run(model, LONG, sae, Ablate(f"{MIDDLE}/{latent}@3"))
    by_number = run(model, LONG, sae, Ablate(MIDDLE, latents=latent, positions=3))
    assert torch.equal(by_name.logits, by_number.logits)
    assert not torch.equal(by_name.logits, run(model, LONG, sae).logits)


def test_patching_everything_at_a_site_gives_the_other_runs_future() -> None:
    model, other = tiny_model("llama"), [5, 5, 5, 5, 5, 5, 6]  # the last token is the same
    source = run(model, other, record=MIDDLE)
    patched = run(model, LONG, edits=Patch(MIDDLE, source))
    torch.testing.assert_close(patched.logits, source.logits, **CLOSE)
    assert not torch.allclose(patched.logits, run(model, LONG).logits)


def test_patched_latents_are_those_of_the_other_run() -> None:
    model, sae, other = tiny_model("gpt2"), tiny_sae("relu", MIDDLE, 16), [5, 5, 5, 5, 5, 5, 6]
    source = run(model, other, sae)
    chosen = range(0, D_SAE, 2)
    trace = run(model, LONG, sae, Patch(MIDDLE, source, latents=chosen, positions=[2, 3]))
    expected = run(model, LONG, sae).latents[MIDDLE].clone()
    for position in (2, 3):
        expected[:, position, ::2] = source.latents[MIDDLE][:, position, ::2]
    assert torch.equal(trace.latents[MIDDLE], expected)
    expected_logits = run(
        model, LONG, sae, Set(MIDDLE, expected, latents=range(D_SAE), positions=[2, 3])
    ).logits
    assert torch.equal(trace.logits, expected_logits)


def test_detached_latents_pass_no_gradient_back_and_keep_their_value() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("relu", MIDDLE, 16)
    start = "blocks.0.hook_resid_pre"
    edit = Detach(MIDDLE, latents=range(D_SAE))
    trace = run(model, LONG, sae, edit, start, error="detached")
    assert torch.equal(trace.logits, run(model, LONG, sae).logits)
    at = trace.activations[start]
    assert not torch.autograd.grad(trace.logits.sum(), at)[0].any()
    half = run(model, LONG, sae, Detach(MIDDLE, latents=[0]), start, error="detached")
    assert torch.autograd.grad(half.logits.sum(), half.activations[start])[0].any()


def test_padding_is_never_edited() -> None:
    value = torch.ones(2, 3, 4)
    mask = torch.tensor([[True, True, True], [False, False, True]])  # the second one left-padded
    positions = torch.tensor([[0, 1, 2], [0, 0, 0]])
    for chosen, expected in ((None, [[0, 0, 0], [1, 1, 0]]), (0, [[0, 1, 1], [1, 1, 0]])):
        found = apply_edits([Ablate(MIDDLE, positions=chosen)], value, positions, mask)
        assert found[..., 0].int().tolist() == expected


@pytest.mark.parametrize(
    ("edit", "kind", "message"),
    [
        (
            lambda: Ablate(MIDDLE, positions=7),
            PromptError,
            r"Position 7 .*prompt 0.*7 tokens \(0\.\.6",
        ),
        (lambda: Ablate(MIDDLE, positions=[0, -8]), PromptError, "Position -8 is not in prompt 0"),
        (
            lambda: Ablate(MIDDLE, positions=5, prompts=1),
            PromptError,
            "prompt 1, which has 3 tokens",
        ),
        (lambda: Ablate(MIDDLE, prompts=2), SiteError, r"2 is not a prompt of this batch.*0\.\.1"),
        (lambda: Ablate(MIDDLE, latents=20), SiteError, rf"20 is not a latent.*{MIDDLE}.*0\.\.19"),
        (lambda: Ablate(MIDDLE, latents=[-1]), SiteError, r"-1 is not a latent.*0\.\.19"),
        (
            lambda: Set(MIDDLE, torch.zeros(3)),
            ShapeError,
            rf"Set at {MIDDLE}.*\(3,\).*\(2, 7, 16\)",
        ),
        (lambda: Patch(MIDDLE, torch.zeros(5, 16)), ShapeError, "Patch at .*does not broadcast"),
        (lambda: Patch(MIDDLE, torch.zeros(2, 7, 4)), ShapeError, "Patch at .*does not broadcast"),
        (lambda: Ablate(f"{MIDDLE}/bias@3"), SiteError, "cannot be edited. An edit takes a site"),
        (lambda: Ablate(f"{MIDDLE}/remainder@3"), SiteError, "cannot be edited"),
        (lambda: Ablate(f"{MIDDLE}/3@4<-1"), SiteError, "cannot be edited"),
        (lambda: Ablate(f"{MIDDLE}/3"), SiteError, "is not a node. Write site/unit@position"),
        (
            lambda: Ablate(f"{MIDDLE}/3@1", latents=4),
            SiteError,
            "leave latents=, units=, keys=, part= and positions= out",
        ),
        (
            lambda: Ablate(f"{MIDDLE}/3@1", positions=4),
            SiteError,
            "leave latents=, units=, keys=, part= and positions= out",
        ),
    ],
)
def test_edits_that_cannot_be_made_are_refused(edit: Any, kind: type, message: str) -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    with pytest.raises(kind, match=message):
        run(model, [LONG, SHORT], sae, edit())


def test_a_trace_without_the_site_cannot_be_patched_from() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    source = run(model, LONG, record="blocks.0.hook_mlp_out")
    with pytest.raises(SiteError, match=f"no activations at {MIDDLE}.*blocks.0.hook_mlp_out"):
        run(model, LONG, edits=Patch(MIDDLE, source))
    with pytest.raises(SiteError, match=f"no latents at {MIDDLE}, but at no site. Record"):
        run(model, LONG, sae, Patch(MIDDLE, source, latents=1))


def test_edits_are_values() -> None:
    edit = Scale(MIDDLE, 2.0, latents=3, positions=[1])
    assert edit == Scale(MIDDLE, 2.0, latents=3, positions=[1]) != Scale(MIDDLE, 2.0)
    with pytest.raises(AttributeError):
        edit.factor = 3.0
    assert issubclass(SiteError, GossamerError)
