"""Attention with every intermediate value visible, for all families, registered with transformers.

    scores = softcap(q·k · scaling) where the mask allows, −inf elsewhere
    pattern = softmax(scores);   z = pattern · v

transformers calls whatever function its `AttentionInterface` holds under the name in the model's
config, and `AttentionMaskInterface` must hold a mask function under the same name: without it
transformers 5 passes no mask and causality is lost silently.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from gossamer.models.norms import at_least_float32

NAME = "gossamer"
"""The name under which transformers knows this attention."""

KEYWORD = "gossamer_visit"
"""Keyword argument that carries a run's visit function through a model's attention module."""

NOTE_KEYWORD = "gossamer_note"
"""Keyword argument that carries a function to be told how this attention call is set up."""


class Setting(NamedTuple):
    """How one block's attention was called: all it needs beside queries, keys and values."""

    allowed: Bool[Tensor, "batch 1 pos key"]
    """True where a query may attend."""

    scaling: float
    """Factor on the scores."""

    softcap: float | None
    """Scores are bent into ± this, where the family does that."""


Visit = Callable[[str, Tensor], Tensor]
"""Called with a kind of site and the value there; returns the value to go on with."""


def register_attention() -> None:
    """Make transformers know this attention and its mask. Harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, visited_attention)
    AttentionMaskInterface.register(NAME, boolean_mask)


def boolean_mask(*args: object, **kwargs: object) -> Bool[Tensor, "batch 1 pos key"]:
    """transformers' own mask, True where attention is allowed, never left out."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **{**kwargs, "allow_is_causal_skip": False})


def visited_attention(  # noqa: PLR0917  transformers fixes the order of its arguments
    module: Any,  # a family's attention module
    query: Float[Tensor, "batch n_heads pos d_head"],
    key: Float[Tensor, "batch n_kv_heads key d_head"],
    value: Float[Tensor, "batch n_kv_heads key d_head"],
    attention_mask: Bool[Tensor, "batch 1 pos key"],
    **options: Any,
) -> tuple[Float[Tensor, "batch pos n_heads d_head"], None]:
    """The function transformers calls in place of its own attention."""
    scaling = _scaling(module, query.shape[-1], options.get("scaling"))
    softcap = options.get("softcap")
    visit = options.get(KEYWORD)
    note = options.get(NOTE_KEYWORD)
    # A padding query sees nothing; letting it see itself keeps its row finite and touches no other
    # row.
    allowed = attention_mask | torch.eye(
        query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device
    )
    setting = Setting(allowed, scaling, softcap)
    if note is not None:
        note(setting)
    if visit is None and softcap is None and not torch.is_grad_enabled():
        z = F.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, scale=scaling, enable_gqa=True
        )
        return z.transpose(1, 2), None
    return attend((query, key, value), setting, visit or leave), None


def attend(
    heads: tuple[
        Float[Tensor, "batch n_heads pos d_head"],
        Float[Tensor, "batch n_kv_heads key d_head"],
        Float[Tensor, "batch n_kv_heads key d_head"],
    ],
    setting: Setting,
    visit: Visit,
) -> Float[Tensor, "batch pos n_heads d_head"]:
    """Attention of (query, key, value) step by step. Heads that share keys are grouped, not
    copied."""
    query, key, value = (
        visit(kind, x.transpose(1, 2)).transpose(1, 2)
        for kind, x in zip(
            ("attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_v"), heads, strict=True
        )
    )
    n_kv_heads = key.shape[1]
    grouped = rearrange(query, "batch (kv group) pos d -> batch kv group pos d", kv=n_kv_heads)
    scores = einsum(grouped, key, "batch kv group pos d, batch kv key d -> batch kv group pos key")
    scores = rearrange(scores, "batch kv group pos key -> batch (kv group) pos key")
    scores = scores * setting.scaling
    if setting.softcap is not None:
        scores = torch.tanh(scores / setting.softcap) * setting.softcap
    scores = visit("attn.hook_attn_scores", scores.masked_fill(~setting.allowed, -torch.inf))
    scores = scores.masked_fill(~setting.allowed, -torch.inf)  # no edit lets a query see ahead
    pattern = at_least_float32(scores).softmax(-1).to(query.dtype)
    pattern = visit("attn.hook_pattern", pattern)
    grouped = rearrange(
        pattern, "batch (kv group) pos key -> batch kv group pos key", kv=n_kv_heads
    )
    z = einsum(grouped, value, "batch kv group pos key, batch kv key d -> batch pos kv group d")
    return visit("attn.hook_z", rearrange(z, "batch pos kv group d -> batch pos (kv group) d"))


def leave(kind: str, value: Tensor) -> Tensor:
    """The visit function that changes nothing."""
    return value


def _scaling(module: Any, d_head: int, given: float | None) -> float:
    """The factor on the scores. GPT-2 in transformers 4 keeps it in flags instead of passing it."""
    if given is not None:
        return given
    scaling = d_head**-0.5 if getattr(module, "scale_attn_weights", True) else 1.0
    if getattr(module, "scale_attn_by_inverse_layer_idx", False):
        scaling /= float(module.layer_idx + 1)
    return scaling
