"""`gossamer harvest` and `gossamer train`, one after the other, as a user types them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import gossamer
from gossamer.cli import cli

SITE = "blocks.2.hook_resid_pre"


def test_harvest_then_train_then_edges(tmp_path: Path) -> None:
    acts, run = str(tmp_path / "acts"), str(tmp_path / "run")
    runner = CliRunner()
    command = ["harvest", "--site", SITE, "--tokens", "2e4", "--out", acts]
    first = runner.invoke(cli, [*command, "--json"], catch_exceptions=False)
    assert json.loads(first.stdout)["rows"] >= 20_000
    assert "rows of blocks.2" in runner.invoke(cli, command, catch_exceptions=False).stdout
    sizes = ["--d-sae", "256", "--k", "8", "--tokens", "2e4", "--batch", "1024"]
    trained = runner.invoke(
        cli, ["train", "--from", acts, *sizes, "--out", run, "--json"], catch_exceptions=False
    )
    (row,) = json.loads(trained.stdout)["saes"]
    sae = gossamer.load_sae(run)
    assert sae.site_in == SITE and row["fvu"] < 1
    edges = gossamer.edges(
        gossamer.load_model("pico-python"),
        sae,
        "def f(x):",
        source=gossamer.Latents(SITE),
        target=gossamer.Logits(top=1),
    )
    assert isinstance(edges, gossamer.Edges) and len(edges.sources) > 0


def test_rows_remade_shards_and_columns_are_said(tmp_path: Path) -> None:
    acts = tmp_path / "acts"
    command = ["harvest", "--site", SITE, "--out", str(acts), "--tokens", "3000"]
    made = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert 3000 <= made["rows"] < 3256 and made["remade"] == []
    shard = acts / "shard-00000.safetensors"
    shard.unlink()
    done = CliRunner().invoke(cli, command)
    assert f"{made['rows']:,} rows" in done.stdout
    assert "Made again, missing or damaged: shard-00000.safetensors" in done.stdout
    other = CliRunner().invoke(cli, [*command, "--no-prepend-bos"])
    assert "prepend_bos: True, not False" in str(other.exception)
    for option, value, words in (
        *(("--tokens", text, "whole number from 1 on") for text in ("nan", "inf", "-1", "0", "x")),
        ("--context", "0", "not in the range"),
    ):
        wrong = CliRunner().invoke(cli, [*command, option, value])
        assert wrong.exit_code == 2 and words in wrong.output


def test_a_saved_dataset_is_a_corpus(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"code": "def f(x):\n    return x\n" * 9}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    command = ["harvest", "--site", SITE, "--corpus", str(tmp_path / "data"), "--tokens", "50"]
    command += ["--out", str(tmp_path / "acts"), "--json"]
    assert 'no column "text"' in str(CliRunner().invoke(cli, command).exception)
    done = CliRunner().invoke(cli, [*command, "--column", "code", "--no-prepend-bos"])
    about = json.loads(done.stdout)["about"]
    assert about["corpus"] == "data" and about["prepend_bos"] is False
