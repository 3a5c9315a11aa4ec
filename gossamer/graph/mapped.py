"""Safetensors files written from arrays and read as arrays, neither of which need be in memory.

The library itself reads a file to write it and writes what lies in memory; here arrays that are
memory maps stream from file to file, and a file's arrays are maps of it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from gossamer.errors import FormatError, GossamerError, placed
from gossamer.graph.rows import release

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
"""The dtypes that are written and read, by safetensors' names."""

MAX_HEADER = 100_000_000
"""Bytes of a header; safetensors reads no longer ones."""

PORTION = 1 << 22
"""Numbers that are written at once."""


class Spec(NamedTuple):
    """One array in a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write_arrays(
    arrays: Mapping[str, Shaped[np.ndarray, "..."]], metadata: Mapping[str, str], path: Path
) -> None:
    """Write arrays by name, and texts by name, in one move. DiskError when the disk refuses,
    GossamerError when the texts are too long for a header."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wide numbers first: each array then starts where its numbers are aligned.
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    end = 0
    for name in order:
        array = arrays[name]
        word = next(word for word, dtype in DTYPES.items() if dtype == array.dtype)
        header[name] = {
            "dtype": word,
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise GossamerError(
            f"What is said about the graph takes {len(text)} bytes, and a file's header has "
            f"{MAX_HEADER} at most; keep less in graph.about."
        )
    with placed(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for portion in _portions(arrays[name]):
                file.write(portion.data)


def map_arrays(path: Path) -> tuple[dict[str, str], dict[str, Shaped[np.ndarray, "..."]]]:
    """The texts and the arrays of a file; arrays are maps of it and read when they are used.

    FormatError when the file is missing, truncated, longer than it says, or no safetensors file of
    such arrays.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ValueError("it does not begin with the length of a header that it holds")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict):
            raise ValueError("the texts of its header are no JSON object")
        specs = {name: _spec(name, entry) for name, entry in header.items()}
        _check_tiling(specs, size - 8 - length)
        whole = np.memmap(path, np.uint8, "r", 8 + length) if size > 8 + length else None
        return metadata, {name: _mapped(whole, spec) for name, spec in specs.items()}
    except (OSError, ValueError, RecursionError) as problem:
        raise FormatError(
            f"{path} cannot be read as a safetensors file: {problem}. Copy it again, or save the "
            "graph again."
        ) from problem


def _spec(name: str, entry: object) -> Spec:
    """One entry of a header, its size checked against its shape. ValueError when malformed."""
    if isinstance(entry, dict):
        dtype, shape = entry.get("dtype"), entry.get("shape")
        offsets = entry.get("data_offsets")
        lists = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else []
        # Few axes: the product of a hostile header's many would take for ever.
        whole = len(lists) < 10 and all(type(n) is int and 0 <= n < 1 << 62 for n in lists)
        if lists and whole and isinstance(shape, list) and len(lists) == len(shape) + 2:
            spec = Spec(str(dtype), tuple(lists[:-2]), *lists[-2:])
            width = DTYPES[spec.dtype].itemsize if spec.dtype in DTYPES else 0
            if width and spec.end - spec.begin == math.prod(spec.shape) * width:
                return spec
    raise ValueError(
        f"the entry {name[:40]!r} is none of {', '.join(DTYPES)} whose size fits its shape"
    )


def _check_tiling(specs: Mapping[str, Spec], size: int) -> None:
    """ValueError unless the arrays follow one another and end where the file does."""
    end = 0
    for spec in sorted(specs.values(), key=lambda spec: (spec.begin, spec.end)):
        if spec.begin != end:
            raise ValueError("its arrays overlap or leave gaps")
        end = spec.end
    if end != size:
        raise ValueError(
            f"it is truncated or has too much: its arrays take {end} bytes, it has {size}"
        )


def _mapped(whole: Shaped[np.ndarray, " n"] | None, spec: Spec) -> Shaped[np.ndarray, "..."]:
    """A part of a file's one map: every map keeps a file open."""
    dtype = DTYPES[spec.dtype]
    if whole is None or spec.begin == spec.end:
        return np.zeros(spec.shape, dtype)
    return whole[spec.begin : spec.end].view(dtype).reshape(spec.shape)


def _portions(array: Shaped[np.ndarray, "..."]) -> Iterator[Shaped[np.ndarray, " n"]]:
    flat = np.asarray(array).reshape(-1)
    for start in range(0, len(flat), PORTION):
        yield np.ascontiguousarray(flat[start : start + PORTION])
        release(array)
