"""`gossamer convert` there and back; SAELens' own reading is checked by its fixture script."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import gossamer
from gossamer.cli import cli
from gossamer.errors import FormatError
from tests.tiny_saes import tiny_sae

SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre")


def convert(*arguments: object) -> dict:
    done = CliRunner().invoke(
        cli, ["convert", *map(str, arguments), "--json"], catch_exceptions=False
    )
    return json.loads(done.stdout)


def test_one_and_several_go_there_and_back(tmp_path: Path) -> None:
    for site in SITES:
        tiny_sae("topk", site, 12, dtype=torch.float32).save(tmp_path / "runs" / site)
    convert(tmp_path / "runs", "--to", "sae-lens", tmp_path / "lens")
    assert (tmp_path / "lens" / SITES[1] / "cfg.json").is_file()
    found = convert(tmp_path / "lens" / SITES[0], "--to", "gossamer", tmp_path / "one")
    assert found["saes"][0]["site_out"] == SITES[0]
    first = gossamer.load_sae(tmp_path / "runs" / SITES[0])
    again = gossamer.load_sae(tmp_path / "one")
    x = torch.randn(9, 12)
    assert torch.equal(first.encode(x), again.encode(x))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    tiny_sae("topk", SITES[0], 12).save(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match="not empty"):
        convert(tmp_path / "run", "--to", "sae-lens", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]
    with pytest.raises(FormatError, match="No SAEs called"):
        convert(tmp_path / "none", "--to", "sae-lens", tmp_path / "new")
