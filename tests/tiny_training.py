"""A small source of activations with the training protocol, and plain losses to compare with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.conftest import TOLERANCE

SITE = "blocks.0.hook_resid_pre"
OTHER = "blocks.0.hook_mlp_out"


@dataclass
class Rows:
    """Rows in memory, shuffled anew in each epoch; batch n is a function of seed and n."""

    tensors: dict[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=lambda: {"model": "tiny"})
    bad_step: int | None = None
    bad_site: str | None = None  # None: the first
    bad_value: float = float("nan")

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.tensors.values())))

    def width(self, site: str) -> int:
        return self.tensors[site].shape[1]

    def batches(self, size: int, *, seed: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        number = start
        while True:
            generator = torch.Generator().manual_seed(seed * 7919 + number)
            chosen = torch.randint(0, self.n_rows, (size,), generator=generator)
            batch = {site: tensor[chosen] for site, tensor in self.tensors.items()}
            if number == self.bad_step:
                batch[self.bad_site or self.sites[0]][0, 0] = self.bad_value
            yield batch
            number += 1


def dictionary_rows(
    n_rows: int, n_features: int = 256, width: int = 64, n_active: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(activations, directions): sparse positive sums of random unit directions and an offset."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_features, width, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    mask = torch.rand(n_rows, n_features, generator=generator) < n_active / n_features
    sizes = 0.5 + torch.rand(n_rows, n_features, generator=generator)
    return (mask * sizes) @ directions + 0.3, directions


def check_equal(one: Tensor, other: Tensor, parameters: list[Tensor]) -> None:
    """Two losses have one value, and one gradient by each parameter; None counts as 0."""
    torch.testing.assert_close(one, other, rtol=TOLERANCE[torch.float64], atol=1e-12)
    both = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (one, other)]
    for parameter, *pair in zip(parameters, *both, strict=True):
        first, second = (torch.zeros_like(parameter) if g is None else g for g in pair)
        torch.testing.assert_close(first, second, rtol=TOLERANCE[torch.float64], atol=1e-10)
