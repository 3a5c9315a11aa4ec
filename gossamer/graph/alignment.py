"""Two prompts laid side by side: which position of one stands for which of the other.

The axis has a column for each pair of positions that stand for each other, and one for each
position that has no counterpart, in an order that both prompts keep.
"""

from collections.abc import Mapping
from operator import index
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from gossamer.errors import PromptError


class Axis(NamedTuple):
    """The columns of two prompts side by side."""

    first: Int[np.ndarray, " n_first"]
    """The column of each position of the first prompt."""

    second: Int[np.ndarray, " n_second"]
    """The column of each position of the second."""

    @property
    def n_columns(self) -> int:
        """How many columns there are."""
        return int(max(self.first.max(), self.second.max())) + 1


def axis_of(n_first: int, n_second: int, align: str | Mapping[int, int]) -> Axis:
    """The axis of two prompts of these lengths.

    Args:
        align: "end" pairs positions counted from the end, "start" from the start; or a mapping from
            positions of the first to positions of the second, increasing in both.

    Raises PromptError for a mapping that leaves a prompt or crosses itself.
    """
    if isinstance(align, str):
        if align not in ("start", "end"):
            raise PromptError(f'align is "start", "end" or a mapping of positions, got "{align}".')
        shift = n_first - n_second if align == "end" else 0
        pairs = [(p, p - shift) for p in range(n_first) if 0 <= p - shift < n_second]
    else:
        try:
            pairs = sorted((index(a), index(b)) for a, b in align.items())
        except (AttributeError, TypeError) as problem:
            raise PromptError(
                'align is "start", "end" or a mapping from positions to positions, got '
                f"{str(align)[:60]}."
            ) from problem
        _check(pairs, n_first, n_second)
    first, second = [], []
    a = b = column = 0
    for next_a, next_b in [*pairs, (n_first, n_second)]:
        for _ in range(a, next_a):
            first.append(column)
            column += 1
        for _ in range(b, next_b):
            second.append(column)
            column += 1
        if next_a < n_first:
            first.append(column)
            second.append(column)
            column += 1
        a, b = next_a + 1, next_b + 1
    return Axis(np.array(first), np.array(second))


def _check(pairs: list[tuple[int, int]], n_first: int, n_second: int) -> None:
    for a, b in pairs:
        if not (0 <= a < n_first and 0 <= b < n_second):
            raise PromptError(
                f"The map pairs position {a} with {b}; the prompts have positions 0..{n_first - 1} "
                f"and 0..{n_second - 1}."
            )
    for (a, b), (later_a, later_b) in zip(pairs, pairs[1:], strict=False):
        if later_b <= b:
            raise PromptError(
                f"The map pairs {a} with {b} and {later_a} with {later_b}, so that the prompts "
                "cross; give pairs that increase in both."
            )
