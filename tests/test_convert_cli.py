"""`gossamer convert` there and back; SAELens' own reading is checked by its fixture script."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import gossamer
from gossamer.cli import cli
from gossamer.errors import DiskError, FormatError
from tests.small_disk import fill, small_disk
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


def test_all_are_written_or_none(tmp_path: Path) -> None:
    """The second has no place in SAELens."""
    tiny_sae("topk", SITES[0], 12).save(tmp_path / "runs" / "a")
    out = "blocks.0.hook_mlp_out"
    transcoder = tiny_sae("topk", "blocks.0.mlp.hook_in", 12, site_out=out)
    transcoder.save(tmp_path / "runs" / "b")
    with pytest.raises(FormatError, match="SAELens has no topk transcoder"):
        convert(tmp_path / "runs", "--to", "sae-lens", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    convert(tmp_path / "runs", "--to", "gossamer", tmp_path / "out")
    (tmp_path / "runs" / "c").mkdir()
    with pytest.raises(FormatError, match="2 SAEs and what is none: c"):
        convert(tmp_path / "runs", "--to", "gossamer", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_sweep_is_converted_by_folder(tmp_path: Path) -> None:
    for folder in ("00-a", "01-b"):
        tiny_sae("topk", SITES[0], 12).save(tmp_path / "sweep" / folder)
    (tmp_path / "sweep" / "checkpoints").mkdir()
    found = convert(tmp_path / "sweep", "--to", "sae-lens", tmp_path / "out")
    names = [str(tmp_path / "out" / folder) for folder in ("00-a", "01-b")]
    assert [each["directory"] for each in found["saes"]] == names
    assert gossamer.load_sae(names[1]).site_in == SITES[0]


def test_a_set_goes_into_one_directory_and_comes_out_of_it(tmp_path: Path) -> None:
    for layer in (1, 0):
        site = f"blocks.{layer}.hook_mlp_out"
        sae = tiny_sae("relu", f"blocks.{layer}.mlp.hook_in", 12, site_out=site, seed=layer)
        sae.save(tmp_path / "runs" / f"{layer}")
    found = convert(tmp_path / "runs", "--to", "circuit-tracer", tmp_path / "set")
    assert {each["directory"] for each in found["saes"]} == {str(tmp_path / "set")}
    names = {"config.yaml", "layer_0.safetensors", "layer_1.safetensors"}
    assert {file.name for file in (tmp_path / "set").iterdir()} == names
    back = convert(tmp_path / "set", "--to", "gossamer", tmp_path / "back")
    folders = [Path(each["directory"]).name for each in back["saes"]]
    assert folders == ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]
    again = gossamer.load_saes(tmp_path / "back")
    for layer in (0, 1):
        first = gossamer.load_sae(tmp_path / "runs" / f"{layer}")
        x = torch.randn(5, 12, dtype=torch.float64)
        assert torch.equal(first.encode(x), again[first.site_out].encode(x))


def test_a_pair_goes_into_one_directory(tmp_path: Path) -> None:
    for site in ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"):
        tiny_sae("topk", site, 12).save(tmp_path / "runs" / site)
    convert(tmp_path / "runs", "--to", "jacobian-pair", tmp_path / "pair")
    pair = gossamer.load_saes(tmp_path / "pair")
    assert set(pair) == {"blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"}
    with pytest.raises(FormatError, match="is two SAEs, .* got 1"):
        one = tmp_path / "runs" / "blocks.0.mlp.hook_in"
        convert(one, "--to", "jacobian-pair", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_one_file_is_converted(tmp_path: Path) -> None:
    sae = tiny_sae("jumprelu", "blocks.0.hook_resid_pre", 12)
    sae.save(tmp_path / "run")
    convert(tmp_path / "run", "--to", "gemma-scope", tmp_path / "scope")
    convert(tmp_path / "scope" / "params.npz", "--to", "gemma-scope-2", tmp_path / "two")
    again = gossamer.load_sae(tmp_path / "two")
    assert again.site_in == sae.site_in and torch.equal(again.W_enc, sae.W_enc)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    for site in SITES:
        tiny_sae("topk", site, 64).save(tmp_path / "runs" / site)
    with small_disk(tmp_path / "disk", 100) as disk:
        fill(disk, 28_000)  # room for the first
        for wanted in ("sae-lens", "gossamer"):
            with pytest.raises(DiskError, match="disk is full.*Nothing was converted"):
                convert(tmp_path / "runs", "--to", wanted, disk / "out")
        assert [file.name for file in disk.iterdir()] == ["taken"]
