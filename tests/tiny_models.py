"""Tiny random models of every supported family, from transformers' own config and model classes."""

import functools

import torch
import transformers
from transformers import PreTrainedModel

from gossamer.models.model import Model

COMMON = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
GATED = {
    **COMMON,
    "intermediate_size": 24,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "pad_token_id": 0,
}

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=37, n_embd=16, n_layer=3, n_head=4, n_positions=32, initializer_range=0.2
    ),
    "gpt2_inverse_layer": lambda: transformers.GPT2Config(
        vocab_size=37,
        n_embd=16,
        n_layer=3,
        n_head=4,
        n_positions=32,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON, intermediate_size=24, rotary_pct=0.5),
    "gpt_neox_sequential": lambda: transformers.GPTNeoXConfig(
        **COMMON, intermediate_size=24, use_parallel_residual=False
    ),
    "llama": lambda: transformers.LlamaConfig(**GATED),
    "mistral": lambda: transformers.MistralConfig(**GATED, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(
        **{k: v for k, v in GATED.items() if k != "head_dim"}
    ),
    "qwen3": lambda: transformers.Qwen3Config(**GATED),
    "gemma2": lambda: transformers.Gemma2Config(
        **GATED,
        query_pre_attn_scalar=9,
        sliding_window=4,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **GATED,
        query_pre_attn_scalar=9,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
"""One entry per family, and the odd members of a family."""

FAMILIES = tuple(CONFIGS)


def tiny_language_model(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model with every gain, bias and embedding away from its trivial initial value."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = parameter.ndim == 1 and "bias" not in name
            parameter.add_((0.3 if is_gain else 0.15) * noise.to(dtype))
    return model


@functools.cache
def tiny_model(family: str, dtype: torch.dtype = torch.float64) -> Model:
    """The same, with its sites; shared between tests, which leave it as it is."""
    return Model(tiny_language_model(family, dtype))
