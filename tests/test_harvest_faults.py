"""What can happen to a harvest: a kill, a full disk, damage, numbers that do not fit."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import gossamer
from gossamer.activations import Store, shards
from gossamer.activations.store import read_manifest, write_manifest
from gossamer.errors import DiskError, GossamerError
from tests.small_disk import fill, small_disk
from tests.test_activations import SITES, corpus, made, module, shard_bytes, small

CHILD = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.test_harvest_faults import made_of_many
move = Path.replace
def slowly(self, target):  # a slow disk: files are for some time half there
    time.sleep(0.01)
    return move(self, target)
Path.replace = slowly
made_of_many(Path(sys.argv[1]))
"""

MANY = 600


def made_of_many(directory: Path) -> Store:
    """A hundred shards and more: long enough to be killed in the middle."""
    module.SHARD_TOKENS = 32
    documents = corpus(MANY)
    return made(directory, sum(map(len, documents)), documents)


def state(directory: Path) -> tuple[int, set[str]]:
    """How many shards are listed, and the files that are there."""
    there = (directory / "manifest.json").exists()
    listed = len(read_manifest(directory)[1]) if there else 0
    return listed, {file.name for file in directory.glob("*")}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_TOKENS", 32)
    whole = made_of_many(tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", CHILD, str(killed)]
    root = Path(gossamer.__file__).parent.parent
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    chance, seen, n_kills, between = random.Random(0), [], 0, 0
    while n_kills < 5:
        before = state(killed)[1]
        with subprocess.Popen(command, cwd=root, env=environment) as child:
            # Until it has written something new, then for a random moment.
            while child.poll() is None and not state(killed)[1] - before:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, "it ended before it was killed"
        n_kills += 1
        listed, files = state(killed)
        seen.append(listed)
        between += any(name.endswith(".partial") for name in files)
        between += len([name for name in files if name.endswith(".safetensors")]) > listed
    assert seen == sorted(seen) and 0 < seen[-1] < len(whole.shards), seen
    assert len(set(seen)) >= 3 and between > 0, f"{seen}, {between}: few partial states were seen"
    for name in ("shard-00003.safetensors.partial", ".tmpAbC123"):  # what a kill may leave
        (killed / name).touch()
    made_of_many(killed)
    assert shard_bytes(killed) == shard_bytes(tmp_path / "whole")


def test_a_full_disk_is_told_in_words_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one, with a little more room each time the harvest is run again."""
    small(monkeypatch)
    made(tmp_path / "whole")
    refused = []
    with small_disk(tmp_path / "disk", 200) as disk:
        for leave in range(0, 80_000, 4096):
            fill(disk, leave)
            try:
                made(disk / "acts")
                break
            except DiskError as problem:
                refused.append((str(problem), state(disk / "acts")[0]))
            assert not list(disk.rglob("*.partial"))
        assert shard_bytes(disk / "acts") == shard_bytes(tmp_path / "whole")
    assert len(refused) >= 3 and refused[-1][1] > 0, refused
    for words, _ in refused:
        assert re.search("disk is full.* are kept, and the same harvest run again", words), words


def test_the_shards_that_were_made_again_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    store = made(tmp_path)
    assert store.remade == () and made(tmp_path).remade == ()
    before = shard_bytes(tmp_path)
    names = [store.shards[i].file for i in (0, len(store.shards) - 1)]
    (tmp_path / names[1]).unlink()
    damaged = bytearray(before[names[0]])
    damaged[-1] ^= 1
    (tmp_path / names[0]).write_bytes(damaged)
    assert made(tmp_path, 5).remade == tuple(names)  # also one beyond what is asked
    assert shard_bytes(tmp_path) == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_that_do_not_fit_are_said_before_they_are_stored(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shards.rows_of

    def large(*arguments: Any, **options: Any) -> Any:
        rows = real(*arguments, **options)
        rows[SITES[1]][2, 3] = 1e5 if dtype == "float16" else math.inf
        return rows

    monkeypatch.setattr(shards, "rows_of", large)
    words = "reach 1e.05, more than float16 holds .6.55e.04.; take dtype bfloat16"
    words = words if dtype == "float16" else "not finite in the model itself"
    with pytest.raises(GossamerError, match=f"{SITES[1]} for shard-00000.*{words}"):
        made(tmp_path / "acts", dtype=dtype)
    monkeypatch.undo()
    made(tmp_path / "acts", dtype="float32")  # the directory is as good as new


def test_a_failed_call_leaves_a_directory_usable(tmp_path: Path) -> None:
    for options in ({"context": 1}, {"context": 10_000}, {"batch": 0}, {"documents": [[]]}):
        with pytest.raises(GossamerError):
            made(tmp_path / "acts", **options)
    assert made(tmp_path / "acts").n_rows >= 150
    write_manifest(tmp_path / "acts", {"model": "another"}, [])
    assert made(tmp_path / "acts").n_rows >= 150  # nothing of the other was there
