"""The directory of a run: what it is, where it has come to, what it has logged.

    run.json                          the configs and where the activations come from
    checkpoints/step-00000500.safetensors    everything that the next step needs
    checkpoints/step-00000500/        the same, of a mesh of processes
    log.jsonl                         one line for each trainee and `log_steps` steps

Any mesh, and a process alone, goes on from either kind.

A checkpoint holds weights, scales, running thresholds, silence counters, Adam's moments and steps,
and the sums of the log line that is being filled. There is no state of a random generator to keep:
the order of the data, the schedules and every draw are functions of the seed and the step, and the
step is the place in the data. Files are written under another name and moved into place, so a run
that is killed at any moment leaves whole ones.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from torch import Tensor

from gossamer.distributed import load_shards, save_shards, shapes_in
from gossamer.errors import DiskError, FormatError, GossamerError, ShapeError, leftovers
from gossamer.saes.native import (
    make_directory,
    read_json,
    read_tensors,
    write_tensors,
    write_text,
)
from gossamer.training.config import TrainConfig
from gossamer.training.trainee import Trainee

RUN_FILE = "run.json"
"""What the run is."""

LOG_FILE = "log.jsonl"
"""What it has logged."""

FORMAT = "gossamer-run"
"""First word of the run's file."""

VERSION = 1
"""Version of the layout described here."""


MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of each weight."""


def as_json(config: TrainConfig) -> dict[str, Any]:
    """A config as JSON values, with the word for its architecture."""
    fields = asdict(config)
    fields["sae"] = {"kind": config.sae.name, **fields["sae"]}
    return json.loads(json.dumps(fields))


def open_run(directory: Path, configs: Sequence[TrainConfig], source: Mapping[str, Any]) -> str:
    """Make the directory, or check that it holds this very run; the text of its run's file.

    GossamerError when it holds anything else, or cannot be made.
    """
    wanted = {
        "format": FORMAT,
        "version": VERSION,
        "configs": [as_json(config) for config in configs],
        "source": json.loads(json.dumps(dict(source))),
    }
    path = directory / RUN_FILE
    if path.exists():
        _check_same(read_json(path), wanted, directory)
    else:
        _check_empty(directory)
        make_directory(directory)
    for leftover in (*leftovers(directory), *leftovers(directory / "checkpoints")):
        _remove(leftover)
    return json.dumps(wanted, indent=2) + "\n"


def begin_run(directory: Path, text: str) -> None:
    """Write the run's file, once it is known that the run can begin."""
    if not (directory / RUN_FILE).exists():
        write_text(text, directory / RUN_FILE)


def _check_same(found: Any, wanted: Any, directory: Path) -> None:
    """GossamerError when the directory's run is another one."""
    differing = sorted(_differences(found, wanted))
    if not differing:
        return
    words = {"configs": "settings", "source": "activations"}
    kinds = [word for name, word in words.items() if any(d.startswith(name) for d in differing)]
    raise GossamerError(
        f"{directory} holds a run with other {' and '.join(kinds) or 'files'} "
        f"({'; '.join(differing[:4])}); give the same ones to continue it, or another directory."
    )


def _check_empty(directory: Path) -> None:
    """GossamerError where a run would mix with what is there already."""
    if directory.exists() and not directory.is_dir():
        raise GossamerError(f"{directory} is a file; name a directory for the run.")
    there = [] if not directory.exists() else sorted(path.name for path in directory.iterdir())
    there = [name for name in there if not name.startswith(".") and not name.endswith(".partial")]
    if there:
        raise GossamerError(
            f"{directory} holds {', '.join(there[:3])} and no {RUN_FILE}, so it is no run that "
            "could be continued; name a new or empty directory."
        )


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two JSON values differ, as `name: found, not wanted`."""
    if found == wanted:
        return []
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = [(key, found.get(key), wanted.get(key)) for key in {*found, *wanted}]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(str(i), *both) for i, both in enumerate(zip(found, wanted, strict=True))]
    if not pairs:
        return [f"{name} {json.dumps(found)}, not {json.dumps(wanted)}"]
    inner = [
        each
        for key, one, other in pairs
        for each in _differences(one, other, f"{name}.{key}" if name else key)
    ]
    return inner


def save_checkpoint(
    directory: Path,
    step: int,
    trainees: Sequence[Trainee],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    sums: Float64[Tensor, "n_trainees 5"],
    keep: int,
) -> Path:
    """Write the state after `step` steps, and remove all but the `keep` newest checkpoints."""
    tensors: dict[str, Tensor] = {"sums": sums}
    for place, (trainee, optimizer) in enumerate(zip(trainees, optimizers, strict=True)):
        for name, tensor in trainee.state_dict().items():
            tensors[f"{place}.{name}"] = tensor
        for name, parameter in trainee.named_parameters():
            for key, tensor in optimizer.state[parameter].items():
                tensors[f"{place}.adam.{name}.{key}"] = tensor
    mesh = trainees[0].mesh
    path = directory / "checkpoints" / f"step-{step:08d}"
    path = path if mesh.size > 1 else path.with_suffix(".safetensors")
    about = {"format": FORMAT, "version": str(VERSION), "step": str(step)}
    try:
        mesh.first(lambda: make_directory(path.parent))
        if mesh.size > 1:
            save_shards(tensors, _by_latent(trainees), path, mesh)
        else:
            write_tensors(tensors, path, about)
    except (DiskError, SafetensorError) as problem:
        raise DiskError(
            f"The checkpoint after step {step} could not be written: {why_not(problem)}. Make "
            f"room; the same command again {_goes_on(directory)}."
        ) from problem
    mesh.first(lambda: [_remove(old) for old in checkpoints(directory)[:-keep]])
    return path


def set_aside(path: Path) -> None:
    """Rename a checkpoint that is damaged, so that it is none."""
    damaged = path.with_name(f"{path.name}.damaged")
    if damaged.exists():  # of an earlier time
        _remove(damaged)
    path.rename(damaged)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _by_latent(trainees: Sequence[Trainee]) -> set[str]:
    """Names in a checkpoint of what has a row for each latent."""
    names = {f"{place}.{n}" for place, trainee in enumerate(trainees) for n in trainee.by_latent()}
    moments = {
        f"{place}.adam.{name}.{key}"
        for place, trainee in enumerate(trainees)
        for name in trainee.by_latent()
        for key in MOMENTS
    }
    return names | moments


def checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints of a run, the newest last."""
    found = (directory / "checkpoints").glob("step-*")
    return sorted(path for path in found if path.suffix in (".safetensors", ""))


def step_of(path: Path) -> int:
    """Steps that were done when a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def load_checkpoint(
    path: Path, trainees: Sequence[Trainee], optimizers: Sequence[torch.optim.Optimizer]
) -> Float64[Tensor, "n_trainees 5"]:
    """Put the state back, bit for bit; returns the sums."""
    try:
        of_one = partial(_of_one, path, trainees)
        mesh = trainees[0].mesh
        tensors = _of_mesh(path, trainees) if path.is_dir() else mesh.together(of_one)
    except FormatError as problem:
        raise FormatError(
            f"{path} is damaged ({problem}); remove it to go on from the checkpoint before."
        ) from problem
    for place, (trainee, optimizer) in enumerate(zip(trainees, optimizers, strict=True)):
        trainee.load_state_dict({n: tensors[f"{place}.{n}"] for n in trainee.state_dict()})
        for name, parameter in trainee.named_parameters():
            start = f"{place}.adam.{name}."
            optimizer.state[parameter] = {
                # A copy where the weight is; Adam's own step count stays on the CPU or not, as it
                # does when it is made.
                key.removeprefix(start): tensor.to(parameter.device)
                for key, tensor in tensors.items()
                if key.startswith(start)
            }
    return tensors["sums"]


def _of_one(path: Path, trainees: Sequence[Trainee]) -> dict[str, Tensor]:
    """What one process wrote: of each latent's rows those here."""
    tensors, about = read_tensors(path)
    if about.get("format") != FORMAT or about.get("version") != str(VERSION):
        raise FormatError("it is no checkpoint that this release reads")
    _check_shapes(path, {n: tuple(t.shape) for n, t in tensors.items()}, trainees)
    for name in _by_latent(trainees) & tensors.keys() if trainees[0].mesh.tp > 1 else ():
        place = int(name.split(".")[0])
        tensors[name] = tensors[name][trainees[place].latents].clone()
    return tensors


def _of_mesh(path: Path, trainees: Sequence[Trainee]) -> dict[str, Tensor]:
    """What the processes of a mesh wrote, of this or another one."""
    mesh = trainees[0].mesh
    shapes = mesh.first(lambda: shapes_in(path))
    _check_shapes(path, shapes, trainees)
    tensors = {"sums": torch.zeros(len(trainees), 5, dtype=torch.float64)}
    for place, trainee in enumerate(trainees):
        tensors |= {f"{place}.{n}": torch.empty_like(t) for n, t in trainee.state_dict().items()}
        for name, parameter in trainee.named_parameters():
            for key in MOMENTS:
                tensors[f"{place}.adam.{name}.{key}"] = torch.empty_like(parameter.detach())
            tensors[f"{place}.adam.{name}.step"] = torch.zeros(())
    load_shards(tensors, _by_latent(trainees), path, mesh)
    return tensors


def _check_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], trainees: Sequence[Trainee]
) -> None:
    """FormatError for what is missing, ShapeError for what does not fit the trainees."""
    wanted: dict[str, tuple[int, ...]] = {"sums": (len(trainees), 5)}
    for place, trainee in enumerate(trainees):
        wanted |= {f"{place}.{n}": tuple(t.shape) for n, t in trainee.state_dict().items()}
        for name, parameter in trainee.named_parameters():
            for key in MOMENTS:
                wanted[f"{place}.adam.{name}.{key}"] = tuple(parameter.shape)
            wanted[f"{place}.adam.{name}.step"] = ()
    for name in _by_latent(trainees) & wanted.keys():
        n_here, *rest = wanted[name]
        wanted[name] = (n_here * trainees[0].mesh.tp, *rest)
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise FormatError(f"it lacks {', '.join(missing[:3])}")
    other = [
        f"{name} {shapes[name]}, not {shape}"
        for name, shape in wanted.items()
        if shapes[name] != shape
    ]
    if other:
        raise ShapeError(
            f"{path} is of activations of another width ({'; '.join(other[:3])}); give those that "
            "the run was started with, or another directory."
        )


def read_log(directory: Path, until_step: int) -> list[dict[str, Any]]:
    """The lines up to a step; what a later, lost part of the run has logged is cut off the file.

    FormatError for a file that is damaged elsewhere than at its end, where a kill may have cut it.
    """
    path = directory / LOG_FILE
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise FormatError(f"{path} cannot be read ({problem}); put the log back.") from problem
    rows: list[dict[str, Any]] = []
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is None and number < len(lines):
            raise FormatError(f"Line {number} of {path} is damaged; put the log back.")
        if row is None or row["step"] > until_step:
            break
        rows.append(row)
    if len(rows) < len(lines) or not text.endswith("\n"):
        write_text("".join(json.dumps(row) + "\n" for row in rows), path)
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """A line of the log; None when it is damaged."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"step", "trainee"} <= set(row) else None


def append_log(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to the log, all or none."""
    path = directory / LOG_FILE
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as problem:
        if path.exists():
            os.truncate(path, size)
        raise DiskError(
            f"{path} could not be written ({problem.strerror}). Make room; the same command again "
            f"{_goes_on(directory)}."
        ) from problem


def last_good(directory: Path | None) -> str:
    """Which checkpoint there is to go on from, in words."""
    found = [] if directory is None else checkpoints(directory)
    return f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint"


def why_not(problem: Exception) -> str:
    """Why a file could not be written, in a few words; safetensors has its own error for it."""
    text = str(problem)
    return (
        "the disk is full" if "os error 28" in text or "disk is full" in text else text.rstrip(".")
    )


def _goes_on(directory: Path) -> str:
    found = checkpoints(directory)
    return f"goes on from step {step_of(found[-1])}" if found else "starts anew"
