"""What each node of a prompt writes, and where: groups of nodes of one kind at one site.

Latents, errors, biases and remainders of an SAE are added after its splice; what a module gives
beyond its linear part is added before. What all nodes write at a spliced site adds up to the value
there, and what they write into the stream to the stream: so edges add up.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.attribution.graphs.places import (
    ATTN_OUT,
    EMBEDDING,
    IN,
    MLP_OUT,
    NORMALIZED,
    Place,
    Z,
    place_of,
    site_at,
)
from gossamer.attribution.graphs.run import Run
from gossamer.graph.nodes import Kind
from gossamer.saes.crosscoder import parts_at, read_by
from gossamer.saes.rows import active_pairs, splice_parts
from gossamer.saes.sae import SAE
from gossamer.saes.sets import rows_written

LinearParts = Mapping[int, Mapping[int, Tensor]]
"""By layer and station: `linear_parts` of each block."""


class Written(NamedTuple):
    """What a group's nodes write at one place."""

    place: Place
    """Where."""

    rows: Float[Tensor, "n width"]
    """By node, activations included."""


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of one kind at one site, sorted by position."""

    site: str
    """A site, or a module."""

    kind: Kind
    """What they are."""

    positions: Int64[Tensor, " n"]
    """Where."""

    units: Int64[Tensor, " n"]
    """Latent, token id or position; −1 for kinds whose unit is a word."""

    values: Float[Tensor, " n"]
    """Activations of latents, else 1."""

    written: tuple[Written, ...]
    """What they write; the first place is where they stand in the order of nodes."""


def embedding_groups(run: Run) -> Iterator[Group]:
    """Tokens, and position embeddings in families that learn them."""
    ids, where = torch.tensor(run.ids), torch.arange(run.n)
    sites: dict[str, tuple[Kind, Tensor]] = {"hook_embed": ("token", ids)}
    if "hook_pos_embed" in run.values:
        sites["hook_pos_embed"] = ("position", where)
    for site, (kind, units) in sites.items():
        rows = run.at(site)
        if len(rows) != run.n:
            rows = rows.expand(run.n, -1)
        yield Group(
            site,
            kind,
            where.to(rows.device),
            units.to(rows.device),
            rows.new_ones(run.n),
            (Written(EMBEDDING, rows),),
        )


def latent_groups(run: Run) -> dict[str, Group]:
    """The active latents of each SAE, with all that they write; of a crosscoder by the first of its
    sites."""
    found = {}
    for site, sae in run.saes.items():
        parts = parts_at(site, run.saes)
        if parts[0] is not sae:
            continue
        x, value = read_by(sae, run.at), run.at(site)
        positions, units, values = active_pairs(sae, x)
        written = tuple(
            Written(place_of(at, after=True), (each * values[:, None]).to(value))
            for part in parts
            for at, each in rows_written(part, units, x[positions]).items()
        )
        found[site] = Group(site, "latent", positions, units, values, written)
    return found


def constant_groups(
    run: Run, site: str, latents: Mapping[str, Group], linear: LinearParts
) -> Iterator[Group]:
    """What a splice adds beside what latents write there: error, bias and remainder."""
    sae, place = run.saes[site], place_of(site, after=True)
    x, value = run.at(sae.site_in), run.at(site)
    by_own, by_others = torch.zeros_like(value), torch.zeros_like(value)
    own = parts_at(site, run.saes)[0].site_out
    for group in latents.values():
        total = by_own if group.site == own else by_others
        for written in group.written:
            if written.place == place:
                total.index_add_(0, group.positions, written.rows)
    parts = splice_parts(sae, x, value - by_others, by_own)
    if isinstance(sae, SAE) and sae.W_skip is not None:  # the skip is a path, but for constants
        moved = linear_value(run, place_of(sae.site_in, after=True), linear)
        path = F.linear(moved.to(sae.dtype), sae.W_skip)
        parts["remainder"] = parts["remainder"] - path.to(value)
    for kind in ("error", "bias", "remainder"):
        if kind in parts:
            yield _constants(site, kind, (Written(place, parts[kind]),))


def module_groups(run: Run, layer: int, linear: LinearParts) -> Iterator[Group]:
    """What attention and MLP of a block give beyond their linear parts."""
    written = []
    for station in (Z, ATTN_OUT):
        if run.is_read(layer, station):
            constant = run.values[site_at(layer, station)] - linear[layer][station]
            written.append(Written(Place(layer, station, False), constant[0].flatten(1)))
    if written:
        affine = {"attention", "norms"} <= set(run.hold)
        kind = "bias" if affine else "remainder"
        yield _constants(f"blocks.{layer}.attn", kind, tuple(written))
    if run.is_read(layer, MLP_OUT):
        constant = run.values[site_at(layer, MLP_OUT)] - linear[layer][MLP_OUT]
        place = Place(layer, MLP_OUT, False)
        yield _constants(f"blocks.{layer}.mlp", "remainder", (Written(place, constant[0]),))


def _constants(site: str, kind: Kind, written: tuple[Written, ...]) -> Group:
    """One node at each position."""
    rows = written[0].rows
    where = torch.arange(len(rows), device=rows.device)
    return Group(site, kind, where, torch.full_like(where, -1), rows.new_ones(len(rows)), written)


def linear_value(run: Run, place: Place, linear: LinearParts) -> Float[Tensor, "pos width"]:
    """The part of the value at a place that is made of nodes: all of it, but behind a norm."""
    site = site_at(place.layer, place.station)
    written = place.after and run.cut(place.layer, place.station) is not None
    if place.station in (NORMALIZED, IN) and not written:
        return linear[place.layer][place.station][0]
    return run.at(site)
