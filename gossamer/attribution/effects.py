"""What `edges` found: effects of sources on targets, both named, and the ways to read them."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.nodes import NodeTable
from gossamer.errors import GossamerError
from gossamer.splice import ErrorMode


class Edge(NamedTuple):
    """One effect."""

    source: str
    """Node id of what is changed."""

    target: str
    """Node id of what moves."""

    source_label: str
    """Label and token of the source."""

    target_label: str
    """Label and token of the target."""

    gradient: float
    """Change of the target per unit of the source."""

    attribution: float
    """Gradient times the source's activation."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Effects of all sources on all targets of one prompt: rows are targets, columns are
    sources."""

    sources: NodeTable
    """The columns, sorted by (position, index)."""

    targets: NodeTable
    """The rows, sorted by (position, index)."""

    gradients: Float[Tensor, "n_targets n_sources"]
    """∂ target / ∂ source; of a target latent, its pre-activation."""

    attributions: Float[Tensor, "n_targets n_sources"]
    """Gradients times the sources' activations."""

    tokens: tuple[str, ...]
    """The prompt, token by token."""

    token_ids: tuple[int, ...]
    """The prompt's token ids, BOS included."""

    hold: tuple[str, ...]
    """What was kept constant in the backward pass."""

    direct: bool
    """Whether paths through the other SAEs passed were blocked."""

    error: ErrorMode
    """The source's error term."""

    blocked: bool
    """Whether every path was blocked: no entry can be anything but 0."""

    def strongest(self, n: int = 20) -> list[tuple[int, int]]:
        """(row, column) of the n entries of largest |attribution|, strongest first."""
        if n < 0:
            raise GossamerError(f"n is how many edges to give, got {n}; give 0 or more.")
        order = self.attributions.abs().flatten().argsort(descending=True, stable=True)[:n]
        return [divmod(int(i), len(self.sources)) for i in order]

    def top(self, n: int = 20) -> list[Edge]:
        """The n edges of largest |attribution|, strongest first."""
        return [self.edge(target, source) for target, source in self.strongest(n)]

    def edge(self, target: int, source: int) -> Edge:
        """The edge at one row and column."""
        return Edge(
            source=self.sources.ids[source],
            target=self.targets.ids[target],
            source_label=self.sources.labels[source],
            target_label=self.targets.labels[target],
            gradient=float(self.gradients[target, source]),
            attribution=float(self.attributions[target, source]),
        )
