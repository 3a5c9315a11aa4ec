"""Llama Scope: hyperparams.json and checkpoints/final.safetensors for each SAE or transcoder.

    fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L14R-8x/

It was trained on inputs times s_in and outputs times s_out, s = sqrt(width) / (mean norm over the
data set). In float64, as the authors load it:

    1   b_enc / s_in    b_dec / s_out    W_dec * s_in / s_out        W_enc as stored
    2   W_enc, b_enc times, and W_dec divided by, the norms of that W_dec
    3   latents = p (p > jump_relu_threshold), the threshold as stored

Step 2 holds where `sparsity_include_decoder_norm` is true. The threshold is thus in units of what
is folded and unscaled. Published in arXiv 2410.20526, with TransformerLens' names of sites.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.interop.room import (
    OWN,
    Room,
    Sites,
    facts_of,
    own_facts,
    tensor_shapes,
    with_sites,
)
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import load_labels, save_labels
from gossamer.saes.native import (
    make_directory,
    read_json,
    read_tensors,
    write_tensors,
    write_text,
)
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK

NAME = "llama-scope"
CONFIG_FILE = "hyperparams.json"
WEIGHTS_FILE = "checkpoints/final.safetensors"

ROOM = Room(label="Llama Scope", selections=("relu", "topk", "jumprelu"), subtracts=True)

_KEYS: tuple[str, ...] = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_UNIT = 1e-6
"""Decoder norms this near to 1 are 1: a fold would only move the last digit."""


def is_here(path: str | Path) -> bool:
    """Whether a directory is laid out as one of these."""
    directory = Path(path)
    return (directory / CONFIG_FILE).is_file() and {*_KEYS[::2]} <= tensor_shapes(
        directory / WEIGHTS_FILE
    ).keys()


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The one SAE, its latents and outputs those of the authors' own loading. FormatError for what
    they describe and an SAE of ours does not do, and for damaged files."""
    directory = Path(path)
    config = read_json(directory / CONFIG_FILE)
    _check(config, directory)
    facts = own_facts(config) or {
        "site_in": config.get("hook_point_in"),
        "site_out": config.get("hook_point_out") or config.get("hook_point_in"),
        "model_name": "meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in str(path) else None,
        "prepend_bos": True,
        "metadata": {"folder": directory.name},
    }
    transcoder = facts["site_in"] != facts["site_out"]
    facts = with_sites(facts, site, transcoder=transcoder, where=directory / CONFIG_FILE)
    stored = _stored(directory / WEIGHTS_FILE, config)
    tensors = _folded(stored, config, directory)
    wanted = stored["W_enc"].dtype
    tensors = {name: tensor.to(wanted) for name, tensor in tensors.items()}
    sae = whole_sae(
        directory,
        **tensors,
        selection=_selection(config, tensors["W_enc"]),
        subtract_b_dec=bool(config.get("apply_decoder_bias_to_pre_encoder")),
        labels=load_labels(directory),
        **facts,
    )
    return [sae]


def write(sae: SAE, directory: str | Path) -> None:
    """Write a directory of this layout, s_in and s_out being 1. FormatError, before anything is
    written, for thresholds that differ between latents and all else that it has no room for."""
    ROOM.check(sae)
    directory = Path(directory)
    threshold = 0.0
    if isinstance(sae.selection, JumpReLU):
        threshold = sae.selection.threshold[0].item()
        if (sae.selection.threshold != threshold).any():
            raise FormatError(
                "Llama Scope has one threshold for all latents, and these differ; save it with "
                "sae.save."
            )
    config = {
        "d_model": sae.d_in,
        "d_sae": sae.d_sae,
        "hook_point_in": sae.site_in,
        "hook_point_out": sae.site_out,
        "act_fn": sae.selection.name,
        "jump_relu_threshold": threshold,
        "top_k": sae.selection.k if isinstance(sae.selection, TopK) else 0,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": sae.d_in**0.5, "out": sae.d_out**0.5},
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": False,
        OWN: facts_of(sae),
    }
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    make_directory(directory / "checkpoints")
    b_enc = bias_as(sae, subtract=False)
    tensors: dict[str, Tensor] = dict(
        zip(_KEYS, (sae.W_enc, b_enc, sae.W_dec.T, sae.b_dec), strict=True)
    )
    write_tensors(tensors, directory / WEIGHTS_FILE)
    if sae.labels is not None:
        save_labels(sae.labels, directory)
    write_text(text, directory / CONFIG_FILE)


def _check(config: dict[str, Any], directory: Path) -> None:
    norm = config.get("norm_activation", "dataset-wise")
    subtracts = config.get("apply_decoder_bias_to_pre_encoder")
    reason = None
    if config.get("act_fn") not in ("relu", "jumprelu", "topk"):
        reason = f'the activation "{config.get("act_fn")}"; relu, jumprelu and topk are read'
    elif config.get("use_glu_encoder"):
        reason = "a gated linear encoder (use_glu_encoder), which an SAE here has not"
    elif norm != "dataset-wise":
        reason = f'norm_activation "{norm}"; dataset-wise is read'
    elif subtracts and config.get("hook_point_in") != config.get("hook_point_out"):
        reason = "a transcoder that subtracts its output's bias from its input"
    if reason is not None:
        raise FormatError(f"{directory} has {reason}.")


def _stored(file: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    tensors, _ = read_tensors(file)
    if not config.get("use_decoder_bias", True) and "decoder.weight" in tensors:
        weight = tensors["decoder.weight"]
        tensors.setdefault("decoder.bias", weight.new_zeros(weight.shape[0]))
    tensors = whole_tensors(tensors, needed=_KEYS, where=file)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    found = dict(zip(names, (tensors[key] for key in _KEYS), strict=True))
    return {**found, "W_dec": found["W_dec"].T}


def _folded(
    stored: dict[str, Tensor], config: dict[str, Any], directory: Path
) -> dict[str, Tensor]:
    """Steps 1 and 2, in float64."""
    tensors = {name: tensor.double() for name, tensor in stored.items()}
    s_in = _scale(config, "in", tensors["W_enc"].shape[1], directory)
    s_out = _scale(config, "out", tensors["W_dec"].shape[1], directory)
    tensors["b_enc"] = tensors["b_enc"] / s_in
    tensors["b_dec"] = tensors["b_dec"] / s_out
    tensors["W_dec"] = tensors["W_dec"] * (s_in / s_out)
    norms = tensors["W_dec"].norm(dim=-1)
    if config.get("sparsity_include_decoder_norm", True) and (norms - 1).abs().max() > _UNIT:
        tensors["W_enc"] = tensors["W_enc"] * norms[:, None]
        tensors["b_enc"] = tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms.clamp(min=1e-12)[:, None]
    return tensors


def _scale(config: dict[str, Any], side: str, width: int, directory: Path) -> float:
    norms = config.get("dataset_average_activation_norm")
    norm = norms.get(side) if isinstance(norms, dict) else None
    if not isinstance(norm, int | float) or not norm > 0:
        raise FormatError(
            f"{directory / CONFIG_FILE} needs a positive dataset_average_activation_norm.{side}, "
            f"got {norm}: copy or download it again."
        )
    return width**0.5 / float(norm)


def _selection(config: dict[str, Any], W_enc: Tensor) -> AbstractSelection:
    threshold = float(config.get("jump_relu_threshold") or 0.0)
    kind = config["act_fn"]
    if kind == "jumprelu" or (kind == "topk" and threshold > 0):
        return JumpReLU(torch.full((W_enc.shape[0],), threshold, dtype=W_enc.dtype))
    return TopK(int(config.get("top_k") or 0)) if kind == "topk" else ReLU()
