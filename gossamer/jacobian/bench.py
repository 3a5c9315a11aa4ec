"""How fast Jacobians are on this machine, beside the ways they replace.

A token's block between k latents on each side, for random weights and indices:

    loop      k · k dot products a token, one by one (a part of them, the rest extrapolated)
    einsum    tables of all latents, the one after the MLP with the latent last; one einsum over
              gathered operands
    tables    tables with the latent first, gathered as rows (`kernels/jacobian.py`)
    rows      no tables: the rows that are needed, through the weights
    forward   of GPT-2's smallest shape over 1,024 tokens, as a yardstick
"""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.jacobian.passage import Linear
from gossamer.jacobian.products import from_rows
from gossamer.jacobian.sides import Side
from gossamer.kernels.jacobian import jacobian_blocks, jacobian_loop
from gossamer.machine import device_of, measured

FORWARD_TOKENS = 1024
"""Tokens of the yardstick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is timed. The defaults are GPT-2 small's, with dictionaries of 64 · d_model latents."""

    d_model: int = 768
    """Width of the activations on both sides."""

    d_mlp: int = 3072
    """Hidden units."""

    d_sae: int = 49_152
    """Latents on each side."""

    k: int = 32
    """Active latents a token, on each side."""

    n_tokens: int = 64
    """Tokens."""

    runs: int = 100
    """Timed runs of each way, after ten more to warm up; the loop and the yardstick have fewer."""

    loop_entries: int = 256
    """Entries that the loop computes."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise GossamerError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.k > self.d_sae:
            raise GossamerError(f"k is at most d_sae={self.d_sae}, got k={self.k}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One way."""

    way: str
    """Its name."""

    runs: int
    """Timed runs."""

    milliseconds: tuple[float, ...]
    """Of each run."""

    bytes: int | None
    """Peak memory beyond the weights: tables, if it needs them, and one call's; None: unknown."""

    note: str = ""
    """What else to know."""

    def summary(self) -> dict[str, Any]:
        """Mean, median, standard deviation, smallest and largest, in milliseconds."""
        times = self.milliseconds
        return {
            "way": self.way,
            "runs": self.runs,
            "mean_ms": statistics.fmean(times),
            "median_ms": statistics.median(times),
            "std_ms": statistics.pstdev(times),
            "min_ms": min(times),
            "max_ms": max(times),
            "bytes": self.bytes,
            "note": self.note,
        }


def bench_jacobian(
    sizes: Sizes | None = None, device: str = "cpu", *, forward: bool = True
) -> Iterator[Timing]:
    """Time each way. GossamerError when results differ, or the device is not there."""
    sizes = Sizes() if sizes is None else sizes
    place = device_of(device)
    generator = torch.Generator(place).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=place)

    def chosen() -> Tensor:
        shape = (sizes.n_tokens, sizes.k)
        return torch.randint(0, sizes.d_sae, shape, generator=generator, device=place)

    W_dec, W_enc = normal(sizes.d_sae, sizes.d_model), normal(sizes.d_sae, sizes.d_model)
    W_in, W_out = normal(sizes.d_mlp, sizes.d_model), normal(sizes.d_model, sizes.d_mlp)
    slopes = (normal(sizes.n_tokens, sizes.d_mlp) > 0).float()
    in_rows, out_rows = chosen(), chosen()
    rows = {"out_rows": out_rows, "in_rows": in_rows}
    linear = Linear((W_in.contiguous(),), W_out, W_out, (slopes,), None, None, False)
    sides = [
        Side(indices, indices.float(), indices, lambda which, W=W: W[which])
        for indices, W in ((out_rows, W_enc), (in_rows, W_dec))
    ]

    def without_tables() -> Tensor:
        return from_rows(linear, sides[0], sides[1])[0]

    yield _timed("rows (no tables)", without_tables, sizes.runs, place)

    started = time.perf_counter()
    reads, writes = W_enc @ W_out, W_dec @ W_in.T
    _wait(place)
    built = time.perf_counter() - started
    table_bytes = reads.nbytes + writes.nbytes

    def from_tables() -> Tensor:
        return jacobian_blocks(reads, (writes,), (slopes,), **rows)

    if not torch.allclose(from_tables(), without_tables(), rtol=1e-2, atol=1.0):
        raise GossamerError("Entries from tables and from rows differ; this is a bug, report it.")
    floor = _floor(2 * sizes.n_tokens * sizes.k * sizes.d_mlp * reads.element_size(), reads)
    note = f"tables built once in {built:.2f} s; reading its rows alone takes {floor:.2f} ms"
    yield _timed("tables", from_tables, sizes.runs, place, table_bytes, note)

    columns = reads.T.contiguous()
    # The slopes second: torch contracts from left to right, and any other order is far slower.
    pattern = "pos k_in d_mlp, pos d_mlp, d_mlp pos k_out -> pos k_in k_out"

    def by_einsum() -> Tensor:
        return einsum(writes[in_rows], slopes, columns[:, out_rows], pattern)

    yield _timed("einsum", by_einsum, sizes.runs, place, table_bytes, "the same tables")

    n_out = max(1, min(sizes.k, sizes.loop_entries // sizes.k))
    part = {"out_rows": out_rows[:1, :n_out], "in_rows": in_rows[:1]}
    entries = n_out * sizes.k
    every = sizes.n_tokens * sizes.k**2
    loop = _timed(
        "loop",
        lambda: jacobian_loop(reads, writes, slopes[:1], **part),
        min(sizes.runs, 5),
        place,
        table_bytes,
        f"{entries:,} of {every:,} entries timed, the rest extrapolated",
    )
    yield Timing(
        way=loop.way,
        runs=loop.runs,
        milliseconds=tuple(ms * every / entries for ms in loop.milliseconds),
        bytes=loop.bytes,
        note=loop.note,
    )
    if forward:
        del reads, writes, columns, W_dec, W_enc
        yield _forward(min(sizes.runs, 5), place)


def _floor(n_bytes: int, table: Tensor) -> float:
    """Milliseconds to read that many bytes at the speed at which this machine copies a table."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        copy = table.clone()
        _wait(table.device)
        times.append(time.perf_counter() - started)
        del copy
    return 1e3 * n_bytes * min(times) / (2 * table.nbytes)


def _forward(runs: int, device: torch.device) -> Timing:
    """GPT-2's smallest shape, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model: Any = GPT2LMHeadModel(GPT2Config()).eval()
    model.to(device)
    ids = torch.zeros(1, FORWARD_TOKENS, dtype=torch.long, device=device)
    note = f"{FORWARD_TOKENS:,} tokens of a GPT-2 small, for comparison"
    return _timed("forward", lambda: model(ids).logits, runs, device, 0, note)


@torch.no_grad()
def _timed(  # noqa: PLR0917  what is timed, and how
    way: str,
    call: Callable[[], Any],
    runs: int,
    device: torch.device,
    kept_bytes: int = 0,
    note: str = "",
) -> Timing:
    """Warm up, time, and see the memory of one more call."""
    times = []
    for number in range(runs + min(10, runs)):
        started = time.perf_counter()
        call()
        _wait(device)
        if number >= min(10, runs):
            times.append(1e3 * (time.perf_counter() - started))
    with suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before counts anew
    with measured(device) as cost:
        call()
    return Timing(
        way=way,
        runs=runs,
        milliseconds=tuple(times),
        bytes=None if cost.peak_bytes is None else kept_bytes + cost.peak_bytes,
        note=note,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
