"""Modules with their norms' scales held: linear maps, forward and back.

    HeldNorm      w ↦ gain ⊙ (C w) / scale
    Projection    W_O or W_out, and the norm behind it where a family has one

`out` is the map, `pulled` its transpose: a · pulled(g) = out(a) · g.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from gossamer.errors import SiteError
from gossamer.models.taps import Layout


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
