"""The value down to which scores add up to a share of their total, without sorting them.

Scores that are not negative sort as their bits do, read as whole numbers. One pass over them counts
and sums by the upper 16 bits; the group in which the sum reaches the share is split by the next 16
bits in another pass, and so on: two passes for float32, four for float64. A score is its bits times
a power of two, so sums are exact whole numbers, and neither order nor grouping changes the answer.
"""

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from gossamer.errors import GossamerError

DIGIT = 16
"""Bits that one pass looks at."""

HALF = 26
"""Bits that are summed at once: as floats, exactly, over a block of up to 2²⁷ scores."""

Blocks = Callable[[], Iterable[Float[np.ndarray, "..."]]]
"""Gives the scores anew at each call, block by block; all of them float32 or all float64."""


class Cut(NamedTuple):
    """Where scores are cut."""

    threshold: float
    """The smallest score that is kept."""

    kept: int
    """Scores at or above it."""

    total: float
    """Sum of all scores."""


class _Layout(NamedTuple):
    """How a float is laid out in bits."""

    bits: int
    mantissa: int

    def scaled(self, pattern: int) -> int:
        """The float of these bits, in units of the smallest float above 0: exact."""
        exponent, fraction = divmod(pattern, 1 << self.mantissa)
        return fraction if not exponent else (fraction + (1 << self.mantissa)) << (exponent - 1)

    def step(self, pattern: int) -> int:
        """By how much the next float is larger, in the same units."""
        return 1 << max(0, (pattern >> self.mantissa) - 1)


LAYOUTS = {np.dtype(np.float32): _Layout(32, 23), np.dtype(np.float64): _Layout(64, 52)}


def check_share(share: float, name: str) -> None:
    """GossamerError unless it lies in (0, 1]."""
    if not 0 < share <= 1:
        raise GossamerError(f"{name} is a share above 0 and at most 1, got {share}.")


def cut(blocks: Blocks, share: float, dtype: np.dtype) -> Cut:
    """The largest score such that it and those above it add up to `share` of the total.

    Equal to walking down the sorted scores, ties included (all scores that equal the threshold are
    kept). A share of 1 keeps every score, also 0. Scores are finite and at least 0.
    """
    check_share(share, "share")
    layout = LAYOUTS[np.dtype(dtype)]
    prefix, inside, above, above_sum = 0, 0, 0, 0
    total, wanted = 0, Fraction(0)
    for low in range(layout.bits - DIGIT, -1, -DIGIT):
        counts, sums = _histogram(blocks(), prefix, low, layout)
        if low == layout.bits - DIGIT:
            total = sum(sums.values())
            wanted = Fraction(float(share)) * total
            if share == 1:
                return Cut(0.0, int(counts.sum()), _float(total, layout))
        for digit in np.flatnonzero(counts)[::-1].tolist():
            if above_sum + sums[digit] >= wanted:
                break
            above, above_sum = above + int(counts[digit]), above_sum + sums[digit]
        else:
            return Cut(0.0, 0, 0.0)  # no scores at all
        prefix = (prefix << DIGIT) + digit
        inside = int(counts[digit])
    pattern = np.array([prefix], f"u{layout.bits // 8}")
    return Cut(float(pattern.view(dtype)[0]), above + inside, _float(total, layout))


def _histogram(
    blocks: Iterable[Float[np.ndarray, "..."]], prefix: int, low: int, layout: _Layout
) -> tuple[Int[np.ndarray, " n_digits"], dict[int, int]]:
    """How many scores have each digit of 16 bits above bit `low`, of those that agree with
    `prefix` above it, and their exact sums."""
    counts = np.zeros(1 << DIGIT, np.int64)
    halves = [np.zeros(1 << DIGIT, np.int64) for _ in range(-(-low // HALF))]
    for block in blocks:
        bits = block.view(f"u{layout.bits // 8}")
        if low + DIGIT < layout.bits:
            bits = bits[bits >> (low + DIGIT) == prefix]
        digits = (bits >> low).astype(np.intp) & ((1 << DIGIT) - 1)
        counts += np.bincount(digits, minlength=1 << DIGIT)
        for i, half in enumerate(halves):
            part = (bits >> (i * HALF)) & ((1 << min(HALF, low - i * HALF)) - 1)
            half += np.bincount(digits, part, 1 << DIGIT).astype(np.int64)
    sums = {}
    for digit in np.flatnonzero(counts).tolist():
        first = ((prefix << DIGIT) + digit) << low
        rest = sum(int(half[digit]) << (i * HALF) for i, half in enumerate(halves))
        # Scores that agree in their upper bits share an exponent: each is the first of them plus
        # so many steps.
        sums[digit] = int(counts[digit]) * layout.scaled(first) + rest * layout.step(first)
    return counts, sums


def _float(scaled: int, layout: _Layout) -> float:
    """An exact sum as a float."""
    bias = (1 << (layout.bits - layout.mantissa - 2)) - 2 + layout.mantissa
    return float(Fraction(scaled, 1 << bias))
