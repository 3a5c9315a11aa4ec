"""A store: activations of a corpus at some sites, on disk as safetensors shards with a manifest.

Every shard holds the rows of a fixed run of blocks, so a shard is a function of model, corpus and
settings, and can be made again by itself. Its rows lie in the order of a permutation, so that any
part of it is a sample of all its sequences, with the token of each row and whether a document
starts there. The manifest names what the shards were made from, and each one's size and SHA-256.
Both are written under a temporary name and moved into place, the manifest last; while a harvest
runs, each shard has an entry of its own beside it, which counts as listed.

A batch is read from parts of several shards. With L tokens a sequence, a batch of B rows has

    m_w = 1 + B · L / (rows of the shards that are open together)

rows of the same sequence for each of its rows, 1 being best.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gossamer.activations.rows import Group, Rows, cut, order_of
from gossamer.errors import FormatError, GossamerError, SiteError
from gossamer.saes.native import write_text

FORMAT, VERSION = "gossamer.store", 2
MANIFEST_FILE = "manifest.json"
ENTRIES = "shard-*.json"
"""Beside shards that the manifest does not list yet: what it will say of each."""

TOKENS, STARTS = "tokens", "starts"
"""Names in a shard, beside the sites: the token of each row, and whether a document starts there;
since version 2, in which rows are permuted."""

IN_MEMORY = 256 * 2**20
"""Bytes of rows that are shuffled together while reading, at most."""

OPEN_SHARDS = 8
"""Shards that are read together, at least, where there are as many; under twice as many."""


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

    blocks: int = 0
    """How many blocks of the corpus it holds."""


@dataclass(frozen=True, slots=True)
class Store:
    """A directory of shards, readable in shuffled batches: an ActivationSource."""

    directory: Path
    """Where it is."""

    about: Mapping[str, Any]
    """Model, sites, dtype, corpus, context: what decides its content; with the number of rows and
    a digest of the shards."""

    shards: tuple[Shard, ...]
    """Its files, in the order of the corpus."""

    remade: tuple[str, ...] = field(default=(), compare=False)
    """Files that were missing or damaged and that the harvest that gave this store made again."""

    _checked: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)

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
                    f"{file} is missing or cut short; run the same harvest again to remake it, "
                    "with as many tokens or fewer."
                )
        return Store(directory, about | _identity(shards), shards)

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
        """The rows of one shard by site, in the order of the corpus, as stored.

        FormatError unless the file is, byte for byte, the one that was harvested.
        """
        tensors = self._in_order(number)
        return {site: tensors[site] for site in self.sites}

    def tokens(self, number: int) -> tuple[Int32[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """The token of each of these rows, and whether a document starts there."""
        tensors = self._in_order(number)
        return tensors[TOKENS], tensors[STARTS]

    def _in_order(self, number: int) -> dict[str, Tensor]:
        tensors = load_shard(self._whole(number))
        back = shard_order(self.shards[number].rows).argsort()
        return {name: values[back] for name, values in tensors.items()}

    def _whole(self, number: int) -> Path:
        """A shard's file. FormatError unless it is the manifest's, which is looked at again only
        when the file has changed."""
        shard = self.shards[number]
        file = self.directory / shard.file
        state = file.stat() if file.is_file() else None
        mark = None if state is None else (state.st_mtime_ns, state.st_size)
        if mark is None or self._checked.get(shard.file) != mark:
            if mark is None or sha256_of(file) != shard.sha256:
                raise FormatError(
                    f"{file} is damaged, or not of this harvest: the manifest lists another hash. "
                    "Run the same harvest again to remake it."
                )
            self._checked[shard.file] = mark
        return file

    def batches(
        self, size: int, *, seed: int, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Endless shuffled batches of `size` rows, float32, number `start` first.

        Shards come in a new order in each epoch, and parts of several are shuffled together, as
        many rows as fit in memory. The order is a function of seed, batch number and manifest.
        `part=(i, n)` gives part i of n of each batch, and reads no other row.
        """
        if size < 1:
            raise GossamerError(f"A batch has at least 1 row, got size={size}.")
        return cut(self._groups(seed), size, start, part)

    def _groups(self, seed: int) -> Iterator[Group]:
        most = max(1, IN_MEMORY // (sum(self.about["widths"].values()) * 4))
        epoch = 0
        while True:
            order = order_of(len(self.shards), seed, epoch)
            for members in order.tensor_split(max(1, len(order) // OPEN_SHARDS)):
                together = members.tolist()
                n_parts = -(-sum(self.shards[i].rows for i in together) // most)
                for turn in range(n_parts):
                    pieces = [self._piece(i, (seed, epoch), turn, n_parts) for i in together]
                    count = sum(stop - start for _, start, stop in pieces)
                    place = (seed, epoch, together[0], turn)
                    yield Group(count, partial(self._load, pieces, place))
            epoch += 1

    def _piece(
        self, number: int, place: tuple[int, int], turn: int, n_parts: int
    ) -> tuple[int, int, int]:
        """(shard, first row, end) of what a shard gives on one turn of `n_parts`."""
        part = int(order_of(n_parts, *place, number)[turn])
        rows = self.shards[number].rows
        return number, rows * part // n_parts, rows * (part + 1) // n_parts

    def _load(
        self,
        pieces: list[tuple[int, int, int]],
        place: tuple[int, ...],
        places: Int64[Tensor, " n"] | None,
    ) -> Rows:
        counts = [stop - start for _, start, stop in pieces]
        order = order_of(sum(counts), *place)
        if places is not None:
            return self._scattered(pieces, order[places])
        parts = [
            read_part(self._whole(number), self.sites, slice(start, stop))
            for number, start, stop in pieces
            if start < stop
        ]
        whole = {site: torch.cat([part[site].float() for part in parts]) for site in self.sites}
        return {site: values[order] for site, values in whole.items()}

    def _scattered(self, pieces: list[tuple[int, int, int]], wanted: Int64[Tensor, " n"]) -> Rows:
        """Rows by their places in the pieces one after another."""
        rows = {
            site: torch.empty(len(wanted), self.width(site), dtype=torch.float32)
            for site in self.sites
        }
        before = 0
        for number, start, stop in pieces:
            here = ((wanted >= before) & (wanted < before + stop - start)).nonzero()[:, 0]
            if len(here):
                found = load_shard(self._whole(number))  # mapped: only these rows are read
                for site in self.sites:
                    rows[site][here] = found[site][wanted[here] - before + start].float()
            before += stop - start
        return rows


def shard_order(n_rows: int) -> Tensor:
    """Which row of the corpus' order each row of a shard is."""
    return order_of(n_rows, VERSION)


def read_part(file: Path, sites: tuple[str, ...], part: slice) -> Rows:
    """Some rows of a shard as they lie."""
    try:
        with safe_open(file, framework="pt") as shard:
            return {site: shard.get_slice(site)[part] for site in sites}
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{file} is damaged ({error}); run the same harvest again to remake it."
        ) from error


def _identity(shards: tuple[Shard, ...]) -> dict[str, Any]:
    """What a store that has grown, or is of other bytes, has otherwise."""
    listed = " ".join(f"{shard.file} {shard.rows} {shard.sha256}" for shard in shards)
    digest = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return {"rows": sum(shard.rows for shard in shards), "digest": digest}


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
    """What a store is and its shards, also those that a harvest which has not ended made.
    FormatError when there is no manifest to read."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise FormatError(f"{directory} holds no store: there is no {MANIFEST_FILE}.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = (manifest["format"], manifest["version"])
        listed = manifest["shards"] if known == (FORMAT, VERSION) else []
        about, shards = manifest["about"], tuple(Shard(**each) for each in listed)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path} is damaged ({error}); remove {directory} and harvest again."
        ) from error
    if known != (FORMAT, VERSION):
        raise FormatError(
            f"{path} is {known[0]} {known[1]}, this release reads {FORMAT} {VERSION}; harvest "
            "again into another directory."
        )
    every = {shard.file: shard for shard in (*shards, *_entries(directory))}
    return about, tuple(in_order(every))


def write_manifest(directory: Path, about: Mapping[str, Any], shards: list[Shard]) -> None:
    """In one move; the entries of these shards go."""
    manifest = {"format": FORMAT, "version": VERSION, "about": dict(about)}
    manifest["shards"] = [asdict(shard) for shard in shards]
    write_text(json.dumps(manifest, indent=1), directory / MANIFEST_FILE)
    for shard in shards:
        _entry_of(directory, shard).unlink(missing_ok=True)


def in_order(shards: Mapping[str, Shard]) -> list[Shard]:
    """Shards by file, in the order of the corpus."""
    return [shards[name] for name in sorted(shards, key=lambda name: (len(name), name))]


def write_entry(directory: Path, shard: Shard) -> None:
    """What the manifest will say of a shard, beside it. Later than what the manifest says."""
    write_text(json.dumps(asdict(shard)), _entry_of(directory, shard))


def has_entries(directory: Path) -> bool:
    """Whether there are shards that the manifest does not list yet."""
    return any(directory.glob(ENTRIES))


def _entry_of(directory: Path, shard: Shard) -> Path:
    return (directory / shard.file).with_suffix(".json")


def _entries(directory: Path) -> Iterator[Shard]:
    for path in directory.glob(ENTRIES):
        try:
            yield Shard(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise FormatError(
                f"{path} is damaged ({error}); remove it and run the same harvest again."
            ) from error
