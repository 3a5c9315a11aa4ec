"""The native format: a directory with sae.safetensors, sae.json and perhaps labels.json.gz.

`sae.json` is written last. Both files carry one fingerprint of the tensors, so that halves of two
different saves are never read as one SAE. Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gossamer.errors import DiskError, FormatError, placed
from gossamer.saes.abstopk import AbsTopK
from gossamer.saes.gated import Gated
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import LABELS_FILE, load_labels, save_labels
from gossamer.saes.relu import ReLU
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK

HEADER_FILE = "sae.json"
"""What the SAE is, apart from its tensors."""

TENSORS_FILE = "sae.safetensors"
"""Its tensors: W_enc, b_enc, W_dec, b_dec, W_skip and W_later if any, selection.<name>."""

FORMAT = "gossamer-sae"
"""First word of the header."""

VERSION = 1
"""Version of the layout described here."""

SELECTIONS: dict[str, type[AbstractSelection]] = {
    selection.name: selection for selection in (ReLU, TopK, AbsTopK, JumpReLU, Gated)
}
"""Selections by the word that files use."""

_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "W_later")
_OPTIONS = (
    "site_in",
    "site_out",
    "subtract_b_dec",
    "normalization",
    "prepend_bos",
    "model_name",
    "metadata",
)


def write_native(
    arguments: Mapping[str, Any], directory: str | Path, more: Mapping[str, Any] | None = None
) -> None:
    """Write the SAE with these constructor arguments, and `more` into its header. FormatError when
    its metadata is not JSON."""
    directory = Path(directory)
    selection: AbstractSelection = arguments["selection"]
    tensors = {name: arguments[name] for name in _WEIGHTS if arguments[name] is not None}
    tensors |= {f"selection.{name}": buffer for name, buffer in selection.named_buffers()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    fingerprint = _fingerprint(tensors)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "selection": {"name": selection.name, **selection.scalars()},
        **{name: arguments[name] for name in _OPTIONS},
        **({"sites_later": list(later)} if (later := arguments["sites_later"]) else {}),
        **(more or {}),
    }
    text = _json(header)
    make_directory(directory)
    write_tensors(tensors, directory / TENSORS_FILE, {"fingerprint": fingerprint})
    if arguments["labels"] is None:
        (directory / LABELS_FILE).unlink(missing_ok=True)
    else:
        save_labels(arguments["labels"], directory)
    write_text(text, directory / HEADER_FILE)


def read_native(directory: str | Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The constructor arguments of the SAE in a directory, the inverse of `write_native`.

    With `dtype=None` float16 and bfloat16 tensors become float32 and others stay as they are.
    FormatError when a file is missing, damaged, or of another version.
    """
    directory = Path(directory)
    header = read_header(directory)
    path = directory / TENSORS_FILE
    tensors, found = read_tensors(path, dtype)
    if found.get("fingerprint") != header["fingerprint"]:
        raise FormatError(
            f"{path} and {HEADER_FILE} beside it come from different saves; save the SAE again."
        )
    try:
        arguments: dict[str, Any] = {name: tensors.pop(name, None) for name in _WEIGHTS}
        arguments |= {name: header[name] for name in _OPTIONS}
        arguments["sites_later"] = tuple(header.get("sites_later", ()))
        scalars = dict(header["selection"])
        kind = SELECTIONS[scalars.pop("name")]
        inner = {name.removeprefix("selection."): tensors[name] for name in tensors}
        arguments["selection"] = kind(**scalars, **inner)
    except (KeyError, TypeError) as error:
        raise FormatError(
            f"{directory / HEADER_FILE} is damaged ({error}); save the SAE again or copy it anew."
        ) from error
    missing = [name for name in _WEIGHTS[:4] if arguments[name] is None]
    if missing:
        raise FormatError(f"{path} lacks {', '.join(missing)}; save the SAE again or copy it anew.")
    return {**arguments, "labels": load_labels(directory)}


def read_header(directory: Path) -> dict[str, Any]:
    """sae.json, checked to be this format and version."""
    path = directory / HEADER_FILE
    header = read_json(path)
    if header.get("format") != FORMAT or "fingerprint" not in header:
        raise FormatError(
            f'{path} is no header of a Gossamer SAE, its "format" is {header.get("format")!r}; '
            f"give a directory that holds {HEADER_FILE} and {TENSORS_FILE}."
        )
    if header.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {header.get('version')}, this release reads version {VERSION}; "
            "update gossamer to read it."
        )
    return header


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. FormatError when it is missing or damaged."""
    try:
        contents = json.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(
            f"{path} cannot be read ({error.strerror}); give the directory that holds it."
        ) from error
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error}); copy or download it again.") from error
    if not isinstance(contents, dict):
        raise FormatError(f"{path} holds no JSON object; copy or download it again.")
    return contents


def read_tensors(
    path: Path, dtype: torch.dtype | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its own metadata. FormatError when damaged."""
    if not path.is_file():
        raise FormatError(f"There is no {path}; give a directory that holds {path.name}.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names, metadata = file.keys(), file.metadata() or {}
            tensors = {name: as_wanted(file.get_tensor(name), dtype) for name in names}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is damaged ({error}); copy or download it again.") from error
    return tensors, metadata


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file under a temporary name and move it into place. DiskError, with
    nothing left, when the disk does not take it."""
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        tied = tensor.data_ptr() in {other.data_ptr() for other in ready.values()}
        ready[name] = tensor.clone() if tied else tensor
    with placed(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors 0.8 makes files only their owner can read
        save_file(ready, temporary, metadata)  # which refuses tensors that share memory
        temporary.chmod(mode)


def write_text(text: str, path: Path) -> None:
    """Write a text file under a temporary name and move it into place. DiskError, with nothing
    left, when the disk does not take it."""
    with placed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_directory(directory: Path) -> None:
    """Make it and its parents. DiskError when that is refused."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DiskError(
            f"The directory {directory} cannot be made ({problem.strerror}); name another."
        ) from problem


def as_wanted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """In `dtype`; with None, half precision becomes float32 and the rest stays."""
    if dtype is None and tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _json(header: dict[str, Any]) -> str:
    try:
        text = json.dumps(header, indent=2, ensure_ascii=False, allow_nan=False)
        same = json.loads(text) == header
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"The SAE's metadata is not JSON ({error}); keep strings, numbers, lists, dicts in it."
        ) from error
    if not same:
        raise FormatError(
            "The SAE's metadata would come back changed from JSON; use string keys, and lists for "
            "tuples."
        )
    return text + "\n"
