"""`dashboard`: what chosen latents of an SAE do over a corpus, from one pass."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.rows import counted, in_groups, padded
from gossamer.corpus import TokenBlock, as_corpus, blocks, chosen_context
from gossamer.dashboards.board import Dashboard, TriedText
from gossamer.dashboards.examples import Examples, choose, windows
from gossamer.dashboards.pairs import Gathered, Pairs
from gossamer.dashboards.together import Together, why_not
from gossamer.errors import GossamerError
from gossamer.evaluation.evaluate import check_texts
from gossamer.evaluation.weights import decoder_neighbours, logit_extremes
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import remember
from gossamer.saes.labels import Labels
from gossamer.saes.sae import SAE
from gossamer.splice import check_saes, chosen_bos, flat, run

BATCH_TOKENS = 4096
"""Tokens that run at once, about."""

ENCODE_ROWS = 1024
"""Tokens whose dense latents are in memory at once."""

N_BINS = 40
"""Bars of the histogram of activations, from 0 to the largest."""

N_LOGITS = 10
"""Tokens at either end of the logit effects."""

N_NEAR = 8
"""Latents that are called near."""

N_WORDS = 4
"""Top tokens of a label."""

MIN_SHARE = 0.1
"""A top token has at least this part of the largest share of Σ activation²."""

TOGETHER_ROWS = 256
"""Rows of the table of latents that fire together that are compared at once."""


def dashboard(  # noqa: PLR0913  the public face; everything by name
    model: Model,
    sae: SAE,
    corpus: Any = "stdlib",
    *,
    latents: Iterable[int] | None = None,
    n_tokens: int = 262_144,
    context: int | None = None,
    batch: int | None = None,
    n_top: int = 16,
    n_quantiles: int = 5,
    n_each: int = 3,
    before: int = 16,
    after: int = 8,
    texts: Sequence[str] = (),
    prepend_bos: bool | None = None,
    progress: bool = False,
) -> Dashboard:
    """Gather what latents do over a corpus, in one pass; BOS tokens and padding count for nothing.

    Args:
        model: what the SAE belongs to; it runs no further than the site that is read.
        sae: an SAE or transcoder.
        corpus: whatever `as_corpus` takes; "stdlib" is its training part, of which there is most.
        latents: which; None: all.
        n_tokens: tokens that are looked at, or as many as the corpus has.
        context: tokens of a block; None: the model's context, at most 256.
        batch: blocks that run at once; None: about 4,096 tokens.
        n_top: strongest examples of each latent, no two from one block.
        n_quantiles: equal parts of each latent's activations, by size.
        n_each: examples that are drawn from each part.
        before: tokens that are shown before the one that was chosen.
        after: tokens that are shown after it.
        texts: texts of your own on which to try the latents.
        prepend_bos: overrides what the SAE's file and the family say.
        progress: show a bar on standard error.
    """
    if not isinstance(sae, SAE):
        raise GossamerError(
            f"A dashboard is of one SAE, got {type(sae).__name__}; load_sae gives one."
        )
    check_saes(model, {sae.site_out: sae})
    watched = _watched(sae, latents)
    context = chosen_context(model, context)
    source = as_corpus(corpus)
    bos = chosen_bos(prepend_bos, [sae], [""])
    check_texts(model, texts, bos)
    if not n_tokens >= 1:  # nan too
        raise GossamerError(f"A dashboard looks at 1 token at least, got n_tokens={n_tokens}.")
    packed = _first(blocks(source, model, context=context, prepend_bos=bos), n_tokens)
    size = max(1, BATCH_TOKENS // context) if batch is None else batch
    missing = why_not(len(watched), sae.d_sae)
    rank = torch.full((sae.d_sae,), -1)
    rank[watched] = torch.arange(len(watched))
    gathered = Gathered(
        context,
        torch.zeros(len(watched), dtype=torch.long),
        torch.zeros(len(watched)),
        rank,
        Together(watched, sae.d_sae) if missing is None else None,
        torch.zeros(sae.d_sae, dtype=torch.long),
        [],
    )
    corpus_tokens: list[Tensor] = []
    n_seen = 0
    for group in tqdm(in_groups(packed, size), desc="latents", disable=not progress):
        n_seen += _gather(model, sae, group, gathered=gathered, corpus_tokens=corpus_tokens)
    if n_seen == 0:
        raise GossamerError(
            f"The corpus {source.name} has no tokens that count; give a longer one."
        )
    pairs = gathered.pairs()
    shown = choose(gathered, pairs, n_top=n_top, n_quantiles=n_quantiles, n_each=n_each)
    examples = windows(pairs, shown, torch.cat(corpus_tokens), before=before, after=after)
    words = _words(gathered, len(watched), model.d_vocab)
    logits = logit_extremes(model, sae, watched, min(N_LOGITS, model.d_vocab))
    tried = tuple(_tried(model, sae, watched, text, bos=bos) for text in texts)
    about = {
        "model": model.name,
        "corpus": source.name,
        "n_tokens": n_seen,
        "context": context,
        "before": before,
        "d_sae": sae.d_sae,
        "no_together": missing,
        "neuronpedia_id": sae.metadata.get("neuronpedia_id"),
    }
    return Dashboard(
        site_in=sae.site_in,
        site_out=sae.site_out,
        about=about,
        latents=watched,
        firings=gathered.firings,
        maxima=gathered.maxima,
        histogram=_histogram(gathered, pairs),
        sampled=gathered.sampled,
        examples=examples,
        top_tokens=words,
        near=decoder_neighbours(sae, watched, N_NEAR),
        together=_together(gathered, watched),
        logits=logits,
        tokens=_texts(model, examples, words, logits),
        texts=tried,
        names=tuple(_name(model, sae, *row) for row in zip(watched.tolist(), words, strict=True)),
    )


def _watched(sae: SAE, latents: Iterable[int] | None) -> Int64[Tensor, " n_latents"]:
    chosen = list(range(sae.d_sae)) if latents is None else [int(i) for i in latents]
    wrong = [i for i in chosen if not 0 <= i < sae.d_sae]
    if not chosen or wrong or len(set(chosen)) < len(chosen):
        got = f"{wrong[0]}" if wrong else "none" if not chosen else "one twice"
        raise GossamerError(f"Latents are different numbers from 0 to {sae.d_sae - 1}, got {got}.")
    return torch.tensor(chosen)


def _first(packed: Iterable[TokenBlock], n_tokens: int) -> Iterable[TokenBlock]:
    """Blocks up to so many tokens that count."""
    for block in packed:
        if n_tokens <= 0:
            return
        yield block
        n_tokens -= int((~block.special).sum())


@torch.no_grad()
def _gather(
    model: Model,
    sae: SAE,
    group: Sequence[TokenBlock],
    *,
    gathered: Gathered,
    corpus_tokens: list[Tensor],
) -> int:
    """Run some blocks; returns how many tokens counted."""
    ids, mask = padded(group)
    seen: dict[str, Tensor] = {}
    tokens = TokenBatch(ids.to(model.device), mask.to(model.device))
    model.forward(tokens, {sae.site_in: remember(seen, sae.site_in)}, to_the_end=False)
    chosen = counted(group, exclude_special=True)
    width, done = ids.shape[1], sum(len(part) for part in corpus_tokens)
    rows, columns = chosen.nonzero(as_tuple=True)
    places = (rows + done) * gathered.context + columns
    x = flat(seen[sae.site_in])[chosen.to(model.device)]
    for first in range(0, len(x), ENCODE_ROWS):
        piece = slice(first, first + ENCODE_ROWS)
        pairs = gathered.add(sae.encode_sparse(x[piece]), places[piece])
        block, position = pairs.places // gathered.context - done, pairs.places % gathered.context
        gathered.add_words(pairs, ids[block, position], model.d_vocab)
    kept = torch.full((len(ids), gathered.context), -1)
    kept[:, :width] = torch.where(mask, ids, -1)
    corpus_tokens.append(kept)
    return len(x)


def _histogram(gathered: Gathered, pairs: Pairs) -> Int64[Tensor, "n_latents bins"]:
    pairs = pairs.chosen(gathered.in_sample(pairs))
    share = pairs.values / gathered.maxima[pairs.latents].clamp(min=1e-30)
    bins = (share * N_BINS).long().clamp(0, N_BINS - 1)
    n = len(gathered.firings)
    return torch.bincount(pairs.latents * N_BINS + bins, minlength=n * N_BINS).reshape(n, N_BINS)


def _words(gathered: Gathered, n: int, d_vocab: int) -> tuple[tuple[int, ...], ...]:
    """The top tokens of each latent."""
    found: list[list[int]] = [[] for _ in range(n)]
    keys, shares = gathered.words()
    order = shares.argsort(descending=True, stable=True)
    largest = [0.0] * n
    order = order[(keys[order] // d_vocab).argsort(stable=True)]
    ordered = zip((keys[order] // d_vocab).tolist(), (keys[order] % d_vocab).tolist(),
                  shares[order].tolist(), strict=True)  # fmt: skip
    for latent, token, share in ordered:
        largest[latent] = largest[latent] or share
        if len(found[latent]) < N_WORDS and share >= MIN_SHARE * largest[latent]:
            found[latent].append(token)
    return tuple(map(tuple, found))


def _together(gathered: Gathered, watched: Tensor) -> tuple[Tensor, Tensor] | None:
    if gathered.together is None:
        return None
    counts, found = gathered.together.counts, []
    for rows in torch.arange(len(watched)).split(TOGETHER_ROWS):
        both = counts[rows].double()
        either = gathered.firings[rows, None] + gathered.all_firings[None, :] - both
        share = (both / either.clamp(min=1)).scatter(1, watched[rows, None], -1.0)
        found.append(share.topk(min(N_NEAR, share.shape[1]), dim=1))
    shares = torch.cat([top.values for top in found]).clamp(min=0).float()
    return shares, torch.cat([top.indices for top in found])


def _texts(model: Model, examples: Examples, words: Any, logits: Any) -> dict[int, str]:
    """All tokens that are named, as text."""
    parts = [examples.tokens.flatten(), torch.tensor([t for row in words for t in row]).long()]
    parts += [] if logits is None else [logits[1].flatten(), logits[3].flatten()]
    ids = torch.cat(parts).unique().tolist()
    return {token: model.token_strings([token])[0] for token in ids if token >= 0}


def _name(model: Model, sae: SAE, latent: int, tokens: tuple[int, ...]) -> str:
    if sae.labels is not None:
        return sae.labels[latent]
    texts = tuple(model.token_strings([token])[0] for token in tokens)
    return Labels((texts,))[0]


@torch.no_grad()
def _tried(model: Model, sae: SAE, watched: Tensor, text: str, *, bos: bool | None) -> TriedText:
    trace = run(model, text, record=sae.site_in, logits=False, prepend_bos=bos)
    latents = sae.encode(trace.activations[sae.site_in].flatten(2))[0]
    strings = model.token_strings(trace.tokens[0].tolist())
    return TriedText(
        tokens=tuple(strings), activations=latents[:, watched.to(latents.device)].T.cpu()
    )
