"""The two ends of an edge: what one node writes, and what one node reads."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.graphs.places import (
    ATTN_OUT,
    EMBEDDING,
    IN,
    MLP_OUT,
    NORMALIZED,
    PRE,
    Place,
    Z,
    place_of,
    site_at,
)
from gossamer.attribution.graphs.readers import LatentReader, LogitTargets
from gossamer.attribution.graphs.writers import Written
from gossamer.attribution.heads.linear import LinearRun
from gossamer.errors import SiteError
from gossamer.saes.rows import active_pairs, splice_parts, write_rows
from gossamer.saes.sae import SAE
from gossamer.sites import NodeId, parse_node

MODULE = re.compile(r"blocks\.(\d+)\.(attn|mlp)")
"""A module, for its bias or remainder."""


class Source(NamedTuple):
    """A node that writes."""

    id: str
    """Its id."""

    position: int
    """Where."""

    written: tuple[Written, ...]
    """What it writes, one row at each place."""


class Target(NamedTuple):
    """A node that reads."""

    id: str
    """Its id."""

    position: int
    """Where."""

    place: Place
    """Where on the way through the model."""

    row: Float[Tensor, " width"]
    """What it reads there."""


@torch.no_grad()
def source_of(linear: LinearRun, name: str) -> Source:
    """What a node writes. SiteError for a node that this prompt does not have."""
    run, node = linear.run, _parsed(name)
    if node.site == "logits":
        raise SiteError(f"{name} writes nothing; edges come from latents, errors and embeddings.")
    _check_position(linear, node)
    if node.site in ("hook_embed", "hook_pos_embed"):
        unit = run.ids[node.position] if node.site == "hook_embed" else node.position
        if node.site not in run.values or node.unit != unit:
            known = NodeId(node.site, unit, node.position)
            raise SiteError(f"The prompt has no node {name}; at this position it has {known}.")
        return Source(name, node.position, (Written(EMBEDDING, _row(linear, node)),))
    module = MODULE.fullmatch(node.site)
    if module is not None:
        layer, part = int(module[1]), module[2]
        found = tuple(_of_module(linear, layer, part, node.position))
        if layer >= run.n_layers or not found or node.unit not in ("bias", "remainder"):
            raise SiteError(f"{name} is no node of this prompt: it writes nothing.")
        return Source(name, node.position, found)
    if node.site not in run.saes:
        raise SiteError(
            f"{name} is no node of this prompt; SAEs write {', '.join(run.saes) or 'nowhere'}, and "
            "tokens, positions and modules' biases and remainders are nodes."
        )
    place = place_of(node.site, after=True)
    return Source(name, node.position, (Written(place, _of_sae(linear, node)),))


def target_of(linear: LinearRun, name: str) -> Target:
    """What a node reads. SiteError for one that reads nothing."""
    run, node = linear.run, _parsed(name)
    device = run.model.device
    if node.site == "logits":
        tokens = [int(token) for token in str(node.unit).split("-")]
        position = node.position
        if max(tokens) >= run.model.d_vocab or position >= run.n:
            raise SiteError(
                f"{name} is no score of this prompt, which has {run.n} positions and "
                f"{run.model.d_vocab} tokens to score."
            )
        each = [torch.tensor([token], device=device) for token in tokens]
        scores = LogitTargets(
            run=run,
            position=position,
            tokens=each[0],
            distractors=each[1] if len(each) > 1 else None,
            weights=torch.ones(1, dtype=torch.float64, device=device),
        )
        return Target(name, position, scores.place, scores.rows[0])
    _check_position(linear, node)
    if node.site not in run.saes or not isinstance(node.unit, int):
        raise SiteError(f"{name} reads nothing; edges go into latents and logits.")
    sae = run.saes[node.site]
    reader = LatentReader(run, sae)
    here = torch.tensor([node.position], device=device)
    _check_unit(linear, node)
    rows = reader.rows(here, torch.tensor([node.unit], device=device))
    return Target(name, node.position, reader.place, rows[0])


def _parsed(name: str) -> NodeId:
    node = parse_node(name)
    if node.key_position is not None:
        raise SiteError(
            f"{name} is a head, and no node of a graph; name a latent, an error, an embedding, a "
            "bias, a remainder or a logit."
        )
    return node


def _check_position(linear: LinearRun, node: NodeId) -> None:
    n = linear.run.n
    if node.position >= n:
        raise SiteError(f"{node} is not in the prompt, which has {n} tokens (0..{n - 1}).")


def _check_unit(linear: LinearRun, node: NodeId) -> None:
    """Refuse a latent that the SAE does not have."""
    sae = linear.run.saes[node.site]
    if isinstance(sae, SAE) and isinstance(node.unit, int) and node.unit >= sae.d_sae:
        raise SiteError(f"{node} is no latent of its SAE, which has 0..{sae.d_sae - 1}.")


def _row(linear: LinearRun, node: NodeId) -> Float[Tensor, "1 width"]:
    """The clean value at a node's site and position."""
    values = linear.run.at(node.site)
    return values[node.position : node.position + 1]


def _of_sae(linear: LinearRun, node: NodeId) -> Float[Tensor, "1 width"]:
    """What a latent writes, or a piece of a splice beside the latents."""
    run = linear.run
    sae = run.saes[node.site]
    here = slice(node.position, node.position + 1)
    x, value = run.at(sae.site_in)[here], run.at(node.site)[here]
    zeros, units, values = active_pairs(sae, x)
    rows = (write_rows(sae, units, x[zeros]) * values[:, None]).to(value)
    if isinstance(node.unit, int):
        _check_unit(linear, node)
        mine = units == node.unit
        if not bool(mine.any()):
            raise SiteError(f"{node} is not active on this prompt; name a latent that is.")
        return rows[mine]
    parts = splice_parts(sae, x, value, rows.sum(0, keepdim=True))
    if node.unit not in parts:
        raise SiteError(f"The SAE at {node.site} has no {node.unit}; it has {', '.join(parts)}.")
    if node.unit == "remainder" and isinstance(sae, SAE) and sae.W_skip is not None:
        begin = place_of(sae.site_in, after=True)
        moved = _linear_value(linear, begin.layer, begin.station)[here]
        return parts["remainder"] - (moved.to(sae.dtype) @ sae.W_skip.T).to(value)
    return parts[str(node.unit)]


def _linear_value(linear: LinearRun, layer: int, station: int) -> Float[Tensor, "pos width"]:
    """The part of a value that nodes make: all of it, but for the bias of a norm before it."""
    run, parallel = linear.run, linear.run.model.layout.parallel
    site = site_at(layer, station)
    if station not in (NORMALIZED, IN) or run.cut(layer, station) is not None:
        return run.at(site)
    if station == NORMALIZED:
        mid = site_at(layer, PRE) if parallel else f"blocks.{layer}.hook_resid_mid"
        return linear.normalized(layer, run.at(mid)[:, None])[:, 0]
    return linear.received(layer, _linear_value(linear, layer, NORMALIZED)[:, None])[:, 0]


def _of_module(linear: LinearRun, layer: int, part: str, position: int) -> Iterator[Written]:
    """What a module adds that no path carries, at the places where it still is a way to."""
    run, here = linear.run, slice(position, position + 1)
    if layer >= run.n_layers:
        return
    if part == "mlp":
        if run.is_read(layer, MLP_OUT):
            hidden = _linear_value(linear, layer, IN)[:, None]
            rest = run.at(site_at(layer, MLP_OUT)) - linear.mlp(layer, hidden)[:, 0]
            yield Written(Place(layer, MLP_OUT, False), rest[here])
        return
    z = run.at(site_at(layer, Z))[:, None]
    if run.is_read(layer, Z):
        x = run.at(site_at(layer, PRE))[:, None]
        rest = z - linear.attended(layer, linear.values(layer, x))
        yield Written(Place(layer, Z, False), rest[here, 0])
    if run.is_read(layer, ATTN_OUT):
        rest = run.at(site_at(layer, ATTN_OUT)) - linear.written(layer, z)[:, 0]
        yield Written(Place(layer, ATTN_OUT, False), rest[here])
