"""A table of edges on disk: runs of sums in safetensors files, and a manifest that lists them.

Whole pieces of a corpus are added: first their runs are written, then the manifest lists them
together with the piece, in one move. So a process may die at any moment; what it left unlisted is
removed by the next. Of several processes each writes the files of its pieces, under names of its
own, and merges some pairs of sites; the first one lists the files. Runs of like size are merged
into one, so that each edge is written a few times only; in the end there is one run.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gossamer.attribution.over.gathered import ROWS_AT_ONCE, Pair
from gossamer.attribution.over.sides import Side, Sides, both, no_sides
from gossamer.attribution.over.sums import Run, Sums, check_exact, merged_runs
from gossamer.distributed import Ranks, first, gathered, together
from gossamer.errors import FormatError
from gossamer.graph.mapped import map_arrays, write_arrays
from gossamer.saes.native import make_directory, write_text

FORMAT, VERSION = "gossamer.edges", 1
MANIFEST_FILE = "edges.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How much a table is of."""

    n_tokens: int = 0
    """Tokens that count."""

    n_prompts: int = 0
    """Blocks of the corpus."""

    n_edges: int = 0
    """Edges that were added up."""

    n_left_out: int = 0
    """Edges that were not: their size is `smallest` at most."""

    size_left_out: float = 0.0
    """Σ |A| over these."""

    def plus(self, other: "Counted") -> "Counted":
        """Added up."""
        ours, theirs = asdict(self), asdict(other)
        return Counted(**{name: ours[name] + theirs[name] for name in ours})


class Piece(NamedTuple):
    """What a piece of a corpus adds to a table."""

    number: int
    """Which."""

    digest: str
    """Of its tokens."""

    runs: list[dict[str, list[str]]]
    """Files of its runs, written before."""

    sides: str
    """File of what was counted of latents."""

    counted: Counted
    """Tokens, prompts and edges."""

    n_files: int
    """How many files its directory had counted by then."""


@dataclass(slots=True)
class Directory:
    """A table that is being made."""

    path: Path
    """Where."""

    about: Mapping[str, Any]
    """What decides its content."""

    pieces: dict[int, str] = field(default_factory=dict)
    """Digest of the tokens of each piece that is in it, by number."""

    counted: Counted = field(default_factory=Counted)
    """Of these pieces."""

    runs: list[dict[str, list[str]]] = field(default_factory=list)
    """Files of each run, by "number of the target's site, number of the source's site"."""

    sides_file: str | None = None
    finished: bool = False
    n_files: int = 0
    share: Ranks = Ranks(0, 1)
    """Which of several processes this is that make the table together. Then all of them call `add`
    and `finish`: each merges some pairs of sites, and the first one writes the manifest."""

    @staticmethod
    def of(path: Path, about: Mapping[str, Any]) -> "Directory":
        """A new one, or one that was begun. FormatError unless it is empty or of this table."""
        make_directory(path)
        if not (path / MANIFEST_FILE).exists():
            strange = [file.name for file in path.iterdir() if not _is_ours(file.name)]
            if strange:
                raise FormatError(
                    f"{path} is not empty and holds no table of edges; name a new or empty "
                    "directory."
                )
            return Directory(path, about)
        there = Directory.open(path)
        other = [
            f"{name}: {there.about.get(name)!r}, not {value!r}"
            for name, value in about.items()
            if there.about.get(name) != value
        ]
        if other:
            raise FormatError(
                f"{path} holds another table ({'; '.join(other)}). Give the settings it was "
                "started with, or another directory."
            )
        return there

    @staticmethod
    def open(path: Path) -> "Directory":
        """What the manifest says. FormatError when there is none that can be read."""
        file = path / MANIFEST_FILE
        if not file.is_file():
            raise FormatError(f"{path} holds no table of edges: there is no {MANIFEST_FILE}.")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            known = (manifest["format"], manifest["version"])
            if known == (FORMAT, VERSION):
                return Directory(
                    path,
                    manifest["about"],
                    {int(number): digest for number, digest in manifest["pieces"].items()},
                    Counted(**manifest["counted"]),
                    manifest["runs"],
                    manifest["sides"],
                    manifest["finished"],
                    manifest["n_files"],
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{file} is damaged ({error}); remove {path} and make the table again."
            ) from error
        raise FormatError(
            f"{file} is {known[0]} {known[1]}, this release reads {FORMAT} {VERSION}; make the "
            "table again in another directory."
        )

    def has(self, number: int, digest: str) -> bool:
        """Whether a piece is in it. FormatError when it was of other tokens."""
        if self.pieces.get(number, digest) != digest:
            raise FormatError(
                f"Piece {number} in {self.path} is of other tokens than this corpus gives there: "
                "the corpus or the tokenizer has changed. Name another directory."
            )
        return number in self.pieces

    def write_run(self, runs: Mapping[Pair, Iterable[Sums]]) -> dict[str, list[str]]:
        """Files of a run, which does not count yet."""
        return {self._key(pair): [self._write(part) for part in runs[pair]] for pair in runs}

    def write_sides(self, sides: Sides) -> str:
        """File of what was counted of latents, which does not count yet."""
        arrays = {f"{site}.counts": side.counts for site, side in sides.items()}
        arrays |= {f"{site}.sums": side.sums for site, side in sides.items()}
        name = self._name("sides")
        write_arrays(arrays, {}, self.path / name)
        return name

    def add(self, pieces: Sequence[Piece]) -> None:
        """All pieces whose files are there and not listed yet."""
        self.n_files = max([self.n_files, *(piece.n_files for piece in pieces)])
        names = [self.sides_file, *(piece.sides for piece in pieces)]
        self.sides_file = self._by_first(
            lambda: self.write_sides(reduce(both, map(self._sides, names)))
        )
        self.pieces |= {piece.number: piece.digest for piece in pieces}
        self.counted = reduce(Counted.plus, (piece.counted for piece in pieces), self.counted)
        self.runs = self.runs + [run for piece in pieces for run in piece.runs if run]
        self.save()
        while len(self.runs) > 1 and self._by_first(lambda: self._rows(-2) < 2 * self._rows(-1)):
            self.merge(2)

    def finish(self) -> None:
        """One run, and the mark that nothing is missing."""
        if len(self.runs) > 1:
            self.merge(len(self.runs))
        self.finished = True
        self.save()

    def merge(self, n_runs: int) -> None:
        """The last runs made one."""
        last = self.runs[-n_runs:]
        keys = list(dict.fromkeys(key for run in last for key in run))

        def make() -> tuple[dict[str, list[str]], int]:
            mine = keys[self.share.rank :: self.share.size]
            return {key: self._merged(key, last) for key in mine}, self.n_files

        found = [make()] if self.share.size == 1 else gathered(together(make))
        whole = {key: files for each, _ in found for key, files in each.items()}
        self.n_files = max(n_files for _, n_files in found)
        self.runs = [*self.runs[:-n_runs], {key: whole[key] for key in keys}]
        self.save()

    def _merged(self, key: str, runs: Sequence[dict[str, list[str]]]) -> list[str]:
        """Files of one pair's sums over several runs."""
        segments = [self._segments(run[key]) for run in runs if key in run]
        return [self._write(part) for part in merged_runs(segments, ROWS_AT_ONCE)]

    def _by_first(self, make: Callable[[], Any]) -> Any:
        """What the first process gives, to all that share the table."""
        return make() if self.share.size == 1 else first(make)

    def save(self) -> None:
        """The manifest, in one move, and away with files that it does not list."""
        self._by_first(self._save)

    def _save(self) -> None:
        text = {
            "format": FORMAT,
            "version": VERSION,
            "about": dict(self.about),
            "pieces": {str(number): self.pieces[number] for number in sorted(self.pieces)},
            "counted": asdict(self.counted),
            "runs": self.runs,
            "sides": self.sides_file,
            "finished": self.finished,
            "n_files": self.n_files,
        }
        write_text(json.dumps(text, indent=1), self.path / MANIFEST_FILE)
        self.tidy()

    def tidy(self) -> None:
        """Remove what is not listed."""
        listed = {name for run in self.runs for names in run.values() for name in names}
        listed |= {MANIFEST_FILE, self.sides_file}
        for file in self.path.iterdir():
            if _is_ours(file.name) and file.name not in listed:
                file.unlink()

    def sides(self) -> Sides:
        """What was counted of latents."""
        return self._sides(self.sides_file)

    def _sides(self, name: str | None) -> Sides:
        """What a file of `write_sides` holds."""
        widths = self.about["widths"]
        if name is None:
            return no_sides(widths)
        _, arrays = map_arrays(self.path / name)
        return {
            site: Side(np.array(arrays[f"{site}.counts"]), np.array(arrays[f"{site}.sums"]))
            for site in widths
        }

    def pairs(self) -> dict[Pair, Run]:
        """The sums of a finished table by pair."""
        sites = list(self.about["widths"])
        whole = self.runs[0] if self.runs else {}
        found = {}
        for key in sorted(whole, key=lambda key: [int(number) for number in key.split(",")]):
            target, source = (sites[int(number)] for number in key.split(","))
            found[target, source] = self._segments(whole[key])
        return found

    def _key(self, pair: Pair) -> str:
        sites = list(self.about["widths"])
        return ",".join(str(sites.index(site)) for site in pair)

    def _write(self, part: Sums) -> str:
        check_exact(part, self.about["resolution"])
        name = self._name("sums")
        write_arrays(part._asdict(), {}, self.path / name)
        return name

    def _name(self, kind: str) -> str:
        """Of a new file."""
        self.n_files += 1
        mark = f"{self.share.rank}-" if self.share.rank else ""
        return f"{kind}-{mark}{self.n_files:06}.safetensors"

    def _segments(self, names: list[str]) -> list[Sums]:
        return [read_sums(self.path / name) for name in names]

    def _rows(self, number: int) -> int:
        sizes = (self.path / name for names in self.runs[number].values() for name in names)
        return sum(file.stat().st_size for file in sizes)


def _is_ours(name: str) -> bool:
    """Whether a file is one that a table's directory may hold."""
    return name.removesuffix(".partial").endswith(".safetensors") or name.startswith(MANIFEST_FILE)


def read_sums(path: Path) -> Sums:
    """A segment, its columns maps of the file."""
    _, arrays = map_arrays(path)
    try:
        return Sums(**arrays)
    except TypeError as error:
        raise FormatError(f"{path} is no file of sums over edges; make the table again.") from error
