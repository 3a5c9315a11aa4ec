"""The supported model families. A new family is one table here and its place in the tests' list."""

from dataclasses import replace

from gossamer.errors import GossamerError
from gossamer.models.adapter import Adapter, AttentionPaths, MLPPaths

_GATED_MLP = MLPPaths(
    module="mlp",
    pre="mlp.gate_proj",
    activation="mlp.act_fn",
    pre_linear="mlp.up_proj",
    down="mlp.down_proj",
)

GPT2 = Adapter(
    model_types=("gpt2",),
    blocks="transformer.h",
    token_embedding="transformer.wte",
    position_embedding="transformer.wpe",
    ln_final="transformer.ln_f",
    norm="layer",
    ln1="ln_1",
    ln2="ln_2",
    attention=AttentionPaths(
        module="attn", fused="attn.c_attn", output="attn.c_proj", rotary=False
    ),
    mlp=MLPPaths(module="mlp", pre="mlp.c_fc", activation="mlp.act", down="mlp.c_proj"),
    bos="end_of_text",
)

GPT_NEOX = Adapter(
    model_types=("gpt_neox",),
    blocks="gpt_neox.layers",
    token_embedding="gpt_neox.embed_in",
    ln_final="gpt_neox.final_layer_norm",
    norm="layer",
    ln1="input_layernorm",
    ln2="post_attention_layernorm",
    attention=AttentionPaths(
        module="attention",
        fused="attention.query_key_value",
        fused_by_head=True,
        output="attention.dense",
        rotary=True,
    ),
    mlp=MLPPaths(
        module="mlp", pre="mlp.dense_h_to_4h", activation="mlp.act", down="mlp.dense_4h_to_h"
    ),
    parallel_flag="use_parallel_residual",
    bos="end_of_text",
)

LLAMA = Adapter(
    model_types=("llama", "mistral"),
    blocks="model.layers",
    token_embedding="model.embed_tokens",
    ln_final="model.norm",
    norm="rms",
    ln1="input_layernorm",
    ln2="post_attention_layernorm",
    attention=AttentionPaths(
        module="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.o_proj",
        rotary=True,
    ),
    mlp=_GATED_MLP,
    bos="tokenizer",
)

QWEN2 = Adapter(
    model_types=("qwen2",),
    blocks="model.layers",
    token_embedding="model.embed_tokens",
    ln_final="model.norm",
    norm="rms",
    ln1="input_layernorm",
    ln2="post_attention_layernorm",
    attention=LLAMA.attention,
    mlp=_GATED_MLP,
    bos="none",
)

_NORMED_ATTENTION = replace(LLAMA.attention, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")

QWEN3 = Adapter(
    model_types=("qwen3",),
    blocks="model.layers",
    token_embedding="model.embed_tokens",
    ln_final="model.norm",
    norm="rms",
    ln1="input_layernorm",
    ln2="post_attention_layernorm",
    attention=_NORMED_ATTENTION,
    mlp=_GATED_MLP,
    bos="none",
)

GEMMA2 = Adapter(
    model_types=("gemma2",),
    blocks="model.layers",
    token_embedding="model.embed_tokens",
    ln_final="model.norm",
    norm="rms",
    gain_offset=1.0,
    ln1="input_layernorm",
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
    attention=LLAMA.attention,
    mlp=_GATED_MLP,
    bos="tokenizer",
)

GEMMA3 = Adapter(
    model_types=("gemma3_text",),
    blocks="model.layers",
    token_embedding="model.embed_tokens",
    ln_final="model.norm",
    norm="rms",
    gain_offset=1.0,
    ln1="input_layernorm",
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
    attention=replace(_NORMED_ATTENTION, norms_heads_first=True),
    mlp=_GATED_MLP,
    bos="tokenizer",
)

FAMILIES = (GPT2, GPT_NEOX, LLAMA, QWEN2, QWEN3, GEMMA2, GEMMA3)
"""Every supported family."""


def adapter_for(model_type: str) -> Adapter:
    """The table for `config.model_type`; an error that names the supported ones otherwise."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    supported = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise GossamerError(
        f'Models of type "{model_type}" are not supported. Supported model types: {supported}.'
    )
