"""A disk with little room: a tmpfs of its own, where mounting one is allowed."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, kilobytes: int) -> Iterator[Path]:
    """Mounted at `directory`; the test is skipped, with the reason, where that is refused."""
    directory.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        pytest.skip(f"No tmpfs can be mounted: {problem}.")
    if done.returncode:
        pytest.skip(f"No tmpfs can be mounted: {done.stderr.strip()}.")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def fill(directory: Path, leave: int = 0) -> None:
    """Take the room of a small disk, but for some bytes; `fill` again with more room frees it."""
    taken = directory / "taken"
    taken.unlink(missing_ok=True)
    size = 0
    try:
        with taken.open("wb", buffering=0) as file:
            while True:
                size += file.write(b"x" * 4096)
    except OSError:
        pass
    with taken.open("r+b") as file:
        file.truncate(max(0, size - leave))
