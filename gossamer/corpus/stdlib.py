"""The bundled corpus `stdlib`, its files split into trained-on and held-out.

`stdlib` is the Python source of the standard library of the interpreter that runs, which every
machine with Python has. A file is *held out* when the hash of its path selects it and no file the
bundled model was trained on has the same content (the manifest beside the model lists the hashes,
not the text).
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_ONE_IN = 20
"""One path in this many is held out, chosen by the SHA-256 of the path."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a corpus: its path relative to the corpus root, and its text."""

    path: str
    text: str

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the text: enough to know a file
        again."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def is_held_out_path(path: str) -> bool:
    """Whether the hash of a path, written with forward slashes, puts the file in the held-out
    part."""
    return int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) % HELD_OUT_ONE_IN == 0


def read_stdlib(root: Path | None = None) -> Iterator[SourceFile]:
    """Every readable UTF-8 `.py` file of the standard library, in order of path, site-packages left
    out."""
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if {"site-packages", "dist-packages"} & set(relative.parts):
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the test suite of the library keeps files in other encodings
            continue
        if text.strip():
            yield SourceFile(relative.as_posix(), text.replace("\r\n", "\n"))


def split_stdlib(
    manifest: Path | None = None, root: Path | None = None
) -> tuple[list[SourceFile], list[SourceFile]]:
    """The standard library as (training files, held-out files), each content once.

    `manifest` is a JSON file with the key "training", a list of digests; with it a file that the
    model was trained on is never counted as held out, whatever Python version or path it comes
    from.
    """
    trained = set() if manifest is None else set(json.loads(manifest.read_text())["training"])
    training: dict[str, SourceFile] = {}
    held_out: dict[str, SourceFile] = {}
    for file in read_stdlib(root):
        if is_held_out_path(file.path):
            held_out.setdefault(file.digest, file)
        else:
            training.setdefault(file.digest, file)
    for digest in (set(training) | trained) & set(held_out):
        del held_out[digest]
    return list(training.values()), list(held_out.values())
