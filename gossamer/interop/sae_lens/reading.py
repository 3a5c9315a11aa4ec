"""Read a SAELens directory.

What an SAE of ours has no switch for is folded into its weights, exactly and in float64:

    decoder norms n      W_enc * n, b_enc * n, W_dec / n       rescale_acts_by_decoder_norm (TopK)
    input scale s        W_enc * s, W_dec / s, b_dec / s       expected_average_only_in
    output scales f      W_dec * f                             finetuning_scaling_factor
    centred input        each row of W_enc and W_skip less its mean            (transcoders)
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import FormatError, ShapeError
from gossamer.interop.sae_lens.layout import (
    ARCHITECTURES,
    CONFIG_FILE,
    NORMALIZATIONS,
    OWN_FIELDS,
    SCALER_FILE,
    WEIGHTS_FILE,
    Architecture,
    is_centred,
    unlike_ours,
)
from gossamer.saes.gated import Gated
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import load_labels
from gossamer.saes.native import read_json, read_tensors
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK

_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def read_sae_lens(
    directory: str | Path,
    *,
    site: str | tuple[str, str] | None = None,
    center: bool | None = None,
    dtype: torch.dtype | None = None,
) -> SAE:
    """The SAE in a SAELens directory, giving the latents and outputs that SAELens gives.

    `site` overrides the site in the file; for a transcoder it is the one written, or a pair (read,
    written). An SAE of a TransformerLens before 3.0 at `ln2.hook_normalized` of a LayerNorm model
    without folding saw what is `mlp.hook_in` here: pass that. `center` says whether the model's
    writing weights were centred; None believes the file, which before September 2024 did not say.
    An SAE of `hook_z` reads the heads side by side, (…, n_heads * d_head). With `dtype=None`, half
    precision loads as float32. FormatError when the directory is damaged or not supported.
    """
    directory = Path(directory)
    config, metadata = _read_config(directory / CONFIG_FILE)
    architecture = _architecture(config, directory)
    tensors, _ = read_tensors(directory / WEIGHTS_FILE)
    wanted = tensors["W_enc"].dtype if dtype is None and "W_enc" in tensors else dtype
    tensors = _folded(_checked(tensors, architecture, directory), config, directory)
    site_in, site_out = _sites(config, architecture, site, directory)
    for place in (site_in, site_out):
        if unlike := unlike_ours(config, place):
            raise FormatError(f"The SAE in {directory} {unlike}.")
    normalization = NORMALIZATIONS.get(str(config["normalize_activations"]), "none")
    if is_centred(config, site_in) if center is None else center:
        tensors, normalization = _centred(tensors, architecture, normalization, directory)
    tensors = {name: tensor.to(wanted) for name, tensor in tensors.items()}
    try:
        return SAE(
            W_enc=tensors["W_enc"].T,
            b_enc=tensors["b_mag" if architecture.selection == "gated" else "b_enc"],
            W_dec=tensors["W_dec"],
            b_dec=tensors["b_dec"],
            W_skip=tensors.get("W_skip"),
            selection=_selection(architecture, tensors, config),
            site_in=site_in,
            site_out=site_out,
            subtract_b_dec=bool(config.get("apply_b_dec_to_input", not architecture.transcoder)),
            normalization=normalization,
            prepend_bos=config.get("prepend_bos"),
            model_name=config.get("model_name"),
            labels=load_labels(directory),
            metadata=metadata,
        )
    except ShapeError as error:
        raise FormatError(f"{directory} does not hold a whole SAE: {error}") from error


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings as one flat dict with today's names, and the ones that we have no field for."""
    raw = read_json(path)
    metadata = raw.get("metadata")
    if isinstance(metadata, dict):
        config = {**raw, **metadata}
        rest = metadata
    else:
        config = {_OLD_NAMES.get(name, name): value for name, value in raw.items()}
        config.setdefault("prepend_bos", True)
        rest = config
        arguments = config.get("activation_fn_kwargs") or {}
        if config.get("activation_fn") == "topk" and "k" in arguments:
            config |= {"architecture": "topk", "k": arguments["k"]}
    normalize = config.get("normalize_activations")
    if normalize is None or isinstance(normalize, bool):
        config["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    return config, {name: rest[name] for name in rest if name not in OWN_FIELDS}


def _architecture(config: dict[str, Any], directory: Path) -> Architecture:
    """What the config describes. FormatError for each thing that is not supported."""
    name = config.get("architecture") or "standard"
    if name not in ARCHITECTURES or config.get("is_pair"):
        raise FormatError(
            f"{directory} holds a SAELens SAE of architecture "
            f'"{"pair" if config.get("is_pair") else name}"; read here are '
            f"{', '.join(ARCHITECTURES)}: convert it to one of them with the library it came from."
        )
    if config.get("activation_fn", "relu") not in ("relu", "topk", None):
        raise FormatError(
            f'{directory} uses the activation "{config["activation_fn"]}"; relu and topk are read.'
        )
    if config.get("hook_head_index") is not None:
        raise FormatError(
            f"{directory} reads one attention head (hook_head_index={config['hook_head_index']}); "
            "only SAEs of all heads side by side are read."
        )
    normalize = config["normalize_activations"]
    supported = [*NORMALIZATIONS, "expected_average_only_in"]
    if ARCHITECTURES[name].transcoder:
        supported = ["none"]  # SAELens scales the input of a transcoder and not its output
    if normalize not in supported:
        raise FormatError(
            f'{directory} has normalize_activations "{normalize}"; of this architecture ({name}) '
            f"{', '.join(supported)} can be read: fold it in SAELens first."
        )
    return ARCHITECTURES[name]


def _checked(
    tensors: dict[str, Tensor], architecture: Architecture, directory: Path
) -> dict[str, Tensor]:
    """The tensors with today's names, none missing and none unknown."""
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").double().exp()
    if "scaling_factor" in tensors:
        tensors["finetuning_scaling_factor"] = tensors.pop("scaling_factor")
    biases = {"b_gate", "b_mag", "r_mag"} if architecture.selection == "gated" else {"b_enc"}
    needed = {"W_enc", "W_dec", "b_dec"} | biases
    needed |= {"threshold"} if architecture.selection == "jumprelu" else set()
    needed |= {"W_skip"} if architecture.skip else set()
    missing = needed - tensors.keys()
    unknown = tensors.keys() - needed - {"finetuning_scaling_factor"}
    if missing or unknown:
        raise FormatError(
            f"{directory / WEIGHTS_FILE} should hold {', '.join(sorted(needed))}; missing: "
            f"{', '.join(sorted(missing)) or 'none'}, unknown: "
            f"{', '.join(sorted(unknown)) or 'none'}: copy or download the directory again."
        )
    if tensors["W_enc"].ndim != 2 or tensors["W_dec"].ndim != 2:
        raise FormatError(f"{directory / WEIGHTS_FILE} holds weights that are no matrices.")
    return tensors


def _folded(
    tensors: dict[str, Tensor], config: dict[str, Any], directory: Path
) -> dict[str, Tensor]:
    """The tensors with what our SAE has no switch for folded in, in float64."""
    tensors = dict(tensors)
    finetuning = tensors.pop("finetuning_scaling_factor", None)
    if finetuning is not None and not torch.equal(finetuning, torch.ones_like(finetuning)):
        if not config.get("finetuning_scaling_factor"):
            raise FormatError(
                f"{directory / WEIGHTS_FILE} has a scaling factor and {CONFIG_FILE} does not say "
                'that it is used; set "finetuning_scaling_factor" there to true.'
            )
        tensors["W_dec"] = tensors["W_dec"].double() * finetuning.double()[:, None]
    if config["normalize_activations"] == "expected_average_only_in":
        scale = _input_scale(directory)
        tensors["W_enc"] = tensors["W_enc"].double() * scale
        tensors |= {name: tensors[name].double() / scale for name in ("W_dec", "b_dec")}
    if config.get("rescale_acts_by_decoder_norm") and config.get("architecture") == "topk":
        norms = tensors["W_dec"].double().norm(dim=-1).clamp(min=1e-8)  # a dead row may be 0
        tensors |= {name: tensors[name].double() * norms for name in ("W_enc", "b_enc")}
        tensors["W_dec"] = tensors["W_dec"].double() / norms[:, None]
    return tensors


def _input_scale(directory: Path) -> float:
    path = directory / SCALER_FILE
    if not path.is_file():
        raise FormatError(
            f"{directory} was trained on inputs scaled by a number that it does not hold "
            f"(normalize_activations is expected_average_only_in); put {SCALER_FILE} of its "
            "training run beside it, or fold the scale in SAELens first."
        )
    contents = read_json(path)
    scale = contents.get("scaling_factor")
    if not isinstance(scale, int | float) or scale <= 0 or contents.get("has_whitening"):
        raise FormatError(
            f"{path} needs a positive scaling_factor and no whitening, got {contents}; "
            "fold it in SAELens first."
        )
    return float(scale)


def _sites(
    config: dict[str, Any],
    architecture: Architecture,
    site: str | tuple[str, str] | None,
    directory: Path,
) -> tuple[str, str]:
    """The site read and the site written."""
    if isinstance(site, tuple):
        return site
    if not architecture.transcoder:
        found = site or config.get("hook_name")
        if not found:
            raise FormatError(f"{directory} does not say its site (no hook_name); pass site=.")
        return found, found
    site_in = config.get("hook_name")
    site_out = site or config.get("hook_name_out") or _output_of_mlp(site_in)
    if not site_in or not site_out:
        raise FormatError(
            f"{directory} is a transcoder and does not say its sites (hook_name={site_in}, "
            f"hook_name_out={config.get('hook_name_out')}); pass site=(site_in, site_out)."
        )
    return site_in, site_out


def _output_of_mlp(site_in: str | None) -> str | None:
    """The MLP's output when `site_in` can only be an MLP's input: files often leave it out."""
    inputs = (".ln2.hook_normalized", ".mlp.hook_in", ".hook_mlp_in")
    found = [end for end in inputs if site_in and site_in.endswith(end)]
    return site_in.removesuffix(found[0]) + ".hook_mlp_out" if site_in and found else None


def _centred(
    tensors: dict[str, Tensor], architecture: Architecture, normalization: str, directory: Path
) -> tuple[dict[str, Tensor], str]:
    """Tensors and normalization of an SAE that expects the mean of its input to be gone."""
    if architecture.transcoder:  # the mean of what it writes cannot be known: nothing is added
        folded = {"W_enc": tensors["W_enc"].double() - tensors["W_enc"].double().mean(0)}
        if "W_skip" in tensors:
            skip = tensors["W_skip"].double()
            folded["W_skip"] = skip - skip.mean(1, keepdim=True)
        return tensors | folded, normalization
    if normalization == "rescale":
        raise FormatError(
            f"{directory} rescales activations of a centred model, which cannot be read; "
            "pass center=False if the model was not centred."
        )
    return tensors, "layer_norm" if normalization == "layer_norm" else "center"


def _selection(
    architecture: Architecture, tensors: dict[str, Tensor], config: dict[str, Any]
) -> AbstractSelection:
    match architecture.selection:
        case "topk":
            return TopK(int(config.get("k", 100)))  # 100 is SAELens' own default
        case "jumprelu":
            return JumpReLU(tensors["threshold"])
        case "gated":
            return Gated(tensors["b_gate"], tensors["r_mag"])
        case _:
            return ReLU()
