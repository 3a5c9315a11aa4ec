"""From one site to another through the MLP of one block, token by token.

    in    hook_resid_mid | ln2.hook_normalized | mlp.hook_in
    out   hook_mlp_out | hook_resid_post

    x → [ln2] → MLP → [ln2_post] → [+ what does not go through the MLP] → y

What lies between is a value (`Passage.value`) and, at a point, a derivative in parts (`linearize`):

    ∂y/∂x = (norm_out) W_out Σ_way diag(slopes_way) W_way (norm_in)  [+ 1]

The derivative of a norm with scale s and normalised value n at that point is

    w ↦ gain ⊙ (C w) / s − gain ⊙ n · (n · w) / (d s)

C centring (LayerNorm) or nothing (RMSNorm); with norms held the second term is left out. Its first
factor is folded into the MLP's matrices, so a latent's row goes through them as if there were no
norm, and the rest is one more row for each token.
"""

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from gossamer.errors import GossamerError, SiteError
from gossamer.models.mlps import MLP, mlp_of
from gossamer.models.model import Model
from gossamer.models.norms import visited_norm
from gossamer.sites import parse_site

IN_KINDS = ("mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid")
"""Where latents may write."""

OUT_KINDS = ("hook_mlp_out", "hook_resid_post")
"""Where latents may read."""


@dataclass(frozen=True, slots=True)
class Passage:
    """The way; a function of one token's activation."""

    site_in: str
    """Where it begins."""

    site_out: str
    """Where it ends."""

    mlp: MLP
    """The block's MLP."""

    norm_in: Any
    """The module of the norm before the MLP, where the way begins before it."""

    affine_in: tuple[Tensor, Tensor | None] | None
    """That norm's gain and bias, where the way begins inside it."""

    norm_out: Any
    """The module of the norm after the MLP, in families that have one."""

    gain_offset: float
    """Added to the stored gain of every norm."""

    skip: bool
    """Whether the residual stream's own way past the MLP counts."""

    hold_norms: bool
    """Whether every norm's scale is constant in the derivative."""

    @property
    def needs_rest(self) -> bool:
        """Whether y has a part that does not move with x: what else is in the residual stream."""
        return self.site_out.endswith("hook_resid_post") and not self.skip

    @property
    def written(self) -> str:
        """What the block's MLP adds to the residual stream."""
        return f"blocks.{parse_site(self.site_out).layer}.hook_mlp_out"

    def value(
        self, x: Float[Tensor, "n width"], rest: Float[Tensor, "n d_model"] | None = None
    ) -> Float[Tensor, "n d_model"]:
        """y at any x; `rest` is what else is in the stream there, where `needs_rest`."""
        x = x.to(self.mlp.W_in.dtype)
        hidden, _ = self._hidden(x)
        y = self.mlp(hidden)
        if self.norm_out is not None:
            y = visited_norm(self.norm_out, y, self.gain_offset, _same)
        if not self.site_out.endswith("hook_resid_post"):
            return y
        return y + (x if rest is None else rest)

    def linearize(self, x: Float[Tensor, "n width"]) -> "Linear":
        """The derivative at some points, in the model's type."""
        hidden, norm_in = self._hidden(x.to(self.mlp.W_in.dtype))
        mlp, slopes = self.mlp, self.mlp.slopes(hidden)
        norm_out = None
        if self.norm_out is not None:
            seen = _seen(self.norm_out, mlp(hidden), self.gain_offset)
            norm_out = replace(seen, held=self.hold_norms)
        if norm_in is not None:
            norm_in = replace(norm_in, held=self.hold_norms)
        ways, W_out = mlp.ways, mlp.W_out
        if self.affine_in is not None:
            ways = tuple(way * self.affine_in[0] for way in ways)
        if norm_in is not None:
            ways = tuple(norm_in.before(way) for way in ways)
        if norm_out is not None:
            W_out = norm_out.after(W_out)
        return Linear(ways, W_out, mlp.W_out, slopes, norm_in, norm_out, self.skip)

    def _hidden(self, x: Float[Tensor, "n width"]) -> tuple[Float[Tensor, "n d_in"], "Norm | None"]:
        """What the MLP receives, and the norm before it at x."""
        if self.norm_in is not None:
            return visited_norm(self.norm_in, x, self.gain_offset, _same), _seen(
                self.norm_in, x, self.gain_offset
            )
        if self.affine_in is not None:
            gain, bias = self.affine_in
            return (x * gain if bias is None else x * gain + bias), None
        return x, None


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm at some points."""

    gain: Float[Tensor, " width"]
    """Its gain, offset included."""

    scale: Float[Tensor, " n"]
    """What it divides by."""

    normalized: Float[Tensor, "n width"]
    """Its value before gain and bias."""

    centres: bool
    """Whether it takes the mean away."""

    held: bool = False
    """Whether the scale is constant in the derivative."""

    def before(self, weight: Float[Tensor, "d_mlp width"]) -> Float[Tensor, "d_mlp width"]:
        """`weight` diag(gain) C: a matrix that reads what the norm gives, reading what it gets."""
        scaled = weight * self.gain
        return scaled - scaled.mean(1, keepdim=True) if self.centres else scaled

    def after(self, weight: Float[Tensor, "width d_mlp"]) -> Float[Tensor, "width d_mlp"]:
        """diag(gain) C `weight`: a matrix that writes what the norm gets, writing what it gives."""
        return self.centred(weight) * self.gain[:, None]

    def centred(self, weight: Float[Tensor, "width d_mlp"]) -> Float[Tensor, "width d_mlp"]:
        """C `weight`."""
        return weight - weight.mean(0, keepdim=True) if self.centres else weight

    def at(self, chunk: slice) -> "Norm":
        """The same at some of the points."""
        return replace(self, scale=self.scale[chunk], normalized=self.normalized[chunk])

    def to(self, like: Float[Tensor, "..."]) -> "Norm":
        """The same with the type of a tensor, where that is."""
        gain, scale, normalized = (
            part.to(like) for part in (self.gain, self.scale, self.normalized)
        )
        return replace(self, gain=gain, scale=scale, normalized=normalized)


@dataclass(frozen=True, slots=True)
class Linear:
    """The derivative of a passage at some points, in parts."""

    ways: tuple[Float[Tensor, "d_mlp width"], ...]
    """Into the hidden units, the norm's gain and centring folded in."""

    W_out: Float[Tensor, "d_model d_mlp"]
    """Out of them, likewise."""

    bare_out: Float[Tensor, "d_model d_mlp"]
    """Out of them, nothing folded in."""

    slopes: tuple[Float[Tensor, "n d_mlp"], ...]
    """Of the hidden units."""

    norm_in: Norm | None
    """The norm before the MLP."""

    norm_out: Norm | None
    """The norm after it."""

    skip: bool
    """Whether the stream's own way past the MLP counts."""

    def at(self, chunk: slice) -> "Linear":
        """The same at some of the points."""
        norms = [None if n is None else n.at(chunk) for n in (self.norm_in, self.norm_out)]
        slopes = tuple(slope[chunk] for slope in self.slopes)
        return replace(self, slopes=slopes, norm_in=norms[0], norm_out=norms[1])

    def to(self, like: Float[Tensor, "..."]) -> "Linear":
        """The same with the type of a tensor, where that is."""
        norms = [None if n is None else n.to(like) for n in (self.norm_in, self.norm_out)]
        bare_out = self.bare_out.to(like)
        return Linear(
            tuple(way.to(like) for way in self.ways),
            # Folded again: what was folded in a narrower type is rounded.
            self.W_out.to(like) if norms[1] is None else norms[1].after(bare_out),
            bare_out,
            tuple(slope.to(like) for slope in self.slopes),
            norms[0],
            norms[1],
            self.skip,
        )

    def only(self, live: Int64[Tensor, " n_live"]) -> "Linear":
        """The same through some of the hidden units alone."""
        return replace(
            self,
            ways=tuple(way[live] for way in self.ways),
            W_out=self.W_out[:, live],
            bare_out=self.bare_out[:, live],
            slopes=tuple(slope[:, live] for slope in self.slopes),
        )


def passage(
    model: Model,
    layer: int,
    sites: tuple[str, str],
    *,
    hold: tuple[str, ...] = (),
    skip: bool | None = None,
) -> Passage:
    """The way between two sites of one block. SiteError or GossamerError when there is none.

    `skip` None: whether y holds x itself, from hook_resid_mid to hook_resid_post.
    """
    if not 0 <= layer < model.n_layers:
        raise SiteError(
            f"layer is a block of {model.name}, 0 to {model.n_layers - 1}, got {layer}."
        )
    site_in, site_out = sites
    for site, kinds, does in ((site_in, IN_KINDS, "write"), (site_out, OUT_KINDS, "read")):
        model.check_site(site)
        parsed = parse_site(site)
        if parsed.layer != layer or parsed.kind not in kinds:
            allowed = ", ".join(f"blocks.{layer}.{kind}" for kind in kinds)
            raise SiteError(
                f"A Jacobian of the MLP of block {layer} needs latents that {does} one of "
                f"{allowed}, got {site}."
            )
    model.held_sites(hold, ("norms",))
    if set(hold) - {"norms"}:
        raise GossamerError(f'An MLP has nothing to hold but "norms", got {list(hold)}.')
    has_skip = site_in.endswith("hook_resid_mid") and site_out.endswith("hook_resid_post")
    if skip and not has_skip:
        raise GossamerError(
            "skip=True counts the stream's way past the MLP, from hook_resid_mid to "
            f"hook_resid_post; from {site_in} to {site_out} there is none."
        )
    layout, adapter = model.layout, model.layout.adapter
    ln2 = layout.part(layer, adapter.ln2)
    inside = site_in.endswith("ln2.hook_normalized")
    post = adapter.ln2_post
    return Passage(
        site_in,
        site_out,
        mlp_of(layout, layer),
        ln2 if site_in.endswith("hook_resid_mid") else None,
        (_gain(ln2, adapter.gain_offset), _bias(ln2)) if inside else None,
        None if post is None else layout.part(layer, post),
        adapter.gain_offset,
        has_skip if skip is None else skip,
        "norms" in hold,
    )


def _seen(module: Any, x: Float[Tensor, "n width"], gain_offset: float) -> Norm:
    """A norm at some points."""
    found: dict[str, Tensor] = {}

    def note(kind: str, value: Tensor) -> Tensor:
        found[kind] = value
        return value

    visited_norm(module, x, gain_offset, note)
    return Norm(
        _gain(module, gain_offset),
        found["hook_scale"][:, 0].to(x.dtype),
        found["hook_normalized"],
        isinstance(module, nn.LayerNorm),
    )


def _gain(module: Any, gain_offset: float) -> Float[Tensor, " width"]:
    return gain_offset + module.weight.detach()


def _bias(module: Any) -> Float[Tensor, " width"] | None:
    bias = getattr(module, "bias", None)
    return None if bias is None else bias.detach()


def _same(_kind: str, value: Tensor) -> Tensor:
    return value
