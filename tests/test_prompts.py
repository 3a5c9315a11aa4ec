"""From text, chat and ids to padded tokens: BOS by family, what is verbatim, and what is refused.

The tokenizers are real ones, built here from a handful of tokens; what is expected is written out.
"""

import functools
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gossamer.errors import GossamerError, PromptError
from gossamer.library import load_model
from gossamer.models.model import Model
from gossamer.models.prompts import as_prompts, bos_token, pad, single_token, tokenize
from gossamer.splice import chosen_bos, run
from tests.tiny_models import CONFIGS, tiny_language_model
from tests.tiny_saes import tiny_sae

PIECES = ["a", "b", "c", "t", "Ġ", "at", "cat", "Ġcat", "Ġa"]
SPECIAL = ["<|endoftext|>", "<user>", "<model>", "<end>"]
ID = {piece: i for i, piece in enumerate(PIECES + SPECIAL)}
MERGES = [("a", "t"), ("c", "at"), ("Ġ", "cat"), ("Ġ", "a")]
EOT = ID["<|endoftext|>"]
CHAT = [{"role": "user", "content": "a cat"}]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


def tiny_tokenizer(*, adds_bos: bool = False, **special: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few letters; with `adds_bos` it puts BOS first itself, like Llama's."""
    core = Tokenizer(models.BPE(vocab={p: ID[p] for p in PIECES}, merges=MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOT)]
        )
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"} | special
    return PreTrainedTokenizerFast(
        tokenizer_object=core, chat_template=TEMPLATE, clean_up_tokenization_spaces=False, **special
    )


@functools.cache
def language_model(family: str) -> transformers.PreTrainedModel:
    return tiny_language_model(family)


def with_tokenizer(family: str = "gpt2", **options: Any) -> Model:
    return Model(language_model(family), tiny_tokenizer(**options))


PLAIN = [ID["cat"], ID["Ġa"]]  # "cat a"


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_each_family_has_its_own_rule_for_bos(family: str, adds_bos: bool) -> None:
    model = with_tokenizer(family, adds_bos=adds_bos)
    if family.startswith(("gpt2", "gpt_neox")):
        expected = [EOT, *PLAIN]
    elif family.startswith("qwen"):
        expected = PLAIN
    else:  # what the tokenizer says
        expected = [EOT, *PLAIN] if adds_bos else PLAIN
    assert model.tokenize("cat a") == expected
    assert model.tokenize("cat a", prepend_bos=True) == [EOT, *PLAIN]
    assert model.tokenize("cat a", prepend_bos=False) == PLAIN
    assert model.batch("cat a").tokens.tolist() == [expected]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_bos_is_never_doubled_and_ids_are_verbatim(family: str) -> None:
    model = with_tokenizer(family, adds_bos=True)
    assert model.tokenize("<|endoftext|>cat a", prepend_bos=True) == [EOT, *PLAIN]
    for prepend in (None, True, False):
        assert model.tokenize([5, 2, 2], prepend_bos=prepend) == [5, 2, 2]
        assert model.tokenize(torch.tensor([5, 2, 2]), prepend_bos=prepend) == [5, 2, 2]


def test_ids_need_nothing_of_a_tokenizer() -> None:
    silent = Model(language_model("gpt2"))
    assert silent.tokenize([5, 2, 2]) == [5, 2, 2]
    without_bos = with_tokenizer("gpt2", bos_token=None, eos_token=None)
    assert without_bos.tokenize([5, 2, 2]) == [5, 2, 2]
    assert without_bos.tokenize("cat a", prepend_bos=False) == PLAIN


def test_eos_stands_in_where_there_is_no_bos() -> None:
    assert with_tokenizer("gpt2", bos_token=None).tokenize("cat a") == [EOT, *PLAIN]
    with pytest.raises(PromptError, match="no beginning-of-sequence token"):
        bos_token(tiny_tokenizer(bos_token=None, eos_token=None), "none", True)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen3"])
def test_chat_goes_through_the_tokenizers_own_template(family: str) -> None:
    model = with_tokenizer(family, adds_bos=True)
    expected = [EOT, ID["<user>"], ID["a"], ID["Ġcat"], ID["<end>"], ID["<model>"]]
    assert model.tokenize(CHAT) == expected  # one BOS, the template's
    assert model.batch(CHAT).tokens.tolist() == [expected]
    assert model.batch([CHAT, [1, 2]]).lengths == [6, 2]
    logits = run(model, CHAT).logits
    assert logits is not None and logits.shape == (1, 6, model.d_vocab)


def test_strings_of_tokens() -> None:
    model = with_tokenizer()
    assert model.token_strings("cat a") == ["<|endoftext|>", "cat", " a"]
    assert model.token_strings([ID["Ġcat"], ID["b"]]) == [" cat", "b"]
    assert len(Model(language_model("gpt2")).token_strings([5, 2])) == 2


def test_text_without_a_tokenizer_says_so() -> None:
    model = Model(language_model("gpt2"))
    for prompt in ("cat a", CHAT, ["cat", [1]]):
        with pytest.raises(PromptError, match=r"without a tokenizer.*tokenizer="):
            model.batch(prompt)
    with pytest.raises(PromptError, match="' cat'.*without a tokenizer"):
        model.token_id(" cat")


def test_a_string_that_is_not_one_token_shows_its_pieces() -> None:
    model = with_tokenizer()
    assert model.token_id(" cat") == ID["Ġcat"] and model.token_id("cat") == ID["cat"]
    assert model.token_id(4) == 4
    with pytest.raises(PromptError, match=r"'cat b' is not one token but 3: 'cat' \+ ' ' \+ 'b'"):
        model.token_id("cat b")
    with pytest.raises(PromptError, match="'' is not one token"):
        model.token_id("")
    with pytest.raises(PromptError, match="Token id 99 .*0..36"):
        model.token_id(99)
    with pytest.raises(PromptError, match="Token id -1 .*0..36"):
        single_token(model.tokenizer, -1, model.d_vocab)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "No prompt was given"),
        ([[]], "The prompt is empty"),
        ([[1, 2], []], "The prompt is empty"),
        (torch.zeros(0, dtype=torch.long), "The prompt is empty"),
        ([1] * 33, r"33 tokens.*holds 32.*Shorten it by 1"),
        ([[1], [2] * 40], r"40 tokens.*holds 32.*by 8"),
        ([1, 37], r"Token id 37 .*0\.\.36"),
        ([1, -1], r"Token id -1 .*0\.\.36"),
    ],
)
def test_prompts_the_model_cannot_take(prompt: Any, message: str) -> None:
    model = Model(language_model("gpt2"))
    with pytest.raises(PromptError, match=message):
        run(model, prompt)


def test_an_empty_text_is_refused_where_nothing_is_put_before_it() -> None:
    with pytest.raises(PromptError, match="empty"):
        run(with_tokenizer("qwen3"), "")


def test_the_longest_prompt_runs() -> None:
    logits = run(Model(language_model("gpt2")), [1] * 32).logits
    assert logits is not None and logits.shape[1] == 32


def test_one_prompt_or_many() -> None:
    ids, tensor = [1, 2, 3], torch.tensor([1, 2, 3])
    assert as_prompts("cat") == ["cat"] and as_prompts(ids) == [ids] and as_prompts(CHAT) == [CHAT]
    assert as_prompts((1, 2)) in ([[1, 2]], [(1, 2)])
    assert as_prompts(["cat", ids, CHAT]) == ["cat", ids, CHAT]
    assert torch.equal(as_prompts(tensor)[0], tensor)
    assert [row.tolist() for row in as_prompts(torch.stack([tensor, tensor]))] == [ids, ids]
    model = Model(language_model("gpt2"))
    assert run(model, ids).tokens.shape == (1, 3)  # the batch axis is always there
    assert run(model, [ids, [4]]).lengths == [3, 1]


@pytest.mark.parametrize(
    "prompt",
    [
        *([0.5, 1.0], [[0.5, 1.0]], torch.tensor([0.5, 1.0]), [None], 7, [True, False], [1, "cat"]),
        *(b"cat", {"role": "user", "content": "cat"}, torch.ones(1, 2, 2, dtype=torch.long)),
    ],
)
def test_what_is_neither_text_nor_ids_is_refused_in_words(prompt: Any) -> None:
    with pytest.raises(PromptError, match="A prompt is a text.*got"):
        run(Model(language_model("gpt2")), prompt)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_each_prompts_own_positions(side: str) -> None:
    batch = pad([[5, 6, 7], [8]], side=side)
    rows = {"right": [[5, 6, 7], [8, 0, 0]], "left": [[5, 6, 7], [0, 0, 8]]}
    assert batch.tokens.tolist() == rows[side]
    assert batch.mask.tolist() == [[True] * 3, [token != 0 for token in rows[side][1]]]
    assert batch.lengths == [3, 1]
    for row in range(2):
        assert batch.positions[row][batch.mask[row]].tolist() == list(range(batch.lengths[row]))


def test_tokenize_is_the_same_without_a_model() -> None:
    assert tokenize(tiny_tokenizer(), "cat a", EOT) == [EOT, *PLAIN]
    assert tokenize(None, [3, 1], EOT) == [3, 1]


SITE = "blocks.1.hook_resid_pre"


def sae_saying(prepend_bos: bool | None, site: str = SITE) -> Any:
    return tiny_sae("topk", site, 16, prepend_bos=prepend_bos)


@pytest.mark.parametrize("says", [True, False])
def test_an_saes_file_decides_on_bos_where_the_call_does_not(says: bool) -> None:
    model = with_tokenizer("gpt2")
    tokens = run(model, "cat a", saes=sae_saying(says)).tokens.tolist()
    assert tokens == [[EOT, *PLAIN] if says else PLAIN]
    assert run(model, "cat a", saes=sae_saying(None)).tokens.tolist() == [[EOT, *PLAIN]]
    assert run(model, "cat a", saes=sae_saying(says), prepend_bos=says).tokens.tolist() == tokens


def test_an_sae_that_says_otherwise_than_the_call_is_an_error() -> None:
    model = with_tokenizer("gpt2")
    with pytest.raises(GossamerError, match=rf"prepend_bos=True.*{SITE}: False"):
        run(model, "cat a", saes=sae_saying(False), prepend_bos=True)
    two = [sae_saying(False), sae_saying(True, "blocks.2.hook_resid_pre")]
    with pytest.raises(
        GossamerError, match="blocks.1.hook_resid_pre: False, blocks.2.hook_resid_pre: True"
    ):
        run(model, "cat a", saes=two)
    assert chosen_bos(None, []) is None


def test_saes_that_disagree_on_bos_can_run_on_ids_as_the_message_says() -> None:
    two = [sae_saying(False), sae_saying(True, "blocks.2.hook_resid_pre")]
    assert run(with_tokenizer("gpt2"), [EOT, 1], saes=two).tokens.tolist() == [[EOT, 1]]


def test_messages_without_a_chat_template_are_refused_in_a_sentence() -> None:
    model = load_model("pico-python")
    with pytest.raises(PromptError, match="cannot render chat messages"):
        model.tokenize([{"role": "user", "content": "x"}])
