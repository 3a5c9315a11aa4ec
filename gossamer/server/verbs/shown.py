"""What all verbs share: labels that were saved here, and limits of an answer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.server import wire
from gossamer.server.state import State
from gossamer.server.store import Store
from gossamer.sites import parse_node

MAX_VALUES = 1_000_000
"""Numbers in one answer."""


def relabel(store: Store, rows: Sequence[dict[str, Any]]) -> None:
    """Put saved labels into rows of latents."""
    if not store.has_labels:
        return
    for row in rows:
        if row["kind"] == "latent":
            node = parse_node(row["node"])
            own = store.label(node.site, int(node.unit))
            row["label"] = row["label"] if own is None else own


def label_of(state: State, sae: Any, site: str, index: int) -> str:
    """A latent's label: what was saved here, else the SAE's own, else nothing."""
    own = state.store.label(site, index)
    labels = getattr(sae, "labels", None)
    return own if own is not None else "" if labels is None else labels[index]


def check_size(n: int, advice: str) -> None:
    """GossamerError for an answer of too many numbers."""
    if n > MAX_VALUES:
        raise GossamerError(
            f"The answer would have {n:,} numbers, and {MAX_VALUES:,} are allowed; {advice}."
        )


def check_finite(values: Tensor) -> None:
    """GossamerError for numbers that are none."""
    if not bool(values.isfinite().all()):
        raise GossamerError(
            "The model gave numbers that are not finite; make the edits smaller, or run the model "
            "in float32."
        )


def as_json(body: wire.Wire) -> dict[str, Any]:
    """A body as it was sent."""
    return body.model_dump(mode="json", exclude_unset=True)
