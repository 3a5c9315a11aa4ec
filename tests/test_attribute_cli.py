"""`gossamer attribute`: every option does what it says, files are whole, mistakes are one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import gossamer
from gossamer.cli import cli, main
from gossamer.graph.graph import Graph
from tests.tiny_files import FIRST, LAST, save_model, save_saes
from tests.tiny_saes import tiny_sae


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny model and two sets of dictionaries: residual SAEs, a transcoder."""
    import torch

    directory = tmp_path_factory.mktemp("cli")
    way = {"site_out": "blocks.1.hook_mlp_out", "dtype": torch.float32}
    sae = tiny_sae("relu", "blocks.1.mlp.hook_in", 16, **way)
    sae.save(directory / "transcoders" / sae.site_out)
    return [
        *("--model", str(save_model(directory / "model"))),
        *("--saes", str(save_saes(directory / "saes"))),
        *("--saes", str(directory / "transcoders")),
    ]


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["attribute", *arguments])
    assert result.exception is None, result.exception
    return result


def printed(*arguments: str) -> dict[str, Any]:
    return json.loads(invoke(*arguments, "--json").stdout)


def test_files_are_whole_and_the_numbers_are_the_functions(
    files: list[str], tmp_path: Path
) -> None:
    paths = {name: tmp_path / f"g.{name}" for name in ("out", "html", "report", "neuronpedia")}
    written = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    result = invoke("a cat", *files, *written, "--verify", "5", "--top", "4", "--json")
    found = json.loads(result.stdout)
    assert "rows of edges" in result.stderr and "row/s" not in result.stderr  # the plan, but no bar
    assert all(f"Wrote {path}" in result.stderr for path in paths.values())
    model = gossamer.load_model(files[1])
    saes = [sae for name in files[3::2] for sae in gossamer.load_saes(name).values()]
    graph: Any = gossamer.attribute(model, saes, "a cat")
    loaded = Graph.load(paths["out"])
    assert loaded.nodes.ids == graph.nodes.ids and len(loaded.edges) == len(graph.edges)
    assert (loaded.edges.arrays().weights == graph.edges.arrays().weights).all()
    assert set(loaded.about["saes"]) == {FIRST, LAST, "blocks.1.hook_mlp_out"}
    assert found["n_nodes"] == len(graph.nodes) and found["n_edges"] == len(graph.edges)
    assert found["replacement_score"] == pytest.approx(graph.replacement_score(), rel=1e-4)
    assert found["tokens"] == list(graph.tokens) and len(found["edges"]) == 4
    assert all("class" in edge and "measured" in edge for edge in found["edges"])
    pruned = json.loads(paths["neuronpedia"].read_text())
    assert len(pruned["links"]) == found["pruned"]["n_edges"]
    for name in ("html", "report"):
        text = paths[name].read_text()
        assert text.lstrip().lower().startswith("<!doctype html") and "</html>" in text


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        (("--target", " cat", "--target", "b"), {"logits/1@2", "logits/7@2"}),
        (("--difference", " cat", "b"), {"logits/7-1@2"}),
        (("--target-node", "logits/3@1"), {"logits/3@1"}),
        (("--target", "b", "--position", "1"), {"logits/1@1"}),
    ],
)
def test_targets(
    files: list[str], tmp_path: Path, options: tuple[str, ...], ends: set[str]
) -> None:
    invoke("a cat", *files, *options, "--out", str(tmp_path / "g"))
    nodes = Graph.load(tmp_path / "g").nodes
    assert {nodes.ids[int(i)] for i in nodes.targets} == ends


def test_ways_of_computing(files: list[str], tmp_path: Path) -> None:
    about = printed("a cat", *files, "--effects", "gradient")["about"]
    assert (about["effects"], about["hold"]) == ("gradient", [])
    assert printed("a cat", *files, "--hold", "norms,mlps")["about"]["hold"] == ["norms", "mlps"]
    assert printed("a cat", *files, "--hold", "none")["about"]["hold"] == []
    whole = printed("a cat", *files, "--directory", str(tmp_path / "d"))
    assert (tmp_path / "d" / "rows.jsonl").exists()
    assert printed("a cat", *files, "--directory", str(tmp_path / "d")) == whole
    few = printed("a cat", *files, "--max-nodes", str(whole["n_nodes"] - 3))
    assert few["n_nodes"] <= whole["n_nodes"] - 3 and few["about"]["max_nodes"]
    all_of_it = printed("a cat", *files, "--nodes", "1", "--edges", "1")["pruned"]
    assert all_of_it["n_edges"] > whole["pruned"]["n_edges"]


def test_two_prompts(files: list[str], tmp_path: Path) -> None:
    page = tmp_path / "two.html"
    end = printed("a cat", *files, "--against", "b", "--html", str(page))
    assert len(end["tokens"]) == 2 and "LogitDifference" in end["target"]
    start = printed("a cat", *files, "--against", "b", "--align", "start")
    assert start["counts"] != end["counts"] and "</html>" in page.read_text()
    assert "edges that differ most" in invoke("a cat", *files, "--against", "b").stdout


def test_help_has_examples() -> None:
    text = invoke("--help").stdout
    assert "Examples:" in text and text.count("gossamer attribute") >= 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("", *()), "prompt is empty"),
        (("a", "--against", ""), "prompt is empty"),
        (("a", "--target", "cat b"), "is not one token but 3"),
        (("a", "--target", ""), "is not one token"),
        (("a", "--target-node", ""), "is not a node"),
        (("a", "--target", "b", "--difference", "a", "b"), "--target and --difference each"),
        (("a", "--difference", "b", "b"), "Both sides"),
        (("a", "--position", "9"), "Position 9"),
        (("a", "--against", "b", "--position", "9"), "Position 9"),
        (("a", "--hold", "norm"), "Cannot hold 'norm'"),
        (("a", "--effects", "gradient", "--hold", "norms"), "holds nothing"),
        (("a", "--effects", "x"), "--effects"),
        (("a", "--max-nodes", "3"), "max_nodes=3 is less"),
        (("a", "--memory", "1000"), "are allowed"),
        (("a", "--nodes", "0"), "--nodes is a share"),
        (("a", "--edges", "nan"), "--edges is a share"),
        (("a", "--report", "r.html"), "give --verify N"),
        (("a", "--against", "b", "--verify", "3"), "--verify is of one graph"),
        (("a", "--against", "b", "--out", "g"), "--out is of one graph"),
        (("a", "--against", "b", "--target-node", "logits/3@1"), "leave --target-node out"),
        (("a", "--saes", "/none/such"), "/none/such"),
        (("a", "--out", "/none/such"), "cannot be written"),
        (("a", "--directory", "/proc/x"), "cannot be made"),
    ],
    ids=str,
)
def test_mistakes(files: list[str], capsys, monkeypatch, arguments: Any, says: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gossamer", "attribute", *arguments, *files])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.out == ""
    lines = [line for line in said.err.splitlines() if line and "Loading weights" not in line]
    plan = [line for line in lines if "rows of edges" in line]  # only a directory is tried after it
    assert len(lines) - len(plan) == 1 and len(plan) == ("--directory" in arguments)
    assert lines[-1].startswith("Error: ") and says in lines[-1]
