"""The rows of a node table: one cut of the model, and the nodes beside it.

A cut is a set of nodes that every path from the prompt to the number crosses once:

    hook_embed        embeddings, and all that heads, MLPs (or SAEs on them) write afterwards
    a residual site   latents, error and bias of the SAE there, and all that is written afterwards

Nodes of other cuts are listed too, and not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.analysis.directions import is_residual
from gossamer.analysis.reading import Reading
from gossamer.analysis.result import COLUMNS, ColumnSum, TableRow
from gossamer.analysis.scalars import TABLE, indices_of, is_upstream, node_ids, sae_sites, sites_of
from gossamer.analysis.view import View
from gossamer.errors import GossamerError, SiteError
from gossamer.models.model import Model
from gossamer.sites import parse_node, parse_site

RANKED = ("direct", "total")
"""Columns whose largest and smallest values are listed."""


class Group(NamedTuple):
    """The nodes of one kind at one site."""

    kind: str
    """Kind of node."""

    site: str
    """Where."""

    in_cut: bool
    """Whether they count."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a table is about, beside the run."""

    reading: Reading
    """The number."""

    value: float
    """What it is, as often as the rows count it."""

    ids: Sequence[int]
    """The prompt."""

    tokens: tuple[str, ...]
    """The same as text."""

    changed: bool = False
    """Whether edits, or errors left out, may put into the stream what no node writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which rows a table lists."""

    top: int | None = 30
    """So many of the largest and of the smallest of each ranked column; None: all."""

    kinds: tuple[str, ...] | None = None
    """Only these kinds of node; sums are over all kinds. None: all."""

    cut: str | None = None
    """Where the model is cut. None: at the first residual SAE, else at the embeddings."""

    pairs: bool = False
    """Heads by query and key, rather than by query."""

    def __post_init__(self) -> None:
        if self.top is not None and (not isinstance(self.top, int) or self.top < 1):
            raise GossamerError(
                f"top is a whole number from 1 on, or None for all, got {self.top}."
            )
        known = {"embedding", "position", "head", "pair", "neuron", "latent"}
        known |= {"error", "bias", "remainder"}
        unknown = [kind for kind in self.kinds or () if kind not in known]
        if unknown:
            raise GossamerError(f"kinds are of {', '.join(sorted(known))}, got {unknown[0]!r}.")
        unlisted = "head" if self.pairs else "pair"
        if unlisted in (self.kinds or ()):
            raise GossamerError(
                f"kinds names {unlisted}, and a table lists that with pairs={not self.pairs} alone."
            )


def cut_of(view: View, reading: Reading, choice: Choice) -> str:
    """The site of the cut. SiteError for one without a residual SAE, or behind the number."""
    can = _in_stream(view, reading)
    if choice.cut is None:
        return can[0] if can else "hook_embed"
    if choice.cut not in ("hook_embed", *can):
        raise SiteError(
            f"The model cannot be cut at {choice.cut}; it can at "
            f"{', '.join(['hook_embed', *can])}: residual SAEs before what is explained."
        )
    return choice.cut


def _in_stream(view: View, reading: Reading) -> list[str]:
    """Residual SAEs up to where the number is read, but for the one whose latent it is."""
    read = reading.residual
    return [
        site
        for site in sae_sites(view)
        if is_residual(site)
        and (is_upstream(site, read) or (site == read and site != reading.splice))
    ]


def groups(view: View, reading: Reading, cut: str, pairs: bool) -> list[Group]:
    """All nodes upstream of the number, in forward order."""
    assert view.read is not None
    found = [Group("embedding", "hook_embed", cut == "hook_embed")]
    if "hook_pos_embed" in view.values:
        found.append(Group("position", "hook_pos_embed", cut == "hook_embed"))
    saes = sae_sites(view)
    biased = set(sites_of(view, "bias"))
    for layer in range(view.model.n_layers):
        for part, inside, kind in (
            ("attn", "attn.hook_z", "pair" if pairs else "head"),
            ("mlp", "mlp.hook_post", "neuron"),
        ):
            at = f"blocks.{layer}."
            added = f"{at}hook_{part}_out"
            if added not in view.values or not is_upstream(added, view.read):
                continue
            counts = cut == "hook_embed" or parse_site(added).order > parse_site(cut).order
            writer = next((s for s in (added, f"{at}{inside}") if s in saes), None)
            if writer is None:
                found.append(Group(kind, f"{at}{inside}", counts))
            else:
                found += _pieces(view, writer, counts)
            if writer != added and f"{at}{part}" in biased:
                found.append(Group("bias", f"{at}{part}", counts))
    for site in _in_stream(view, reading):
        found += _pieces(view, site, site == cut)
    return found


def _pieces(view: View, site: str, counts: bool) -> list[Group]:
    return [Group(kind, site, counts) for kind in ("latent", *view.pieces(site))]


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of the groups of one table, each computed when it is asked for."""

    view: View
    """The run."""

    members: Sequence[Group]
    """The groups."""

    known: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """Found so far."""

    def of(self, name: str, group: int) -> Float[Tensor, " n"]:
        """A column of one group's nodes."""
        if (name, group) not in self.known:
            kind, site, _ = self.members[group]
            self.known[name, group] = TABLE[kind, name](self.view, site).flatten()
        return self.known[name, group]


def table(
    view: View, subject: Subject, choice: Choice
) -> tuple[str, tuple[TableRow, ...], tuple[ColumnSum, ...]]:
    """The cut, the rows listed, and what the columns add up to."""
    cut = cut_of(view, subject.reading, choice)
    members = groups(view, subject.reading, cut, choice.pairs)
    columns = Columns(view, members)
    wanted = [
        place
        for place, group in enumerate(members)
        if choice.kinds is None or group.kind in choice.kinds
    ]
    chosen: dict[tuple[int, int], None] = {}
    for name in RANKED:
        values = [columns.of(name, place) for place in wanted]
        chosen |= dict.fromkeys(_extremes(values, wanted, choice.top))
    rows = rows_of(columns, list(chosen), subject)
    constant = _constant(view, subject)
    rows = [*rows, constant] if choice.kinds is None or constant.kind in choice.kinds else rows
    rows = sorted(rows, key=lambda row: (-abs(row.direct), -abs(row.total)))
    sums = _sums(columns, rows, constant=constant, subject=subject, cut=cut)
    return cut, tuple(rows), sums


def rows_of(
    columns: Columns, chosen: Sequence[tuple[int, int]], subject: Subject
) -> list[TableRow]:
    """Complete rows of chosen nodes, each (group, place in its flattened values)."""
    by_group: dict[int, list[int]] = {}
    for group, place in chosen:
        by_group.setdefault(group, []).append(place)
    view, rows = columns.view, []
    for number, places in by_group.items():
        kind, site, in_cut = columns.members[number]
        index = torch.tensor(places, device=view.direction.device)
        which = indices_of(view, kind, site, index)
        names = node_ids(view, kind, site, which, subject.ids)
        found: dict[str, list[float] | list[None]] = {
            name: columns.of(name, number)[index].tolist()
            if (kind, name) in TABLE
            else [None] * len(places)
            for name in COLUMNS
        }
        labels = getattr(view.saes.get(site), "labels", None) if kind == "latent" else None
        for i, position in enumerate(which.positions.tolist()):
            label = ""
            if labels is not None and which.units is not None:
                label = labels[int(which.units[i])]
            numbers: Any = {name: found[name][i] for name in found}
            rows.append(
                TableRow(
                    names[i], kind, position, subject.tokens[position], label, in_cut, **numbers
                )
            )
    return rows


def rows_named(
    view: View, subject: Subject, choice: Choice, nodes: Sequence[str]
) -> tuple[TableRow, ...]:
    """Complete rows of nodes by their ids, in the order given, those that this run has."""
    cut = cut_of(view, subject.reading, choice)
    members = groups(view, subject.reading, cut, choice.pairs)
    constant = _constant(view, subject)
    found: dict[str, TableRow] = {constant.node: constant}
    chosen = [
        place
        for node in nodes
        if node != constant.node
        for place in [_place_of(view, members, node)]
        if place is not None
    ]
    rows = rows_of(Columns(view, members), chosen, subject)
    found |= {row.node: row for row in rows}
    return tuple(found[node] for node in nodes if node in found)


def _place_of(view: View, members: Sequence[Group], node: str) -> tuple[int, int] | None:
    """(group, place in its flattened values) of a node; None where the run does not have it."""
    parsed = parse_node(node)
    if parsed.position >= view.n or (parsed.key_position or 0) >= view.n:
        return None
    for number, (kind, site, _) in enumerate(members):
        if site != parsed.site or (isinstance(parsed.unit, str) and kind != parsed.unit):
            continue
        if isinstance(parsed.unit, str) or kind in ("embedding", "position"):
            place = parsed.position
        elif kind == "latent":
            active = view.active(site)
            here = (active.positions == parsed.position) & (active.units == parsed.unit)
            if not bool(here.any()):
                return None
            place = int(here.nonzero()[0])
        else:
            size = view.at(site).shape[1]
            if parsed.unit >= size or (kind == "pair") != (parsed.key_position is not None):
                return None
            before = parsed.position
            if kind == "pair":
                before = before * view.n + (parsed.key_position or 0)
            place = before * size + parsed.unit
        return number, place
    return None


def _extremes(
    values: Sequence[Tensor], groups: Sequence[int], top: int | None
) -> list[tuple[int, int]]:
    """(group, place) of the largest and then the smallest values, zeros left out."""
    candidates: list[tuple[float, int, int]] = []
    for group, each in zip(groups, values, strict=True):
        if top is None or len(each) <= 2 * top:
            places = torch.arange(len(each), device=each.device)
        else:
            both = (each.topk(top).indices, (-each).topk(top).indices)
            places = torch.cat(both).unique()
        numbers = each[places].tolist()
        candidates += [
            (number, group, place)
            for number, place in zip(numbers, places.tolist(), strict=True)
            if number != 0
        ]
    candidates.sort(key=lambda each: (-each[0], each[1], each[2]))
    if top is not None and len(candidates) > 2 * top:
        candidates = candidates[:top] + candidates[-top:]
    return [(group, place) for _, group, place in candidates]


def _constant(view: View, subject: Subject) -> TableRow:
    """The row of what no node of the stream gives: the number less g · r."""
    assert view.read is not None
    r, g = view.at(view.read).double(), view.direction.double()
    left = subject.value - float((r * g).sum())
    node = parse_node(subject.reading.constant)
    token = subject.tokens[node.position]
    return TableRow(
        str(node), str(node.unit), node.position, token, "", True, None, None, left, left
    )


def _sums(
    columns: Columns,
    rows: Sequence[TableRow],
    *,
    constant: TableRow,
    subject: Subject,
    cut: str,
) -> tuple[ColumnSum, ...]:
    """What each ranked column adds up to over the cut."""
    found = []
    counted = [number for number, group in enumerate(columns.members) if group.in_cut]
    precision = 1e-9 if columns.of(RANKED[0], 0).dtype == torch.float64 else 1e-4
    for name in RANKED:
        parts = [columns.of(name, number).double() for number in counted]
        everything = sum(float(part.sum()) for part in parts) + getattr(constant, name)
        size = sum(float(part.abs().sum()) for part in parts) + abs(getattr(constant, name))
        shown = sum(getattr(row, name) for row in rows if row.in_cut)
        adds_up = name == "direct" and abs(everything - subject.value) <= precision * max(
            size, 1e-12
        )
        found.append(
            ColumnSum(
                name,
                shown,
                everything - shown,
                adds_up,
                _sentence(name, everything, subject, cut=cut, constant=constant, adds_up=adds_up),
            )
        )
    return tuple(found)


def _sentence(
    name: str,
    everything: float,
    subject: Subject,
    *,
    cut: str,
    constant: TableRow,
    adds_up: bool,
) -> str:
    """What a column adds up to, in words."""
    if not adds_up:
        why = "rounding is larger than the effects"
        if name == "total":
            why = "a node's total effect also passes through other nodes of the cut"
        elif subject.changed:
            why = "edits, or errors left out, change what is written on its way"
        return (
            f"{name}: the nodes of the cut at {cut} add up to {everything:.4g}, which is not the "
            f"value {subject.value:.4g}: {why}."
        )
    times = (
        ""
        if subject.reading.times == 1
        else (", the score once through the query and once through the key")
    )
    rest = f"its {constant.kind} {constant.direct:.4g} included"
    return (
        f"direct: the nodes of the cut at {cut} add up to {everything:.4g}, the value{times}, "
        f"{rest}."
    )


def check_cut(model: Model, cut: str | None) -> None:
    """SiteError for a cut at a site that the model does not have."""
    if cut is not None:
        model.check_site(cut)
