"""Edges of one node: from every node into it, and from it into every node behind.

    edge i → j = a_i w_i · ∂pre_j/∂r_j       r_j the last residual stream before j

what i writes, read by j with no other block between: the derivative of the way from r_j to j, taken
at the run's own values. Into one node it is a vector–Jacobian product (`edges_in`), out of one node
a Jacobian–vector product for each place that reads (`edges_out`): two ways to the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from gossamer.analysis.directions import NodeValue, Through
from gossamer.analysis.reading import Reading, Seen, at_position, read_before
from gossamer.analysis.readings import reading
from gossamer.analysis.scalars import (
    AXES,
    TABLE,
    Scalars,
    is_upstream,
    pair_along,
    sae_sites,
    sites_of,
)
from gossamer.analysis.view import View
from gossamer.analysis.writes import out, pulled, writes_into_stream
from gossamer.errors import GossamerError, SiteError
from gossamer.models.between import Between
from gossamer.models.blocks import BlockSetting, noted
from gossamer.models.held import projection
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import Tap, remember
from gossamer.saes.rows import read_rows
from gossamer.sites import NodeId, parse_site
from gossamer.splice import Trace, flat


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways from the residual stream of one run to what reads it."""

    view: View
    """The run."""

    settings: Mapping[int, BlockSetting]
    """How each block's attention was called."""

    held: tuple[str, ...]
    """Sites held constant."""

    def stream(self, site: str) -> Float[Tensor, "pos d_model"]:
        """The residual stream at a site, recorded or as the sum of what was."""
        if site in self.view.values or not site.endswith("hook_resid_mid"):
            return self.view.at(site)
        at = site.removesuffix("hook_resid_mid")
        return self.view.at(f"{at}hook_resid_pre") + self.view.at(f"{at}hook_attn_out")

    def run(self, leaf: Float[Tensor, "1 pos d_model"], source: str, target: str) -> Tensor:
        """(1, pos, …): the value at `target` from that of the stream at `source`."""
        if source == target:
            return leaf
        layout = self.view.model.layout
        names = [s for s in Between.needed(layout, source, target) if s in self.view.values]
        clean = {site: self.view.values[site][None] for site in names}
        at: dict[str, Tap] = {site: Tensor.detach for site in self.held}
        return Between(layout, source, target, self.settings, clean, at).run(leaf)

    def pushed(
        self, source: str, target: str, moved: Float[Tensor, "pos d_model"]
    ) -> Float[Tensor, "*shape"]:
        """What a change of the stream makes of the value at `target`, to first order."""
        if source == target:
            return moved
        with torch.enable_grad():
            leaf = self.stream(source)[None].detach().requires_grad_()
            value = self.run(leaf, source, target)
            dummy = torch.zeros_like(value, requires_grad=True)
            (back,) = torch.autograd.grad(value, leaf, dummy, create_graph=True)  # linear in dummy
            return torch.autograd.grad(back, dummy, moved[None].to(back))[0][0]


def ways_of(trace: Trace, view: View, prompt: int, hold: Sequence[str]) -> Ways:
    """What the blocks of a run were told, noted by running its tokens once more."""
    model = view.model
    settings: dict[int, BlockSetting] = {}
    batch = TokenBatch(
        trace.tokens[prompt : prompt + 1, : view.n], trace.mask[prompt : prompt + 1, : view.n]
    )
    last = f"blocks.{model.n_layers - 1}.hook_attn_out"
    with torch.no_grad(), noted(model.layout, settings):
        model.forward(batch, {last: remember({}, last)}, to_the_end=False)
    return Ways(view, settings, model.held_sites(tuple(hold)))


def edges_in(ways: Ways, kind: str, node: NodeId, route: str) -> dict[str, Scalars]:
    """Edges from every node of a kind into one node's pre-activation or score."""
    view, hold = ways.view, ("norms",) if ways.held else ()
    direction = Through(str(node), route) if route != "pre" else NodeValue(str(node))  # pyright: ignore[reportArgumentType]
    found = reading(view.model, view.saes, direction, view.n, hold)
    gradient = _pulled_back(ways, found)
    local = replace(
        view, gradients={**view.gradients, found.residual: gradient}, read=found.residual
    )
    local = replace(local, values={**view.values, found.residual: ways.stream(found.residual)})
    edges = {}
    for site in sites_of(view, kind):
        values = TABLE[kind, "direct"](local, site)
        latents = view.active(site)[:2] if kind == "latent" else (None, None)
        edges[site] = Scalars(kind, "edge_in", site, AXES[kind], values, *latents)
    return edges


def _pulled_back(ways: Ways, found: Reading) -> Float[Tensor, "pos d_model"]:
    """∂ the number / ∂ the stream it is read from."""
    with torch.enable_grad():
        leaf = ways.stream(found.residual)[None].detach().requires_grad_()
        values = {site: ways.run(leaf, found.residual, site) for site in found.sites}
        seen = Seen(ways.view.model, values, {}, ways.settings)
        return torch.autograd.grad(found.of(seen, 0, None), leaf)[0][0]


def edges_out(ways: Ways, kind: str, node: NodeId, route: str) -> dict[str, Scalars]:
    """Edges from one node into every neuron, active latent or attention score (`route` q or k; v:
    what each head then writes along the direction that the run explains)."""
    view = ways.view
    position, written, at = written_by(view, node)
    moved = torch.zeros_like(view.at("hook_embed"))
    moved[position] = written.to(moved)
    edges = {}
    for site in _readers(view, kind):
        read_at = _read_at(view, kind, site, route)
        source = read_before(view.model, read_at)
        if not (is_upstream(at, source) or at == source):
            continue
        change = ways.pushed(source, read_at, moved)
        values = _read_off(ways, kind, site, change, route)
        latents = view.active(site)[:2] if kind == "latent" else (None, None)
        name = "edge_out" if kind != "pair" else f"edge_out_{route}"
        edges[site] = Scalars(kind, name, site, AXES[kind], values, *latents)
    return edges


def written_by(view: View, node: NodeId) -> tuple[int, Float[Tensor, " d_model"], str]:
    """(position, what a node adds to the stream there, the site where it writes)."""
    position = at_position(node.position, view.n)
    layout, values, site = view.model.layout, view.values, node.site
    if site in view.saes and not writes_into_stream(site):
        raise SiteError(
            f"{node} is read by its own block before anything of it is added to the stream, so it "
            "has no edges out; name a node at a block's output or in the stream."
        )
    if isinstance(node.unit, str):
        if site not in view.saes:
            raise SiteError(f"{node} is of no SAE of this trace; name one of {list(view.saes)}.")
        vector = view.pieces(site).get(node.unit)
        if vector is None:
            raise SiteError(f"The SAE at {site} has no {node.unit}.")
        return position, out(layout, values, site, vector)[position], site
    if site in ("hook_embed", "hook_pos_embed"):
        return position, view.at(site)[position], site
    alone = _latent_alone(view, node) if site in view.saes else _unit_alone(view, node)
    return position, out(layout, values, site, alone)[position], site


def _latent_alone(view: View, node: NodeId) -> Float[Tensor, "pos width"]:
    """What an active latent writes at its site. SiteError for one that is not active."""
    alone = torch.zeros_like(flat(view.at(node.site)[None])[0])
    active = view.active(node.site)
    here = (active.positions == node.position) & (active.units == node.unit)
    if not bool(here.any()):
        raise SiteError(f"Latent {node} is not active, so it writes nothing; name one that is.")
    for chunk, rows in view.rows(node.site, here.nonzero()[:, 0]):
        alone[node.position] = (rows * active.values[chunk, None])[0].to(alone)
    return alone


def _unit_alone(view: View, node: NodeId) -> Float[Tensor, "pos width"]:
    """What a neuron, a head, or a head from one key writes at its site."""
    site, unit, position = node.site, int(node.unit), node.position
    writes = parse_site(site).kind in ("mlp.hook_post", "attn.hook_z")
    if not writes or unit >= view.at(site).shape[1]:
        raise SiteError(f"{node} writes nothing into the stream; name a latent, neuron or head.")
    value = view.at(site)
    alone = torch.zeros_like(value)
    alone[position, unit] = value[position, unit]
    if node.key_position is not None:
        v = view.at(site.replace("hook_z", "hook_v"))
        pattern = view.at(site.replace("hook_z", "hook_pattern"))
        key = at_position(node.key_position, view.n)
        mine = v[key, unit // (value.shape[1] // v.shape[1])]
        alone[position, unit] = pattern[unit, position, key] * mine
    return alone.flatten(1)


def _readers(view: View, kind: str) -> list[str]:
    """Sites of a kind's nodes that read the stream."""
    if kind not in ("neuron", "latent", "pair"):
        raise GossamerError(f"A node has edges out to neurons, latents and pairs, got {kind!r}.")
    return sae_sites(view) if kind == "latent" else sites_of(view, kind)


def _read_at(view: View, kind: str, site: str, route: str) -> str:
    """Where a kind's nodes read."""
    if kind == "latent":
        return view.saes[site].site_in
    if kind == "neuron":
        return site.replace("hook_post", "hook_pre")
    rotated = "rot_" if view.model.layout.adapter.attention.rotary and route != "v" else ""
    return site.replace("hook_z", f"hook_{rotated}{route}")


def _read_off(  # noqa: PLR0917  whose change, and how it is read
    ways: Ways, kind: str, site: str, change: Tensor, route: str
) -> Tensor:
    """What nodes make of a change of what they read."""
    view = ways.view
    if kind == "neuron":
        return change
    if kind == "latent":
        active, flat_change = view.active(site), flat(change[None])[0]
        x = view.read_by(site)[active.positions]
        rows = read_rows(view.saes[site], active.units, x)
        return (rows * flat_change[active.positions].to(rows)).sum(1)
    layer = parse_site(site).layer or 0
    pattern = view.at(site.replace("hook_z", "hook_pattern")).permute(1, 2, 0)
    n_heads = pattern.shape[2]
    if route == "v":
        weight, _, norm = projection(view.model.layout, view.values, layer, "attn")
        g = view.direction if norm is None else norm.pulled(view.direction)
        along = (g @ weight).unflatten(1, (n_heads, -1))
        by_head = change.repeat_interleave(n_heads // change.shape[1], dim=1)
        return pattern * einsum(
            by_head, along, "key n_heads d_head, query n_heads d_head -> query key n_heads"
        )
    setting = ways.settings[layer].attention
    source = read_before(view.model, site)
    other = _read_at(view, kind, site, "k" if route == "q" else "q")
    with torch.no_grad():
        constant = ways.run(ways.stream(source)[None], source, other)[0]
    queries, keys = (change, constant) if route == "q" else (constant, change)
    keys = keys.repeat_interleave(n_heads // keys.shape[1], dim=1)
    scores = einsum(queries, keys, "query n_heads d_head, key n_heads d_head -> query key n_heads")
    allowed = setting.allowed[0, 0, : view.n, : view.n, None]
    return (scores * setting.scaling).masked_fill(~allowed, 0.0)


def shares(view: View, node: NodeId) -> dict[str, Scalars]:
    """What each head and key give of an attention latent's pre-activation:

    A[t, u, h] · (v[u, h] W_O[h]) · E_m        E_m what the latent reads, the rest is bias
    """
    position = at_position(node.position, view.n)
    sae = view.saes.get(node.site)
    if sae is None or not isinstance(node.unit, int):
        raise SiteError(f"{node} is no latent of this trace's SAEs ({', '.join(view.saes)}).")
    parsed = parse_site(sae.site_in)
    if parsed.kind not in ("attn.hook_z", "hook_attn_out"):
        raise SiteError(
            f"{node} is a latent at {sae.site_in}, and heads have shares in latents of SAEs at "
            "attn.hook_z and hook_attn_out alone."
        )
    site = f"blocks.{parsed.layer}.attn.hook_z"
    x = view.read_by(node.site)[position : position + 1]
    row = read_rows(sae, torch.tensor([node.unit], device=x.device), x)
    reads = row.new_zeros(view.n, row.shape[1]).index_copy(
        0, torch.tensor([position], device=x.device), row
    )
    if parsed.kind == "hook_attn_out":
        reads = pulled(view.model.layout, view.values, site, reads.to(x))
    values = pair_along(view, site, reads.to(x).reshape(view.at(site).shape))[position]
    return {site: Scalars("pair", "share", site, ("key", "unit"), values)}
