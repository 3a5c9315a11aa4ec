"""The plan of a training run: seconds, bytes and traffic of each part, before anything has run.

    found = plan(Work(config=TrainConfig(sae=TopKConfig(k=64), d_sae=2**20, n_tokens=1e10,
                 batch_tokens=2**17), d_in=4096), gpus=64)
    found.hours, found.fits, found.remarks

Arithmetic alone: docs/scale.md has the formulas and says what is assumed. Every layout dp × tp of
the processes is planned, and the fastest that fits is named.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from gossamer.errors import GossamerError, ShapeError
from gossamer.machine import readable
from gossamer.plan.collectives import Collective, collectives
from gossamer.plan.hardware import Hardware, hardware_of
from gossamer.plan.memory import host_bytes, memory
from gossamer.plan.parts import Part, checkpoint_bytes, parts, store_bytes
from gossamer.plan.work import Share, Work

ROOM = 0.9
"""Share of a device's memory that a plan may fill."""

MOST = 2**16
"""Processes up to which a number that fits is looked for."""


class Layout(NamedTuple):
    """One way to lay out the processes, and what it costs."""

    dp: int
    """Processes that share the tokens."""

    tp: int
    """Processes that share the latents."""

    step_seconds: float
    """Of a step."""

    memory_bytes: float
    """Of a process."""

    fits: bool
    """Whether that is there."""


@dataclass(frozen=True)
class Plan:
    """What a run will take; per process where nothing else is said."""

    work: Work
    """What is trained."""

    hardware: Hardware
    """On what."""

    dp: int
    """Processes that share the tokens."""

    tp: int
    """Processes that share the latents."""

    parts: tuple[Part, ...]
    """Seconds, FLOP and bytes of each part of a step."""

    collectives: tuple[Collective, ...]
    """Exchanges of a step."""

    memory: dict[str, float]
    """Bytes on the device, by what they hold."""

    layouts: tuple[Layout, ...]
    """Every layout of as many processes, the best first."""

    @property
    def gpus(self) -> int:
        """All processes."""
        return self.dp * self.tp

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return sum(part.seconds for part in self.parts if part.when == "step")

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        return self.work.config.n_steps

    @property
    def tokens_per_second(self) -> float:
        """While it trains, of all processes."""
        return self.work.config.batch_tokens / self.step_seconds

    @property
    def training_hours(self) -> float:
        """Of all steps and checkpoints."""
        return self.n_steps * sum(p.seconds for p in self.parts if p.when != "before") / 3600

    @property
    def harvest_hours(self) -> float:
        """Of storing activations first."""
        return self.n_steps * sum(p.seconds for p in self.parts if p.when == "before") / 3600

    @property
    def hours(self) -> float:
        """Of everything."""
        return self.training_hours + self.harvest_hours

    @property
    def gpu_hours(self) -> float:
        """Of everything, of all processes."""
        return self.hours * self.gpus

    @property
    def memory_bytes(self) -> float:
        """On the device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether nine tenths of the device's memory are enough."""
        return self.memory_bytes <= ROOM * self.hardware.memory

    @property
    def host_bytes(self) -> float:
        """Of a process's tokens of a batch, in the memory of the host."""
        return host_bytes(self.share)

    @property
    def share(self) -> Share:
        """What one process has."""
        return Share(self.work, self.dp, self.tp)

    @property
    def disk(self) -> dict[str, float]:
        """Bytes on disk, of all processes: activations, and each checkpoint."""
        return {"store": store_bytes(self.share), "checkpoint": checkpoint_bytes(self.share)}

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """What a reader should know before starting, a sentence each."""
        found = (_hypothetical(self), _room(self), _better(self), *_slow(self))
        return tuple(remark for remark in found if remark)

    def part(self, name: str) -> Part:
        """A part by its name; one of no cost where it has none."""
        return next((part for part in self.parts if part.name == name), Part(name, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values; times in seconds unless the name says hours."""
        config = self.work.config
        totals = ("step_seconds", "n_steps", "tokens_per_second", "training_hours")
        totals += ("harvest_hours", "hours", "gpu_hours", "memory_bytes", "fits", "host_bytes")
        return {
            "work": {
                "sae": config.sae.name,
                "d_in": self.share.d_in,
                "d_out": self.share.d_out,
                "d_sae": config.d_sae,
                "active": self.work.per_token,
                "n_tokens": int(config.n_tokens),
                "batch_tokens": config.batch_tokens,
                "numbers": self.work.numbers,
                "store": self.work.store,
            },
            "hardware": asdict(self.hardware),
            "mesh": {"gpus": self.gpus, "dp": self.dp, "tp": self.tp},
            **{name: getattr(self, name) for name in totals},
            "parts": [part.as_dict() for part in self.parts],
            "collectives": [each.as_dict() for each in self.collectives],
            "memory": dict(self.memory),
            "disk": self.disk,
            "layouts": [layout._asdict() for layout in self.layouts],
            "remarks": list(self.remarks),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def plan(
    work: Work,
    *,
    gpus: int = 1,
    dp: int | None = None,
    tp: int | None = None,
    hardware: Hardware | str = "h100",
) -> Plan:
    """What a run takes of time, memory and traffic.

    Args:
        work: what is trained, and what is assumed of it.
        gpus: processes, one a device.
        dp: of these, how many share the tokens; None: what is fastest.
        tp: and how many the latents; None: what is fastest.
        hardware: rates and sizes, or the name of known ones: h100, cpu.

    GossamerError for a layout that training would refuse, or when no layout is possible.
    """
    machine = hardware_of(hardware)
    if gpus < 1:
        raise GossamerError(f"A run has at least one process, got gpus={gpus}.")
    dp, tp = _asked(gpus, dp, tp)
    possible = [(gpus // n, n) for n in _divisors(gpus) if _refused(work, gpus // n, n) is None]
    layouts = sorted((_layout(work, machine, pair) for pair in possible), key=_goodness)
    if dp is not None and tp is not None:
        refused = _refused(work, dp, tp)
        if refused is not None:
            raise ShapeError(refused)
    elif layouts:
        dp, tp = layouts[0][:2]
    else:
        raise ShapeError(
            f"{gpus} processes can neither share d_sae={work.config.d_sae} latents in equal parts "
            f"nor the {work.config.batch_tokens} tokens of a step; give another number of them."
        )
    return _planned(work, machine, (dp, tp), tuple(layouts))


def _planned(
    work: Work, machine: Hardware, mesh: tuple[int, int], layouts: tuple[Layout, ...]
) -> Plan:
    share = Share(work, *mesh)
    exchanges = collectives(share)
    return Plan(
        *(work, machine, *mesh),
        parts=parts(share, machine, exchanges),
        collectives=exchanges,
        memory=memory(share),
        layouts=layouts,
    )


def _asked(gpus: int, dp: int | None, tp: int | None) -> tuple[int | None, int | None]:
    """dp and tp, the one that was left out from the other."""
    for name, given in (("dp", dp), ("tp", tp)):
        if given is not None and (given < 1 or gpus % given):
            raise GossamerError(
                f"{name} must divide the {gpus} processes, got {given}; give one of "
                f"{', '.join(map(str, _divisors(gpus)))}."
            )
    dp = gpus // tp if dp is None and tp is not None else dp
    tp = gpus // dp if tp is None and dp is not None else tp
    if dp is not None and tp is not None and dp * tp != gpus:
        raise GossamerError(
            f"dp={dp} times tp={tp} are {dp * tp} processes, not {gpus}; leave one of them out."
        )
    return dp, tp


def _refused(work: Work, dp: int, tp: int) -> str | None:
    """Why training would not begin; None where it would."""
    if work.config.d_sae % tp:
        return (
            f"tp={tp} processes share latents in equal parts, got d_sae={work.config.d_sae}; "
            "give a multiple of tp."
        )
    if work.config.batch_tokens < dp:
        return (
            f"dp={dp} processes share the tokens of a batch, got "
            f"batch_tokens={work.config.batch_tokens}; give at least dp."
        )
    return None


def _divisors(n: int) -> list[int]:
    return [each for each in range(1, n + 1) if n % each == 0]


def _layout(work: Work, machine: Hardware, mesh: tuple[int, int]) -> Layout:
    found = _planned(work, machine, mesh, ())
    return Layout(*mesh, found.step_seconds, found.memory_bytes, found.fits)


def _goodness(layout: Layout) -> tuple[bool, float]:
    """The fastest that fits first; where none fits, the smallest."""
    return not layout.fits, layout.step_seconds if layout.fits else layout.memory_bytes


def _hypothetical(found: Plan) -> str | None:
    if found.work.numbers == "float32":
        return None
    return (
        "This is a hypothetical step in bfloat16; Gossamer trains in float32, which --numbers "
        "float32 plans."
    )


def _room(found: Plan) -> str | None:
    if found.fits:
        return None
    has, there = readable(int(found.memory_bytes)), readable(int(ROOM * found.hardware.memory))
    has = f"{has} a process, of {there}"
    other = next((each for each in found.layouts if each.fits), None)
    if other is not None:
        return f"It does not fit: {has}; dp={other.dp} tp={other.tp} does."
    n = 2 * found.gpus
    while n <= MOST:
        if _refused(found.work, 1, n) is None:
            alone = _planned(found.work, found.hardware, (1, n), ())
            if alone.fits:
                return f"It does not fit: {has}; with gpus={n}, dp=1 tp={n}, it would."
        n *= 2
    return f"It does not fit: {has}, nor on more processes; give fewer tokens a step or latents."


def _better(found: Plan) -> str | None:
    best = found.layouts[0] if found.layouts else None
    if best is None or not best.fits or not found.fits:
        return None
    if best.step_seconds > 0.98 * found.step_seconds:
        return None
    faster = found.step_seconds / best.step_seconds
    return f"dp={best.dp} tp={best.tp} is {faster:.2g} times as fast and fits."


def _slow(found: Plan) -> list[str]:
    """Parts that cost much and could cost less."""
    step, remarks = found.step_seconds, []
    share = found.part("checkpoints").seconds / step
    if share > 0.05:
        remarks.append(
            f"Writing checkpoints takes {share:.0%} as long as all steps; write fewer "
            "(--checkpoint-seconds)."
        )
    if found.part("read").seconds > 0.2 * step:
        remarks.append(
            f"Reading takes {found.part('read').seconds / step:.0%} of a step: a process reads its "
            f"tokens, {readable(int(found.part('read').bytes))} a step, as all of its tp do."
        )
    fixed = sum(found.part(name).seconds for name in ("adam", "gradients", "dp traffic"))
    if fixed > found.part("encode").seconds:
        remarks.append(
            f"What does not depend on the batch takes {fixed / step:.0%} of a step; a larger batch "
            "is cheaper a token."
        )
    return remarks
