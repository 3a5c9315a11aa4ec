"""`attribute`, `verify`, `compare_graphs` and the readings of a graph: plain values out."""

import hashlib
import secrets
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gossamer.attribution.attribute import attribute
from gossamer.attribution.contrast import contrast
from gossamer.attribution.graphs.run import check_hold, check_places
from gossamer.attribution.targets import Logits
from gossamer.attribution.verify import verify
from gossamer.attribution.verifying.report import VerifyReport
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.graph.difference import GraphDifference, compare_graphs
from gossamer.graph.graph import Graph
from gossamer.interop.graph_json import write_graph_json
from gossamer.machine import measured
from gossamer.models.prompts import as_prompts
from gossamer.server import wire
from gossamer.server.faults import field
from gossamer.server.graphs import node_values
from gossamer.server.jobs import Job, Step
from gossamer.server.state import State
from gossamer.server.values import fields_of, n_prompts, prompt_of, prompts_of, value_of
from gossamer.server.verbs.shown import as_json
from gossamer.splice import chosen_bos

MAX_ROWS = 30_000
"""Targets whose edges one graph has: about two gigabytes of them."""

LARGE = 2_000_000
"""Edges above which two graphs are pruned before they are compared."""


def attribute_answer(
    state: State, body: wire.AttributeRequest, step: Step, job: Job | None = None
) -> dict[str, Any]:
    """`attribute`, graph after graph, each kept in the workspace; those of a job go on where an
    earlier attempt was stopped."""
    served = state.served
    saes = served.chosen(body.saes)
    prompts = _prompts(state, body, saes)
    with field("target"):
        target = value_of(served, body.target)
        if target is None:
            two = body.against is not None
            target = contrast(served.model, *prompts) if two else Logits()
    how = fields_of(body, "prompt", "target", "saes", "against", "align", "title")
    with field("saes"):
        check_places(served.model, saes)
    with field("hold"):
        check_hold(tuple(body.hold or ()))
    rows = None if job is None else state.store.rows(job.id)
    title = body.title or ("" if job is None else job.title)
    graphs = []
    with measured(served.model.device) as cost:
        for number, prompt in enumerate(prompts):
            said = f"edges, prompt {number + 1} of {len(prompts)}" if len(prompts) > 1 else "edges"
            how["directory"] = None if rows is None else rows / str(number)
            how["progress"] = partial(_row, step, said)
            graph = _graph(state, saes, prompt, target, **how)
            known = {"title": title, "request": as_json(body)}
            graphs.append(state.graphs.add(graph, _name(job, number), known))
    if job is not None:
        state.store.drop_rows(job.id)
    comparison = None
    if body.against is not None:
        asked = wire.CompareGraphsRequest(
            first=graphs[0]["id"], second=graphs[1]["id"], align=body.align
        )
        comparison = compare_graphs_answer(state, asked)
    return {
        "graphs": graphs,
        "comparison": comparison,
        "seconds": cost.seconds,
        "peak_bytes": cost.peak_bytes,
    }


def _graph(state: State, saes: Any, prompt: Any, target: Any, **how: Any) -> Graph:
    """One graph, within the server's memory."""
    try:
        graph = attribute(
            state.served.model, saes, prompt, target, memory=state.config.memory, **how
        )
    except (PromptError, SiteError):  # prompts and SAEs are known to be sound
        with field("target"):
            raise
    assert isinstance(graph, Graph)
    return graph


def _prompts(state: State, body: wire.AttributeRequest, saes: Any) -> list[Any]:
    """The prompts, each of which the model can take; with `against` two."""
    served = state.served
    with field("prompt"):
        prompts = as_prompts(prompts_of(served, body.prompt))
        served.model.batch(prompts, prepend_bos=chosen_bos(None, saes.values(), prompts))
    if body.against is None:
        return list(prompts)
    with field("against"):
        if n_prompts(body.prompt) > 1 or len(prompts) != 1:
            raise GossamerError(
                f"against takes one prompt beside it, got {len(prompts)}; give one."
            )
        other = prompt_of(served, body.against)
        if not other:
            raise PromptError("The prompt is empty. Give at least one token.")
        served.model.batch([other], prepend_bos=chosen_bos(None, saes.values(), [other]))
    return [prompts[0], other]


def _row(step: Step, phase: str, done: int, total: int) -> None:
    """Between two batches of rows."""
    if total > MAX_ROWS:
        with field("max_nodes"):
            raise GossamerError(
                f"The graph would have {total:,} rows of edges, and {MAX_ROWS:,} are allowed here; "
                "give max_nodes, or a shorter prompt."
            )
    with torch.enable_grad():  # what is computed in between does not know of this work
        step(done, total, phase)


def _name(job: Job | None, number: int) -> str:
    """A new id; of a job the same each time that it is run."""
    if job is None:
        return f"g-{secrets.token_hex(8)}"
    if number == 0:
        return f"g-{job.id.removeprefix('j-')}"
    return f"g-{hashlib.sha256(f'{job.id}/{number}'.encode()).hexdigest()[:16]}"


def verify_answer(
    state: State, body: wire.VerifyRequest, turn: Callable[[int, int], None]
) -> dict[str, Any]:
    """`verify`, its report kept with the graph."""
    graph = state.graphs.get(body.graph)
    how = fields_of(body, "graph", "edges")
    if body.edges is not None:
        how["edges"] = [(source, target) for source, target in body.edges]
    report = verify(
        graph,
        state.served.model,
        dict(state.served.saes),
        progress=partial(_run, turn),
        **how,
    )
    state.graphs.check(body.graph, report)
    return report_values(body.graph, report)


def _run(turn: Callable[[int, int], None], done: int, total: int) -> None:
    """Between two batches of runs."""
    with torch.enable_grad():
        turn(done, total)


def report_values(name: str, report: VerifyReport) -> dict[str, Any]:
    """What checking found, as plain values."""
    shares = report.shares()
    return {
        "graph": name,
        "sentence": report.sentence,
        "lines": report.lines(),
        "modes": shares.modes,
        "classes": shares.classes,
        "edges": [edge._asdict() for edge in report.edges],
        "nodes": [node._asdict() for node in report.nodes],
        "about": dict(report.about),
    }


class Pairing(NamedTuple):
    """How two graphs are laid side by side."""

    align: Any
    """"start", "end" or pairs of positions."""

    tolerance: float
    """Share by which sizes may differ and count as the same."""


def difference_of(
    state: State, names: Sequence[str], pairing: Pairing
) -> tuple[GraphDifference, bool]:
    """Two graphs side by side, and whether they were pruned for it: large ones are."""
    graphs = [state.graphs.labelled(name) for name in names]
    is_large = max(len(graph.edges) for graph in graphs) > LARGE
    if is_large:
        graphs = [graph.prune() for graph in graphs]
    align = pairing.align
    if not isinstance(align, str):
        pairs = dict(align)
        if len(pairs) < len(align):
            with field("align"):
                raise PromptError(
                    "align pairs a position of the first prompt twice; pair each once at most."
                )
        align = pairs
    return compare_graphs(graphs[0], graphs[1], align, tolerance=pairing.tolerance), is_large


def compare_graphs_answer(state: State, body: wire.CompareGraphsRequest) -> dict[str, Any]:
    """`compare_graphs` of two that are kept."""
    with measured(state.served.model.device) as cost:
        names = (body.first, body.second)
        found, is_pruned = difference_of(state, names, Pairing(body.align, body.tolerance))
        top = [pair._asdict() for pair in found.top(body.top, body.side)]
    align = body.align
    text = align if isinstance(align, str) else ",".join(f"{a}:{b}" for a, b in align)
    return {
        "first": body.first,
        "second": body.second,
        "align": align,
        "tolerance": body.tolerance,
        "pruned": is_pruned,
        "counts": found.counts(),
        "top": top,
        "page": f"graphs/{body.first}/difference/{body.second}/page"
        f"?align={text}&tolerance={body.tolerance}",
        "seconds": cost.seconds,
        "peak_bytes": cost.peak_bytes,
    }


def edges_of(
    state: State, name: str, node: str | None, *, direction: str, n: int
) -> dict[str, Any]:
    """A node's strongest edges, or the graph's."""
    graph = state.graphs.labelled(name)
    if node is None:
        edges = graph.edges.top(n)
    else:
        with field("node"):
            number = graph.nodes.number(node)
        edges = graph.edges_into(number, n) if direction == "in" else []
        edges = graph.edges_out_of(number, n) if direction == "out" else edges
    return {"edges": [edge._asdict() for edge in edges]}


class Hops(NamedTuple):
    """Which part of a graph is asked for, and how much of it at most."""

    hops: int
    direction: str
    threshold: float
    max_nodes: int
    max_edges: int


def neighbourhood_of(state: State, name: str, nodes: Sequence[str], asked: Hops) -> dict[str, Any]:
    """Nodes near some, of them the most influential, and the strongest edges between these."""
    graph = state.graphs.labelled(name)
    with field("nodes"):
        named = {graph.nodes.number(node) for node in nodes}
    part = graph.neighbourhood(
        named, hops=asked.hops, direction=asked.direction, threshold=asked.threshold
    )
    counts = {"n_nodes": len(part.nodes), "n_edges": len(part.edges)}
    influence = state.graphs.get(name).influence()
    numbers = [graph.nodes.number(node) for node in part.nodes.ids]
    if len(numbers) > asked.max_nodes:
        # Those that were named come first, whatever their influence.
        keys = [(number not in named, -influence[number]) for number in numbers]
        order = sorted(range(len(numbers)), key=keys.__getitem__)
        part = part.subgraph(order[: max(asked.max_nodes, len(named))])
    return {
        **counts,
        "nodes": [
            {**node_values(part, i), "influence": float(influence[graph.nodes.number(name)])}
            for i, name in enumerate(part.nodes.ids)
        ],
        "edges": [edge._asdict() for edge in part.edges.top(asked.max_edges)],
    }


def page_of(state: State, name: str, pinned: Sequence[str], limits: dict[str, int]) -> str:
    """The graph's page, checked edges marked: the file that `Graph.to_html` writes."""
    graph, report = state.graphs.labelled(name), state.graphs.report(name)
    with field("pinned"):
        chosen = [graph.nodes.number(node) for node in pinned]
    verified = None if report is None else report.classes
    return _written(partial(graph.to_html, pinned=chosen, verified=verified, **limits), "html")


def difference_page_of(state: State, names: Sequence[str], pairing: Pairing) -> str:
    """Two graphs' page: the file that `GraphDifference.to_html` writes."""
    return _written(difference_of(state, names, pairing)[0].to_html, "html")


def json_of(state: State, name: str, nodes: float, edges: float) -> str:
    """Graph JSON, as circuit-tracer's page and Neuronpedia open it."""
    graph = state.graphs.labelled(name)
    return _written(partial(write_graph_json, graph, slug=name, nodes=nodes, edges=edges), "json")


def _written(write: Callable[[Path], Any], suffix: str) -> str:
    """The text of a file that is written for this answer alone."""
    with tempfile.TemporaryDirectory(prefix="gossamer-") as directory:
        path = Path(directory) / f"graph.{suffix}"
        write(path)
        return path.read_text(encoding="utf-8")
