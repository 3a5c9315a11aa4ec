"""What a corpus is: a name and documents, each a text or token ids, read again from the start as
often as wanted.

    "stdlib"                 the standard library's source: the part that the bundled model was
                             trained on, or the held-out part where a result is judged
    "stdlib/held_out", "stdlib/train", "stdlib/all"
    a path                   a text file, a directory of text files, each one document, or a
                             directory that a dataset was saved in
    .npy, .safetensors       token ids: rows are documents, one axis is one document
    "hf:NAME", "hf:NAME:SPLIT"   a dataset, loaded with Hugging Face `datasets`
    [texts], a tensor        the same from memory
    a dataset                rows with a column of texts (Hugging Face `datasets`, streaming too)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from gossamer.corpus.datasets import is_saved, load_named, load_saved, refuse_splits
from gossamer.corpus.files import is_there, read_text, text_files, token_array
from gossamer.corpus.stdlib import read_stdlib, split_stdlib
from gossamer.errors import FormatError, GossamerError

Document = str | Sequence[int] | np.ndarray
Split = Literal["train", "held_out", "all"]
MANIFEST = Path(__file__).parent.parent / "assets" / "pico-python" / "manifest.json"
ALLOWED = (
    "A corpus is 'stdlib', a text file, a directory of text files, a .npy or .safetensors file of "
    "token ids, a dataset (saved in a directory, or 'hf:NAME'), a list of texts or token ids, or "
    "an array of token ids"
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents under a name."""

    name: str
    """What it is called in reports and manifests."""

    documents: Callable[[], Iterator[Document]]
    """Starts reading from the first document."""

    is_text: bool | None = None
    """Whether they are texts rather than token ids; None: as the first document is."""


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
    if isinstance(what, str | Path):
        return _named(what, split, column)
    if isinstance(what, Tensor | np.ndarray):
        return _from_ids("token ids", what)
    if isinstance(what, Mapping):
        refuse_splits(what)
    if isinstance(what, Sequence) and not isinstance(what, bytes):
        return _from_sequence(what, column)
    if isinstance(what, Iterable) and not isinstance(what, bytes):
        return _from_rows(what, column)
    raise GossamerError(f"{ALLOWED}, got {type(what).__name__}.")


def _named(what: str | Path, split: Split, column: str) -> Corpus:
    """The corpus of a name or path."""
    there = is_there(what)
    if isinstance(what, str) and what.split("/")[0] == "stdlib" and not there:
        part = what.partition("/")[2] or split
        if part not in ("train", "held_out", "all"):
            raise GossamerError(f'"{what}": stdlib has the parts train, held_out and all.')
        return Corpus(f"stdlib/{part}", lambda: _stdlib(part), is_text=True)
    if isinstance(what, str) and what.startswith("hf:"):
        return _from_rows(load_named(what), column, what)
    if there and is_saved(Path(what)):
        return _from_rows(load_saved(Path(what)), column, Path(what).name)
    if there:
        return _from_path(Path(what))
    said = str(what)
    shown = said if len(said) <= 60 else f"{said[:40]}… of {len(said):,} characters"
    raise FormatError(f"There is no corpus {shown!r}. {ALLOWED}; a text itself stands in a list.")


def _stdlib(part: str) -> Iterator[str]:
    """The texts in the order of their hashes: any first part of them is like the whole."""
    training, held_out = split_stdlib(MANIFEST if MANIFEST.exists() else None)
    files = {"train": training, "held_out": held_out}.get(part)
    if files is None:
        files = {file.digest: file for file in read_stdlib()}.values()
    yield from (file.text for file in sorted(files, key=lambda file: file.digest))


def _from_path(path: Path) -> Corpus:
    if path.is_file() and path.suffix in (".npy", ".safetensors"):
        return _from_ids(path.name, token_array(path))
    files = text_files(path)
    return Corpus(path.name, lambda: map(read_text, files), is_text=True)


def _from_ids(name: str, ids: Tensor | np.ndarray) -> Corpus:
    """Token ids with one or two axes; what is mapped from a file stays there until it is read."""
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else ids
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise FormatError(
            f"Token ids are integers with one or two axes, got {array.dtype} of shape "
            f"{array.shape} in {name}."
        )
    if array.size == 0:
        raise FormatError(f"A corpus needs at least one token, got none in {name}.")
    rows = array[None] if array.ndim == 1 else array
    return Corpus(name, lambda: iter(rows), is_text=False)


def _from_sequence(what: Sequence[Any], column: str) -> Corpus:
    if len(what) == 0:
        raise GossamerError("A corpus needs at least one document, got an empty list.")
    first = what[0]
    if isinstance(first, Mapping):
        return _from_rows(what, column)
    if isinstance(first, str):
        strange = next((i for i, each in enumerate(what) if not isinstance(each, str)), None)
        if strange is not None:
            raise GossamerError(
                f"A list of texts has nothing else in it, got {type(what[strange]).__name__} at "
                f"place {strange}."
            )
        return Corpus("texts", lambda: iter(what), is_text=True)
    if isinstance(first, int | np.integer) and not isinstance(first, bool):
        return _from_ids("token ids", _ids(what, ""))
    documents = [_ids(each, f" at place {i}") for i, each in enumerate(what)]
    return Corpus("token ids", lambda: iter(documents), is_text=False)


def _ids(what: Any, where: str) -> np.ndarray:
    """One document of token ids. GossamerError when it is anything else."""
    if isinstance(what, Tensor):
        what = what.detach().cpu().numpy()
    if isinstance(what, Sequence) and not isinstance(what, str | bytes):
        kinds = {type(each) for each in what}
        if all(issubclass(kind, int | np.integer) and kind is not bool for kind in kinds):
            return np.array(what, dtype=np.int64)
        bad = next(kind for kind in kinds if not issubclass(kind, int | np.integer) or kind is bool)
        raise GossamerError(f"Token ids are integers, got {bad.__name__} in the list{where}.")
    if isinstance(what, np.ndarray) and what.ndim == 1 and what.dtype.kind in "iu":
        return what
    raise GossamerError(f"{ALLOWED}, got {type(what).__name__}{where} of a list.")


def _from_rows(rows: Iterable[Any], column: str, name: str | None = None) -> Corpus:
    if iter(rows) is rows:
        raise GossamerError(
            "A corpus is read more than once, and this iterator only goes once; give a list or a "
            "dataset."
        )

    def read() -> Iterator[str]:
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping) or column not in row:
                has = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
                raise GossamerError(
                    f'The dataset has no column "{column}", it has {has}. Name one with column= '
                    "(--column)."
                )
            if not isinstance(row[column], str):
                raise GossamerError(
                    f'The column "{column}" of a dataset holds texts, got '
                    f"{type(row[column]).__name__} in row {number}; name another column, or leave "
                    "such rows out."
                )
            yield row[column]

    own = getattr(getattr(rows, "info", None), "dataset_name", None)
    return Corpus(name or own or "dataset", read, is_text=True)
