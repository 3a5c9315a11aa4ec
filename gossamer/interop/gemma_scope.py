"""Gemma Scope (Gemma 2): one params.npz for each SAE, its site in the directories' names.

    google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz

    latents = relu(p) (p > threshold), p = x @ W_enc + b_enc      y = latents @ W_dec + b_dec

W_enc is stored as (d_in, d_sae). Kinds: `res` the output of the layer, `att` the heads before their
output projection, `mlp` the MLP's output after its norm, `transcoders` from x / rms(x), without the
norm's gain, to that. SAEs of the embedding were trained on rows of the table; here they read
`hook_embed`, which is sqrt(d_model) times that. What we write has a config.json beside it, as the
directories' names are not ours to give. Published in arXiv 2408.05147.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import FormatError, placed
from gossamer.interop.room import (
    OWN,
    Room,
    Sites,
    config_beside,
    facts_of,
    own_facts,
    with_sites,
)
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import load_labels, save_labels
from gossamer.saes.native import make_directory, write_text
from gossamer.saes.sae import SAE

NAME = "gemma-scope"
WEIGHTS_FILE = "params.npz"
CONFIG_FILE = "config.json"
KEYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")

SITES = {
    "res": ("hook_resid_post",) * 2,
    "att": ("attn.hook_z",) * 2,
    "mlp": ("hook_mlp_out",) * 2,
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""Sites read and written within a block, by the last word of a repository's name."""

ROOM = Room(label="Gemma Scope", selections=("jumprelu",), subtracts=True)

_RELEASE = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|att|mlp|transcoders)")
_LAYER = re.compile(r"layer_(\d+)")
_UPPER: dict[str, str] = {"w_enc": "W_enc", "w_dec": "W_dec"}  # some files have them in lower case


def is_here(path: str | Path) -> bool:
    """Whether a file is, or a directory holds, the npz of one SAE."""
    try:
        with zipfile.ZipFile(_file(path)) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return set(KEYS) <= {_UPPER.get(name, name) for name in names}


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The one SAE, its site from the directories' names unless given. FormatError when a site is
    in neither, or the file is damaged or would need unpickling."""
    file = _file(path)
    config = config_beside(file.with_name(CONFIG_FILE))
    facts = own_facts(config) or _facts_in(file)
    arrays = _arrays(file)
    tensors = whole_tensors(arrays, needed=KEYS, beside=("scaling_factor",), where=file)
    if "scaling_factor" in arrays:  # multiplies latents where they are decoded
        tensors["W_dec"] = tensors["W_dec"] * arrays["scaling_factor"].reshape(-1, 1)
    on_table = facts.pop("table", False)
    transcoder = facts.get("site_in") != facts.get("site_out")
    facts = with_sites(facts, site, transcoder=transcoder, where=file)
    if on_table and facts["site_in"] == "hook_embed":
        root = tensors["W_enc"].shape[0] ** 0.5
        tensors["W_enc"] = tensors["W_enc"] / root
        tensors |= {name: tensors[name] * root for name in ("W_dec", "b_dec")}
    tensors["W_enc"] = tensors["W_enc"].T
    selection, labels = JumpReLU(tensors.pop("threshold")), load_labels(file.parent)
    return [whole_sae(file, **tensors, selection=selection, labels=labels, **facts)]


def write(sae: SAE, directory: str | Path) -> None:
    """Write params.npz and the config.json that says its sites. FormatError, before anything is
    written, for all but JumpReLU SAEs without normalization and skip connection."""
    ROOM.check(sae)
    directory = Path(directory)
    arrays = {
        "W_enc": sae.W_enc.T,
        "b_enc": bias_as(sae, subtract=False),
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
        "threshold": sae.selection.threshold,
    }
    if sae.dtype == torch.bfloat16:
        raise FormatError("An npz has no bfloat16; cast the SAE first: sae.to(torch.float32).")
    text = json.dumps({"architecture": "jump_relu", OWN: facts_of(sae)}, indent=1)
    ready: dict[str, Any] = {
        name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in arrays.items()
    }
    make_directory(directory)
    with placed(directory / WEIGHTS_FILE) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **ready)
    if sae.labels is not None:
        save_labels(sae.labels, directory)
    write_text(text + "\n", directory / CONFIG_FILE)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / WEIGHTS_FILE if path.is_dir() else path


def _arrays(file: Path) -> dict[str, Tensor]:
    """All arrays by their names. FormatError for pickled ones, which are not read."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = {
                _UPPER.get(name, str(name)): torch.from_numpy(archive[name])
                for name in archive.files
            }
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as problem:
        raise FormatError(
            f"{file} cannot be read ({problem}); copy or download it again."
        ) from problem
    return found


def _facts_in(file: Path) -> dict[str, Any]:
    """What the names of the directories say; empty when they are not the published ones."""
    text = file.absolute().as_posix()
    release, layers = _RELEASE.search(text), _LAYER.findall(text)
    if release is None:
        return {}
    size, tuned, kind = release.groups()
    facts = {
        "model_name": f"google/gemma-2-{size}" + "-it" * (tuned == "it"),
        "prepend_bos": True,
        "metadata": {"release": release[0], "folder": "/".join(file.absolute().parts[-4:-1])},
    }
    if "/embedding/" in text:
        return facts | {"site_in": "hook_embed", "site_out": "hook_embed", "table": True}
    if not layers:
        return facts
    site_in, site_out = (f"blocks.{layers[-1]}.{place}" for place in SITES[kind])
    return facts | {"site_in": site_in, "site_out": site_out}
