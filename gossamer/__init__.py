"""Gossamer finds, measures and verifies sparse circuits in language models."""

from gossamer.attribution.edges import edges
from gossamer.attribution.effects import L1, Density, Edge, Edges
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.attribution.verify import MeasuredEdge, measure
from gossamer.edits import Ablate, Detach, Patch, Scale, Set, Steer
from gossamer.errors import FormatError, GossamerError, PromptError, ShapeError, SiteError
from gossamer.kernels.sparse import SparseLatents
from gossamer.library import load_model, load_sae, load_saes
from gossamer.models.model import Model
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.splice import Trace, run

__all__ = [
    "Ablate",
    "Density",
    "Detach",
    "Edge",
    "Edges",
    "FormatError",
    "GossamerError",
    "L1",
    "Latents",
    "LogitDifference",
    "Logits",
    "MeasuredEdge",
    "Model",
    "Patch",
    "PromptError",
    "SAE",
    "Scale",
    "Set",
    "ShapeError",
    "SiteError",
    "SparseCoder",
    "SparseLatents",
    "Steer",
    "Tokens",
    "Trace",
    "edges",
    "load_model",
    "load_sae",
    "load_saes",
    "measure",
    "run",
]
