"""Autoencoders, transcoders, crosscoders: one architecture per file, native save and load."""

from gossamer.saes.abstopk import AbsTopK
from gossamer.saes.crosscoder import Crosscoder, load_crosscoder
from gossamer.saes.files import is_native, load_native
from gossamer.saes.gated import Gated
from gossamer.saes.jumprelu import JumpReLU
from gossamer.saes.labels import Labels
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK

__all__ = [
    "SAE",
    "AbsTopK",
    "AbstractSelection",
    "Crosscoder",
    "Gated",
    "JumpReLU",
    "Labels",
    "ReLU",
    "SparseCoder",
    "TopK",
    "is_native",
    "load_crosscoder",
    "load_native",
]
