"""The oracle of law 1: every supported family written out again in plain torch, one prompt at once.

    resid_mid = resid_pre + attn_out;   resid_post = resid_mid + mlp_out
    (parallel: attention and MLP both read resid_pre, and resid_post is the sum of all three)

It shares nothing with the package but the names of sites: weights come from the Hugging Face
modules, formulas from the papers. `plain_run(model, ids, replace)` returns the value at every site;
where `replace` names a site, its function is applied and the run goes on with the result, so that
an edit, a constant and a leaf for autograd are all written the same way. All of it can be traced by
torch.func.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

Replace = Mapping[str, Callable[[Tensor], Tensor]]

NORM_NAMES = {
    "gpt2": ("ln_1", None, "ln_2", None),
    "gpt_neox": ("input_layernorm", None, "post_attention_layernorm", None),
    "gemma": (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    "llama": ("input_layernorm", None, "post_attention_layernorm", None),
}
"""Submodules of a block: before attention, after it, before the MLP, after it."""


def kind_of(model: nn.Module) -> str:
    """gpt2, gpt_neox, gemma, or llama for Llama, Mistral and Qwen, which differ in small things."""
    name = model.config.model_type
    if name in ("gpt2", "gpt_neox"):
        return name
    return "gemma" if name.startswith("gemma") else "llama"


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The blocks of a Hugging Face model."""
    kind = kind_of(model)
    if kind == "gpt2":
        return model.transformer.h
    return model.gpt_neox.layers if kind == "gpt_neox" else model.model.layers


@dataclass
class _Run:
    """One prompt on its way through the model."""

    model: nn.Module
    replace: Replace
    values: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, site: str, value: Tensor) -> Tensor:
        if site in self.replace:
            value = self.replace[site](value)
        self.values[site] = value
        return value


def plain_run(
    model: nn.Module, ids: Sequence[int], replace: Replace | None = None
) -> dict[str, Tensor]:
    """The value at every site, without a batch axis; patterns and scores: (n_heads, pos, key)."""
    visit = _Run(model, replace or {})
    x = _embedded(visit, torch.tensor(list(ids)))
    for layer in range(len(blocks_of(model))):
        x = _block(visit, layer, x)
    kind = kind_of(model)
    final = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(
        kind, "model.norm"
    )
    x = _norm(visit, "ln_final", model.get_submodule(final), x)
    logits = x @ model.get_output_embeddings().weight.T
    cap = getattr(model.config, "final_logit_softcapping", None)
    visit("logits", logits if cap is None else cap * torch.tanh(logits / cap))
    return visit.values


def plain_sites(model: nn.Module, layers: Sequence[int]) -> list[str]:
    """Every site of the oracle in these blocks and outside the blocks."""
    known = plain_run(model, [1, 2])
    inside = tuple(f"blocks.{layer}." for layer in layers)
    return [site for site in known if site.startswith(inside) or not site.startswith("blocks.")]


def _embedded(visit: _Run, ids: Tensor) -> Tensor:
    model = visit.model
    tokens = model.get_input_embeddings().weight[ids]
    if kind_of(model) == "gpt2":
        positions = visit("hook_pos_embed", model.transformer.wpe.weight[: len(ids)])
        return visit("hook_embed", tokens) + positions
    scale = math.sqrt(model.config.hidden_size) if kind_of(model) == "gemma" else 1.0
    return visit("hook_embed", tokens * scale)


def _block(visit: _Run, layer: int, x: Tensor) -> Tensor:
    model, at = visit.model, f"blocks.{layer}."
    block = blocks_of(model)[layer]
    ln1, ln1_post, ln2, ln2_post = NORM_NAMES[kind_of(model)]
    x = visit(at + "hook_resid_pre", x)
    parallel = getattr(model.config, "use_parallel_residual", False)
    out = _attention(visit, layer, _norm(visit, at + "ln1", block.get_submodule(ln1), x))
    if ln1_post:
        out = _norm(
            visit, at + "ln1_post", block.get_submodule(ln1_post), out, sites=("hook_scale",)
        )
    out = visit(at + "hook_attn_out", out)
    mid = x if parallel else visit(at + "hook_resid_mid", x + out)
    written = _mlp(visit, layer, _norm(visit, at + "ln2", block.get_submodule(ln2), mid))
    if ln2_post:
        written = _norm(
            visit, at + "ln2_post", block.get_submodule(ln2_post), written, sites=("hook_scale",)
        )
    written = visit(at + "hook_mlp_out", written)
    return visit(at + "hook_resid_post", mid + written + (out if parallel else 0))


def _norm(
    visit: _Run,
    name: str,
    module: nn.Module,
    x: Tensor,
    sites: Sequence[str] = ("hook_scale", "hook_normalized"),
) -> Tensor:
    config = visit.model.config
    eps = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}.get(
        kind_of(visit.model), "rms_norm_eps"
    )
    gain = module.weight + (1.0 if kind_of(visit.model) == "gemma" else 0.0)
    if kind_of(visit.model) in ("gpt2", "gpt_neox"):
        x = x - x.mean(-1, keepdim=True)
    scale = (x.square().mean(-1, keepdim=True) + getattr(config, eps)).sqrt()
    if "hook_scale" in sites:
        scale = visit(f"{name}.hook_scale", scale)
    x = x / scale
    if "hook_normalized" in sites:
        x = visit(f"{name}.hook_normalized", x)
    return x * gain + (module.bias if hasattr(module, "bias") else 0)


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    """A Linear, or GPT-2's Conv1D, whose weight is the other way round."""
    weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
    return x @ weight + (0 if module.bias is None else module.bias)


def _query_key_value(model: nn.Module, layer: int, x: Tensor) -> list[Tensor]:
    """(pos, heads, d_head) each."""
    block, n_heads = blocks_of(model)[layer], model.config.num_attention_heads
    if kind_of(model) == "gpt2":
        parts = _linear(block.attn.c_attn, x).split(x.shape[-1], -1)
        return [rearrange(part, "pos (heads d) -> pos heads d", heads=n_heads) for part in parts]
    if kind_of(model) == "gpt_neox":
        fused = _linear(block.attention.query_key_value, x)
        return list(
            rearrange(fused, "pos (heads three d) -> three pos heads d", heads=n_heads, three=3)
        )
    attention = block.self_attn
    n_kv = model.config.num_key_value_heads
    return [
        rearrange(_linear(module, x), "pos (heads d) -> pos heads d", heads=heads)
        for module, heads in (
            (attention.q_proj, n_heads),
            (attention.k_proj, n_kv),
            (attention.v_proj, n_kv),
        )
    ]


def _rotated(model: nn.Module, layer: int, x: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864) on the first `width` of each head, halves paired."""
    slides = _window(model, layer) is not None
    theta = 1e6 if model.config.model_type == "gemma3_text" and not slides else 1e4
    width = x.shape[-1] // 2 if kind_of(model) == "gpt_neox" else x.shape[-1]
    # In float32, as the model has it: the angles are constants, not part of what is compared.
    frequencies = 1.0 / (theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    angles = torch.outer(torch.arange(len(x), dtype=torch.float32), frequencies)
    cos, sin = (f(angles).to(x.dtype)[:, None, :] for f in (torch.cos, torch.sin))
    first, second, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def _window(model: nn.Module, layer: int) -> int | None:
    """How many keys a query of this block sees, itself included; None for all before it."""
    config: Any = model.config
    if config.model_type == "mistral":
        return config.sliding_window
    if kind_of(model) == "gemma" and config.layer_types[layer] == "sliding_attention":
        return config.sliding_window
    return None


def allowed(model: nn.Module, layer: int, n: int) -> Tensor:
    """(pos, key): which key each query may see."""
    distance = torch.arange(n)[:, None] - torch.arange(n)
    window = _window(model, layer)
    return (distance >= 0) & (distance < (n if window is None else window))


def _scaling(model: nn.Module, layer: int, d_head: int) -> float:
    config = model.config
    if kind_of(model) == "gemma":
        return config.query_pre_attn_scalar**-0.5
    by_layer = getattr(config, "scale_attn_by_inverse_layer_idx", False)
    return d_head**-0.5 / (layer + 1 if by_layer else 1)


def _attention(visit: _Run, layer: int, x: Tensor) -> Tensor:
    model, at = visit.model, f"blocks.{layer}.attn."
    block = blocks_of(model)[layer]
    query, key, value = _query_key_value(model, layer, x)
    query, key = visit(at + "hook_q", query), visit(at + "hook_k", key)
    if model.config.model_type in ("qwen3", "gemma3_text"):
        query = _norm(visit, at + "q_norm", block.self_attn.q_norm, query, sites=("hook_scale",))
        key = _norm(visit, at + "k_norm", block.self_attn.k_norm, key, sites=("hook_scale",))
    if kind_of(model) != "gpt2":
        query = visit(at + "hook_rot_q", _rotated(model, layer, query))
        key = visit(at + "hook_rot_k", _rotated(model, layer, key))
    value = visit(at + "hook_v", value)
    group = query.shape[1] // key.shape[1]
    key, value = (repeat(y, "pos kv d -> pos (kv group) d", group=group) for y in (key, value))
    scores = einsum(query, key, "pos head d, key head d -> head pos key")
    scores = scores * _scaling(model, layer, query.shape[-1])
    cap = getattr(model.config, "attn_logit_softcapping", None)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = torch.where(allowed(model, layer, len(x)), scores, -torch.inf)
    pattern = visit(at + "hook_pattern", visit(at + "hook_attn_scores", scores).softmax(-1))
    z = visit(at + "hook_z", einsum(pattern, value, "head pos key, key head d -> pos head d"))
    out = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}.get(
        kind_of(model), "self_attn.o_proj"
    )
    return _linear(block.get_submodule(out), z.flatten(1))


def _mlp(visit: _Run, layer: int, x: Tensor) -> Tensor:
    at, kind, mlp = f"blocks.{layer}.mlp.", kind_of(visit.model), blocks_of(visit.model)[layer].mlp
    x = visit(at + "hook_in", x)
    up, down = {"gpt2": ("c_fc", "c_proj"), "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h")}.get(
        kind, ("gate_proj", "down_proj")
    )
    pre = visit(at + "hook_pre", _linear(mlp.get_submodule(up), x))
    if kind == "gpt_neox":
        post = F.gelu(pre)
    elif kind == "llama":
        post = F.silu(pre)
    else:
        post = F.gelu(pre, approximate="tanh")
    if kind in ("llama", "gemma"):
        post = post * visit(at + "hook_pre_linear", _linear(mlp.up_proj, x))
    return _linear(mlp.get_submodule(down), visit(at + "hook_post", post))
