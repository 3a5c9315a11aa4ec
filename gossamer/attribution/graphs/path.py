"""Points of the straight path from a run without its nodes to the clean run, for integrated
gradients (Sundararajan et al. 2017, arXiv 1703.01365, eq. 1; midpoints).

At α every latent, error, token and position embedding writes α times what it does; biases and
remainders of SAEs stay whole, and the modules between recompute. What is held stays at the clean
run's values.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.graphs.places import POST, PRE, STATIONS, Place, site_at
from gossamer.attribution.graphs.plain import PlainEngine, Point, final_norm, passed_block
from gossamer.attribution.graphs.run import Run
from gossamer.attribution.graphs.writers import Group

SCALED = ("latent", "error", "token", "position")
"""Kinds of nodes that are scaled on the way."""


def clean_point(run: Run) -> Point:
    """The clean run itself."""
    streams = {layer: run.values[site_at(layer, PRE)] for layer in range(run.n_layers)}
    streams[run.n_layers] = run.values[site_at(run.n_layers - 1, POST)]
    return Point(streams, {site: _without_skip(run, site) for site in run.saes})


def _without_skip(run: Run, site: str) -> Tensor:
    """What is written at a spliced site, less its skip connection."""
    value = run.values[site]
    layer, kind = int(site.split(".")[1]), site.split(".", 2)[2]
    skip = run.skip(layer, STATIONS.index(kind))
    if skip is None:
        return value
    begin, W_skip = skip
    return value - F.linear(run.values[site_at(layer, begin)], W_skip)


def scaled_parts(run: Run, groups: Sequence[Group]) -> dict[str, Float[Tensor, "pos width"]]:
    """By site, the sum of what scaled nodes write there; "" is the embedding."""
    parts: dict[str, Tensor] = {}
    for group in groups:
        if group.kind in SCALED:
            for place, rows in group.written:
                site = "" if place.layer < 0 else site_at(place.layer, place.station)
                total = torch.zeros(run.n, rows.shape[1]).to(rows)
                total.index_add_(0, group.positions, rows)
                parts[site] = parts.get(site, 0) + total
    return parts


@torch.no_grad()
def point_at(run: Run, parts: Mapping[str, Tensor], alpha: float) -> Point:
    """The point of the path at α in [0, 1]."""
    clean = clean_point(run)
    written = {
        site: value - (1 - alpha) * parts[site].reshape(value.shape)
        for site, value in clean.written.items()
    }
    point = Point({}, written)
    engine = PlainEngine(run, point)
    streams: dict[int, Tensor] = {}
    before: dict[Place, Tensor] = {}
    x = alpha * parts[""][None]
    for layer in range(run.n_layers):
        before[Place(layer, PRE, False)] = x
        x = written.get(site_at(layer, PRE), x)
        streams[layer] = x
        x = passed_block(engine, layer, x, leaves=()).before[POST]
        before[Place(layer, POST, False)] = x
        x = written.get(site_at(layer, POST), x)
    return Point({**streams, run.n_layers: x}, written, before)


@torch.no_grad()
def read_at(run: Run, point: Point, place: Place) -> Float[Tensor, "pos width"]:
    """The value at a place of a point."""
    if place.layer == run.n_layers:
        scale = run.at("ln_final.hook_scale") if "norms" in run.hold else None
        return final_norm(run, point.streams[run.n_layers][0], scale)
    if place.station in (PRE, POST):
        if not place.after:
            return point.before[place][0]
        return point.streams[place.layer + (place.station == POST)][0]
    passed = passed_block(PlainEngine(run, point), place.layer, point.streams[place.layer], ())
    tensors = passed.after if place.after else passed.before
    return tensors[place.station][0].flatten(1)
