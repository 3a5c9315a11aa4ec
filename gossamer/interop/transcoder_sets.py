"""Transcoder sets of circuit-tracer: config.yaml and one layer_N.safetensors for each layer.

    latents = select(x @ W_enc.T + b_enc)      y = latents @ W_dec + b_dec [+ x @ W_skip.T]

`feature_input_hook` and `feature_output_hook` of the config name the places within a block. Where a
layer has thresholds its latents are chosen by JumpReLU, else by the config's `activation`: relu, or
topk with its k, which keeps chosen latents that are negative. Models are run with no weight folded.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from gossamer.errors import FormatError
from gossamer.interop.room import OWN, Room, Sites, facts_of, own_facts
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.native import make_directory, read_tensors, write_tensors, write_text
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK
from gossamer.sites import parse_site

NAME = "circuit-tracer"
CONFIG_FILE = "config.yaml"

ROOM = Room(
    label="A transcoder set of circuit-tracer",
    selections=("relu", "jumprelu", "topk_signed"),
    saes=False,
    widths=False,
    skip=True,
    subtracts=True,
)

_THRESHOLD = "activation_function.threshold"
_K = "k"
_KEYS = ("W_enc", "b_enc", "W_dec", "b_dec")
_LAYER = re.compile(r"layer_(\d+)\.safetensors")
_PLACES = {"hook_mlp_in": "mlp.hook_in", "mlp.hook_out": "hook_mlp_out"}
"""Other names of places that a block has by another name here."""


def is_here(path: str | Path) -> bool:
    """Whether a directory holds such a config, or layers without one."""
    directory = Path(path)
    if (directory / CONFIG_FILE).is_file():
        return "model_kind" in config_at(directory)
    return (directory / "layer_0.safetensors").is_file()


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The transcoders of all layers that are there, or the one that writes (or reads and writes)
    `site`. FormatError for other kinds of model, layers that lie elsewhere, damaged files."""
    directory = Path(path)
    config = config_at(directory)
    _check(config, directory)
    layers = _layers(directory)
    if isinstance(site, str):
        wanted = parse_site(site).layer
        written = site.partition(".")[2].partition(".")[2]
        if wanted not in layers or written != place_of(config, "feature_output_hook"):
            raise FormatError(
                f"No transcoder in {directory} writes {site}; it has layers "
                f"{', '.join(map(str, layers))}, which write "
                f"blocks.<layer>.{place_of(config, 'feature_output_hook')}."
            )
        layers = {wanted: layers[wanted]}
    pair = site if isinstance(site, tuple) else None
    if pair is not None:
        if len(layers) > 1 and parse_site(pair[1]).layer not in layers:
            raise FormatError(f"No transcoder in {directory} is of the layer of {pair[1]}.")
        layer = parse_site(pair[1]).layer if len(layers) > 1 else next(iter(layers))
        assert layer is not None  # or it would not be among the layers
        layers = {layer: layers[layer]}
    return [_transcoder(file, layer, config, pair) for layer, file in layers.items()]


def write(sae: SAE, directory: str | Path) -> None:
    """Write the set of this one transcoder, which must be of layer 0."""
    write_set([sae], directory)


def write_set(saes: list[SAE], directory: str | Path) -> None:
    """Write a set that circuit-tracer loads. FormatError, before anything is written, when it has
    no room for one of them, when they differ in kind or width, or do not cover layers 0, 1, …"""
    directory = Path(directory)
    for sae in saes:
        ROOM.check(sae)
    ordered = sorted(saes, key=lambda sae: parse_site(sae.site_out).order)
    alike = {(_within(sae), sae.d_sae, *_activation(sae.selection).items()) for sae in ordered}
    layers = [parse_site(sae.site_out).layer for sae in ordered]
    read = [parse_site(sae.site_in).layer for sae in ordered]
    if len(alike) > 1 or layers != list(range(len(layers))) or read != layers:
        raise FormatError(
            "A transcoder set of circuit-tracer has one transcoder for each layer from 0 on, all "
            f"of the same places, kind and width, got {', '.join(sae.site_out for sae in ordered)}"
            "; save them with sae.save."
        )
    place_in, place_out = _within(ordered[0])
    config = {
        "model_name": ordered[0].model_name,
        "model_kind": "transcoder_set",
        "feature_input_hook": place_in,
        "feature_output_hook": place_out,
        **_activation(ordered[0].selection),
        OWN: [facts_of(sae) for sae in ordered],
    }
    text = yaml_of(config)
    make_directory(directory)
    for layer, sae in enumerate(ordered):
        tensors = {name: getattr(sae, name) for name in _KEYS}
        tensors["b_enc"] = bias_as(sae, subtract=False)
        if sae.W_skip is not None:
            tensors["W_skip"] = sae.W_skip
        if isinstance(sae.selection, JumpReLU):
            tensors[_THRESHOLD] = sae.selection.threshold
        write_tensors(tensors, directory / f"layer_{layer}.safetensors")
    write_text(text, directory / CONFIG_FILE)


def _within(sae: SAE) -> tuple[str, str]:
    places = (parse_site(sae.site_in).kind, parse_site(sae.site_out).kind)
    return places


def _activation(selection: AbstractSelection) -> dict[str, Any]:
    if isinstance(selection, TopK):
        return {"activation": "topk", "k": selection.k}
    return {"activation": "relu"} if isinstance(selection, ReLU) else {}


def yaml_of(contents: dict[str, Any]) -> str:
    """A config's text. FormatError when it holds what is not YAML."""
    import yaml

    try:
        return yaml.safe_dump(contents, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise FormatError(
            f"The SAE's metadata is not YAML ({error}); keep strings, numbers, lists, dicts in it."
        ) from error


def config_at(directory: Path) -> dict[str, Any]:
    """config.yaml of a directory; empty when there is none. FormatError when it is damaged."""
    import yaml

    path = directory / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(f"{path} is not YAML ({error}); copy or download it again.") from error
    if not isinstance(contents, dict):
        raise FormatError(f"{path} holds no settings; copy or download it again.")
    return contents


def _check(config: dict[str, Any], directory: Path) -> None:
    kind = config.get("model_kind", "transcoder_set")
    if kind != "transcoder_set":
        raise FormatError(
            f"{directory} is of model_kind {kind}; a transcoder_set, one transcoder for each "
            "layer, and a cross_layer_transcoder are read."
        )
    if config.get("activation") not in (None, "relu", "topk", "jumprelu", "jump_relu"):
        raise FormatError(
            f'{directory} has the activation "{config["activation"]}"; relu, jump_relu and topk '
            "are read."
        )


def _layers(directory: Path) -> dict[int, Path]:
    found = {
        int(match[1]): file
        for file in directory.iterdir()
        if (match := _LAYER.fullmatch(file.name))
    }
    if not found:
        listed = config_at(directory).get("transcoders")
        elsewhere = f"; its config lists {', '.join(map(str, listed))}" if listed else ""
        raise FormatError(
            f"{directory} holds no layer_0.safetensors and so on{elsewhere[:300]}: put the layers "
            "beside the config, or load those files one by one."
        )
    return dict(sorted(found.items()))


def place_of(config: dict[str, Any], name: str) -> str | None:
    """Our name of a place within a block that a config names; None when it does not."""
    place = config.get(name)
    return _PLACES.get(str(place), place)


def _transcoder(
    file: Path, layer: int, config: dict[str, Any], pair: tuple[str, str] | None
) -> SAE:
    own = config.get(OWN)
    facts = own_facts({OWN: own[layer]}) if isinstance(own, list) and layer < len(own) else {}
    if not facts:
        facts = {"model_name": config.get("model_name")}
        for name, key in (("site_in", "feature_input_hook"), ("site_out", "feature_output_hook")):
            facts[name] = f"blocks.{layer}.{place_of(config, key)}" if config.get(key) else None
    if pair is not None:
        facts["site_in"], facts["site_out"] = pair
    if not facts["site_in"] or not facts["site_out"]:
        raise FormatError(
            f"{file} has no {CONFIG_FILE} beside it that says its sites; pass site=(site read, "
            "site written)."
        )
    parse_site(str(facts["site_in"]))
    parse_site(str(facts["site_out"]))
    tensors = _tensors(file)
    selection = _selection(config, tensors, file)
    weights = {name: tensors[name] for name in (*_KEYS, "W_skip") if name in tensors}
    return whole_sae(file, **weights, selection=selection, **facts)


def _tensors(file: Path) -> dict[str, Tensor]:
    stored, _ = read_tensors(file)
    beside = [name for name in (_K, _THRESHOLD, "W_skip") if name in stored]
    tensors = whole_tensors(stored, needed=_KEYS, beside=beside, where=file)
    return tensors | {name: stored[name] for name in beside}


def _selection(config: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> AbstractSelection:
    if _THRESHOLD in tensors:
        return JumpReLU(tensors[_THRESHOLD])
    if config.get("activation") == "topk" or _K in tensors:
        k = config.get("k", tensors.get(_K))  # circuit-tracer's own writer stores it as a tensor
        if k is None:
            raise FormatError(f"{file.with_name(CONFIG_FILE)} says topk and no k; add it there.")
        return TopK(int(k), relu=False)
    if config.get("activation") in ("jumprelu", "jump_relu"):
        raise FormatError(f"{file} lacks {_THRESHOLD}, which its config's activation needs.")
    return ReLU()
