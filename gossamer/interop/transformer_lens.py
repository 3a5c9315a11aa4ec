"""TransformerLens' own GPT-2-like models (gelu-1l and the like) as Hugging Face GPT-2 models.

A directory holds config.json, the settings of a HookedTransformer, and its state dict as one
.safetensors, .pt or .pth file. The model here has the same logits: weights are laid out anew, and

    norms without gain and bias (LNPre, or folded)     gain 1, bias 0
    b_U, which GPT-2 has no place for                  see below

The last norm gives gain * n + bias, where n has no mean: what W_U has along the mean is free. With
its gain folded into W_U, the norm's bias as 1/d, and a row m added to each row of W_U,

    (n + 1/d) (gain W_U + 1 m) = n (gain W_U) + mean(gain W_U) + m

which is right for m = bias W_U + b_U - mean(gain W_U). Weights that were centred or folded stay so:
sites are those of the weights as they are.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.interop.pickles import read_pickle
from gossamer.saes.native import read_json, read_tensors

CONFIG_FILE = "config.json"

ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "relu", "silu")
"""Activations that mean the same in both libraries."""

_PASSED_OVER = (".attn.mask", ".attn.IGNORE")


def read_transformer_lens(directory: str | Path) -> Any:
    """A transformers GPT2LMHeadModel with the logits of the model in a directory.

    FormatError when a setting is one that GPT-2 has not (attention-only models and those with other
    position embeddings among them), or when the files are damaged.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    directory = Path(directory)
    config = read_json(directory / CONFIG_FILE)
    _check(config, directory)
    state = _state(directory)
    file = directory / CONFIG_FILE
    settings = GPT2Config(
        vocab_size=_matrix(state, "embed.W_E").shape[0],
        n_positions=_matrix(state, "pos_embed.W_pos").shape[0],
        n_embd=_matrix(state, "embed.W_E").shape[1],
        n_layer=_number(config, "n_layers", file),
        n_head=_number(config, "n_heads", file),
        n_inner=_matrix(state, "blocks.0.mlp.W_in").shape[1],
        activation_function=config["act_fn"],
        layer_norm_epsilon=float(config.get("eps", 1e-5)),
        scale_attn_weights=bool(config.get("use_attn_scale", True)),
        scale_attn_by_inverse_layer_idx=bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    weights = _weights(state, settings.n_layer, directory)
    model: Any = GPT2LMHeadModel(settings)
    model = model.to(weights["lm_head.weight"].dtype)
    try:
        report = model.load_state_dict(weights, strict=False)
    except RuntimeError as problem:
        first = str(problem).strip().splitlines()[-1].strip()
        raise FormatError(
            f"The weights in {directory} do not fit its settings: {first}"
        ) from problem
    missing = [name for name in report.missing_keys if not name.endswith(("bias", "masked_bias"))]
    if missing or report.unexpected_keys:
        raise FormatError(
            f"The weights in {directory} lack {', '.join(missing) or 'nothing'} and have too many: "
            f"{', '.join(report.unexpected_keys) or 'none'}; copy or download them again."
        )
    return model.eval()


def _check(config: dict[str, Any], directory: Path) -> None:
    """FormatError for what a GPT-2 model does not do."""
    width = config.get("d_model")
    heads = (config.get("n_heads") or 0, config.get("d_head") or 0)
    scale = config.get("attn_scale", -1.0)
    scales = (-1.0, float(heads[1]) ** 0.5)
    not_ours = ("parallel_attn_mlp", "gated_mlp", "use_local_attn", "n_key_value_heads")
    not_ours += ("use_hook_mlp_in_only", "output_logits_soft_cap", "attn_scores_soft_cap")
    set_ones = [n for n in not_ours if config.get(n) not in (None, False, 0, -1, -1.0, heads[0])]
    reason = None
    if config.get("attn_only"):
        reason = "attention-only models have no MLPs, and a GPT-2 model has"
    elif config.get("act_fn") not in ACTIVATIONS:
        reason = f'the activation "{config.get("act_fn")}"; read are {", ".join(ACTIVATIONS)}'
    elif config.get("normalization_type", "LN") not in ("LN", "LNPre"):
        reason = f"normalization_type {config.get('normalization_type')}; LN and LNPre are read"
    elif config.get("positional_embedding_type", "standard") != "standard":
        reason = (
            f"{config['positional_embedding_type']} position embeddings; standard ones are read"
        )
    elif config.get("attention_dir", "causal") != "causal":
        reason = "attention in both directions"
    elif heads[0] * heads[1] != width:
        reason = f"{heads[0]} heads of {heads[1]}, which do not make up d_model={width}"
    elif not any(abs(float(scale) - known) < 1e-4 for known in scales):
        reason = f"attn_scale={scale}, which is not the root of d_head"
    elif set_ones:
        reason = f"{set_ones[0]}={config[set_ones[0]]}"
    if reason is not None:
        raise FormatError(f"{directory} cannot become a GPT-2 model: {reason}.")


def _number(config: dict[str, Any], name: str, file: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise FormatError(f"{file} needs {name} as a whole number from 1 on, got {value!r}.")
    return value


def _state(directory: Path) -> dict[str, Tensor]:
    """The one state dict of a directory, buffers that are no weights left out."""
    found = sorted(f for f in directory.iterdir() if f.suffix in (".safetensors", ".pt", ".pth"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FormatError(
            f"{directory} needs one file of weights (.safetensors, .pt or .pth), got {names}."
        )
    file = found[0]
    contents = read_tensors(file)[0] if file.suffix == ".safetensors" else read_pickle(file)
    kept = {name: tensor for name, tensor in contents.items() if not name.endswith(_PASSED_OVER)}
    wrong = [name for name, tensor in kept.items() if not isinstance(tensor, Tensor)]
    needed = ("embed.W_E", "pos_embed.W_pos", "blocks.0.mlp.W_in", "unembed.W_U")
    missing = [name for name in needed if name not in kept]
    if wrong or missing:
        raise FormatError(
            f"{file} is no state dict of a HookedTransformer: missing are "
            f"{', '.join(missing) or 'none'}, no tensors are {', '.join(wrong[:3]) or 'none'}."
        )
    return kept


def _matrix(state: dict[str, Tensor], name: str) -> Tensor:
    if state[name].ndim != 2:
        raise FormatError(f"{name} has shape {tuple(state[name].shape)} and should be a matrix.")
    return state[name]


def _weights(state: dict[str, Tensor], n_layers: int, directory: Path) -> dict[str, Tensor]:
    """The tensors by GPT-2's names, (in, out) within the blocks as there."""
    left = dict(state)

    def take(name: str) -> Tensor:
        if name not in left:
            raise FormatError(
                f"The weights in {directory} lack {name}; copy or download them again."
            )
        return left.pop(name)

    embedding = take("embed.W_E")
    found = {"transformer.wte.weight": embedding, "transformer.wpe.weight": take("pos_embed.W_pos")}

    def norm(theirs: str, ours: str) -> None:
        gain = embedding.new_ones(embedding.shape[1])
        found[f"{ours}.weight"] = left.pop(f"{theirs}.w", gain)
        found[f"{ours}.bias"] = left.pop(f"{theirs}.b", torch.zeros_like(gain))

    for layer in range(n_layers):
        block, ours = f"blocks.{layer}", f"transformer.h.{layer}"
        norm(f"{block}.ln1", f"{ours}.ln_1")
        norm(f"{block}.ln2", f"{ours}.ln_2")
        rows = [take(f"{block}.attn.W_{x}").permute(1, 0, 2).flatten(1) for x in "QKV"]
        biases = [take(f"{block}.attn.b_{x}").flatten() for x in "QKV"]
        found[f"{ours}.attn.c_attn.weight"] = torch.cat(rows, 1)  # (d_model, 3 * d_model)
        found[f"{ours}.attn.c_attn.bias"] = torch.cat(biases)
        found[f"{ours}.attn.c_proj.weight"] = take(f"{block}.attn.W_O").flatten(0, 1)
        found[f"{ours}.attn.c_proj.bias"] = take(f"{block}.attn.b_O")
        for end, name in (("in", "c_fc"), ("out", "c_proj")):
            found[f"{ours}.mlp.{name}.weight"] = take(f"{block}.mlp.W_{end}")
            found[f"{ours}.mlp.{name}.bias"] = take(f"{block}.mlp.b_{end}")
    norm("ln_final", "transformer.ln_f")
    W_U = take("unembed.W_U")
    b_U = left.pop("unembed.b_U", None)
    last = ("transformer.ln_f.weight", "transformer.ln_f.bias")
    if b_U is not None and b_U.any():
        W_U, *ends = _without_bias(W_U, b_U, *(found[name] for name in last))
        found |= dict(zip(last, ends, strict=True))
    found["lm_head.weight"] = W_U.T.contiguous()
    if left:
        raise FormatError(
            f"The weights in {directory} have {', '.join(sorted(left)[:4])}, which a GPT-2 model "
            "has no place for."
        )
    return found


def _without_bias(
    W_U: Float[Tensor, "d_model d_vocab"],
    b_U: Float[Tensor, " d_vocab"],
    gain: Float[Tensor, " d_model"],
    bias: Float[Tensor, " d_model"],
) -> tuple[Float[Tensor, "d_model d_vocab"], Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """Unembedding, gain and bias with the same logits and no b_U (see the module's equation)."""
    folded = gain.double()[:, None] * W_U.double()
    row = bias.double() @ W_U.double() + b_U.double() - folded.mean(0)
    return (folded + row).to(W_U.dtype), torch.ones_like(gain), torch.full_like(bias, 1 / len(bias))
