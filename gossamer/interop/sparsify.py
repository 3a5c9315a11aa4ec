"""EleutherAI's sparsify: cfg.json and sae.safetensors for each hookpoint, SAEs and transcoders.

    checkpoints/<run>/layers.10/{cfg.json, sae.safetensors}

    latents = TopK(relu(W_enc u + b_enc)),  u = x - b_dec, or x in a transcoder
    y = latents W_dec + b_dec [+ W_skip x]

A hookpoint is a module of the base model: an SAE reads its output, a transcoder reads its input and
writes its output. Nothing in a directory says the hookpoint but its own name, so what we write says
its sites in cfg.json, where sparsify passes over them.
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
    with_sites,
)
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.labels import load_labels, save_labels
from gossamer.saes.native import make_directory, read_json, read_tensors, write_tensors, write_text
from gossamer.saes.sae import SAE
from gossamer.saes.topk import TopK

NAME = "sparsify"
CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"

ROOM = Room(label="sparsify", selections=("topk",), widths=False, skip=True, subtracts=True)

DEFAULTS = {
    "activation": "topk",
    "k": 32,
    "signed": False,
    "skip_connection": False,
    "transcode": False,
}
"""What sparsify takes for a setting that cfg.json leaves out."""

_HOOKPOINT = re.compile(r"(?:layers|h)\.(\d+)(?:\.(mlp|attn|self_attn|attention))?")
_OUTPUTS = {"mlp": "hook_mlp_out", None: "hook_resid_post"}
_INPUTS = {"mlp": "mlp.hook_in", None: "hook_resid_pre"}
_EMBEDDINGS = ("embed_tokens", "embed_in", "wte")
_POST_NORMS = ("gemma-2", "gemma-3", "olmo-2")
"""Words in names of models with a norm between a module's output and the residual stream."""


def is_here(path: str | Path) -> bool:
    """Whether a directory is laid out as one sparse coder of sparsify."""
    return (Path(path) / CONFIG_FILE).is_file() and (Path(path) / WEIGHTS_FILE).is_file()


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The one SAE or transcoder of a directory, its site from the directory's name unless given.

    FormatError when it is damaged, selects otherwise than by TopK, or the site is in neither.
    """
    directory = Path(path)
    raw = read_json(directory / CONFIG_FILE)
    config = DEFAULTS | raw
    _check(config, directory)
    needed = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
    needed |= {"W_skip"} if config["skip_connection"] else set()
    weights = directory / WEIGHTS_FILE
    tensors = whole_tensors(read_tensors(weights)[0], needed=needed, where=weights)
    transcoder = bool(config["transcode"])
    facts = own_facts(raw) or _facts_in(directory, transcoder=transcoder, given=site is not None)
    facts = with_sites(facts, site, transcoder=transcoder, where=directory)
    rest = {name: raw[name] for name in raw if name not in DEFAULTS | {OWN: None, "d_in": None}}
    sae = whole_sae(
        directory,
        W_enc=tensors["encoder.weight"],
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        W_skip=tensors.get("W_skip"),
        selection=TopK(config["k"]),
        subtract_b_dec=not transcoder,
        labels=load_labels(directory),
        **{"metadata": rest} | facts,
    )
    if raw.get("d_in", sae.d_in) != sae.d_in:
        raise FormatError(
            f"{directory / CONFIG_FILE} says d_in={raw['d_in']} and {WEIGHTS_FILE} beside it has "
            f"{sae.d_in}; copy or download the directory again."
        )
    return [sae]


def write(sae: SAE, directory: str | Path) -> None:
    """Write a directory that `SparseCoder.load_from_disk` loads, with the same latents there.

    FormatError, before anything is written, when sparsify has no way to say what this SAE does.
    An SAE that does not subtract b_dec from its input gets the b_enc of one that does.
    """
    ROOM.check(sae)
    assert isinstance(sae.selection, TopK)  # ROOM has seen to it
    directory = Path(directory)
    transcode = sae.is_transcoder
    tensors = {
        "encoder.weight": sae.W_enc,
        "encoder.bias": bias_as(sae, subtract=not transcode),
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": False,  # it is as it is, and stays so if sparsify trains it further
        "num_latents": sae.d_sae,
        "k": sae.selection.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": transcode,
        "d_in": sae.d_in,
        OWN: facts_of(sae),
    }
    text = json.dumps(config, indent=1, ensure_ascii=False)
    make_directory(directory)
    write_tensors(tensors, directory / WEIGHTS_FILE)
    if sae.labels is not None:
        save_labels(sae.labels, directory)
    write_text(text + "\n", directory / CONFIG_FILE)


def _check(config: dict[str, Any], directory: Path) -> None:
    """FormatError for what is not read."""
    if config["activation"] != "topk" or config["signed"]:
        kind = "signed" if config["signed"] else config["activation"]
        raise FormatError(
            f'{directory} selects its latents by "{kind}"; of sparsify only topk is read: train it '
            "again with topk."
        )
    if not isinstance(config["k"], int) or config["k"] < 1:
        raise FormatError(f"{directory / CONFIG_FILE} has k={config['k']!r}; k is 1 or more.")


def _facts_in(directory: Path, *, transcoder: bool, given: bool) -> dict[str, Any]:
    """The sites that the directory's name says, and the model that the run's config names."""
    folder = directory.absolute()
    folder = folder.parent if re.fullmatch(r"seed\d+", folder.name) else folder
    run = config_beside(folder.parent / "config.json")
    model = run.get("model") if isinstance(run.get("model"), str) else None
    facts: dict[str, Any] = {"model_name": model}
    found = _HOOKPOINT.fullmatch(folder.name)
    if folder.name.split(".")[-1] in _EMBEDDINGS and not transcoder:
        return facts | {"site_in": "hook_embed", "site_out": "hook_embed"}
    if found is None:
        return facts
    layer, module = found.groups()
    attention = module not in _OUTPUTS
    post_norm = module is not None and any(word in str(model).lower() for word in _POST_NORMS)
    if not given and (post_norm or (attention and transcoder)):
        raise FormatError(
            f"{directory} is of {folder.name}"
            f"{f' of {model}' if post_norm else ', from its input'}, which no site here is; "
            "pass site= to read it as of another place."
        )
    site_out = f"blocks.{layer}.{_OUTPUTS.get(module, 'hook_attn_out')}"
    site_in = f"blocks.{layer}.{_INPUTS[module]}" if transcoder and not attention else None
    return facts | {"site_in": site_in if transcoder else site_out, "site_out": site_out}
