"""Which nodes a prompt has: selected, sorted, named and labelled, against dense latents and logits.

Read off `gossamer.edges`, whose rows and columns they are.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer.attribution.nodes import NodeTable
from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.saes import Labels
from gossamer.sites import parse_node
from tests.plain_edges import active_pairs
from tests.plain_model import plain_run
from tests.tiny_models import tiny_model
from tests.tiny_saes import D_SAE, plain_latents, tiny_sae

IDS = [3, 1, 4, 15, 9, 2, 6, 4]
FIRST, LAST = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"
WORDS = tuple((f"word {i}", f"more {i}") for i in range(D_SAE))


def coders() -> list[Any]:
    return [
        tiny_sae("topk_signed", FIRST, 16, labels=Labels(WORDS)),
        tiny_sae("relu", LAST, 16, seed=1),
    ]


def table(nodes: NodeTable) -> list[tuple[int, int]]:
    return list(zip(nodes.positions.tolist(), nodes.indices.tolist(), strict=True))


def edges(source: Any = None, target: Any = None) -> gossamer.Edges:
    found = gossamer.edges(
        tiny_model("gpt2"),
        coders(),
        IDS,
        source=source or Tokens(),
        target=target or Logits(top=2),
    )
    assert isinstance(found, gossamer.Edges)
    return found


def dense(site: str) -> Tensor:
    with torch.no_grad():
        x = plain_run(tiny_model("gpt2").language_model, IDS)[site]
    return plain_latents(coders()[site == LAST], x)


def test_all_active_latents_sorted_by_position_and_latent() -> None:
    nodes = edges(Latents(FIRST), Latents(LAST))
    for found, site in ((nodes.sources, FIRST), (nodes.targets, LAST)):
        latents = dense(site)
        assert table(found) == [(int(p), int(i)) for p, i in latents.nonzero()]
        expected = latents[found.positions, found.indices]
        torch.testing.assert_close(found.values, expected, rtol=1e-10, atol=1e-10)
        assert len(found) == len(found.ids) == len(found.tokens) == len(found.labels) > 10
        assert [str(parse_node(name)) for name in found.ids] == list(found.ids)
        assert found.ids[0] == f"{site}/{found.indices[0]}@{found.positions[0]}"
        assert found.tokens == tuple(f"<{IDS[p]}>" for p in found.positions.tolist())
    assert (nodes.sources.values < 0).any()  # signed TopK keeps negative latents
    assert nodes.sources.labels == tuple(
        f"word {i} · more {i}" for i in nodes.sources.indices.tolist()
    )
    assert set(nodes.targets.labels) == {""}


@pytest.mark.parametrize(
    ("chosen", "keeps"),
    [
        ({"positions": 2}, lambda p, i: p == 2),
        ({"positions": -1}, lambda p, i: p == 7),
        ({"positions": [-1, 0]}, lambda p, i: p in (0, 7)),
        ({"indices": 5}, lambda p, i: i == 5),
        ({"indices": range(4, 9)}, lambda p, i: 4 <= i < 9),
        ({"positions": [3], "indices": [1, 2, 3]}, lambda p, i: p == 3 and i in (1, 2, 3)),
        ({"positions": []}, lambda p, i: False),
    ],
)
def test_latents_are_chosen_by_position_and_index(chosen: dict[str, Any], keeps: Any) -> None:
    every = table(edges(Latents(FIRST)).sources)
    assert table(edges(Latents(FIRST, **chosen)).sources) == [n for n in every if keeps(*n)]


def test_the_top_latents_are_those_of_largest_size_among_the_chosen() -> None:
    latents = dense(FIRST)
    chosen = latents[4:6].abs().flatten().topk(7).indices
    expected = sorted((4 + int(c) // D_SAE, int(c) % D_SAE) for c in chosen)
    assert table(edges(Latents(FIRST, positions=[4, 5], top=7)).sources) == expected
    assert len(edges(Latents(FIRST, positions=4, top=1000)).sources) == len(latents[4].nonzero())


def test_tokens_are_one_node_for_each_position() -> None:
    nodes = edges().sources
    assert nodes.ids == tuple(f"hook_embed/{token}@{p}" for p, token in enumerate(IDS))
    assert nodes.values.tolist() == [1.0] * len(IDS)


def test_logits_are_chosen_by_token_by_rank_and_by_mass() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        logits = plain_run(model.language_model, IDS)["logits"]
    for position in (-1, 2):
        at = logits[position]
        for target, expected in (
            (Logits(tokens=[9, 3, 9], position=position), [3, 9]),
            (Logits(tokens=5, position=position), [5]),
            (Logits(position=position), sorted(at.topk(10).indices.tolist())),
            (Logits(top=37, position=position), list(range(37))),
        ):
            nodes = edges(target=target).targets
            assert table(nodes) == [(position % len(IDS), token) for token in expected]
            torch.testing.assert_close(nodes.values, at[expected], rtol=1e-10, atol=1e-10)
            assert nodes.labels == tuple(f"'<{token}>'" for token in expected)
    probabilities = logits[-1].softmax(-1)
    for mass in (0.01, 0.5, 1.0):
        chosen = edges(target=Logits(mass=mass)).targets.indices
        kept = probabilities[chosen]
        assert kept.sum() >= mass - 1e-12 and kept.sum() - kept.min() < mass  # no smaller set does
        assert set(chosen.tolist()) == set(probabilities.topk(len(chosen)).indices.tolist())


def test_a_difference_is_one_node_that_names_both_tokens() -> None:
    nodes = edges(target=LogitDifference(7, 30, position=3)).targets
    assert nodes.ids == ("logits/7-30@3",) and nodes.labels == ("'<7>' less '<30>'",)
    logits = plain_run(tiny_model("gpt2").language_model, IDS)["logits"][3].detach()
    torch.testing.assert_close(nodes.values[0], logits[7] - logits[30], rtol=1e-10, atol=1e-10)


def test_where_nothing_is_active_there_are_no_nodes() -> None:
    silent = tiny_sae("jumprelu", FIRST, 16)
    silent.selection.threshold.fill_(1e6)
    model = tiny_model("gpt2")
    assert active_pairs(silent, plain_run(model.language_model, IDS)[FIRST]) == []
    found = gossamer.edges(model, silent, IDS, source=Latents(FIRST), target=Logits(top=3))
    assert found.gradients.shape == (3, 0) and found.top() == []
    found = gossamer.edges(model, silent, IDS, source=Tokens(), target=Latents(FIRST))
    assert found.gradients.shape == (0, 8) and found.targets.ids == () and found.top(5) == []


@pytest.mark.parametrize(
    ("source", "target", "kind", "message"),
    [
        (
            Latents("blocks.0.hook_mlp_out"),
            Logits(),
            SiteError,
            f"No SAE writes blocks.0.hook_mlp_out.*{FIRST}, {LAST}",
        ),
        (Tokens(), Latents("nowhere"), SiteError, "No SAE writes nowhere"),
        (Latents(FIRST, positions=8), Logits(), PromptError, r"Position 8 .*8 tokens \(0\.\.7\)"),
        (Tokens(), Logits(position=-9), PromptError, "Position -9 is not in the prompt"),
        (Tokens(), LogitDifference(1, 2, position=30), PromptError, "Position 30"),
        (
            Tokens(),
            Logits(tokens=[37]),
            PromptError,
            r"Token id 37 is not in the vocabulary 0\.\.36",
        ),
        (Tokens(), Logits(tokens=" cat"), PromptError, "loaded without a tokenizer"),
        (Tokens(), Logits(top=38), GossamerError, "top=38 tokens.*the vocabulary has 37"),
        (Latents(FIRST, indices=D_SAE), Logits(), GossamerError, rf"{D_SAE}.*0\.\.{D_SAE - 1}"),
    ],
)
def test_what_a_prompt_or_a_set_of_saes_does_not_have(
    source: Any, target: Any, kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        edges(source, target)
