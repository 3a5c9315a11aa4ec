"""Gemma Scope 2 (Gemma 3): params.safetensors and config.json for each SAE or transcoder.

    google/gemma-scope-2-1b-pt/transcoder_all/layer_13_width_16k_l0_small_affine/params.safetensors

    latents = relu(p) (p > threshold), p = x @ w_enc + b_enc
    y = latents @ w_dec + b_dec [+ x @ affine_skip_connection]

The config names places as Hugging Face modules, `model.layers.13.output`; where there is none the
directories' names say them. Transcoders read the MLP's input after the norm's gain, unlike those of
the first Gemma Scope.
"""

import json
import re
from pathlib import Path
from typing import Any

from gossamer.errors import FormatError
from gossamer.interop.room import (
    OWN,
    Room,
    Sites,
    config_beside,
    facts_of,
    own_facts,
    tensor_shapes,
    with_sites,
)
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import load_labels, save_labels
from gossamer.saes.native import make_directory, read_tensors, write_tensors, write_text
from gossamer.saes.sae import SAE

NAME = "gemma-scope-2"
WEIGHTS_FILE = "params.safetensors"
CONFIG_FILE = "config.json"

ROOM = Room(label="Gemma Scope 2", selections=("jumprelu",), skip=True, subtracts=True)

MODULES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
}
"""Our places within a block by the modules of a Hugging Face layer."""

KINDS = {
    "resid_post": ("hook_resid_post",) * 2,
    "attn_out": ("attn.hook_z",) * 2,
    "mlp_out": ("hook_mlp_out",) * 2,
    "transcoder": ("mlp.hook_in", "hook_mlp_out"),
}
"""Places read and written, by the words in the directories' names."""

_SKIP = "affine_skip_connection"
_OURS = {
    "w_enc": "W_enc",
    "b_enc": "b_enc",
    "w_dec": "W_dec",
    "b_dec": "b_dec",
    "threshold": "threshold",
    _SKIP: "W_skip",
}
_RELEASE = re.compile(r"gemma-scope-2-(270m|1b|4b|12b|27b)-(pt|it)")
_FOLDER = re.compile(r"(resid_post|attn_out|mlp_out|transcoder)(?:_all)?/(layer_(\d+)[^/]*)")
_PLACE = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)")


def is_here(path: str | Path) -> bool:
    """Whether a file is, or a directory holds, the tensors of one SAE, or of a layer of a CLT."""
    return set(_OURS) - {_SKIP} <= tensor_shapes(_file(path)).keys()


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The one SAE; sites from the config, else from the directories' names, unless given.
    FormatError when they are nowhere, when the file is damaged, or is a layer of a CLT."""
    file = _file(path)
    stored, _ = read_tensors(file)
    if "w_dec" in stored and stored["w_dec"].ndim == 3:
        raise FormatError(
            f"{file} is one layer of a cross-layer transcoder, which writes several sites; only "
            "SAEs and transcoders of one layer are read from this format."
        )
    ours = {_OURS.get(name, name): tensor for name, tensor in stored.items()}
    needed = [ours for theirs, ours in _OURS.items() if theirs != _SKIP or theirs in stored]
    tensors = whole_tensors(ours, needed=needed, where=file)
    config = config_beside(file.with_name(CONFIG_FILE))
    architecture = config.get("architecture", "jump_relu")
    if architecture not in ("jump_relu", "jumprelu"):
        raise FormatError(f'{file} is of architecture "{architecture}"; jump_relu is read.')
    facts = own_facts(config) or _facts_in(file, config)
    transcoder = facts.get("site_in") != facts.get("site_out")
    facts = with_sites(facts, site, transcoder=transcoder, where=file)
    sae = whole_sae(
        file,
        W_enc=tensors["W_enc"].T,
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        W_skip=tensors["W_skip"].T if "W_skip" in tensors else None,
        selection=JumpReLU(tensors["threshold"]),
        labels=load_labels(file.parent),
        **facts,
    )
    return [sae]


def write(sae: SAE, directory: str | Path) -> None:
    """Write params.safetensors and config.json. FormatError, before anything is written, for all
    but JumpReLU SAEs without normalization."""
    ROOM.check(sae)
    directory = Path(directory)
    tensors = {
        "w_enc": sae.W_enc.T,
        "b_enc": bias_as(sae, subtract=False),
        "w_dec": sae.W_dec,
        "b_dec": sae.b_dec,
        "threshold": sae.selection.threshold,
    }
    if sae.W_skip is not None:
        tensors[_SKIP] = sae.W_skip.T
    config = {
        "architecture": "jump_relu",
        "model_name": sae.model_name,
        "hf_hook_point_in": _module(sae.site_in),
        "hf_hook_point_out": _module(sae.site_out),
        "affine_connection": sae.W_skip is not None,
        OWN: facts_of(sae),
    }
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    make_directory(directory)
    write_tensors(tensors, directory / WEIGHTS_FILE)
    if sae.labels is not None:
        save_labels(sae.labels, directory)
    write_text(text, directory / CONFIG_FILE)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / WEIGHTS_FILE if path.is_dir() else path


def _facts_in(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What the config says, and where it is silent the names of the directories."""
    text = file.absolute().as_posix()
    release, folder = _RELEASE.search(text), _FOLDER.search(text)
    facts: dict[str, Any] = {"prepend_bos": True, "model_name": config.get("model_name")}
    if release is not None:
        facts["model_name"] = facts["model_name"] or f"google/gemma-3-{release[1]}-{release[2]}"
        facts["metadata"] = {"release": release[0]}
    if folder is not None:
        places = KINDS[folder[1]]
        facts |= {
            name: f"blocks.{folder[3]}.{place}"
            for name, place in zip(("site_in", "site_out"), places, strict=True)
        }
        facts["metadata"] = facts.get("metadata", {}) | {"folder": folder[0]}
    for name in ("in", "out"):
        if module := config.get(f"hf_hook_point_{name}"):
            facts[f"site_{name}"] = _site(module, file)
    return facts


def _site(module: Any, file: Path) -> str:
    match = _PLACE.search(str(module))
    if match is None or match[2] not in MODULES:
        raise FormatError(
            f"{file.with_name(CONFIG_FILE)} names the place {module}; known in a layer are "
            f"{', '.join(MODULES)}: pass site= and take it out of the file."
        )
    return f"blocks.{match[1]}.{MODULES[match[2]]}"


def _module(site: str) -> str | None:
    """The place as a Hugging Face module; None where Gemma Scope 2 has no name for it."""
    block, _, place = site.partition(".")[2].partition(".")
    names = {ours: theirs for theirs, ours in MODULES.items()}
    return f"model.layers.{block}.{names[place]}" if place in names else None
