"""The blocks of any family as plain functions of the residual stream, for work on a part of a
model.

    span(x) runs blocks first..last on positions 0..m−1, with a visit function at every site

The Hugging Face modules do the work, in the order that `adapter.py` draws; what one forward pass of
the model told each block (mask, rotation, scaling) comes along as its `BlockSetting`. Unlike a run
of the whole model, a span can start in the middle, take a prefix of the prompt, and leave out in
its last block what no wanted position needs. Tests compare it with the model's own forward, site by
site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gossamer.models.attention import NOTE_KEYWORD, Setting, Visit, attend
from gossamer.models.mlps import value_and_slope
from gossamer.models.norms import visited_norm
from gossamer.models.taps import Layout, Tap

Rotation = tuple[Float[Tensor, "batch pos d_rotary"], Float[Tensor, "batch pos d_rotary"]]
"""Cosines and sines by position."""


@dataclass(frozen=True, slots=True)
class BlockSetting:
    """What one forward pass told one block."""

    attention: Setting
    """Mask, scaling and soft-cap."""

    rotation: Rotation | None
    """Rotary angles; None in families without."""

    def prefix(self, queries: slice, n: int) -> Setting:
        """The attention's setting for some queries of the first n positions."""
        return self.attention._replace(allowed=self.attention.allowed[:, :, queries, :n])


@contextmanager
def noted(layout: Layout, settings: dict[int, BlockSetting]) -> Iterator[None]:
    """Within the context, each block that runs leaves its setting in `settings`, by layer."""

    def listen(layer: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            rotation = kwargs.get("position_embeddings")

            def note(setting: Setting) -> None:
                settings[layer] = BlockSetting(setting, rotation)

            return args, {**kwargs, NOTE_KEYWORD: note}

        return hook

    handles = [
        layout.part(layer, layout.adapter.attention.module).register_forward_pre_hook(
            listen(layer), with_kwargs=True
        )
        for layer in range(len(layout.blocks))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks `first`..`last` of a model, as one forward pass set them up."""

    layout: Layout
    """The model."""

    settings: Mapping[int, BlockSetting]
    """What that pass told each block."""

    first: int
    """The first block that runs."""

    last: int
    """The last block that runs."""

    def run(
        self, x: Float[Tensor, "batch pos d_model"], at: Mapping[str, Tap], start: int = 0
    ) -> Float[Tensor, "batch rows d_model"]:
        """The residual stream after the last block, at positions `start` and later.

        `x` is the stream before the first block, at the first positions of the prompt. `at[site]`
        is called as in `Model.forward`; in the last block it sees positions from `start` on, but
        keys, values and what comes before them are there for all positions.
        """
        for layer in range(self.first, self.last + 1):
            x = _block(self, layer, x, at, start=start if layer == self.last else 0)
        return x


def _block(
    span: Span,
    layer: int,
    x: Float[Tensor, "batch pos d_model"],
    at: Mapping[str, Tap],
    *,
    start: int,
) -> Float[Tensor, "batch rows d_model"]:
    """One block, its queries limited to positions `start` and later."""
    layout, adapter = span.layout, span.layout.adapter

    def visit(kind: str, value: Tensor) -> Tensor:
        tap = at.get(f"blocks.{layer}.{kind}")
        return value if tap is None else tap(value)

    def norm(name: str, path: str | None, value: Tensor) -> Tensor:
        if path is None:
            return value
        module = layout.part(layer, path)
        return visited_norm(module, value, adapter.gain_offset, _named(visit, name))

    x = visit("hook_resid_pre", x)
    z = _heads(span, layer, norm("ln1", adapter.ln1, x), visit, start=start)
    written = layout.part(layer, adapter.attention.output)(z.flatten(2))
    written = visit("hook_attn_out", norm("ln1_post", adapter.ln1_post, written))
    x = x[:, start:]
    mid = x if layout.parallel else visit("hook_resid_mid", x + written)
    hidden = visit("mlp.hook_in", norm("ln2", adapter.ln2, mid))
    out = norm("ln2_post", adapter.ln2_post, _mlp(layout, layer, hidden, visit))
    out = visit("hook_mlp_out", out)
    return visit("hook_resid_post", mid + out + written if layout.parallel else mid + out)


def _named(visit: Visit, name: str) -> Visit:
    """The visit function as a norm called `name` sees it."""
    return lambda kind, value: visit(f"{name}.{kind}", value)


def _heads(
    span: Span,
    layer: int,
    hidden: Float[Tensor, "batch pos d_model"],
    visit: Visit,
    *,
    start: int,
) -> Float[Tensor, "batch rows n_heads d_head"]:
    """Queries (from `start` on), keys and values of the normed stream, and their attention."""
    layout, paths = span.layout, span.layout.adapter.attention
    setting = span.settings[layer]
    n = hidden.shape[1]
    query, key, value = _project(layout, layer, hidden, start)
    if paths.rotary:
        query, key = visit("attn.hook_q", query), visit("attn.hook_k", key)
    parts = []
    for x, name, path, begin in (
        (query, "attn.q_norm", paths.q_norm, start),
        (key, "attn.k_norm", paths.k_norm, 0),
    ):
        if path is not None:
            module, offset = layout.part(layer, path), layout.adapter.gain_offset
            x = visited_norm(module, x, offset, _named(visit, name))
        if setting.rotation is not None:
            x = _rotate(x, *(angle[:, begin:n, None] for angle in setting.rotation))
        parts.append(x.transpose(1, 2))

    def unrotated(kind: str, v: Tensor) -> Tensor:
        return visit(kind if paths.rotary else kind.replace("hook_rot_", "hook_"), v)

    heads = (parts[0], parts[1], value.transpose(1, 2))
    return attend(heads, setting.prefix(slice(start, n), n), unrotated)


def _project(
    layout: Layout, layer: int, hidden: Float[Tensor, "batch pos d_model"], start: int
) -> list[Tensor]:
    """Query (from `start` on), key and value, each (batch, pos, heads, d_head)."""
    paths, config = layout.adapter.attention, layout.language_model.config
    if paths.fused is None:
        d_head = layout.part(layer, paths.module).head_dim
        inputs = (hidden[:, start:], hidden, hidden)
        return [
            layout.part(layer, path)(x).unflatten(-1, (-1, d_head))
            for path, x in zip((paths.query, paths.key, paths.value), inputs, strict=True)
            if path is not None
        ]
    fused = layout.part(layer, paths.fused)(hidden)
    n_heads = config.num_attention_heads
    if paths.fused_by_head:
        parts = list(fused.unflatten(-1, (n_heads, 3, -1)).unbind(-2))
    else:
        parts = list(fused.unflatten(-1, (3, n_heads, -1)).unbind(-3))
    return [parts[0][:, start:], *parts[1:]]


def _rotate(
    x: Float[Tensor, "batch pos heads d_head"],
    cos: Float[Tensor, "#batch pos 1 d_rotary"],
    sin: Float[Tensor, "#batch pos 1 d_rotary"],
) -> Float[Tensor, "batch pos heads d_head"]:
    """Rotary position encoding of the first d_rotary coordinates, halves paired."""
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, kept], -1)


def _mlp(
    layout: Layout, layer: int, hidden: Float[Tensor, "batch pos d_model"], visit: Visit
) -> Float[Tensor, "batch pos d_model"]:
    """The MLP, with the activation function's slope computed once for every gradient that
    follows."""
    paths = layout.adapter.mlp
    pre = visit("mlp.hook_pre", layout.part(layer, paths.pre)(hidden))
    post = _with_slope(layout.part(layer, paths.activation), pre)
    if paths.pre_linear is not None:
        linear = layout.part(layer, paths.pre_linear)(hidden)
        post = post * visit("mlp.hook_pre_linear", linear)
    return layout.part(layer, paths.down)(visit("mlp.hook_post", post))


def _with_slope(
    activation: Callable[[Tensor], Tensor], pre: Float[Tensor, "batch pos d_mlp"]
) -> Float[Tensor, "batch pos d_mlp"]:
    """activation(pre), whose first derivative is one product with a slope that is already there."""
    if not (torch.is_grad_enabled() and pre.requires_grad):
        return activation(pre)
    value, slope = value_and_slope(activation, pre)
    return value + slope * (pre - pre.detach())
