"""What many derivatives need of memory, and how many of them at once fit what is allowed.

    kept     b · (2 · n_targets · n_sources + (n_targets + n_sources) · d)  the result and its ends
    saved    b · n · n_blocks · 2 (12 d + 5 m + 4 H n)      one run's graph, and its derivative's
    product  b · n · (8 d + 3 m + 3 H n)                                          each at once

b bytes a number, n positions, d residual width, m MLP width, H heads; ends of a crosscoder count at
each of its sites. The factors are upper bounds counted from the operations of a block and compared
with measured peaks (docs/log.md).
"""

from typing import NamedTuple

import torch

from gossamer.errors import GossamerError
from gossamer.machine import readable

ROWS_ON_CPU = 1024
"""Products × positions at once on a CPU: more leaves its caches and is slower."""

ROWS_ON_DEVICE = 65_536
"""The same on an accelerator."""


class Sizes(NamedTuple):
    """What the memory of a call depends on."""

    n_targets: int
    """Rows of the result."""

    n_sources: int
    """Columns of the result."""

    n_positions: int
    """Positions of the prompt."""

    n_blocks: int
    """Blocks on the way."""

    d_model: int
    """Width of the residual stream."""

    d_mlp: int
    """Width of the MLP's hidden layer."""

    n_heads: int
    """Attention heads."""

    number: int
    """Bytes of a number."""

    n_writes: int = 1
    """Sites where a source writes."""

    n_reads: int = 1
    """Sites where a target reads."""

    def fixed(self) -> int:
        """Bytes of the result, its directions and one run's graph."""
        kept = 2 * self.n_targets * self.n_sources
        kept += (self.n_targets * self.n_reads + self.n_sources * self.n_writes) * self.d_model
        wide = 12 * self.d_model + 5 * self.d_mlp + 4 * self.n_heads * self.n_positions
        return self.number * (kept + 2 * self.n_positions * max(self.n_blocks, 1) * wide)

    def product(self) -> int:
        """Bytes of one product while it is computed."""
        wide = 8 * self.d_model + 3 * self.d_mlp + 3 * self.n_heads * self.n_positions
        return self.number * self.n_positions * wide


def at_once(sizes: Sizes, memory: int, device: torch.device) -> int:
    """How many products to compute at once within `memory` bytes. GossamerError when not even one
    fits; it says what would."""
    rows = ROWS_ON_CPU if device.type == "cpu" else ROWS_ON_DEVICE
    fits = (memory - sizes.fixed()) // sizes.product()
    if fits >= 1:
        return max(1, min(rows // sizes.n_positions, fits))
    need = sizes.fixed() + sizes.product()
    fewer = sizes._replace(n_targets=0)
    one = sizes._replace(n_targets=1).fixed() - fewer.fixed()
    targets = (memory - fewer.fixed() - sizes.product()) // one
    advice = (
        f"Within it {targets:,} targets fit: name fewer with positions=, indices= or top=, or allow"
        if targets >= 1
        else "Not one target fits within it: take fewer sources or a shorter prompt, or allow"
    )
    raise GossamerError(
        f"{sizes.n_targets:,} × {sizes.n_sources:,} effects over {sizes.n_positions:,} positions "
        f"need {readable(need)}, and {readable(memory)} are allowed. {advice} more with memory=."
    )
