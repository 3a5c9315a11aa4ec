"""A dashboard's file: numbers as safetensors, the rest as JSON in its header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.saes.native import write_tensors

FORMAT = "gossamer.dashboard"
VERSION = 1


def write_parts(tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    """Write it in one move."""
    header = json.dumps({"format": FORMAT, "version": VERSION, **about})
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(flat, path, {"dashboard": header})


def read_parts(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse. FormatError when the file is missing, damaged or of another kind."""
    if not path.is_file():
        raise FormatError(f"There is no file {path}. Give one that dashboard.save(path) wrote.")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("dashboard", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise FormatError(f"{path} is damaged and cannot be read ({error}).") from error
    if (header.pop("format", None), header.pop("version", None)) != (FORMAT, VERSION):
        raise FormatError(
            f"{path} holds no dashboard of version {VERSION}. Give one that dashboard.save wrote."
        )
    return tensors, header
