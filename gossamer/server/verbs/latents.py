"""`lens` and `dashboard`: a body in, plain values out."""

from collections.abc import Callable
from copy import copy
from itertools import count
from typing import Any

from gossamer.analysis.lens import Lens, lens
from gossamer.corpus import as_corpus
from gossamer.dashboards.dashboard import BATCH_TOKENS, dashboard
from gossamer.machine import measured
from gossamer.models.model import Model
from gossamer.server import wire
from gossamer.server.faults import field
from gossamer.server.state import State
from gossamer.server.verbs.shown import label_of

STDLIB = ("stdlib", "stdlib/train", "stdlib/held_out", "stdlib/all")
"""Corpora that are not in the workspace."""


def lens_answer(state: State, body: wire.LensRequest) -> dict[str, Any]:
    """`lens`."""
    served = state.served
    with measured(served.model.device) as cost:
        found = lens(
            served.model, body.site, body.unit, dict(served.saes), body.top, scale=body.scale
        )
    return {**lens_values(found), "seconds": cost.seconds, "peak_bytes": cost.peak_bytes}


def lens_values(found: Lens) -> dict[str, Any]:
    """A lens as plain values."""
    return {side: [score._asdict() for score in scores] for side, scores in found._asdict().items()}


def dashboard_answer(
    state: State, name: str, body: wire.DashboardRequest, step: Callable[[int, int], None]
) -> dict[str, Any]:
    """`dashboard`, its file beside the result."""
    served = state.served
    saes = served.chosen([body.site])
    sae: Any = saes[body.site]
    with field("request.corpus"):
        bundled = body.corpus in STDLIB
        corpus = as_corpus(body.corpus if bundled else state.store.inside(body.corpus))
    total = -(-body.n_tokens // BATCH_TOKENS) + len(body.texts)  # about: rows are not quite full
    passes = count()
    board = dashboard(
        _stepping(served.model, lambda: step(min(next(passes), total), total)),
        sae,
        corpus,
        latents=body.latents,
        n_tokens=body.n_tokens,
        texts=body.texts,
    )
    board.save(state.store.path("results", name, ".safetensors"))
    excerpts = board.excerpts()
    rows = [
        {
            "latent": latent,
            "label": label_of(state, sae, body.site, latent) or board.names[row],
            "density": board.densities[row].item(),
            "max": board.maxima[row].item(),
            "examples": excerpts[latent],
        }
        for row, latent in enumerate(board.latents.tolist())
    ]
    return {"site": body.site, "about": dict(board.about), "latents": rows}


def _stepping(model: Model, step: Callable[[], None]) -> Model:
    """The same model, with a word before each of its passes."""
    one = copy(model)

    def forward(*given: Any, **named: Any) -> Any:
        step()
        return model.forward(*given, **named)

    one.__dict__["forward"] = forward
    return one
