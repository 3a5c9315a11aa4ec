"""What every test shares: no network, one thread, fixed seeds, and the tolerances, stated once.

Tests compare with `TOLERANCE[dtype]`, a relative tolerance: what rounding alone may cost in a
handful of layers. Laws are tested in float64; a wider tolerance needs its reason beside it.
"""

import os

import pytest
import torch

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.bfloat16: 3e-2,
    torch.float16: 3e-3,
}
"""Relative tolerance of one dtype, for `torch.testing.assert_close` and the like."""

# Before any test imports huggingface_hub, which reads it once; tests marked network set it to 0.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test draws the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)
