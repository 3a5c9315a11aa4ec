"""A run that is stopped at any moment and started again ends with the same bits."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gossamer.training.checkpoints as checkpoints_file
from gossamer.errors import FormatError, GossamerError
from gossamer.saes import SAE, load_native
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.checkpoints import checkpoints
from gossamer.training.config import (
    DeadConfig,
    OptimizerConfig,
    RunConfig,
    StartConfig,
    TrainConfig,
)
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.loop import train
from gossamer.training.relu import ReLUConfig
from gossamer.training.topk import TopKConfig
from tests.tiny_training import SITE, Rows, dictionary_rows

EVERY_STEP = RunConfig(checkpoint_seconds=0.0, log_steps=4)

ARCHITECTURES = {
    "topk": TopKConfig(k=4),
    "batchtopk": BatchTopKConfig(k=4),
    "relu": ReLUConfig(),
    "gated": GatedConfig(),
    "jumprelu": JumpReLUConfig(),
}


def settings(kind: str, **options: object) -> TrainConfig:
    remedy = "auxk" if kind.endswith("topk") else "resample"
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
    with pytest.raises(GossamerError, match=r"configs\.0\.seed 0, not 1.*another directory"):
        train(settings("topk", seed=1), rows(), directory=tmp_path)
    other = Rows(rows().tensors, about={"model": "another"})
    with pytest.raises(GossamerError, match='source.model "tiny", not "another"'):
        train(settings("topk"), other, directory=tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_batch_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    source = rows()
    source.bad_step = 10
    with pytest.raises(GossamerError, match=rf"step 10 of {SITE} .* activations .*step-00000010"):
        train(settings("topk"), source, directory=tmp_path, run=EVERY_STEP)
    good = rows()
    resumed = train(settings("topk"), good, directory=tmp_path, run=EVERY_STEP)
    straight = train(settings("topk"), good)
    assert all(torch.equal(t, bits(resumed.sae)[n]) for n, t in bits(straight.sae).items())


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = checkpoints_file.write_tensors, []

    def full(tensors: dict, path: Path, metadata: dict) -> None:
        if len(written) == 5:
            path.with_name(path.name + ".partial").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(path)
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoints_file, "write_tensors", full)
    with pytest.raises(GossamerError, match=r"No space left.*goes on from step 5"):
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
        if n_killed < 10:
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
    assert n_killed >= 5
    straight = train(long_run(), rows())
    killed = load_native(tmp_path / "killed")
    assert all(torch.equal(t, bits(killed)[n]) for n, t in bits(straight.sae).items())
