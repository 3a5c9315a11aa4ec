"""A run that is stopped at any moment and started again ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer.training.checkpoints as checkpoints_file
from gossamer.errors import DiskError, FormatError, GossamerError
from gossamer.saes import SAE, load_native
from gossamer.training.abstopk import AbsTopKConfig
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.checkpoints import append_log, checkpoints
from gossamer.training.config import (
    DeadConfig,
    OptimizerConfig,
    RunConfig,
    StartConfig,
    TrainConfig,
)
from gossamer.training.gated import GatedConfig
from gossamer.training.interrupt import Interrupt
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.loop import train
from gossamer.training.matryoshka import MatryoshkaConfig
from gossamer.training.panneal import PAnnealConfig
from gossamer.training.relu import ReLUConfig
from gossamer.training.topk import TopKConfig
from tests.tiny_training import SITE, Rows, dictionary_rows

EVERY_STEP = RunConfig(checkpoint_seconds=0.0, log_steps=4)

ARCHITECTURES = {
    "topk": TopKConfig(k=4),
    "topk bfloat16": TopKConfig(k=4, encode_in="bfloat16"),
    "batchtopk": BatchTopKConfig(k=4),
    "matryoshka": MatryoshkaConfig(k=4),
    "abstopk": AbsTopKConfig(k=4),
    "relu": ReLUConfig(),
    "panneal": PAnnealConfig(n_falls=7),
    "gated": GatedConfig(),
    "jumprelu": JumpReLUConfig(),
    "jumprelu target": JumpReLUConfig(penalty="target", target_l0=4.0),
}


def settings(kind: str, **options: object) -> TrainConfig:
    remedy = "auxk" if "topk" in kind else "resample"
    return TrainConfig(
        sae=ARCHITECTURES[kind],
        d_sae=48,
        n_tokens=30 * 64,
        batch_tokens=64,
        optimizer=OptimizerConfig(rate=1e-3),
        dead=DeadConfig(after_tokens=256, remedy=remedy, resample_tokens=512),
        start=StartConfig(n_tokens=512),
        **options,  # type: ignore[arg-type]
    )


def rows() -> Rows:
    return Rows({SITE: dictionary_rows(500, 40, 16, 3)[0]})


def bits(sae: SAE) -> dict[str, Tensor]:
    return dict(sae.state_dict())


def without_times(history: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in ("tokens_per_second", "waiting")}
        for row in history
    ]


class Stopped(Exception):
    """What a test stops a run with."""


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("stop", [4, 20])
def test_resumed_equals_uninterrupted(kind: str, stop: int, tmp_path: Path) -> None:
    def stopping(row: dict) -> None:
        if row["step"] == stop:
            raise Stopped

    config = settings(kind)
    straight = train(config, rows(), run=EVERY_STEP)
    with pytest.raises(Stopped):
        train(config, rows(), directory=tmp_path, callbacks=[stopping], run=EVERY_STEP)
    found = checkpoints(tmp_path)
    assert len(found) == min(2, stop - 1) and not (tmp_path / "sae.json").exists()
    resumed = train(config, rows(), directory=tmp_path, run=EVERY_STEP)
    assert all(torch.equal(t, bits(resumed.sae)[n]) for n, t in bits(straight.sae).items())
    assert without_times(resumed.history) == without_times(straight.history)
    again = train(config, rows(), directory=tmp_path)  # the run has ended: it is read
    assert all(torch.equal(t, bits(again.sae)[n]) for n, t in bits(straight.sae).items())
    assert again.history == resumed.history
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == resumed.history


def test_two_in_one_pass_resume_and_equal_each_alone(tmp_path: Path) -> None:
    configs = [settings("topk"), settings("relu", seed=0)]
    alone = [train(config, rows()) for config in configs]

    def stopping(row: dict) -> None:
        if row["step"] == 12 and row["trainee"] == 1:
            raise Stopped

    with pytest.raises(Stopped):
        train(configs, rows(), directory=tmp_path, callbacks=[stopping], run=EVERY_STEP)
    together = train(configs, rows(), directory=tmp_path, run=EVERY_STEP)
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(t, bits(other.sae)[n]) for n, t in bits(one.sae).items())
    assert {result.directory.name for result in together if result.directory} == {
        f"00-{SITE}",
        f"01-{SITE}",
    }


def test_other_settings_are_refused_in_one_sentence(tmp_path: Path) -> None:
    train(settings("topk"), rows(), directory=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        GossamerError, match=r"other settings \(configs\.0\.seed 0, not 1.*another directory"
    ):
        train(settings("topk", seed=1), rows(), directory=tmp_path)
    other = Rows(rows().tensors, about={"model": "another"})
    with pytest.raises(GossamerError, match='source.model "tiny", not "another"'):
        train(settings("topk"), other, directory=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def stopped(directory: Path, config: TrainConfig, *, at: int, error: Any = Stopped) -> Path:
    """A run that a callback has stopped after some steps; its newest checkpoint."""

    def stopping(row: dict) -> None:
        if row["step"] == at:
            raise error

    with pytest.raises(error):
        train(config, rows(), directory=directory, callbacks=[stopping], run=EVERY_STEP)
    return checkpoints(directory)[-1]


@pytest.mark.parametrize("from_callback", [True, False])
def test_an_interrupted_run_keeps_the_step_it_is_in(from_callback: bool, tmp_path: Path) -> None:
    def interrupting(row: dict) -> None:
        if row["step"] == 8:
            if from_callback:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    never = RunConfig(checkpoint_seconds=1e6, log_steps=4)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(settings("topk"), rows(), directory=tmp_path, callbacks=[interrupting], run=never)
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.stem for path in checkpoints(tmp_path)] == ["step-00000008"]
    resumed = train(settings("topk"), rows(), directory=tmp_path, run=never)
    straight = train(settings("topk"), rows(), run=never)
    assert all(torch.equal(t, bits(resumed.sae)[n]) for n, t in bits(straight.sae).items())
    assert without_times(resumed.history) == without_times(straight.history)


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.wanted
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one came through")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB; skipped where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def filled(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes of the disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / ".filler").write_bytes(bytes(free - left))
    return disk / ".filler"


def test_a_disk_that_is_really_full_loses_nothing(small_disk: Path) -> None:
    run, straight = small_disk / "run", train(settings("topk"), rows(), run=EVERY_STEP)
    filler = filled(small_disk, 0)
    with pytest.raises(GossamerError, match=r"run.json could not be written: the disk is full"):
        train(settings("topk"), rows(), directory=run, run=EVERY_STEP)
    assert list(run.iterdir()) == []
    filler.unlink()
    filler = filled(small_disk, 60_000)  # two checkpoints have room, not three
    with pytest.raises(GossamerError, match=r"could not be written.*goes on from step"):
        train(settings("topk"), rows(), directory=run, run=EVERY_STEP)
    assert not list(run.rglob("*.partial")) and checkpoints(run)
    filler.unlink()
    resumed = train(settings("topk"), rows(), directory=run, run=EVERY_STEP)
    assert all(torch.equal(t, bits(resumed.sae)[n]) for n, t in bits(straight.sae).items())
    assert without_times(resumed.history) == without_times(straight.history)


def test_a_log_that_could_not_be_written_ends_in_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')

    class Full:
        """A file that has room for half."""

        def __init__(self) -> None:
            self.file = path.open("a")

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise OSError(28, "No space left on device")

    full = Full()
    monkeypatch.setattr(Path, "open", lambda *_, **__: full)
    with pytest.raises(GossamerError, match=r"log.jsonl could not be written .*No space left"):
        append_log(tmp_path, [{"step": 2}])
    monkeypatch.undo()
    assert path.read_text() == '{"step": 1}\n'


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = checkpoints_file.write_tensors, []

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        if len(written) == 5:
            raise DiskError(f"{path} could not be written: the disk is full. Make room.")
        written.append(path)
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoints_file, "write_tensors", full)
    with pytest.raises(GossamerError, match=r"disk is full.*goes on from step 5"):
        train(settings("topk"), rows(), directory=tmp_path, run=EVERY_STEP)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000004.safetensors",
        "step-00000005.safetensors",
    ]
    monkeypatch.undo()
    resumed = train(settings("topk"), rows(), directory=tmp_path)
    straight = train(settings("topk"), rows())
    assert all(torch.equal(t, bits(resumed.sae)[n]) for n, t in bits(straight.sae).items())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    source = rows()
    source.bad_step = 10
    with pytest.raises(GossamerError):
        train(settings("topk"), source, directory=tmp_path, run=EVERY_STEP)
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(FormatError, match=rf"{newest.name} is damaged.*remove it"):
        train(settings("topk"), rows(), directory=tmp_path)
    newest.unlink()
    resumed = train(settings("topk"), rows(), directory=tmp_path)
    straight = train(settings("topk"), rows())
    assert all(torch.equal(t, bits(resumed.sae)[n]) for n, t in bits(straight.sae).items())


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from gossamer.training.config import RunConfig
from gossamer.training.loop import train
from tests.test_training_resume import long_run, rows
train(long_run(), rows(), directory=sys.argv[1], run=RunConfig(checkpoint_seconds=0.05))
"""


def long_run() -> TrainConfig:
    return TrainConfig(
        sae=BatchTopKConfig(k=4),
        d_sae=512,
        n_tokens=1500 * 64,
        batch_tokens=64,
        dead=DeadConfig(after_tokens=2000),
    )


@pytest.mark.slow
def test_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    chance = random.Random(0)
    n_killed = 0
    for _ in range(60):
        process = subprocess.Popen(command, env=environment, cwd=root)
        if n_killed < 4:
            start = time.monotonic()
            moment = chance.uniform(0.0, 0.8)
            seen = {path.name for path in checkpoints(tmp_path / "killed")}
            # Wait for it to have got further than the last time, then for a random moment.
            while process.poll() is None and time.monotonic() - start < 60:
                if {path.name for path in checkpoints(tmp_path / "killed")} - seen:
                    break
                time.sleep(0.01)
            time.sleep(moment)
            process.kill()
        if process.wait() == 0:
            break
        n_killed += 1
    assert n_killed >= 3
    straight = train(long_run(), rows())
    killed = load_native(tmp_path / "killed")
    assert all(torch.equal(t, bits(killed)[n]) for n, t in bits(straight.sae).items())
