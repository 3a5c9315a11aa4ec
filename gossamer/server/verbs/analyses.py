"""`analyze_batch`, `scalars` and `logit_lens`: a body in, plain values out."""

from collections.abc import Callable
from typing import Any

import torch

from gossamer.analysis.analyze import analyze_prepared
from gossamer.analysis.derived import scalars
from gossamer.analysis.lens import logit_lens
from gossamer.analysis.result import Analysis
from gossamer.errors import GossamerError
from gossamer.machine import measured
from gossamer.server import wire
from gossamer.server.faults import field_of, renamed
from gossamer.server.state import State
from gossamer.server.values import fields_of, request_of
from gossamer.server.verbs.shown import as_json, check_size, relabel
from gossamer.server.worker import checked


def analysis_answer(state: State, found: Analysis, name: str | None) -> dict[str, Any]:
    """An analysis as values, with the labels that were saved here."""
    answer = {"id": name, **found.to_dict()}
    if found.clean is not None:
        answer["clean"] = analysis_answer(state, found.clean, None)
    relabel(state.store, answer["rows"])
    return answer


def batch_answer(
    state: State, body: wire.BatchRequest, turn: Callable[[int, int], None]
) -> dict[str, Any]:
    """`analyze_batch`, so many in a pass as share one."""
    model, requests = state.served.model, []
    for number, each in enumerate(body.requests):
        try:
            requests.append(checked(model, request_of(state.served, each)))
        except GossamerError as mistake:
            renamed(mistake, f"requests.{number}.{field_of(mistake) or 'prompt'}")
            raise
    answers: list[dict[str, Any]] = []
    for first in range(0, len(requests), state.config.group):
        turn(first, len(requests))
        part = requests[first : first + state.config.group]
        for found, asked in zip(
            analyze_prepared(model, part, memory=state.config.memory),
            body.requests[first:],
            strict=False,
        ):
            name = state.kept.add(found, as_json(asked))
            answers.append(analysis_answer(state, found, name))
    return {"analyses": answers}


def scalars_answer(state: State, body: wire.ScalarsRequest) -> dict[str, Any]:
    """`scalars` of an analysis that is kept."""
    analysis, _ = state.kept.get(body.analysis)
    with measured(state.served.model.device) as cost:
        given = fields_of(body, "analysis", "kind", "metric")
        found = scalars(analysis.trace, body.kind, body.metric, **given)
    check_size(
        sum(each.values.numel() for each in found.values()),
        "name a site, or axes to sum over in reduce",
    )
    values = {
        site: {
            "kind": each.kind,
            "metric": each.metric,
            "site": each.site,
            "axes": list(each.axes),
            "shape": list(each.values.shape),
            "values": each.values.tolist(),
            "positions": None if each.positions is None else each.positions.tolist(),
            "units": None if each.units is None else each.units.tolist(),
        }
        for site, each in found.items()
    }
    return {"scalars": values, "seconds": cost.seconds, "peak_bytes": cost.peak_bytes}


def logit_lens_answer(state: State, body: wire.LogitLensRequest) -> dict[str, Any]:
    """`logit_lens` of an analysis that is kept."""
    analysis, _ = state.kept.get(body.analysis)
    with measured(state.served.model.device) as cost, torch.no_grad():
        found = logit_lens(analysis, body.top, body.position)
    sites = {site: [row._asdict() for row in rows] for site, rows in found.items()}
    return {"sites": sites, "seconds": cost.seconds, "peak_bytes": cost.peak_bytes}
