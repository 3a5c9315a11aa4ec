"""`gossamer generate`: the function's own numbers, and mistakes in one line with exit status 2."""

import json
from pathlib import Path

import pytest

import gossamer
from tests.test_cli import invoke, mistake
from tests.tiny_files import FIRST, save_model, save_saes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny model and its SAEs."""
    directory: Path = tmp_path_factory.mktemp("generate")
    return [
        *("--model", str(save_model(directory / "model"))),
        *("--saes", str(save_saes(directory / "saes"))),
    ]


def test_json_has_the_functions_own_numbers(files: list[str]) -> None:
    edits = ["--steer", f"{FIRST}/3=2.5", "--ablate", f"{FIRST}/4", "--ablate", f"{FIRST}/5@1"]
    draws = ["--n-tokens", "6", "--temperature", "0.9", "--top-k", "9", "--seed", "4"]
    printed = json.loads(invoke("generate", "a cat", *files, *edits, *draws, "--json").stdout)
    found = gossamer.generate(
        gossamer.load_model(files[1]),
        "a cat",
        gossamer.load_saes(files[3]),
        [
            gossamer.Set(FIRST, 2.5, latents=3),
            gossamer.Ablate(FIRST, latents=4),
            gossamer.Ablate(FIRST, latents=5, positions=1),
        ],
        6,
        temperature=0.9,
        top_k=9,
        seed=4,
    )
    assert isinstance(found, gossamer.Generation)
    assert printed == json.loads(json.dumps(found.to_dict()))
    assert len(printed["tokens"]) == len(printed["unedited"]["tokens"]) == 6


def test_heads_weights_and_errors_are_ablated(files: list[str]) -> None:
    """Those that are no SAE's need none."""
    nodes = ["blocks.0.attn.hook_z/1", "blocks.1.attn.hook_z/0@2<-1", "blocks.0.mlp.hook_post/3@1"]
    named = [word for node in nodes for word in ("--ablate", node)]
    printed = json.loads(
        invoke("generate", "a cat", *files[:2], *named, "--n-tokens", "4", "--json").stdout
    )
    edits = [gossamer.Ablate("blocks.0.attn.hook_z", units=1), *map(gossamer.Ablate, nodes[1:])]
    model, saes = gossamer.load_model(files[1]), gossamer.load_saes(files[3])
    found = gossamer.generate(model, "a cat", None, edits, 4)
    assert isinstance(found, gossamer.Generation)
    assert printed == json.loads(json.dumps(found.to_dict()))
    named = ["--ablate", f"{FIRST}/error", "--ablate", f"{FIRST}/error@0", "--n-tokens", "4"]
    printed = json.loads(invoke("generate", "a cat", *files, *named, "--json").stdout)
    edit = gossamer.Ablate(FIRST, part="error")
    found = gossamer.generate(model, "a cat", saes, edit, 4)
    assert isinstance(found, gossamer.Generation)
    assert printed == json.loads(json.dumps(found.to_dict()))


def test_texts_and_table_for_people(files: list[str]) -> None:
    edited = ["--steer", f"{FIRST}/3=30", "--n-tokens", "3", "--table"]
    shown = invoke("generate", "a\\ncat", *files, *edited).stdout
    assert "unedited" in shown and "probability" in shown and "likeliest" in shown
    assert "They part at token" in shown or "The texts are the same" in shown
    alone = invoke("generate", "a cat", *files[:2], "--n-tokens", "3", "--table").stdout
    assert "unedited" not in alone


def test_the_text_ends_after_a_stop(files: list[str]) -> None:
    options = [*files[:2], "--temperature", "2", "--n-tokens", "9", "--json"]
    whole = json.loads(invoke("generate", "a cat", *options).stdout)
    piece = whole["tokens"][2]["token"]
    cut = json.loads(invoke("generate", "a cat", *options, "--stop", piece).stdout)
    assert cut["tokens"] == whole["tokens"][: len(cut["tokens"])]
    assert len(cut["tokens"]) <= 3 and piece in cut["text"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steer", "x"], "--steer takes SITE/LATENT=VALUE"),
        (["--steer", f"{FIRST}/1"], "--steer takes SITE/LATENT=VALUE"),
        (["--steer", f"{FIRST}/1=much"], "--steer takes SITE/LATENT=VALUE"),
        (["--steer", f"{FIRST}/1=nan"], "--steer takes SITE/LATENT=VALUE"),
        (["--steer", "blocks.0.hook_resid_pr/1=2"], "blocks.0.hook_resid_pre"),
        (["--steer", "blocks.0.hook_mlp_out/1=2"], "where no SAE is spliced"),
        (["--steer", f"{FIRST}/20=2"], "20 is not a latent"),
        (["--ablate", FIRST], "--ablate takes SITE/UNIT"),
        (["--ablate", f"{FIRST}/bias@1"], "--ablate takes SITE/UNIT"),
        (["--ablate", "blocks.0.attn.hook_z/9"], "9 is not a head of blocks.0.attn.hook_z"),
        (["--ablate", "blocks.0.attn.hook_z/1@1<-2"], "Key 2 lies after query 1"),
        (["--ablate", f"{FIRST}/1@40"], "Position 40 never comes"),
        (["--n-tokens", "40"], "more than the model's context of 32"),
        (["--n-tokens", "0"], "--n-tokens"),
        (["--temperature", "-1"], "temperature is 0"),
        (["--top-p", "2"], "top_p is above 0"),
        (["--seed", "-1"], "seed is a whole number"),
        (["--stop", ""], "stop takes"),
        (["--error", "half"], "half"),
    ],
)
def test_mistakes_are_one_line(
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    few = [] if "--n-tokens" in arguments else ["--n-tokens", "4"]
    assert said in mistake(capsys, monkeypatch, "generate", "a cat", *files, *few, *arguments)
