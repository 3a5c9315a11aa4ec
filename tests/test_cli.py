"""The command line: the functions' own numbers, and mistakes in one line with exit status 2.

Most commands run in this process on tiny files; a few in a process of their own, with nothing that
the tests add to Python, as a user has it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import gossamer
from gossamer.cli import cli, main
from tests.tiny_files import FIRST, LAST, save_model, save_saes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny model and its SAEs."""
    directory = tmp_path_factory.mktemp("cli")
    return [
        *("--model", str(save_model(directory / "model"))),
        *("--saes", str(save_saes(directory / "saes"))),
    ]


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None, result.exception
    return result


def mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """What `gossamer <arguments>` says on standard error, with exit status 2 and one line."""
    monkeypatch.setattr(sys, "argv", ["gossamer", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.out == ""
    # The progress bar is decided when transformers is imported; in a process of its own, as the
    # last tests have it, there is none.
    lines = [line for line in said.err.splitlines() if line and "Loading weights" not in line]
    assert len(lines) == 1, said.err
    return lines[0]


def test_json_has_the_functions_own_numbers(files: list[str]) -> None:
    arguments = [
        "a cat",
        *files,
        "--from",
        FIRST,
        "--to",
        LAST,
        "--top",
        "4",
        "--measure",
        "--json",
    ]
    printed = json.loads(invoke("edges", *arguments, "--hold", "norms").stdout)
    model, saes = gossamer.load_model(files[1]), gossamer.load_saes(files[3])
    edges = gossamer.edges(
        model,
        saes,
        "a cat",
        source=gossamer.Latents(FIRST),
        target=gossamer.Latents(LAST),
        hold=("norms",),
    )
    assert isinstance(edges, gossamer.Edges)
    found = gossamer.measure(model, saes, edges, edges.strongest(4))
    assert printed["tokens"] == list(edges.tokens) == ["<|endoftext|>", "a", " cat"]
    assert len(printed["edges"]) == 4
    for row, expected in zip(printed["edges"], found, strict=True):
        assert row["source"] == expected.edge.source and row["target"] == expected.edge.target
        assert row["attribution"] == pytest.approx(expected.edge.attribution, rel=1e-5)
        assert row["gradient"] == pytest.approx(expected.edge.gradient, rel=1e-5)
        assert row["measured"] == pytest.approx(expected.measured, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "targets"),
    [
        (("--to", "logits", "--tokens", " cat", "--tokens", "b"), {"logits/1@2", "logits/7@2"}),
        (("--to", "logits", "--tokens", "b", "--position", "1"), {"logits/1@1"}),
        (("--to", "logits", "--difference", " cat", "b"), {"logits/7-1@2"}),
    ],
)
def test_targets_of_the_command_line(
    files: list[str], arguments: tuple[str, ...], targets: set[str]
) -> None:
    printed = json.loads(
        invoke(
            "edges", "a cat", *files, "--from", "tokens", *arguments, "--top", "99", "--json"
        ).stdout
    )
    assert {row["target"] for row in printed["edges"]} == targets
    assert {row["source"] for row in printed["edges"]} <= {
        "hook_embed/9@0",
        "hook_embed/0@1",
        "hook_embed/7@2",
    }


def test_files_hold_what_the_function_gives(files: list[str], tmp_path: Path) -> None:
    paths = {name: tmp_path / f"edges.{name}" for name in ("html", "csv", "save")}
    written = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    ends = ("--from", FIRST, "--to", LAST, "--error", "dropped")
    result = invoke("edges", "a cat", *files, *ends, *written, "--json")
    assert [str(path) in result.stderr for path in paths.values()] == [True] * 3
    edges = gossamer.Edges.load(paths["save"])
    top = json.loads(result.stdout)["edges"][0]
    assert edges.error == "dropped" and top["source"] == edges.top(1)[0].source
    assert top["attribution"] == edges.top(1)[0].attribution
    assert len(paths["csv"].read_text().splitlines()) == 1 + len(edges.to_dataframe())
    assert f"{FIRST} → {LAST}" in paths["html"].read_text()


def test_people_get_a_table(files: list[str]) -> None:
    printed = invoke(
        "edges", "a cat", *files, "--from", FIRST, "--to", "logits", "--top", "3", "--measure"
    ).stdout
    assert "3 strongest of 10 ×" in printed and "predicted" in printed and "ablated" in printed
    assert printed.count("0.resid_pre/") == 3


def test_a_newline_is_written_as_two_characters(files: list[str]) -> None:
    plain = invoke(
        "edges", "cat\\ncat", *files, "--from", "tokens", "--to", "logits", "--json"
    ).stdout
    real = invoke(
        "edges", "cat\ncat", *files, "--from", "tokens", "--to", "logits", "--json"
    ).stdout
    assert plain == real


def test_help_has_an_example() -> None:
    assert "edges" in invoke("--help").stdout
    printed = invoke("edges", "--help").stdout
    assert "Example:" in printed and 'gossamer edges "def add' in printed
    assert invoke("--version").stdout.startswith("gossamer, version ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--from", "blocks.0.hook_resid_per", "--to", "logits"),
            f"No SAE writes .*{FIRST}, {LAST}",
        ),
        (("--from", LAST, "--to", FIRST), "further downstream"),
        (
            ("--from", "tokens", "--to", "logits", "--hold", "norm"),
            "Cannot hold 'norm'.*attention, norms",
        ),
        (
            ("--from", "tokens", "--to", "logits", "--tokens", "cat b"),
            r"'cat b' is not one token but 3: 'cat' \+",
        ),
        (
            ("--from", "tokens", "--to", "logits", "--position", "9"),
            "Position 9 is not in the prompt",
        ),
        (("--from", "tokens", "--to", "logits", "--top", "0"), "--top.*x>=1"),
        (("--from", "tokens"), "Missing option '--to'"),
        (
            ("--from", "tokens", "--to", "logits", "--html", "/nowhere/page.html"),
            "/nowhere/page.html cannot be written",
        ),
        (("--from", "tokens", "--to", "logits", "--hold", "mlps"), "none of the SAEs passed is"),
        (("--from", "tokens", "--to", "logits", "--tpo", "3"), "No such option.*--tpo"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: tuple[str, ...],
    message: str,
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = mistake(capsys, monkeypatch, "edges", "a cat", *files, *arguments)
    assert said.startswith("Error: ") and re.search(message, said), said


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"prompt": "cat" * 40}, "context holds 32. Shorten it by 9"),
        ({"model": "/nowhere"}, 'No model "/nowhere" could be loaded'),
        ({"saes": "/nowhere"}, "No SAEs called /nowhere"),
    ],
)
def test_a_wrong_prompt_model_or_set_of_saes_too(
    replaced: dict[str, str],
    message: str,
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"prompt": "a cat", "model": files[1], "saes": files[3]} | replaced
    options = [
        "--model",
        given["model"],
        "--saes",
        given["saes"],
        "--from",
        "tokens",
        "--to",
        "logits",
    ]
    assert message in mistake(capsys, monkeypatch, "edges", given["prompt"], *options)


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python, offline, without the shape checks of the test run."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(gossamer.__file__).parent.parent,
        timeout=120,
        check=False,
    )


def test_a_process_of_its_own_prints_json_or_one_line(files: list[str]) -> None:
    command = ("-m", "gossamer", "edges", "a cat", *files, "--to", "logits")
    good = in_a_process(*command, "--from", FIRST, "--json")
    assert (
        good.returncode == 0 and len(json.loads(good.stdout)["edges"]) == 10 and good.stderr == ""
    )
    bad = in_a_process(*command, "--from", "blocks.9.hook_resid_pre")
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.startswith("Error: No SAE writes") and bad.stderr.count("\n") == 1


MASKED = """
import json, sys, torch, gossamer
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae
model, sae = tiny_model("gpt2"), tiny_sae("topk", "blocks.1.hook_resid_pre", 16)
ends = dict(source=gossamer.Tokens(), target=gossamer.Logits())
said = []
for call in (
    lambda: gossamer.run(model, [1, 2], sae, error="ignored"),
    lambda: gossamer.edges(model, sae, [1, 2], **ends, error="ignored"),
    lambda: model.tokenize(7),
    lambda: gossamer.run(model, [1.5, 2.5]),
):
    try:
        call()
        said.append("nothing was said")
    except gossamer.GossamerError as mistake:
        said.append(str(mistake))
print(json.dumps(said))
"""


def test_mistakes_that_the_tests_shape_checker_would_catch_first_are_told_in_words() -> None:
    done = in_a_process("-c", MASKED)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    modes = 'error is one of attached, detached, frozen, dropped, got "ignored".'
    assert said[:2] == [modes, modes]
    assert all(
        line.startswith("A prompt is a text, a list or tensor of token ids") for line in said[2:]
    )


def test_a_blocked_way_is_said_in_the_table_and_in_json() -> None:
    ends = ["def f(a):", "--from", "blocks.0.hook_resid_pre", "--to", "blocks.2.hook_resid_pre"]
    direct = [*ends, "--direct", "--top", "1"]
    table = " ".join(invoke("edges", *direct).stdout.split())  # the title may be wrapped
    assert "(every path is blocked by another SAE)" in table
    assert "blocked" not in invoke("edges", *ends, "--top", "1").stdout
    assert json.loads(invoke("edges", *direct, "--json").stdout)["blocked"] is True
    assert json.loads(invoke("edges", *ends, "--top", "1", "--json").stdout)["blocked"] is False
