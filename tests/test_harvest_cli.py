"""`gossamer harvest` and `gossamer train`, one after the other, as a user types them."""

import json
from pathlib import Path

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
