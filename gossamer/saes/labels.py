"""What the latents of an SAE fire on: tokens and contexts, in one compressed file."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from gossamer.errors import FormatError, ShapeError, placed

LABELS_FILE = "labels.json.gz"
"""Name of the file in the SAE's directory."""

VERSION = 1
"""Version of the file's layout."""

SHOWN_TOKENS = 4
"""Tokens in a label's short string."""

_CONTROLS = str.maketrans({"\n": "␤", "\t": "␉", "\r": "␍"})


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of all latents of one SAE; `labels[latent]` is one short readable string."""

    top_tokens: tuple[tuple[str, ...], ...]
    """For each latent the token strings it fires on most, best first; empty for a dead latent."""

    contexts: tuple[tuple[str, ...], ...] | None = None
    """For each latent some texts around its strongest activations; None when none were kept."""

    def __post_init__(self) -> None:
        if self.contexts is not None and len(self.contexts) != len(self.top_tokens):
            raise ShapeError(
                f"Labels need contexts for each of the {len(self.top_tokens)} latents, "
                f"got {len(self.contexts)}; give an empty tuple for a latent without any."
            )

    def __len__(self) -> int:
        return len(self.top_tokens)

    def __getitem__(self, latent: int) -> str:
        tokens = self.top_tokens[latent][:SHOWN_TOKENS]
        return " · ".join(_visible(token) for token in tokens)


def save_labels(labels: Labels, directory: Path) -> None:
    """Write the label file into an existing directory, in one move."""
    contents = {"version": VERSION, "top_tokens": labels.top_tokens, "contexts": labels.contexts}
    text = json.dumps(contents, ensure_ascii=False, separators=(",", ":"))
    with placed(directory / LABELS_FILE) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))  # same labels, same bytes


def load_labels(directory: Path) -> Labels | None:
    """The labels in a directory; None when it has no label file."""
    path = directory / LABELS_FILE
    if not path.exists():
        return None
    try:
        contents = json.loads(gzip.decompress(path.read_bytes()))
        version, contexts = contents["version"], contents["contexts"]
        if version == VERSION:
            return Labels(
                _tuples(contents["top_tokens"]), None if contexts is None else _tuples(contexts)
            )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is damaged ({error}); copy it again, or delete it to do without labels."
        ) from error
    raise FormatError(
        f"{path} has version {version}, this release reads version {VERSION}; "
        "update gossamer, or delete the file to load the SAE without labels."
    )


def _visible(token: str) -> str:
    token = token.translate(_CONTROLS)
    return token.strip() or "␣" * len(token)


def _tuples(lists: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(strings) for strings in lists)
