"""Corpora in files: texts, directories of texts, arrays of token ids.

Of a directory every file is a document, in the order of paths, but for hidden ones and for those
that are plainly no text: a name that ends like one of `NOT_TEXT`, or a NUL byte in the first 8 kB.
Any other file that is not UTF-8 is an error, said before anything runs.
"""

import os
from pathlib import Path

import numpy as np

from gossamer.errors import FormatError

NOT_TEXT = frozenset(
    ".7z .avif .bmp .bz2 .class .dll .dylib .eot .exe .flac .gif .gz .ico .jar .jpeg .jpg .mp3 "
    ".mp4 .npy .npz .o .ogg .otf .parquet .pdf .png .pt .pth .pyc .safetensors .so .tar .tgz .tif "
    ".tiff .ttf .wav .webp .whl .woff .woff2 .xz .zip .zst".split()
)
"""Endings of files that are left out of a directory."""

_HEAD = 8192


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a path exists; what cannot be a path does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def text_files(path: Path) -> list[Path]:
    """The file, or the documents of the directory. FormatError when there is none, or one is not
    UTF-8."""
    found = [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_document(file, path))
    if not found:
        raise FormatError(f"There are no text files in {path}; give files of UTF-8 text.")
    for file in found:
        _check_text(file)
    return found


def read_text(path: Path) -> str:
    """A text that was UTF-8 when it was looked at."""
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise FormatError(f"{path} has changed and cannot be read ({error}).") from error


def token_array(path: Path) -> np.ndarray:
    """The array of a .npy or .safetensors file, mapped."""
    return _array(path) if path.suffix == ".npy" else _only_tensor(path)


def _is_document(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    if hidden or not file.is_file() or file.suffix.lower() in NOT_TEXT:
        return False
    with file.open("rb") as stream:
        return b"\0" not in stream.read(_HEAD)


def _check_text(path: Path) -> None:
    """FormatError unless the file is UTF-8; it is read in pieces."""
    try:
        with path.open(encoding="utf-8") as stream:
            while stream.read(1 << 20):
                pass
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path} is not UTF-8 text ({error}); convert it or leave it out."
        ) from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}).") from error


def _array(path: Path) -> np.ndarray:
    """An array of a .npy file, mapped. One of objects would be a pickle, which is never run."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(
            f"{path} is damaged, or no plain array ({error}); give integers saved with numpy.save."
        ) from error


def _only_tensor(path: Path) -> np.ndarray:
    """The one tensor of a safetensors file, mapped."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            tensor = file.get_tensor(names[0]) if len(names) == 1 else None
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is damaged ({error}).") from error
    if tensor is None:
        raise FormatError(
            f"{path} holds {len(names)} tensors ({', '.join(names[:5])}); a corpus is one tensor "
            "of token ids."
        )
    if tensor.is_floating_point():  # bfloat16 is none of numpy's types
        raise FormatError(f"Token ids are integers, got {tensor.dtype} in {path.name}.")
    return tensor.numpy()
