"""`gossamer train`: what it trains, what it writes, what it refuses."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gossamer.cli.train import train_command
from gossamer.errors import GossamerError
from gossamer.saes import JumpReLU, TopK, load_native
from tests.tiny_training import OTHER, SITE, Rows, dictionary_rows


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> click.Command:
    """The command, over rows in memory whatever --from says."""
    x = dictionary_rows(500, 40, 16, 3)[0]
    monkeypatch.setattr("gossamer.activations.as_source", lambda what: Rows({SITE: x, OTHER: -x}))
    return train_command


SMALL = ["--d-sae", "40", "--tokens", "2e3", "--batch", "64", "--from", "acts"]


def ran(command: click.Command, out: Path, *arguments: str) -> Result:
    arguments = (*SMALL, *arguments, "--out", str(out))
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_it_trains_writes_and_continues(command: click.Command, tmp_path: Path) -> None:
    out, page = tmp_path / "run", tmp_path / "curves.html"
    options = ["--k", "3", "--site", SITE, "--html", str(page), "--log-axis", "--json"]
    first = ran(command, out, *options)
    (row,) = json.loads(first.output)["saes"]
    assert row["directory"] == str(out) and row["tokens"] == 2048 and row["l0"] <= 3
    sae = load_native(out)
    assert isinstance(sae.selection, TopK) and sae.selection.k == 3 and sae.site_in == SITE
    assert '"log": true' in page.read_text()
    assert ran(command, out, *options).output == first.output  # read, not trained again
    with pytest.raises(GossamerError, match="other settings"):
        ran(command, out, *options, "--seed", "1")


def test_a_sweep_and_several_sites_are_one_run(command: click.Command, tmp_path: Path) -> None:
    sites = ["--site", SITE, "--site", OTHER]
    result = ran(command, tmp_path, "--sae", "batchtopk", "--k", "2", "--k", "4", *sites)
    assert result.exit_code == 0 and "FVU" in result.output
    folders = sorted(path.parent.name for path in tmp_path.glob("*/sae.json"))
    assert folders == [f"00-{SITE}", f"01-{SITE}", f"02-{OTHER}", f"03-{OTHER}"]
    assert isinstance(load_native(tmp_path / folders[0]).selection, JumpReLU)


@pytest.mark.parametrize(
    "options",
    [
        ["--sae", "relu", "--sparsity", "2", "--norm", "unit"],
        ["--sae", "gated", "--remedy", "resample"],
        ["--sae", "jumprelu", "--penalty", "l0"],
        ["--k", "2", "--bfloat16"],
        ["--k", "2", "--site-out", OTHER, "--skip"],
    ],
)
def test_each_architecture(command: click.Command, options: list[str], tmp_path: Path) -> None:
    result = ran(command, tmp_path, "--site", SITE, *options)
    assert result.exit_code == 0
    assert load_native(tmp_path).is_transcoder == ("--skip" in options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --k"),
        (["--sae", "relu", "--k", "3"], "--k is for batchtopk, topk, not for relu"),
        (["--k", "3", "--sparsity", "1"], "--sparsity is for"),
        (["--k", "3", "--model", "pico-python"], "Give either --from"),
        (["--k", "3", "--site", "blocks.0.hook_resid_prr"], "Near names"),
    ],
)
def test_mistakes_end_in_one_sentence(
    command: click.Command, options: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(GossamerError, match=message):
        ran(command, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
