"""The classes of dictionary_learning: the names of their tensors, and what they compute.

class                   subtracts b_dec  latents
AutoEncoder             yes              relu(p); its loader makes decoder rows unit vectors
AutoEncoderNew          no               relu(p)
GatedAutoEncoder        yes              gated
JumpReluAutoEncoder     no               relu(p) (p > threshold), one for each latent
AutoEncoderTopK         yes              the k largest relu(p) of each token
BatchTopKSAE            yes              relu(p) (relu(p) > threshold), one for all latents
MatryoshkaBatchTopKSAE  yes              the same, trained in groups
"""

from pathlib import Path
from typing import Any, NamedTuple

from gossamer.errors import FormatError
from gossamer.interop.pickles import pickled_words
from gossamer.saes.native import read_json

NAME = "dictionary-learning"
WEIGHTS_FILE = "ae.pt"
CONFIG_FILE = "config.json"


class DictClass(NamedTuple):
    """Where one class keeps what makes an SAE."""

    selection: str
    """Name of our selection."""

    subtracts: bool
    """Whether it takes b_dec from its input."""

    b_dec: str
    """Name of the decoder's bias."""

    b_enc: str = "encoder.bias"
    """Name of the encoder's bias."""

    W_enc: str = "encoder.weight"
    """Name of the encoder: encoder.weight is stored (d_sae, d_in), W_enc (d_in, d_sae)."""

    W_dec: str = "decoder.weight"
    """Name of the decoder: decoder.weight is stored (d_out, d_sae), W_dec (d_sae, d_out)."""

    others: tuple[str, ...] = ()
    """Names of further tensors that are needed."""

    scalars: tuple[str, ...] = ()
    """Names of tensors that hold settings."""

    trainer: str = ""
    """The trainer_class that its library would name."""


_PLAIN = (
    "b_dec",
    "b_enc",
    "W_enc",
    "W_dec",
)  # b_dec and what comes after it
_K = ("k", "threshold")

CLASSES = {
    "AutoEncoder": DictClass("relu", True, "bias", trainer="StandardTrainer"),
    "AutoEncoderNew": DictClass(
        "relu", False, "decoder.bias", trainer="StandardTrainerAprilUpdate"
    ),
    "GatedAutoEncoder": DictClass(
        "gated",
        True,
        "decoder_bias",
        "mag_bias",
        others=("gate_bias", "r_mag"),
        trainer="GatedSAETrainer",
    ),
    "JumpReluAutoEncoder": DictClass(
        "jumprelu", False, *_PLAIN, others=("threshold",), trainer="JumpReluTrainer"
    ),
    "AutoEncoderTopK": DictClass("topk", True, "b_dec", scalars=_K, trainer="TopKTrainer"),
    "BatchTopKSAE": DictClass("jumprelu", True, "b_dec", scalars=_K, trainer="BatchTopKTrainer"),
    "MatryoshkaBatchTopKSAE": DictClass(
        "jumprelu",
        True,
        *_PLAIN,
        scalars=(*_K, "group_sizes"),
        trainer="MatryoshkaBatchTopKTrainer",
    ),
}
"""The classes that are read and written, by their names."""


def files(path: str | Path) -> tuple[Path, Path]:
    """The tensors and the config of a directory, or of a .pt file in it or in its `checkpoints`."""
    path = Path(path)
    if path.is_dir() or path.suffix != ".pt":
        return path / WEIGHTS_FILE, path / CONFIG_FILE
    folder = path.absolute().parent
    return path, (folder.parent if folder.name == "checkpoints" else folder) / CONFIG_FILE


def is_here(path: str | Path) -> bool:
    """Whether a directory holds a dictionary with its config, or a file is one beside its config;
    nothing in it is run."""
    weights, config = files(path)
    if not weights.is_file() or not config.is_file():
        return False
    try:
        trainer: Any = read_json(config).get("trainer")
    except FormatError:
        return False
    words = pickled_words(weights)
    return (
        isinstance(trainer, dict)
        and "dict_class" in trainer
        and (b"encoder.weight" in words or b"W_enc" in words)
    )
