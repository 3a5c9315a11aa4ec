"""Write a directory that SAELens loads."""

import json
from pathlib import Path
from typing import Any

from gossamer.errors import FormatError
from gossamer.interop.sae_lens.layout import (
    ARCHITECTURES,
    CENTRED_KINDS,
    CONFIG_FILE,
    NORMALIZATIONS,
    OWN_FIELDS,
    WEIGHTS_FILE,
    Architecture,
    is_centred,
)
from gossamer.saes.labels import save_labels
from gossamer.saes.native import make_directory, write_tensors, write_text
from gossamer.saes.sae import SAE
from gossamer.saes.topk import TopK


def write_sae_lens(sae: SAE, directory: str | Path) -> None:
    """Write a directory that SAELens (6 or later) loads and that gives the same latents there.

    FormatError, before anything is written, when SAELens has no way to say what this SAE does.
    """
    directory = Path(directory)
    architecture = _name_for(sae)
    text = json.dumps(_config_for(sae, architecture), indent=2, ensure_ascii=False)
    tensors = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    tensors["b_mag" if sae.selection.name == "gated" else "b_enc"] = sae.b_enc
    tensors |= dict(sae.selection.named_buffers())
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip
    make_directory(directory)
    write_tensors(tensors, directory / WEIGHTS_FILE)
    if sae.labels is not None:
        save_labels(sae.labels, directory)  # SAELens passes over files that it does not know
    write_text(text + "\n", directory / CONFIG_FILE)


def _name_for(sae: SAE) -> str:
    """SAELens' name for what this SAE is. FormatError when it has none."""
    skip = sae.W_skip is not None
    wanted = Architecture(sae.selection.name, sae.is_transcoder or skip, skip)
    reason = None
    if wanted not in ARCHITECTURES.values():
        reason = f"no {sae.selection.name} {'skip ' * skip}transcoder"
    elif isinstance(sae.selection, TopK) and not sae.selection.relu:
        reason = "no TopK that keeps negative latents"
    elif wanted.transcoder and sae.normalization != "none":
        reason = f"no transcoder that undoes its normalization ({sae.normalization})"
    elif wanted.transcoder and sae.subtract_b_dec:
        reason = "no skip connection together with subtract_b_dec"
    elif sae.sites_later:
        reason = f"no latents that write several sites, here {', '.join(sae.sites_later)} too"
    elif sae.normalization == "center" and sae.site_in.rpartition(".")[2] not in CENTRED_KINDS:
        reason = f"no centring at {sae.site_in}"
    if reason is not None:
        raise FormatError(
            f"SAELens has {reason}; it has {', '.join(ARCHITECTURES)}: save it with sae.save."
        )
    return next(name for name, known in ARCHITECTURES.items() if known == wanted)


def _config_for(sae: SAE, architecture: str) -> dict[str, Any]:
    """cfg.json of this SAE."""
    names = {ours: theirs for theirs, ours in NORMALIZATIONS.items()}
    at_heads = sae.site_in.endswith("hook_z") and not ARCHITECTURES[architecture].transcoder
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtract_b_dec,
        "normalize_activations": names.get(sae.normalization, "none"),
        "reshape_activations": "hook_z" if at_heads else "none",
    }
    if ARCHITECTURES[architecture].transcoder:
        config["d_out"] = sae.d_out
    if isinstance(sae.selection, TopK):
        config |= {"k": sae.selection.k, "rescale_acts_by_decoder_norm": False}
    return config | {"metadata": _metadata_for(sae)}


def _metadata_for(sae: SAE) -> dict[str, Any]:
    known = {name: value for name, value in sae.metadata.items() if name not in OWN_FIELDS}
    version = str(known.get("sae_lens_version") or "")
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < 6:
        version = "6.0.0"  # below that SAELens takes the file for a flat one and drops all this
    metadata = {
        "sae_lens_training_version": None,
        **known,
        "sae_lens_version": version,
        "model_name": sae.model_name,
        "hook_name": sae.site_in,
    }
    if sae.is_transcoder or sae.W_skip is not None:
        metadata["hook_name_out"] = sae.site_out
    if sae.prepend_bos is not None:
        metadata["prepend_bos"] = sae.prepend_bos
    arguments = dict(metadata.get("model_from_pretrained_kwargs") or {})
    if sae.normalization == "center":
        arguments["center_writing_weights"] = True
    elif (
        is_centred(metadata, sae.site_in) and sae.normalization == "none" and not sae.is_transcoder
    ):
        arguments["center_writing_weights"] = False
    return {**metadata, "model_from_pretrained_kwargs": arguments} if arguments else metadata
