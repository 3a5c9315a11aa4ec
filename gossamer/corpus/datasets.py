"""Hugging Face `datasets`: one that was saved in a directory, and one that is loaded by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from gossamer.errors import FormatError, GossamerError

PREFIX = "hf:"
"""What the name of a dataset to load begins with."""

_SAVED = ("state.json", "dataset_dict.json")


def is_saved(directory: Path) -> bool:
    """Whether `save_to_disk` wrote this directory."""
    return any((directory / name).is_file() for name in _SAVED)


def load_saved(directory: Path) -> Iterable[Any]:
    """The rows of a directory that `save_to_disk` wrote."""
    library = _library(f"{directory} is a dataset")
    try:
        found = library.load_from_disk(str(directory))
    except Exception as problem:  # of pyarrow, json, fsspec …
        raise FormatError(
            f"The dataset in {directory} is damaged ({_first_line(problem)}); save it again."
        ) from problem
    if isinstance(found, Mapping):
        splits = ", ".join(f"{directory}/{split}" for split in found)
        raise GossamerError(f"{directory} holds several splits; give one of them: {splits}.")
    return found


def load_named(name: str) -> Iterable[Any]:
    """The rows of "hf:NAME" or "hf:NAME:SPLIT"; NAME is whatever `datasets.load_dataset` takes."""
    library = _library(f"{name} is a dataset")
    path, _, split = name.removeprefix(PREFIX).partition(":")
    try:
        found = library.load_dataset(path, split=split or None)
    except Exception as problem:  # every builder raises its own
        raise FormatError(
            f"The dataset {name} could not be loaded ({_first_line(problem)}). Write "
            f"{PREFIX}NAME or {PREFIX}NAME:SPLIT with what datasets.load_dataset takes as NAME."
        ) from problem
    if not isinstance(found, Mapping):
        return found
    if len(found) == 1:
        return next(iter(found.values()))
    splits = ", ".join(f"{PREFIX}{path}:{split}" for split in found)
    raise GossamerError(f"{name} has several splits; give one of them: {splits}.")


def refuse_splits(what: Mapping[Any, Any]) -> NoReturn:
    """A DatasetDict, or another mapping: one of its values may be a corpus."""
    names = ", ".join(map(repr, list(what)[:8]))
    raise GossamerError(
        f"A corpus is one split of a dataset, got a {type(what).__name__} with the keys {names}; "
        "give what stands under one of them."
    )


def _library(why: str) -> Any:
    try:
        import datasets
    except ImportError as problem:
        raise GossamerError(
            f"{why}, and Hugging Face datasets is not installed: pip install 'gossamer[data]'."
        ) from problem
    return datasets


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
