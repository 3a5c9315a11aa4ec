"""What the tests of other libraries' SAE files share: fixtures, comparisons, small random SAEs."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gossamer.saes import SAE

FIXTURES = Path(__file__).parent / "fixtures"
D_IN, D_SAE, K = 12, 28, 5
RESID = "blocks.1.hook_resid_pre"


def expected(directory: Path) -> dict[str, Tensor]:
    """The input, and what the library gave for it."""
    return load_file(directory / "expected.safetensors")


def cases(format_name: str) -> list[str]:
    """The names of a format's fixtures."""
    return sorted(path.name for path in (FIXTURES / format_name).iterdir() if path.is_dir())


def assert_near(actual: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value."""
    error = (actual.double() - wanted.double()).abs().max() / wanted.double().abs().max()
    assert error <= tolerance, f"off by {error:.1e} of the largest value"


def assert_gives(sae: SAE, said: dict[str, Tensor], half: str = "") -> None:
    """Latents and outputs, dense and sparse, are those that the library gave."""
    x, latents, output = (said[name + half] for name in ("x", "latents", "output"))
    assert latents.count_nonzero() > len(latents)
    assert_near(sae.encode(x), latents)
    assert_near(sae(x), output)
    assert_near(sae.decode(sae.encode_sparse(x), x), output)


def assert_same(sae: SAE, again: SAE, *, facts: bool = True) -> None:
    """Bit for bit the same tensors, and the same of everything else."""
    for (name, buffer), other in zip(sae.named_buffers(), again.buffers(), strict=True):
        assert buffer.dtype == other.dtype and torch.equal(buffer, other), name
    assert type(sae.selection) is type(again.selection)
    assert sae.selection.scalars() == again.selection.scalars()
    names = "site_in site_out subtract_b_dec normalization".split()
    names += "model_name prepend_bos metadata labels".split() if facts else []
    for name in names:
        assert getattr(sae, name) == getattr(again, name), name


def small(selection: Any, *, d_out: int = 4, d_sae: int = 7, **options: Any) -> SAE:
    """A small random SAE that reads 4 numbers, a transcoder if `site_out` is given."""
    weights = {"W_enc": torch.randn(d_sae, 4), "b_enc": torch.randn(d_sae)}
    weights |= {"W_dec": torch.randn(d_sae, d_out), "b_dec": torch.randn(d_out)}
    return SAE(**weights, selection=selection, **{"site_in": RESID} | options)


def checked(format_name: str) -> dict[str, float]:
    """By how much the library's reading of what we wrote differed, by the name of the case."""
    contents = json.loads((FIXTURES / format_name / "checked.json").read_text())
    return contents["largest relative difference"]


def assert_small(format_name: str) -> None:
    """Fixtures stay small enough to keep in the repository."""
    files = (FIXTURES / format_name).rglob("*")
    assert sum(file.stat().st_size for file in files if file.is_file()) < 300_000


class Attack:
    """Makes a directory when it is unpickled by a reader that runs what it reads."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__("os").mkdir, (str(self.made),)
