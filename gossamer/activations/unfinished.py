"""A store that is being made: what is there, what is still to do, and the manifest at the end.

While shards are made the manifest is not touched; each shard has an entry beside it. Entries count
as listed, so a harvest that was killed goes on from every shard that any of its processes had
finished. At the end one process lists them all in the manifest, in one move, and the entries go.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.activations.rows import counted, in_groups
from gossamer.activations.shards import Task, tokens_hash
from gossamer.activations.store import (
    MANIFEST_FILE,
    Shard,
    has_entries,
    in_order,
    read_manifest,
    write_manifest,
)
from gossamer.corpus import TokenBlock
from gossamer.errors import DiskError, FormatError, leftovers
from gossamer.saes.native import make_directory


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A directory that is becoming a store."""

    directory: Path
    """Where."""

    about: Mapping[str, Any]
    """What decides its content."""

    shards: Mapping[str, Shard]
    """What was listed when this harvest began, by file."""

    @staticmethod
    def of(directory: Path, about: Mapping[str, Any]) -> "Unfinished":
        """Nothing is written yet. FormatError unless the directory is empty or this harvest's."""
        if directory.exists() and not directory.is_dir():
            raise FormatError(f"{directory} is a file; name a directory for the store.")
        there: Mapping[str, Any] = about
        shards: tuple[Shard, ...] = ()
        if (directory / MANIFEST_FILE).exists():
            there, shards = read_manifest(directory)
        elif directory.exists() and any(directory.iterdir()):
            raise FormatError(
                f"{directory} is not empty and holds no store; name a new or empty directory."
            )
        if not shards:
            return Unfinished(directory, about, {})
        other = [
            f"{name}: {there.get(name)!r}, not {value!r}"
            for name, value in about.items()
            if name != "corpus" and there.get(name) != value  # the hash of its tokens says more
        ]
        if other:
            raise FormatError(
                f"{directory} holds another harvest ({'; '.join(other)}). Give the settings it was "
                "started with, or another directory."
            )
        return Unfinished(directory, there, {shard.file: shard for shard in shards})

    def begin(self) -> None:
        """Make the directory ready, before anyone makes a shard: no file of a killed run is half
        there, and a manifest says whose shards these will be."""
        make_directory(self.directory)
        for leftover in leftovers(self.directory):
            leftover.unlink()
        if not self.shards:
            self._write([])

    def tasks(self, packed: Iterable[TokenBlock], n_tokens: int, per_shard: int) -> Iterator[Task]:
        """The shards that a store of `n_tokens` rows has, each with what was listed of it; and
        those after them that are missing or cut short. A shard with others after it is full.

        FormatError when a shard that is listed is of other tokens than these blocks.
        """
        last, to_mend = self._last(), self._to_mend(per_shard)
        n_rows = 0
        for number, group in enumerate(in_groups(packed, per_shard)):
            known = self.shards.get(_file(number))
            if known is not None and known.tokens != tokens_hash(group[: known.blocks]):
                raise FormatError(
                    f"{self.directory / known.file} is of other tokens than this corpus gives "
                    "there: the corpus or the tokenizer has changed. Harvest into another "
                    "directory."
                )
            at_least = len(group) if number < last else 0 if known is None else known.blocks
            chosen = group[: max(self._enough(group, n_tokens - n_rows), at_least)]
            yield Task(number, chosen, tokens_hash(chosen), known)
            n_rows += int(counted(chosen, exclude_special=self._exclude_special).sum())
            if n_rows >= n_tokens and number >= to_mend:
                return

    def finish(self, made: Iterable[Shard]) -> None:
        """List the shards, those made now and those listed before; nothing is written where all is
        listed already. FormatError when one is not there."""
        shards = dict(self.shards) | {shard.file: shard for shard in made}
        lost = [shard for shard in shards.values() if not self._is_there(shard)]
        if lost:
            raise FormatError(
                f"{len(lost)} of {len(shards)} shards that were made are not in {self.directory} "
                f"as this machine sees it ({lost[0].file} is the first); name a directory on a "
                "disk that all machines share."
            )
        if shards == self.shards and not has_entries(self.directory):
            return
        self._write(in_order(shards))

    def _write(self, shards: list[Shard]) -> None:
        try:
            write_manifest(self.directory, self.about, shards)
        except DiskError as problem:
            raise DiskError(
                f"{problem} Shards that were made are kept, and the same harvest run again goes on "
                "from there."
            ) from problem

    @property
    def _exclude_special(self) -> bool:
        return self.about["exclude_special"]

    def _is_there(self, shard: Shard) -> bool:
        file = self.directory / shard.file
        return file.is_file() and file.stat().st_size == shard.size

    def _last(self) -> int:
        """Number of the last shard that was listed; -1 where none was."""
        return max((_number(name) for name in self.shards), default=-1)

    def _to_mend(self, per_shard: int) -> int:
        """Number of the last shard up to that one which is not as it should be; -1 for none."""
        last = self._last()
        for number in range(last, -1, -1):
            shard = self.shards.get(_file(number))
            full = number == last or (shard is not None and shard.blocks >= per_shard)
            if shard is None or not full or not self._is_there(shard):
                return number
        return -1

    def _enough(self, group: list[TokenBlock], n_rows: int) -> int:
        """How many blocks have so many rows; all, when they have fewer."""
        counts = counted(group, exclude_special=self._exclude_special).sum(1).cumsum(0)
        return min(len(group), int((counts < n_rows).sum()) + 1)


def _file(number: int) -> str:
    return f"shard-{number:05}.safetensors"


def _number(file: str) -> int:
    return int(file.removeprefix("shard-").removesuffix(".safetensors"))
