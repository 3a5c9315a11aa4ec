"""Where rows of edges lie while they are computed: a temporary directory, or the caller's."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossamer.errors import DiskError, FormatError, placed

ABOUT = "graph.json"
"""What the rows are of."""


@contextmanager
def rows_directory(path: Path | None, about: Mapping[str, Any]) -> Iterator[Path]:
    """A directory for the rows of one graph; a temporary one is removed at the end.

    Raises FormatError when the caller's holds another graph's rows, or anything else.
    """
    if path is None:
        temporary = Path(tempfile.mkdtemp(prefix="gossamer-graph-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DiskError(f"{path} cannot be made ({problem}); name another directory.") from problem
    listed = path / ABOUT
    if listed.exists():
        _check_same(listed, about)
    elif any(path.iterdir()):
        raise FormatError(f"{path} is not empty and holds no graph; name a new or empty directory.")
    else:
        with placed(listed) as file:
            file.write_text(json.dumps(about))
    yield path


def _check_same(listed: Path, about: Mapping[str, Any]) -> None:
    """FormatError unless the directory's rows are of the same graph."""
    try:
        there = dict(json.loads(listed.read_text()))
    except (ValueError, TypeError) as problem:
        raise FormatError(
            f"{listed} is damaged ({problem}); remove its directory and compute the graph again."
        ) from problem
    wanted = json.loads(json.dumps(about))
    differing = [name for name in wanted if there.get(name) != wanted[name]]
    if differing:
        name = differing[0]
        raise FormatError(
            f"{listed.parent} holds rows of another graph: its {name} is {there.get(name)!r}, this "
            f"one's {wanted[name]!r}. Name another directory."
        )
