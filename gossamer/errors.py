"""What a user can mend. The command line prints the message and exits 2; the server answers 422.

    GossamerError        base of all below, itself a ValueError
    ├── SiteError        a place that this model, or this set of SAEs, does not have
    ├── ShapeError       tensors whose widths do not fit each other
    ├── FormatError      a file that is missing, damaged, unknown, or unsafe to read
    │   └── DiskError    a file that the disk does not take; an OSError too
    └── PromptError      a prompt, token or position that this model cannot take

A message is one sentence: what was got, what is allowed, what to do.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class GossamerError(ValueError):
    """Base of the errors a user can mend."""


class SiteError(GossamerError):
    """A site, node or latent that is not there."""


class ShapeError(GossamerError):
    """Tensors whose shapes do not fit each other."""


class FormatError(GossamerError):
    """A file or directory that cannot be read as what it should be."""


class PromptError(GossamerError):
    """A prompt, token string or position that this model cannot take."""


class DiskError(FormatError, OSError):
    """A file that cannot be written: no room, no permission, no such directory."""


def check_writable(path: str | os.PathLike[str] | None) -> None:
    """DiskError unless a file can be written at `path`: asked before hours of work, not after."""
    if path is None:
        return
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DiskError(
            f"{path} cannot be written; name a file in a directory that exists and is yours to "
            "write in."
        )


def leftovers(directory: Path) -> list[Path]:
    """What a killed process left half-written in a directory of ours: under the temporary names of
    `placed`, and those under which safetensors begins a file."""
    return [*directory.glob("*.partial"), *directory.glob(".tmp??????")]


@contextmanager
def placed(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name to write under, moved to `path` at the end. DiskError when the disk is full
    or refuses, and then nothing is left and what was there before stays."""
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        temporary.replace(path)
    except Exception as problem:
        if not isinstance(problem, OSError) and "os error" not in str(problem):  # as Rust says it
            raise
        full = getattr(problem, "errno", None) == errno.ENOSPC or "os error 28" in str(problem)
        why = "the disk is full" if full else str(problem)
        raise DiskError(
            f"{path} could not be written: {why}. Make room, or name another place."
        ) from problem
    finally:
        temporary.unlink(missing_ok=True)
