"""The benchmark of Jacobians runs, agrees with itself and says what it measured."""

import json
from typing import Any

import pytest

from gossamer.errors import GossamerError

SMALL = {"d-model": 16, "d-mlp": 24, "d-sae": 64, "k": 4, "tokens": 3, "runs": 2}
ARGUMENTS = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]


def run(*arguments: str) -> None:
    from gossamer.cli import cli

    cli(["bench", "jacobian", *ARGUMENTS, "--no-forward", *arguments], standalone_mode=False)


def test_every_way_is_timed(capsys: Any) -> None:
    run("--json")
    shown = json.loads(capsys.readouterr().out)
    assert [way["way"] for way in shown["ways"]] == ["rows (no tables)", "tables", "einsum", "loop"]
    for way in shown["ways"]:
        assert 0 < way["min_ms"] <= way["median_ms"] <= way["max_ms"]
    tables = 2 * 64 * 24 * 4
    assert shown["ways"][1]["bytes"] >= tables and "64 of 48" not in shown["ways"][3]["note"]
    assert "16 of 48 entries" in shown["ways"][3]["note"]
    run()
    assert "× einsum" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--device", "meta"], "There is no device"),
        (["--device", "nowhere"], "There is no device"),
        (["--k", "0"], "k must be at least 1"),
        (["--k", "100"], "k is at most d_sae=64"),
        (["--runs", "0"], "runs must be at least 1"),
    ],
)
def test_mistakes_are_sentences(wrong: list[str], says: str) -> None:
    with pytest.raises(GossamerError, match=says):
        run(*wrong)
