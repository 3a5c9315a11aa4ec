"""A harvest by several processes is that of one, whatever happens to some of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import gossamer
from gossamer.activations.store import has_entries, read_manifest
from tests.small_shards import SITE, TOKENS, broken_model, module, write_inputs
from tests.test_activations import shard_bytes

ROOT = Path(gossamer.__file__).parent.parent
LIMIT = 300
"""Seconds a launch may take on a busy machine."""


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command that does not outlive the test."""
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        try:
            yield child
        finally:
            child.terminate()


def launch(
    n: int, out: Path, *options: str, restarts: int = 0
) -> AbstractContextManager[subprocess.Popen[str]]:
    """The command in n processes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={n}",
    ]
    command += [f"--max-restarts={restarts}", str(ROOT / "tests" / "small_shards.py"), str(TOKENS)]
    command += ["harvest", *options, "--out", str(out)]
    return started(command)


def listed(directory: Path) -> int:
    """How many shards are made."""
    return len(list(directory.glob("shard-*.json")))


def rank_of(parent: int, rank: int) -> int:
    """The process with a rank that torchrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_child = f"\nPPid:\t{parent}\n" in (folder / "status").read_text()
            if is_child and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process with rank {rank}")


def wait_for(what: Callable[[], bool], child: subprocess.Popen[str]) -> None:
    """Until it is so; the command is still running."""
    end = time.monotonic() + LIMIT
    while not what():
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(0.002)


def kill_rank(out: Path, child: subprocess.Popen[str], more: int) -> int:
    """SIGKILL rank 1 when so many more shards are made; how many there are."""
    before = listed(out)
    wait_for(lambda: listed(out) >= before + more, child)
    os.kill(rank_of(child.pid, 1), signal.SIGKILL)
    return listed(out)


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], Path]]:
    """The options of a harvest, and the store that one process makes of them."""
    n_tokens = 400 * TOKENS
    options = write_inputs(tmp_path, n_tokens)
    monkeypatch.setattr(module, "SHARD_TOKENS", TOKENS)
    model = gossamer.load_model(tmp_path / "model")
    how = {"sites": [SITE], "directory": tmp_path / "one", "n_tokens": n_tokens, "context": 16}
    gossamer.harvest(model, tmp_path / "ids.npy", **how)
    yield options, tmp_path / "one"


@pytest.mark.slow
def test_two_and_four_processes_killed_and_begun_again_make_the_store_of_one(
    one: tuple[list[str], Path], tmp_path: Path
) -> None:
    options, whole = one
    out = tmp_path / "many"
    with launch(2, out, *options) as child:
        n_made = kill_rank(out, child, 6)
        said = child.communicate(timeout=LIMIT)
    assert child.returncode != 0, said
    known = read_manifest(out)[1]
    assert n_made <= len(known) < 390 and has_entries(out)
    assert len(gossamer.Store.open(out).shards) == len(known)  # what is there can be read
    times = {shard.file: (out / shard.file).stat().st_mtime_ns for shard in known}

    with launch(4, out, *options, restarts=1) as child:
        kill_rank(out, child, 6)
        said = child.communicate(timeout=LIMIT)
    assert child.returncode == 0, said
    assert said[0].count("rows of") == 1  # one process speaks
    assert shard_bytes(out) == shard_bytes(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times


@pytest.mark.slow
def test_what_one_process_cannot_do_ends_all_with_one_sentence(tmp_path: Path) -> None:
    """The second shard is the second process's, and its activations are no numbers."""
    options = write_inputs(tmp_path, 20 * TOKENS)
    options += ["--model", str(broken_model(tmp_path))]
    with launch(2, tmp_path / "out", *options) as child:
        printed, said = child.communicate(timeout=LIMIT)
    assert child.returncode != 0 and not printed
    (line,) = [line for line in said.splitlines() if line.startswith("Error:")]
    assert "for shard-00001.safetensors are not finite in the model itself" in line
    assert [shard.file for shard in read_manifest(tmp_path / "out")[1]] == [
        "shard-00000.safetensors"
    ]
