"""Read an ae.pt with the config.json beside it, finished or a backup of a run that goes on."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.interop.dictionary_learning.classes import CLASSES, DictClass, files
from gossamer.interop.pickles import read_pickle
from gossamer.interop.room import Sites, own_facts, with_sites
from gossamer.interop.whole import moved_bias, whole_sae, whole_tensors
from gossamer.saes.gated import Gated
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import load_labels
from gossamer.saes.native import read_json
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK

_SUBMODULE = re.compile(r"(resid_pre|resid_post|mlp_out|attn_out|attention_out)(?:_layer_(\d+))?")
_SCALED = ("bias", "encoder.bias", "decoder.bias", "decoder_bias", "mag_bias", "gate_bias")
_SCALED += ("b_enc", "b_dec", "threshold")


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The one SAE of a directory, or of a .pt file whose config.json is in its directory.

    The site is the output of the layer that the config names unless given; a pair (read, written)
    makes a transcoder of it. FormatError when the file is damaged, would run code, is of a class
    that is not read, or its threshold was never estimated.
    """
    weights, config_file = files(path)
    raw = read_json(config_file)
    trainer = raw.get("trainer")
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or name not in CLASSES:
        raise FormatError(
            f"{config_file} names the class {name!r}; read here are {', '.join(CLASSES)}: train "
            "one of these, or convert it to one with the library it came from."
        )
    kind = CLASSES[name]
    contents = _finished(read_pickle(weights), weights)
    needed = {kind.W_enc, kind.b_enc, kind.W_dec, kind.b_dec, *kind.others}
    tensors = whole_tensors(contents, needed=needed, beside=kind.scalars, where=weights)
    facts = own_facts(raw) or _facts_in(trainer, raw.get("buffer"))
    transcoder = facts.get("site_in") != facts.get("site_out")
    facts = with_sites(facts, site, transcoder=transcoder, where=config_file)
    parts = _parts(tensors, kind)
    if name == "AutoEncoder":
        _unit_rows(parts)
    scalars = {key: contents.get(key) for key in kind.scalars}
    if "k" in scalars:
        scalars["k"] = _k(scalars["k"], trainer.get("k"), weights)
    parts["selection"] = _selection(kind, tensors, scalars, weights)
    parts["subtract_b_dec"] = kind.subtracts
    if kind.subtracts and facts["site_in"] != facts["site_out"]:
        _without_subtraction(parts)
    metadata = {"dict_class": name, **{k: v for k, v in trainer.items() if k != "lm_name"}}
    metadata |= {"buffer": raw["buffer"]} if "buffer" in raw else {}
    groups = scalars.get("group_sizes")
    metadata |= {"group_sizes": groups.tolist()} if isinstance(groups, Tensor) else {}
    labels = load_labels(weights.parent)
    return [whole_sae(weights, **parts, labels=labels, **{"metadata": metadata} | facts)]


def _finished(contents: dict[str, Any], weights: Path) -> dict[str, Any]:
    """The state of the SAE, in the units of the activations. A backup of a run holds it as `ae`, in
    units of norm_factor."""
    if "ae" not in contents:
        return contents
    state, factor = contents["ae"], contents.get("norm_factor", 1.0)
    if not isinstance(state, dict) or not isinstance(factor, int | float):
        raise FormatError(
            f"{weights} is a backup without its state or with norm_factor={factor!r}; copy it anew."
        )
    state = dict(state)
    for name in _SCALED:
        if isinstance(state.get(name), Tensor) and not (name == "threshold" and _unset(state)):
            state[name] = (state[name].double() * factor).to(state[name].dtype)
    return state


def _unset(state: dict[str, Any]) -> bool:
    """Whether the one threshold of all latents still is the -1 that it starts as."""
    threshold = state.get("threshold")
    return isinstance(threshold, Tensor) and threshold.ndim == 0 and bool(threshold < 0)


def _parts(tensors: dict[str, Tensor], kind: DictClass) -> dict[str, Any]:
    """Weights and biases, the latent first."""
    W_enc, W_dec = tensors[kind.W_enc], tensors[kind.W_dec]
    return {
        "W_enc": W_enc.T if kind.W_enc == "W_enc" else W_enc,
        "W_dec": W_dec if kind.W_dec == "W_dec" else W_dec.T,
        "b_enc": tensors[kind.b_enc],
        "b_dec": tensors[kind.b_dec],
    }


def _unit_rows(parts: dict[str, Any]) -> None:
    """Decoder rows of length 1 and latents larger by that length, as their loader makes them."""
    norms = parts["W_dec"].double().norm(dim=1)
    if torch.allclose(norms.float(), torch.ones_like(norms.float())):
        return
    dtype = parts["W_dec"].dtype
    parts["W_dec"] = (parts["W_dec"].double() / norms[:, None]).to(dtype)
    parts["W_enc"] = (parts["W_enc"].double() * norms[:, None]).to(dtype)
    parts["b_enc"] = (parts["b_enc"].double() * norms).to(dtype)


def _selection(
    kind: DictClass, tensors: dict[str, Tensor], scalars: dict[str, Any], weights: Path
) -> AbstractSelection:
    match kind.selection:
        case "gated":
            return Gated(tensors["gate_bias"], tensors["r_mag"])
        case "relu":
            return ReLU()
        case "topk":
            return TopK(scalars["k"])
        case _ if "threshold" in tensors:
            return JumpReLU(tensors["threshold"])
        case _:
            return _one_threshold(tensors[kind.b_enc], scalars, weights)


def _one_threshold(b_enc: Tensor, scalars: dict[str, Any], weights: Path) -> JumpReLU:
    """The threshold that all latents share, for each of them."""
    missing = sorted(key for key, value in scalars.items() if value is None)
    threshold = scalars["threshold"]
    if missing or not isinstance(threshold, Tensor) or threshold.numel() != 1:
        raise FormatError(
            f"{weights} lacks {', '.join(missing) or 'a threshold that is one number'}; copy or "
            "download it again."
        )
    if _unset(scalars):
        raise FormatError(
            f"{weights} has threshold {float(threshold):g}: training ended before it was estimated "
            "(trainer.threshold_start_step), so that every positive latent would be active; train "
            "it for longer."
        )
    return JumpReLU(threshold.detach().to(b_enc.dtype).reshape(1).expand(b_enc.numel()))


def _k(stored: Any, said: Any, weights: Path) -> int:
    """k of the file, which the config beside it must not contradict."""
    k = said if stored is None else stored
    k = int(k) if isinstance(k, Tensor) and k.numel() == 1 else k
    if not isinstance(k, int) or k < 1 or said not in (None, k):
        raise FormatError(
            f"{weights} has k={k!r} and the config beside it k={said!r}; both are the same number "
            "of at least 1: copy or download them again."
        )
    return k


def _without_subtraction(parts: dict[str, Any]) -> None:
    """The same latents from an input that b_dec, which is of another site, is not taken from."""
    selection = parts["selection"]
    gain = selection.gain()
    shift = {"W_enc": parts["W_enc"], "b_dec": parts["b_dec"], "subtract": False}
    parts["b_enc"] = moved_bias(parts["b_enc"], gain=gain, **shift)
    if isinstance(selection, Gated):
        parts["selection"] = Gated(moved_bias(selection.b_gate, **shift), selection.r_mag)
    parts["subtract_b_dec"] = False


def _facts_in(trainer: dict[str, Any], buffer: Any) -> dict[str, Any]:
    """The model and the sites that the config says; without sites where it is not sure."""
    facts: dict[str, Any] = {"model_name": trainer.get("lm_name")}
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    io = buffer.get("io", "out") if isinstance(buffer, dict) else "out"
    if io == "in_and_out":
        return facts
    found = _SUBMODULE.fullmatch(submodule) if isinstance(submodule, str) else None
    if found is not None:
        kind = {"attention_out": "attn_out"}.get(found[1], found[1])
        layer = found[2] or layer
    elif submodule is None:
        kind = "resid_post" if io == "out" else "resid_pre"
    else:
        return facts
    if not str(layer).isdigit():
        return facts
    place = f"blocks.{int(str(layer))}.hook_{kind}"
    return facts | {"site_in": place, "site_out": place}
