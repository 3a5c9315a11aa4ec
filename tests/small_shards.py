"""The command line with shards of a few blocks, so that a tiny corpus has many:

python tests/small_shards.py 64 harvest …
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gossamer
from gossamer.activations import harvest
from gossamer.cli import main

SITE = "blocks.1.hook_resid_pre"
TOKENS = 64
"""Of a shard."""

module: Any = sys.modules[harvest.__module__]


def write_inputs(folder: Path, n_tokens: int) -> list[str]:
    """A tiny model, and a corpus of ids of which only the second shard has token 36; the options
    that name them."""
    from tests.tiny_models import tiny_language_model

    tiny_language_model("gpt2", torch.float32).save_pretrained(folder / "model")
    ids = np.random.default_rng(0).integers(0, 36, n_tokens)
    ids[TOKENS + 5] = 36
    np.save(folder / "ids.npy", ids)
    options = ["--model", str(folder / "model"), "--corpus", str(folder / "ids.npy")]
    return [*options, "--site", SITE, "--context", "16", "--tokens", str(n_tokens)]


def broken_model(folder: Path) -> Path:
    """The same model, whose activations at token 36 are no numbers."""
    model = gossamer.load_model(folder / "model").language_model
    with torch.no_grad():
        model.transformer.wte.weight[36] = torch.nan
    model.save_pretrained(folder / "broken")
    return folder / "broken"


if __name__ == "__main__":
    module.SHARD_TOKENS = int(sys.argv.pop(1))
    main()
