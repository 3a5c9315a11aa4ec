"""Load anything by name: a bundled name, a directory, a hub id, or a model that is loaded already.

Nothing is fetched unless the name is a hub id; the bundled names need no network.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from gossamer.errors import FormatError, GossamerError, SiteError
from gossamer.interop.sae_lens import is_sae_lens, read_sae_lens
from gossamer.models.families import adapter_for
from gossamer.models.model import Model
from gossamer.saes.files import is_native, load_native
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
) -> SAE:
    """One SAE from a directory in Gossamer's own format or SAELens', detected by its files.

    Args:
        path: the directory; "pico-python/resid/blocks.2.hook_resid_pre" and the like are bundled.
        site: where it reads and writes, overriding the file; a pair (read, written) for a
            transcoder.
        center: whether the model it was trained on had its writing weights centred, overriding the
            file.
        dtype: None keeps float32 and float64 and loads half precision as float32.
    """
    for name in () if site is None else (site,) if isinstance(site, str) else site:
        parse_site(name)
    directory = Path(path)
    if not directory.exists() and str(path).split("/")[0] in BUNDLED_MODELS:
        directory = assets() / str(path)
    if not directory.is_dir():
        raise FormatError(f"No directory {path}. Give one that holds an SAE, or a bundled name.")
    if is_sae_lens(directory):
        sae = read_sae_lens(directory, site=site, center=center, dtype=_dtype(dtype))
        return _moved(sae, device)
    if not is_native(directory):
        found = ", ".join(sorted(f.name for f in directory.iterdir())[:6]) or "nothing"
        raise FormatError(
            f"{path} holds no SAE: found {found}. Known are sae.json + sae.safetensors (Gossamer) "
            "and cfg.json + sae_weights.safetensors (SAELens)."
        )
    if center is not None:
        raise GossamerError(
            "center= is for files of other libraries; a Gossamer file says it itself."
        )
    sae = load_native(directory, dtype=_dtype(dtype))
    if site is not None:
        if isinstance(site, str) and sae.is_transcoder:
            raise SiteError(
                f"{path} is a transcoder from {sae.site_in} to {sae.site_out}, so one site cannot "
                "stand for both. Give a pair (site_in, site_out), or leave site= out."
            )
        site_in, site_out = (site, site) if isinstance(site, str) else site
        sae = SAE(**{**sae.arguments(), "site_in": site_in, "site_out": site_out})
    return _moved(sae, device)


def load_saes(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Mapping[str, SparseCoder]:
    """A set of SAEs, keyed by the site each one writes: a bundled set, or a directory of SAE
    directories."""
    writers: dict[str, list[str]] = {}
    saes: dict[str, SparseCoder] = {}
    for member in sae_directories(source):
        sae = load_sae(member, device=device, dtype=dtype)
        writers.setdefault(sae.site_out, []).append(str(member))
        saes[sae.site_out] = sae
    for site, members in writers.items():
        if len(members) > 1:
            count = "Two" if len(members) == 2 else len(members)
            raise FormatError(
                f"{count} SAEs in {source} write {site}; load them one by one: "
                f"{', '.join(members)}."
            )
    return saes


def sae_directories(source: str | Path, *, strict: bool = False) -> list[Path]:
    """The directories of a bundled set or of a directory of SAEs, which may be one itself.

    `strict` refuses one with folders that hold no SAE, but for those that training leaves.
    """
    name = str(source)
    if name in BUNDLED_SAES:
        directory = assets() / name.split("/")[0] / BUNDLED_SAES[name]
    else:
        directory = Path(source)
    if not directory.is_dir():
        raise FormatError(
            f"No SAEs called {name}. Give a directory, or one of: {', '.join(BUNDLED_SAES)}."
        )
    if _holds_sae(directory):
        return [directory]
    members = sorted(filter(_holds_sae, directory.iterdir()))
    if not members:
        raise FormatError(
            f"{name} holds no SAE directories. Give a directory with one folder for each SAE."
        )
    known = {member.name for member in members} | TRAINING_FOLDERS
    others = sorted(f.name for f in directory.iterdir() if f.is_dir() and f.name not in known)
    if strict and others:
        raise FormatError(
            f"{name} holds {len(members)} SAEs and what is none: {', '.join(others[:5])}. Give a "
            "directory of nothing but SAEs, or one of them."
        )
    return members


def _holds_sae(directory: Path) -> bool:
    return directory.is_dir() and (is_native(directory) or is_sae_lens(directory))


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
