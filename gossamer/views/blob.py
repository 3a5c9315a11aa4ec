"""Arrays and strings as one safetensors blob, which `web/tensors.js` reads in the browser.

Arrays are tensors; everything else is one JSON text under the key "json" of the file's metadata.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

METADATA_KEY = "json"
"""Where the JSON text stands in the metadata."""


def pack(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """The blob. Text is written in ASCII escapes, so that even a lone surrogate survives."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(contiguous, metadata={METADATA_KEY: json.dumps(about, allow_nan=False)})
