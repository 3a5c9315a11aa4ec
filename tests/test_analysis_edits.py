"""Analyses of edited runs: the number really is the edited run's, the estimate its first order."""

import pytest
import torch

import gossamer
from gossamer.edits import AbstractEdit
from gossamer.errors import GossamerError, PromptError, SiteError
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

IDS = [1, 5, 7, 3, 9, 11]
TARGET = gossamer.LogProbability(3)


def coders(model: gossamer.Model) -> list[gossamer.SAE]:
    """A residual SAE, an attention SAE and a transcoder."""
    d = model.d_model
    return [
        tiny_sae("relu", "blocks.1.hook_resid_pre", d),
        tiny_sae("topk", "blocks.1.hook_attn_out", d),
        tiny_sae("topk", "blocks.2.mlp.hook_in", d, site_out="blocks.2.hook_mlp_out"),
    ]


def edits_of(model: gossamer.Model, size: float) -> dict[str, AbstractEdit]:
    """One edit of each kind, scaled so that it changes its value by a share `size`."""
    along = torch.arange(model.d_model, dtype=torch.float64) - 3
    return {
        "site": gossamer.Scale("blocks.1.hook_resid_mid", 1 + size, positions=2)
        if not model.layout.parallel
        else gossamer.Scale("blocks.1.hook_resid_pre", 1 + size, positions=2),
        "neuron": gossamer.Scale("blocks.0.mlp.hook_post/3@4", 1 + size),
        "head": gossamer.Scale("blocks.2.attn.hook_z/1@5", 1 + size),
        "pair": gossamer.Scale("blocks.2.attn.hook_z/1@5<-3", 1 + size),
        "score": gossamer.Scale("blocks.1.attn.hook_attn_scores", 1 + size, units=2, positions=4),
        "latents": gossamer.Scale("blocks.1.hook_resid_pre", 1 + size, latents=list(range(20))),
        "attention latents": gossamer.Scale(
            "blocks.1.hook_attn_out", 1 + size, latents=list(range(20)), positions=[2, 5]
        ),
        "transcoder": gossamer.Scale(
            "blocks.2.hook_mlp_out", 1 + size, latents=list(range(20)), positions=5
        ),
        "error": gossamer.Scale("blocks.1.hook_resid_pre/error@3", 1 + size),
        "direction": gossamer.Scale("blocks.1.hook_resid_pre", 1 + size, along=along, positions=1),
        "embedding": gossamer.Scale("hook_embed", 1 + size, positions=0),
        "position": gossamer.Scale(
            "hook_pos_embed" if "hook_pos_embed" in model.sites else "hook_embed",
            1 + size,
            positions=3,
        ),
    }


def value_of(model: gossamer.Model, saes: object, edits: object) -> float:
    """log p of token 3 next, from a plain run."""
    logits = gossamer.run(model, IDS, saes, edits=edits).logits  # pyright: ignore[reportArgumentType]
    assert logits is not None
    return float(logits[0, -1].detach().log_softmax(-1)[3])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
@pytest.mark.parametrize("kind", list(edits_of(tiny_model("gpt2"), 1.0)))
def test_the_number_is_the_edited_runs_and_the_estimate_its_first_order(
    family: str, kind: str
) -> None:
    model = tiny_model(family)
    saes = coders(model)
    clean = value_of(model, saes, ())
    large = edits_of(model, -1.0)[kind]
    analysis = gossamer.analyze(model, IDS, TARGET, saes, large, hold=())
    assert analysis.clean_value is not None and analysis.clean is not None
    assert analysis.clean_value == pytest.approx(clean, rel=1e-10)
    assert analysis.value == pytest.approx(value_of(model, saes, large), rel=1e-10)
    assert analysis.clean.value == analysis.clean_value and analysis.clean.estimate is None
    size = 1e-6
    steps = [value_of(model, saes, edits_of(model, s)[kind]) for s in (size, -size)]
    slope = (steps[0] - steps[1]) / (2 * size)
    assert analysis.estimate == pytest.approx(-slope, rel=1e-5, abs=1e-8)
    plain = gossamer.analyze(model, IDS, TARGET, saes, hold=())
    by_node = {row.node: row for row in plain.rows}
    for row in analysis.clean.rows:
        assert row.node not in by_node or row.total == pytest.approx(by_node[row.node].total)


def test_several_edits_count_together() -> None:
    model = tiny_model("llama")
    saes = coders(model)
    each = list(edits_of(model, -1.0).values())[1:5]
    together = gossamer.analyze(model, IDS, TARGET, saes, each, hold=())
    assert together.value == pytest.approx(value_of(model, saes, each), rel=1e-10)
    alone = [gossamer.analyze(model, IDS, TARGET, saes, edit, hold=()).estimate for edit in each]
    assert together.estimate == pytest.approx(sum(e or 0.0 for e in alone), rel=1e-9)


def test_a_resampled_value_is_another_prompts() -> None:
    model = tiny_model("gpt2")
    other = gossamer.run(model, [2, 4, 6, 8, 10, 12], record="blocks.1.attn.hook_z")
    edit = gossamer.Patch("blocks.1.attn.hook_z", other, units=2)
    analysis = gossamer.analyze(model, IDS, TARGET, None, edit)
    assert analysis.value == pytest.approx(value_of(model, None, edit), rel=1e-10)
    assert analysis.value != analysis.clean_value


def test_kl_is_from_the_clean_run_and_flat_there() -> None:
    model = tiny_model("gpt2")
    edit = gossamer.Ablate("blocks.1.mlp.hook_post", units=[1, 2, 3])
    analysis = gossamer.analyze(model, IDS, gossamer.KL(), None, edit)
    logs = []
    for edits in ((), edit):
        logits = gossamer.run(model, IDS, edits=edits).logits
        assert logits is not None
        logs.append(logits[0, -1].detach().log_softmax(-1))
    expected = float((logs[0].exp() * (logs[0] - logs[1])).sum())
    assert analysis.value == pytest.approx(expected, rel=1e-9)
    assert analysis.clean_value == pytest.approx(0.0, abs=1e-12)
    assert analysis.estimate == pytest.approx(0.0, abs=1e-12)
    alone = gossamer.analyze(model, IDS, gossamer.KL())
    assert max(abs(row.total) for row in alone.rows) < 1e-12


@pytest.mark.parametrize(
    ("edit", "error", "said"),
    [
        (gossamer.Ablate("blocks.1.hook_resid_pre/3@9"), PromptError, "Position 9"),
        (gossamer.Ablate("blocks.1.attn.hook_z/1@4<-3", prompts=0), GossamerError, "no prompts="),
        (gossamer.Ablate("blocks.7.hook_resid_pre", positions=1), SiteError, "has blocks"),
        (gossamer.Ablate("blocks.2.mlp.hook_post/99@2"), SiteError, r"choose from 0\.\."),
        (gossamer.Ablate("blocks.1.hook_resid_mid/error@2"), SiteError, "no SAE writes"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(
    edit: object, error: type[Exception], said: str
) -> None:
    model = tiny_model("gpt2")
    with pytest.raises(error, match=said):
        gossamer.analyze(model, IDS, 3, coders(model), edit)  # pyright: ignore[reportArgumentType]


def test_an_edit_behind_what_is_explained_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(SiteError, match="comes after what is explained"):
        gossamer.analyze(
            model,
            IDS,
            gossamer.NodeValue("blocks.0.mlp.hook_post/3@2"),
            edits=gossamer.Ablate("blocks.1.mlp.hook_post/3@2"),
        )
