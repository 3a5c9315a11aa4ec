"""The machine: its devices, the memory that is free, and what a call costs of time and memory."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gossamer.errors import GossamerError


def device_of(device: torch.device | str) -> torch.device:
    """The device, once something has been there. GossamerError where that fails."""
    try:
        torch.zeros(1, device=device).item()
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = str(problem).splitlines()[0]
        raise GossamerError(
            f'There is no device "{device}" here ({reason}); write cpu, or cuda or mps where there '
            "is one."
        ) from problem


@dataclass(slots=True)
class Cost:
    """Filled in when the call ends."""

    seconds: float = 0.0
    """Wall time."""

    peak_bytes: int | None = None
    """Peak memory beyond the state before; None where it cannot be seen. Of the process, so that
    calls side by side count each other's."""


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Time and peak memory of what runs inside."""
    cost, started = Cost(), time.perf_counter()
    before = _mark(device)
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        cost.peak_bytes = None if before is None else max(0, _peak(device) - before)


def _mark(device: torch.device) -> int | None:
    """Bytes taken now, the peak counted anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    """A number of bytes that the kernel keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    if table.exists():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def readable(n_bytes: int) -> str:
    """A number of bytes for people."""
    return (
        f"{max(n_bytes, 0) / 1e9:.2f} GB" if n_bytes >= 1e7 else f"{max(n_bytes, 0) / 1e6:.2f} MB"
    )
