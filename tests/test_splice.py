"""Runs with SAEs in them, against the splice written out again over the plain model.

The reference below takes the tensors of an SAE, the oracle's values at its sites and the four words
for the error, and shares no line with the package; gradients come from autograd through it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.edits import Ablate, Scale, Set, Steer
from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.splice import Trace, run
from tests.plain_model import plain_run
from tests.tiny_models import tiny_model
from tests.tiny_saes import (
    D_SAE,
    OwnSAE,
    plain_active,
    plain_decode,
    plain_latents,
    plain_pre,
    tiny_sae,
)

LONG = [3, 1, 4, 15, 9, 2, 6]
SHORT = [8, 36, 7]
ERRORS = ("attached", "detached", "frozen", "dropped")
START = "blocks.0.hook_resid_pre"
MIDDLE = "blocks.1.hook_resid_pre"
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

Change = Callable[[Tensor], Tensor]


def several(family: str) -> dict[str, Any]:
    """One SAE of every kind, at five places of one model."""
    width = tiny_model(family).width
    coders = [
        tiny_sae("topk", "blocks.0.attn.hook_z", width("blocks.0.attn.hook_z"), seed=1),
        tiny_sae("jumprelu", MIDDLE, 16, seed=2),
        tiny_sae(
            "gated", "blocks.1.mlp.hook_in", 16, site_out="blocks.1.hook_mlp_out", skip=True, seed=3
        ),
        OwnSAE("blocks.2.hook_resid_mid", 16),
        tiny_sae("relu", "blocks.2.hook_resid_post", 16, normalization="layer_norm", seed=4),
    ]
    return {coder.site_out: coder for coder in coders}


class PlainSplice:
    """The splice of one prompt: `replace` for `plain_run`, and what it left in `parts`."""

    def __init__(
        self,
        model: Any,
        ids: list[int],
        coders: Mapping[str, Any],
        error: str,
        changes: Mapping[str, Change],
    ) -> None:
        self.coders, self.error, self.changes = coders, error, changes
        self.parts: dict[str, dict[str, Tensor]] = {site: {} for site in coders}
        with torch.no_grad():
            self.clean = plain_run(model, ids)
        sites = {site for c in coders.values() for site in (c.site_in, c.site_out)}
        self.replace = {site: self._stand_at(site) for site in sites}

    def _stand_at(self, site: str) -> Change:
        def stand(value: Tensor) -> Tensor:
            x = value.flatten(1)
            writer = self.coders.get(site)
            if writer is not None:
                if writer.site_in == site:
                    self.parts[site]["x"] = x
                x = self._written(writer, x)
            for coder in self.coders.values():
                if coder.site_in == site and coder is not writer:
                    self.parts[coder.site_out]["x"] = x
            return x.reshape(value.shape)

        return stand

    def _written(self, coder: Any, y: Tensor) -> Tensor:
        part = self.parts[coder.site_out]
        x = part["x"]
        part["pre_activations"] = plain_pre(coder, x)
        unedited = plain_latents(coder, x)
        part["latents"] = self.changes.get(coder.site_out, lambda f: f)(unedited)
        part["reconstructions"] = plain_decode(coder, part["latents"], x)
        missed = y - plain_decode(coder, unedited, x)
        clean_x, clean_y = (self.clean[s].flatten(1) for s in (coder.site_in, coder.site_out))
        frozen = clean_y - plain_decode(coder, plain_latents(coder, clean_x), clean_x)
        part["errors"] = {
            "attached": missed,
            "detached": missed.detach(),
            "frozen": frozen,
            "dropped": torch.zeros_like(y),
        }[self.error]
        return part["reconstructions"] + part["errors"]


def gradient_at(site: str, logits: Tensor, value: Tensor, weights: Tensor) -> Tensor:
    """How a weighted sum of the logits depends on the value at a site."""
    return torch.autograd.grad((logits * weights).sum(), value, retain_graph=True)[0]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_each_error_is_what_its_word_says_with_several_saes_and_edits(
    family: str, error: str
) -> None:
    model, coders = tiny_model(family), several(family)
    edited = (MIDDLE, "blocks.1.hook_mlp_out")
    factor = torch.ones(len(LONG), 1, dtype=torch.float64)
    factor[[1, -1]] = 1.7
    plain = PlainSplice(
        model.language_model, LONG, coders, error, {site: lambda f: f * factor for site in edited}
    )
    leaf = plain.clean[START].clone().requires_grad_()
    expected = plain_run(model.language_model, LONG, {**plain.replace, START: lambda _: leaf})

    edits = [Scale(site, 1.7, latents=range(D_SAE), positions=[1, -1]) for site in edited]
    trace = run(model, LONG, coders, edits, [START, *plain.replace], error=error)
    torch.testing.assert_close(trace.logits[0], expected["logits"], **CLOSE)
    assert (expected["logits"] - plain.clean["logits"]).abs().max() > 1e-3
    for site in plain.replace:
        torch.testing.assert_close(trace.activations[site][0], expected[site], **CLOSE)
    for site, coder in coders.items():
        part = plain.parts[site]
        for name in ("latents", "reconstructions", "errors", "pre_activations"):
            recorded = getattr(trace, name)
            if name == "pre_activations" and isinstance(coder, OwnSAE):
                assert site not in recorded
            else:
                torch.testing.assert_close(recorded[site][0], part[name], **CLOSE)
    weights = torch.randn(expected["logits"].shape, dtype=torch.float64)
    torch.testing.assert_close(
        gradient_at(START, trace.logits[0], trace.activations[START], weights)[0],
        gradient_at(START, expected["logits"], leaf, weights),
        **CLOSE,
    )


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("architecture", ["topk_signed", "gated"])
def test_gradients_reach_latents_pre_activations_reconstructions_and_errors(
    architecture: str, error: str
) -> None:
    """With g the gradient at the site: g for reconstruction and error, g·W_dec for a latent, and
    for a pre-activation the same where it is active."""
    model, sae = tiny_model("gpt2"), tiny_sae(architecture, MIDDLE, 16)
    trace = run(model, LONG, sae, error=error)
    with torch.no_grad():
        clean = plain_run(model.language_model, LONG)[MIDDLE]
        latents = plain_latents(sae, clean)
        spliced = plain_decode(sae, latents, clean) if error == "dropped" else clean
    leaf = spliced.clone().requires_grad_()
    logits = plain_run(model.language_model, LONG, {MIDDLE: lambda _: leaf})["logits"]
    weights = torch.randn(logits.shape, dtype=torch.float64)
    at_site = gradient_at(MIDDLE, logits, leaf, weights)
    of_latents = at_site @ sae.W_dec.T
    expected = {
        "reconstructions": at_site,
        "errors": at_site,
        "latents": of_latents,
        "pre_activations": torch.where(plain_active(sae, clean), of_latents, 0.0),
    }
    for name, gradient in expected.items():
        found = gradient_at(MIDDLE, trace.logits[0], getattr(trace, name)[MIDDLE], weights)[0]
        torch.testing.assert_close(found, gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
        assert gradient.abs().max() > 1e-3


def test_at_a_site_comes_the_edit_then_the_splice_then_the_record() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    given = torch.randn(16, dtype=torch.float64)
    edits = [
        Ablate(MIDDLE, latents=range(D_SAE), positions=2),  # of latents, whatever the order
        Set(MIDDLE, given, positions=2),
    ]
    trace = run(model, LONG, sae, edits, MIDDLE)
    latents = plain_latents(sae, given[None])
    error = given - plain_decode(sae, latents, given[None])[0]
    torch.testing.assert_close(trace.pre_activations[MIDDLE][0, 2], plain_pre(sae, given), **CLOSE)
    assert (trace.latents[MIDDLE][0, 2] == 0).all() and latents.any()
    torch.testing.assert_close(trace.errors[MIDDLE][0, 2], error, **CLOSE)
    torch.testing.assert_close(trace.activations[MIDDLE][0, 2], sae.b_dec + error, **CLOSE)
    later = plain_run(
        model.language_model,
        LONG,
        {MIDDLE: lambda v: torch.cat([v[:2], (sae.b_dec + error)[None], v[3:]])},
    )
    torch.testing.assert_close(trace.logits[0], later["logits"], **CLOSE)


def test_a_transcoder_reads_what_the_sae_at_its_site_has_written() -> None:
    model, site = tiny_model("gpt2"), "blocks.1.mlp.hook_in"
    sae = tiny_sae("topk", site, 16)
    transcoder = tiny_sae("relu", site, 16, site_out="blocks.1.hook_mlp_out", seed=1)
    trace = run(model, LONG, [transcoder, sae], error="dropped")
    read = trace.reconstructions[site]
    found = trace.latents[transcoder.site_out]
    torch.testing.assert_close(found, plain_latents(transcoder, read), **CLOSE)
    clean = plain_latents(transcoder, plain_run(model.language_model, LONG)[site])
    assert not torch.allclose(found[0], clean)


@pytest.mark.parametrize("error", ["attached", "frozen"])
def test_a_prompt_among_others_gives_what_it_gives_alone(error: str) -> None:
    model, coders = tiny_model("mistral"), several("mistral")
    edits = [Scale(MIDDLE, 2.0, latents=range(D_SAE), positions=-1), Ablate(START, positions=[1])]
    record = ["blocks.2.attn.hook_q", START]
    together = run(model, [LONG, SHORT], coders, edits, record, error=error)
    assert together.lengths == [len(LONG), len(SHORT)] and together.tokens.shape == (2, len(LONG))
    for row, ids in enumerate((LONG, SHORT)):
        alone = run(model, ids, coders, edits, record, error=error)
        assert alone.tokens.tolist() == [ids]
        n = len(ids)
        torch.testing.assert_close(together.logits[row, :n], alone.logits[0], **CLOSE)
        for name in ("activations", "latents", "pre_activations", "reconstructions", "errors"):
            for site, value in getattr(alone, name).items():
                torch.testing.assert_close(
                    getattr(together, name)[site][row, :n], value[0], **CLOSE
                )


def test_saes_may_come_alone_in_a_list_or_by_name() -> None:
    model, coders = tiny_model("gpt2"), several("gpt2")
    given = (list(coders.values()), tuple(coders.values()), coders.values(), coders)
    traces = [run(model, LONG, saes, error="dropped") for saes in given]
    for trace in traces[1:]:
        assert torch.equal(trace.logits, traces[0].logits) and set(trace.latents) == set(coders)
    own = coders["blocks.2.hook_resid_mid"]
    alone = run(model, LONG, own)
    assert set(alone.latents) == {own.site_out} and not alone.pre_activations
    assert not run(model, LONG, None).latents and not run(model, LONG, []).latents


def all_tensors(trace: Trace) -> list[Tensor]:
    by_site = (trace.activations, trace.latents, trace.pre_activations, trace.reconstructions)
    return [trace.logits, *(v for part in (*by_site, trace.errors) for v in part.values())]


def test_recorded_tensors_go_where_they_are_asked_to_go_and_the_run_does_not() -> None:
    """The device "meta" keeps shapes alone: a run that went on from there would have no values."""
    model, coders = tiny_model("gpt2"), several("gpt2")
    seen: list[Tensor] = []
    away = run(model, LONG, coders, record=START, record_device="meta")
    here = run(model, LONG, coders, record=START)
    for moved, kept in zip(all_tensors(away), all_tensors(here), strict=True):
        assert moved.device.type == "meta" and moved.shape == kept.shape
    handle = model.language_model.lm_head.register_forward_hook(lambda *a: seen.append(a[2]))
    run(model, LONG, coders, record=START, record_device="meta")
    handle.remove()
    assert torch.equal(seen[0], here.logits)


def test_gradients_are_there_unless_they_are_switched_off() -> None:
    model, coders = tiny_model("gpt2"), several("gpt2")
    assert all(v.requires_grad for v in all_tensors(run(model, LONG, coders, record=START)))
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            trace = run(model, LONG, coders, record=START)
        assert not any(v.requires_grad for v in all_tensors(trace))
        assert not model.language_model.get_input_embeddings().weight.grad


def test_a_run_without_logits_stops_after_the_last_site() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    calls: list[object] = []
    handle = model.language_model.transformer.h[1].mlp.register_forward_hook(
        lambda *given: calls.append(given)
    )
    trace = run(model, LONG, sae, record="blocks.1.hook_attn_out", logits=False)
    assert trace.logits is None and not calls and set(trace.latents) == {MIDDLE}
    run(model, LONG, sae, record="blocks.1.hook_mlp_out", logits=False)
    handle.remove()
    assert len(calls) == 1


WIDTHS = {
    "model bf16": (torch.bfloat16, torch.float32),
    "SAE wider": (torch.float32, torch.float64),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("of_model", "of_sae"), WIDTHS.values(), ids=WIDTHS)
def test_an_sae_may_be_of_another_type_than_its_model(
    of_model: torch.dtype, of_sae: torch.dtype, error: str
) -> None:
    model = tiny_model("llama", of_model)
    saes = [tiny_sae("topk", site, 16, dtype=of_sae) for site in (MIDDLE, "blocks.2.hook_mlp_out")]
    trace = run(model, LONG, saes, record=MIDDLE, error=error)
    assert trace.logits.dtype == of_model and trace.activations[MIDDLE].dtype == of_model
    assert trace.latents[MIDDLE].dtype == of_sae
    if error in ("attached", "detached"):
        assert torch.equal(trace.logits, run(model, LONG).logits)


def test_two_writers_of_one_site_are_refused() -> None:
    site = "blocks.1.hook_mlp_out"
    two = [tiny_sae("topk", site, 16), tiny_sae("relu", "blocks.1.mlp.hook_in", 16, site_out=site)]
    for saes in (two, {"a": two[0], "b": two[1]}):
        with pytest.raises(SiteError, match=f"Two SAEs write {site}"):
            run(tiny_model("gpt2"), LONG, saes)


@pytest.mark.parametrize(
    ("sae", "kind", "message"),
    [
        (lambda: tiny_sae("topk", MIDDLE, 12), ShapeError, f"d_in=12, but {MIDDLE}.*width 16"),
        (
            lambda: tiny_sae("topk", "blocks.1.mlp.hook_post", 16),
            ShapeError,
            "d_in=16, but blocks.1.mlp.hook_post.*width 64",
        ),
        (lambda: tiny_sae("topk", "blocks.3.hook_resid_pre", 16), SiteError, r"blocks 0\.\.2"),
        (lambda: tiny_sae("topk", "blocks.1.hook_mlp_ot", 16), SiteError, "blocks.1.hook_mlp_out"),
        (lambda: OwnSAE("hook_embd", 16), SiteError, "hook_embed"),
        (lambda: tiny_sae("topk", "blocks.1.attn.hook_pattern", 16), SiteError, "no fixed width"),
        (
            lambda: tiny_sae("topk", "blocks.1.hook_mlp_out", 16, site_out="blocks.1.mlp.hook_in"),
            SiteError,
            "comes before it",
        ),
    ],
)
def test_saes_that_do_not_fit_the_model_are_refused(sae: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        run(tiny_model("gpt2"), LONG, sae())


@pytest.mark.parametrize("saes", [7, "pico-python", [7], {"a": "b"}, torch.zeros(3)])
def test_what_is_no_sae_is_refused(saes: Any) -> None:
    with pytest.raises(GossamerError, match="An SAE has site_in, site_out, encode and decode, got"):
        run(tiny_model("gpt2"), LONG, saes)


def test_an_unknown_site_and_latents_without_an_sae_are_refused() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    with pytest.raises(SiteError, match=r'"blocks.1.hook_mpl_out".*blocks.1.hook_mlp_out'):
        run(model, LONG, record="blocks.1.hook_mpl_out")
    with pytest.raises(SiteError, match=r'"blocks.1.hook_mpl_out".*blocks.1.hook_mlp_out'):
        run(model, LONG, edits=Steer("blocks.1.hook_mpl_out", 1.0))
    with pytest.raises(SiteError, match=f"latents at {START}, where no SAE.*{MIDDLE}"):
        run(model, LONG, sae, Ablate(START, latents=3))
    with pytest.raises(SiteError, match="where no SAE is spliced; SAEs write nowhere"):
        run(model, LONG, edits=Ablate(f"{MIDDLE}/3@1"))
