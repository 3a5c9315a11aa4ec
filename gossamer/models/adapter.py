"""The table that says how one model family exposes its sites: which submodule, which side.

All families share one order of computation, with the parts in brackets where a family has them:

    resid_pre → ln1 → q, k, v [→ q_norm, k_norm] [→ rotary] → scores → pattern → z
              → output projection [→ ln1_post] → attn_out
    resid_mid = resid_pre + attn_out
              → ln2 → mlp.hook_in → pre [, pre_linear] → post → down projection
              [→ ln2_post] → mlp_out
    resid_post = resid_mid + mlp_out

Parallel blocks have no resid_mid: ln2 reads resid_pre, resid_post = resid_pre + attn_out + mlp_out.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPaths:
    """Submodules of one block's attention, as paths from the block."""

    module: str
    """The attention module; its output, or the first item of it, is added to the residual
    stream."""

    query: str | None = None
    """Query projection, heads side by side; None where query, key and value share one."""

    key: str | None = None
    """Key projection, likewise."""

    value: str | None = None
    """Value projection, likewise."""

    fused: str | None = None
    """The shared projection where there is one."""

    fused_by_head: bool = False
    """Whether the shared projection is laid out head by head as (query, key, value), GPT-NeoX's
    way, or as all queries, all keys, all values, GPT-2's way."""

    output: str
    """Output projection, from heads side by side to the residual stream's width."""

    rotary: bool
    """Whether queries and keys are rotated by position before they meet."""

    q_norm: str | None = None
    """Norm over each head's query."""

    k_norm: str | None = None
    """Norm over each head's key."""

    norms_heads_first: bool = False
    """Whether those norms are given (batch, heads, pos, d_head) instead of (batch, pos, heads,
    d_head)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPPaths:
    """Submodules of one block's MLP, as paths from the block."""

    module: str
    """The MLP module."""

    pre: str
    """The projection whose output goes through the activation function (the gate, in a gated
    MLP)."""

    pre_linear: str | None = None
    """The projection that multiplies the activation in a gated MLP."""

    activation: str
    """The activation function."""

    down: str
    """The projection back to the residual stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One family. Paths at the top start from the causal language model, the others from a
    block."""

    model_types: tuple[str, ...]
    """Values of `config.model_type` this table is for."""

    blocks: str
    """The list of blocks."""

    token_embedding: str
    """The token embedding table."""

    position_embedding: str | None = None
    """The learned position embedding; None for rotary families."""

    ln_final: str
    """The norm after the last block."""

    norm: Literal["layer", "rms"]
    """LayerNorm (centres and scales) or RMSNorm (scales)."""

    gain_offset: float = 0.0
    """Added to the stored gain of every norm: 1 in Gemma."""

    ln1: str
    """The norm before attention."""

    ln1_post: str | None = None
    """The norm after attention, before the residual stream."""

    ln2: str
    """The norm before the MLP."""

    ln2_post: str | None = None
    """The norm after the MLP, before the residual stream."""

    attention: AttentionPaths
    """The attention's submodules."""

    mlp: MLPPaths
    """The MLP's submodules."""

    parallel_flag: str | None = None
    """Name of the config entry that makes attention and MLP read the same residual stream."""

    bos: Literal["end_of_text", "tokenizer", "none"]
    """What is put before a text: `<|endoftext|>`, what the tokenizer itself adds, or nothing."""
