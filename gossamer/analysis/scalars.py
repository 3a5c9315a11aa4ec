"""Every derived scalar of every kind of node, as one table of functions of a run.

    metric        of a node that writes a · w (a its activation, w what it writes per unit)
    activation    a
    write_norm    ‖a w‖ in the residual stream, post-norm included
    direct        a w · g,          g = ∂s/∂r, r the stream that s is read from: 0 for later nodes
    total         a · ∂s/∂a         every path

With s the number that the trace explains. A kind's values stand in its own shape: heads (pos,
n_heads), pairs (query, key, n_heads), neurons (pos, d_mlp), active latents (n,), the rest (pos,).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.analysis.directions import is_residual
from gossamer.analysis.view import View
from gossamer.analysis.writes import (
    head_out,
    module_bias,
    out,
    pulled,
    unit_norms,
    writes_into_stream,
)
from gossamer.errors import GossamerError
from gossamer.sites import NodeId, parse_site
from gossamer.splice import flat

AXES = {
    "embedding": ("pos",),
    "position": ("pos",),
    "head": ("pos", "unit"),
    "pair": ("pos", "key", "unit"),
    "neuron": ("pos", "unit"),
    "latent": ("node",),
    "error": ("pos",),
    "bias": ("pos",),
    "remainder": ("pos",),
    "layer": ("pos",),
    "residual": ("pos",),
}
"""Kinds of node, and the axes of their values."""

METRICS = ("activation", "write_norm", "direct", "total")
"""What can be said of a node with no other node named."""


class Indices(NamedTuple):
    """Which node each of some values belongs to."""

    positions: Int64[Tensor, " n"]
    """Position, of heads the query's."""

    units: Int64[Tensor, " n"] | None
    """Latent, neuron, head or token; None where a site has one node at a position."""

    keys: Int64[Tensor, " n"] | None = None
    """Key position of a pair."""


@dataclass(frozen=True, slots=True)
class Scalars:
    """One metric of the nodes of one kind at one site."""

    kind: str
    """Kind of node."""

    metric: str
    """What the values are."""

    site: str
    """Where the nodes are."""

    axes: tuple[str, ...]
    """Names of the values' axes: pos, key, unit; node for latents, listed as they are active; of a
    residual stream's own values pos and channel."""

    values: Float[Tensor, "*axes"]
    """The values."""

    positions: Int64[Tensor, " n"] | None = None
    """Of latents: where each is active."""

    units: Int64[Tensor, " n"] | None = None
    """Of latents: which it is."""


def reduced(view: View, whole: Scalars, names: Sequence[str]) -> Scalars:
    """Summed over some axes. GossamerError for an axis that the kind does not have."""
    names = list(dict.fromkeys(names))
    can = ("pos", "unit") if whole.kind == "latent" else whole.axes
    for name in names:
        if name not in can:
            raise GossamerError(f"A {whole.kind}'s values can be summed over {can}, got {name!r}.")
    if not names:
        return whole
    values, axes = whole.values, whole.axes
    if whole.kind == "latent":
        if set(names) == {"pos", "unit"}:
            return Scalars(whole.kind, whole.metric, whole.site, (), values.sum())
        index, kept = (whole.positions, "pos") if "unit" in names else (whole.units, "unit")
        assert index is not None
        size = view.n if kept == "pos" else view.d_sae(whole.site)
        summed = values.new_zeros(size).index_add(0, index, values)
        return Scalars(whole.kind, whole.metric, whole.site, (kept,), summed)
    places = [axes.index(name) for name in names]
    left = tuple(axis for axis in axes if axis not in names)
    return Scalars(whole.kind, whole.metric, whole.site, left, values.sum(places))


def sites_of(view: View, kind: str) -> list[str]:
    """Where a run has nodes of a kind, in forward order."""
    blocks = range(view.model.n_layers)
    seen = view.values
    match kind:
        case "embedding":
            names = ["hook_embed"]
        case "position":
            names = ["hook_pos_embed"]
        case "head" | "pair":
            names = [f"blocks.{n}.attn.hook_z" for n in blocks]
        case "neuron":
            names = [f"blocks.{n}.mlp.hook_post" for n in blocks]
        case "layer":
            names = [f"blocks.{n}.hook_{p}_out" for n in blocks for p in ("attn", "mlp")]
        case "residual":
            names = [site for site in seen if is_residual(site)]
        case "bias":
            modules = [f"blocks.{n}.{p}" for n in blocks for p in ("attn", "mlp")]
            has = [m for m in modules if writes_of(m) in seen and _bias(view, m) is not None]
            return [*has, *(s for s in sae_sites(view) if "bias" in view.pieces(s))]
        case _:
            places = sae_sites(view)
            if kind == "remainder":
                places = [s for s in places if "remainder" in view.pieces(s)]
            return places
    return [site for site in names if site in seen]


def sae_sites(view: View) -> list[str]:
    """Sites of SAEs whose input and output a run has recorded, in forward order."""
    there = [s for s, sae in view.saes.items() if {s, sae.site_in} <= view.values.keys()]
    return sorted(there, key=lambda site: parse_site(site).order)


def writes_of(module: str) -> str:
    """The site where a module's output is added: blocks.3.attn to blocks.3.hook_attn_out."""
    block, _, part = module.rpartition(".")
    return f"{block}.hook_{part}_out"


def indices_of(view: View, kind: str, site: str, flat_index: Int64[Tensor, " n"]) -> Indices:
    """Which nodes stand at some places of a kind's flattened values."""
    if kind == "latent":
        active = view.active(site)
        return Indices(active.positions[flat_index], active.units[flat_index])
    if kind in ("head", "neuron", "pair"):
        value = view.at(site)
        shape = (view.n, view.n, value.shape[1]) if kind == "pair" else value.shape[:2]
        parts = torch.unravel_index(flat_index, shape)
        return Indices(parts[0], parts[-1], parts[1] if kind == "pair" else None)
    return Indices(flat_index, None)


def node_ids(  # noqa: PLR0917  which nodes of which kind
    view: View, kind: str, site: str, which: Indices, ids: Sequence[int]
) -> list[str]:
    """Their ids; `ids` are the prompt's tokens."""
    names = []
    for i, position in enumerate(which.positions.tolist()):
        if which.units is not None:
            unit: int | str = int(which.units[i])
        elif kind in ("embedding", "position"):
            unit = ids[position] if kind == "embedding" else position
        else:
            unit = {"layer": "output", "residual": "stream"}.get(kind, kind)
        key = None if which.keys is None else int(which.keys[i])
        names.append(str(NodeId(site, unit, position, key)))
    return names


# What each kind writes


def _vector(view: View, kind: str, site: str) -> tuple[Tensor, str]:
    """What a kind with one node at each position writes, (pos, width), and the site where."""
    match kind:
        case "embedding" | "position" | "layer" | "residual":
            return view.at(site), site
    if site in view.saes:
        return view.pieces(site)[kind], site
    bias = _bias(view, site)
    assert bias is not None
    return bias, writes_of(site)


def _bias(view: View, module: str) -> Tensor | None:
    _, layer, part = module.split(".")
    return module_bias(view.model.layout, view.values, int(layer), part)


def _pulled(view: View, site: str) -> Float[Tensor, "pos width"]:
    """g as it is read at a site; 0 behind what is explained, and where nothing written is added to
    the stream."""
    g = view.direction
    assert view.read is not None
    before = site == view.read or is_upstream(site, view.read)
    if not (before and writes_into_stream(site)):
        return torch.zeros_like(flat(view.at(site)[None])[0])
    return pulled(view.model.layout, view.values, site, g)


def is_upstream(site: str, read: str) -> bool:
    """Whether what is written at a site is in the residual stream at `read`."""
    here, there = parse_site(site), parse_site(read)
    into = {"attn.hook_z": "hook_attn_out", "mlp.hook_post": "hook_mlp_out"}.get(here.kind)
    if into is not None:
        here = parse_site(f"blocks.{here.layer}.{into}")
    return here.order < there.order


def _gradient(view: View, site: str) -> Tensor:
    """∂s/∂ the value at a site; a position embedding's is the token embedding's."""
    if view.read is None:
        return view.direction  # raises: the trace explains no number
    site = "hook_embed" if site == "hook_pos_embed" else site
    if site not in view.gradients:
        return torch.zeros_like(view.at(site))
    return view.gradients[site]


def _ones(view: View, site: str) -> Tensor:
    return view.at(site).new_ones(view.n)


def _vector_norm(kind: str) -> "Metric":
    def norm(view: View, site: str) -> Tensor:
        vector, at = _vector(view, kind, site)
        return out(view.model.layout, view.values, at, flat(vector[None])[0]).norm(dim=-1)

    return norm


def _vector_direct(kind: str) -> "Metric":
    def direct(view: View, site: str) -> Tensor:
        vector, at = _vector(view, kind, site)
        return (flat(vector[None])[0] * _pulled(view, at)).sum(-1)

    return direct


def _vector_total(kind: str) -> "Metric":
    def total(view: View, site: str) -> Tensor:
        vector, at = _vector(view, kind, site)
        return (flat(vector[None])[0] * flat(_gradient(view, at)[None])[0]).sum(-1)

    return total


# Heads


def _pattern(view: View, site: str) -> Float[Tensor, "query key n_heads"]:
    at = site.removesuffix("hook_z")
    return view.at(f"{at}hook_pattern").permute(1, 2, 0)


def _values(view: View, site: str) -> Float[Tensor, "key n_heads d_head"]:
    """Values by head; heads that share one have it each."""
    n_heads = view.at(site).shape[1]
    v = view.at(site.replace("hook_z", "hook_v"))
    return v.repeat_interleave(n_heads // v.shape[1], dim=1)


def _by_head(view: View, site: str, along: Tensor) -> Float[Tensor, "pos n_heads d_head"]:
    return along.reshape(view.at(site).shape)


def _head_norm(view: View, site: str) -> Float[Tensor, "pos n_heads"]:
    z = view.at(site)
    written = (head_out(view.model.layout, view.values, site, z, h) for h in range(z.shape[1]))
    return torch.stack([w.norm(dim=-1) for w in written], 1)


def pair_along(view: View, site: str, along: Tensor) -> Float[Tensor, "query key n_heads"]:
    """A[t, u, h] v[u, h] · along[t, h]."""
    read = einsum(
        _values(view, site), along, "key n_heads d_head, query n_heads d_head -> query key n_heads"
    )
    return _pattern(view, site) * read


def _pair_norm(view: View, site: str) -> Float[Tensor, "query key n_heads"]:
    """A[t, u, h] ‖v[u, h] W_O‖, the post-norm's scale that of the query."""
    v, name = _values(view, site), f"blocks.{parse_site(site).layer}.ln1_post.hook_scale"
    scale = view.values.get(name)
    values = view.values if scale is None else {**view.values, name: torch.ones_like(scale)}
    written = (head_out(view.model.layout, values, site, v, h) for h in range(v.shape[1]))
    norms = torch.stack([w.norm(dim=-1) for w in written], -1)[None]
    return _pattern(view, site).abs() * (norms if scale is None else norms / scale[..., None])


Metric = Callable[[View, str], Tensor]
"""(view, site) → the values of a metric, in the shape of its kind."""

TABLE: Mapping[tuple[str, str], Metric] = {
    ("embedding", "activation"): _ones,
    ("position", "activation"): _ones,
    ("residual", "activation"): lambda view, site: view.at(site),
    ("head", "write_norm"): _head_norm,
    ("head", "direct"): lambda view, site: (
        view.at(site) * _by_head(view, site, _pulled(view, site))
    ).sum(-1),
    ("head", "total"): lambda view, site: (view.at(site) * _gradient(view, site)).sum(-1),
    ("pair", "activation"): _pattern,
    ("pair", "write_norm"): _pair_norm,
    ("pair", "direct"): lambda view, site: pair_along(
        view, site, _by_head(view, site, _pulled(view, site))
    ),
    ("pair", "total"): lambda view, site: pair_along(view, site, _gradient(view, site)),
    ("neuron", "activation"): lambda view, site: view.at(site),
    ("neuron", "write_norm"): lambda view, site: (
        view.at(site).abs() * unit_norms(view.model.layout, view.values, site)
    ),
    ("neuron", "direct"): lambda view, site: view.at(site) * _pulled(view, site),
    ("neuron", "total"): lambda view, site: view.at(site) * _gradient(view, site),
    ("latent", "activation"): lambda view, site: view.active(site).values,
    ("latent", "write_norm"): lambda view, site: _latent_norm(view, site),
    ("latent", "direct"): lambda view, site: view.dotted(site, _pulled(view, site)),
    ("latent", "total"): lambda view, site: view.dotted(site, flat(_gradient(view, site)[None])[0]),
    **{
        (kind, metric): make(kind)
        for kind in ("embedding", "position", "error", "bias", "remainder", "layer", "residual")
        for metric, make in (
            ("write_norm", _vector_norm),
            ("direct", _vector_direct),
            ("total", _vector_total),
        )
    },
}
"""Every scalar that can be asked for with no other node named."""


def _latent_norm(view: View, site: str) -> Float[Tensor, " n"]:
    active = view.active(site)
    norms = torch.zeros_like(active.values)
    for chunk, rows in view.rows(site):
        moved = _moved(view, site, rows, active.positions[chunk])
        norms[chunk] = moved.norm(dim=1).to(norms) * active.values[chunk].abs()
    return norms


def _moved(
    view: View, site: str, rows: Float[Tensor, "n width"], positions: Int64[Tensor, " n"]
) -> Float[Tensor, "n d_model"]:
    """Rows written at a site and some positions, as the stream gets them."""
    local = {
        name: value[positions]
        for name, value in view.values.items()
        if name.endswith("_post.hook_scale")
    }
    return out(view.model.layout, local, site, rows)
