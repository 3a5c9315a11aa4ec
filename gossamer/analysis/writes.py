"""What nodes write into the residual stream, and how a direction of the stream is read at them.

    site                          on its way into the stream
    hook_embed, hook_pos_embed    as it is
    attn.hook_z                   W_O [→ post-norm, its scale held]
    mlp.hook_post                 W_out [→ post-norm, its scale held]
    hook_attn_out, hook_mlp_out   as it is
    hook_resid_*                  as it is: such a site is the stream
    any other                     nothing: modules of the block read it first

`out` is that map, linear in what is written; `pulled` is its transpose: a · pulled(g) = out(a) · g.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gossamer.errors import SiteError
from gossamer.models.taps import Layout
from gossamer.sites import parse_site


def recorded(values: Mapping[str, Tensor], site: str) -> Tensor:
    """The value at a site. SiteError when it was not recorded."""
    if site not in values:
        raise SiteError(
            f"The trace has not recorded {site}, but {', '.join(list(values)[:4]) or 'nothing'} …; "
            "record it, or take the trace of an analysis that reaches so far."
        )
    return values[site]


class HeldNorm(NamedTuple):
    """A norm with its scale held: w ↦ gain ⊙ (C w) / scale, C centring in a LayerNorm."""

    gain: Float[Tensor, " width"]
    """The whole gain, offset included."""

    scale: Float[Tensor, "pos 1"]
    """At each position."""

    centres: bool
    """Whether it is a LayerNorm."""

    def out(self, w: Float[Tensor, "pos *units width"]) -> Float[Tensor, "pos *units width"]:
        """What the norm makes of w."""
        w = w - w.mean(-1, keepdim=True) if self.centres else w
        return w * self.gain / self._scale(w)

    def pulled(self, g: Float[Tensor, "pos *units width"]) -> Float[Tensor, "pos *units width"]:
        """Its transpose."""
        g = g * self.gain / self._scale(g)
        return g - g.mean(-1, keepdim=True) if self.centres else g

    def _scale(self, like: Tensor) -> Tensor:
        return self.scale.reshape(len(self.scale), *[1] * (like.ndim - 1)).to(like.dtype)


class Projection(NamedTuple):
    """A module's output weights, and the norm behind it."""

    weight: Float[Tensor, "d_model width"]
    """W_O or W_out."""

    bias: Float[Tensor, " d_model"] | None
    """Added to it."""

    norm: HeldNorm | None
    """The post-norm, in families that have one."""


def held_norm(layout: Layout, module: nn.Module, scale: Float[Tensor, "pos 1"]) -> HeldNorm:
    """A norm of the model with its scale as recorded."""
    gain = layout.adapter.gain_offset + module.get_parameter("weight").detach()
    return HeldNorm(gain, scale, layout.adapter.norm == "layer")


def projection(layout: Layout, values: Mapping[str, Tensor], layer: int, part: str) -> Projection:
    """The output of block `layer`'s "attn" or "mlp"; `values` are (pos, …) by site."""
    adapter = layout.adapter
    path = adapter.attention.output if part == "attn" else adapter.mlp.down
    module: Any = layout.part(layer, path)
    weight = module.weight.detach()
    weight = weight if isinstance(module, nn.Linear) else weight.T
    bias = getattr(module, "bias", None)
    name, post = (
        ("ln1_post", adapter.ln1_post) if part == "attn" else ("ln2_post", adapter.ln2_post)
    )
    norm = None
    if post is not None:
        scale = recorded(values, f"blocks.{layer}.{name}.hook_scale")
        norm = held_norm(layout, layout.part(layer, post), scale)
    return Projection(weight, None if bias is None else bias.detach(), norm)


def through(site: str) -> tuple[int, str] | None:
    """(layer, part) whose output projection stands between a site and the stream; None: none."""
    parsed = parse_site(site)
    part = {"attn.hook_z": "attn", "mlp.hook_post": "mlp"}.get(parsed.kind)
    return None if part is None or parsed.layer is None else (parsed.layer, part)


def writes_into_stream(site: str) -> bool:
    """Whether what is written at a site is added to the stream with no other node between."""
    kind = parse_site(site).kind
    ends = ("_embed", "_out", "resid_pre", "resid_mid", "resid_post", "attn.hook_z")
    return kind.endswith((*ends, "mlp.hook_post"))


def out(
    layout: Layout,
    values: Mapping[str, Tensor],
    site: str,
    written: Float[Tensor, "pos *units width"],
) -> Float[Tensor, "pos *units d_model"]:
    """What vectors written at `site` (heads side by side) add to the stream."""
    way = through(site)
    if way is None:
        return written if writes_into_stream(site) else torch.zeros_like(written)
    weight, _, norm = projection(layout, values, *way)
    moved = written.to(weight.dtype) @ weight.T
    return moved if norm is None else norm.out(moved)


def head_out(  # noqa: PLR0917  one head of what `out` takes
    layout: Layout,
    values: Mapping[str, Tensor],
    site: str,
    z: Float[Tensor, "pos n_heads d_head"],
    head: int,
) -> Float[Tensor, "pos d_model"]:
    """What one head's vectors at an attn.hook_z add to the stream."""
    way = through(site)
    assert way is not None
    weight, _, norm = projection(layout, values, *way)
    d_head = z.shape[-1]
    moved = z[:, head] @ weight[:, head * d_head : (head + 1) * d_head].T
    return moved if norm is None else norm.out(moved)


def pulled(
    layout: Layout, values: Mapping[str, Tensor], site: str, g: Float[Tensor, "pos d_model"]
) -> Float[Tensor, "pos width"]:
    """How a direction of the stream at each position is read at `site`."""
    way = through(site)
    if way is None:
        return g
    weight, _, norm = projection(layout, values, *way)
    return (g if norm is None else norm.pulled(g)) @ weight


def unit_norms(
    layout: Layout, values: Mapping[str, Tensor], site: str
) -> Float[Tensor, "n_norms width"]:
    """‖what one unit of each coordinate adds to the stream‖, one row for all positions or one each.

    ‖gain ⊙ C w‖ / scale_t behind a post-norm.
    """
    way = through(site)
    assert way is not None  # coordinates of the stream itself are not nodes
    weight, _, norm = projection(layout, values, *way)
    if norm is None:
        return weight.norm(dim=0)[None]
    rows = norm._replace(scale=norm.scale.new_ones(1, 1)).out(weight.T[None])[0]
    return rows.norm(dim=1)[None] / norm.scale


def module_bias(
    layout: Layout, values: Mapping[str, Tensor], layer: int, part: str
) -> Float[Tensor, "pos d_model"] | None:
    """What the output projection's own bias, and its post-norm's, add to the stream."""
    _, bias, norm = projection(layout, values, layer, part)
    like = recorded(values, f"blocks.{layer}.hook_{part}_out")
    total = None if bias is None else bias.expand(len(like), -1)
    if norm is not None:
        total = None if total is None else norm.out(total)
        path = getattr(layout.adapter, "ln1_post" if part == "attn" else "ln2_post")
        own = getattr(layout.part(layer, str(path)), "bias", None)
        if own is not None:
            total = own.detach() + (0 if total is None else total)
    return None if total is None else total.to(like.dtype) + torch.zeros_like(like)
