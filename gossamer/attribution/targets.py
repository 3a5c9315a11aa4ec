"""What effects are computed from and to, as values: `Tokens`, `Latents`, `Logits`,
`LogitDifference`.

Each is a description; `nodes.py` turns it into the nodes that a prompt really has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.errors import GossamerError


@dataclass(frozen=True, slots=True)
class Tokens:
    """One source for each position: a scale, at 1, on the sum of its token and position
    embeddings."""


@dataclass(frozen=True, slots=True)
class Latents:
    """The active latents of the SAE that writes `site`.

    A crosscoder is named by any site that it writes; the ids of its latents name the first.
    """

    site: str
    """The `site_out` of an SAE among those passed."""

    positions: Sequence[int] | int | None = None
    """Only these positions; negative ones count from the prompt's end. None: all."""

    indices: Sequence[int] | int | None = None
    """Only these latents. None: all."""

    top: int | None = None
    """Only this many, those of largest activation. None: all."""

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise GossamerError(
                f"top keeps that many latents, got {self.top}; give 1 or more, or None."
            )


@dataclass(frozen=True, slots=True)
class Logits:
    """Next-token scores at one position: named `tokens`, or those of the highest scores.

    `top` and `mass` together mean the smallest set that reaches the sum, at most `top`. None of the
    three means the top 10, in a graph the fewest that reach 0.95, at most 10.
    """

    tokens: Sequence[str | int] | str | int | None = None
    """These tokens: strings that are one token each, or ids."""

    top: int | None = None
    """The tokens of the highest scores."""

    mass: float | None = None
    """The smallest set of tokens whose probabilities reach this sum."""

    position: int = -1
    """Where; negative positions count from the prompt's end."""

    def __post_init__(self) -> None:
        others = [name for name in ("top", "mass") if getattr(self, name) is not None]
        if self.tokens is not None and others:
            raise GossamerError(
                f"Logits takes tokens, or top and mass, got tokens and {' and '.join(others)}."
            )
        if self.top is not None and self.top < 1:
            raise GossamerError(f"top keeps that many tokens, got {self.top}; give 1 or more.")
        if self.mass is not None and not 0 < self.mass <= 1:
            raise GossamerError(f"mass is a probability in (0, 1], got {self.mass}.")


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """The score of one token less that of another, at one position: one target.

    Several tokens on a side count with their mean, in `analyze`; `edges` takes one on each side.
    """

    token: Sequence[str | int] | str | int
    """The token whose score counts positive."""

    distractor: Sequence[str | int] | str | int
    """The token whose score counts negative."""

    position: int = -1
    """Where; negative positions count from the prompt's end."""


Source = Tokens | Latents
Target = Latents | Logits | LogitDifference
