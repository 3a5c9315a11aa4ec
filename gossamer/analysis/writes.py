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

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.models.held import projection, recorded
from gossamer.models.taps import Layout
from gossamer.sites import parse_site


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
