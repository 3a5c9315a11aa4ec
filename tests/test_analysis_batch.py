"""Batches of analyses equal single ones (I22); nothing is left behind (I23); bad input ends in one
sentence; the rows listed are the extremes of each column (I24)."""

import copy

import pytest
import torch

import gossamer
from gossamer.analysis.memory import bytes_of_row
from gossamer.analysis.passes import How
from gossamer.errors import GossamerError, PromptError, ShapeError, SiteError
from gossamer.models.model import Model
from tests.plain_analysis import IDS, close, coders_at
from tests.tiny_models import FAMILIES, tiny_language_model, tiny_model
from tests.tiny_saes import OwnSAE, tiny_sae

SITES = ("blocks.1.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.mlp.hook_in")
PROMPTS = (IDS, [4], IDS[:3], [2, 4, 6, 8, 10, 12, 14, 16, 18], IDS)
"""Of several lengths; one of a single token, one twice."""


def requests_of(model, saes) -> list[gossamer.Request]:
    """Different prompts, targets, edits, upstream nodes, cuts and choices."""
    latents = saes[0].site_out
    kinds = [
        {"target": gossamer.LogitDifference(3, 4)},
        {"target": gossamer.Probability((7, 9)),
         "edits": gossamer.Scale("hook_embed", 0.5, positions=-1)},
        {"target": gossamer.NodeValue("blocks.1.mlp.hook_post/3@2"),
         "edits": gossamer.Scale("blocks.0.attn.hook_z", 2.0, positions=[0, -1])},
        {"upstream": gossamer.Through("blocks.2.attn.hook_z/1@7<-6", "qk")},
        {"upstream": gossamer.Through("blocks.1.attn.hook_z/1@5", "v"), "target": 7},
        {"target": gossamer.KL(), "edits": [
            gossamer.Ablate(latents, latents=list(range(10))),
            gossamer.Steer("blocks.2.hook_mlp_out", torch.ones(model.d_model), positions=-1)]},
        {"target": gossamer.NodeValue(f"{latents}/4@0")},
        {"target": None, "choice": gossamer.Choice(top=3, cut="hook_embed", pairs=True)},
    ]  # fmt: skip
    prompts = (IDS, [4], IDS[:3], PROMPTS[3], IDS, PROMPTS[3], [4], IDS)
    return [
        gossamer.Request(prompt=prompt, saes=saes, **kind)
        for prompt, kind in zip(prompts, kinds, strict=True)
    ]


def same(one: gossamer.Analysis, other: gossamer.Analysis) -> None:
    """Equal numbers everywhere, and the same rows."""
    assert one.prompt_ids == other.prompt_ids and one.tokens == other.tokens
    assert (one.cut, one.target, one.position) == (other.cut, other.target, other.position)
    close(one.value, other.value)
    assert (one.clean is None) == (other.clean is None)
    if one.clean is not None and other.clean is not None:
        close([one.clean_value, one.estimate], [other.clean_value, other.estimate])
        same(one.clean, other.clean)
    mine, theirs = ({row.node: row for row in each.rows} for each in (one, other))
    assert mine.keys() == theirs.keys()
    for node, row in mine.items():
        assert row[:6] == theirs[node][:6]
        close([x or 0.0 for x in row[6:]], [x or 0.0 for x in theirs[node][6:]])
    for a, b in zip(one.sums, other.sums, strict=True):
        assert (a.column, a.adds_up) == (b.column, b.adds_up)
        close([a.shown, a.not_shown], [b.shown, b.not_shown])
    assert (one.logits is None) == (other.logits is None)
    if one.logits is not None and other.logits is not None:
        close(one.logits, other.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_is_its_single_analyses(family) -> None:
    """I22."""
    model = tiny_model(family)
    requests = requests_of(model, coders_at(model, SITES, FAMILIES.index(family)))
    together = gossamer.analyze_batch(model, requests)
    for request, found in zip(requests, together, strict=True):
        (alone,) = gossamer.analyze_batch(model, [request])
        same(found, alone)


def test_one_of_a_batch_is_a_call_of_its_own() -> None:
    """The functions with arguments give what their requests give, in every order of a batch."""
    model = tiny_model("llama")
    saes = coders_at(model, SITES)
    requests = requests_of(model, saes)
    backwards = gossamer.analyze_batch(model, requests[::-1])[::-1]
    first = gossamer.analyze(model, IDS, gossamer.LogitDifference(3, 4), saes)
    traced = gossamer.upstream(model, IDS, "blocks.1.attn.hook_z/1@5", "v", target=7, saes=saes)
    same(backwards[0], first)
    same(backwards[4], traced)
    assert gossamer.analyze_batch(model, []) == []


def test_prompts_given_twice_get_equal_rows() -> None:
    model = tiny_model("gemma3")
    saes = coders_at(model, SITES)
    requests = [gossamer.Request(prompt=p, target=3, saes=saes) for p in (*PROMPTS, IDS)]
    found = gossamer.analyze_batch(model, requests)
    for number in (4, 5):
        assert found[0].rows == found[number].rows and found[0].value == found[number].value


def test_requests_that_share_nothing_are_kept_apart() -> None:
    """SAEs, hold and error differ from one to the next."""
    model = tiny_model("gpt2")
    saes, own = coders_at(model, SITES), OwnSAE("blocks.1.hook_resid_pre", model.d_model)
    options = [
        {"saes": saes, "hold": ()},
        {"saes": saes, "hold": ("norms", "attention")},
        {"saes": saes, "error": "dropped"},
        {"saes": own},
        {},
        {"saes": saes, "error": "frozen", "edits": gossamer.Ablate("blocks.0.hook_mlp_out")},
    ]
    requests = [gossamer.Request(prompt=IDS, target=3, **each) for each in options]
    for request, found in zip(requests, gossamer.analyze_batch(model, requests), strict=True):
        same(found, gossamer.analyze_batch(model, [request])[0])


def test_a_small_memory_splits_passes_and_changes_no_number(monkeypatch) -> None:
    model = tiny_model("gpt_neox")
    saes = coders_at(model, SITES)
    requests = requests_of(model, saes)
    whole = gossamer.analyze_batch(model, requests)
    how = How(gossamer.splice.as_saes(saes), ("norms",), "attached")
    most = 2 * bytes_of_row(model, 9, how, [sae.site_out for sae in saes])
    passes = []
    run_pass = gossamer.analysis.analyze.run_pass

    def counted(model, jobs, how):
        passes.append(len(jobs))
        return run_pass(model, jobs, how)

    monkeypatch.setattr("gossamer.analysis.analyze.run_pass", counted)
    for one, other in zip(gossamer.analyze_batch(model, requests, memory=most), whole, strict=True):
        same(one, other)
    assert len(passes) > 2 and sum(passes) == len(requests)
    with pytest.raises(GossamerError, match="9 tokens needs up to .* allow"):
        gossamer.analyze_batch(model, requests, memory=most // 3)


def test_a_clean_value_changes_nothing_and_edits_commute() -> None:
    """I23."""
    model = tiny_model("qwen3")
    saes = coders_at(model, SITES)
    trace = gossamer.run(model, IDS, saes, record="blocks.1.attn.hook_z")
    target = gossamer.LogitDifference(3, 4)
    bare = gossamer.analyze(model, IDS, target, saes, top=None)
    site = "blocks.1.attn.hook_z"
    for edit, is_constant in (
        (gossamer.Set(site, trace.activations[site].detach()), True),
        (gossamer.Patch(site, trace), True),
        (gossamer.Scale(saes[0].site_out, 1.0, latents=[3, 4]), False),
    ):
        found = gossamer.analyze(model, IDS, target, saes, edit, top=None)
        close([found.change, found.estimate], [0.0, 0.0])
        rows = {row.node: row for row in found.rows}
        for row in (row for row in bare.rows if row.direct):
            close(row.direct, rows[row.node].direct)
            if not is_constant:  # a constant stops what flows from before it
                close(row.total, rows[row.node].total)
    edits = [
        gossamer.Ablate("blocks.0.hook_mlp_out", positions=3),
        gossamer.Ablate("blocks.1.hook_attn_out", latents=[1, 2, 3]),
    ]
    same(*(gossamer.analyze(model, IDS, target, saes, e) for e in (edits, edits[::-1])))


def test_a_pairs_edit_takes_away_that_pair_alone() -> None:
    """B7: one key's share of a head, not the whole row of its pattern; heads likewise."""
    model = tiny_model("gpt2")
    node = "blocks.2.attn.hook_z/1@5<-3"
    target = gossamer.ResidualDirection(
        "blocks.2.hook_resid_mid", torch.ones(16).double().cumsum(0)
    )
    pairs = gossamer.analyze(model, IDS, target, pairs=True, top=None)
    (row,) = [row for row in pairs.rows if row.node == node]
    edited = gossamer.analyze(model, IDS, target, edits=gossamer.Ablate(node))
    heads = gossamer.analyze(model, IDS, target, edits=gossamer.Ablate("blocks.2.attn.hook_z/1@5"))
    assert edited.change is not None and heads.change is not None
    close(edited.change, -row.direct)
    summed = sum(r.direct for r in pairs.rows if r.node.startswith("blocks.2.attn.hook_z/1@5<-"))
    close(heads.change, -summed)


def test_the_likeliest_token_is_the_same_one_in_both_runs() -> None:
    """Where an edit changes which token is likeliest, the change is still of one number."""
    model = tiny_model("gpt2")
    along = torch.linspace(-9, 9, model.d_model, dtype=torch.float64)
    edit = gossamer.Steer("blocks.2.hook_resid_mid", along, positions=-1)
    clean, edited = (gossamer.run(model, IDS, edits=e).logits for e in ((), edit))
    assert clean is not None and edited is not None
    best = int(clean[0, -1].argmax())
    assert best != int(edited[0, -1].argmax())
    found = gossamer.analyze(model, IDS, edits=edit)
    close(found.value, edited[0, -1, best].detach())
    close(found.clean_value, clean[0, -1, best].detach())


def flags_of(model) -> tuple[object, ...]:
    """What a call must leave as it was."""
    hf = model.language_model
    return (
        [(p.requires_grad, p.grad) for p in hf.parameters()],
        [m.training for m in hf.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules()],
        torch.is_grad_enabled(),
    )


def test_a_call_leaves_the_model_as_it_was() -> None:
    """No .grad, no hook, no flag: after a success and after every kind of error."""
    model = Model(tiny_language_model("llama"))
    before = flags_of(model)
    saes = coders_at(model, SITES)
    gossamer.analyze_batch(model, requests_of(model, saes))
    assert flags_of(model) == before
    for target, options in (
        (gossamer.NodeValue(f"{SITES[0]}/99@2"), {}),
        (3, {"edits": gossamer.Set("blocks.1.hook_attn_out", torch.ones(7))}),
        (3, {"memory": 10}),
        (3, {"cut": "blocks.1.hook_resid_post"}),
    ):
        with pytest.raises(GossamerError):
            gossamer.analyze(model, IDS, target, saes, **options)
        assert flags_of(model) == before
    with torch.no_grad():
        found = gossamer.analyze(model, IDS, 3, saes)
        assert not torch.is_grad_enabled() and any(row.total for row in found.rows)


@pytest.mark.parametrize("place", ["wte", "h.1.mlp.c_proj"])
def test_a_model_of_nan_is_one_error_and_no_more(place) -> None:
    model = Model(tiny_language_model("gpt2"))
    weight = model.language_model.get_submodule(f"transformer.{place}").weight
    kept = weight.detach().clone()
    saes = coders_at(model, SITES)
    good = gossamer.analyze(model, IDS, 3, saes)
    with torch.no_grad():
        weight.fill_(torch.nan)
    with pytest.raises(GossamerError, match="nan for Logits, which is no finite"):
        gossamer.analyze(model, IDS, 3, saes)
    with torch.no_grad():
        weight.copy_(kept)
    same(gossamer.analyze(model, IDS, 3, saes), good)


def test_an_edit_to_infinity_is_one_error() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(GossamerError, match="with these edits"):
        gossamer.analyze(model, IDS, 3, edits=gossamer.Scale("blocks.1.hook_mlp_out", torch.inf))


def test_every_mistake_is_one_sentence() -> None:
    """One error, of one line, that says what was got and what is allowed."""
    model = tiny_model("gpt2")
    saes = coders_at(model, SITES)
    late = gossamer.Ablate("blocks.2.hook_mlp_out")
    node = gossamer.NodeValue("blocks.1.mlp.hook_post/3@2")
    for prompt, target, options, error, said in (
        ([], 3, {}, PromptError, "empty|No prompt"),
        ([[1, 2], [3]], 3, {}, GossamerError, "takes one prompt"),
        (list(range(33)), 3, {}, PromptError, "33 tokens, .* holds 32"),
        ([1, 99], 3, {}, PromptError, "99 is not in the vocabulary"),
        ("text", 3, {}, PromptError, "without a tokenizer"),
        (IDS, " x", {}, PromptError, "without a tokenizer"),
        (IDS, 99, {}, PromptError, "99 is not in the vocabulary"),
        (IDS, [], {}, GossamerError, "A target is"),
        (IDS, {"a": 1}, {}, GossamerError, "A target is"),
        (IDS, gossamer.Logits(top=3), {}, GossamerError, "one number"),
        (IDS, gossamer.Logits(3, position=6), {}, PromptError, "Position 6"),
        (IDS, gossamer.NodeValue("blocks.1.mlp.hook_post/3@6"), {}, PromptError, "Position 6"),
        (IDS, gossamer.NodeValue("blocks.1.mlp.hook_post/64@2"), {}, SiteError, r"0\.\.63"),
        (IDS, gossamer.NodeValue(f"{SITES[0]}/20@2"), {}, SiteError, r"0\.\.19"),
        (IDS, gossamer.NodeValue("blocks.1.hook_resid_mid/2@2"), {}, SiteError, "no neurons"),
        (IDS, gossamer.NodeValue("blocks.3.mlp.hook_post/3@2"), {}, SiteError, r"0\.\.2"),
        (IDS, gossamer.ResidualDirection(SITES[0], torch.ones(7)), {}, ShapeError, "7 numbers"),
        (IDS, node, {"edits": late}, SiteError, "comes after what is explained"),
        (IDS, 3, {"edits": gossamer.Ablate("blocks.2.hook_mlp")}, SiteError, "Near names"),
        (IDS, 3, {"edits": gossamer.Ablate(SITES[0], positions=6)}, PromptError, "Position 6"),
        (IDS, 3, {"hold": ("norm",)}, GossamerError, "hold takes any of"),
        (IDS, 3, {"hold": "norm"}, GossamerError, "hold takes any of"),
        (IDS, 3, {"kinds": "neurons"}, GossamerError, "got 'neurons'"),
        (IDS, 3, {"kinds": "pair"}, GossamerError, "pairs=True"),
        (IDS, 3, {"kinds": "head", "pairs": True}, GossamerError, "pairs=False"),
        (IDS, 3, {"top": 0}, GossamerError, "from 1 on"),
        (IDS, 3, {"cut": "blocks.1"}, SiteError, "Near names"),
        (IDS, 3, {"cut": "blocks.2.hook_resid_pre"}, SiteError, "cannot be cut"),
        (IDS, node, {"cut": "blocks.2.hook_resid_pre"}, SiteError, "cannot be cut"),
        (IDS, 3, {"saes": [saes[0], saes[0]]}, SiteError, "Two SAEs"),
        (IDS, 3, {"saes": tiny_sae("topk", SITES[0], 7)}, ShapeError, "width 16"),
        (IDS, 3, {"memory": 1000}, GossamerError, "allow more with memory="),
    ):  # fmt: skip
        with pytest.raises(error, match=said) as caught:
            gossamer.analyze(model, prompt, target, **{"saes": saes, **options})
        assert "\n" not in str(caught.value)


def test_nodes_that_are_not_there_are_refused_when_they_are_named() -> None:
    for make, error, said in (
        (lambda: gossamer.NodeValue("blocks.1.mlp.hook_post"), SiteError, "is not a node"),
        (lambda: gossamer.NodeValue("blocks.1.mlp.hok_post/3@2"), SiteError, "Near names"),
        (lambda: gossamer.NodeValue(f"{SITES[0]}/error@2"), SiteError, "no value of its own"),
        (lambda: gossamer.ResidualDirection("hook_embed", torch.ones(7)), SiteError, "stream"),
        (lambda: gossamer.ResidualDirection(SITES[0], torch.ones(1, 7)), ShapeError, "vector"),
    ):
        with pytest.raises(error, match=said):
            make()


def test_strings_are_one_token_each() -> None:
    model = gossamer.load_model("pico-python")
    prompt = "def add(self, other):\n    return self"
    with pytest.raises(PromptError, match=r"is not one token but \d"):
        gossamer.analyze(model, prompt, " notatokenatall")
    with pytest.raises(PromptError, match="is not one token but"):
        gossamer.analyze(model, prompt, gossamer.LogitDifference(".", ""))
    found = gossamer.analyze(model, prompt, gossamer.LogitDifference(".", ")"))
    assert found.tokens[0] == "<|endoftext|>" and found.sums[0].adds_up
    assert found.target == "logit of '.' less ')'"
    with pytest.raises(PromptError, match="holds 512"):
        gossamer.analyze(model, "x = 1\n" * 300, ".")


@pytest.mark.parametrize("top", [1, 4, 30])
def test_rows_listed_are_the_extremes_of_each_column(top) -> None:
    """I24."""
    model = tiny_model("gemma2")
    saes = coders_at(model, SITES)
    target = gossamer.LogitDifference(3, 4)
    whole = gossamer.analyze(model, IDS, target, saes, top=None)
    some = gossamer.analyze(model, IDS, target, saes, top=top)
    nodes = [row for row in whole.rows if row.write_norm is not None]
    listed = {row.node: row for row in some.rows}
    expected = {row.node for row in some.rows if row.write_norm is None}
    for column in ("direct", "total"):
        order = sorted((r for r in nodes if getattr(r, column)), key=lambda r: getattr(r, column))
        expected |= {row.node for row in (*order[:top], *order[-top:])}
    assert listed.keys() == expected
    by_node = {row.node: row for row in whole.rows}
    assert all(row == by_node[node] for node, row in listed.items())
    for a, b in zip(some.sums, whole.sums, strict=True):
        close(a.shown + a.not_shown, b.shown + b.not_shown)
        close(a.shown, sum(getattr(row, a.column) for row in some.rows if row.in_cut))
    assert some.rows_at is not None
    assert list(some.rows_at([row.node for row in whole.rows[:50]])) == list(whole.rows[:50])
    chosen = gossamer.analyze(model, IDS, target, saes, top=top, kinds=("latent", "error"))
    assert {row.kind for row in chosen.rows} <= {"latent", "error"}
    close(chosen.sums[0].shown + chosen.sums[0].not_shown, whole.value)


def test_rows_are_sorted_and_go_to_a_table_and_to_json() -> None:
    model = tiny_model("qwen2")
    found = gossamer.analyze(model, IDS, 3, top=5, edits=gossamer.Ablate("blocks.1.hook_mlp_out"))
    sizes = [abs(row.direct) for row in found.rows]
    assert sizes == sorted(sizes, reverse=True)
    totals = [abs(row.total) for row in found.top(3, by="total")]
    assert totals == sorted((abs(row.total) for row in found.rows), reverse=True)[:3]
    with pytest.raises(GossamerError, match="by is one of"):
        found.top(by="size")
    table, plain = found.to_dataframe(), found.to_dict()
    assert list(table["node"]) == [row["node"] for row in plain["rows"]]
    assert plain["change"] == found.change and plain["clean"]["value"] == found.clean_value
    assert copy.deepcopy(plain) == plain and found.seconds > 0
