"""Crosscoders by name: what training writes is loaded, scored, shown, drawn and converted as it is.

One directory holds a crosscoder that `gossamer train` made, a transcoder across layers and a plain
SAE; commands run on it in this process.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import gossamer
from gossamer.cli import cli
from gossamer.errors import FormatError, GossamerError, SiteError
from gossamer.saes import SAE, Crosscoder, Labels, load_crosscoder
from gossamer.saes.crosscoder import Face
from tests.test_saes_crosscoder import OUT, across
from tests.tiny_files import save_model
from tests.tiny_saes import tiny_sae

A, C, POST = "blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"
TEXTS = "a cat sat on a mat and the cat sat\n" * 12


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, saes/ of several kinds, texts.txt."""
    directory = tmp_path_factory.mktemp("crosscoders")
    save_model(directory / "model")
    (directory / "texts.txt").write_text(TEXTS)
    generator = torch.Generator().manual_seed(0)
    rows = {site: torch.randn(400, 16, generator=generator) for site in (A, C)}
    save_file(rows, directory / "acts.safetensors")
    source = ("--from", str(directory / "acts.safetensors"), "--site", A, "--site", C)
    size = ("--d-sae", "24", "--k", "3", "--tokens", "400", "--batch", "50", "--crosscoder")
    said("train", *source, *size, "--out", str(directory / "saes" / "wide"))
    across().save(directory / "saes" / "across")
    tiny_sae("topk", POST, 16).save(directory / "saes" / POST)
    return directory


def said(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    return result.stdout


def test_a_directory_loads_as_what_it_holds(files: Path) -> None:
    wide = gossamer.load_sae(files / "saes" / "wide")
    assert isinstance(wide, Crosscoder) and list(wide.writes) == [A, C]
    expected = load_crosscoder(files / "saes" / "wide").state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in wide.state_dict().items())
    assert gossamer.load_sae(files / "saes" / "wide", dtype="float64").joint.dtype == torch.float64
    alone = gossamer.load_saes(files / "saes" / "wide", device="cpu")
    assert list(alone) == [A, C]
    first, last = alone[A], alone[C]
    assert isinstance(first, Face) and isinstance(last, Face) and first.is_of(last)
    every = gossamer.load_saes(files / "saes")
    assert list(every) == [*OUT, POST, A, C]
    kinds = {site: type(sae) for site, sae in every.items()}
    assert kinds == {**dict.fromkeys((*OUT, POST), SAE), **dict.fromkeys((A, C), Face)}
    model = gossamer.load_model(files / "model", dtype="float64")
    trace = gossamer.run(model, "cat mat", every)
    torch.testing.assert_close(trace.logits, gossamer.run(model, "cat mat").logits)
    assert torch.equal(trace.latents[A], trace.latents[C])


def test_what_cannot_be_is_said(files: Path, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=f"holds a crosscoder, which writes {A}, {C}. Leave"):
        gossamer.load_sae(files / "saes" / "wide", site=A)
    with pytest.raises(GossamerError, match="center= is for files of SAELens"):
        gossamer.load_sae(files / "saes" / "wide", center=True)
    wide = load_crosscoder(files / "saes" / "wide")
    wide.save(tmp_path / "one")
    tiny_sae("topk", C, 16).save(tmp_path / "two")
    with pytest.raises(FormatError, match=f"Two SAEs in {tmp_path} write {C}; .*one.*two"):
        gossamer.load_saes(tmp_path)
    header = json.loads((tmp_path / "one" / "sae.json").read_text())
    (tmp_path / "one" / "sae.json").write_text(json.dumps({**header, "reads": {A: 3, C: 16}}))
    with pytest.raises(FormatError, match="do not fit each other"):
        gossamer.load_saes(tmp_path / "one")


def test_commands_take_it(files: Path) -> None:
    model = ("--model", str(files / "model"))
    corpus = ("--corpus", str(files / "texts.txt"), "--tokens", "40", "--context", "16", "--json")
    wide = ("--saes", str(files / "saes" / "wide"))
    report = json.loads(said("evaluate", *model, *wide, *corpus))
    loaded, saes = gossamer.load_model(files / "model"), gossamer.load_saes(files / "saes" / "wide")
    plain = gossamer.evaluate(
        loaded,
        load_crosscoder(files / "saes" / "wide"),
        files / "texts.txt",
        n_tokens=40,
        context=16,
    )
    assert {s: card["fvu"] for s, card in report["saes"].items()} == pytest.approx(
        {s: card.fvu for s, card in plain.cards.items()}
    )
    found = json.loads(
        said(
            "edges",
            "cat sat mat",
            *model,
            *wide,
            "--from",
            C,
            "--to",
            "logits",
            "--measure",
            "--json",
        )
    )
    edges: Any = gossamer.edges(
        loaded, saes, "cat sat mat", source=gossamer.Latents(C), target=gossamer.Logits()
    )
    assert found["edges"][0]["source"] == edges.top(1)[0].source and A in edges.top(1)[0].source
    every = ("--saes", str(files / "saes"))
    graph = json.loads(said("attribute", "cat sat mat", *model, *every, "--json"))
    assert graph["n_nodes"] > 0


@pytest.mark.parametrize("site", [A, C])
def test_a_dashboard_is_of_its_latents_at_one_site(files: Path, site: str) -> None:
    """Firings and largest activations against encoding in a plain run."""
    whole = load_crosscoder(files / "saes" / "wide")
    arguments = [
        *("--model", str(files / "model"), "--saes", str(files / "saes" / "wide")),
        *("--corpus", str(files / "texts.txt"), "--tokens", "60", "--context", "16"),
        *(() if site == A else ("--site", site)),
        *("--text", "cat mat", "--json"),
    ]
    printed = json.loads(said("dashboard", *arguments))
    assert printed["site_out"] == site and len(printed["latents"]) == whole.d_sae
    model = gossamer.load_model(files / "model")
    board = gossamer.dashboard(
        model, whole.faces()[site], files / "texts.txt", n_tokens=60, context=16, texts=["cat mat"]
    )
    assert board.site_out == site and board.site_in == f"{A}+{C}"
    found = {row["latent"]: row["max"] for row in printed["latents"]}
    assert found == pytest.approx(
        dict(zip(board.latents.tolist(), board.maxima.tolist(), strict=True))
    )
    trace = gossamer.run(model, "cat mat", record=(A, C))
    torch.testing.assert_close(board.texts[0].activations, whole.encode(trace.activations)[0].T)
    rows = torch.nn.functional.normalize(whole.joint.W_dec[:, whole.columns()[site]], dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    torch.testing.assert_close(board.near[0][:, 0], cosines.max(1).values)
    assert board.logits is not None


def test_it_converts_to_the_native_format_alone(files: Path, tmp_path: Path) -> None:
    printed = json.loads(
        said("convert", str(files / "saes"), "--to", "gossamer", str(tmp_path / "out"), "--json")
    )
    assert {row["site_out"] for row in printed["saes"]} == {f"{A}+{C}", "+".join(OUT), POST}
    back = gossamer.load_sae(tmp_path / "out" / "wide")
    expected = load_crosscoder(files / "saes" / "wide").state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in back.state_dict().items())
    with pytest.raises(FormatError, match="a crosscoder.*sae-lens keeps SAEs of one site"):
        said("convert", str(files / "saes"), "--to", "sae-lens", str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_labels_stay_with_it(files: Path, tmp_path: Path) -> None:
    whole = load_crosscoder(files / "saes" / "wide")
    whole.joint.labels = Labels(tuple((f"word{i}",) for i in range(whole.d_sae)))
    whole.save(tmp_path)
    for sae in gossamer.load_saes(tmp_path).values():
        labels: Any = sae.labels  # pyright: ignore[reportAttributeAccessIssue]
        assert labels[3] == "word3"
    model = gossamer.load_model(files / "model")
    graph: Any = gossamer.attribute(model, gossamer.load_saes(tmp_path), "cat mat")
    named = {node.label for node in graph.nodes if node.kind == "latent"}
    assert named and all(label.startswith("word") for label in named)
