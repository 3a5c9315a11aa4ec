"""A harvest by Ray's actors is that of one process, also when an actor is killed."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import gossamer
from gossamer.errors import GossamerError
from tests.browser import needs
from tests.small_shards import SITE, TOKENS, broken_model, module, write_inputs
from tests.test_activations import made, shard_bytes
from tests.test_harvest_ranks import LIMIT, listed, started, wait_for

CHILD = """
import json, os, sys
from pathlib import Path
from tests.small_shards import module
import gossamer
from gossamer.cli import main
module.SHARD_TOKENS = int(sys.argv.pop(1))
folder = Path(sys.argv.pop(1))
main()
sys.stdout.flush()
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
main()  # in a cluster that is there already; all is made
model = gossamer.load_model(folder / "broken")
try:
    gossamer.harvest(model, folder / "ids.npy", sites=["blocks.1.hook_resid_pre"], context=16,
        directory=folder / "out", n_tokens=640, engine="ray", workers=2)
except gossamer.GossamerError as problem:
    print(json.dumps(str(problem)))
assert ray.is_initialized()
"""


def actors_under(ancestor: int) -> list[int]:
    """The processes of Ray's actors that descend from a process."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        process = int(folder.name)
        parents[process] = int(status.partition("\nPPid:\t")[2].split()[0])
        if command.startswith(b"ray::") and b"MapWorker" in command:
            actors.append(process)

    def descends(process: int) -> bool:
        return process == ancestor or (process in parents and descends(parents[process]))

    return [process for process in actors if descends(process)]


@pytest.mark.slow
def test_an_actor_is_killed_and_no_shard_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("ray")
    n_tokens = 150 * TOKENS
    options = write_inputs(tmp_path, n_tokens)
    broken_model(tmp_path)
    monkeypatch.setattr(module, "SHARD_TOKENS", TOKENS)
    how = {"sites": [SITE], "directory": tmp_path / "one", "n_tokens": n_tokens, "context": 16}
    gossamer.harvest(gossamer.load_model(tmp_path / "model"), tmp_path / "ids.npy", **how)
    out = tmp_path / "many"
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(TOKENS), str(tmp_path), "harvest"]
    command += [*options, "--out", str(out), "--engine", "ray", "--workers", "2", "--json"]
    start = time.time_ns()
    with started(command) as child:
        wait_for(lambda: listed(out) >= 6, child)
        actors = actors_under(child.pid)
        os.kill(actors[0], signal.SIGKILL)
        n_made = listed(out)
        wait_for(lambda: listed(out) == 0, child)
        ended = time.time_ns()
        printed, said = child.communicate(timeout=LIMIT)
    assert child.returncode == 0, (printed, said)
    assert len(actors) == 2 and n_made < 140
    assert shard_bytes(out) == shard_bytes(tmp_path / "one")
    assert all(start < file.stat().st_mtime_ns < ended for file in out.iterdir())  # not again
    decoder, found = json.JSONDecoder(), []
    assert printed.startswith("{")  # nothing of Ray's among our words
    # What Ray says later, in a cluster of the caller's own, is not ours to silence.
    printed = "\n".join(line for line in printed.splitlines() if "(raylet)" not in line)
    while printed.strip():
        value, end = decoder.raw_decode(printed.lstrip())
        found.append(value)
        printed = printed.lstrip()[end:]
    assert found[0] == found[1] and found[0]["rows"] == n_tokens and found[0]["remade"] == []
    assert "for shard-00001.safetensors are not finite in the model itself" in found[2]
    assert "Traceback" not in said, said


def test_without_ray_or_with_options_of_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, words in (
        ({"engine": "spark"}, "engine is one of inline, ray, got 'spark'"),
        ({"workers": 2}, "for engine ray; give engine ray too"),
        ({"engine": "ray", "workers": 0}, "at least 1, got 0"),
    ):
        with pytest.raises(GossamerError, match=words):
            made(tmp_path / "new", **options)
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(GossamerError, match=r"pip install 'gossamer\[scale\]', or leave engine"):
        made(tmp_path / "new", engine="ray")
