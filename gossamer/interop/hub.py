"""Files of Hugging Face hub repositories: what there is, and a local copy of some of it.

Copies lie in the hub client's own cache (HF_HOME); without a network, or with HF_HUB_OFFLINE=1,
that cache is all there is. Where the hub is can be set with HF_ENDPOINT. Nothing is fetched but
what is asked for by name.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gossamer.errors import FormatError

T = TypeVar("T")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[^\\]*)?")


def is_hub_name(name: str) -> bool:
    """Whether a name can be owner/repository or owner/repository/folder, and no local path.

    What begins with a directory that is here is a path, even when the rest of it is not there.
    """
    first = Path(name.split("/")[0])
    return _HUB_NAME.fullmatch(name) is not None and ".." not in name and not first.exists()


def split_hub_name(name: str) -> tuple[str, str]:
    """(owner/repository, folder), the folder "" for the whole repository."""
    owner, repository, *folder = name.strip("/").split("/")
    return f"{owner}/{repository}", "/".join(folder)


def files_of(repository: str, wanted: str) -> list[str]:
    """The names of all files of a repository, its newest revision's; without a network, of those
    that are in the cache. FormatError, naming `wanted`, when neither can be had."""
    from huggingface_hub import HfApi, snapshot_download

    def listed() -> list[str]:
        siblings = HfApi().model_info(repository, revision="main").siblings or []
        return [sibling.rfilename for sibling in siblings]

    def cached() -> list[str]:
        root = Path(snapshot_download(repository, revision="main", local_files_only=True))
        return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]

    return sorted(_tried(listed, repository, wanted, or_else=cached))


def fetched(repository: str, files: Sequence[str]) -> Path:
    """The local copy of a repository, with these files in it. FormatError when one cannot be had:
    those in the cache are not fetched again."""
    from huggingface_hub import hf_hub_download

    root = Path()
    for file in files:

        def one(file: str = file) -> Path:
            return Path(hf_hub_download(repository, file, revision="main"))

        copy = _tried(one, repository, file)
        root = copy.parents[len(Path(file).parts) - 1]
    return root


def _tried(
    what: Callable[[], T], repository: str, wanted: str, or_else: Callable[[], T] | None = None
) -> T:
    """What the hub's client gives, or one sentence."""
    try:
        return what()
    except Exception as problem:  # requests', httpx' and the client's own have no common base
        if or_else is not None:
            try:
                return or_else()
            except Exception:  # the first problem says more than that the cache is empty too
                pass
        first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise FormatError(
            f"{wanted} of the hub's {repository} cannot be had ({first}); name a repository and "
            "files that are there, fetch them once where there is a network, or give a local "
            "directory."
        ) from problem
