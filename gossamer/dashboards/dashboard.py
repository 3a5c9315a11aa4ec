"""`dashboard`: what chosen latents of an SAE do over a corpus, from one pass."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

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
from gossamer.distributed import check_same, ranks, together
from gossamer.errors import GossamerError
from gossamer.evaluation.evaluate import check_texts
from gossamer.evaluation.weights import decoder_neighbours, logit_extremes
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import remember
from gossamer.saes.crosscoder import Face, encode_read, read_by, sites_read
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
    sae: SAE | Face,
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

    Processes that torchrun started share the batches; every one calls it alike, and gets the same
    dashboard.

    Args:
        model: what the SAE belongs to; it runs no further than the site that is read.
        sae: an SAE or transcoder, or a crosscoder at one of its sites, `crosscoder.faces()[site]`:
            logit effects and neighbours are those of what it writes there.
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
    how = {"n_tokens": n_tokens, "context": context, "prepend_bos": prepend_bos, "texts": texts}
    work = together(partial(_settled, model, sae, corpus, latents, how=how))
    watched, d_sae = work.watched, encoder_of(sae).d_sae
    size = max(1, BATCH_TOKENS // work.context) if batch is None else batch
    missing = why_not(len(watched), d_sae)
    gathered = _nothing(work, d_sae, n_top, counts_together=missing is None)
    done = together(partial(_gather_all, model, sae, work, gathered, size=size, shows=progress))
    check_same(
        (model.name, work.name, size, n_top, watched.tolist(), list(texts), done.digest),
        "dashboard",
    )
    if done.n_tokens == 0:
        raise GossamerError(f"The corpus {work.name} has no tokens that count; give a longer one.")
    gathered.merge()
    pairs = gathered.pairs()
    shown = choose(gathered, pairs, n_top=n_top, n_quantiles=n_quantiles, n_each=n_each)
    examples = windows(pairs, shown, done.ids, before=before, after=after)
    words = _words(gathered, len(watched), model.d_vocab)
    logits = logit_extremes(model, sae, watched, min(N_LOGITS, model.d_vocab))
    tried = tuple(_tried(model, sae, watched, text, bos=work.bos) for text in texts)
    about = {
        "model": model.name,
        "corpus": work.name,
        "n_tokens": done.n_tokens,
        "context": work.context,
        "before": before,
        "d_sae": d_sae,
        "no_together": missing,
        "neuronpedia_id": encoder_of(sae).metadata.get("neuronpedia_id"),
    }
    return Dashboard(
        site_in=encoder_of(sae).site_in,
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


def encoder_of(sae: SAE | Face) -> SAE:
    """What gives the latents: the SAE itself, or that of all sites of a crosscoder."""
    return sae.crosscoder.joint if isinstance(sae, Face) else sae


class _Work(NamedTuple):
    """What is to be done."""

    watched: Int64[Tensor, " n_latents"]
    """Latents."""

    packed: Iterator[TokenBlock]
    """The corpus, as much of it as was asked for."""

    context: int
    """Tokens of a block."""

    bos: bool | None
    """Whether BOS is put before texts."""

    name: str
    """Of the corpus."""


class _Done(NamedTuple):
    """What is known of the corpus after the pass, in every process."""

    n_tokens: int
    """Tokens that count."""

    ids: Int64[Tensor, "blocks context"]
    """All tokens; -1 where a block ends."""

    digest: str
    """Of the tokens."""


def _settled(
    model: Model,
    sae: SAE | Face,
    corpus: Any,
    latents: Iterable[int] | None,
    *,
    how: Mapping[str, Any],
) -> _Work:
    """What can be said before any pass. GossamerError for what cannot be done."""
    if not isinstance(sae, SAE | Face):
        raise GossamerError(
            f"A dashboard is of one SAE, got {type(sae).__name__}; load_sae gives one, and "
            "crosscoder.faces()[site] a crosscoder at one of its sites."
        )
    check_saes(model, {sae.site_out: sae})
    watched = _watched(sae, latents)
    context = chosen_context(model, how["context"])
    source = as_corpus(corpus)
    bos = chosen_bos(how["prepend_bos"], [sae], [""])
    check_texts(model, how["texts"], bos)
    n_tokens = how["n_tokens"]
    if not n_tokens >= 1:  # nan too
        raise GossamerError(f"A dashboard looks at 1 token at least, got n_tokens={n_tokens}.")
    packed = _first(blocks(source, model, context=context, prepend_bos=bos), n_tokens)
    return _Work(watched, packed, context, bos, source.name)


def _nothing(work: _Work, d_sae: int, n_top: int, *, counts_together: bool) -> Gathered:
    n = len(work.watched)
    rank = torch.full((d_sae,), -1)
    rank[work.watched] = torch.arange(n)
    return Gathered(
        work.context,
        torch.zeros(n, dtype=torch.long),
        torch.zeros(n),
        rank,
        Together(work.watched, d_sae) if counts_together else None,
        torch.zeros(d_sae, dtype=torch.long),
        n_top,
        [],
    )


def _gather_all(
    model: Model, sae: SAE | Face, work: _Work, gathered: Gathered, *, size: int, shows: bool
) -> _Done:
    """Run the batches that are this process's; each process cuts the whole corpus."""
    here, digest = ranks(), hashlib.sha256()
    parts: list[Tensor] = []
    n_tokens = n_blocks = 0
    bar = tqdm(in_groups(work.packed, size), desc="latents", disable=not (shows and here.is_first))
    for number, group in enumerate(bar):
        if number % here.size == here.rank:
            _gather(model, sae, group, gathered=gathered, first_block=n_blocks)
        ids, mask = padded(group)
        kept = torch.full((len(ids), work.context), -1)
        kept[:, : ids.shape[1]] = torch.where(mask, ids, -1)
        digest.update(kept.numpy().tobytes())
        parts.append(kept)
        n_blocks += len(group)
        n_tokens += int(counted(group, exclude_special=True).sum())
    ids = torch.cat(parts) if parts else torch.zeros(0, work.context, dtype=torch.long)
    return _Done(n_tokens, ids, digest.hexdigest())


def _watched(sae: SAE | Face, latents: Iterable[int] | None) -> Int64[Tensor, " n_latents"]:
    d_sae = encoder_of(sae).d_sae
    chosen = list(range(d_sae)) if latents is None else [int(i) for i in latents]
    wrong = [i for i in chosen if not 0 <= i < d_sae]
    if not chosen or wrong or len(set(chosen)) < len(chosen):
        got = f"{wrong[0]}" if wrong else "none" if not chosen else "one twice"
        raise GossamerError(f"Latents are different numbers from 0 to {d_sae - 1}, got {got}.")
    return torch.tensor(chosen)


def _first(packed: Iterator[TokenBlock], n_tokens: int) -> Iterator[TokenBlock]:
    """Blocks up to so many tokens that count."""
    for block in packed:
        if n_tokens <= 0:
            return
        yield block
        n_tokens -= int((~block.special).sum())


@torch.no_grad()
def _gather(
    model: Model,
    sae: SAE | Face,
    group: Sequence[TokenBlock],
    *,
    gathered: Gathered,
    first_block: int,
) -> None:
    """Run some blocks, numbered from `first_block` on."""
    ids, mask = padded(group)
    seen: dict[str, Tensor] = {}
    tokens = TokenBatch(ids.to(model.device), mask.to(model.device))
    taps = {site: remember(seen, site) for site in sites_read(sae)}
    model.forward(tokens, taps, to_the_end=False)
    chosen = counted(group, exclude_special=True)
    rows, columns = chosen.nonzero(as_tuple=True)
    places = (rows + first_block) * gathered.context + columns
    x = read_by(sae, lambda site: flat(seen[site])[chosen.to(model.device)])
    for first in range(0, len(x), ENCODE_ROWS):
        piece = slice(first, first + ENCODE_ROWS)
        pairs = gathered.add(encoder_of(sae).encode_sparse(x[piece]), places[piece])
        block = pairs.places // gathered.context - first_block
        gathered.add_words(pairs, ids[block, pairs.places % gathered.context], model.d_vocab)
    gathered.fit()


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
    shares = shares.float()  # so that the order in which they were added up breaks no tie
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


def _name(model: Model, sae: SAE | Face, latent: int, tokens: tuple[int, ...]) -> str:
    if sae.labels is not None:
        return sae.labels[latent]
    texts = tuple(model.token_strings([token])[0] for token in tokens)
    return Labels((texts,))[0]


@torch.no_grad()
def _tried(
    model: Model, sae: SAE | Face, watched: Tensor, text: str, *, bos: bool | None
) -> TriedText:
    trace = run(model, text, record=sites_read(sae), logits=False, prepend_bos=bos)
    x = read_by(sae, lambda site: trace.activations[site].flatten(2))
    latents = encode_read(sae, x)[0]
    strings = model.token_strings(trace.tokens[0].tolist())
    return TriedText(
        tokens=tuple(strings), activations=latents[:, watched.to(latents.device)].T.cpu()
    )
