"""Documents packed into blocks of one length: what one row of a batch of a corpus is.

Texts become one stream of tokens, the BOS token before each document; a block is the BOS token and
the next `context` − 1 tokens of the stream. Models without BOS get the stream as it is. Token ids
are taken verbatim, a document never sharing its block with another.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from gossamer.corpus.documents import Corpus, Document
from gossamer.errors import GossamerError
from gossamer.models.model import Model

CONTEXT = 256
"""Tokens of a block when nothing else is said and the model takes as many."""

READ_TOKENS = 65_536
"""Token ids that are read, checked and cut at once, about."""


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """One packed sequence."""

    tokens: Int64[Tensor, " pos"]
    """Token ids."""

    starts: Bool[Tensor, " pos"]
    """True where a document begins, at its BOS token if it has one."""

    special: Bool[Tensor, " pos"]
    """True at BOS tokens, and at the padding that ends a document of token ids: left out of
    training rows and metrics."""


def blocks(
    corpus: Corpus, model: Model, *, context: int | None = None, prepend_bos: bool | None = None
) -> Iterator[TokenBlock]:
    """The corpus in blocks of `context` tokens (None: the model's, at most 256); the last of the
    stream, or of a document of token ids, may be shorter."""
    return _packed(corpus, model, chosen_context(model, context), prepend_bos)


def chosen_context(model: Model, context: int | None) -> int:
    """How many tokens a block has. GossamerError when the model does not take as many."""
    longest = model.context_length
    context = min(CONTEXT, longest) if context is None else context
    if not 2 <= context <= longest:
        raise GossamerError(
            f"context is how many tokens a block has, 2 to {longest} for {model.name}, "
            f"got {context}."
        )
    return context


def _packed(
    corpus: Corpus, model: Model, context: int, prepend_bos: bool | None
) -> Iterator[TokenBlock]:
    bos: int | None = None
    stream: list[int] = []
    begins: list[bool] = []
    for document in corpus.documents():
        if not isinstance(document, str):
            yield from _verbatim(document, context, model)
            continue
        ids = model.tokenize(document, prepend_bos=False)
        bos = _bos(model, document, ids, prepend_bos) if bos is None else bos
        new = ids if bos is None else [bos, *ids]
        stream, begins = stream + new, begins + [True, *[False] * len(ids)][: len(new)]
        done = 0
        while len(stream) - done >= context:
            stop = done + (context if bos in (None, stream[done]) else context - 1)
            yield _block(stream[done:stop], begins[done:stop], bos)
            done = stop
        stream, begins = stream[done:], begins[done:]
    if stream:
        yield _block(stream, begins, bos)


def puts_bos(corpus: Corpus, model: Model, prepend_bos: bool | None) -> bool | None:
    """Whether `blocks` puts a BOS token before texts; None for token ids, which are as given."""
    is_text = corpus.is_text
    if is_text is None:
        is_text = isinstance(next(iter(corpus.documents()), None), str)
    if not is_text:
        return None
    return _bos(model, "a", model.tokenize("a", prepend_bos=False), prepend_bos) is not None


def _bos(model: Model, text: str, ids: list[int], prepend_bos: bool | None) -> int | None:
    """The token put before a text, if there is one."""
    whole = model.tokenize(text, prepend_bos)
    return whole[0] if len(whole) == len(ids) + 1 else None


def _block(tokens: list[int], starts: list[bool], bos: int | None) -> TokenBlock:
    if bos is not None and tokens[0] != bos:
        tokens, starts = [bos, *tokens], [False, *starts]
    ids = torch.tensor(tokens)
    special = torch.zeros(len(ids), dtype=torch.bool) if bos is None else ids == bos
    return TokenBlock(ids, torch.tensor(starts), special)


def _verbatim(document: Document, context: int, model: Model) -> Iterator[TokenBlock]:
    """Token ids in pieces, nothing added. Special is what the tokenizer calls BOS, and the run of
    its padding token, where that is another, at the end."""
    ids = np.asarray(document)
    if len(ids) and ids.dtype.kind not in "iu":
        raise GossamerError(f"Token ids are integers, got a document of {ids.dtype}.")
    bos = getattr(model.tokenizer, "bos_token_id", None)
    pad = getattr(model.tokenizer, "pad_token_id", None)
    length = len(ids) if pad is None or pad == bos else _without_end(ids, pad)
    step = max(1, READ_TOKENS // context) * context
    for first in range(0, len(ids), step):
        tokens = torch.from_numpy(_checked(ids[first : first + step], model))
        special = torch.arange(first, first + len(tokens)) >= length
        special = special if bos is None else special | (tokens == bos)
        starts = torch.zeros(len(tokens), dtype=torch.bool)
        starts[0] = first == 0
        parts = (values.split(context) for values in (tokens, starts, special))
        yield from map(TokenBlock, *parts)


def _checked(ids: np.ndarray, model: Model) -> np.ndarray:
    """A piece as int64. GossamerError when a token is none of the model's."""
    worst = next((int(ids[at]) for at in (ids.argmin(), ids.argmax())
                  if not 0 <= int(ids[at]) < model.d_vocab), None)  # fmt: skip
    if worst is not None:
        raise GossamerError(
            f"Token id {worst} is not among the {model.d_vocab} tokens of {model.name}."
        )
    return ids.astype(np.int64)


def _without_end(ids: np.ndarray, pad: int) -> int:
    """The length without the run of `pad` at the end."""
    for stop in range(len(ids), 0, -READ_TOKENS):
        first = max(0, stop - READ_TOKENS)
        others = np.flatnonzero(ids[first:stop] != pad)
        if len(others):
            return first + int(others[-1]) + 1
    return 0
