"""The tokens that tell two prompts apart, and what contrasted graphs of one prompt share."""

from typing import Any

import numpy as np
import pytest
import torch

from gossamer.attribution.attribute import attribute
from gossamer.attribution.contrast import AMONG, contrast
from gossamer.graph.difference import compare_graphs
from tests.graph_mixes import IDS, at
from tests.plain_model import plain_run
from tests.tiny_models import tiny_model

PROMPTS = [IDS, IDS[:3], [7, 2, 30], [30, 30, 12, 5], [4], [9, 1, 1], [36, 0, 5, 5, 5, 5]]


def plain_contrast(first: torch.Tensor, second: torch.Tensor) -> tuple[int, int]:
    """(token, distractor) by a loop over tokens."""
    token = max(range(len(first)), key=lambda i: float(first[i]))
    other = max(range(len(second)), key=lambda i: float(second[i]))
    if other != token:
        return token, other
    ranked = sorted(range(len(second)), key=lambda i: -float(second[i]))[:AMONG]
    gains = {i: float(second[i] - first[i]) for i in ranked if i != token}
    return token, max(gains, key=lambda i: gains[i])


def log_probabilities(family: str, ids: list[int], position: int) -> torch.Tensor:
    logits = plain_run(tiny_model(family).language_model, ids)["logits"]
    return logits.detach().reshape(len(ids), -1)[position].double().log_softmax(-1)


@pytest.mark.parametrize("position", [-1, 0, -3])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_tokens_are_those_of_a_plain_loop(family: str, position: int) -> None:
    model, kinds = tiny_model(family), set()
    for first in PROMPTS:
        for second in PROMPTS:
            if min(len(first), len(second)) < 3:
                continue
            found = contrast(model, first, second, position=position)
            logs = [log_probabilities(family, ids, position) for ids in (first, second)]
            assert (found.token, found.distractor) == plain_contrast(logs[0], logs[1])
            assert found.position == position and found.token != found.distractor
            kinds.add(bool(logs[0].argmax() == logs[1].argmax()))
    assert True in kinds


def test_identical_prompts_differ_in_nothing() -> None:
    model = tiny_model("gpt2")
    coders = at(model, "0.mlp.hook_in>0.hook_mlp_out", "2.hook_resid_pre")
    target = contrast(model, IDS, IDS)
    graphs: Any = attribute(model, coders, [IDS, IDS], target)
    difference = compare_graphs(*graphs)
    assert (difference.edges.first - difference.edges.second == 0).all()
    for counts in difference.counts().values():
        assert counts["both"] > 0 and sum(counts.values()) == counts["both"]


def test_the_contrast_of_swapped_prompts_is_its_negative() -> None:
    model = tiny_model("gemma2")
    coders, second = at(model, "1.hook_attn_out"), [7, 2, 30]
    one, other = contrast(model, IDS, second), contrast(model, second, IDS)
    assert (one.token, one.distractor) == (other.distractor, other.token)
    weights = []
    for target in (one, other):
        graph: Any = attribute(model, coders, IDS, target)
        into = graph.edges.into(int(graph.nodes.targets[0]))
        weights.append(into.weights[np.argsort(into.sources)])
    np.testing.assert_allclose(weights[0], -weights[1])
