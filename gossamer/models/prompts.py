"""From what a user gives as a prompt to padded token ids: texts, chat messages, token ids.

text       → the tokenizer's ids, with the family's beginning-of-sequence token before them
messages   → the tokenizer's own chat template, verbatim
token ids  → verbatim; no tokenizer is needed then
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gossamer.errors import PromptError

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]] | Int[Tensor, " pos"]
"""One prompt: a text, token ids, or chat messages ({"role": …, "content": …})."""


class TokenBatch(NamedTuple):
    """Prompts side by side, padded to one length."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids; 0 where padded."""

    mask: Bool[Tensor, "batch pos"]
    """True at real tokens."""

    @property
    def lengths(self) -> list[int]:
        """Number of real tokens of each prompt."""
        return self.mask.sum(-1).tolist()

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each token in its own prompt, from 0; 0 at left padding."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)


def as_prompts(prompts: Any) -> list[Prompt]:
    """One or many prompts as a list. A list of integers, and a list of messages, is one prompt."""
    members = list(prompts) if are_many(prompts) else [prompts]
    if not members:
        raise PromptError("No prompt was given. Give a text, token ids, or a list of them.")
    for member in members:
        _check_kind(member)
    return members


def are_many(prompts: Any) -> bool:
    """Whether `prompts` is a list of prompts rather than one."""
    if isinstance(prompts, Tensor):
        return prompts.ndim > 1
    if not isinstance(prompts, Sequence) or isinstance(prompts, str | bytes):
        return False
    return len(prompts) == 0 or not isinstance(prompts[0], int | Mapping)


def _check_kind(prompt: Any) -> None:
    """Refuse what is neither a text nor token ids nor messages."""
    if isinstance(prompt, str):
        return
    if isinstance(prompt, Tensor):
        allowed = prompt.ndim == 1 and prompt.dtype in (torch.int32, torch.int64)
    else:
        is_list = isinstance(prompt, Sequence) and not isinstance(prompt, bytes)
        allowed = is_list and (
            all(isinstance(token, int) and not isinstance(token, bool) for token in prompt)
            or all(isinstance(message, Mapping) for message in prompt)
        )
    if not allowed:
        raise PromptError(
            f"A prompt is a text, a list or tensor of token ids, or a list of chat messages, got "
            f"{str(prompt)[:40]!r} of type {type(prompt).__name__}. Give one of these, or a list "
            "of them."
        )


def pad(sequences: Sequence[Sequence[int]], *, side: str = "right") -> TokenBatch:
    """Token ids of several prompts as one batch, padded on the right (default) or the left."""
    width = max(len(sequence) for sequence in sequences)
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start = 0 if side == "right" else width - len(sequence)
        tokens[row, start : start + len(sequence)] = torch.as_tensor(sequence)
        mask[row, start : start + len(sequence)] = True
    return TokenBatch(tokens, mask)


def tokenize(tokenizer: Any, prompt: Prompt, bos: int | None) -> list[int]:
    """Token ids of one prompt. `bos` is put before a text that does not begin with it already."""
    _check_kind(prompt)
    if isinstance(prompt, Tensor):
        return prompt.tolist()
    if isinstance(prompt, str):
        ids = _needed(tokenizer, prompt).encode(prompt, add_special_tokens=False)
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
    if prompt and isinstance(prompt[0], Mapping):
        template = _needed(tokenizer, prompt).apply_chat_template
        try:
            rendered = template(list(prompt), tokenize=False, add_generation_prompt=True)
        except ValueError as problem:
            reason = str(problem).split(". ", 1)[0]
            raise PromptError(
                f"The tokenizer cannot render chat messages ({reason}); give a text instead."
            ) from problem
        return tokenizer.encode(rendered, add_special_tokens=False)
    return [int(token) for token in prompt if not isinstance(token, Mapping)]


def check_prompt(ids: Sequence[int], context_length: int, d_vocab: int) -> None:
    """Refuse an empty prompt, one longer than the context, and ids outside the vocabulary."""
    if not ids:
        raise PromptError("The prompt is empty. Give at least one token.")
    if len(ids) > context_length:
        raise PromptError(
            f"The prompt has {len(ids)} tokens, the model's context holds {context_length}. "
            f"Shorten it by {len(ids) - context_length}."
        )
    outside = [token for token in ids if not 0 <= token < d_vocab]
    if outside:
        raise PromptError(f"Token id {outside[0]} is not in the vocabulary 0..{d_vocab - 1}.")


def single_token(tokenizer: Any, token: str | int, d_vocab: int) -> int:
    """The id of a string that is exactly one token; the error shows its pieces otherwise."""
    if isinstance(token, int):
        check_prompt([token], 1, d_vocab)
        return token
    ids = _needed(tokenizer, token).encode(token, add_special_tokens=False)
    if len(ids) != 1:
        pieces = " + ".join(repr(tokenizer.decode([i])) for i in ids) or "nothing"
        raise PromptError(
            f"{token!r} is not one token but {len(ids)}: {pieces}. "
            "Give one of its pieces, mind the leading space, or give a token id."
        )
    return ids[0]


def bos_token(tokenizer: Any, policy: str, prepend: bool | None) -> int | None:
    """The id to put before a text, or None. `prepend` overrides the family's policy."""
    if prepend is False or (prepend is None and policy == "none") or tokenizer is None:
        return None
    if prepend is None and policy == "tokenizer":
        ids = tokenizer.encode("a", add_special_tokens=True)
        return ids[0] if ids[0] == tokenizer.bos_token_id else None
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise PromptError(
            "prepend_bos=True, but the tokenizer has no beginning-of-sequence token. "
            "Put the token you want into the token ids."
        )
    return bos


def _needed(tokenizer: Any, prompt: Any) -> Any:
    if tokenizer is None:
        raise PromptError(
            f"The prompt {str(prompt)[:40]!r} is text, and this model was loaded without a "
            "tokenizer. Give token ids, or load the model with tokenizer=."
        )
    return tokenizer
