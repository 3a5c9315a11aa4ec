"""A graph that is computed into a directory: killed, interrupted, continued, finished, reloaded."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossamer.attribution.attribute import attribute
from tests.graph_mixes import at
from tests.tiny_models import tiny_model

PROMPT = [1, 5, 7, 3, 9, 2, 8, 30, 11, 4, 6, 21]
OTHER = PROMPT[:7]
WAYS = ("0.mlp.hook_in>0.hook_mlp_out", "1.hook_attn_out", "2.hook_resid_pre", "2.hook_mlp_out")
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "rounds": {"max_nodes": 400},
    "path": {"effects": "integrated", "steps": 2},
}

SLOW = """
import sys, time
from pathlib import Path
import gossamer.attribution.graphs.plan as plan
import gossamer.graph.rows as rows
from tests.test_attribute_resume import computed

plan.ROWS_ON_CPU = 60  # small batches, each of which takes a while
append = rows.RowWriter.append
def slow(self, some):
    append(self, some)
    print(len(self.done), flush=True)
    time.sleep(0.05)
rows.RowWriter.append = slow
computed(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "list")
"""


def computed(options: str, directory: Path | None, many: bool = False) -> list[Any]:
    """The graphs of one prompt or two."""
    model = tiny_model("gpt2")
    prompts: Any = [PROMPT, OTHER] if many else PROMPT
    found: Any = attribute(
        model, at(model, *WAYS), prompts, directory=directory, **OPTIONS[options]
    )
    return found if many else [found]


def stopped(
    options: str, directory: Path, after: int, sent: signal.Signals, many: bool = False
) -> int:
    """Rows that a process had said it wrote when it got a signal; it must have been at work."""
    command = [sys.executable, "-c", SLOW, options, str(directory), "list" if many else "one"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        said = 0
        for line in process.stdout:
            said = int(line)
            if said >= after:
                break
        process.send_signal(sent)
        process.communicate()
    assert process.returncode not in (0, 1) or sent == signal.SIGINT
    assert process.returncode != 0
    return said


def rows_of(graph: Any) -> dict[int, tuple[bytes, bytes]]:
    found = {}
    for target in np.flatnonzero(graph.rows.counts).tolist():
        row = graph.rows.row(target)
        found[target] = (row.sources.tobytes(), row.values.tobytes())
    return found


def check_same(found: Any, expected: Any) -> None:
    """Edges to rounding: what batches a row is computed in depends on which rows were missing."""
    assert found.nodes.ids == expected.nodes.ids
    mine, theirs = found.edges.arrays(), expected.edges.arrays()
    order, other = (np.lexsort((each.sources, each.targets)) for each in (mine, theirs))
    assert (mine.targets[order] == theirs.targets[other]).all()
    assert (mine.sources[order] == theirs.sources[other]).all()
    np.testing.assert_allclose(mine.weights[order], theirs.weights[other], rtol=1e-9, atol=1e-13)
    for column in ("reads", "constants", "values", "weights"):
        np.testing.assert_allclose(getattr(found.nodes, column), getattr(expected.nodes, column))


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    ("options", "after", "sent"),
    [
        ("all", 30, signal.SIGKILL),
        pytest.param("all", 60, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("rounds", 90, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("path", 45, signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_call_goes_on(tmp_path: Path, options: str, after: int, sent: Any) -> None:
    said = stopped(options, tmp_path / "g", after, sent)
    assert said >= after
    left = files_of(tmp_path / "g")
    lines = left["rows.jsonl"].splitlines()
    there = sum(line.endswith(b"]") for line in lines)
    assert said <= there
    (found,), (expected,) = computed(options, tmp_path / "g"), computed(options, None)
    now = files_of(tmp_path / "g")
    for name in ("rows.jsonl", "columns.i32", "values.bin"):  # what was there was not computed anew
        n = 4 if name == "columns.i32" else 8
        end = len(b"\n".join(lines[:there])) if name == "rows.jsonl" else n * _end(lines[:there])
        assert now[name][:end] == left[name][:end] and len(now[name]) > end
    check_same(found, expected)


def _end(lines: list[bytes]) -> int:
    """Entries of the rows that are listed."""
    return sum(int(line.rstrip(b"]").split(b",")[2]) for line in lines)


@pytest.mark.slow
def test_a_list_of_prompts_goes_on(tmp_path: Path) -> None:
    stopped("all", tmp_path / "g", 5, signal.SIGKILL, many=True)
    assert (tmp_path / "g" / "prompt-0").is_dir() and not (tmp_path / "g" / "prompt-1").exists()
    found, expected = computed("all", tmp_path / "g", many=True), computed("all", None, many=True)
    for one, other in zip(found, expected, strict=True):
        check_same(one, other)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_finished_directory_is_read_again_bit_for_bit(tmp_path: Path, options: str) -> None:
    (first,) = computed(options, tmp_path)
    before, started = files_of(tmp_path), time.perf_counter()
    (second,) = computed(options, tmp_path)
    assert files_of(tmp_path) == before and time.perf_counter() - started < 30
    assert rows_of(first) == rows_of(second)
    (alone,) = computed(options, None)
    assert rows_of(alone) == rows_of(second)  # whole batches: the same in a temporary place
