"""`run`, `edges`, `generate` and tokens: a body in, plain values out."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gossamer.analysis.reading import at_position
from gossamer.attribution.edges import edges
from gossamer.attribution.effects import Edges
from gossamer.attribution.nodes import NodeTable
from gossamer.edits import AbstractEdit, chosen_indices
from gossamer.errors import GossamerError
from gossamer.generation.generate import generate
from gossamer.generation.result import Generation, NewToken
from gossamer.generation.steps import for_rows
from gossamer.machine import measured
from gossamer.models.prompts import as_prompts, check_prompt
from gossamer.saes.sae import SAE
from gossamer.server import wire
from gossamer.server.faults import field
from gossamer.server.state import State
from gossamer.server.values import edits_of, fields_of, prompts_of, value_of
from gossamer.server.verbs.shown import check_finite, check_size, label_of
from gossamer.server.worker import Turn
from gossamer.splice import Trace, chosen_bos, run


def tokenize_answer(state: State, body: wire.TokenizeRequest) -> dict[str, Any]:
    """`Model.tokenize`."""
    model = state.served.model
    with field("prompt"):
        (prompt,) = as_prompts(prompts_of(state.served, body.prompt))
        ids = model.tokenize(prompt, body.prepend_bos)
        if ids:
            check_prompt(ids, len(ids), model.d_vocab)
    return {"token_ids": ids, "tokens": model.token_strings(ids)}


def run_answer(state: State, body: wire.RunRequest, turn: Turn) -> dict[str, Any]:
    """`run`, so many prompts at once as the memory allows."""
    served, model = state.served, state.served.model
    saes = served.chosen(body.saes)
    with field("prompts"):
        prompts = as_prompts(prompts_of(served, body.prompts))
        bos = chosen_bos(body.prepend_bos, saes.values(), prompts)
        lengths = [len(model.tokenize(prompt, bos)) for prompt in prompts]
        model.batch(prompts, prepend_bos=bos)
    edits = edits_of(served, body.edits, saes, body.prepend_bos)
    for edit in edits:
        if edit.prompts is not None:
            chosen_indices(edit.prompts, len(prompts), "prompt of this request")
    widths = sum(sae.d_sae for sae in saes.values() if isinstance(sae, SAE))
    token = model.dtype.itemsize * (5 * widths + 3 * model.d_vocab + 64 * model.d_model)
    some = state.config.memory // (max(lengths) * token)
    if some < 1:
        raise GossamerError(
            f"A prompt of {max(lengths)} tokens with these SAEs takes more memory than the server "
            "allows; shorten it, or name fewer SAEs."
        )
    answers: list[dict[str, Any]] = []
    with measured(model.device) as cost, torch.no_grad():
        for first in range(0, len(prompts), some):
            turn()
            part = prompts[first : first + some]
            rows = list(range(first, first + len(part)))
            here = [for_rows(edit, rows) for edit in edits if _acts(edit, rows)]
            trace = run(model, part, saes, here, body.record, body.error, prepend_bos=bos)
            answers += [_of_row(state, body, trace, row) for row in range(len(part))]
    return {"prompts": answers, "seconds": cost.seconds, "peak_bytes": cost.peak_bytes}


def _acts(edit: AbstractEdit, rows: Sequence[int]) -> bool:
    chosen = [edit.prompts] if isinstance(edit.prompts, int) else edit.prompts
    return chosen is None or any(row in rows for row in chosen)


def _of_row(state: State, body: wire.RunRequest, trace: Trace, row: int) -> dict[str, Any]:
    model, n = state.served.model, trace.lengths[row]
    assert trace.logits is not None
    check_finite(trace.logits[row, :n])
    ids = trace.tokens[row, :n].tolist()
    with field("position"):
        places = range(n) if body.position is None else [at_position(body.position, n)]
    wanted = {site: trace.activations[site][row, :n] for site in body.record}
    with field("record"):
        check_size(sum(value.numel() for value in wanted.values()), "record fewer sites")
    return {
        "token_ids": ids,
        "tokens": model.token_strings(ids),
        "predictions": [
            {"position": p, "top": _best(state, trace.logits[row, p], body.top_logits)}
            for p in places
        ],
        "latents": {site: _latents(state, body, trace, row, site) for site in trace.latents},
        "activations": {site: value.tolist() for site, value in wanted.items()},
    }


def _best(state: State, logits: Tensor, top: int) -> list[dict[str, Any]]:
    best = logits.topk(min(top, len(logits)))
    chances = logits.softmax(-1)[best.indices].tolist()
    ids = best.indices.tolist()
    texts = state.served.model.token_strings(ids)
    rows = zip(texts, ids, best.values.tolist(), chances, strict=True)
    return [{"token": t, "token_id": i, "logit": v, "probability": p} for t, i, v, p in rows]


def _latents(  # noqa: PLR0917  one SAE of one row
    state: State, body: wire.RunRequest, trace: Trace, row: int, site: str
) -> list[dict[str, Any]]:
    n, saes = trace.lengths[row], state.served.saes
    latents = trace.latents[site][row, :n]
    error = trace.errors[site][row, :n]
    value = trace.reconstructions[site][row, :n] + error
    active = (latents != 0).sum(-1).tolist()
    best = latents.abs().topk(min(body.top_latents, latents.shape[-1]), dim=-1).indices
    values = latents.gather(-1, best).tolist()
    norms = (error.norm(dim=-1).tolist(), value.norm(dim=-1).tolist())
    return [
        {
            "position": p,
            "n_active": active[p],
            "top": [
                {"index": i, "activation": v, "label": label_of(state, saes[site], site, i)}
                for i, v in zip(best[p].tolist(), values[p], strict=True)
                if v != 0
            ],
            "error_norm": norms[0][p],
            "value_norm": norms[1][p],
        }
        for p in range(n)
    ]


def edges_answer(
    state: State, body: wire.EdgesRequest, turn: Callable[[int, int], None]
) -> dict[str, Any]:
    """`edges`, prompt after prompt."""
    served = state.served
    saes = served.chosen(body.saes)
    with field("prompt"):
        prompts = as_prompts(prompts_of(served, body.prompt))
        bos = chosen_bos(None, saes.values(), prompts)
        served.model.batch(prompts, prepend_bos=bos)
    with field("source"):
        source = value_of(served, body.source)
    with field("target"):
        target = value_of(served, body.target)
    how = fields_of(body, "prompt", "source", "target", "saes", "top", "matrix")
    answers = []
    with measured(served.model.device) as cost:
        for number, prompt in enumerate(prompts):
            turn(number, len(prompts))
            found = edges(
                served.model,
                saes,
                prompt,
                source=source,
                target=target,
                memory=state.config.memory,
                **how,
            )
            assert isinstance(found, Edges)
            answers.append(_edges_values(state, found, body))
    return {"edges": answers, "seconds": cost.seconds, "peak_bytes": cost.peak_bytes}


def _edges_values(state: State, found: Edges, body: wire.EdgesRequest) -> dict[str, Any]:
    check_finite(found.gradients)
    found = replace(
        found, sources=_named(state, found.sources), targets=_named(state, found.targets)
    )
    if body.matrix:
        with field("matrix"):
            check_size(2 * found.gradients.numel(), "name fewer nodes, or leave matrix out")
    return {
        "token_ids": list(found.token_ids),
        "tokens": list(found.tokens),
        "sources": _nodes(found.sources),
        "targets": _nodes(found.targets),
        "top": [edge._asdict() for edge in found.top(body.top)],
        "density": found.density()._asdict(),
        "l1": found.l1()._asdict(),
        "hold": list(found.hold),
        "direct": found.direct,
        "error": found.error,
        "blocked": found.blocked,
        "gradients": found.gradients.tolist() if body.matrix else None,
        "attributions": found.attributions.tolist() if body.matrix else None,
    }


def _named(state: State, nodes: NodeTable) -> NodeTable:
    """With the labels that were saved here."""
    if nodes.site not in state.served.saes or not state.store.has_labels:
        return nodes
    own = [state.store.label(nodes.site, index) for index in nodes.indices.tolist()]
    labels = (old if new is None else new for old, new in zip(nodes.labels, own, strict=True))
    return replace(nodes, labels=tuple(labels))


def _nodes(nodes: NodeTable) -> dict[str, Any]:
    return {
        "site": nodes.site,
        "ids": list(nodes.ids),
        "positions": nodes.positions.tolist(),
        "indices": nodes.indices.tolist(),
        "values": nodes.values.tolist(),
        "tokens": list(nodes.tokens),
        "labels": list(nodes.labels),
    }


def generate_answer(
    state: State, body: wire.GenerateRequest, on_token: Callable[[NewToken], None]
) -> dict[str, Any]:
    """`generate`."""
    served = state.served
    saes = served.chosen(body.saes)
    with field("prompt"):
        prompts = prompts_of(served, body.prompt)
    edits = edits_of(served, body.edits, saes, body.prepend_bos)
    how = fields_of(body, "prompt", "saes", "edits", "stream")
    with measured(served.model.device) as cost, torch.no_grad():
        found = generate(served.model, prompts, saes, edits, on_token=on_token, **how)
    several = [found] if isinstance(found, Generation) else found
    answers = [each.to_dict() for each in several]
    return {"generations": answers, "seconds": cost.seconds, "peak_bytes": cost.peak_bytes}
