"""The workspace: labels, jobs, results and graphs as files, each put in place whole, and what of
them is known by id."""

import json
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gossamer.errors import FormatError, GossamerError, placed
from gossamer.server.faults import Refusal, to_json

LABELS = "labels.json"
ID = re.compile(r"[agjr]-[0-9a-f]{16}")
"""Ids of analyses, graphs, jobs and results; nothing else becomes part of a file's name."""

LISTED = {
    "results": ("id", "kind", "title", "created"),
    "graphs": ("id", "title", "created", "prompt", "target", "n_nodes", "n_edges", "verified"),
}
"""What a list says of each file, by folder."""


class Store:
    """A workspace directory, of one server at a time."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory).resolve()
        try:
            for name in ("jobs", "results", "graphs", "reports", "rows"):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
            self._lock_file = (self.directory / ".lock").open("a")
        except OSError as problem:
            raise FormatError(
                f"The workspace {directory} cannot be used ({problem.strerror}); name a directory "
                "that you can write in."
            ) from problem
        if not _locked(self._lock_file):
            self._lock_file.close()
            raise GossamerError(
                f"Another server uses the workspace {directory}; name another --workspace, or stop "
                "that one."
            )
        self._guard = threading.Lock()
        try:
            self._sweep()
            self._contents = {
                folder: {each["id"]: _info(folder, each) for each in self.every(folder)}
                for folder in LISTED
            }
            self._labels = self._read_labels()
        except Exception:
            self.close()
            raise

    def _sweep(self) -> None:
        """Remove what a killed server left: graphs that nothing is said of, half-written files, and
        rows of edges whose job is not remembered."""
        for path in (self.directory / "graphs").iterdir():
            name, _, rest = path.name.partition(".")
            if not ID.fullmatch(name):
                continue
            if rest.endswith(".partial") or not self.path("graphs", name).exists():
                path.unlink(missing_ok=True)
        for path in (self.directory / "rows").iterdir():
            if ID.fullmatch(path.name) and not self.path("jobs", path.name).exists():
                shutil.rmtree(path, ignore_errors=True)

    def _read_labels(self) -> dict[str, dict[str, str]]:
        path = self.directory / LABELS
        labels = self._read(path) if path.exists() else {}
        if not all(isinstance(each, dict) for each in labels.values()):
            raise FormatError(f"{path} is damaged; put a copy back, or delete it.")
        return labels

    def close(self) -> None:
        """Let another server have the workspace."""
        self._lock_file.close()

    def label(self, site: str, index: int) -> str | None:
        """What was saved for a latent."""
        return self._labels.get(site, {}).get(str(index))

    @property
    def has_labels(self) -> bool:
        """Whether any label was saved."""
        return any(self._labels.values())

    def set_label(self, site: str, index: int, label: str) -> None:
        """Save a latent's label; an empty one is taken away."""
        with self._guard:
            site_labels = dict(self._labels.get(site, {}))
            site_labels.pop(str(index), None)
            if label:
                site_labels[str(index)] = label
            labels = {**self._labels, site: site_labels}
            self._write(self.directory / LABELS, labels)
            self._labels = labels

    def save(self, folder: str, name: str, content: Mapping[str, Any]) -> None:
        """Write FOLDER/ID.json, such as jobs/ID.json."""
        with self._guard:
            self._write(self.path(folder, name), content)
            if folder in LISTED:
                self._contents[folder][name] = _info(folder, content)

    def contents(self, folder: str) -> list[dict[str, Any]]:
        """What results or graphs there are, newest first, each in short."""
        with self._guard:
            return sorted(self._contents[folder].values(), key=lambda each: -each["created"])

    def load(self, folder: str, name: str) -> dict[str, Any]:
        """Read what `save` wrote. Refusal 404 when there is none."""
        path = self.path(folder, name)
        if not path.exists():
            raise not_found(folder.removesuffix("s"), name)
        return self._read(path)

    def delete(self, folder: str, name: str) -> None:
        """Take a file away, with what belongs to it."""
        path = self.path(folder, name)
        if not path.exists():
            raise not_found(folder.removesuffix("s"), name)
        with self._guard:
            path.unlink(missing_ok=True)
            self._contents.get(folder, {}).pop(name, None)
        path.with_suffix(".safetensors").unlink(missing_ok=True)
        if folder == "graphs":
            self.path("reports", name).unlink(missing_ok=True)
        if folder == "jobs":
            self.drop_rows(name)

    def rows(self, job: str) -> Path:
        """Where the edges of a job's graphs lie until they are whole; a rerun goes on there."""
        return self.path("rows", job, "")

    def drop_rows(self, job: str) -> None:
        """Take them away."""
        shutil.rmtree(self.rows(job), ignore_errors=True)

    def every(self, folder: str) -> list[dict[str, Any]]:
        """All files of a folder, oldest first."""
        found = [self._read(path) for path in (self.directory / folder).glob("*.json")]
        return sorted(found, key=lambda each: each.get("created", 0))

    def path(self, folder: str, name: str, suffix: str = ".json") -> Path:
        """The file of an id. Refusal 404 for what is no id."""
        if not ID.fullmatch(name):
            raise not_found(folder.removesuffix("s"), name)
        return self.directory / folder / f"{name}{suffix}"

    def inside(self, given: str) -> Path:
        """A path in the workspace. GossamerError for one that leaves it, or that is not there."""
        try:
            path = (self.directory / given).resolve()
            is_there = path.is_relative_to(self.directory) and path.exists()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a loop of links
            is_there = False
        if not is_there:
            raise GossamerError(
                f"{given[:60]!r} is not in the workspace; give a path inside "
                f"{self.directory.name}/."
            )
        return self.directory / given

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise FormatError(
                f"{path} is damaged ({problem}); put a copy back, or delete it."
            ) from problem
        if not isinstance(content, dict):
            raise FormatError(f"{path} is damaged; put a copy back, or delete it.")
        return content

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        with placed(path) as temporary:
            temporary.write_bytes(to_json(content))


def _info(folder: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content.get(name) for name in LISTED[folder]}


def not_found(what: str, name: str) -> Refusal:
    """404 for an id that there is not."""
    return Refusal(404, "not_found", f"There is no {what} {name[:60]!r} here.")


def _locked(file: Any) -> bool:
    """Take the lock that a process loses when it ends, however it ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # a system without such locks
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
