"""Write an ae.pt and a config.json that `load_dictionary` loads."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.interop.dictionary_learning.classes import (
    CLASSES,
    CONFIG_FILE,
    WEIGHTS_FILE,
    DictClass,
)
from gossamer.interop.pickles import write_pickle
from gossamer.interop.room import OWN, Room, facts_of
from gossamer.interop.whole import bias_as, moved_bias
from gossamer.saes.gated import Gated
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import save_labels
from gossamer.saes.native import make_directory, write_text
from gossamer.saes.sae import SAE
from gossamer.saes.topk import TopK

ROOM = Room(
    label="dictionary_learning",
    selections=("relu", "topk", "jumprelu", "gated"),
    widths=False,
    subtracts=True,
)


def write(sae: SAE, directory: str | Path) -> None:
    """Write a directory that `load_dictionary` loads, with the same latents from `encode` there.

    The class is the one that says most of this SAE; where it subtracts b_dec from the input and
    this SAE does not, or the other way round, b_enc is the one that gives the same latents.
    FormatError, before anything is written, when no class can say what this SAE does.
    """
    ROOM.check(sae)
    directory = Path(directory)
    name = _class_for(sae)
    kind = CLASSES[name]
    state = _state(sae, kind)
    text = json.dumps(_config(sae, name, state), indent=4, ensure_ascii=False)
    make_directory(directory)
    write_pickle(state, directory / WEIGHTS_FILE)
    if sae.labels is not None:
        save_labels(sae.labels, directory)
    write_text(text + "\n", directory / CONFIG_FILE)


def _class_for(sae: SAE) -> str:
    match sae.selection:
        case TopK():
            return "AutoEncoderTopK"
        case Gated():
            return "GatedAutoEncoder"
        case JumpReLU(threshold=threshold):
            k, groups = sae.metadata.get("k"), sae.metadata.get("group_sizes")
            one = bool((threshold == threshold[0]).all()) and bool(threshold[0] >= 0)
            single = threshold[0].float().to(threshold.dtype) == threshold[0]  # it is stored so
            if not (one and single and sae.subtract_b_dec and isinstance(k, int) and k > 0):
                return "JumpReluAutoEncoder"
            whole = isinstance(groups, list) and sum(groups) == sae.d_sae
            return "MatryoshkaBatchTopKSAE" if whole else "BatchTopKSAE"
        case _:
            norms = sae.W_dec.norm(dim=1).float()  # others would be made 1, and latents larger
            unit = torch.allclose(norms, torch.ones_like(norms))
            return "AutoEncoder" if unit and sae.subtract_b_dec else "AutoEncoderNew"


def _state(sae: SAE, kind: DictClass) -> dict[str, Any]:
    """The tensors by the names of the class."""
    state: dict[str, Any] = {
        kind.W_enc: sae.W_enc.T if kind.W_enc == "W_enc" else sae.W_enc,
        kind.b_enc: bias_as(sae, subtract=kind.subtracts),
        kind.W_dec: sae.W_dec if kind.W_dec == "W_dec" else sae.W_dec.T,
        kind.b_dec: sae.b_dec,
    }
    match sae.selection:
        case Gated(b_gate=b_gate, r_mag=r_mag):
            state |= {"gate_bias": b_gate, "r_mag": r_mag}
            if not sae.subtract_b_dec:
                place = {"W_enc": sae.W_enc, "b_dec": sae.b_dec}
                state["gate_bias"] = moved_bias(b_gate, **place, subtract=True)
        case JumpReLU(threshold=threshold) if "threshold" in kind.others:
            state["threshold"] = threshold
        case JumpReLU(threshold=threshold):
            state |= {"k": _int(sae.metadata["k"]), "threshold": threshold[0].float()}
        case TopK(k=k):
            state |= {"k": _int(k), "threshold": torch.tensor(-1.0)}  # top-k needs none
        case _:
            pass
    if "group_sizes" in kind.scalars:
        state["group_sizes"] = torch.tensor(sae.metadata["group_sizes"])
    return state


def _int(k: int) -> Tensor:
    return torch.tensor(k, dtype=torch.int)


def _config(sae: SAE, name: str, state: dict[str, Any]) -> dict[str, Any]:
    """config.json: what is needed to load it, and under our own key what is not said otherwise."""
    parts = sae.site_out.split(".")
    trainer: dict[str, Any] = {
        "trainer_class": CLASSES[name].trainer,
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        "device": "cpu",
        "layer": int(parts[1]) if parts[0] == "blocks" else None,
        "lm_name": sae.model_name,
        "submodule_name": None if parts[-1] == "hook_resid_post" else parts[-1],
    }
    if "k" in state:
        trainer["k"] = int(state["k"])
    buffer = {"buffer": {"io": "in_and_out"}} if sae.is_transcoder else {}
    return {"trainer": trainer, **buffer, OWN: facts_of(sae)}
