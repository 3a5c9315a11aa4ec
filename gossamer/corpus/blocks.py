"""Documents packed into blocks of one length: what one row of a batch of a corpus is.

Texts become one stream of tokens, the BOS token before each document; a block is the BOS token and
the next `context` − 1 tokens of the stream. Models without BOS get the stream as it is. Token ids
are taken verbatim, a document never sharing its block with another.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from gossamer.corpus.documents import Corpus
from gossamer.errors import GossamerError
from gossamer.models.model import Model

CONTEXT = 256
"""Tokens of a block when nothing else is said and the model takes as many."""


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """One packed sequence."""

    tokens: Int64[Tensor, " pos"]
    """Token ids."""

    starts: Bool[Tensor, " pos"]
    """True where a document begins, at its BOS token if it has one."""

    special: Bool[Tensor, " pos"]
    """True at BOS tokens: left out of training rows and metrics."""


def blocks(
    corpus: Corpus, model: Model, *, context: int | None = None, prepend_bos: bool | None = None
) -> Iterator[TokenBlock]:
    """The corpus in blocks of `context` tokens (None: the model's, at most 256); the last of the
    stream, or of a document of token ids, may be shorter."""
    longest = model.context_length
    context = min(CONTEXT, longest) if context is None else context
    if not 2 <= context <= longest:
        raise GossamerError(
            f"context is how many tokens a block has, 2 to {longest} for {model.name}, "
            f"got {context}."
        )
    bos: int | None = None
    stream: list[int] = []
    begins: list[bool] = []
    for document in corpus.documents():
        if not isinstance(document, str):
            yield from _verbatim(list(document), context, model)
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
    first = next(iter(corpus.documents()), None)
    if not isinstance(first, str):
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


def _verbatim(ids: list[int], context: int, model: Model) -> Iterator[TokenBlock]:
    """Token ids in pieces, nothing added; what the tokenizer calls BOS is special."""
    if any(not 0 <= token < model.d_vocab for token in ids):
        worst = next(token for token in ids if not 0 <= token < model.d_vocab)
        raise GossamerError(
            f"Token id {worst} is not among the {model.d_vocab} tokens of {model.name}."
        )
    bos = getattr(model.tokenizer, "bos_token_id", None)
    for start in range(0, len(ids), context):
        piece = torch.tensor(ids[start : start + context])
        starts = torch.zeros(len(piece), dtype=torch.bool)
        starts[0] = start == 0
        special = torch.zeros_like(starts) if bos is None else piece == bos
        yield TokenBlock(piece, starts, special)
