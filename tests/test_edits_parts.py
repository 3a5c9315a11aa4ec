"""Edits of a part of what stands at a site: neurons, heads, attention weights, errors, directions.

Each is compared with a plain function on the oracle's value at that site, which it is written out
for here; two are compared with hooks of torch on the Hugging Face model itself as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.edits import Ablate, AbstractEdit, Detach, Patch, Scale, Set, Steer
from gossamer.errors import PromptError, ShapeError, SiteError
from gossamer.models.prompts import TokenBatch, pad
from gossamer.splice import Plan, Trace, run, run_batch
from tests.plain_model import blocks_of, plain_run
from tests.test_edits import CLOSE, LATENT_EDITS, LONG, MIDDLE, SHORT
from tests.tiny_models import tiny_model
from tests.tiny_saes import (
    ARCHITECTURES,
    D_SAE,
    OwnSAE,
    plain_decode,
    plain_latents,
    tiny_sae,
)

FAMILIES = ("gpt2", "llama", "gemma2", "gpt_neox")
POST, Z = "blocks.1.mlp.hook_post", "blocks.1.attn.hook_z"
PATTERN, SCORES = "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores"
VECTOR = torch.linspace(-1, 2, 16, dtype=torch.float64)


def logits(
    family: str, ids: Sequence[int], site: str, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """What the oracle gives with the value at a site changed."""
    return plain_run(tiny_model(family).language_model, ids, {site: change})["logits"]


def put(value: Tensor, index: Any, new: Any) -> Tensor:
    """A copy with one part replaced."""
    value = value.clone()
    value[index] = new(value[index]) if callable(new) else new
    return value


UNITS = (
    "mlp.hook_pre",
    "mlp.hook_post",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_z",
)


@pytest.mark.parametrize("kind", [*UNITS, "attn.hook_rot_q", "attn.hook_rot_k"])
@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_those_of_a_plain_hook(family: str, kind: str) -> None:
    """In llama and gemma 2 there are two key and value heads, and four of queries."""
    site = f"blocks.1.{kind}"
    if family == "gpt2" and "rot" in kind:
        return
    for make, function in LATENT_EDITS.values():
        for positions, where in ((None, slice(None)), ([2, -1], [2, 6])):
            expected = plain_run(
                tiny_model(family).language_model,
                LONG,
                {site: lambda v, w=where, f=function: put(v, (w, 1), f)},
            )
            edit = make(site, units=[1], positions=positions)
            trace = run(tiny_model(family), LONG, edits=edit, record=site)
            torch.testing.assert_close(trace.activations[site][0], expected[site], **CLOSE)
            torch.testing.assert_close(trace.logits[0], expected["logits"], **CLOSE)
    clean = run(tiny_model(family), LONG)
    assert (run(tiny_model(family), LONG, edits=Ablate(site, units=1)).logits != clean.logits).any()


@pytest.mark.parametrize("site", [PATTERN, SCORES])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_patterns_and_single_entries(family: str, site: str) -> None:
    def whole_row(v: Tensor) -> Tensor:
        return put(v, (1, 5, slice(0, 6)), 0.3)

    def entry(v: Tensor) -> Tensor:
        return put(v, (3, 6, 4), 0.0)

    def column(v: Tensor) -> Tensor:
        return put(v, (2, slice(4, None), 4), lambda x: x * 0.5)

    def block(v: Tensor) -> Tensor:
        return put(put(v, (slice(None), 5, slice(2, 5)), 0.1), (slice(None), 6, slice(2, 5)), 0.1)

    cases: list[tuple[AbstractEdit, Callable[[Tensor], Tensor]]] = [
        (Set(site, 0.3, units=1, positions=-2), whole_row),
        (Ablate(f"{site}/3@6<-4"), entry),
        (Ablate(site, units=3, positions=-1, keys=-3), entry),
        (Scale(site, 0.5, units=2, keys=4), column),
        (Set(site, 0.1, positions=[5, 6], keys=range(2, 5)), block),
    ]
    for edit, change in cases:
        expected = logits(family, LONG, site, change)
        found = run(tiny_model(family), LONG, edits=edit).logits
        torch.testing.assert_close(found[0], expected, **CLOSE)
        assert (found != run(tiny_model(family), LONG).logits).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_id_of_a_pair_of_tokens_is_its_weight_in_the_pattern(family: str) -> None:
    model = tiny_model(family)
    expected = logits(family, LONG, PATTERN, lambda v: put(v, (2, 6, 4), 0.0))
    sae = tiny_sae("topk", Z, model.width(Z))
    for saes in (None, sae):
        found = run(model, LONG, saes, Ablate(f"{Z}/2@6<-4")).logits
        torch.testing.assert_close(found[0], expected, **CLOSE)


def test_torchs_own_hooks_zero_a_neuron_and_a_head() -> None:
    model = tiny_model("gpt2")
    block = blocks_of(model.language_model)[1]

    def zero(part: slice) -> Callable[..., Any]:
        def hook(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            value = args[0].clone()
            value[:, 3, part] = 0
            return (value,)

        return hook

    for edit, module, part in (
        (Ablate(f"{POST}/12@3"), block.mlp.c_proj, slice(12, 13)),
        (Ablate(f"{Z}/2@3"), block.attn.c_proj, slice(8, 12)),
    ):
        handle = module.register_forward_pre_hook(zero(part))
        expected = model.language_model(torch.tensor([LONG])).logits
        handle.remove()
        torch.testing.assert_close(run(model, LONG, edits=edit).logits, expected, **CLOSE)


@pytest.mark.parametrize("site", [POST, Z])
def test_a_number_in_an_id_is_a_latent_where_an_sae_is(site: str) -> None:
    model = tiny_model("gpt2")
    sae = tiny_sae("relu", site, model.width(site))
    unit = int(run(model, LONG, sae).latents[site][0, 3, :4].argmax())
    node = Set(f"{site}/{unit}@3", 2.0)
    as_latent = run(model, LONG, sae, Set(site, 2.0, latents=unit, positions=3)).logits
    as_unit = run(model, LONG, edits=Set(site, 2.0, units=unit, positions=3)).logits
    assert torch.equal(run(model, LONG, sae, node).logits, as_latent)
    assert torch.equal(run(model, LONG, edits=node).logits, as_unit)
    other = tiny_sae("relu", MIDDLE, 16)
    assert torch.equal(run(model, LONG, other, replace(node, prompts=0)).logits, as_unit)
    assert not torch.allclose(as_latent, as_unit)
    both = [node, Scale(site, 1.0, units=0), Set(site, 2.0, units=unit, positions=3)]
    expected = run(model, LONG, sae, [both[2], replace(node, units=None)]).logits
    assert torch.equal(run(model, LONG, sae, both).logits, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_setting_a_latent_adds_its_row(architecture: str) -> None:
    model, sae = tiny_model("gpt2"), tiny_sae(architecture, MIDDLE, 16)
    clean = run(model, LONG, sae).latents[MIDDLE][0, 4]
    for latent in (int(clean.abs().argmax()), int(clean.abs().argmin())):
        expected = run(model, LONG, edits=Steer(
            MIDDLE, ((1.7 - clean[latent]) * sae.W_dec[latent]).detach(), positions=4
        ))  # fmt: skip
        found = run(model, LONG, sae, Set(f"{MIDDLE}/{latent}@4", 1.7))
        torch.testing.assert_close(found.logits, expected.logits, **CLOSE)


def error_coders() -> dict[str, Any]:
    """Coders of several kinds, one a transcoder."""
    into = "blocks.1.mlp.hook_in"
    return {
        "topk": tiny_sae("topk", MIDDLE, 16),
        "normalized": tiny_sae("relu", MIDDLE, 16, normalization="layer_norm"),
        "transcoder": tiny_sae("topk", into, 16, site_out="blocks.1.hook_mlp_out", skip=True),
        "heads": tiny_sae("relu", Z, 16),
        "own": OwnSAE(MIDDLE, 16),
    }


@pytest.mark.parametrize("error", ["attached", "detached", "frozen"])
@pytest.mark.parametrize("coder", error_coders())
def test_without_its_error_an_sae_leaves_its_reconstruction(coder: str, error: Any) -> None:
    model, sae = tiny_model("gpt2"), error_coders()[coder]
    site = sae.site_out
    with torch.no_grad():
        clean = plain_run(model.language_model, LONG)
        x, y = clean[sae.site_in].flatten(1), clean[site].flatten(1)
        reconstruction = plain_decode(sae, plain_latents(sae, x), x)
    edits: list[tuple[AbstractEdit, Tensor]] = [
        (Ablate(f"{site}/error@4"), reconstruction[4]),
        (
            Scale(site, 3.0, part="error", positions=4),
            reconstruction[4] + 3 * (y - reconstruction)[4],
        ),
        (Steer(site, VECTOR, part="error", positions=-3), y[4] + VECTOR),
        (Set(site, VECTOR, part="error", positions=4), reconstruction[4] + VECTOR),
    ]
    for edit, row in edits:
        value = put(y, 4, row)
        expected = logits("gpt2", LONG, site, lambda v, x=value: x.reshape(v.shape))
        trace = run(model, LONG, sae, edit, site, error=error)
        torch.testing.assert_close(trace.logits[0], expected, **CLOSE)
        torch.testing.assert_close(trace.activations[site][0].flatten(1), value, **CLOSE)
        torch.testing.assert_close(trace.errors[site][0], value - reconstruction, **CLOSE)
    everywhere = run(model, LONG, sae, Ablate(site, part="error"), site, error=error)
    dropped = run(model, LONG, sae, record=site, error="dropped")
    assert torch.equal(everywhere.logits, dropped.logits)
    assert torch.equal(everywhere.activations[site], dropped.activations[site])


def test_around_an_edited_error_the_run_is_exact_in_float32() -> None:
    """Where latents and error are as they were the value is the model's own, to the bit."""
    model, sae = tiny_model("llama", torch.float32), tiny_sae(
        "topk", MIDDLE, 16, dtype=torch.float32
    )  # fmt: skip
    clean = run(model, LONG, record=MIDDLE).activations[MIDDLE]
    edits = [Ablate(f"{MIDDLE}/error@4"), Ablate(MIDDLE, latents=range(D_SAE), positions=2)]
    trace = run(model, LONG, sae, edits, MIDDLE)
    rest = [0, 1, 3, 5, 6]
    assert torch.equal(trace.activations[MIDDLE][0, rest], clean[0, rest])
    assert torch.equal(trace.activations[MIDDLE][0, 4], trace.reconstructions[MIDDLE][0, 4])
    assert not torch.equal(trace.activations[MIDDLE][0, [2]], clean[0, [2]])


def test_gradients_reach_an_edited_error() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    trace = run(model, LONG, sae, Scale(MIDDLE, 2.0, part="error", positions=3))
    start = run(model, LONG, edits=Steer(MIDDLE, trace.errors[MIDDLE][0, 3].detach() / 2,
                                         positions=3), record=MIDDLE)  # fmt: skip
    torch.testing.assert_close(trace.logits, start.logits, **CLOSE)
    found = torch.autograd.grad(trace.logits.square().sum(), trace.errors[MIDDLE])[0]
    wanted = torch.autograd.grad(start.logits.square().sum(), start.activations[MIDDLE])[0]
    torch.testing.assert_close(found, wanted, **CLOSE)


ALONG: dict[str, tuple[Callable[..., AbstractEdit], Callable[[Tensor], Tensor]]] = {
    **LATENT_EDITS,
    "detach": (Detach, lambda c: c),
    "patch": (lambda at, **o: Patch(at, VECTOR.flip(0), **o), lambda c: 0 * c + flipped()),
}


def flipped() -> float:
    """The coordinate of a vector along itself turned round."""
    return float(VECTOR.flip(0) @ VECTOR / VECTOR.norm())


@pytest.mark.parametrize("name", ALONG)
@pytest.mark.parametrize("family", FAMILIES)
def test_along_a_direction_only_the_coordinate_changes(family: str, name: str) -> None:
    model, (make, function) = tiny_model(family), ALONG[name]
    unit = VECTOR / VECTOR.norm()

    def change(v: Tensor) -> Tensor:
        c = v[[2, 6]] @ unit
        return put(v, [2, 6], v[[2, 6]] + (function(c) - c)[:, None] * unit)

    edit = make(MIDDLE, along=VECTOR, positions=[2, -1])
    trace = run(model, LONG, edits=edit, record=MIDDLE)
    torch.testing.assert_close(trace.logits[0], logits(family, LONG, MIDDLE, change), **CLOSE)
    clean = run(model, LONG, record=MIDDLE).activations[MIDDLE][0, 2]
    at = trace.activations[MIDDLE][0, 2]
    torch.testing.assert_close(at @ unit, function(clean @ unit), **CLOSE)
    torch.testing.assert_close(at - (at @ unit) * unit, clean - (clean @ unit) * unit, **CLOSE)


def test_directions_over_heads_and_from_other_runs() -> None:
    model, other = tiny_model("llama"), [5, 5, 5, 5, 9]
    width = model.width(Z)
    direction = torch.linspace(-1, 1, width)
    source = run(model, other, record=Z)
    clean = run(model, LONG, record=Z).activations[Z][0].flatten(1)
    there = source.activations[Z][0].flatten(1)
    trace = run(model, LONG, edits=Patch(Z, source, along=direction, positions=[1, 4]), record=Z)
    unit = direction.double() / direction.double().norm()
    expected = clean.clone()
    for p in (1, 4):
        expected[p] += ((there[p] - clean[p]) @ unit) * unit
    torch.testing.assert_close(trace.activations[Z][0].flatten(1), expected, **CLOSE)


def test_detached_along_a_direction_no_gradient_passes_along_it() -> None:
    model = tiny_model("gpt2")
    start = "blocks.0.hook_resid_post"
    trace = run(model, LONG, edits=Detach(MIDDLE, along=VECTOR), record=[start, MIDDLE])
    assert torch.equal(trace.logits, run(model, LONG).logits)
    gradient = torch.autograd.grad(trace.logits.square().sum(), trace.activations[start])[0]
    assert gradient.any() and (gradient @ VECTOR).abs().max() < 1e-10 * gradient.abs().max()


def clean_edits(trace: Trace) -> list[AbstractEdit]:
    """Edits of every kind that put in what is there."""
    head = trace.activations[Z][0, 3, 1].detach()
    return [
        Set(Z, head, units=1, positions=3),
        Set(POST, float(trace.activations[POST][0, 2, 5].detach()), units=5, positions=2),
        Patch(POST, trace, units=range(9)),
        Patch(Z, trace, units=[0, 3], positions=[-1]),
        Patch("blocks.1.attn.hook_k", trace, units=1),
        Patch(PATTERN, trace, units=2, keys=[0, 1]),
        Patch(PATTERN, trace),
        Scale(PATTERN, 1.0, positions=5, keys=2),
        Patch(SCORES, trace, units=0),
        Set(MIDDLE, trace.errors[MIDDLE][0, 2].detach(), part="error", positions=2),
        Patch(MIDDLE, trace, part="error"),
        Patch(MIDDLE, trace, latents=range(D_SAE)),
        Patch(MIDDLE, trace, along=VECTOR),
        Scale(Z, 1.0, along=VECTOR),
        Steer(MIDDLE, 0.0, along=VECTOR),
    ]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_an_edit_with_what_is_there_changes_nothing(family: str) -> None:
    model, sae = tiny_model(family), tiny_sae("topk", MIDDLE, 16)
    sites = [MIDDLE, POST, Z, PATTERN, SCORES, "blocks.1.attn.hook_k"]
    trace = run(model, LONG, sae, record=sites)
    for edit in (edits := clean_edits(trace)):
        # the same taps, so that attention runs step by step in both
        found = run(model, LONG, sae, edit, record=sites)
        assert torch.equal(found.logits, trace.logits), edit
    assert torch.equal(run(model, LONG, sae, edits, record=sites).logits, trace.logits)


def test_edits_at_different_sites_commute() -> None:
    model, sae = tiny_model("gemma2"), tiny_sae("topk", MIDDLE, 16)
    edits = [
        Ablate(f"{Z}/2@6<-4"),
        Ablate(f"{POST}/3@5"),
        Ablate(f"{MIDDLE}/error@2"),
        Scale("blocks.0.attn.hook_q", 2.0, units=1),
        Ablate("blocks.2.hook_resid_pre", along=VECTOR),
    ]
    found = run(model, LONG, sae, edits).logits
    assert torch.equal(run(model, LONG, sae, edits[::-1]).logits, found)
    assert not torch.allclose(found, run(model, LONG, sae, edits[1:]).logits)


def several_edits(source: Trace) -> list[AbstractEdit]:
    """Edits of every part, positions counted from both ends."""
    return [
        Scale(POST, 3.0, units=[1, 2], positions=-1),
        Ablate(Z, units=2, positions=[0, -2]),
        Scale(PATTERN, 0.2, units=1, positions=-1, keys=[1, -2]),
        Set(SCORES, 0.5, units=0, keys=-2),
        Scale(MIDDLE, 2.0, part="error", positions=[1, -1]),
        Ablate("blocks.2.hook_resid_pre", along=VECTOR, positions=-1),
        Patch("blocks.0.hook_mlp_out", source, positions=-1, from_positions=-2),
        Patch("blocks.0.attn.hook_pattern", source, units=3, positions=1),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_prompts_are_as_if_each_were_alone(family: str, side: str) -> None:
    model, sae = tiny_model(family), tiny_sae("topk", MIDDLE, 16)
    source = run(model, [4, 4, 9, 11, 2, 7, 7, 7],
                 record=["blocks.0.hook_mlp_out", "blocks.0.attn.hook_pattern"])  # fmt: skip
    edits, prompts = several_edits(source), [LONG, SHORT, [5, 6, 7, 8]]
    batch = pad(prompts, side=side)
    together = run_batch(model, TokenBatch(*batch), {MIDDLE: sae}, Plan(tuple(edits)))
    assert together.logits is not None
    for row, ids in enumerate(prompts):
        alone = run(model, ids, sae, edits)
        found = together.logits[row][batch.mask[row]]
        torch.testing.assert_close(found, alone.logits[0], **CLOSE)
    assert not torch.allclose(found, run(model, prompts[-1], sae).logits[0])


def test_no_edit_of_a_pattern_lets_a_query_see_ahead() -> None:
    model = tiny_model("gpt2")
    for edit in (Steer(PATTERN, 0.3), Set(PATTERN, 0.3, units=2), Set(SCORES, 1.0)):
        found = run(model, LONG, edits=edit).logits[:, :4]
        torch.testing.assert_close(found, run(model, LONG[:4], edits=edit).logits, **CLOSE)


SOURCES = {"longer": [5, 5, 5, 8, 5, 5, 5, 7, 2, 9], "shorter": [5, 6, 5, 9], "same": [*LONG[::-1]]}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("rows", ["one", "each"])
def test_patches_are_aligned_from_the_start_or_as_paired(name: str, rows: str) -> None:
    """Two prompts, of 7 and 3 tokens; sources of other lengths, one for both or one each."""
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    ids = SOURCES[name]
    given = [ids] if rows == "one" else [ids, [8, *ids[:2]]]
    source = run(model, given, sae, record=[MIDDLE, Z, PATTERN])
    lengths = [len(given[row if rows == "each" else 0]) for row in range(2)]

    def there(row: int) -> int:
        return row if rows == "each" else 0

    cases: list[tuple[Any, Any, list[list[tuple[int, int]]]]] = [
        ([0, 2], None, [[(0, 0), (2, 2)]] * 2),
        ([0, -1], [-1, 1], [[(0, n - 1), (at, 1)] for n, at in zip(lengths, (6, 2), strict=True)]),
        (-1, -1, [[(at, n - 1)] for n, at in zip(lengths, (6, 2), strict=True)]),
    ]
    for positions, from_positions, pairs in cases:
        where = {"positions": positions, "from_positions": from_positions}
        edits = [
            Patch(MIDDLE, source, **where),
            Patch(Z, source, units=2, **where),
            Patch(MIDDLE, source, latents=[3, 4], **where),
            Patch(MIDDLE, source, part="error", **where),
        ]
        for edit in edits:
            trace = run(model, [LONG, SHORT], sae, edit, [MIDDLE, Z])
            clean = run(model, [LONG, SHORT], sae, record=[MIDDLE, Z])
            values = {None: "activations", "error": "errors"}[edit.part]
            values = "latents" if edit.latents else values
            found, expected, other = (
                getattr(one, values)[edit.at].clone() for one in (trace, clean, source)
            )
            part = edit.latents or edit.units or slice(None)
            for row in range(2):
                for to, at in pairs[row]:
                    expected[row, to, part] = other[there(row), at, part]
            torch.testing.assert_close(found, expected, **CLOSE)


def test_patterns_are_aligned_by_query_and_key() -> None:
    model = tiny_model("llama")
    source = run(model, SOURCES["shorter"], record=PATTERN)
    other = source.activations[PATTERN]
    clean = run(model, LONG, record=PATTERN).activations[PATTERN]
    heads = Patch(PATTERN, source, units=1, positions=[2, 3])
    found = run(model, LONG, edits=heads, record=PATTERN).activations[PATTERN]
    expected = clean.clone()
    expected[:, 1, 2:4, :4] = other[:, 1, 2:4]
    torch.testing.assert_close(found, expected, **CLOSE)
    entries = Patch(PATTERN, source, positions=6, keys=[0, 3], from_positions=-1)
    found = run(model, LONG, edits=entries, record=PATTERN).activations[PATTERN]
    expected = clean.clone()
    expected[:, :, 6, [0, 3]] = other[:, :, 3, [0, 3]]
    torch.testing.assert_close(found, expected, **CLOSE)
    with pytest.raises(PromptError, match="takes position 4 of a source that has 4 tokens"):
        run(model, LONG, edits=Patch(PATTERN, source, positions=6, from_positions=-1))


def test_a_tensor_with_positions_is_aligned_too() -> None:
    model = tiny_model("gpt2")
    given = torch.randn(1, 4, 16, dtype=torch.float64)
    found = run(model, [LONG, SHORT], edits=Patch(MIDDLE, given, positions=[0, 2]), record=MIDDLE)
    for row in range(2):
        assert torch.equal(found.activations[MIDDLE][row, [0, 2]], given[0, [0, 2]])
    last = run(model, [LONG, SHORT], edits=Patch(MIDDLE, given, positions=-1, from_positions=-2),
               record=MIDDLE).activations[MIDDLE]  # fmt: skip
    assert torch.equal(last[0, 6], given[0, 2]) and torch.equal(last[1, 2], given[0, 2])
    one = run(model, LONG, edits=Patch(MIDDLE, given[:, :1]), record=MIDDLE).activations[MIDDLE]
    assert torch.equal(one[0], given[0, :1].expand(7, 16))


SITES = r"units= are neurons of mlp\.hook_pre, .*heads of attn\.hook_q"

MISTAKES: list[tuple[Callable[[], Any], type, str]] = [
    (lambda: Ablate(MIDDLE, units=1), SiteError, f"{MIDDLE} has no units. {SITES}"),
    (lambda: Ablate("logits", units=1), SiteError, "logits has no units"),
    (lambda: Ablate("blocks.1.mlp.hook_in", units=1), SiteError, "has no units"),
    (lambda: Ablate(POST, units=64), SiteError, rf"64 is not a neuron of {POST}.*0\.\.63"),
    (lambda: Ablate(Z, units=[0, 4]), SiteError, rf"4 is not a head of {Z}; choose from 0\.\.3"),
    (lambda: Ablate(PATTERN, units=-1), SiteError, r"-1 is not a head.*0\.\.3"),
    (lambda: Ablate(f"{Z}/4@2"), SiteError, r"4 is not a head.*0\.\.3"),
    (lambda: Ablate(f"{Z}/4@2<-1"), SiteError, r"4 is not a head of .*hook_pattern.*0\.\.3"),
    (lambda: Ablate(Z, keys=1), SiteError, f"{Z} has no keys. keys= go with attn.hook_attn_scores"),
    (lambda: Ablate(f"{PATTERN}/1@2<-4", prompts=0), PromptError, "Key 4 lies after query 2"),
    (lambda: Ablate(f"{Z}/1@2<-4", prompts=0), PromptError, "Key 4 lies after query 2 in prompt 0"),
    (lambda: Ablate(PATTERN, positions=1, keys=-1), PromptError, "Key 6 lies after query 1 in p"),
    (lambda: Ablate(PATTERN, positions=[-1], keys=[6]), PromptError, "6 is not in prompt 1"),
    (lambda: Ablate(PATTERN, keys=7), PromptError, "Position 7 is not in prompt 0.*7 tokens"),
    (lambda: Ablate(f"{MIDDLE}/3@4<-1"), SiteError, "cannot be edited"),
    (lambda: Ablate(f"{POST}/3@4<-1"), SiteError, "cannot be edited"),
    (lambda: Ablate(f"{Z}/error@6<-4"), SiteError, "cannot be edited"),
    (lambda: Ablate("blocks.1.attn/bias@7"), SiteError, "cannot be edited"),
    (lambda: Ablate(POST, units=3, latents=4), SiteError, "latents and units. It acts on one of"),
    (lambda: Ablate(POST, units=[3], latents=[3]), SiteError, "latents and units"),
    (lambda: Ablate(MIDDLE, part="error", latents=4), SiteError, "latents and part"),
    (lambda: Ablate(MIDDLE, part="error", along=VECTOR), SiteError, "part and along"),
    (lambda: Ablate(MIDDLE, latents=3, along=VECTOR), SiteError, "latents and along"),
    (lambda: Ablate(POST, units=3, along=VECTOR), SiteError, "along and units"),
    (lambda: Ablate(PATTERN, keys=3, along=VECTOR), SiteError, "along and keys"),
    (lambda: Ablate(f"{MIDDLE}/3@1", along=VECTOR), SiteError, "latents and along"),
    (lambda: Ablate(f"{MIDDLE}/3@1", part="error"), SiteError, "leave latents=, units="),
    (lambda: Ablate(POST, part="error"), SiteError, f"names the error at {POST}, where no SAE is"),
    (lambda: Ablate(f"{POST}/error@1"), SiteError, f"SAEs write {MIDDLE} here"),
    (lambda: Ablate(POST, latents=1), SiteError, "names latents at .* where no SAE is spliced"),
    (lambda: Ablate(MIDDLE, along=torch.ones(12)), ShapeError, r"along has width 12.*\(2, 7, 16\)"),
    (lambda: Ablate(PATTERN, along=torch.ones(4)), ShapeError, "along has width 4, but the"),
    (lambda: Ablate(MIDDLE, along=torch.zeros(16)), ShapeError, r"not zero, got shape \(16,\)"),
    (lambda: Ablate(MIDDLE, along=torch.full((16,), torch.nan)), ShapeError, "length nan"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "kind", "said"), MISTAKES)
def test_edits_of_parts_that_are_not_there(edit: Any, kind: type, said: str) -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    with pytest.raises(kind, match=said):
        run(model, [LONG, SHORT], sae, edit())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("part", "bias", 'part is "error" or None, got "bias"'),
        ("along", torch.ones(1, 16), r"shape \(width,\).* got shape \(1, 16\)"),
    ],
)
def test_fields_of_another_kind(name: str, value: Any, said: str) -> None:
    """As they come where the types of signatures are not checked."""
    edit = Ablate(MIDDLE)
    object.__setattr__(edit, name, value)
    with pytest.raises((SiteError, ShapeError), match=said):
        edit.__post_init__()


def test_key_heads_are_as_many_as_there_are() -> None:
    with pytest.raises(SiteError, match=r"2 is not a head of blocks.1.attn.hook_k.*0\.\.1"):
        run(tiny_model("llama"), LONG, edits=Ablate("blocks.1.attn.hook_k", units=2))


def test_an_error_that_is_left_out_is_not_edited() -> None:
    sae = tiny_sae("topk", MIDDLE, 16)
    with pytest.raises(SiteError, match='error="dropped" leaves errors out'):
        run(tiny_model("gpt2"), LONG, sae, Ablate(MIDDLE, part="error"), error="dropped")


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({}, PromptError, "takes position 4 of a source that has 4 tokens, for prompt 0.* has 7"),
        ({"positions": 5}, PromptError, "takes position 5 of a source that has 4 tokens"),
        ({"positions": 0, "from_positions": 4}, PromptError, "position 4 of a source that has 4"),
        ({"positions": 0, "from_positions": -5}, PromptError, "position -1 of a source that has 4"),
        ({"positions": [0, 1], "from_positions": 1}, PromptError, "1 positions and positions 2"),
        ({"from_positions": 1}, PromptError, "names 1 positions and positions 0"),
    ],
)  # fmt: skip
def test_positions_that_a_source_does_not_have(
    options: dict[str, Any], kind: type, said: str
) -> None:
    model = tiny_model("gpt2")
    source = run(model, SOURCES["shorter"], record=MIDDLE)
    with pytest.raises(kind, match=said):
        run(model, LONG, edits=Patch(MIDDLE, source, **options))


def test_sources_that_fit_no_row() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    source = run(model, [LONG, LONG], record=MIDDLE)
    with pytest.raises(ShapeError, match=r"\(2, 7, 16\) .* of one prompt or of as many"):
        run(model, [LONG] * 3, edits=Patch(MIDDLE, source))
    with pytest.raises(ShapeError, match="of one prompt or of as many"):
        run(model, LONG, edits=Patch(MIDDLE, VECTOR, positions=1, from_positions=1))
    with pytest.raises(SiteError, match=f"no errors at {MIDDLE}, but at no site"):
        run(model, LONG, sae, Patch(MIDDLE, source, part="error"))
