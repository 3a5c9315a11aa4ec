"""`gossamer analyze`: the tables are the functions' own, and every mistake is one line."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

import gossamer
from gossamer.cli import cli
from gossamer.errors import GossamerError
from tests.test_examples import EXAMPLES

PROMPT = "def add(self, other):\\n    return self"
TEXT = PROMPT.replace("\\n", "\n")


def said(*arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(cli, ["analyze", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> Any:
    """The same with --json."""
    return json.loads(said(*arguments, "--json"))


@pytest.fixture(scope="module")
def model() -> gossamer.Model:
    return gossamer.load_model("pico-python")


def without_cost(found: dict[str, Any]) -> dict[str, Any]:
    """All but seconds and bytes, which differ from run to run."""
    clean = found["clean"] and without_cost(found["clean"])
    return {k: v for k, v in found.items() if k not in ("seconds", "peak_bytes")} | {"clean": clean}


def test_json_is_the_functions_value(model: gossamer.Model) -> None:
    got = as_json(PROMPT, "--target", ".", "--distractor", "\\n", "--top", "5", "--kind", "latent")
    saes = gossamer.load_saes("pico-python")
    target = gossamer.LogitDifference(["."], ["\n"])
    found = gossamer.analyze(model, TEXT, target, saes, top=5, kinds="latent")
    assert without_cost(got) == without_cost(json.loads(json.dumps(found.to_dict())))
    assert {row["kind"] for row in got["rows"]} == {"latent"}


def test_an_edit_gives_both_sides(model: gossamer.Model) -> None:
    node = "blocks.1.attn.hook_z/2@10"
    got = as_json(PROMPT, "--target", ".", "--saes", "none", "--ablate", node)
    found = gossamer.analyze(model, TEXT, ".", edits=gossamer.Ablate(node))
    assert got["left"]["change"] == pytest.approx(found.change, rel=1e-5)
    assert got["left"]["estimate"] == pytest.approx(found.estimate, rel=1e-4)
    text = said(PROMPT, "--target", ".", "--saes", "none", "--ablate", node)
    assert "direct left" in text and "estimate" in text


def test_values_of_other_runs_are_put_in(model: gossamer.Model) -> None:
    node = "blocks.1.attn.hook_z/2@10"
    got = as_json(PROMPT, "--target", ".", "--saes", "none", "--resample", f"{node}={PROMPT} + 1")
    other = gossamer.run(model, TEXT + " + 1", record="blocks.1.attn.hook_z")
    found = gossamer.analyze(model, TEXT, ".", edits=gossamer.Patch(node, other))
    assert got["left"]["value"] == pytest.approx(found.value, rel=1e-5)
    saes = gossamer.load_saes("pico-python")
    latent = "blocks.2.hook_resid_pre/44@10"
    means = gossamer.means(model, "stdlib", [], saes, 2048)
    found = gossamer.analyze(model, TEXT, ".", saes, gossamer.Patch(latent, means))
    got = as_json(PROMPT, "--target", ".", "--mean", latent, "--tokens", "2048")
    assert got["left"]["value"] == pytest.approx(found.value, rel=1e-5)


def test_a_node_without_a_position_is_edited_at_every_token(model: gossamer.Model) -> None:
    got = as_json(PROMPT, "--target", ".", "--saes", "none", "--ablate", "blocks.1.attn.hook_z/2")
    edit = gossamer.Ablate("blocks.1.attn.hook_z", units=2)
    assert got["left"]["value"] == pytest.approx(
        gossamer.analyze(model, TEXT, ".", edits=edit).value, rel=1e-5
    )


def test_upstream_compare_and_table(model: gossamer.Model) -> None:
    score = "blocks.2.attn.hook_z/1@9<-4"
    got = as_json(PROMPT, "--saes", "none", "--upstream", score, "--through", "q")
    found = gossamer.upstream(model, TEXT, score, "q")
    assert got["value"] == pytest.approx(found.value, rel=1e-5)
    both = as_json("import os\\nimport sys", "--compare", "import os\\nimport re", "--saes", "none")
    assert both["left"]["tokens"][-1] != both["right"]["tokens"][-1] and both["rows"]
    text = said(PROMPT, "--target", ".", "--pairs", "--hold", "norms,attention")
    assert "add up to" in text and "next:" in text and "MB at the peak" in text


@pytest.mark.parametrize(
    "direction", ["minus-mean", "probability", "log-probability", "kl", "logit"]
)
def test_every_direction_has_a_name(direction: str) -> None:
    tokens = () if direction == "kl" else ("--target", ".")
    edit = ("--set", "blocks.1.mlp.hook_post/3@4=2.5", "--saes", "none")
    got = as_json(PROMPT, "--direction", direction, *tokens, *edit)
    assert got["left"]["value"] != got["right"]["value"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "foo bar baz"), "is not one token but 4"),
        (("--ablate", "blocks.9.hook_resid_pre/3@2"), "has blocks 0..3"),
        (("--ablate", "nonsense"), "No site"),
        (("--ablate", "blocks.1.attn.hook_z/x"), "--ablate takes SITE/UNIT"),
        (("--ablate", "blocks.1.nonsense/3@2"), "No site"),
        (("--ablate", "blocks.1.attn.hook_z/2@99"), "Position 99"),
        (("--node", "blocks.1.mlp.hook_post/3@99"), "Position 99"),
        (
            ("--node", "blocks.0.mlp.hook_post/3@2", "--ablate", "blocks.3.mlp.hook_post/3@2"),
            "comes after what is explained",
        ),
        (("--upstream", "blocks.1.hook_resid_pre/3@2"), "is not active at position 2"),
        (("--upstream", "blocks.1.attn.hook_z/3@2<-1"), "is a head"),
        (("--upstream", "blocks.1.attn.hook_z/3@2<-5", "--through", "q"), "looks ahead"),
        (("--set", "blocks.1.mlp.hook_post/3@4=x"), "--set takes NODE=VALUE"),
        (("--resample", "blocks.1.mlp.hook_post/3@4"), "--resample takes NODE=PROMPT"),
        (("--distractor", "."), "--target"),
        (("--direction", "probability"), "--target"),
        (("--hold", "weights"), "hold takes any of"),
        (("--cut", "blocks.1.hook_attn_out"), "cannot be cut"),
        (("--kind", "neurons"), "kinds are of"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GossamerError, match="(?s)") as caught:
        cli(["analyze", PROMPT, *arguments], standalone_mode=False)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    capsys.readouterr()


def test_a_prompt_that_is_too_long_is_one_line() -> None:
    with pytest.raises(GossamerError, match="context holds 512"):
        cli(["analyze", "x = 1\n" * 400], standalone_mode=False)


def test_the_debugger_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "debugger.py"
    namespace: dict[str, Any] = {"__name__": "debugger"}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    namespace["main"]()
    printed = capsys.readouterr().out
    assert printed.count("add up to") == 5 and "speaks for" in printed
