"""Generated texts, against transformers' own and against `run` on the whole text at every step."""

from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.edits import Ablate, AbstractEdit, Patch, Scale, Set, Steer
from gossamer.errors import GossamerError, PromptError, ShapeError, SiteError
from gossamer.generation import steps
from gossamer.generation.generate import generate
from gossamer.generation.result import Generation, NewToken
from gossamer.generation.sampling import Sampling
from gossamer.models.model import Model
from gossamer.splice import Plan, run
from tests.test_prompts import tiny_tokenizer
from tests.test_splice import ERRORS, LONG, MIDDLE, SHORT, several
from tests.tiny_models import FAMILIES, tiny_language_model, tiny_model
from tests.tiny_saes import D_SAE, OwnSAE, tiny_sae

N_NEW = 5  # with LONG three times the sliding window of the tiny models
END = "blocks.2.hook_resid_post"
POST, Z = "blocks.1.mlp.hook_post", "blocks.1.attn.hook_z"
PATTERN = "blocks.1.attn.hook_pattern"
CLOSE = {"rtol": 1e-9, "atol": 1e-11}
VECTOR = torch.linspace(-1, 2, 16)

EDITS: dict[str, Any] = {
    "every token": lambda: [Set(MIDDLE, 3.0, latents=[4, 7]), Scale(END, -2.0)],
    "direction": lambda: Steer("blocks.0.hook_resid_post", torch.arange(16) / 5.0),
    "prompt": lambda: [Ablate(MIDDLE, positions=[0, 2]), Set(f"{MIDDLE}/5@1", 2.0)],
    "to come": lambda: Steer(MIDDLE, 4.0, latents=range(D_SAE), positions=[1, 8, 9]),
    "newest": lambda: Steer(MIDDLE, 4.0, latents=range(D_SAE), positions=-1),
    "mixed": lambda: Scale("blocks.1.hook_mlp_out", 3.0, positions=[2, -2]),
    "heads": lambda: Scale("blocks.1.attn.hook_z", 2.0),
    "queries": lambda: Scale("blocks.1.attn.hook_q", -2.0, positions=[3, 10]),
    "keys": lambda: Scale("blocks.1.attn.hook_k", -2.0, positions=[3, 10]),
    "values": lambda: Scale("blocks.1.attn.hook_v", -2.0),
    "pattern": lambda: Scale("blocks.0.attn.hook_pattern", 0.5),
    "logits": lambda: Scale("logits", 0.5, positions=[8]),
    "neurons": lambda: [Scale(POST, 3.0, units=[1, 5]), Ablate(f"{POST}/2@8")],
    "some heads": lambda: [Ablate(f"{Z}/2@9"), Scale("blocks.1.attn.hook_q", 2.0, units=1)],
    "error": lambda: [Scale(MIDDLE, 3.0, part="error"), Ablate(f"{MIDDLE}/error@8")],
    "along": lambda: Ablate(END, along=torch.arange(16) - 3.5),
    "key head": lambda: Scale("blocks.1.attn.hook_k", 2.0, units=1),
    "weights": lambda: [Ablate(f"{Z}/2@9<-4"), Ablate(PATTERN, units=1, keys=[2, 8])],
    "newest weights": lambda: Scale(PATTERN, 0.5, units=[0, 3], positions=-1, keys=[-1, -3]),
    "scores": lambda: Set("blocks.0.attn.hook_attn_scores", 1.0, units=2, keys=3),
}
RERUN = {"newest", "mixed", "keys", "values", "pattern"}
RERUN |= {"key head", "weights", "newest weights", "scores"}


def spliced(family: str) -> dict[str, Any]:
    """An SAE of every kind, at sites that the family has."""
    sites = tiny_model(family).sites
    own = OwnSAE("blocks.2.hook_attn_out", 16)
    return {own.site_out: own} | {k: v for k, v in several(family).items() if k in sites}


def one(*arguments: Any, **options: Any) -> Generation:
    found = generate(*arguments, **options)
    assert isinstance(found, Generation)
    return found


def as_tuple(edits: Any) -> tuple[AbstractEdit, ...]:
    return (edits,) if isinstance(edits, AbstractEdit) else tuple(edits)


def distributions(
    model: Model, found: Generation, saes: Any, edits: Any, error: Any = "attached"
) -> Tensor:
    """Probabilities of every step by `run` on the whole text so far, edits where they have come."""
    ids, rows = list(found.prompt_ids), []
    for token in found.token_ids:
        here = tuple(steps._so_far(edit, len(ids)) for edit in as_tuple(edits))
        with torch.no_grad():
            logits = run(model, ids, saes, here, error=error).logits
        assert logits is not None
        rows.append(logits[0, -1].softmax(-1))
        ids.append(token)
    return torch.stack(rows)


def check_steps(found: Generation, expected: Tensor) -> None:
    """Probabilities, alternatives and greedy choice are those expected."""
    rows = torch.arange(len(expected))
    ids = torch.tensor(found.token_ids)
    torch.testing.assert_close(found.probabilities, expected[rows, ids], **CLOSE)
    torch.testing.assert_close(found.top_probabilities, expected.topk(5).values, **CLOSE)
    torch.testing.assert_close(expected.gather(1, found.top_ids), found.top_probabilities, **CLOSE)


@pytest.mark.floor
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_transformers_own(family: str) -> None:
    theirs = tiny_language_model(family)
    theirs.generation_config.eos_token_id = None
    theirs.set_attn_implementation("eager")  # in 4.56 only this one caps the scores of Gemma 2
    ids = torch.tensor([LONG])
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    found = one(Model(theirs), LONG, n_tokens=12)
    assert [*found.prompt_ids, *found.token_ids] == expected[0].tolist()
    assert found.unedited is None and found.differs_at is None
    if family == "gpt2":
        check_steps(found, distributions(tiny_model(family), found, None, ()))


@pytest.mark.parametrize("family", FAMILIES)
def test_spliced_saes_leave_the_text_as_it_is(family: str) -> None:
    model, saes = tiny_model(family), spliced(family)
    found = one(model, LONG, saes, n_tokens=N_NEW)
    assert found.unedited is not None and found.differs_at is None
    assert found.token_ids == found.unedited.token_ids
    check_steps(found, distributions(model, found, saes, ()))


@pytest.mark.parametrize(("family", "case"), list(zip(cycle(FAMILIES), EDITS, strict=False)))
def test_every_step_is_a_run_of_the_whole_text(family: str, case: str) -> None:
    model, saes, edits = tiny_model(family), spliced(family), EDITS[case]()
    plan = Plan(edits=as_tuple(edits))
    assert steps.can_continue(model, saes, plan) == (case not in RERUN)
    found = one(model, LONG, saes, edits, N_NEW, compare=False, stop=())
    assert len(found.token_ids) == N_NEW
    check_steps(found, distributions(model, found, saes, edits))
    assert found.token_ids == tuple(found.top_ids[:, 0].tolist())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reruns", [False, True])
def test_many_edits_in_every_family(family: str, reruns: bool) -> None:
    model, saes = tiny_model(family), spliced(family)
    cases = [case for case in EDITS if reruns or case not in RERUN]
    edits = [edit for case in cases for edit in as_tuple(EDITS[case]())]
    found = one(model, LONG, saes, edits, N_NEW, compare=False, stop=())
    check_steps(found, distributions(model, found, saes, edits))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_every_error_mode(family: str, error: Any) -> None:
    model, saes = tiny_model(family), spliced(family)
    edits = [Set(MIDDLE, 3.0, latents=4), Scale("blocks.0.hook_mlp_out", 2.0, positions=[1, 5])]
    found = one(model, SHORT, saes, edits, 6, error=error, compare=False, stop=())
    check_steps(found, distributions(model, found, saes, edits, error))
    assert steps.can_continue(model, saes, Plan(edits=tuple(edits), error=error)) == (
        error != "frozen"
    )


@pytest.mark.floor
@pytest.mark.parametrize("family", FAMILIES)
def test_the_two_ways_agree(family: str) -> None:
    model, saes = tiny_model(family), spliced(family)
    plan = Plan(edits=(*EDITS["every token"](), *as_tuple(EDITS["to come"]())), error="dropped")
    tokens = torch.tensor([LONG, [5, *LONG[1:]]])
    fast, plain = steps.continued(model, saes, plan), steps.rerun(model, saes, plan)
    for _ in range(8):
        logits = plain(tokens)
        torch.testing.assert_close(fast(tokens), logits, **CLOSE)
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], -1)


@pytest.mark.parametrize(("family", "temperature"), [("gpt2", 0.0), ("gemma3", 0.8)])
def test_ragged_prompts_are_as_if_each_were_alone(family: str, temperature: float) -> None:
    model, saes = tiny_model(family), spliced(family)
    prompts = [LONG, SHORT, [5, *LONG[1:]], [1]]
    edits = [Set(MIDDLE, 5.0, latents=4), Scale(MIDDLE, 3.0, prompts=[0, 1], positions=0)]
    options: Any = {"n_tokens": 5, "temperature": temperature, "stop": ()}
    found = generate(model, prompts, saes, edits, seed=[3, 4, 5, 6], **options)
    assert isinstance(found, list)
    for row, prompt in enumerate(prompts):
        here = edits if row < 2 else edits[:1]
        alone_edits = [replace(edit, prompts=None) for edit in here]
        alone = one(model, prompt, saes, alone_edits, seed=3 + row, **options)
        assert found[row].token_ids == alone.token_ids
        torch.testing.assert_close(found[row].probabilities, alone.probabilities, **CLOSE)
        mine, other = found[row].unedited, alone.unedited
        assert mine is not None and other is not None and mine.token_ids == other.token_ids


def test_a_seed_makes_the_text_again_and_others_make_others() -> None:
    model = tiny_model("llama")
    options: Any = {"n_tokens": 12, "temperature": 1.5, "stop": ()}
    first = one(model, LONG, seed=7, **options)
    assert one(model, LONG, seed=7, **options).token_ids == first.token_ids
    texts = generate(model, [LONG] * 20, seed=range(20), **options)
    assert isinstance(texts, list)
    assert len({text.token_ids for text in texts}) > 15
    check_steps(first, distributions(model, first, None, ()))


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]], dtype=torch.float64)
    generator, n_draws = torch.Generator().manual_seed(0), 20_000
    for sampling in (
        Sampling(temperature=1.0),
        Sampling(temperature=2.0, top_k=3),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=0.5, top_k=4, top_p=0.99),
    ):
        expected = (logits[0] / sampling.temperature).softmax(-1)
        expected[slice(sampling.top_k, None) if sampling.top_k else slice(5, 5)] = 0
        expected /= expected.sum()
        if sampling.top_p is not None:
            expected[1:][expected.cumsum(0)[:-1] >= sampling.top_p] = 0
            expected /= expected.sum()
        torch.testing.assert_close(sampling.weights(logits)[0], expected)
        chosen = sampling.choose(logits.expand(n_draws, -1), [generator] * n_draws)
        share = torch.bincount(chosen, minlength=5) / n_draws
        assert (share - expected).abs().max() < 5 * 0.5 / n_draws**0.5
        assert not share[expected == 0].any()


def test_top_k_of_one_is_the_likeliest_token() -> None:
    model = tiny_model("gpt2")
    drawn = one(model, LONG, n_tokens=9, temperature=3.0, top_k=1)
    assert drawn.token_ids == one(model, LONG, n_tokens=9).token_ids


def test_a_text_ends_after_a_stop() -> None:
    model = Model(tiny_language_model("gpt2"), tiny_tokenizer())
    whole = one(model, "a cat", n_tokens=12, temperature=2.0, seed=1, stop=())
    assert len(whole.token_ids) == 12 and whole.text == "".join(whole.tokens)
    third = whole.token_ids[3]
    first = whole.token_ids.index(third) + 1
    options: Any = {"n_tokens": 12, "temperature": 2.0, "seed": 1}
    cut = one(model, "a cat", stop=third, **options)
    assert cut.token_ids == whole.token_ids[:first]
    assert len(cut.probabilities) == len(cut.top_ids) == len(cut.top_tokens) == first
    piece = whole.tokens[3]
    by_text = one(model, "a cat", stop=piece, **options)
    assert piece in by_text.text and piece not in "".join(by_text.tokens[:-1])
    model.language_model.generation_config.eos_token_id = [third]
    assert one(model, "a cat", **options).token_ids == cut.token_ids
    both = generate(model, ["a cat", "a b"], stop=third, **options)
    assert isinstance(both, list) and both[0].token_ids == cut.token_ids


def test_the_unedited_text_and_where_the_two_part() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    edit = Set(MIDDLE, 30.0, latents=3, positions=[9])
    found = one(model, LONG, sae, edit, 8)
    assert found.unedited is not None
    assert found.unedited.token_ids == one(model, LONG, n_tokens=8).token_ids
    torch.testing.assert_close(found.probabilities[:2], found.unedited.probabilities[:2])
    assert found.token_ids[:2] == found.unedited.token_ids[:2]
    assert not torch.allclose(found.probabilities[3:], found.unedited.probabilities[3:])
    expected = [a != b for a, b in zip(found.token_ids, found.unedited.token_ids, strict=True)]
    assert found.differs_at == (expected.index(True) if any(expected) else None)
    assert one(model, LONG, sae, edit, 8, compare=False).unedited is None
    plain = found.to_dict()
    assert [row["token_id"] for row in plain["tokens"]] == list(found.token_ids)
    assert plain["unedited"]["text"] == found.unedited.text and len(plain["tokens"][0]["top"]) == 5


def test_tokens_are_told_as_they_come() -> None:
    model, seen = tiny_model("gpt2"), list[NewToken]()
    found = one(model, LONG, None, Scale(MIDDLE, 2.0), 4, on_token=seen.append)
    assert found.unedited is not None
    assert [s.token_id for s in seen] == [*found.token_ids, *found.unedited.token_ids]
    assert [s.edited for s in seen] == [True] * 4 + [False] * 4
    assert [s.probability for s in seen[:4]] == found.probabilities.tolist()


def test_own_coders_and_patches_of_one_vector() -> None:
    model, coder = tiny_model("gemma2"), OwnSAE(MIDDLE, 16)
    trace = run(model, SHORT, record=MIDDLE)
    patch = Patch(MIDDLE, trace.activations[MIDDLE][0, 1], positions=4)
    edits = [Scale(MIDDLE, 3.0, latents=range(6)), patch]
    found = one(model, LONG, coder, edits, 4)
    check_steps(found, distributions(model, found, coder, edits))


def test_a_number_in_an_id_is_a_latent_where_an_sae_is() -> None:
    model = tiny_model("gpt2")
    sae = tiny_sae("topk", Z, 16)
    edit = Set(f"{Z}/2@8", 5.0)
    for saes, same in (
        (sae, Set(Z, 5.0, latents=2, positions=8)),
        (None, Set(Z, 5.0, units=2, positions=8)),
    ):
        found = one(model, LONG, saes, edit, 4, stop=())
        expected = one(model, LONG, saes, same, 4, stop=())
        assert torch.equal(found.probabilities, expected.probabilities)
        check_steps(found, distributions(model, found, saes, edit))
        assert found.unedited is not None
        assert not torch.allclose(found.probabilities, found.unedited.probabilities)


def test_nothing_of_the_model_is_changed() -> None:
    language_model = tiny_language_model("gemma3")
    model = Model(language_model)
    before = (language_model.config._attn_implementation, language_model.config.use_cache)
    logits = language_model(torch.tensor([LONG])).logits
    generate(model, LONG, None, Scale(MIDDLE, 2.0), 4)
    with pytest.raises(SiteError):
        generate(model, LONG, None, Scale(MIDDLE, 2.0, latents=0), 4)
    assert (language_model.config._attn_implementation, language_model.config.use_cache) == before
    assert not language_model._forward_pre_hooks
    assert torch.equal(language_model(torch.tensor([LONG])).logits, logits)


def test_rotations_that_depend_on_the_length_are_run_again() -> None:
    language_model = tiny_language_model("llama")
    model = Model(language_model)
    assert steps.can_continue(model, {}, Plan())
    language_model.model.rotary_emb.rope_type = "dynamic"
    assert not steps.can_continue(model, {}, Plan())


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (
            {"n_tokens": 26},
            PromptError,
            "7 tokens, and with 26 new .* context of 32.* most 25",
        ),
        ({"n_tokens": 0}, GossamerError, "n_tokens is a whole number from 1 on, got 0"),
        ({"prompt": []}, PromptError, "No prompt"),
        ({"prompt": [[]]}, PromptError, "empty"),
        ({"prompt": "text"}, PromptError, "without a tokenizer"),
        ({"temperature": -1.0}, GossamerError, "temperature is 0"),
        ({"temperature": float("nan")}, GossamerError, "temperature is 0"),
        ({"top_k": 0}, GossamerError, "top_k is a whole number"),
        ({"top_p": 1.5}, GossamerError, "top_p is above 0"),
        ({"seed": -1}, GossamerError, "seed is a whole number"),
        ({"seed": [1, 2]}, GossamerError, "seed is a whole number"),
        ({"stop": ""}, PromptError, "stop takes"),
        ({"stop": 37}, PromptError, "not in the vocabulary"),
        ({"edits": Scale("blocks.1.hook_mpl_out", 2.0)}, SiteError, "hook_mlp_out"),
        ({"edits": Scale("blocks.7.hook_mlp_out", 2.0)}, SiteError, "blocks 0..2"),
        ({"edits": Scale(END, 2.0, latents=1)}, SiteError, f"no SAE is spliced.*write {MIDDLE}"),
        ({"edits": Scale(MIDDLE, 2.0, latents=20)}, SiteError, "20 is not a latent"),
        ({"edits": Scale(MIDDLE, 2.0, latents=20, positions=8)}, SiteError, "20 is not a latent"),
        ({"edits": Scale(MIDDLE, 2.0, prompts=1)}, SiteError, "1 is not a prompt"),
        ({"edits": Scale(MIDDLE, 2.0, positions=10)}, PromptError, r"10 never comes.*0\.\.9 are"),
        ({"edits": Scale(MIDDLE, 2.0, positions=-8)}, PromptError, "-8 never comes"),
        ({"edits": Set(MIDDLE, torch.zeros(7, 16))}, ShapeError, r"\(7, 16\), one for each"),
        ({"edits": Set(MIDDLE, torch.zeros(15))}, ShapeError, "does not broadcast"),
        ({"edits": Set("blocks.0.attn.hook_pattern", torch.ones(7))}, ShapeError, "a text grows"),
        ({"edits": Ablate(PATTERN, keys=10)}, PromptError, r"Position 10 never comes.*0\.\.9 are"),
        ({"edits": Ablate(f"{Z}/1@8<-9")}, PromptError, "Key 9 lies after query 8 when .* 10 tok"),
        ({"edits": Ablate(PATTERN, positions=8, keys=-1)}, PromptError, "Key 9 lies after query 8"),
        (
            {"edits": Ablate(PATTERN, positions=3, keys=-1), "n_tokens": 1},
            PromptError,
            "Key 6 lies",
        ),
        ({"edits": Ablate(POST, units=64)}, SiteError, "64 is not a neuron"),
        ({"edits": Ablate(f"{Z}/4@9")}, SiteError, "4 is not a head"),
        ({"edits": Ablate(f"{Z}/4@9<-1")}, SiteError, "4 is not a head"),
        ({"edits": Ablate(END, part="error")}, SiteError, "names the error at .*no SAE is spliced"),
        (
            {"edits": Ablate(MIDDLE, part="error"), "error": "dropped"},
            SiteError,
            "leaves errors out",
        ),
        ({"edits": Ablate(END, along=torch.ones(3))}, ShapeError, "along has width 3"),
        (
            {"edits": Set(END, torch.ones(7, 1), along=VECTOR)},
            ShapeError,
            r"\(7, 1\), one for each",
        ),
        ({"edits": Set(Z, torch.ones(7, 4, 4), units=1)}, ShapeError, "a text grows"),
        ({"edits": Set(PATTERN, torch.ones(7), keys=1)}, ShapeError, "a text grows"),
        ({"edits": Set(MIDDLE, torch.ones(7, 16), part="error")}, ShapeError, "a text grows"),
        (
            {"edits": Patch(MIDDLE, torch.ones(1, 1, 16), positions=3, from_positions=0)},
            ShapeError,
            "a text grows",
        ),
        ({"edits": Scale(MIDDLE, float("inf"))}, GossamerError, "no finite probabilities"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments: dict[str, Any], kind: Any, said: str) -> None:
    options: Any = {"prompt": LONG, "saes": tiny_sae("topk", MIDDLE, 16), "n_tokens": 4}
    with pytest.raises(kind, match=said):
        generate(tiny_model("gpt2"), **(options | arguments))


def test_a_trace_is_no_source_for_a_growing_text() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    trace = run(model, LONG, sae, record=MIDDLE)
    heads = run(model, LONG[:1], sae, record=[Z, POST])
    for edit in (
        Patch(MIDDLE, trace),
        Patch(MIDDLE, trace, latents=[1]),
        Patch(MIDDLE, trace, part="error"),
        Patch(MIDDLE, trace, along=VECTOR),
        Patch(Z, heads, units=1),
        Patch(f"{POST}/1@9", heads),
    ):
        with pytest.raises(ShapeError, match="Give one value for all tokens"):
            generate(model, LONG, sae, edit, 4)
    with pytest.raises(SiteError, match="has no activations at blocks.2"):
        generate(model, LONG, sae, Patch(END, trace), 4)
    slice_edit: Any = Scale(MIDDLE, 2.0)
    object.__setattr__(slice_edit, "positions", slice(0, 3))
    with pytest.raises(PromptError, match="range"):
        generate(model, LONG, None, slice_edit, 4)
