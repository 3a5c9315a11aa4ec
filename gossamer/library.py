"""Load anything by name: a bundled name, a directory, a hub id, or a model that is loaded already.

Nothing is fetched unless the name is a hub id or a release; the bundled names need no network.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from gossamer.errors import FormatError, GossamerError, SiteError
from gossamer.interop.formats import NATIVE, SAE_LENS, format_at, known_format, only
from gossamer.interop.hub import fetched, files_of, is_hub_name, split_hub_name
from gossamer.interop.places import Place, check_one, places_of, places_under
from gossamer.interop.releases import RELEASES, near_names, release_called
from gossamer.interop.room import Sites
from gossamer.interop.sae_lens import read_sae_lens
from gossamer.models.families import adapter_for
from gossamer.models.model import Model
from gossamer.saes.crosscoder import Crosscoder, is_crosscoder, load_crosscoder, spliced_parts
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.sites import parse_site

BUNDLED_MODELS = ("pico-python",)
"""Models inside the package."""

BUNDLED_SAES = {
    "pico-python": "resid",
    "pico-python/resid": "resid",
    "pico-python/transcoders": "transcoders",
    "pico-python/jacobian": "jacobian",
}
"""Bundled sets of SAEs, and the folder of each beside its model."""


TRAINING_FOLDERS = {"checkpoints", "tensorboard"}
"""Folders beside the SAEs of a run."""


def assets() -> Path:
    """Where the bundled model and SAEs are."""
    return Path(str(files("gossamer"))) / "assets"


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Model:
    """A model with named sites.

    Args:
        source: "pico-python", a directory, a hub id, or a transformers PreTrainedModel of a
            supported family (which is put in evaluation mode and otherwise left as it is).
        tokenizer: a tokenizer or its name; None takes the one beside the model, if there is one.
        device: cpu, cuda, mps, …; None leaves a loaded model where it is, and is cpu otherwise.
        dtype: None is float32, or what a loaded model has.
    """
    wanted = _dtype(dtype)
    if not isinstance(source, str | Path):
        _check_is_model(source)
        return Model(_moved(source, device, wanted), _tokenizer(tokenizer))
    name = str(source)
    path = str(assets() / name) if name in BUNDLED_MODELS else name
    if Path(path).is_file():
        raise FormatError(f"{name} is a file. Give the directory that holds config.json beside it.")
    language_model = _moved(_read_model(path, name, wanted or torch.float32), device)
    return Model(language_model, _tokenizer(tokenizer) or _tokenizer_beside(path), name)


def _read_model(path: str, name: str, dtype: torch.dtype) -> Any:
    """The language model at a directory or hub id, every weight of it from the file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        adapter_for(AutoConfig.from_pretrained(path).model_type)  # before the weights are read
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True
        )
    except GossamerError:
        raise
    except UnpicklingError as problem:
        raise FormatError(
            f'The weights of "{name}" are a pickle that would run code, or are damaged, and were '
            "not read. Give weights in the safetensors format."
        ) from problem
    except (OSError, ValueError, RuntimeError, SafetensorError) as problem:
        raise FormatError(_not_loaded("model", name, problem)) from problem
    language_model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise FormatError(
            f'The weights of "{name}" lack {", ".join(missing[:3])} ({len(missing)} in all). '
            "Copy or download them again."
        )
    return language_model


def _check_is_model(source: Any) -> None:
    from transformers import PreTrainedModel

    if not isinstance(source, PreTrainedModel):
        raise GossamerError(
            f"A model is a bundled name ({', '.join(BUNDLED_MODELS)}), a directory, a hub id or a "
            f"transformers PreTrainedModel, got {type(source).__name__}. Give one of these."
        )


def _moved(module: Any, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Any:
    """A model or SAE on a device and of a type; None leaves each as it is."""
    if device is None and dtype is None:
        return module
    try:
        return module.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError) as problem:
        first = str(problem).strip().splitlines()[0]
        raise GossamerError(
            f'It cannot be put on device "{device}" ({first}). Give a device that this '
            "build of torch has, such as cpu, cuda or mps."
        ) from problem


def load_sae(
    path: str | Path,
    site: str | tuple[str, str] | None = None,
    *,
    center: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> SAE | Crosscoder:
    """One SAE, from files in any format of `gossamer.interop.formats`, detected by what is in them;
    a `Crosscoder` where they are one's.

    Args:
        path: a directory or file; "pico-python/resid/blocks.2.hook_resid_pre" and the like are
            bundled; a release such as "gpt2-small-res-jb", with a directory of it after a slash or
            with `site`; or a hub id, "owner/repository/directory". The last two are fetched.
        site: where it reads and writes, overriding the file; a pair (read, written) for a
            transcoder. Of a release or a set, the one that writes there.
        center: whether the model it was trained on had its writing weights centred, overriding a
            file of SAELens.
        dtype: None keeps float32 and float64 and loads half precision as float32.
    """
    for name in () if site is None else (site,) if isinstance(site, str) else site:
        parse_site(name)
    place = _place_of(path, site, center)
    return only(_read(place, device, dtype), path)


def load_saes(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Mapping[str, SparseCoder]:
    """A set of SAEs, keyed by the site each one writes: a bundled set, a directory of SAEs, a
    release, or a hub id; the last two are fetched. A crosscoder stands at each site it writes."""
    writers: dict[str, list[str]] = {}
    saes: dict[str, SparseCoder] = {}
    for member, found in saes_in(source, device=device, dtype=dtype).items():
        for sae in spliced_parts(found, faces=True):
            writers.setdefault(sae.site_out, []).append(f"{source}/{member}")
            saes[sae.site_out] = sae
    for site, members in writers.items():
        if len(members) > 1:
            count = "Two" if len(members) == 2 else len(members)
            raise FormatError(
                f"{count} SAEs in {source} write {site}; load them one by one: "
                f"{', '.join(members)}."
            )
    return saes


def saes_in(
    source: str | Path,
    *,
    strict: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> dict[str, list[SAE | Crosscoder]]:
    """The SAEs of a set by the names of the places that hold them, "." when that is `source`; a
    place that is itself a set holds several. `strict` as for `sae_directories`."""
    name = str(source)
    if _local(name) is None and name not in BUNDLED_SAES and (chosen := _on_hub(name)):
        places = {each.folder: _copy(chosen[0], each) for each in chosen[1]}
        single = len(places) == 1
        return {
            "." if single else folder: _read(place, device, dtype)
            for folder, place in places.items()
        }
    members = sae_directories(source, strict=strict)
    single = members == [_local(name)]
    return {
        "." if single else member.stem if member.is_file() else member.name: _read(
            _Place(member), device, dtype
        )
        for member in members
    }


def sae_directories(source: str | Path, *, strict: bool = False) -> list[Path]:
    """The places of the SAEs of a bundled set or of a directory, which may be an SAE itself.

    `strict` refuses one with folders that hold no SAE, but for those that training leaves.
    """
    name = str(source)
    if name in BUNDLED_SAES:
        directory = assets() / name.split("/")[0] / BUNDLED_SAES[name]
    else:
        directory = _local(name)
    if directory is None:
        raise FormatError(
            f"No SAEs called {name}. Give a directory, a hub id such as owner/name, or one of: "
            f"{', '.join(BUNDLED_SAES)}; near releases: {near_names(name, RELEASES) or 'none'}."
        )
    if format_at(directory) is not None:
        return [directory]
    inside = sorted(directory.iterdir()) if directory.is_dir() else []
    members = [member for member in inside if format_at(member) is not None]
    if not members:
        raise FormatError(
            f"{name} holds no SAE directories. Give a directory with one folder for each SAE."
        )
    known = {member.name for member in members} | TRAINING_FOLDERS
    others = [entry.name for entry in inside if entry.is_dir() and entry.name not in known]
    if strict and others:
        raise FormatError(
            f"{name} holds {len(members)} SAEs and what is none: {', '.join(others[:5])}. Give a "
            "directory of nothing but SAEs, or one of them."
        )
    return members


class _Place(NamedTuple):
    """A directory or file on this machine, and what is known of it beside what it says."""

    path: Path
    site: Sites = None
    center: bool | None = None


def _local(name: str) -> Path | None:
    """The directory or file of that name, here or among the bundled ones; None when none is."""
    path = Path(name)
    if not path.exists() and name.split("/")[0] in BUNDLED_MODELS:
        path = assets() / name
    return path if path.exists() else None


def _place_of(path: str | Path, site: Sites, center: bool | None) -> _Place:
    """Where the one SAE is that a name means, fetched if it must be."""
    name = str(path)
    local = _local(name)
    if local is not None:
        return _Place(local, site, center)
    chosen = _on_hub(name, site)
    if chosen is None:
        near = near_names(name.split("/")[0], [*BUNDLED_SAES, *RELEASES])
        raise FormatError(
            f"No directory {path}. Give one that holds an SAE, a bundled name, a release (near "
            f"names: {near or 'none'}), or a hub id such as owner/repository/directory."
        )
    repository, places = chosen
    place = _copy(repository, check_one(places, name), site)
    return place if center is None else place._replace(center=center)


def _on_hub(name: str, site: Sites = None) -> tuple[str, list[Place]] | None:
    """The repository and, of it, the SAEs that the name of a release or a hub id means, only that
    which writes `site` if given; nothing but a list of files is fetched. None for other names."""
    release = release_called(name)
    if release is not None:
        repository = release[0].repository
        wanted = f"{release[0].folder or 'layer_*.safetensors'} (of the release {name})"
        files = files_of(repository, wanted)
        return repository, places_of(release[0], files, release[1], site)
    if name.split("/")[0] in BUNDLED_MODELS or not is_hub_name(name):
        return None
    repository, folder = split_hub_name(name)
    files = files_of(repository, folder or "the list of files")
    return repository, places_under(files, folder, repository, site)


def _copy(repository: str, place: Place, site: Sites = None) -> _Place:
    """The files of one SAE of a repository on this machine."""
    root = fetched(repository, place.files)
    return _Place(root / place.folder, site if place.site is None else place.site, place.center)


def _read(
    place: _Place, device: torch.device | str | None, dtype: torch.dtype | str | None
) -> list[SAE | Crosscoder]:
    """The SAEs at a place."""
    form = known_format(place.path)
    if form is SAE_LENS:
        site, center = place.site, place.center
        sae = read_sae_lens(place.path, site=site, center=center, dtype=_dtype(dtype))
        return [_moved(sae, device)]
    if place.center is not None:
        raise GossamerError(
            f"center= is for files of SAELens, and {place.path} is of {form.name}; leave it out."
        )
    if form is NATIVE and is_crosscoder(place.path):
        whole = load_crosscoder(place.path)
        if place.site is not None:
            raise SiteError(
                f"{place.path} holds a crosscoder, which writes {', '.join(whole.writes)}. Leave "
                "site= out; load_saes gives what it is at each of them."
            )
        return [_moved(whole, device, _dtype(dtype))]
    return [_moved(sae, device, _dtype(dtype)) for sae in form.read(place.path, place.site)]


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype, also by its name."""
    if not isinstance(dtype, str):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise GossamerError(f'No dtype "{dtype}". Write float32, bfloat16, float16 or float64.')
    return found


def _tokenizer(tokenizer: Any) -> Any:
    """A tokenizer given as such or by its name."""
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    found = _tokenizer_beside(str(tokenizer))
    if found is None:
        raise FormatError(
            f"No tokenizer at {tokenizer}. Give a directory, a hub id, or a tokenizer object."
        )
    return found


def _tokenizer_beside(path: str) -> Any:
    """The tokenizer saved with a model, or None where there is none."""
    from transformers import AutoTokenizer

    is_directory = Path(path).is_dir()
    if is_directory and not any(Path(path).glob("tokenizer*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as problem:  # the Rust tokenizers raise Exception itself
        if is_directory:
            raise FormatError(_not_loaded("tokenizer", path, problem)) from problem
        return None


def _not_loaded(what: str, name: str, problem: Exception) -> str:
    first = str(problem).strip().splitlines()[0]
    return (
        f'No {what} "{name}" could be loaded ({first}). Give a bundled name '
        f"({', '.join(BUNDLED_MODELS)}), a directory with config.json and weights, or a hub id "
        "that can be reached."
    )
