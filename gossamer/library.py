"""Load anything by name: a bundled name, a directory, a hub id, or a model that is loaded already.

Nothing is fetched unless the name is a hub id; the bundled names need no network.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from gossamer.errors import FormatError, GossamerError
from gossamer.interop.sae_lens import is_sae_lens, read_sae_lens
from gossamer.models.families import adapter_for
from gossamer.models.model import Model
from gossamer.saes.files import is_native, load_native
from gossamer.saes.sae import SAE, SparseCoder

BUNDLED_MODELS = ("pico-python",)
"""Models inside the package."""

BUNDLED_SAES = {"pico-python": "resid", "pico-python/resid": "resid"}
"""Bundled sets of SAEs, and the folder of each beside its model."""


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
            supported family
            (which is put in evaluation mode and otherwise left as it is).
        tokenizer: a tokenizer or its name; None takes the one beside the model, if there is one.
        device: cpu, cuda, mps, …; None leaves a loaded model where it is, and is cpu otherwise.
        dtype: None is float32, or what a loaded model has.
    """
    wanted = _dtype(dtype)
    if not isinstance(source, str | Path):
        language_model = source
        if device is not None or wanted is not None:
            language_model = language_model.to(device=device, dtype=wanted)
        return Model(language_model, _tokenizer(tokenizer))
    from transformers import AutoConfig, AutoModelForCausalLM

    name = str(source)
    path = str(assets() / name) if name in BUNDLED_MODELS else name
    try:
        model_type = AutoConfig.from_pretrained(path).model_type
        adapter_for(model_type)  # before the weights are read
        language_model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=wanted or torch.float32
        )
    except GossamerError:
        raise
    except (OSError, ValueError) as problem:
        raise FormatError(_not_loaded("model", name, problem)) from problem
    if device is not None:
        language_model = language_model.to(device)
    return Model(language_model, _tokenizer(tokenizer) or _tokenizer_beside(path), name)


def load_sae(
    path: str | Path,
    site: str | None = None,
    *,
    center: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> SAE:
    """One SAE from a directory in Gossamer's own format or SAELens', detected by its files.

    Args:
        path: the directory; "pico-python/resid/blocks.2.hook_resid_pre" and the like are bundled.
        site: where it reads and writes, overriding the file.
        center: whether the model it was trained on had its writing weights centred, overriding the
            file.
        dtype: None keeps float32 and float64 and loads half precision as float32.
    """
    directory = Path(path)
    if not directory.exists() and str(path).split("/")[0] in BUNDLED_MODELS:
        directory = assets() / str(path)
    if not directory.is_dir():
        raise FormatError(f"No directory {path}. Give one that holds an SAE, or a bundled name.")
    if is_sae_lens(directory):
        return read_sae_lens(
            directory, site=site, center=center, dtype=_dtype(dtype), device=device
        )
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
    sae = load_native(directory, dtype=_dtype(dtype), device=device)
    return sae if site is None else SAE(**{**sae.arguments(), "site_in": site, "site_out": site})


def load_saes(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Mapping[str, SparseCoder]:
    """A set of SAEs, keyed by the site each one writes: a bundled set, or a directory of SAE
    directories."""
    name = str(source)
    if name in BUNDLED_SAES:
        directory = assets() / name.split("/")[0] / BUNDLED_SAES[name]
    else:
        directory = Path(source)
    if not directory.is_dir():
        raise FormatError(
            f"No SAEs called {name}. Give a directory, or one of: {', '.join(BUNDLED_SAES)}."
        )
    members = (
        [directory] if _holds_sae(directory) else sorted(filter(_holds_sae, directory.iterdir()))
    )
    if not members:
        raise FormatError(
            f"{name} holds no SAE directories. Give a directory with one folder for each SAE."
        )
    saes: dict[str, SparseCoder] = {}
    for member in members:
        sae = load_sae(member, device=device, dtype=dtype)
        if sae.site_out in saes:
            raise FormatError(
                f"Two SAEs in {name} write {sae.site_out}; load them one by one with load_sae."
            )
        saes[sae.site_out] = sae
    return saes


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
    """The tokenizer saved with a model, or None."""
    from transformers import AutoTokenizer

    if Path(path).is_dir() and not any(Path(path).glob("tokenizer*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError):
        return None


def _not_loaded(what: str, name: str, problem: Exception) -> str:
    first = str(problem).strip().splitlines()[0]
    return (
        f'No {what} "{name}" could be loaded ({first}). Give a bundled name '
        f"({', '.join(BUNDLED_MODELS)}), a directory with config.json and weights, or a hub id "
        "that can be reached."
    )
