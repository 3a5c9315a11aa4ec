"""`create_app`: all routes over one model, its SAEs and a workspace; `serve` runs it."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from gossamer.models.model import Model
from gossamer.saes.sae import SparseCoder
from gossamer.server import answers, faults
from gossamer.server.config import ServerConfig
from gossamer.server.gate import Gate
from gossamer.server.graphs import Graphs
from gossamer.server.jobs import Jobs
from gossamer.server.routes import about, analyses, graphs, kept, latents, runs
from gossamer.server.state import Kept, State
from gossamer.server.store import Store
from gossamer.server.values import Served
from gossamer.server.worker import Worker
from gossamer.splice import as_saes, check_saes

PAGES = Path(__file__).parent / "pages"
"""The page at /, and what it loads."""

_REFUSALS = {
    400: "The body is no JSON, or the Host is not this server's.",
    401: "The token is missing or wrong.",
    403: "The Origin is another server.",
    404: "There is no such id.",
    409: "The job has not ended.",
    413: "The body is too large.",
    422: "A value that cannot be taken; the message says which and what to do.",
    429: "The queue is full; Retry-After says when to come again.",
    500: "A mistake of the server.",
    503: "The server is closing.",
    504: "The answer took too long.",
    507: "Out of memory, or the disk is full.",
}


def create_app(
    model: Model,
    saes: Any = None,
    workspace: str | Path = "gossamer-workspace",
    config: ServerConfig | None = None,
) -> FastAPI:
    """The server as an ASGI application.

    Args:
        model: what is served.
        saes: None, an SAE, several, or a mapping.
        workspace: the directory that holds labels, jobs, results and graphs; made when it is not
            there.
        config: where it listens, who may ask, and its limits.
    """
    config = ServerConfig() if config is None else config
    coders = as_saes(saes)
    check_saes(model, coders)
    state = _state(model, coders, workspace, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        state.worker.close()
        state.store.close()

    app = FastAPI(
        title="Gossamer",
        version=version("gossamer"),
        description="Sparse circuits in a language model: the package's functions over HTTP.",
        docs_url=None,  # these pages load scripts from other servers
        redoc_url=None,
        lifespan=lifespan,
        responses={
            status: {"model": answers.Error, "description": text}
            for status, text in _REFUSALS.items()
        },
    )
    app.state.gossamer = state
    faults.install(app)
    for routes in (about, analyses, runs, graphs, latents, kept):
        app.include_router(routes.router)
    _add_pages(app)
    app.add_middleware(Gate, config=config)
    return app


def _state(
    model: Model,
    saes: Mapping[str, SparseCoder],
    workspace: str | Path,
    config: ServerConfig,
) -> State:
    store = Store(workspace)
    worker = Worker(
        model,
        queue=config.queue,
        jobs=config.jobs,
        group=config.group,
        linger=config.linger,
        memory=config.memory,
    )
    found: list[State] = []
    jobs = Jobs(store, worker, lambda job, step: kept.run_job(found[0], job, step))
    kept_ones = Kept(config.keep, config.memory)
    state = State(Served(model, saes), config, worker, store, jobs, kept_ones, Graphs(store))
    found.append(state)
    return state


def _add_pages(app: FastAPI) -> None:
    """The page, where there is one: its files under /static, the views' under /views."""

    @app.get("/", include_in_schema=False)
    async def page(_: Request) -> Response:
        index = PAGES / "index.html"
        if not index.is_file():
            return Response("Gossamer is here. /openapi.json says what it takes.\n", 200)
        return FileResponse(index)

    if PAGES.is_dir():
        app.mount("/static", StaticFiles(directory=PAGES), name="static")
    views = Path(__file__).parents[1] / "views" / "web"
    app.mount("/views", StaticFiles(directory=views), name="views")


def serve(app: FastAPI, config: ServerConfig, bound: socket.socket) -> None:
    """Run it on a socket until Ctrl-C. One process; the worker is its thread."""
    import uvicorn

    settings = uvicorn.Config(
        app,
        host=config.host,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(settings)
    with suppress(KeyboardInterrupt):
        server.run([bound])
