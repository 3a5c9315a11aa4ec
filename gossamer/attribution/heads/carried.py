"""The result of head loadings: what each head carries of each edge, and from where to where."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final, overload

import numpy as np
from jaxtyping import Float

from gossamer.errors import GossamerError


class HeadLoading(NamedTuple):
    """What one head, or what goes past the heads, carries of an edge at one layer."""

    layer: int
    """Block."""

    head: int | None
    """Which; None for what goes past all heads."""

    carrier: str
    """head; bypass, the residual stream; or beside, a parallel block's MLP and skip connections
    that begin before attention."""

    loading: float
    """Its part of the edge; all of one layer add up to the edge."""

    share: float
    """The same as a fraction of the edge; NaN where that is 0."""


class Move(NamedTuple):
    """What one head moves from one position to another, of an edge."""

    layer: int
    """Block."""

    head: int
    """Which."""

    query: int
    """Position to which it moves."""

    key: int
    """Position from which it moves."""

    loading: float
    """Its part of the edge; over all pairs of positions it sums to the head's loading."""


class Carrier(NamedTuple):
    """A head with all the edges that it carries."""

    layer: int
    """Block."""

    head: int
    """Which."""

    size: float
    """Σ |loading| over the edges."""

    loading: float
    """Σ loading over the edges."""


@final
@dataclass(frozen=True)
class EdgeLoadings:
    """One edge, layer by layer: heads + bypass + beside = weight in every row."""

    source: str
    """Id of the node that writes."""

    target: str
    """Id of the node that reads."""

    weight: float
    """The edge: what the source adds to what the target reads."""

    offset: int
    """Positions from source to target."""

    layers: tuple[int, ...]
    """The blocks whose attention lies between."""

    heads: Float[np.ndarray, "n_layers n_heads"]
    """What each head carries."""

    bypass: Float[np.ndarray, " n_layers"]
    """What stays in the residual stream past the block's attention."""

    beside: Float[np.ndarray, " n_layers"]
    """What goes through a parallel block's MLP, or a skip connection that begins before attention;
    else 0."""

    moves: tuple[Move, ...]
    """The largest parts by head and positions, as many as were asked for at each layer, largest
    first."""

    def __repr__(self) -> str:
        best = ", ".join(f"{r.layer}.{r.head}: {r.loading:.3g}" for r in self.top(3))
        return f"EdgeLoadings({self.source} → {self.target}, {self.weight:.4g}; heads {best})"

    @property
    def residuals(self) -> Float[np.ndarray, " n_layers"]:
        """The edge less all that is listed at a layer: rounding."""
        return self.weight - self.heads.sum(1) - self.bypass - self.beside

    def rows(self) -> list[HeadLoading]:
        """Everything, layer by layer."""
        found = []
        for i, layer in enumerate(self.layers):
            for head, loading in enumerate(self.heads[i].tolist()):
                found.append(self._row(layer, head, "head", loading))
            found.append(self._row(layer, None, "bypass", float(self.bypass[i])))
            if self.beside[i]:
                found.append(self._row(layer, None, "beside", float(self.beside[i])))
        return found

    def top(self, n: int = 10) -> list[HeadLoading]:
        """The n heads that carry most, of all layers; one layer's do not add to another's."""
        heads = [row for row in self.rows() if row.head is not None]
        return sorted(heads, key=lambda row: -abs(row.loading))[: _count(n)]

    def top_moves(self, n: int = 10, layer: int | None = None) -> list[Move]:
        """The n largest moves, of one layer or all. GossamerError for a layer not between."""
        if layer is not None and layer not in self.layers:
            raise GossamerError(
                f"Layer {layer} does not lie between {self.source} and {self.target}; layers "
                f"{', '.join(map(str, self.layers))} do."
            )
        some = [move for move in self.moves if layer is None or move.layer == layer]
        return some[: _count(n)]

    def to_dataframe(self) -> Any:
        """`rows` as a pandas DataFrame."""
        from pandas import DataFrame

        return DataFrame(self.rows())

    def _row(self, layer: int, head: int | None, carrier: str, loading: float) -> HeadLoading:
        share = loading / self.weight if self.weight else float("nan")
        return HeadLoading(layer, head, carrier, loading, share)


@final
@dataclass(frozen=True)
class HeadLoadings(Sequence[EdgeLoadings]):
    """Some edges of one prompt, in the order given."""

    edges: tuple[EdgeLoadings, ...]
    """Each of them."""

    tokens: tuple[str, ...]
    """The prompt, token by token."""

    def __len__(self) -> int:
        return len(self.edges)

    @overload
    def __getitem__(self, index: int) -> EdgeLoadings: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[EdgeLoadings]: ...
    def __getitem__(self, index: int | slice) -> EdgeLoadings | Sequence[EdgeLoadings]:
        return self.edges[index]

    def __iter__(self) -> Iterator[EdgeLoadings]:
        return iter(self.edges)

    def top(self, n: int = 10) -> list[Carrier]:
        """The n heads that carry most, by Σ |loading| over all edges."""
        sizes: dict[tuple[int, int], list[float]] = defaultdict(list)
        for edge in self.edges:
            for row in edge.top(edge.heads.size or 1):
                if row.head is not None:
                    sizes[row.layer, row.head].append(row.loading)
        found = [
            Carrier(layer, head, sum(map(abs, loadings)), sum(loadings))
            for (layer, head), loadings in sizes.items()
        ]
        return sorted(found, key=lambda each: -each.size)[: _count(n)]

    def to_dataframe(self) -> Any:
        """All rows of all edges as a pandas DataFrame."""
        from pandas import DataFrame

        return DataFrame(
            {"source": edge.source, "target": edge.target, "weight": edge.weight, **row._asdict()}
            for edge in self.edges
            for row in edge.rows()
        )


def _count(n: int) -> int:
    if n < 1:
        raise GossamerError(f"n is how many to list, 1 or more, got {n}.")
    return n
