"""Changes at a site, as values."""

from gossamer.edits.apply import apply_edits, edited_writers, resolved
from gossamer.edits.edit import (
    PATTERNS,
    Ablate,
    AbstractEdit,
    Detach,
    Patch,
    Recorded,
    Scale,
    Selection,
    Set,
    Steer,
    chosen_indices,
    indices_of,
    unit_fields,
)

__all__ = [
    "PATTERNS",
    "Ablate",
    "AbstractEdit",
    "Detach",
    "Patch",
    "Recorded",
    "Scale",
    "Selection",
    "Set",
    "Steer",
    "apply_edits",
    "chosen_indices",
    "edited_writers",
    "indices_of",
    "resolved",
    "unit_fields",
]
