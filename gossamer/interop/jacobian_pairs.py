"""Pairs of SAEs of a Jacobian SAE run (arXiv 2502.18147): both in one directory, laid out like an
old SAELens one.

    cfg.json, sae_weights.safetensors with _W_enc, _b_enc, _W_dec, _b_dec, and these with _out

The first reads and rebuilds `hook_name`, an MLP's input, the second that MLP's output; both have
one width, one number of latents and one activation. The pairs were trained on models loaded without
folding by a TransformerLens before 3.0, where `ln2.hook_normalized` comes after the norm's gain and
bias: that is `mlp.hook_in` here, unless the file says fold_ln. (Their evaluation folds instead;
pass site="blocks.3.ln2.hook_normalized" to read a pair so.)
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from gossamer.errors import FormatError
from gossamer.interop.room import OWN, Room, Sites, facts_of, own_facts, tensor_shapes, with_sites
from gossamer.interop.sae_lens.layout import NORMALIZATIONS, OWN_FIELDS, is_centred
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.native import make_directory, read_json, read_tensors, write_tensors, write_text
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK

NAME = "jacobian-pair"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"

write = None
"""One SAE cannot be written: see `NOT_WRITTEN`."""

NOT_WRITTEN = (
    "A Jacobian pair is two SAEs in one directory; write both with "
    "gossamer.interop.jacobian_pairs.write_pair."
)
"""Why there is no `write`."""

ROOM = Room(
    label="A Jacobian pair",
    selections=("relu", "topk"),
    transcoders=False,
    subtracts=True,
    normalizations=("none", "center", "layer_norm", "rescale"),
)

_PARTS = ("_W_enc", "_b_enc", "_W_dec", "_b_dec")
_HALVES = ("", "_out")
_OLD_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
_MLP_INPUT = re.compile(r"(blocks\.\d+)\.(?:ln2\.hook_normalized|mlp\.hook_in|hook_mlp_in)")


def is_here(path: str | Path) -> bool:
    """Whether a directory holds a pair, by the names of its tensors."""
    names = {part + half for half in _HALVES for part in _PARTS}
    path = Path(path)
    return (path / CONFIG_FILE).is_file() and names <= tensor_shapes(path / WEIGHTS_FILE).keys()


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The SAE of the MLP's input and the SAE of its output, in this order.

    `site` is the place of the first, or a pair with that of the second. FormatError when the
    directory is damaged, is of an attention head, or has an activation that is not read.
    """
    directory = Path(path)
    raw = read_json(directory / CONFIG_FILE)
    config = {_OLD_NAMES.get(name, name): value for name, value in raw.items()}
    selection = _selection(config, directory)
    halves = _halves(directory)
    normalization = _normalization(config, directory)
    known = OWN_FIELDS | {"is_pair", "use_jacobian_loss", OWN}
    rest = {name: config[name] for name in config if name not in known}
    facts = {
        "model_name": config.get("model_name"),
        "prepend_bos": config.get("prepend_bos", True),
        "metadata": rest,
    }
    own = raw[OWN] if OWN in raw else [{}, {}]
    saes: list[SAE] = []
    for half, place, ours in zip(halves, _sites(config, own, site, directory), own, strict=True):
        saw_none = normalization == "none" and is_centred(config, place)
        saes.append(
            whole_sae(
                directory,
                W_enc=half["_W_enc"].T,
                b_enc=half["_b_enc"],
                W_dec=half["_W_dec"],
                b_dec=half["_b_dec"],
                selection=selection(),
                subtract_b_dec=bool(config.get("apply_b_dec_to_input", True)),
                normalization="center" if saw_none else normalization,
                **facts | own_facts({OWN: ours}) | {"site_in": place, "site_out": place},
            )
        )
    return saes


def write_pair(sae_in: SAE, sae_out: SAE, directory: str | Path) -> None:
    """Write a directory that `SAEPair.load_from_pretrained` loads, with the same latents there.

    FormatError, before anything is written, when the two do not have one width, number of latents,
    activation, dtype and normalization (`center` apart, which follows from the site), or one of
    them is more than the layout can say. Labels have no room in it.
    """
    for sae in (sae_in, sae_out):
        ROOM.check(sae)
    _check_alike(sae_in, sae_out)
    directory = Path(directory)
    subtract = sae_in.subtract_b_dec and sae_out.subtract_b_dec
    config = _config(sae_in, sae_out, subtract=subtract)
    for sae in (sae_in, sae_out):
        if is_centred(config, sae.site_in) != (sae.normalization == "center"):
            raise FormatError(
                f"A Jacobian pair cannot say that the SAE of {sae.site_in} has the normalization "
                f"{sae.normalization} beside that of the other; save both with sae.save."
            )
    tensors: dict[str, Tensor] = {}
    for half, sae in zip(_HALVES, (sae_in, sae_out), strict=True):
        b_enc = bias_as(sae, subtract=subtract)
        parts = (sae.W_enc.T, b_enc, sae.W_dec, sae.b_dec)
        tensors |= {name + half: part for name, part in zip(_PARTS, parts, strict=True)}
    text = json.dumps(config, indent=1, ensure_ascii=False)
    make_directory(directory)
    write_tensors(tensors, directory / WEIGHTS_FILE)
    write_text(text + "\n", directory / CONFIG_FILE)


def _selection(config: dict[str, Any], directory: Path) -> Callable[[], AbstractSelection]:
    """What makes the selection of either. FormatError for each thing that is not read."""
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn", "relu")
    if architecture != "standard" or activation not in ("relu", "topk"):
        raise FormatError(
            f'{directory} holds a pair of architecture "{architecture}" with the activation '
            f'"{activation}"; standard with relu or topk is read.'
        )
    if config.get("hook_head_index") is not None:
        raise FormatError(
            f"{directory} is a pair of one attention head (hook_head_index="
            f"{config['hook_head_index']}); only pairs of whole sites are read."
        )
    if activation == "relu":
        return ReLU
    k = (config.get("activation_fn_kwargs") or {}).get("k")
    if not isinstance(k, int) or k < 1:
        raise FormatError(
            f"{directory / CONFIG_FILE} has topk with k={k!r}; k is 1 or more: copy it anew."
        )
    return partial(TopK, k)


def _normalization(config: dict[str, Any], directory: Path) -> str:
    name = config.get("normalize_activations") or "none"
    if name not in NORMALIZATIONS:
        raise FormatError(
            f'{directory} has normalize_activations "{name}"; {", ".join(NORMALIZATIONS)} can be '
            "read: fold the scale into its weights with the library it came from first."
        )
    return NORMALIZATIONS[name]


def _halves(directory: Path) -> list[dict[str, Tensor]]:
    """The tensors of each SAE; those of the MLP between them, which checkpoints keep, left out."""
    path = directory / WEIGHTS_FILE
    found = read_tensors(path)[0]
    found = {name: tensor for name, tensor in found.items() if "mlp" not in name}
    scale = found.pop("scaling_factor", None)  # old files have one of ones
    if scale is not None and not bool((scale == 1).all()):
        raise FormatError(f"{path} has a scaling_factor other than 1; fold it into _W_dec first.")
    tensors = whole_tensors(
        found, needed=[part + half for half in _HALVES for part in _PARTS], where=path
    )
    return [{part: tensors[part + half] for part in _PARTS} for half in _HALVES]


def _sites(
    config: dict[str, Any], own: list[dict[str, Any]], site: Sites, directory: Path
) -> tuple[str, str]:
    """The site of each SAE."""
    if isinstance(site, tuple):
        first, second = site
    elif site is None and own[0]:
        first, second = own[0].get("site_in"), own[1].get("site_in")
    else:
        first = site or _with_gain(config)
        found = _MLP_INPUT.fullmatch(first or "")
        second = f"{found[1]}.hook_mlp_out" if found else None
    if first is None or second is None:
        raise FormatError(
            f"{directory} does not say the sites of its two SAEs (hook_name="
            f"{config.get('hook_name')}); pass site=(site of the first, site of the second)."
        )
    facts = with_sites({}, (first, second), transcoder=False, where=directory)
    return facts["site_in"], facts["site_out"]


def _with_gain(config: dict[str, Any]) -> str | None:
    """`hook_name` as a site here."""
    name = config.get("hook_name")
    arguments = config.get("model_from_pretrained_kwargs") or {}
    found = _MLP_INPUT.fullmatch(name) if isinstance(name, str) else None
    if found is None or arguments.get("fold_ln"):
        return name
    return f"{found[1]}.mlp.hook_in"


def _check_alike(sae_in: SAE, sae_out: SAE) -> None:
    """FormatError when the two do not have in common what the layout says once."""
    for name in ("d_in", "d_sae", "dtype"):
        if getattr(sae_in, name) != getattr(sae_out, name):
            raise FormatError(
                f"Both SAEs of a Jacobian pair have one {name}, got {getattr(sae_in, name)} and "
                f"{getattr(sae_out, name)}; save them with sae.save."
            )
    rules = [(sae.selection.name, sae.selection.scalars()) for sae in (sae_in, sae_out)]
    kinds = [sae.normalization.replace("center", "none") for sae in (sae_in, sae_out)]
    if rules[0] != rules[1] or kinds[0] != kinds[1]:
        raise FormatError(
            "Both SAEs of a Jacobian pair have one activation and one normalization, got "
            f"{rules[0]}, {kinds[0]} and {rules[1]}, {kinds[1]}; save them with sae.save."
        )


def _config(sae_in: SAE, sae_out: SAE, *, subtract: bool) -> dict[str, Any]:
    """cfg.json of the two."""
    names = {ours: theirs for theirs, ours in NORMALIZATIONS.items()}
    found = _MLP_INPUT.fullmatch(sae_in.site_in)
    centred = "center" in (sae_in.normalization, sae_out.normalization)
    topk = sae_in.selection.name == "topk"
    return {
        "architecture": "standard",
        "is_pair": True,
        "d_in": sae_in.d_in,
        "d_sae": sae_in.d_sae,
        "dtype": str(sae_in.dtype).removeprefix("torch."),
        "device": "cpu",
        "model_name": sae_in.model_name,
        "randomize_llm_weights": False,
        "hook_name": f"{found[1]}.ln2.hook_normalized" if found else sae_in.site_in,
        "hook_layer": int(sae_in.site_in.split(".")[1]) if "blocks." in sae_in.site_in else 0,
        "hook_head_index": None,
        "activation_fn_str": sae_in.selection.name,
        "activation_fn_kwargs": {"k": sae_in.selection.scalars()["k"]} if topk else {},
        "apply_b_dec_to_input": subtract,
        "finetuning_scaling_factor": False,
        "prepend_bos": sae_in.prepend_bos is not False,
        "dataset_path": "",
        "dataset_trust_remote_code": False,
        "context_size": 128,
        "normalize_activations": names.get(sae_in.normalization, "none"),
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {
            "center_writing_weights": centred,
            "fold_ln": sae_in.site_in.endswith("ln2.hook_normalized"),
        },
        "seqpos_slice": [None],
        OWN: [facts_of(sae_in), facts_of(sae_out)],
    }
