"""A store: activations of a corpus at some sites, on disk as safetensors shards with a manifest.

Every shard holds the rows of a fixed run of blocks, so a shard is a function of model, corpus and
settings, and can be made again by itself. The manifest names what they were, and each shard's size
and SHA-256. Both are written under a temporary name and moved into place, the manifest last.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gossamer.activations.rows import Group, Rows, cut, order_of, shuffled
from gossamer.errors import FormatError, GossamerError, SiteError
from gossamer.saes.native import write_text

FORMAT, VERSION = "gossamer.store", 1
MANIFEST_FILE = "manifest.json"
IN_MEMORY = 256 * 2**20
"""Bytes of rows that are shuffled together while reading, at most, but at least one shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of a store."""

    file: str
    """Its name in the directory."""

    rows: int
    """How many rows it has."""

    size: int
    """Bytes."""

    sha256: str
    """Of the whole file."""

    tokens: str
    """SHA-256 of the token ids of its blocks."""


@dataclass(frozen=True, slots=True)
class Store:
    """A directory of shards, readable in shuffled batches: an ActivationSource."""

    directory: Path
    """Where it is."""

    about: Mapping[str, Any]
    """Model, sites, dtype, corpus, context: what decides its content."""

    shards: tuple[Shard, ...]
    """Its files, in the order of the corpus."""

    @staticmethod
    def open(directory: str | Path) -> "Store":
        """FormatError when the directory holds no store, or a shard is missing or cut short."""
        directory = Path(directory)
        about, shards = read_manifest(directory)
        if not shards:
            raise FormatError(f"The store {directory} has no shard yet; run its harvest again.")
        for shard in shards:
            file = directory / shard.file
            if not file.is_file() or file.stat().st_size != shard.size:
                raise FormatError(
                    f"{file} is missing or cut short; run the same harvest again to remake it."
                )
        return Store(directory, about, shards)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it has rows of."""
        return tuple(self.about["widths"])

    @property
    def n_rows(self) -> int:
        """Rows of one epoch."""
        return sum(shard.rows for shard in self.shards)

    def width(self, site: str) -> int:
        """Width of the rows at a site."""
        if site not in self.sites:
            raise SiteError(f"This store is of {', '.join(self.sites)}, not of {site}.")
        return self.about["widths"][site]

    def rows(self, number: int) -> Rows:
        """The rows of one shard, in the order of the corpus, as stored.

        FormatError unless the file is, byte for byte, the one that was harvested.
        """
        shard = self.shards[number]
        file = self.directory / shard.file
        if not file.is_file() or sha256_of(file) != shard.sha256:
            raise FormatError(
                f"{file} is damaged, or not of this harvest: the manifest lists another hash. "
                "Run the same harvest again to remake it."
            )
        return load_shard(file)

    def batches(self, size: int, *, seed: int, start: int = 0) -> Iterator[Rows]:
        """Endless shuffled batches of `size` rows, float32, number `start` first.

        Shards come in a new order in each epoch; as many as fit in memory are shuffled together.
        The order is a function of seed, batch number and manifest.
        """
        if size < 1:
            raise GossamerError(f"A batch has at least 1 row, got size={size}.")
        return cut(self._groups(seed), size, start)

    def _groups(self, seed: int) -> Iterator[Group]:
        row = sum(self.about["widths"].values()) * 4
        longest = max(shard.rows for shard in self.shards)
        together = max(1, IN_MEMORY // (row * longest))
        epoch = 0
        while True:
            order = order_of(len(self.shards), seed, epoch).tolist()
            for first in range(0, len(order), together):
                members = order[first : first + together]
                count = sum(self.shards[i].rows for i in members)
                yield Group(count, partial(self._load, members, (seed, epoch, first)))
            epoch += 1

    def _load(self, members: list[int], place: tuple[int, ...]) -> Rows:
        parts = [self.rows(number) for number in members]
        whole = {site: torch.cat([part[site].float() for part in parts]) for site in self.sites}
        return shuffled(whole, *place)


def load_shard(file: Path) -> dict[str, Tensor]:
    """A shard's tensors. FormatError when it is damaged."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{file} is damaged ({error}); run the same harvest again to remake it."
        ) from error


def sha256_of(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(directory: Path) -> tuple[dict[str, Any], tuple[Shard, ...]]:
    """What a store is and its shards. FormatError when there is no manifest to read."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise FormatError(f"{directory} holds no store: there is no {MANIFEST_FILE}.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = (manifest["format"], manifest["version"])
        about, shards = manifest["about"], tuple(Shard(**each) for each in manifest["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path} is damaged ({error}).") from error
    if known != (FORMAT, VERSION):
        raise FormatError(f"{path} is {known[0]} {known[1]}, not {FORMAT} {VERSION}.")
    return about, shards


def write_manifest(directory: Path, about: Mapping[str, Any], shards: list[Shard]) -> None:
    """In one move."""
    manifest = {"format": FORMAT, "version": VERSION, "about": dict(about)}
    manifest["shards"] = [asdict(shard) for shard in shards]
    write_text(json.dumps(manifest, indent=1), directory / MANIFEST_FILE)
