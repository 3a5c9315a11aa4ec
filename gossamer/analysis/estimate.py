"""What the clean run's gradient says that edits do to the number, to first order.

Σ_edits (x_edited − x_clean) · ∂s/∂x      each edit as it would change the clean run's value
"""

from collections.abc import Sequence

from gossamer.edits import AbstractEdit
from gossamer.splice import Trace


def estimated_change(clean: Trace, edits: Sequence[AbstractEdit]) -> float:
    """The first-order change of the number that a clean trace explains."""
    raise NotImplementedError
