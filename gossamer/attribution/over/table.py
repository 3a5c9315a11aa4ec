"""A table of edges over a corpus: (site, latent), offset → (site, latent), with sums over edges.

    n_edges      pairs of a source at one token and a target at another, both active, with this
                 offset, in one prompt
    sum, size    Σ A, Σ |A|                  mean = Σ A / n_edges
    error        √((Σ A² / n_edges − mean²) / n_edges), the mean's standard error if edges were
                 independent; `edge_intervals` draws prompts anew instead
    largest      max |A|
    normalised   Σ A f_t / Σ f_t, the numerator over edges, the denominator over all tokens where
                 the target is active: the edge that the target expects, tokens weighted by its
                 activation. Where W_s · J · E_t is the same at every token it is
                 E[f_s f_t] / E[f_t] · (W_s · J · E_t).

Nothing has latents × latents numbers: rows are sorted by (offset, target, source) for each pair of
SAEs, in files that are mapped, and are looked through in portions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int64

from gossamer.attribution.over.directory import Counted, Directory, Piece
from gossamer.attribution.over.found import BUCKETS
from gossamer.attribution.over.gathered import Pair
from gossamer.attribution.over.sides import Sides
from gossamer.attribution.over.strongest import Dropped, strongest
from gossamer.attribution.over.sums import Run, Sums
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.rows import release
from gossamer.graph.tables import pandas_or_error

By = Literal["size", "sum", "mean", "normalised", "n_edges", "largest"]
"""What rows are ranked by, the largest first; of signed numbers the absolute value."""

PORTION = 1 << 20
"""Rows that are looked at together."""


class EdgeRow(NamedTuple):
    """One row of a table; the top of this file has the formulas."""

    source: str
    """Site/latent, such as blocks.0.hook_mlp_out/12."""

    target: str
    """The latent that is driven."""

    offset: str
    """Of BUCKETS: tokens from the source to the target."""

    n_edges: int
    """Edges."""

    sum: float
    """Σ A."""

    size: float
    """Σ |A|."""

    mean: float
    """Σ A / n_edges."""

    error: float
    """Standard error of the mean over edges."""

    largest: float
    """max |A|."""

    normalised: float
    """Σ A f_t / Σ f_t."""

    n_source: int
    """Tokens at which the source is active."""

    n_target: int
    """Tokens at which the target is active."""

    source_label: str
    """What the source fires on, where it is known."""

    target_label: str
    """What the target fires on."""


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """Edges over a corpus, added up."""

    about: Mapping[str, Any]
    """Model, SAEs, corpus, offsets …: what decides the content."""

    pieces: Mapping[int, str]
    """The pieces of the corpus that are in it, with digests of their tokens."""

    counted: Counted
    """Tokens, prompts, edges; edges that were left out."""

    sides: Sides
    """What was counted of each latent."""

    pairs: Mapping[Pair, Run]
    """Sums by (site of the targets, site of the sources)."""

    labels: Mapping[str, Any]
    """What latents fire on, by site; None where it is not known."""

    dropped: Mapping[str, Dropped] | None = None
    """By site of targets, what `strongest` dropped; None for a whole table."""

    directory: Path | None = None
    """Where its files are, when it was made or opened there."""

    @staticmethod
    def of(there: Directory, labels: Mapping[str, Any]) -> "EdgeTable":
        """What a directory holds. GossamerError when it is not complete."""
        if not there.finished:
            raise GossamerError(
                f"The table in {there.path} is not complete: {there.counted.n_tokens:,} tokens are "
                "in it. Run the same call again to complete it."
            )
        about, sides = there.about, there.sides()
        return EdgeTable(
            about, there.pieces, there.counted, sides, there.pairs(), labels, None, there.path
        )

    @staticmethod
    def load(directory: str | Path, saes: Mapping[str, Any] | None = None) -> "EdgeTable":
        """Open a table's directory; `saes` give labels. FormatError when there is none."""
        there = Directory.open(Path(directory))
        coders = {} if saes is None else saes
        return EdgeTable.of(there, {s: getattr(sae, "labels", None) for s, sae in coders.items()})

    def save(self, directory: str | Path) -> None:
        """Write it to a new or empty directory; `load` gives the same table."""
        if self.dropped is not None:
            raise GossamerError(
                "A table of the strongest edges is not saved; save the whole table, and take "
                "strongest() of it again."
            )
        if self.directory is not None and Path(directory).resolve() == self.directory.resolve():
            return
        into = self._into(directory)
        self._add_to(into, -1)
        into.pieces = dict(self.pieces)
        into.finish()

    def _add_to(self, into: Directory, number: int) -> None:
        """All of it as one piece."""
        runs, sides = [into.write_run(self.pairs)], into.write_sides(self.sides)
        into.add([Piece(number, "", runs, sides, self.counted, into.n_files)])

    def _into(self, directory: str | Path) -> Directory:
        into = Directory.of(Path(directory), self.about)
        if into.pieces:
            raise GossamerError(f"{directory} holds a table already; name another directory.")
        return into

    @staticmethod
    def merge(tables: Sequence["EdgeTable"], directory: str | Path) -> "EdgeTable":
        """Tables of different parts of one corpus as one, in a new directory; their order does not
        matter. GossamerError when they do not belong together or share a piece."""
        _check_mergeable(tables)
        first = tables[0]
        pieces = {number: digest for table in tables for number, digest in table.pieces.items()}
        into = first._into(directory)
        into.about = {**first.about, "part": _part(tables)}
        for number, table in enumerate(tables):
            table._add_to(into, -1 - number)
        into.pieces = pieces
        into.finish()
        labels = {site: each for table in tables for site, each in table.labels.items() if each}
        return EdgeTable.of(into, {**first.labels, **labels})

    def __len__(self) -> int:
        """Rows."""
        return sum(len(part.keys) for run in self.pairs.values() for part in run)

    def top(self, n: int = 20, by: By = "size") -> list[EdgeRow]:
        """The n rows that are largest by a column; ties in the order of the table."""
        return self._best(((pair, part) for pair, part in self._portions()), n, by)

    def into(self, node: str, n: int = 20, by: By = "size") -> list[EdgeRow]:
        """The same, of the rows into a latent such as "blocks.3.hook_mlp_out/12"."""
        site, latent = self._latent(node)
        return self._best(self._into_latent(site, latent), n, by)

    def out_of(self, node: str, n: int = 20, by: By = "size") -> list[EdgeRow]:
        """The same, of the rows out of a latent; all rows of its site are looked through."""
        site, latent = self._latent(node)

        def some() -> Iterator[tuple[Pair, Sums]]:
            for pair, part in self._portions():
                if pair[1] == site:
                    here = np.flatnonzero(part.keys % self.about["widths"][site] == latent)
                    yield pair, part.at(here)

        return self._best(some(), n, by)

    def rows(self) -> Iterator[EdgeRow]:
        """Every row, by pair of sites, offset, target and source."""
        for pair, part in self._portions():
            yield from self._rows_of(pair, part)

    def to_dataframe(self, n: int | None = None, by: By = "size") -> Any:
        """A pandas DataFrame with a column for each field of EdgeRow: the n largest rows, or all.
        GossamerError without pandas."""
        rows = self.rows() if n is None else self.top(n, by)
        return pandas_or_error().DataFrame(list(rows), columns=list(EdgeRow._fields))

    def strongest(self, k: int, by: By = "size") -> "EdgeTable":
        """Only the k strongest rows into each target latent, over all sources and offsets; what
        each target lost is in `dropped` of the result, exactly."""

        def score(pair: Pair, part: Sums) -> np.ndarray:
            return self.score(pair, part, by)

        kept, dropped = strongest(self.pairs, self.about["widths"], k, score)
        return replace(self, pairs=kept, dropped=dropped, directory=None)

    def score(self, pair: Pair, part: Sums, by: By) -> Float[np.ndarray, " n"]:
        """What rows are ranked by. GossamerError for an unknown word."""
        match by:
            case "size":
                return np.asarray(part.sizes)
            case "sum":
                return np.abs(part.sums)
            case "mean":
                return np.abs(part.sums) / part.counts
            case "n_edges":
                return part.counts.astype(np.float64)
            case "largest":
                return np.asarray(part.largest)
            case "normalised":
                return np.abs(self._normalised(pair, part))
        raise GossamerError(f"by is one of {', '.join(get_args(By))}, got {by!r}.")

    def _normalised(self, pair: Pair, part: Sums) -> Float[np.ndarray, " n"]:
        total = self.sides[pair[0]].sums[self.parsed(pair, part)[1]]
        return np.where(total == 0, 0.0, part.weighted / np.where(total == 0, 1.0, total))

    def parsed(self, pair: Pair, part: Sums) -> tuple[Int64[np.ndarray, " n"], ...]:
        """(buckets, targets, sources) of rows."""
        widths = self.about["widths"]
        ends, sources = np.divmod(np.asarray(part.keys), widths[pair[1]])
        buckets, targets = np.divmod(ends, widths[pair[0]])
        return buckets, targets, sources

    def _portions(self) -> Iterator[tuple[Pair, Sums]]:
        for pair, run in self.pairs.items():
            for segment in run:
                for first in range(0, len(segment.keys), PORTION):
                    yield pair, segment.between(first, first + PORTION)
                    _release(segment)

    def _into_latent(self, site: str, latent: int) -> Iterator[tuple[Pair, Sums]]:
        widths = self.about["widths"]
        for pair, run in self.pairs.items():
            if pair[0] == site:
                for bucket in range(len(BUCKETS)):
                    low = (bucket * widths[site] + latent) * widths[pair[1]]
                    for segment in run:
                        yield pair, segment.within(low, low + widths[pair[1]])

    def _latent(self, node: str) -> tuple[str, int]:
        """Site and number. SiteError for a latent that no SAE of the table has."""
        site, _, number = node.rpartition("/")
        widths = self.about["widths"]
        if site not in widths or not number.isdecimal() or int(number) >= widths[site]:
            raise SiteError(
                f'"{node}" is no latent of this table; write SITE/NUMBER, with a site of '
                f"{', '.join(f'{s} (0..{d - 1})' for s, d in widths.items())}."
            )
        return site, int(number)

    def _best(self, parts: Iterator[tuple[Pair, Sums]], n: int, by: By) -> list[EdgeRow]:
        """The rows with the n largest scores."""
        if n < 0:
            raise GossamerError(f"n is how many rows to give, 0 or more, got {n}.")
        found: list[tuple[float, int, Pair, Sums]] = []
        for pair, part in parts:
            scores = self.score(pair, part, by)
            if len(found) == n and n and len(scores):
                scores = np.where(scores > -found[-1][0], scores, -1.0)
            order = np.argsort(-scores, kind="stable")[:n]
            best = [i for i in order.tolist() if scores[i] >= 0]
            found += [(-float(scores[i]), len(found), pair, part.at(np.array([i]))) for i in best]
            found.sort(key=lambda each: each[0])  # stable: the earlier row first
            del found[n:]
        return [row for _, _, pair, part in found for row in self._rows_of(pair, part)]

    def _rows_of(self, pair: Pair, part: Sums) -> list[EdgeRow]:
        """Rows of one pair of sites."""
        buckets, targets, sources = self.parsed(pair, part)
        (t_site, s_site), counts = pair, part.counts
        means = part.sums / counts
        spread = np.maximum(0.0, part.squares / counts - means * means)
        numbers = (part.sums, part.sizes, means, np.sqrt(spread / counts), part.largest)
        sides = self.sides[s_site].counts[sources], self.sides[t_site].counts[targets]
        columns = (counts, *numbers, self._normalised(pair, part), *sides)
        ends = (each.tolist() for each in (sources, targets, buckets))
        return [
            EdgeRow._make(
                (
                    f"{s_site}/{source}",
                    f"{t_site}/{target}",
                    BUCKETS[bucket],
                    *values,
                    self._label(s_site, source),
                    self._label(t_site, target),
                )
            )
            for source, target, bucket, *values in zip(
                *ends, *(column.tolist() for column in columns), strict=True
            )
        ]

    def _label(self, site: str, latent: int) -> str:
        known = self.labels.get(site)
        return known[latent] if known else ""


def _release(segment: Sums) -> None:
    """Pages of mapped columns go back to the system."""
    for column in segment:
        release(column)


def _check_mergeable(tables: Sequence[EdgeTable]) -> None:
    if not tables:
        raise GossamerError("There is no table to merge; give at least one.")
    ours = {name: value for name, value in tables[0].about.items() if name != "part"}
    seen: set[int] = set()
    for table in tables:
        theirs = {name: value for name, value in table.about.items() if name != "part"}
        other = [name for name in ours if theirs.get(name) != ours[name]]
        if other:
            raise GossamerError(
                f"Tables differ in {', '.join(other)}; merge parts of one corpus, made with the "
                "same settings."
            )
        if table.dropped is not None:
            raise GossamerError(
                "A table of the strongest edges cannot be merged, since what it dropped may be "
                "strong in the whole; merge whole tables, and take strongest() of the result."
            )
        if shared := seen & set(table.pieces):
            raise GossamerError(
                f"Piece {min(shared)} of the corpus is in two of the tables; give each part once."
            )
        seen |= set(table.pieces)


def _part(tables: Sequence[EdgeTable]) -> list[int]:
    """[0, 1] when all parts are there, else the parts that are."""
    parts = sorted(tuple(table.about["part"]) for table in tables)
    n = parts[0][1]
    if parts == [(i, n) for i in range(n)]:
        return [0, 1]
    return [number for part in parts for number in part]
