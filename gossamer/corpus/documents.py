"""What a corpus is: a name and documents, each a text or token ids, read again from the start as
often as wanted.

    "stdlib"                 the standard library's source: the part that the bundled model was
                             trained on, or the held-out part where a result is judged
    "stdlib/held_out", "stdlib/train", "stdlib/all"
    a path                   a text file, or a directory of text files, each one document
    .npy, .safetensors       token ids: rows are documents, one axis is one document
    [texts], a tensor        the same from memory
    a dataset                rows with a column of texts (Hugging Face `datasets`, streaming too)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gossamer.corpus.stdlib import read_stdlib, split_stdlib
from gossamer.errors import FormatError, GossamerError

Document = str | Sequence[int]
Split = Literal["train", "held_out", "all"]
MANIFEST = Path(__file__).parent.parent / "assets" / "pico-python" / "manifest.json"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents under a name."""

    name: str
    """What it is called in reports and manifests."""

    documents: Callable[[], Iterator[Document]]
    """Starts reading from the first document."""


def as_corpus(what: Any, *, split: Split = "train", column: str = "text") -> Corpus:
    """The corpus that `what` means; see the top of this file.

    Args:
        what: a name, a path, texts, token ids, a dataset, or a Corpus already.
        split: the part of `stdlib` that is meant when its name says none.
        column: the column of a dataset that holds its texts.

    GossamerError says what is allowed.
    """
    if isinstance(what, Corpus):
        return what
    if isinstance(what, str) and what.split("/")[0] == "stdlib" and not Path(what).exists():
        part = what.partition("/")[2] or split
        if part not in ("train", "held_out", "all"):
            raise GossamerError(f'"{what}": stdlib has the parts train, held_out and all.')
        return Corpus(f"stdlib/{part}", lambda: _stdlib(part))
    if isinstance(what, str | Path):
        return _from_path(Path(what))
    if isinstance(what, Tensor | np.ndarray):
        return _from_ids("token ids", torch.as_tensor(what))
    if isinstance(what, Sequence):
        return _from_sequence(what)
    if isinstance(what, Iterable):
        return _from_dataset(what, column)
    raise GossamerError(
        "A corpus is 'stdlib', a path, a list of texts, an array of token ids or a dataset, got "
        f"{type(what).__name__}."
    )


def _stdlib(part: str) -> Iterator[str]:
    """The texts in the order of their hashes: any first part of them is like the whole."""
    training, held_out = split_stdlib(MANIFEST if MANIFEST.exists() else None)
    files = {"train": training, "held_out": held_out}.get(part)
    if files is None:
        files = {file.digest: file for file in read_stdlib()}.values()
    yield from (file.text for file in sorted(files, key=lambda file: file.digest))


def _from_path(path: Path) -> Corpus:
    if path.suffix == ".npy" and path.is_file():
        return _from_ids(path.name, torch.from_numpy(np.load(path, mmap_mode="c")))
    if path.suffix == ".safetensors" and path.is_file():
        return _from_ids(path.name, _only_tensor(path))
    if path.is_file():
        return Corpus(path.name, lambda: iter([_text(path)]))
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _readable(file, path))
        if not files:
            raise FormatError(f"There are no text files in {path}; give files of UTF-8 text.")
        return Corpus(path.name, lambda: (_text(file) for file in files))
    raise FormatError(
        f"There is no corpus {path}. Give 'stdlib', a text file, a directory of text files, or a "
        ".npy or .safetensors file of token ids."
    )


def _readable(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and not hidden


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path} is not UTF-8 text ({error}); convert it or leave it out."
        ) from error


def _only_tensor(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is damaged ({error}).") from error
    if len(tensors) != 1:
        raise FormatError(
            f"{path} holds {len(tensors)} tensors ({', '.join(sorted(tensors)[:5])}); a corpus is "
            "one tensor of token ids."
        )
    return next(iter(tensors.values()))


def _from_ids(name: str, ids: Tensor) -> Corpus:
    if ids.is_floating_point() or ids.ndim not in (1, 2):
        raise FormatError(
            f"Token ids are integers with one or two axes, got {ids.dtype} of shape "
            f"{tuple(ids.shape)} in {name}."
        )
    rows = ids[None] if ids.ndim == 1 else ids
    return Corpus(name, lambda: (row.tolist() for row in rows))


def _from_sequence(what: Sequence[Any]) -> Corpus:
    if not what:
        raise GossamerError("A corpus needs at least one document, got an empty list.")
    if all(isinstance(each, int) for each in what):
        return _from_ids("token ids", torch.tensor(what))
    if any(isinstance(each, Mapping) for each in what):
        return _from_dataset(what, "text")
    documents = [each if isinstance(each, str) else [int(i) for i in each] for each in what]
    return Corpus(
        "texts" if isinstance(documents[0], str) else "token ids", lambda: iter(documents)
    )


def _from_dataset(rows: Iterable[Any], column: str) -> Corpus:
    if iter(rows) is rows:
        raise GossamerError(
            "A corpus is read more than once, and this iterator only goes once; give a list or a "
            "dataset."
        )

    def read() -> Iterator[str]:
        for row in rows:
            if not isinstance(row, Mapping) or column not in row:
                has = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
                raise GossamerError(
                    f'The dataset has no column "{column}", it has {has}. Name one with column=.'
                )
            yield row[column]

    return Corpus(getattr(getattr(rows, "info", None), "dataset_name", None) or "dataset", read)
