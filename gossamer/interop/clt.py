"""Cross-layer transcoders of circuit-tracer: config.yaml, and for each layer an encoder's and a
decoder's file.

    W_enc_i.safetensors    W_enc_i (d_sae, d_model), b_enc_i, perhaps threshold_i (d_sae), and the
                           bias of what is written at layer i, b_dec_i
    W_dec_i.safetensors    W_dec_i (d_sae, n_layers - i, d_model): [:, j] writes at layer i + j

    latents_i = relu(p) (p > threshold_i), p = x_i @ W_enc_i.T + b_enc_i
    y_m = b_dec_m + sum over i <= m of latents_i @ W_dec_i[:, m - i]

Layer i becomes an `SAE` with W_later, keyed by the site that it writes in its own layer. Decoders
are most of the bytes: those in float32 or float64 stay in their files, mapped, and only the rows
that are used are read. Models are run with no weight folded.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.interop.room import OWN, Room, Sites, facts_of, own_facts
from gossamer.interop.transcoder_sets import CONFIG_FILE, config_at, place_of, yaml_of
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.native import make_directory, read_tensors, write_tensors, write_text
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE
from gossamer.sites import parse_site

NAME = "circuit-tracer-clt"
KIND = "cross_layer_transcoder"

ROOM = Room(
    label="A cross-layer transcoder of circuit-tracer",
    selections=("relu", "jumprelu"),
    saes=False,
    widths=False,
    subtracts=True,
    later=True,
)

_LAYER = re.compile(r"W_enc_(\d+)\.safetensors")


def is_here(path: str | Path) -> bool:
    """Whether a directory holds such a config, or encoders and decoders without one."""
    directory = Path(path)
    if (directory / CONFIG_FILE).is_file() and "model_kind" in (config := config_at(directory)):
        return config["model_kind"] == KIND
    return all((directory / f"W_{part}_0.safetensors").is_file() for part in ("enc", "dec"))


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The members of all layers, or the one that writes `site` first; a pair (read, written) says
    the places of all layers too. FormatError for files that are missing, damaged or of no CLT."""
    directory = Path(path)
    config = config_at(directory)
    places = _places(config, directory, site)
    n_layers = _n_layers(directory, config)
    wanted = range(n_layers)
    if site is not None:
        written = site if isinstance(site, str) else site[1]
        layer = parse_site(written).layer
        if layer is None or layer not in wanted or written != f"blocks.{layer}.{places[1]}":
            raise FormatError(
                f"No transcoder in {directory} writes {written} as its own layer's site; it has "
                f"layers 0 to {n_layers - 1}, which write blocks.<layer>.{places[1]}."
            )
        wanted = range(layer, layer + 1)
    sites = [tuple(f"blocks.{layer}.{place}" for place in places) for layer in range(n_layers)]
    return [_member(directory, layer, sites, config) for layer in wanted]


def write(sae: SAE, directory: str | Path) -> None:
    """Write the cross-layer transcoder of this one layer, which must be layer 0."""
    write_set([sae], directory)


def write_set(saes: list[SAE], directory: str | Path) -> None:
    """Write a cross-layer transcoder that circuit-tracer loads. FormatError, before anything is
    written, when it has no room for a member, or the members are not of all layers from 0 on, each
    writing at its own and all later ones."""
    directory = Path(directory)
    for sae in saes:
        ROOM.check(sae)
    ordered = sorted(saes, key=lambda sae: parse_site(sae.site_out).order)
    place_in, place_out = (parse_site(s).kind for s in (ordered[0].site_in, ordered[0].site_out))
    sites = [f"blocks.{layer}.{place_out}" for layer in range(len(ordered))]
    whole = all(
        (sae.site_in, sae.site_out) == (f"blocks.{layer}.{place_in}", sites[layer])
        and sae.sites_later == tuple(sites[layer + 1 :])
        for layer, sae in enumerate(ordered)
    )
    alike = {(sae.d_sae, sae.selection.name, sae.dtype, sae.model_name) for sae in ordered}
    if not whole or len(alike) > 1:
        raise FormatError(
            f"{ROOM.label} has one transcoder for each layer from 0 on, all of the same places, "
            "kind, width and model, and each writes at its own layer and all later ones, got "
            f"{', '.join(_said(sae) for sae in ordered)}; save them with sae.save."
        )
    config = {
        "model_name": ordered[0].model_name,
        "model_kind": KIND,
        "feature_input_hook": place_in,
        "feature_output_hook": place_out,
        OWN: [facts_of(sae) for sae in ordered],
    }
    text = yaml_of(config)
    make_directory(directory)
    for layer, sae in enumerate(ordered):
        tensors = {"W_enc": sae.W_enc, "b_enc": bias_as(sae, subtract=False), "b_dec": sae.b_dec}
        if isinstance(sae.selection, JumpReLU):
            tensors["threshold"] = sae.selection.threshold
        named = {f"{name}_{layer}": tensor for name, tensor in tensors.items()}
        write_tensors(named, directory / f"W_enc_{layer}.safetensors")
        decoder = sae.W_dec[:, None]
        if sae.W_later is not None:
            decoder = torch.cat([decoder, sae.W_later], 1)
        write_tensors({f"W_dec_{layer}": decoder}, directory / f"W_dec_{layer}.safetensors")
    write_text(text, directory / CONFIG_FILE)


def _said(sae: SAE) -> str:
    return f"{sae.site_in} to {sae.site_out} and {len(sae.sites_later)} later"


def _places(config: dict[str, Any], directory: Path, site: Sites) -> tuple[str, str]:
    """The kinds of site that are read and written in each block."""
    if isinstance(site, tuple):
        read, written = (parse_site(each).kind for each in site)
        return read, written
    places = (place_of(config, "feature_input_hook"), place_of(config, "feature_output_hook"))
    if places[0] is None or places[1] is None:
        raise FormatError(
            f"{directory} has no {CONFIG_FILE} that says feature_input_hook and "
            "feature_output_hook; write one beside the layers, or pass site=(site read, site "
            "written)."
        )
    return places[0], places[1]


def _n_layers(directory: Path, config: dict[str, Any]) -> int:
    """How many layers lie here: all from 0 on."""
    found = [int(match[1]) for f in directory.iterdir() if (match := _LAYER.fullmatch(f.name))]
    if not found:
        listed = config.get("transcoders")
        elsewhere = f"; its config lists {', '.join(map(str, listed))}" if listed else ""
        raise FormatError(
            f"{directory} holds no W_enc_0.safetensors and so on{elsewhere[:300]}: put the layers "
            "beside the config."
        )
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise FormatError(
            f"{directory} lacks W_enc_{missing[0]}.safetensors of layers 0 to {max(found)}; copy "
            "or download it."
        )
    return len(found)


def _member(
    directory: Path, layer: int, sites: list[tuple[str, ...]], config: dict[str, Any]
) -> SAE:
    """The transcoder of one layer; `sites` are (read, written) of each."""
    file = directory / f"W_enc_{layer}.safetensors"
    stored, _ = read_tensors(file)
    threshold = f"threshold_{layer}"
    has_threshold = threshold in stored
    needed = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")]
    needed += [threshold] if has_threshold else []
    found = whole_tensors(stored, needed=needed, where=file)
    tensors = {name.removesuffix(f"_{layer}"): tensor for name, tensor in found.items()}
    selection = JumpReLU(tensors.pop("threshold")) if has_threshold else ReLU()
    decoder = _decoder(directory / f"W_dec_{layer}.safetensors", layer, len(sites))
    own = config.get(OWN)
    facts = own_facts({OWN: own[layer]}) if isinstance(own, list) and layer < len(own) else {}
    facts = {"model_name": config.get("model_name"), **facts}
    facts["site_in"], facts["site_out"] = sites[layer]
    later = [written for _, written in sites[layer + 1 :]]
    return whole_sae(
        file,
        **tensors,
        W_dec=decoder[:, 0],
        W_later=decoder[:, 1:] if later else None,
        sites_later=later,
        selection=selection,
        **facts,
    )


def _decoder(file: Path, layer: int, n_layers: int) -> Tensor:
    """W_dec_i (d_sae, n_layers - i, d_model)."""
    stored, _ = read_tensors(file)
    name = f"W_dec_{layer}"
    found = stored.get(name)
    if len(stored) > 1 or found is None or found.ndim != 3 or found.shape[1] != n_layers - layer:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in stored.items())
        raise FormatError(
            f"{file} should hold {name} alone, (d_sae, {n_layers - layer}, d_model) for "
            f"{n_layers} layers, and holds {shapes or 'nothing'}; copy or download it again."
        )
    return found
