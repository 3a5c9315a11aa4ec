"""What edges predict beside what happens when their sources are really changed.

`verify` checks a graph: in the linearised model and in the true one, direct and total, after a
small change and an ablation; see `verifying/`. `measure` ablates the sources of some entries of
`edges`: the source latent is set to zero in the running model, its error term kept at the clean
value, and nothing is held: attention, norms and every nonlinearity respond.

An effect is clean minus edited; of a latent its pre-activation, of a logit the logit.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from gossamer.attribution.effects import Edge, Edges
from gossamer.attribution.nodes import NodeTable, sae_at
from gossamer.attribution.progress import Progress
from gossamer.attribution.verifying.chosen import (
    Choose,
    Chosen,
    best_edges,
    chosen_nodes,
    named_edges,
)
from gossamer.attribution.verifying.classes import CheckedEdge, CheckedNode, agrees, class_of
from gossamer.attribution.verifying.fit import stage_of
from gossamer.attribution.verifying.measuring import Pairs, measured, modes, pairs_of
from gossamer.attribution.verifying.replay import Stage
from gossamer.attribution.verifying.report import VerifyReport
from gossamer.edits import Ablate
from gossamer.errors import GossamerError
from gossamer.graph.graph import Graph
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.saes.crosscoder import parts_at, reader, sites_read
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.sets import alone
from gossamer.splice import Plan, as_saes, flat, run_batch

ROWS = 16
"""Ablated copies of the prompt that run side by side."""


def verify(  # noqa: PLR0913  the public face; everything but n_edges by name
    graph: Graph,
    model: Model,
    saes: Any,
    n_edges: int = 200,
    *,
    edges: Sequence[tuple[str, str]] | None = None,
    nodes: int | Sequence[str] = 0,
    choose: Choose = "scored",
    small: float = 0.1,
    tolerance: float = 0.2,
    floor: float | None = None,
    error: Literal["attached", "frozen"] = "attached",
    seed: int = 0,
    progress: Progress = False,
) -> VerifyReport:
    """Check edges and nodes of a graph by changing their sources in the model.

    Args:
        graph: what `attribute` made.
        model: the model it was made with.
        saes: the SAEs it was made with; further ones are left out.
        n_edges: how many edges, where none are named.
        edges: (source id, target id) of edges to check.
        nodes: ids of nodes to check, or how many: their total effect on the graph's targets.
        choose: "scored", those of the highest score by which edges are pruned; "strongest" by
            |weight|; "sampled" at random in proportion to it. Nodes: by influence, or "sampled" in
            proportion to it.
        small: the share of a source that a small change takes away; negative adds.
        tolerance: how far a measured effect may be from the edge, in parts of it.
        floor: how far it may be at least, absolute; None: what rounding may do.
        error: what errors do in total runs: "attached", the model answers as it is, SAEs only
            read; "frozen", errors keep their clean values, effects travel through latents only.
        seed: of the sample.
        progress: True shows a bar on standard error; a function is told
            progress(runs done, runs in all) between batches, and stops the call by raising.

    Edges from biases and remainders are passed over: they are no values that a run could change.
    GossamerError when graph, model and SAEs do not belong together.
    """
    started = time.perf_counter()
    if small == 0 or not 0 < tolerance < math.inf:
        raise GossamerError(
            "small is a share that is not 0 and tolerance a share above 0, got "
            f"{small} and {tolerance}."
        )
    stage = stage_of(graph, model, saes, error=error)
    chosen = (
        best_edges(graph, n_edges, choose, seed) if edges is None else named_edges(graph, edges)
    )
    allowed = _Allowed(small, tolerance, floor)
    checked = _edges(graph, stage, chosen, allowed, progress=progress)
    some = chosen_nodes(graph, nodes, choose, seed)
    about = {
        "model": graph.about.get("model", model.name),
        "prompt": "".join(graph.tokens),
        "target": graph.about.get("target"),
        "effects": graph.about.get("effects"),
        "hold": list(graph.about.get("hold", ())),
        "choose": "named" if edges is not None else choose,
        "small": small,
        "tolerance": tolerance,
        "error": error,
        "dtype": str(model.dtype).removeprefix("torch."),
        "n_edges_in_graph": graph.rows.n_entries,
    }
    found = _nodes(graph, stage, some, allowed, progress=progress)
    about["seconds"] = time.perf_counter() - started
    return VerifyReport(checked, found, about)


class _Allowed(NamedTuple):
    """What counts as agreement."""

    small: float
    tolerance: float
    floor: float | None

    def floors(self, values: Float[np.ndarray, " n"], stage: Stage) -> Float[np.ndarray, " n"]:
        """How far an ablation's effect may be off, whatever its size."""
        if self.floor is not None:
            return np.full(len(values), self.floor)
        rounding = torch.finfo(stage.clean.model.dtype).eps
        return 8 * rounding * np.maximum(np.abs(values), 1.0)


def _edges(
    graph: Graph, stage: Stage, chosen: Chosen, allowed: _Allowed, *, progress: Progress
) -> tuple[CheckedEdge, ...]:
    """The edges, measured in every mode."""
    if len(chosen.weights) == 0:
        return ()
    stage = _as_far_as(stage, graph, chosen.targets)
    pairs = pairs_of(stage, graph.nodes, chosen.sources, chosen.targets)
    found = measured(stage, pairs, modes(allowed.small), progress=progress)
    floors = allowed.floors(pairs.values, stage)
    agree = {
        name: agrees(each.effects, chosen.weights, allowed.tolerance, floors)
        for name, each in found.items()
    }
    labels, ids = graph.nodes.labels, graph.nodes.ids
    checked = []
    for i, (s, t, weight) in enumerate(zip(*(c.tolist() for c in chosen), strict=True)):
        flips = {name: bool(found[name].flipped[i]) for name in ("direct", "total")}
        kind = class_of(
            direct=bool(agree["direct"][i]),
            total=bool(agree["total"][i]),
            held=bool(agree["held"][i]),
            flips=flips["direct"] or flips["total"],
        )
        checked.append(
            CheckedEdge(
                source=ids[s],
                target=ids[t],
                source_label=labels[s],
                target_label=labels[t],
                weight=weight,
                **{name: float(each.effects[i]) for name, each in found.items()},
                flips_direct=flips["direct"],
                flips_total=flips["total"],
                others_direct=int(found["direct"].others[i]),
                others_total=int(found["total"].others[i]),
                floor=float(floors[i]),
                kind=kind,
            )
        )
    return tuple(checked)


def _as_far_as(stage: Stage, graph: Graph, targets: Int[np.ndarray, " n"]) -> Stage:
    """The stage with no more positions than these targets need."""
    return replace(stage, n=1 + int(graph.nodes.positions[targets].max()))


def _nodes(
    graph: Graph,
    stage: Stage,
    chosen: Int[np.ndarray, " n"],
    allowed: _Allowed,
    *,
    progress: Progress,
) -> tuple[CheckedNode, ...]:
    """The nodes' effects on the graph's targets."""
    targets = graph.nodes.targets
    if len(chosen) == 0 or len(targets) == 0:
        return ()
    stage = _as_far_as(stage, graph, targets)
    sources = np.repeat(chosen, len(targets))
    pairs = pairs_of(stage, graph.nodes, sources, np.tile(targets, len(chosen)))
    totals = [mode for mode in modes(allowed.small) if mode.way == "total"]
    found = measured(stage, pairs, totals, progress=progress)
    weights = graph.nodes.weights[targets]
    sums = {
        name: each.effects.reshape(len(chosen), len(targets)) @ weights
        for name, each in found.items()
    }
    predicted = through_paths(graph)[chosen]
    floors = allowed.floors(_summed(pairs, weights), stage)
    agree = agrees(sums["total"], predicted, allowed.tolerance, floors)
    return tuple(
        CheckedNode(
            node=graph.nodes.ids[node],
            label=graph.nodes.labels[node],
            predicted=float(predicted[i]),
            total_small=float(sums["total_small"][i]),
            total=float(sums["total"][i]),
            agrees=bool(agree[i]),
        )
        for i, node in enumerate(chosen)
    )


def _summed(pairs: Pairs, weights: Float[np.ndarray, " n_targets"]) -> Float[np.ndarray, " n"]:
    """The size of the weighted sums, from the sizes of their terms."""
    return np.abs(pairs.values).reshape(-1, len(weights)) @ np.abs(weights)


def through_paths(graph: Graph) -> Float[np.ndarray, " n_nodes"]:
    """What taking each node away does to Σ weight · target along all paths of the graph, gates as
    in the clean run: one sweep from the last node to the first.

        R[s] = Σ_t A[t, s] · (weight_t + R[t] / value_t)
    """
    nodes = graph.nodes
    effects = np.zeros(len(nodes))
    on = nodes.of_kind("latent") & (nodes.values != 0)
    for row in graph.rows.backwards():
        t = row.target
        onward = effects[t] / nodes.values[t] if on[t] else 0.0
        effects[row.sources] += np.asarray(row.values, float) * (nodes.weights[t] + onward)
    return effects


class MeasuredEdge(NamedTuple):
    """An edge and what ablating its source did to its target."""

    edge: Edge
    """The prediction: `edge.attribution`."""

    measured: float
    """Clean minus ablated, in the target's units."""

    @property
    def sign_agrees(self) -> bool:
        """Whether prediction and measurement have the same sign."""
        return self.edge.attribution * self.measured > 0


def measure(
    model: Model, saes: Any, edges: Edges, pairs: Sequence[tuple[int, int]]
) -> list[MeasuredEdge]:
    """Ablate the source of each (target row, source column) of `edges` and measure the target.

    `model` and `saes` are those that made `edges`.
    """
    if not pairs:
        return []
    coders = as_saes(saes, faces=True, later=True)
    columns = sorted({source for _, source in pairs})
    clean = _target_values(model, coders, edges, [None])[0]
    ablated: dict[int, Tensor] = {}
    for start in range(0, len(columns), ROWS):
        group = columns[start : start + ROWS]
        values = _target_values(model, coders, edges, group)
        ablated |= dict(zip(group, values, strict=True))
    return [
        MeasuredEdge(edges.edge(target, source), float(clean[target] - ablated[source][target]))
        for target, source in pairs
    ]


@torch.no_grad()
def _target_values(
    model: Model, saes: Mapping[str, SparseCoder], edges: Edges, ablated: Sequence[int | None]
) -> Float[Tensor, "rows n_targets"]:
    """The targets' values in one row for each source to ablate; None ablates nothing."""
    sources = edges.sources
    latents = sources.site in saes
    edits = []
    for row, column in enumerate(ablated):
        if column is not None:
            position = int(sources.positions[column])
            latent = int(sources.indices[column]) if latents else None
            edits.append(
                Ablate(
                    _edited_site(model, sources), latents=latent, positions=position, prompts=row
                )
            )
    parts = parts_at(sources.site, saes) if latents else ()
    spliced = {site: each for part in parts for site, each in alone(part).items()}
    tokens = torch.tensor([edges.token_ids] * len(ablated), device=model.device)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    of_logits = edges.targets.site == "logits"
    sites = ("logits",) if of_logits else sites_read(sae_at(edges.targets.site, saes))
    plan = Plan(tuple(edits), sites, "frozen", of_logits)
    seen = run_batch(model, batch, spliced, plan).activations
    return _read(saes, edges.targets, torch.cat([flat(seen[site]) for site in sites], -1))


def _edited_site(model: Model, sources: NodeTable) -> str:
    """Where the source is ablated: token and position embedding together for a token."""
    if sources.site != "hook_embed":
        return sources.site
    return (
        "hook_embed"
        if model.layout.adapter.position_embedding is None
        else "blocks.0.hook_resid_pre"
    )


def _read(
    saes: Mapping[str, SparseCoder], targets: NodeTable, seen: Float[Tensor, "rows pos width"]
) -> Float[Tensor, "rows n_targets"]:
    """Pre-activations of target latents, or target logits."""
    positions: Int64[Tensor, " n"] = targets.positions
    if targets.site == "logits":
        values = seen[:, positions, targets.indices]
        return (
            values
            if targets.distractors is None
            else values - seen[:, positions, targets.distractors]
        )
    sae = reader(saes[targets.site])
    pre = sae.pre_activations(seen) if isinstance(sae, SAE) else sae.encode(seen)
    return pre[:, positions, targets.indices]
