"""One prompt's graph: its clean run, its nodes, a plan, rows of edges, and what they leave over."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.activations.harvest import fingerprint, fingerprint_of
from gossamer.attribution.graphs.columns import Columns, columns_of, groups_of
from gossamer.attribution.graphs.directory import rows_directory
from gossamer.attribution.graphs.held import HeldEngine
from gossamer.attribution.graphs.path import clean_point, point_at, read_at, scaled_parts
from gossamer.attribution.graphs.plain import PlainEngine, linear_parts
from gossamer.attribution.graphs.plan import IN_MEMORY, planned
from gossamer.attribution.graphs.readers import LogitTargets, chosen_latents, logit_targets
from gossamer.attribution.graphs.rounds import computed, folded, n_chosen
from gossamer.attribution.graphs.run import Run, clean_run
from gossamer.attribution.graphs.walk import Engine
from gossamer.attribution.graphs.writers import Group, LinearParts
from gossamer.attribution.progress import Progress
from gossamer.attribution.targets import Latents, LogitDifference, Logits
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import Nodes
from gossamer.graph.rows import Rows, release
from gossamer.machine import free_memory
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.saes.crosscoder import reader

Aim = Logits | LogitDifference | Latents
"""What a graph explains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How the graphs of one call are made."""

    model: Model
    """The model."""

    saes: Mapping[str, Any]
    """By the site each one writes."""

    effects: str
    """What edges are."""

    hold: tuple[str, ...]
    """Kept at the clean run's values."""

    steps: int
    """Points of the path of integrated gradients."""

    max_nodes: int | None
    """Most nodes of a graph."""

    memory: int | None
    """Bytes that may be taken; None: half of what is free."""

    plain: bool
    """Whether everything is computed by autograd."""

    progress: Progress
    """Whether the plan and a bar are shown, or who is told instead."""

    @property
    def by_hand(self) -> bool:
        """Whether derivatives are computed by hand."""
        held = {"attention", "norms"} <= set(self.hold)
        return held and not self.along_path and not self.plain

    @property
    def along_path(self) -> bool:
        """Whether gradients are integrated."""
        return self.effects == "integrated"


def graph_of(how: How, batch: TokenBatch, aim: Aim, directory: Path | None) -> Graph:
    """The graph of one prompt."""
    run = clean_run(how.model, how.saes, how.hold, batch)
    linear = _linear(run)
    groups = _groups(run, linear, how)
    columns = columns_of(run, groups, *_targets(run, aim, groups))
    n_latents = n_chosen(columns.nodes, how.max_nodes)
    plan = planned(
        run,
        columns,
        n_latents + len(columns.nodes.targets),
        n_engines=how.steps if how.along_path else 1,
        by_hand=how.by_hand,
        memory=free_memory(how.model.device) // 2 if how.memory is None else how.memory,
    )
    if how.progress is True:
        sys.stderr.write(f"{plan}\n")
    about = {**_about(how, aim), "plan": str(plan)}
    constants = _constants(run, columns, linear, groups if how.along_path else None)
    engines = _engines(run, groups, how)
    del groups, linear  # their tensors stand in `columns` again, or are not needed any more
    key = {k: v for k, v in about.items() if k != "plan"}
    key |= {"token_ids": list(run.ids), "node_digest": _digest(columns.nodes)}
    with rows_directory(directory, key) as place:
        rows, kept = computed(
            columns,
            engines,
            place,
            n_latents=n_latents,
            at_once=plan.at_once,
            progress=how.progress,
        )
        nodes = replace(columns.nodes, constants=constants)
        if not kept.all():
            (place / "kept").mkdir(exist_ok=True)
            nodes, rows = folded(nodes, rows, kept, place / "kept")
        rows = _settled(rows, directory is None)
    nodes = replace(nodes, residuals=_residuals(nodes, rows))
    strings = tuple(how.model.token_strings(list(run.ids)))
    return Graph(nodes=nodes, rows=rows, tokens=strings, token_ids=run.ids, about=about)


def _digest(nodes: Nodes) -> str:
    """16 hexadecimal digits of which nodes there are: rows on disk know them by number alone."""
    numbers = (nodes.kinds, nodes.site_of, nodes.units, nodes.positions)
    return hashlib.sha256(b"".join(column.tobytes() for column in numbers)).hexdigest()[:16]


def _linear(run: Run) -> LinearParts:
    engine = PlainEngine(run, clean_point(run))
    return {layer: linear_parts(engine, layer) for layer in range(run.n_layers)}


def _groups(run: Run, linear: LinearParts, how: How) -> list[Group]:
    """Every node but the logits; biases stay whole along a path, and so have no edges there."""
    groups = list(groups_of(run, linear))
    if how.along_path:
        groups = [group for group in groups if group.kind not in ("bias", "remainder")]
    if how.max_nodes is None:
        return groups
    known = {group.site for group in groups if group.kind == "remainder"}
    for group in list(groups):
        if group.kind == "error" and group.site not in known:  # a place for what is left out
            nothing = tuple(w._replace(rows=torch.zeros_like(w.rows)) for w in group.written)
            groups.append(replace(group, kind="remainder", written=nothing))
    return groups


def _targets(
    run: Run, aim: Aim, groups: Sequence[Group]
) -> tuple[LogitTargets | None, dict[str, Tensor]]:
    """Logits, or by site the numbers of the latents that are explained."""
    if not isinstance(aim, Latents):
        return logit_targets(run, aim), {}
    group = next(each for each in groups if each.site == aim.site and each.kind == "latent")
    return None, {aim.site: chosen_latents(run, aim, group.positions, group.units)}


def _engines(run: Run, groups: Sequence[Group], how: How) -> list[Engine]:
    """What pulls back: one engine, or one for each point of the path."""
    if how.by_hand:
        return [HeldEngine(run)]
    if not how.along_path:
        return [PlainEngine(run, clean_point(run))]
    parts = scaled_parts(run, groups)
    middles = [(j + 0.5) / how.steps for j in range(how.steps)]
    return [PlainEngine(run, point_at(run, parts, alpha)) for alpha in middles]


@torch.no_grad()
def _constants(
    run: Run, columns: Columns, linear: LinearParts, scaled: Sequence[Group] | None
) -> Float[np.ndarray, " n_nodes"]:
    """What each target reads that no node writes, along a path what it reads at its start; NaN for
    leaves."""
    found = np.full(len(columns.nodes), np.nan)
    start = None if scaled is None else point_at(run, scaled_parts(run, scaled), 0.0)
    for targets in columns.targets:
        where = targets.columns.cpu().numpy()
        reader, some = targets.reader, torch.arange(len(where), device=targets.columns.device)
        if start is None:
            nodes = reader.of_nodes(linear)
        else:
            nodes = reader.whole() - read_at(run, start, targets.place)
        read = (targets.read(some) * nodes[targets.positions]).sum(1)
        found[where] = columns.nodes.reads[where] - read.double().cpu().numpy()
    return found


def _settled(rows: Rows, temporary: bool) -> Rows:
    """Rows that outlive their directory: in memory where they are few."""
    n_bytes = rows.n_entries * (4 + rows.values.itemsize)
    if not temporary or n_bytes > IN_MEMORY:
        return rows  # a file that is mapped stays until nobody maps it
    columns = np.array(rows.columns)
    release(rows.columns)
    values = np.array(rows.values)
    release(rows.values)
    return replace(rows, columns=columns, values=values)


def _residuals(nodes: Nodes, rows: Rows) -> Float[np.ndarray, " n_nodes"]:
    """reads − constant − Σ incoming edges; NaN for leaves."""
    sums = np.zeros(len(nodes))
    for block in rows.blocks():
        sums[block.targets] = block.sums(block.values.astype(np.float64))
    return nodes.reads - nodes.constants - sums


def _about(how: How, aim: Aim) -> dict[str, Any]:
    """What the graph says of how it was made."""
    digests = {
        site: fingerprint_of(sae.state_dict().items()) if isinstance(sae, torch.nn.Module) else ""
        for site, sae in ((site, reader(each)) for site, each in how.saes.items())
    }
    return {
        "model": how.model.name,
        "model_digest": fingerprint(how.model),
        "saes": digests,
        "effects": how.effects,
        "hold": list(how.hold),
        "error": "frozen",
        "target": repr(aim),
        "steps": how.steps if how.along_path else None,
        "max_nodes": how.max_nodes,
        "n_layers": how.model.n_layers,
        "d_vocab": how.model.d_vocab,
    }
