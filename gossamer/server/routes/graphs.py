"""Graphs: made, checked, compared, read in parts, shown as a page, taken as files."""

import html
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import FileResponse, Response

from gossamer.server import answers, wire
from gossamer.server.asking import computed, state_of
from gossamer.server.faults import Answer
from gossamer.server.verbs import graphs as verbs
from gossamer.server.verbs.graphs import Hops, Pairing

router = APIRouter(tags=["graphs"])
GraphId = Path(examples=["g-0123456789abcdef"], max_length=64)
SecondId = Path(examples=["g-0123456789abcdef"], max_length=64)  # each knows its own name
NodeName = Annotated[str, Query(max_length=200)]
Share = Annotated[float, Query(gt=0, le=1)]
PAIRS = r"start|end|[0-9]{1,9}:[0-9]{1,9}(,[0-9]{1,9}:[0-9]{1,9})*"
"""How an address says which positions of two prompts stand for each other."""

_POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]+)"')
_PAGE = {"content": {"text/html": {"schema": {"type": "string"}}}}
_JSON = {"content": {"application/json": {"schema": {"type": "object"}}}}
_FILE = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}


@router.post("/attribute", response_model=answers.Attribution)
async def attribute(request: Request, body: wire.AttributeRequest) -> Answer:
    """The graph of what drives a prediction, kept in the workspace; long ones as a job."""
    state = state_of(request)
    return Answer(
        await computed(request, lambda turn: verbs.attribute_answer(state, body, lambda *_: turn()))
    )


@router.post("/verify", response_model=answers.Report)
async def verify(request: Request, body: wire.VerifyRequest) -> Answer:
    """Edges of a graph checked in the model; its page then marks them."""
    state = state_of(request)
    return Answer(
        await computed(request, lambda turn: verbs.verify_answer(state, body, lambda *_: turn()))
    )


@router.post("/compare_graphs", response_model=answers.GraphComparison)
async def compare_graphs(request: Request, body: wire.CompareGraphsRequest) -> Answer:
    """What two graphs share and what not."""
    state = state_of(request)
    return Answer(await computed(request, lambda _: verbs.compare_graphs_answer(state, body)))


@router.get("/graphs", response_model=answers.GraphList)
async def every(request: Request) -> Answer:
    """All graphs of the workspace, newest first."""
    return Answer({"graphs": state_of(request).store.contents("graphs")})


@router.get("/graphs/{graph_id}", response_model=answers.Graph)
async def one(request: Request, graph_id: str = GraphId) -> Answer:
    """What one is: counts, targets, scores, how nearly its edges add up."""
    return Answer(state_of(request).graphs.about(graph_id))


@router.delete("/graphs/{graph_id}", response_model=answers.Done)
async def forget(request: Request, graph_id: Annotated[str, Path(max_length=64)]) -> Answer:
    """Delete one, with its report."""
    state_of(request).graphs.delete(graph_id)
    return Answer({"id": graph_id})


@router.get("/graphs/{graph_id}/edges", response_model=answers.GraphEdges)
async def edges(  # noqa: PLR0917  FastAPI passes them by name
    request: Request,
    graph_id: str = GraphId,
    node: NodeName | None = None,
    direction: Literal["in", "out"] = "in",
    n: Annotated[int, Query(ge=0, le=10_000)] = 50,
) -> Answer:
    """The strongest edges into a node or out of it; without a node those of the graph."""
    state = state_of(request)
    return Answer(
        await computed(
            request, lambda _: verbs.edges_of(state, graph_id, node, direction=direction, n=n)
        )
    )


@router.get("/graphs/{graph_id}/neighbourhood", response_model=answers.Neighbourhood)
async def neighbourhood(  # noqa: PLR0913, PLR0917  likewise
    request: Request,
    nodes: Annotated[list[NodeName], Query(min_length=1, max_length=200)],
    graph_id: str = GraphId,
    hops: Annotated[int, Query(ge=0, le=100)] = 1,
    direction: Literal["in", "out", "both"] = "both",
    threshold: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0,
    max_nodes: Annotated[int, Query(ge=1, le=5_000)] = 200,
    max_edges: Annotated[int, Query(ge=0, le=50_000)] = 1_000,
) -> Answer:
    """Nodes within so many edges of some: the most influential, and the strongest edges between
    these."""
    state = state_of(request)
    asked = Hops(hops, direction, threshold, max_nodes, max_edges)
    return Answer(
        await computed(request, lambda _: verbs.neighbourhood_of(state, graph_id, nodes, asked))
    )


@router.get("/graphs/{graph_id}/report", response_model=answers.Report | None)
async def report(request: Request, graph_id: str = GraphId) -> Answer:
    """What checking it found last; null when it was not checked."""
    found = state_of(request).graphs.report(graph_id)
    return Answer(None if found is None else verbs.report_values(graph_id, found))


@router.get("/graphs/{graph_id}/page", response_class=Response, responses={200: _PAGE})
async def page(  # noqa: PLR0917  likewise
    request: Request,
    graph_id: str = GraphId,
    pinned: Annotated[list[NodeName] | None, Query(max_length=200)] = None,
    max_nodes: Annotated[int, Query(ge=0, le=20_000)] = 3_000,
    max_edges: Annotated[int, Query(ge=0, le=1_000_000)] = 20_000,
) -> Response:
    """The graph to look at, checked edges marked: one file that also opens offline."""
    state = state_of(request)
    limits = {"max_nodes": max_nodes, "max_edges": max_edges}
    return _page(
        await computed(request, lambda _: verbs.page_of(state, graph_id, pinned or [], limits))
    )


@router.get(
    "/graphs/{graph_id}/difference/{second_id}/page",
    response_class=Response,
    responses={200: _PAGE},
)
async def difference_page(  # noqa: PLR0917  likewise
    request: Request,
    graph_id: str = GraphId,
    second_id: str = SecondId,
    align: Annotated[str, Query(pattern=f"^({PAIRS})$", max_length=20_000)] = "end",
    tolerance: Annotated[float, Query(allow_inf_nan=False)] = 0.2,
) -> Response:
    """Two graphs drawn over each other, coloured by side."""
    state = state_of(request)
    pairs: Any = align
    if ":" in align:
        pairs = [[int(part) for part in pair.split(":")] for pair in align.split(",")]
    pairing = Pairing(pairs, tolerance)
    names = (graph_id, second_id)
    return _page(await computed(request, lambda _: verbs.difference_page_of(state, names, pairing)))


@router.get("/graphs/{graph_id}/json", response_class=Response, responses={200: _JSON})
async def graph_json(
    request: Request, graph_id: str = GraphId, nodes: Share = 0.8, edges: Share = 0.98
) -> Response:
    """Graph JSON for circuit-tracer's page and Neuronpedia, pruned to these shares."""
    state = state_of(request)
    text = await computed(request, lambda _: verbs.json_of(state, graph_id, nodes, edges))
    name = f'inline; filename="{graph_id}.json"'
    return Response(text, 200, {"Content-Disposition": name}, "application/json")


@router.get("/graphs/{graph_id}/file", response_class=Response, responses={200: _FILE})
async def file(request: Request, graph_id: str = GraphId) -> Response:
    """The graph's safetensors file, which `Graph.load` reads."""
    state = state_of(request)
    state.graphs.about(graph_id)
    path = state.store.path("graphs", graph_id, ".safetensors")
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


def _page(text: str) -> Response:
    """A page under the policy that it names itself: its one script, and no request."""
    found = _POLICY.search(text)
    assert found is not None
    policy = f"{html.unescape(found[1])}; frame-ancestors 'none'"
    return Response(text, 200, {"Content-Security-Policy": policy}, "text/html; charset=utf-8")
