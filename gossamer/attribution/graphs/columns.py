"""All nodes of a prompt in the order of a graph, with what they write by place and how they are
read."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.attribution.graphs.places import Place
from gossamer.attribution.graphs.readers import LatentReader, LogitTargets
from gossamer.attribution.graphs.run import Run
from gossamer.attribution.graphs.writers import (
    Group,
    LinearParts,
    constant_groups,
    embedding_groups,
    latent_groups,
    module_groups,
)
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.saes.crosscoder import Face


class Crowd(NamedTuple):
    """Nodes of a position that has many more than others."""

    position: int
    """Where."""

    columns: Int64[Tensor, " n"]
    """Their rows in the table of nodes."""

    rows: Float[Tensor, "n width"]
    """What each writes."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What nodes write at one place, sorted by position.

    Positions have about as many nodes each, so most are laid out in a block that one batched
    product reads; what is beyond it, at a first token for example, stands apart.
    """

    columns: Int64[Tensor, " n"]
    """Rows in the table of nodes of those in the block, ascending at each position."""

    rows: Float[Tensor, "n_positions most width"]
    """What each writes, by position; 0 where a position has fewer nodes than others."""

    filled: Int64[Tensor, " n"]
    """Where in the flattened (n_positions · most) each stands."""

    ends: Sequence[int]
    """How many of them stand at each position or an earlier one."""

    crowds: tuple[Crowd, ...]
    """Those beyond the block."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Nodes that are read at one place by one SAE, or logits; sorted by position."""

    place: Place
    """Where they are read."""

    columns: Int64[Tensor, " n"]
    """Their rows in the table of nodes."""

    positions: Int64[Tensor, " n"]
    """Where they are."""

    units: Int64[Tensor, " n"]
    """Latents; of logits their number among the targets."""

    reader: LatentReader | LogitTargets
    """What they read."""

    def read(self, some: Int64[Tensor, " n_some"]) -> Float[Tensor, "n_some width"]:
        """What some of them read."""
        if isinstance(self.reader, LogitTargets):
            return self.reader.rows[self.units[some]]
        return self.reader.rows(self.positions[some], self.units[some])


@dataclass(frozen=True, slots=True)
class Columns:
    """The nodes of one prompt."""

    nodes: Nodes
    """The table; `constants` and `residuals` are filled in later."""

    sources: Mapping[Place, Sources]
    """What is written, by place."""

    targets: tuple[Targets, ...]
    """What is read."""

    places: tuple[Place, ...]
    """Where each node writes, in the nodes' order."""

    def n_before(self, place: Place) -> int:
        """How many nodes write at or before a place."""
        return bisect_right(self.places, place)


def groups_of(run: Run, linear: LinearParts) -> Iterator[Group]:
    """Every node of a prompt but the logits."""
    yield from embedding_groups(run)
    for layer in range(run.n_layers):
        yield from module_groups(run, layer, linear)
    latents = latent_groups(run)
    for site in run.saes:
        if site in latents:
            yield latents[site]
        yield from constant_groups(run, site, latents, linear)


def columns_of(
    run: Run, groups: Sequence[Group], logits: LogitTargets | None, wanted: Mapping[str, Tensor]
) -> Columns:
    """The table of nodes and its ends.

    `wanted` gives, by an SAE's site, the numbers of the latents in its group that are targets of
    weight 1. Nodes from which no target can be reached are left out.
    """
    aims = list(_aims(run, groups, logits, wanted))
    kept: list[tuple[Group, Tensor, Tensor]] = []
    for group in groups:
        weights = torch.zeros(len(group.units), dtype=torch.float64)
        if group.kind == "latent" and group.site in wanted:
            weights[wanted[group.site].cpu()] = 1.0
        place, positions = group.written[0].place, group.positions.cpu()
        reaches = torch.zeros(len(positions), dtype=torch.bool)
        for aim, position in aims:
            if place <= aim:
                reaches |= positions <= position
        kept.append((group, (reaches | (weights > 0)).nonzero()[:, 0], weights))
    return _table(run, kept, logits)


def _aims(
    run: Run, groups: Sequence[Group], logits: LogitTargets | None, wanted: Mapping[str, Tensor]
) -> Iterator[tuple[Place, int]]:
    """(where it reads, its position) of each target."""
    if logits is not None:
        yield logits.place, logits.position
    for group in groups:
        if group.kind == "latent" and group.site in wanted:
            place = LatentReader(run, run.saes[group.site]).place
            for i in wanted[group.site].tolist():
                yield place, int(group.positions[i])


def _table(
    run: Run, kept: Sequence[tuple[Group, Tensor, Tensor]], logits: LogitTargets | None
) -> Columns:
    """Nodes sorted by (place, position, kind, unit), and where each group's nodes went."""
    parts: list[dict[str, Any]] = []
    for group, some, weights in kept:
        where = some.numpy()
        n = len(where)
        parts.append(
            {
                "place": np.tile(np.array(group.written[0].place), (n, 1)),
                "positions": group.positions.cpu().numpy()[where],
                "kinds": np.full(n, KINDS.index(group.kind)),
                "units": group.units.cpu().numpy()[where],
                "values": group.values.detach().double().cpu().numpy()[where],
                "weights": weights.numpy()[where],
                "site": group.site,
                "distractors": np.full(n, -1),
                "read": np.full(n, _is_read(run, group)),
            }
        )
    if logits is not None:
        parts.append(_logit_part(logits))
    columns = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "site"
    }
    sites = tuple(dict.fromkeys(part["site"] for part in parts))
    columns["site_of"] = np.concatenate(
        [np.full(len(part["units"]), sites.index(part["site"])) for part in parts]
    )
    place = columns.pop("place")
    # Logits keep the order in which they were chosen, which their units alone do not give.
    within = np.where(
        columns["kinds"] == KINDS.index("logit"), np.arange(len(place)), columns["units"]
    )
    keys = (within, columns["kinds"], columns["positions"], place[:, 2], place[:, 1], place[:, 0])
    order = np.lexsort(keys)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    nodes = _nodes(run, sites, {name: values[order] for name, values in columns.items()})
    places = tuple(Place(int(a), int(b), bool(c)) for a, b, c in place[order])
    return Columns(nodes, *_ends(run, kept, logits, rank), places)


def _is_read(run: Run, group: Group) -> bool:
    """Whether edges go into a group: a crosscoder's latents are leaves, those of the clean run."""
    return group.kind == "latent" and not isinstance(run.saes[group.site], Face)


def _logit_part(logits: LogitTargets) -> dict[str, Any]:
    n = len(logits.tokens)
    distractors = logits.distractors
    return {
        "place": np.tile(np.array(logits.place), (n, 1)),
        "positions": np.full(n, logits.position),
        "kinds": np.full(n, KINDS.index("logit")),
        "units": logits.tokens.cpu().numpy(),
        "values": logits.values.double().cpu().numpy(),
        "weights": logits.weights.double().cpu().numpy(),
        "site": "logits",
        "distractors": np.full(n, -1) if distractors is None else distractors.cpu().numpy(),
        "read": np.full(n, True),
    }


def _nodes(run: Run, sites: tuple[str, ...], columns: dict[str, np.ndarray]) -> Nodes:
    nothing = np.full(len(columns["read"]), np.nan)
    return Nodes(
        sites=sites,
        kinds=columns["kinds"].astype(np.int8),
        site_of=columns["site_of"].astype(np.int32),
        units=columns["units"].astype(np.int64),
        positions=columns["positions"].astype(np.int32),
        values=columns["values"],
        weights=columns["weights"],
        reads=np.where(columns["read"], columns["values"], np.nan),
        constants=nothing,
        residuals=nothing.copy(),
        distractors=columns["distractors"].astype(np.int64),
        labels=_labels(run, sites, columns),
    )


def _labels(run: Run, sites: tuple[str, ...], columns: dict[str, np.ndarray]) -> tuple[str, ...]:
    """What nodes mean: SAEs' labels, tokens as text."""
    named = {site: getattr(sae, "labels", None) for site, sae in run.saes.items()}
    token, logit, latent = (KINDS.index(kind) for kind in ("token", "logit", "latent"))
    texts: dict[int, str] = {}

    def text(unit: int) -> str:
        if unit not in texts:
            texts[unit] = repr(run.model.token_strings([unit])[0])
        return texts[unit]

    labels = []
    for kind, site, unit, distractor in zip(
        *(columns[name].tolist() for name in ("kinds", "site_of", "units", "distractors")),
        strict=True,
    ):
        label = ""
        if kind == latent:
            known = named[sites[site]]
            label = known[unit] if known else ""
        elif kind in (token, logit):
            label = text(unit) + (f" less {text(distractor)}" if distractor >= 0 else "")
        labels.append(label)
    return tuple(labels)


def _ends(
    run: Run,
    kept: Sequence[tuple[Group, Tensor, Tensor]],
    logits: LogitTargets | None,
    rank: np.ndarray,
) -> tuple[dict[Place, Sources], tuple[Targets, ...]]:
    """What nodes write and read, with the numbers that they were given."""
    written: dict[Place, list[tuple[Tensor, Tensor, Tensor]]] = {}
    targets: list[Targets] = []
    start = 0
    device = run.model.device
    for group, some, _ in kept:
        some = some.to(device)
        columns = torch.from_numpy(rank[start : start + len(some)]).to(device)
        start += len(some)
        positions = group.positions[some]
        for place, rows in group.written:
            written.setdefault(place, []).append((positions, columns, rows[some]))
        if _is_read(run, group):
            reader = LatentReader(run, run.saes[group.site])
            targets.append(Targets(reader.place, columns, positions, group.units[some], reader))
    if logits is not None:
        columns = torch.from_numpy(rank[start:]).to(device)
        where = torch.full_like(columns, logits.position)
        units = torch.arange(len(columns), device=device)
        targets.append(Targets(logits.place, columns, where, units, logits))
    sources = {
        place: _sources(parts)
        for place, parts in written.items()
        if any(len(columns) for _, columns, _ in parts)
    }
    return sources, tuple(targets)


def _sources(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Sources:
    """Sorted by position, and as in the table; nodes that wrote before write here too."""
    positions, columns, rows = (torch.cat(each) for each in zip(*parts, strict=True))
    order = torch.argsort(columns)
    order = order[torch.argsort(positions[order], stable=True)]
    positions, columns = positions[order], columns[order]
    counts = torch.bincount(positions)
    first = counts.cumsum(0) - counts
    within = torch.arange(len(columns), device=columns.device) - first[positions]
    most = min(int(counts.max()), 2 * len(columns) // len(counts) + 8)
    inside = within < most
    filled = (positions * most + within)[inside]
    padded = rows.new_zeros(len(counts) * most, rows.shape[1])
    padded[filled] = rows[order[inside]]
    beyond = [
        Crowd(position, columns[mine], rows[order[mine]])
        for position in (counts > most).nonzero()[:, 0].tolist()
        for mine in [(positions == position) & ~inside]
    ]
    return Sources(
        columns[inside],
        padded.unflatten(0, (len(counts), most)),
        filled,
        counts.clamp(max=most).cumsum(0).tolist(),
        tuple(beyond),
    )
