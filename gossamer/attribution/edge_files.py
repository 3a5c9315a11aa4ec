"""The parts of `Edges` as one safetensors file: numbers as tensors, names as JSON in its header."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gossamer.attribution.nodes import NodeTable
from gossamer.errors import FormatError
from gossamer.saes.native import write_tensors

FORMAT = "gossamer.edges"
VERSION = 1
TABLES = ("sources", "targets")


def write_parts(parts: Mapping[str, Any], path: Path) -> None:
    """Write tables, tensors and JSON values by name, in one move."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for name, part in parts.items():
        flat = {name: part}
        if isinstance(part, NodeTable):
            flat = {f"{name}.{field.name}": getattr(part, field.name) for field in fields(part)}
        for key, value in flat.items():
            (tensors if isinstance(value, Tensor) else about)[key] = value
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(tensors, path, {"edges": json.dumps(about)})


def read_parts(path: Path) -> dict[str, Any]:
    """The inverse. FormatError when the file is missing, damaged or of another kind."""
    if not path.is_file():
        raise FormatError(f"There is no file {path}. Edges are what edges.save(path) wrote.")
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("edges", "{}")
            parts: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}
        about = json.loads(header)
    except (SafetensorError, ValueError, OSError) as error:
        raise FormatError(f"{path} is damaged and cannot be read as edges ({error}).") from error
    if (about.pop("format", None), about.pop("version", None)) != (FORMAT, VERSION):
        raise FormatError(
            f"{path} holds no edges of version {VERSION}. Give a file that edges.save(path) wrote."
        )
    parts |= {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
    try:
        return parts | {side: _table(parts, side) for side in TABLES}
    except TypeError as error:
        raise FormatError(f"{path} lacks a part of edges ({error}); save them again.") from error


def _table(parts: dict[str, Any], side: str) -> NodeTable:
    """A table taken out of the parts."""
    names = [name for name in parts if name.startswith(f"{side}.")]
    return NodeTable(**{name.removeprefix(f"{side}."): parts.pop(name) for name in names})
