"""The contents of a SAELens directory: files, architectures, and sites that centring changes."""

from pathlib import Path
from typing import Any, NamedTuple

CONFIG_FILE = "cfg.json"
"""What the SAE is."""

WEIGHTS_FILE = "sae_weights.safetensors"
"""Its tensors."""

SCALER_FILE = "activation_scaler.json"
"""Beside the checkpoints of a run that normalised its inputs by one number."""


class Architecture(NamedTuple):
    """What one SAELens architecture is made of."""

    selection: str
    """Name of our selection."""

    transcoder: bool
    """Whether it writes another site than it reads."""

    skip: bool
    """Whether it has W_skip."""


ARCHITECTURES = {
    "standard": Architecture("relu", transcoder=False, skip=False),
    "topk": Architecture("topk", transcoder=False, skip=False),
    "jumprelu": Architecture("jumprelu", transcoder=False, skip=False),
    "gated": Architecture("gated", transcoder=False, skip=False),
    "transcoder": Architecture("relu", transcoder=True, skip=False),
    "skip_transcoder": Architecture("relu", transcoder=True, skip=True),
    "jumprelu_transcoder": Architecture("jumprelu", transcoder=True, skip=False),
    "jumprelu_skip_transcoder": Architecture("jumprelu", transcoder=True, skip=True),
}
"""The architectures that are read and written, by SAELens' names."""

NORMALIZATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "rescale"}
"""Our normalization for each `normalize_activations` that is computed token by token."""

CENTRED_KINDS = (
    "hook_embed",
    "hook_pos_embed",
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
)
"""Sites whose activations lose their mean when TransformerLens centres the writing weights."""

RMS_NORM_FAMILIES = ("gemma", "llama", "mistral", "mixtral", "qwen", "phi-3", "olmo-2")
"""Words in the names of models that TransformerLens never centres, as their norms are RMSNorms."""

OWN_FIELDS = frozenset(
    "architecture d_in d_out d_sae dtype device apply_b_dec_to_input normalize_activations "
    "reshape_activations k rescale_acts_by_decoder_norm finetuning_scaling_factor activation_fn "
    "activation_fn_kwargs hook_name hook_name_out hook_head_index model_name prepend_bos".split()
)
"""Settings that an SAE of ours has a field for, or that say how the file is laid out."""


def is_sae_lens(directory: str | Path) -> bool:
    """Whether a directory is laid out as one SAELens SAE."""
    return (Path(directory) / CONFIG_FILE).is_file() and (Path(directory) / WEIGHTS_FILE).is_file()


def is_centred(config: dict[str, Any], site: str) -> bool:
    """Whether SAELens would run this SAE on a model whose activations at `site` have no mean."""
    arguments = config.get("model_from_pretrained_kwargs") or {}
    name = str(config.get("model_name")).lower()
    return (
        bool(arguments.get("center_writing_weights"))
        and site.rpartition(".")[2] in CENTRED_KINDS
        and not any(family in name for family in RMS_NORM_FAMILIES)
    )


def unlike_ours(config: dict[str, Any], site: str) -> str | None:
    """What an SAE saw at `site` if that is not what a plain model has there, and what to do."""
    arguments = config.get("model_from_pretrained_kwargs") or {}
    name = str(config.get("model_name")).lower()
    if arguments.get("fold_ln") and site.endswith("mlp.hook_in"):
        normalized = site.replace("mlp.hook_in", "ln2.hook_normalized")
        return (
            f"was trained with fold_ln, where {site} comes before the norm's gain and bias: "
            f'name that place with site="{normalized}", or ("{normalized}", site_out)'
        )
    has_value_biases = "qwen2" in name or not any(family in name for family in RMS_NORM_FAMILIES)
    if (
        arguments.get("fold_value_biases")
        and site.endswith(("attn.hook_z", "attn.hook_v"))
        and has_value_biases
    ):
        return (
            f"was trained with fold_value_biases, where {site} lacks the value biases b_V (with "
            "fold_ln, b_V + b_ln1 @ W_V): add them to b_dec, take b_V @ W_enc off b_enc unless "
            "apply_b_dec_to_input is true, and set fold_value_biases to false"
        )
    return None
