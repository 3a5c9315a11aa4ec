"""The directory of a run: what it is, where it has come to, what it has logged.

    run.json                          the configs and where the activations come from
    checkpoints/step-00000500.safetensors    everything that the next step needs
    log.jsonl                         one line for each trainee and `log_steps` steps

A checkpoint holds weights, scales, running thresholds, silence counters, Adam's moments and steps,
and the sums of the log line that is being filled. There is no state of a random generator to keep:
the order of the data, the schedules and every draw are functions of the seed and the step, and the
step is the place in the data. Files are written under another name and moved into place, so a run
that is killed at any moment leaves whole ones.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from torch import Tensor

from gossamer.errors import FormatError, GossamerError
from gossamer.saes.native import read_json, read_tensors, write_tensors, write_text
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


def as_json(config: TrainConfig) -> dict[str, Any]:
    """A config as JSON values, with the word for its architecture."""
    fields = asdict(config)
    fields["sae"] = {"kind": config.sae.name, **fields["sae"]}
    return json.loads(json.dumps(fields))


def open_run(directory: Path, configs: Sequence[TrainConfig], source: Mapping[str, Any]) -> None:
    """Make the directory, or check that it holds this very run. GossamerError when it does not."""
    wanted = {
        "format": FORMAT,
        "version": VERSION,
        "configs": [as_json(config) for config in configs],
        "source": json.loads(json.dumps(dict(source))),
    }
    path = directory / RUN_FILE
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(wanted, indent=2) + "\n", path)
        return
    found = read_json(path)
    if found == wanted:
        return
    differing = sorted(_differences(found, wanted))
    raise GossamerError(
        f"{directory} holds a run with other settings ({', '.join(differing[:4])}); give the same "
        "ones to continue it, or another directory."
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
    path = directory / "checkpoints" / f"step-{step:08d}.safetensors"
    path.parent.mkdir(exist_ok=True)
    about = {"format": FORMAT, "version": str(VERSION), "step": str(step)}
    try:
        write_tensors(tensors, path, about)
    except (OSError, SafetensorError) as problem:
        path.with_name(path.name + ".partial").unlink(missing_ok=True)
        raise GossamerError(
            f"The checkpoint after step {step} could not be written ({problem}); make room and "
            f"run the same command again: {_goes_on(directory)}."
        ) from problem
    for old in checkpoints(directory)[:-keep]:
        old.unlink()
    return path


def checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints of a run, the newest last."""
    return sorted((directory / "checkpoints").glob("step-*.safetensors"))


def step_of(path: Path) -> int:
    """Steps that were done when a checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def load_checkpoint(
    path: Path, trainees: Sequence[Trainee], optimizers: Sequence[torch.optim.Optimizer]
) -> Float64[Tensor, "n_trainees 5"]:
    """Put the state back, bit for bit; returns the sums."""
    try:
        tensors, about = read_tensors(path)
        if about.get("format") != FORMAT or about.get("version") != str(VERSION):
            raise FormatError(f"{path} is no checkpoint that this release reads; remove it.")
        for place, (trainee, optimizer) in enumerate(zip(trainees, optimizers, strict=True)):
            state = {name: tensors[f"{place}.{name}"] for name in trainee.state_dict()}
            trainee.load_state_dict(state)
            for name, parameter in trainee.named_parameters():
                start = f"{place}.adam.{name}."
                optimizer.state[parameter] = {
                    # A copy where the weight is; Adam's own step count stays on the CPU or not, as
                    # it does when it is made.
                    key.removeprefix(start): tensor.to(parameter.device)
                    for key, tensor in tensors.items()
                    if key.startswith(start)
                }
        return tensors["sums"]
    except (FormatError, KeyError, RuntimeError) as problem:
        raise FormatError(
            f"{path} is damaged ({problem}); remove it to go on from the checkpoint before."
        ) from problem


def read_log(directory: Path, until_step: int) -> list[dict[str, Any]]:
    """The lines up to a step; what a later, lost part of the run has logged is cut off the file."""
    path = directory / LOG_FILE
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a run that was killed while writing it
            break
        if row["step"] > until_step:
            break
        rows.append(row)
    write_text("".join(json.dumps(row) + "\n" for row in rows), path)
    return rows


def append_log(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to the log."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    try:
        with (directory / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as problem:
        raise GossamerError(
            f"{directory / LOG_FILE} could not be written ({problem}); make room and run the same "
            f"command again: {_goes_on(directory)}."
        ) from problem


def _goes_on(directory: Path) -> str:
    found = checkpoints(directory)
    return f"it goes on from step {step_of(found[-1])}" if found else "it starts anew"
