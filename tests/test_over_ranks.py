"""Evaluations, dashboards and tables of edges that several processes share are those of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.over_ranks_worker import SITES, WORDS, results
from tests.test_attribution_over_parts import content, made
from tests.tiny_files import FIRST, LAST, save_model, save_saes

TOLERANCE = 1e-12
"""Of sums in float64 that are taken in another order."""


def launched(n: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a module in n processes."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(n), "-m", *words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Files for the commands, and all results in one process."""
    place = tmp_path_factory.mktemp("ranks")
    save_model(place / "model")
    save_saes(place / "saes")
    (place / "words.txt").write_text(WORDS)
    assert SITES == (FIRST, LAST)
    return place, results(place)


def check_same(found: Any, wanted: Any, where: str, tolerance: float | None = None) -> None:
    """Equal, or up to a relative tolerance."""
    if isinstance(wanted, Tensor):
        allowed = tolerance or 0.0
        torch.testing.assert_close(
            found, wanted, rtol=allowed, atol=allowed, equal_nan=True, msg=where
        )
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted), where
        for key, each in wanted.items():
            check_same(
                found[key], each, f"{where} {key}", TOLERANCE if key == "close" else tolerance
            )
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), where
        for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
            check_same(one, other, f"{where} {place}", tolerance)
    elif tolerance is not None and isinstance(wanted, float):
        assert found == pytest.approx(wanted, tolerance, tolerance), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_process_gets_what_one_alone_does(alone: tuple[Path, dict[str, Any]], n: int) -> None:
    """Shares are unequal, and some processes have none; values are tied; pairs are dropped."""
    place, wanted = alone
    done = launched(n, "tests.over_ranks_worker", str(place))
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(n):
        found = torch.load(place / f"{rank} of {n}.pt", weights_only=False)
        check_mistakes(found.pop("mistakes"))
        check_printed(found.pop("commands"), wanted["commands"], rank)
        check_same(found, {k: v for k, v in wanted.items() if k != "commands"}, f"rank {rank}")
    files = [sorted(p.name for p in (place / f"of {m}").iterdir()) for m in (1, n)]
    assert files[0] == files[1] == ["board", "card.json", "table"]
    cards = [json.loads((place / f"of {m}" / "card.json").read_text()) for m in (1, n)]
    check_same(cards[1], cards[0], "card.json", TOLERANCE)
    assert content(made(place / f"begun by {n}")) == wanted["table"]


def check_printed(found: list[str], wanted: list[str], rank: int) -> None:
    """The first process prints what one alone does, the others nothing."""
    if rank:
        assert found == [""] * 3
        return
    check_same(json.loads(found[0]), json.loads(wanted[0]), "evaluate", TOLERANCE)
    assert found[1:] == wanted[1:]  # what is counted or added up exactly


def check_mistakes(found: list[str]) -> None:
    """All processes say the same, also of what only one of them got wrong."""
    assert len(found) == 3
    assert found[0].startswith("large: The corpus") and "Ask for fewer" in found[0]
    assert found[1] == "one text: Token id 99 is not among the 37 tokens of gpt2."
    assert found[2].startswith("other: The processes of this dashboard do not have the same model")


def test_what_is_refused_is_said_once_and_is_status_2(tmp_path: Path) -> None:
    done = launched(2, "gossamer", "evaluate", "--corpus", str(tmp_path / "none"))
    assert done.returncode != 0
    assert done.stderr.startswith("Error: There is no corpus")
    assert done.stderr.count("There is no corpus") == 1 and "exitcode  : 2" in done.stderr
    assert done.stdout == ""
