"""What a call costs: seconds, and memory beyond what was taken before."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


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
