"""The result of QK attributions: parts at the query and at the key, and every pair of them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int

from gossamer.errors import GossamerError, SiteError

KINDS = ("latent", "error", "bias", "remainder", "token", "position", "head", "layer")
"""Kinds of parts; layer: all that an MLP writes."""

PAIRS_AT_ONCE = 1 << 22
"""Numbers of the table of pairs that are in memory at once."""


class QKPart(NamedTuple):
    """One part of the stream, at the query or at the key."""

    node: str
    """Its id."""

    kind: str
    """One of KINDS."""

    position: int
    """Where it stands."""

    value: float
    """Activation of a latent, else 1."""

    label: str
    """What it means, as far as is known."""

    score: float
    """What it adds to the score, with all parts of the other side together."""


class QKPair(NamedTuple):
    """One part at the query with one part at the key."""

    query: QKPart
    """At the query."""

    key: QKPart
    """At the key."""

    score: float
    """What the pair adds to the score."""


@final
@dataclass(frozen=True, slots=True)
class Side:
    """The parts of one side of a head, and what they are to the head."""

    ids: tuple[str, ...]
    """Node ids."""

    kinds: tuple[str, ...]
    """See QKPart."""

    positions: Int[np.ndarray, " n"]
    """See QKPart."""

    values: Float[np.ndarray, " n"]
    """See QKPart."""

    labels: tuple[str, ...]
    """See QKPart."""

    vectors: Float[np.ndarray, "n d_head"]
    """What of the head's query, or key, each part makes: rotated, with the norms' scales held
    (float64). Parts at the key that another is compared with count negative."""

    def __len__(self) -> int:
        return len(self.ids)

    def followed_by(self, other: "Side") -> "Side":
        """Both, one after the other."""
        return Side(
            self.ids + other.ids,
            self.kinds + other.kinds,
            np.concatenate([self.positions, other.positions]),
            np.concatenate([self.values, other.values]),
            self.labels + other.labels,
            np.concatenate([self.vectors, other.vectors]),
        )

    def negative(self) -> "Side":
        """The same parts, counted negative."""
        return replace(self, vectors=-self.vectors)

    def part(self, i: int, score: float) -> QKPart:
        """One of them."""
        return QKPart(
            self.ids[i],
            self.kinds[i],
            int(self.positions[i]),
            float(self.values[i]),
            self.labels[i],
            score,
        )

    def of_kinds(self, kinds: Collection[str] | None) -> Int[np.ndarray, " n_chosen"]:
        """Which are of some kinds; None: all. GossamerError for what is no kind."""
        for kind in kinds or ():
            if kind not in KINDS:
                raise GossamerError(f"Kinds of parts are {', '.join(KINDS)}, got {kind!r}.")
        every = np.arange(len(self))
        return every if kinds is None else every[np.isin(self.kinds, list(kinds))]


@final
@dataclass(frozen=True)
class QKAttributions:
    """A head's score as a sum over pairs of parts."""

    head: str
    """Head, query and key: blocks.9.attn.hook_z/6@14<-4."""

    against: int | None
    """Another key's position whose score is taken off; None: none is."""

    score: float
    """The clean run's, before any soft-cap and the mask: q · k · scaling, less the other key's."""

    pattern: tuple[float, ...]
    """How much the query attends to the key in the clean run, and to the other key."""

    softcap: float | None
    """Scores are bent into ± this after what is explained here; None: they are not."""

    scaling: float
    """Factor on q · k."""

    query: Side
    """Parts at the query."""

    key: Side
    """Parts at the key, then those at the other key."""

    def __repr__(self) -> str:
        less = "" if self.against is None else f" less that of key {self.against}"
        return (
            f"QKAttributions(score of {self.head}{less}: {self.score:.4g}, {len(self.query)} × "
            f"{len(self.key)} pairs)"
        )

    @property
    def query_scores(self) -> Float[np.ndarray, " n_query"]:
        """What each part at the query adds to the score, exact."""
        return self.scaling * (self.query.vectors @ self.key.vectors.sum(0))

    @property
    def key_scores(self) -> Float[np.ndarray, " n_key"]:
        """What each part at the key adds to the score, exact."""
        return self.scaling * (self.key.vectors @ self.query.vectors.sum(0))

    @property
    def query_parts(self) -> list[QKPart]:
        """Parts at the query, what adds or takes most first."""
        return _sorted(self.query, self.query_scores)

    @property
    def key_parts(self) -> list[QKPart]:
        """Parts at the key, likewise."""
        return _sorted(self.key, self.key_scores)

    def sum_of_pairs(self) -> float:
        """All pairs together; the score, up to rounding."""
        return sum(
            float(block.sum()) for _, block in self._blocks(_all(self.query), _all(self.key))
        )

    def sum_of_sizes(self) -> float:
        """Σ |pair|: what rounding is to be compared with."""
        blocks = self._blocks(_all(self.query), _all(self.key))
        return sum(float(np.abs(block).sum()) for _, block in blocks)

    def table(self) -> Float[np.ndarray, "n_query n_key"]:
        """Every pair, dense. GossamerError when that is too many numbers."""
        n = len(self.query) * len(self.key)
        if n > PAIRS_AT_ONCE * 16:
            raise GossamerError(
                f"{len(self.query):,} × {len(self.key):,} pairs are too many for one table; "
                "pairs(n) gives the strongest, query_scores and key_scores sum over one side."
            )
        return self.scaling * self.query.vectors @ self.key.vectors.T

    def pair(self, query: str, key: str) -> float:
        """What one pair of nodes adds to the score. SiteError when either is no part."""
        found = []
        for side, name, where in ((self.query, query, "query"), (self.key, key, "key")):
            if name not in side.ids:
                raise SiteError(
                    f"{name} is no part of the stream at the {where}; {where}_parts lists them."
                )
            found.append(side.vectors[side.ids.index(name)])
        return self.scaling * float(found[0] @ found[1])

    def pairs(self, n: int = 20, kinds: Collection[str] | None = None) -> list[QKPair]:
        """The n pairs that add or take most, the strongest first; `kinds` such as ("latent",)
        leaves out others on both sides."""
        if n < 1:
            raise GossamerError(f"n is how many pairs to list, 1 or more, got {n}.")
        queries, keys = self.query.of_kinds(kinds), self.key.of_kinds(kinds)
        best, places = np.zeros(0), np.zeros((0, 2), int)
        for rows, block in self._blocks(queries, keys):
            some = _strongest(block, n)
            best = np.concatenate([best, block.flat[some]])
            i, j = np.unravel_index(some, block.shape)
            places = np.concatenate([places, np.stack([rows[i], keys[j]], 1)])
            keep = _strongest(best, n)
            best, places = best[keep], places[keep]
        query_scores, key_scores = self.query_scores, self.key_scores
        return [
            QKPair(
                self.query.part(int(i), float(query_scores[i])),
                self.key.part(int(j), float(key_scores[j])),
                float(score),
            )
            for (i, j), score in zip(places, best, strict=True)
        ]

    def to_dataframe(self, n: int = 100, kinds: Collection[str] | None = None) -> Any:
        """The n strongest pairs as a pandas DataFrame."""
        from pandas import DataFrame

        rows = [
            {
                **{f"query_{name}": value for name, value in pair.query._asdict().items()},
                **{f"key_{name}": value for name, value in pair.key._asdict().items()},
                "score": pair.score,
                "share": pair.score / self.score if self.score else float("nan"),
            }
            for pair in self.pairs(n, kinds)
        ]
        return DataFrame(rows)

    def _blocks(
        self, queries: Int[np.ndarray, " n_rows"], keys: Int[np.ndarray, " n_columns"]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(which queries, their pairs with the keys), a portion at a time."""
        at_once = max(1, PAIRS_AT_ONCE // max(len(keys), 1))
        columns = self.key.vectors[keys].T
        for start in range(0, len(queries), at_once):
            rows = queries[start : start + at_once]
            yield rows, self.scaling * (self.query.vectors[rows] @ columns)


def _all(side: Side) -> Int[np.ndarray, " n"]:
    return np.arange(len(side))


def _strongest(values: np.ndarray, n: int) -> Int[np.ndarray, " n_strongest"]:
    """Flat places of the n numbers of largest size, the largest first."""
    sizes = np.abs(values).ravel()
    some = np.arange(len(sizes))
    if len(sizes) > n:
        some = np.argpartition(-sizes, n - 1)[:n]
    return some[np.argsort(-sizes[some], kind="stable")]


def _sorted(side: Side, scores: Float[np.ndarray, " n"]) -> list[QKPart]:
    return [side.part(int(i), float(scores[i])) for i in _strongest(scores, max(len(side), 1))]
