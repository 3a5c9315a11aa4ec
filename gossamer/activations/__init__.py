"""Activations of a model over a corpus: harvested into a store, or live, for training."""

from gossamer.activations.harvest import harvest
from gossamer.activations.means import Means, means
from gossamer.activations.sources import (
    ActivationSource,
    LiveActivations,
    TensorActivations,
    as_source,
)
from gossamer.activations.store import Store

__all__ = [
    "ActivationSource",
    "LiveActivations",
    "Means",
    "Store",
    "TensorActivations",
    "as_source",
    "harvest",
    "means",
]
