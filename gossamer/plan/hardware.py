"""What machines do in a second, and how much they hold: the numbers that a plan divides by.

The values of `h100` are assumed, not measured by us. Of `cpu`, one thread of a shared x86 machine,
`benchmarks/scale.py` measured flops, bandwidth, link, latency and select_passes; the others are
assumed. Run it for your own.
"""

import math
from dataclasses import dataclass, fields

from gossamer.errors import GossamerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One process's device and its ways to the others; rates are sustained ones, not peaks."""

    name: str
    """What it is called."""

    flops: int | float
    """FLOP/s of float32 products, of multiplying and adding each one."""

    half_flops: int | float
    """FLOP/s of bfloat16 products."""

    model_flops: int | float
    """FLOP/s of a language model's forward pass."""

    bandwidth: int | float
    """Bytes/s between the device and its memory."""

    link: int | float
    """Bytes/s that a process sends to others of its node."""

    network: int | float
    """Bytes/s that a process sends to other nodes."""

    latency: int | float
    """Seconds of a collective of no bytes."""

    disk: int | float
    """Bytes/s that a process reads from a store or writes to a checkpoint."""

    memory: int | float
    """Bytes of one process's device."""

    per_node: int
    """Processes of a node."""

    select_passes: int | float
    """How many times choosing the largest reads all pre-activations."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "name":
                continue
            least = field.name in ("latency", "select_passes")
            if not (math.isfinite(value) and (value > 0 or (least and value == 0))):
                allowed = "of at least 0" if least else "above 0"
                raise GossamerError(
                    f"{field.name} of hardware must be a finite number {allowed}, got {value}."
                )


HARDWARE = {
    each.name: each
    for each in (
        Hardware(
            name="h100",
            flops=5e13,
            half_flops=5.5e14,
            model_flops=4e14,
            bandwidth=3e12,
            link=350e9,
            network=45e9,
            latency=2e-5,
            disk=3e9,
            memory=80e9,
            per_node=8,
            select_passes=4,
        ),
        Hardware(
            name="cpu",
            flops=5.5e10,
            half_flops=5.5e10,
            model_flops=5.5e10,
            bandwidth=4.7e9,
            link=8e8,
            network=8e8,
            latency=1.5e-4,
            disk=1e9,
            memory=16e9,
            per_node=2,
            select_passes=6,
        ),
    )
}
"""By name."""


def hardware_of(given: Hardware | str) -> Hardware:
    """The value itself, or the one of that name. GossamerError for a name that nothing has."""
    if isinstance(given, Hardware):
        return given
    if given not in HARDWARE:
        raise GossamerError(
            f'There are rates of {", ".join(HARDWARE)}, not of "{given}"; name one of them, or '
            "give a Hardware of your own."
        )
    return HARDWARE[given]
