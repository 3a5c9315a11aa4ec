"""What is kept in the workspace: jobs with their events, and saved results."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from itertools import count
from typing import Any

from fastapi import APIRouter, Header, Path, Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from pydantic import TypeAdapter
from starlette.responses import Response

from gossamer.server import answers, wire
from gossamer.server.asking import EVENTS, PING_SECONDS, sse, state_of
from gossamer.server.faults import Answer
from gossamer.server.jobs import ENDED, EVERY, Job, Step
from gossamer.server.state import State
from gossamer.server.verbs.analyses import analysis_answer, batch_answer
from gossamer.server.verbs.graphs import attribute_answer, verify_answer
from gossamer.server.verbs.latents import dashboard_answer
from gossamer.server.verbs.runs import edges_answer, generate_answer
from gossamer.server.verbs.shown import as_json

router = APIRouter(tags=["jobs and results"])
_BODY: TypeAdapter[Any] = TypeAdapter(wire.JobRequest)
JobId = Path(examples=["j-0123456789abcdef"], max_length=64)
ResultId = Path(examples=["r-0123456789abcdef"], max_length=64)


def run_job(state: State, job: Job, step: Step) -> dict[str, Any]:
    """The work of a job, in the worker's thread."""
    body = _BODY.validate_python({"kind": job.kind, "request": job.request}).request
    match body:
        case wire.BatchRequest():
            return batch_answer(state, body, lambda done, total: step(done, total, "analyses"))
        case wire.EdgesRequest():
            return edges_answer(state, body, lambda done, total: step(done, total, "prompts"))
        case wire.GenerateRequest():
            tokens = count(1)
            return generate_answer(state, body, lambda _: step(next(tokens), None, "tokens"))
        case wire.AttributeRequest():
            return attribute_answer(state, body, step, job)
        case wire.VerifyRequest():
            return verify_answer(state, body, lambda done, total: step(done, total, "runs"))
        case _:
            return dashboard_answer(
                state, job.id, body, lambda done, total: step(done, total, "passes")
            )


@router.post("/jobs", response_model=answers.Job, status_code=202)
async def begin(request: Request, body: wire.JobRequest) -> Answer:
    """Queue long work."""
    jobs = state_of(request).jobs
    return _job(jobs.begin(body.kind, as_json(body.request), body.title), 202)


@router.get("/jobs", response_model=answers.Jobs)
async def every(request: Request) -> Answer:
    """All jobs, newest first."""
    return Answer({"jobs": [job.without_request() for job in state_of(request).jobs.every()]})


@router.get("/jobs/{job_id}", response_model=answers.Job)
async def one(request: Request, job_id: str = JobId) -> Answer:
    """How far a job is."""
    return _job(state_of(request).jobs.get(job_id))


@router.delete("/jobs/{job_id}", response_model=answers.Job)
async def cancel(request: Request, job_id: str = JobId) -> Answer:
    """Stop a job at its next step; one that has ended stays as it is."""
    return _job(state_of(request).jobs.cancel(job_id))


@router.post("/jobs/{job_id}/rerun", response_model=answers.Job, status_code=202)
async def rerun(request: Request, job_id: str = JobId) -> Answer:
    """Queue a job that has ended again, under its id."""
    return _job(state_of(request).jobs.rerun(job_id), 202)


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": EVENTS}}},
)
async def events(
    request: Request,
    job_id: str = JobId,
    last_event_id: str | None = Header(None, max_length=40),
) -> Response:
    """A job at every change, at most ten a second, until it ends; goes on after Last-Event-ID."""
    state = state_of(request)
    state.jobs.get(job_id)
    seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    return EventSourceResponse(_events(state, job_id, seen), headers={"X-Accel-Buffering": "no"})


async def _events(state: State, name: str, seen: int) -> AsyncIterator[bytes]:
    spoken = time.monotonic()
    while True:
        for number, job in state.jobs.after(name, seen):
            seen, spoken = number, time.monotonic()
            yield sse("job", job.without_request(), number)
        if state.jobs.get(name).state in ENDED and not state.jobs.after(name, max(seen, 1)):
            return
        if state.worker.is_closing:
            return
        if time.monotonic() - spoken > PING_SECONDS:
            spoken = time.monotonic()
            yield KEEPALIVE_COMMENT
        await asyncio.sleep(EVERY)


def _job(job: Job, status: int = 200) -> Answer:
    return Answer(asdict(job), status)


@router.post("/results", response_model=answers.ResultInfo, status_code=201)
async def save(request: Request, body: wire.SaveRequest) -> Answer:
    """Save an analysis in the workspace."""
    state = state_of(request)
    found, asked = state.kept.get(body.analysis)
    name = "r-" + body.analysis.removeprefix("a-")
    info = {"id": name, "kind": "analyze", "title": body.title, "created": time.time()}
    answer = analysis_answer(state, found, body.analysis)
    state.store.save("results", name, {**info, "request": asked, "answer": answer})
    return Answer(info, 201)


@router.get("/results", response_model=answers.Results)
async def results(request: Request) -> Answer:
    """All saved answers, newest first."""
    return Answer({"results": state_of(request).store.contents("results")})


@router.get("/results/{result_id}", response_model=answers.Result)
async def result(request: Request, result_id: str = ResultId) -> Answer:
    """One saved answer."""
    return Answer(state_of(request).store.load("results", result_id))


@router.delete("/results/{result_id}", response_model=answers.Done)
async def forget(request: Request, result_id: str = ResultId) -> Answer:
    """Delete a saved answer."""
    state_of(request).store.delete("results", result_id)
    return Answer({"id": result_id})
