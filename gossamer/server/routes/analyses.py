"""One number explained, and further questions about it."""

from typing import Any

from fastapi import APIRouter, Path, Request

from gossamer.analysis.compare import compare
from gossamer.errors import GossamerError
from gossamer.machine import measured
from gossamer.server import answers, wire
from gossamer.server.asking import computed, state_of
from gossamer.server.faults import Answer, field_of, renamed
from gossamer.server.state import State
from gossamer.server.values import analysis_request, request_of
from gossamer.server.verbs.analyses import (
    analysis_answer,
    batch_answer,
    logit_lens_answer,
    scalars_answer,
)
from gossamer.server.verbs.shown import as_json, relabel

router = APIRouter(tags=["analyses"])


@router.post("/analyze", response_model=answers.Analysis)
async def analyze(request: Request, body: wire.AnalysisRequest) -> Answer:
    """A node table that adds up to a number of the prompt."""
    return await _analyzed(request, body, as_json(body))


@router.post("/upstream", response_model=answers.Analysis)
async def upstream(request: Request, body: wire.UpstreamRequest) -> Answer:
    """A table of what is upstream of a node, through one of its ways in."""
    asked = analysis_request(body)
    try:
        return await _analyzed(request, asked, as_json(asked))
    except GossamerError as mistake:
        if field_of(mistake) == "upstream":
            renamed(mistake, "node")
        raise


async def _analyzed(request: Request, body: wire.AnalysisRequest, asked: dict[str, Any]) -> Answer:
    state = state_of(request)
    found = await computed(request, lambda _: request_of(state.served, body), is_analysis=True)
    return Answer(analysis_answer(state, found, state.kept.add(found, asked)))


@router.post("/analyze_batch", response_model=answers.Analyses)
async def analyze_batch(request: Request, body: wire.BatchRequest) -> Answer:
    """Several analyses, in one pass where they fit."""
    state = state_of(request)
    return Answer(
        await computed(request, lambda turn: batch_answer(state, body, lambda *_: turn()))
    )


@router.get("/analyses/{analysis_id}", response_model=answers.Analysis)
async def analysis(
    request: Request, analysis_id: str = Path(examples=["a-0123456789abcdef"])
) -> Answer:
    """One of the last analyses again."""
    state = state_of(request)
    found, _ = state.kept.get(analysis_id)
    return Answer(analysis_answer(state, found, analysis_id))


@router.post("/compare", response_model=answers.Comparison)
async def compare_route(request: Request, body: wire.CompareRequest) -> Answer:
    """Two analyses side by side; or an edited one beside its clean run."""
    state = state_of(request)
    return Answer(await computed(request, lambda _: _compared(state, body)))


def _compared(state: State, body: wire.CompareRequest) -> dict[str, Any]:
    left, _ = state.kept.get(body.left)
    right = None if body.right is None else state.kept.get(body.right)[0]
    with measured(state.served.model.device) as cost:
        found = compare(left, right, body.align)
    rows = [row._asdict() for row in found.rows]
    relabel(state.store, rows)
    return {
        "left": analysis_answer(state, found.left, body.left),
        "right": analysis_answer(state, found.right, body.right),
        "difference": found.difference,
        "align": found.align,
        "rows": rows,
        "seconds": cost.seconds,
        "peak_bytes": cost.peak_bytes,
    }


@router.post("/scalars", response_model=answers.Scalars)
async def scalars(request: Request, body: wire.ScalarsRequest) -> Answer:
    """Any derived scalar of an analysis that was made."""
    state = state_of(request)
    return Answer(await computed(request, lambda _: scalars_answer(state, body)))


@router.post("/logit_lens", response_model=answers.LogitLens)
async def logit_lens(request: Request, body: wire.LogitLensRequest) -> Answer:
    """What the model would say at one position if it stopped at each block."""
    state = state_of(request)
    return Answer(await computed(request, lambda _: logit_lens_answer(state, body)))
