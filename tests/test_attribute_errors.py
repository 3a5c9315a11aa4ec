"""Bad input to graphs: one sentence for each mistake, and nothing half-written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gossamer.attribution.attribute import attribute
from gossamer.attribution.contrast import contrast
from gossamer.attribution.heads.loadings import head_loadings
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.attribution.verify import verify
from gossamer.errors import DiskError, FormatError, GossamerError, PromptError, SiteError
from gossamer.graph.difference import compare_graphs
from gossamer.graph.graph import Graph
from gossamer.models.model import Model
from gossamer.saes import SAE
from tests.graph_mixes import IDS, at
from tests.small_disk import fill, small_disk
from tests.tiny_models import tiny_language_model, tiny_model
from tests.tiny_saes import OwnSAE, tiny_sae

WAYS = ("0.mlp.hook_in>0.hook_mlp_out", "1.hook_attn_out", "2.hook_resid_pre")
LAST = "blocks.2.hook_resid_pre"
LOGITS = Logits()


def graph(ids: list[int] = IDS, target: Any = LOGITS, **options: Any) -> Any:
    model = tiny_model("gpt2")
    return attribute(model, at(model, *WAYS), ids, target, **options)


def mistake(call: Callable[[], Any], says: str, kind: type[Exception] = GossamerError) -> str:
    """One line that says so, ending in a full stop."""
    with pytest.raises(kind, match=says) as caught:
        call()
    text = str(caught.value)
    assert isinstance(caught.value, GossamerError)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "No prompt|empty"),
        ([[]], "empty"),
        ([1] * 33, "33 tokens.*holds 32"),
        ([37], "not in the vocabulary 0..36"),
        ([[1, 2], [99]], "not in the vocabulary"),
        ("text", "without a tokenizer"),
        (3.5, "A prompt is"),
    ],
    ids=str,
)
def test_prompts(ids: Any, says: str) -> None:
    mistake(lambda: graph(ids), says, PromptError)


def inactive() -> str:
    """A latent that is not active on the prompt."""
    nodes = graph().nodes
    some = {f"{LAST}/{i}@4" for i in range(20)} - set(nodes.ids)
    return sorted(some)[0]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("foo", "is not a node"),
        ("logits/3", "is not a node"),
        ("logits/99@1", "not in the vocabulary"),
        ("logits/3@77", r"Position 77 is not in the prompt.*0\.\.4"),
        (f"{LAST}/error@0", "is no target"),
        (f"{LAST}/3@9", "Position 9"),
        ("blocks.1.hook_resid_pre/3@0", "No SAE writes blocks.1.hook_resid_pre.*write:"),
        (Tokens(), "target is Logits"),
        (None, "target is Logits"),
        (Logits(position=5), "Position 5"),
        (Logits(position=-6), "Position -6"),
        (Logits(top=99), "top=99.*37"),
        (Logits(tokens=[]), "at least one token"),
        (Logits(tokens="ab"), "without a tokenizer"),
        (LogitDifference(3, 3), "Both sides"),
        (LogitDifference([3, 4], 5), "difference of two tokens, got 2"),
        (Latents(LAST, indices=20), r"20 is not a latent.*0\.\.19"),
        (Latents(LAST, positions=7), "Position 7"),
    ],
    ids=str,
)
def test_targets(target: Any, says: str) -> None:
    mistake(lambda: graph(target=target), says)


def test_a_latent_that_is_not_active() -> None:
    mistake(lambda: graph(target=inactive()), "active on this prompt; name one")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hold": "norm"}, "Cannot hold 'norm'.*attention, norms, mlps"),
        ({"hold": ("norms", "qk")}, "Cannot hold 'qk'"),
        ({"effects": "gradient", "hold": ("norms",)}, "holds nothing.*leave hold out"),
        ({"steps": 0}, "steps is a whole number from 1 on, got 0"),
        ({"max_nodes": 0}, "max_nodes is a whole number"),
        ({"max_nodes": 10}, "max_nodes=10 is less than the [0-9]+ nodes.*Allow more"),
        ({"memory": -1}, "memory is a whole number"),
        ({"memory": 1000}, "needs .* of memory, and 0.00 MB are allowed.*memory="),
    ],
    ids=str,
)
def test_ways_of_computing(options: dict[str, Any], says: str) -> None:
    mistake(lambda: graph(**options), says)


def test_what_would_fit_does_fit() -> None:
    """The number that the refusal names is enough, and a tenth less is not."""
    text = mistake(lambda: graph(memory=1000), "needs")
    needed = float(text.split("needs ")[1].split(" MB")[0]) * 1e6
    assert len(graph(memory=int(needed * 1.01)).edges) == len(graph().edges)
    mistake(lambda: graph(memory=int(needed * 0.9)), "needs")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: tiny_sae("topk", "blocks.0.attn.hook_q", 16), "A graph takes SAEs at"),
        (lambda: tiny_sae("topk", "blocks.0.mlp.hook_post", 64), "A graph takes SAEs at"),
        (lambda: tiny_sae("topk", "hook_embed", 16), "A graph takes SAEs at"),
        (lambda: tiny_sae("topk", "blocks.7.hook_resid_pre", 16), r"blocks 0\.\.2"),
        (lambda: tiny_sae("topk", LAST, 18), "d_in=18.*width 16"),
        (lambda: "pico", "An SAE has site_in"),
        (lambda: [tiny_sae("topk", LAST, 16)] * 2, "Two SAEs write"),
    ],
)
def test_saes(make: Callable[[], Any], says: str) -> None:
    mistake(lambda: attribute(tiny_model("gpt2"), make(), IDS), says)


def test_a_skip_across_blocks() -> None:
    ways = {"site_out": "blocks.1.hook_mlp_out", "skip": True}
    sae = tiny_sae("topk", "blocks.0.mlp.hook_in", 16, **ways)
    mistake(lambda: attribute(tiny_model("gpt2"), sae, IDS), "skip connection.*Leave this SAE out")


# Numbers that are none


@pytest.mark.parametrize("effects", ["direct", "integrated"])
@pytest.mark.parametrize(
    "name, bad",
    [(name, float("nan")) for name in ("W_enc", "b_enc", "W_dec", "b_dec")]
    + [(name, float("inf")) for name in ("W_enc", "b_enc", "W_dec")],
)
def test_an_sae_with_bad_weights(name: str, bad: float, effects: Any) -> None:
    """Refused wherever it would leave latents out or reach an edge."""
    model = tiny_model("gpt2")
    coders = at(model, *WAYS)
    parts = {key: each.clone() for key, each in coders[1].state_dict().items()}
    sae = SAE(**{**coders[1].arguments(), **{name: parts[name].fill_(bad)}})
    with torch.no_grad():
        mistake(
            lambda: attribute(model, [coders[0], sae, coders[2]], IDS, effects=effects, steps=2),
            "NaN|not finite",
        )


def test_a_model_with_bad_weights() -> None:
    language_model = tiny_language_model("gpt2")
    with torch.no_grad():
        language_model.get_parameter("transformer.h.1.mlp.c_fc.weight")[0, 0] = float("nan")
    model = Model(language_model)
    mistake(lambda: attribute(model, at(model, *WAYS), IDS), "blocks.1.*not finite in this run")


# Graphs that do not belong


def test_a_graph_of_another_model_or_other_saes() -> None:
    model, found = tiny_model("gpt2"), graph()
    other, coders = tiny_model("gpt2_inverse_layer"), at(model, *WAYS)
    checks = (
        lambda m, saes: verify(found, m, saes, 5),
        lambda m, saes: head_loadings(m, saes, found),
    )
    for check in checks:
        mistake(lambda c=check: c(other, coders), "other|another")
        mistake(lambda c=check: c(model, at(model, *WAYS, shift=1)), "other|another")
        mistake(lambda c=check: c(model, coders[:2]), f"splices an SAE at {LAST}", SiteError)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_graph(tmp_path: Path, share: float) -> None:
    path = Path(graph().save(tmp_path / "g.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    mistake(lambda: Graph.load(path), "g.safetensors", FormatError)
    mistake(lambda: graph().save(tmp_path / "no" / "g.safetensors"), "cannot be written", DiskError)


def test_what_cannot_be_compared_or_contrasted() -> None:
    first, second, model = graph(), graph(IDS[:3]), tiny_model("gpt2")
    for align in ("middle", ""):
        mistake(lambda a=align: compare_graphs(first, second, a), "align is", PromptError)
    mistake(lambda: compare_graphs(first, second, {0: 3}), r"0\.\.2", PromptError)
    mistake(lambda: compare_graphs(first, second, {0: 1, 1: 0}), "cross", PromptError)
    mistake(lambda: compare_graphs(first, second, tolerance=1.0), "tolerance")
    for position in (3, -4):
        says = rf"Position {position} is not in both prompts.*0\.\.2"
        mistake(lambda p=position: contrast(model, IDS, IDS[:3], position=p), says, PromptError)
    mistake(lambda: contrast(model, IDS, []), "empty", PromptError)


# Directories


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    graph(directory=tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    for call in (
        lambda: graph(IDS[:4], directory=tmp_path / "a"),
        lambda: graph(target="logits/3@4", directory=tmp_path / "a"),
        lambda: graph(hold=("attention", "norms", "mlps"), directory=tmp_path / "a"),
        lambda: graph(max_nodes=100, directory=tmp_path / "a"),
    ):
        mistake(call, "holds rows of another graph.*Name another directory", FormatError)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    mistake(lambda: graph(directory=tmp_path / "b"), "not empty and holds no graph", FormatError)
    mistake(lambda: graph(directory=tmp_path / "b" / "notes.txt"), "cannot be made", DiskError)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("own", [OwnSAE, None], ids=["own", "none"])
def test_rows_of_coders_without_a_digest(tmp_path: Path, own: Any) -> None:
    """A coder of the user's own has no weights to know it by: its active latents do."""
    model = tiny_model("gpt2")
    coders = [OwnSAE(LAST, 16, seed=seed) for seed in (0, 1)]
    attribute(model, coders[0], IDS, directory=tmp_path)
    other = coders[1] if own else None
    mistake(lambda: attribute(model, other, IDS, directory=tmp_path), "of another graph")


@pytest.mark.parametrize("text", ["[]", "null", "3", "{", "{}", "\xff"])
def test_a_directory_with_a_damaged_description(tmp_path: Path, text: str) -> None:
    (tmp_path / "graph.json").write_bytes(text.encode("latin1"))
    mistake(lambda: graph(directory=tmp_path), "graph.json is damaged|another graph", FormatError)


@pytest.mark.parametrize(
    "text",
    ["garbage\n", "[1]\n", "[99999,0,1]\n", "[-1,0,1]\n", "[3,0,1]\n[4,0,1]\n", "[40,0,1.5]\n"]
    + ["\xff\n", "[40,0,1000000000]\n"],
)
def test_a_directory_with_a_damaged_list_of_rows(tmp_path: Path, text: str) -> None:
    graph(directory=tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(text.encode("latin1"))
    mistake(lambda: graph(directory=tmp_path), "compute the graph again", FormatError)


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    expected = graph()
    with small_disk(tmp_path / "disk", 64) as disk:
        fill(disk, leave=24 * 1024)
        mistake(lambda: graph(directory=disk / "g"), "No space left.*Make room", DiskError)
        lines = (disk / "g" / "rows.jsonl").read_text().splitlines()
        (disk / "taken").unlink()
        found = graph(directory=disk / "g")
        assert (disk / "g" / "rows.jsonl").read_text().splitlines()[: len(lines)] == lines
        assert 0 < len(lines) < len(found.rows.counts.nonzero()[0])
        assert found.nodes.ids == expected.nodes.ids and len(found.edges) == len(expected.edges)
        del found
    assert json.loads(json.dumps(dict(expected.about))) == replace(expected).about
