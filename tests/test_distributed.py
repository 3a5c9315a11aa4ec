"""Several processes are as one: training on every mesh, checkpoints, processes that are lost."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.cli.train import train_command
from gossamer.distributed import Mesh, load_shards, mesh_of, save_shards, shapes_in
from gossamer.errors import FormatError, GossamerError
from gossamer.saes import load_native
from gossamer.training.checkpoints import checkpoints
from gossamer.training.config import RunConfig
from gossamer.training.loop import train
from tests.mesh_worker import CASES, GOES_ON, config_of, live_batches, rows, stopped, trained
from tests.tiny_training import OTHER, SITE


def launched(n: int, *words: str, restarts: int = 0) -> str:
    """Run the worker in n processes; what it says on standard error."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(n), "--max-restarts", str(restarts)),
            *("-m", "tests.mesh_worker", *words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def check_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """One run's weights and log, up to the order in which sums were taken."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-11, msg=name)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Every case in one process."""
    return {case: trained(case, None) for case in CASES}


@pytest.mark.slow
@pytest.mark.parametrize("meshes", [("dp=2", "tp=2"), ("dp=2,tp=2", "tp=4")])
def test_every_architecture_on_a_mesh_is_that_of_one_process(
    alone: dict[str, Any], meshes: tuple[str, ...], tmp_path: Path
) -> None:
    """Shares are unequal, rows come twice, k is more than a share's latents, latents die."""
    n = 2 * len(meshes[0].split(","))
    launched(n, "cases", str(tmp_path), *meshes)
    for mesh in meshes:
        found = torch.load((tmp_path / mesh).with_suffix(".pt"))
        for case in CASES:
            check_same(found[case], alone[case])
    with_dead = [case for case in CASES if alone[case]["log.dead"].any()]
    assert len(with_dead) >= 5 and {"topk", "batchtopk", "topk resampled"} <= set(with_dead)
    assert alone["topk"]["log.loss_auxk"].any()


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_four_and_back(
    alone: dict[str, Any], tmp_path: Path
) -> None:
    for case in GOES_ON:
        stopped(case, None, tmp_path / case, 4)
    launched(4, "go on", str(tmp_path), "dp=2,tp=2")
    for case in GOES_ON:
        kinds = [path.suffix for path in checkpoints(tmp_path / case)]
        assert kinds == [".safetensors", "", "", "", ""]
        check_same(trained(case, None, directory=tmp_path / case) or {}, alone[case])
    found, whole = torch.load(tmp_path / "cut.pt")
    assert (tmp_path / "cut/checkpoints/step-00000004.damaged").is_dir()
    assert all(torch.equal(found[n], whole[n]) for n in whole if not n.startswith("log."))
    check_said(json.loads((tmp_path / "said.json").read_text()), tmp_path)
    live_batches(Mesh(), tmp_path / "one.pt")
    pairs = zip(torch.load(tmp_path / "live.pt"), torch.load(tmp_path / "one.pt"), strict=True)
    for several, one in pairs:
        torch.testing.assert_close(several, one, rtol=1e-5, atol=1e-5)


def check_said(said: list[dict[str, str]], directory: Path) -> None:
    """Every process of dp=2,tp=2 has stopped, for the same reason."""
    for name, words in (
        ("not finite", f"GossamerError: The activations of {SITE} in the batch of step 6 are not"),
        ("run away", f"GossamerError: At step 6 the loss of {OTHER}, its gradient or the weights"),
        ("settings", "GossamerError: The processes of this training run do not have the same"),
        ("full", "DiskError: The checkpoint after step 4 could not be written"),
        ("all cut", f"FormatError: {directory / 'full/checkpoints/step-00000003'} is damaged"),
    ):
        assert all(each[name].startswith(words) for each in said), (name, said)
    for name in ("callback", "begun"):
        assert said[0][name] == "ZeroDivisionError: of a callback"
        told = "GossamerError: Process 0 stopped (ZeroDivisionError: of a callback)"
        assert all(each[name].startswith(told) for each in said[1:])
    names = sorted(path.name for path in (directory / "full/checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000003"]
    assert {each["auxk of equal rows"] for each in said} == {"0.0"}
    assert [each["finished"] for each in said] == ["False", "True", "True", "True"]


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    said = launched(2, "die", str(tmp_path), "dp=1,tp=2", restarts=1)
    assert "exitcode  : -9" in said or "Signal 9" in said or "-9" in said
    found, whole = torch.load(tmp_path / "dp=1,tp=2.pt")
    assert all(torch.equal(found[n], whole[n]) for n in whole if not n.startswith("log."))


@pytest.mark.slow
def test_the_command_line_trains_on_a_mesh_or_says_what_is_wrong(tmp_path: Path) -> None:
    words = ["train", "--model", "pico-python", "--site", "blocks.1.hook_resid_pre", "--k", "4"]
    words += ["--d-sae", "64", "--tokens", "4800", "--batch", "600", "--context", "64"]
    # The second half of the seventh batch, and not the first, goes over into other blocks.
    by_two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    by_two += ["-m", "gossamer", *words, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True}
    done = subprocess.run([*by_two, str(tmp_path / "two"), "--mesh=dp=2"], **options, check=False)
    assert done.returncode == 0 and done.stdout.count("Trained") == 1, done.stderr
    train_command.main([*words[1:], "--out", str(tmp_path / "one")], standalone_mode=False)
    two, one = (load_native(tmp_path / name).state_dict() for name in ("two", "one"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4)
    done = subprocess.run([*by_two, str(tmp_path / "none")], **options, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert said == [
        "Error: 2 processes were started; say how they share the work, for example dp=2 (tokens) "
        "or tp=2 (latents)."
    ]
    assert done.returncode and not (tmp_path / "none").exists()


def test_one_process_reads_what_a_mesh_wrote_or_says_what_is_wrong(tmp_path: Path) -> None:
    tensors = {"W": torch.randn(6, 3), "b": torch.randn(4), "n": torch.arange(3)}
    save_shards(tensors, {"W"}, tmp_path / "it", Mesh())
    assert shapes_in(tmp_path / "it") == {"W": (6, 3), "b": (4,), "n": (3,)}
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_shards(found, {"W"}, tmp_path / "it", Mesh())
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    for name in ("cut", "none", "code"):
        shutil.copytree(tmp_path / "it", tmp_path / name)
    largest = max((tmp_path / "cut").glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(largest, 100)
    (tmp_path / "none/.metadata").unlink()
    (tmp_path / "code/.metadata").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    for name, why in (("cut", "damaged"), ("none", "No such file"), ("code", "would run")):
        with pytest.raises(FormatError, match=why):
            load_shards(found, {"W"}, tmp_path / name, Mesh())
    assert not (tmp_path / "ran").exists()


class Code:
    """What runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dp=2", "has 2 processes, 1 is running; start it with torchrun --nproc-per-node 2"),
        ("dp=two", 'is written as dp=2,tp=2, got "dp=two"'),
        ("pp=2", 'is written as dp=2,tp=2, got "pp=2"'),
        ("dp=0,tp=4", "has 0 processes"),
    ],
)
def test_a_mesh_that_is_none(text: str, why: str) -> None:
    with pytest.raises(GossamerError, match=why):
        mesh_of(text)


def test_what_cannot_be_shared_is_refused() -> None:
    config = config_of("topk")
    several = Mesh(dp=3, tp=5)
    for change, why in (
        ({"d_sae": 24}, "tp=5 processes share latents in equal parts, got d_sae=24"),
        ({"d_sae": 25, "batch_tokens": 2}, "dp=3 processes share the tokens of a batch"),
    ):
        with pytest.raises(GossamerError, match=why):
            train(replace(config, **change), rows(), mesh=several, run=RunConfig())
