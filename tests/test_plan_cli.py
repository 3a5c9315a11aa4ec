"""`gossamer plan`: the function's own numbers, every option, mistakes in one line."""

import json
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from gossamer.cli import cli, main
from gossamer.cli.plan import KINDS, RATES, plan_command
from gossamer.plan import HARDWARE, Work, plan
from gossamer.training.config import TrainConfig
from gossamer.training.topk import TopKConfig

SIZES = ("--d-model", "512", "--d-sae", "1e5", "--batch", "8192", "--tokens", "1e8")


def planned(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["plan", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_json_is_the_functions() -> None:
    config = TrainConfig(sae=TopKConfig(k=32), d_sae=100_000, n_tokens=int(1e8), batch_tokens=8192)
    work = Work(config=config, d_in=512, active=32, model_parameters=1e9, layer_share=0.5)
    found = plan(work, gpus=8, dp=2, tp=4)
    options = ("--k", "32", "--model-params", "1e9", "--layer-share", "0.5", "--dp", "2")
    assert planned(*SIZES, *options, "--gpus", "8") == json.loads(found.to_json())


def test_people_get_a_table() -> None:
    done = CliRunner().invoke(cli, ["plan", "--d-sae", "1e6", "--gpus", "64", "--dp", "8"])
    for words in ("encode", "tp traffic", "a step", "GPU-hours", "over dp: 5 collectives"):
        assert words in done.stdout
    assert "is 1.1 times as fast and fits" in done.stdout.replace("\n", " ")
    done = CliRunner().invoke(cli, ["plan", "--d-sae", "1e6"])
    assert "It does not fit" in done.stdout and "gpus=" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_planned(kind: str) -> None:
    found = planned(*SIZES, "--sae", kind, "--gpus", "4")
    assert found["work"]["sae"] == kind and found["hours"] > 0
    names = {
        each["name"]
        for each in planned(*SIZES, "--sae", kind, "--gpus", "4", "--tp", "4")["collectives"]
    }
    assert ("histogram" in names) == (kind in ("batchtopk", "matryoshka"))
    assert ("penalty" in names) == (kind in KINDS[4:])


def test_every_option_does_something() -> None:
    base = planned(*SIZES, "--gpus", "8", "--dp", "2", "--model-params", "1e9")
    changed = {
        **{"tokens": "2e8", "d_model": "256", "d_out": "512", "d_sae": "2e5", "sae": "gated"},
        **{"k": "32", "batch": "4096", "dead": "0.1", "checkpoint_seconds": "600"},
        **{"gpus": "4", "tp": "8", "dp": "4", "hardware": "cpu", "model_params": "2e9"},
        **{"layer_share": "0.5", "store": "none", "numbers": "bfloat16"},
        **{name: str(HARDWARE["h100"].__getattribute__(name) * 2) for name in RATES},
    }
    named = {option.opts[0][2:].replace("-", "_") for option in plan_command.params}
    assert named == {*changed, "skip", "json"}
    fixed = {"gpus": "8", "dp": "2", "model_params": "1e9"}
    for name, value in changed.items():
        options = {**fixed, name: value}
        if name == "tp":
            del options["dp"]
        given = [
            part for each in options.items() for part in (f"--{each[0].replace('_', '-')}", each[1])
        ]
        assert planned(*SIZES, *given) != base, name
    wide = (*SIZES, "--d-out", "512")
    assert planned(*wide, "--skip")["memory"] != planned(*wide)["memory"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--d-sae", "1e6", "--gpus", "3", "--tp", "3"), "share latents in equal parts"),
        (("--d-sae", "1e6", "--gpus", "6", "--dp", "4"), "dp must divide the 6 processes"),
        (("--d-sae", "1e6", "--skip"), "give --d-out as well"),
        (("--d-sae", "1e6", "--hardware", "abacus"), "rates of h100, cpu"),
        (("--d-sae", "1e6", "--link", "0"), "link of hardware must be a finite number above 0"),
        (("--d-sae", "1.5"), "no whole number"),
        (("--d-sae", "32"), "k in 1..d_sae, got k=64"),
        (("--d-sae", "1e6", "--dead", "2"), "dead must be a share"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gossamer", "plan", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.out == ""
    assert words in said.err and said.err.count("\n") == 1
