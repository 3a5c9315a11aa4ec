"""Runs of the model: one pass, effects of nodes on nodes, a text that goes on."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gossamer.server import answers, wire
from gossamer.server.asking import EVENTS, Stream, computed, state_of
from gossamer.server.faults import Answer
from gossamer.server.verbs.runs import edges_answer, generate_answer, run_answer

router = APIRouter(tags=["runs"])
_EVENTS = {
    "description": "Events token and result, or error; with stream false one answer.",
    "content": {
        "text/event-stream": EVENTS,
        "application/json": {"schema": {"$ref": "#/components/schemas/Generations"}},
    },
}


@router.post("/run", response_model=answers.Run)
async def run(request: Request, body: wire.RunRequest) -> Answer:
    """One pass with SAEs and edits in it: latents by token, and next tokens."""
    state = state_of(request)
    return Answer(await computed(request, lambda turn: run_answer(state, body, turn)))


@router.post("/edges", response_model=answers.Edges)
async def edges(request: Request, body: wire.EdgesRequest) -> Answer:
    """Effects of nodes on nodes along a prompt, or along each of several."""
    state = state_of(request)
    return Answer(
        await computed(request, lambda turn: edges_answer(state, body, lambda *_: turn()))
    )


@router.post("/generate", response_model=answers.Generations, responses={200: _EVENTS})
async def generate(request: Request, body: wire.GenerateRequest) -> Response:
    """Go on with a text, with SAEs and edits at every new token, beside the unedited text."""
    state = state_of(request)

    def work(send: Callable[[str, Any], None]) -> Any:
        return generate_answer(state, body, lambda token: send("token", token._asdict()))

    if not body.stream:
        return Answer(await computed(request, lambda turn: work(lambda *_: turn())))
    return (await Stream(state, work).begin()).response()
