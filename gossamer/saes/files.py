"""Load an SAE in the native format as the one that `sae.save(directory)` wrote."""

from pathlib import Path

import torch

from gossamer.errors import FormatError, ShapeError
from gossamer.saes.native import HEADER_FILE, TENSORS_FILE, read_header, read_native
from gossamer.saes.sae import SAE


def load_native(directory: str | Path, dtype: torch.dtype | None = None) -> SAE:
    """The SAE that was saved in a directory.

    With `dtype=None` weights stored as float16 or bfloat16 load as float32, others as stored.
    FormatError when a file is missing, damaged, of another version, or its tensors do not fit, and
    for a crosscoder, which is of several sites.
    """
    if "reads" in read_header(Path(directory)):
        raise FormatError(
            f"{directory} holds a crosscoder; load it with gossamer.saes.load_crosscoder."
        )
    arguments = read_native(directory, dtype)
    try:
        return SAE(**arguments)
    except ShapeError as error:
        raise FormatError(
            f"{Path(directory) / TENSORS_FILE} does not fit {HEADER_FILE} beside it: {error}"
        ) from error


def is_native(directory: str | Path) -> bool:
    """Whether a directory holds an SAE in the native format."""
    return (Path(directory) / HEADER_FILE).is_file()
