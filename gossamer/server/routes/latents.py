"""Single latents: labels, what they speak for, where they are shown."""

from typing import Any

import torch
from fastapi import APIRouter, Path, Request

from gossamer.analysis.lens import lens
from gossamer.errors import SiteError
from gossamer.saes.sae import SAE
from gossamer.server import answers, wire
from gossamer.server.asking import computed, state_of
from gossamer.server.faults import Answer, Refusal
from gossamer.server.state import State
from gossamer.server.verbs.latents import lens_answer, lens_values
from gossamer.server.verbs.shown import label_of

router = APIRouter(tags=["latents"])
Site = Path(examples=["blocks.2.hook_resid_pre"], max_length=200)
Index = Path(examples=[1740], ge=0, lt=2**31)


@router.post("/lens", response_model=answers.Lens)
async def lens_route(request: Request, body: wire.LensRequest) -> Answer:
    """The tokens that a latent or neuron speaks for, and those that speak for it."""
    state = state_of(request)
    return Answer(await computed(request, lambda _: lens_answer(state, body)))


@router.get("/latents/{site}/{index}", response_model=answers.Latent)
async def latent(request: Request, site: str = Site, index: int = Index) -> Answer:
    """One latent of one SAE."""
    state = state_of(request)
    _check(state, site, index)
    return Answer(await computed(request, lambda _: _latent(state, site, index)))


@router.put("/latents/{site}/{index}/label", response_model=answers.Latent)
async def label(
    request: Request, body: wire.LabelRequest, site: str = Site, index: int = Index
) -> Answer:
    """Save a latent's label; an empty one gives the SAE's own back."""
    state = state_of(request)
    _check(state, site, index)

    def work(_: Any) -> dict[str, Any]:
        state.store.set_label(site, index, body.label)
        return _latent(state, site, index)

    return Answer(await computed(request, work))


def _check(state: State, site: str, index: int) -> None:
    sae = state.served.saes.get(site)
    if sae is None:
        names = ", ".join(state.served.saes) or "nowhere"
        raise Refusal(404, "not_found", f"No SAE writes {site[:60]}; the SAEs here write {names}.")
    d_sae = getattr(sae, "d_sae", None)
    if d_sae is not None and index >= d_sae:
        raise Refusal(
            404, "not_found", f"{index} is not a latent of {site}; choose from 0..{d_sae - 1}."
        )


def _latent(state: State, site: str, index: int) -> dict[str, Any]:
    sae, labels = state.served.saes[site], getattr(state.served.saes[site], "labels", None)
    try:
        seen = lens_values(lens(state.served.model, site, index, {site: sae}))
    except SiteError:  # its unit is not one vector of the residual stream
        seen = None
    norms = (None, None)
    if isinstance(sae, SAE):
        with torch.no_grad():
            norms = (float(sae.W_dec[index].norm()), float(sae.W_enc[index].norm()))
    contexts = None if labels is None else labels.contexts
    return {
        "site": site,
        "index": index,
        "label": label_of(state, sae, site, index),
        "own_label": state.store.label(site, index),
        "top_tokens": [] if labels is None else list(labels.top_tokens[index]),
        "contexts": [] if contexts is None else list(contexts[index]),
        "decoder_norm": norms[0],
        "encoder_norm": norms[1],
        "lens": seen,
        "dashboards": _dashboards(state, site, index),
    }


def _dashboards(state: State, site: str, index: int) -> list[str]:
    """Ids of results that show it, newest first."""
    found = []
    for job in state.jobs.every():
        if job.kind == "dashboard" and job.result is not None and job.request["site"] == site:
            latents = job.request.get("latents")
            if latents is None or index in latents:
                found.append(job.result)
    return found
