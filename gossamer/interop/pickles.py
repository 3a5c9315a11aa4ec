"""Files that torch.save wrote, .pt: read without running what is in them, and written.

Such a file is a pickle, a program. Tensors, numbers, texts, lists and dicts of these are taken;
anything else is refused by its name, and nothing of it runs.
"""

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import FormatError, placed

_ENOUGH = 1 << 20
"""Bytes of a pickle to look through for the names of its tensors."""


def pickled_words(path: Path) -> bytes:
    """The bytes of the program in a .pt file, where the names of its tensors stand as text; empty
    when the file is none. Nothing is run."""
    try:
        with path.open("rb") as file:
            if file.read(1) == b"\x80":  # before torch 1.6: tensors after a bare pickle
                return file.read(_ENOUGH)
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return archive.open(names[0]).read(_ENOUGH) if names else b""
    except (OSError, zipfile.BadZipFile, RuntimeError):  # RuntimeError: encrypted, unknown packing
        return b""


def load_pickle(path: Path, allowed: Sequence[tuple[type, str]] = ()) -> Any:
    """What is in a .pt file. FormatError when it is missing, damaged, or would run code: the
    refusal names what. `allowed` are stand-ins for further types, by the name that a file has."""
    if not path.is_file():
        raise FormatError(f"There is no file {path}; give a directory or file that is there.")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
            )
    except pickle.UnpicklingError as problem:
        named = re.search(r"(?:GLOBAL|global:?|class|type) ([\w.]+\.\w+)", str(problem))
        what = f"names {named[1]}, which could" if named else "holds what could"
        raise FormatError(
            f"{path} {what} run code, so it is not read; only tensors and plain values are: save "
            "these alone with the library that it came from."
        ) from problem
    except Exception as problem:  # a damaged file makes torch raise anything
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise FormatError(
            f"{path} is truncated or no .pt file ({reason[:120]}); copy or download it again."
        ) from problem


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a .pt file. FormatError as of `load_pickle`, and when it is no dict."""
    contents = load_pickle(path)
    if not isinstance(contents, dict):
        raise FormatError(
            f"{path} holds a {type(contents).__name__}, not a dict of tensors; save the "
            "state_dict alone with the library that it came from."
        )
    return contents


def write_pickle(contents: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values as torch.save does, under a temporary name and then moved into
    place. DiskError, with nothing left, when the disk does not take it."""
    ready = {
        name: value.detach().cpu().contiguous().clone() if isinstance(value, Tensor) else value
        for name, value in contents.items()  # a view would bring all that it is a view of
    }
    with placed(path) as temporary, temporary.open("wb") as stream:
        torch.save(ready, stream)
