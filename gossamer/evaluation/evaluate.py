"""`evaluate`: two passes over a corpus, then what the weights say, as one card for each SAE."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.rows import in_groups
from gossamer.corpus import TokenBlock, as_corpus, blocks, chosen_context, puts_bos
from gossamer.distributed import check_same, ranks, together
from gossamer.errors import GossamerError, PromptError
from gossamer.evaluation.everyone import everyones_losses, everyones_seen
from gossamer.evaluation.passes import KINDS, Batch, Losses, Seen, put, score, see
from gossamer.evaluation.report import Card, NextTokens, Report, at_positions, share
from gossamer.evaluation.weights import decoder_neighbours, logit_extremes, round_trip
from gossamer.metrics import dead_fraction
from gossamer.models.model import Model
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.sets import earlier, sites_later
from gossamer.splice import as_saes, check_saes, chosen_bos, run

BATCH_TOKENS = 2048
"""Tokens that run at once, about: their logits are in memory."""

N_LOGITS = 5
"""Tokens kept at either end of a latent's logit effects."""

N_NEXT = 5
"""Next tokens that are compared."""


def evaluate(  # noqa: PLR0913  the public face; everything by name
    model: Model,
    saes: Any,
    corpus: Any = "stdlib",
    *,
    n_tokens: int = 65_536,
    context: int | None = None,
    batch: int | None = None,
    prompts: Sequence[str] = (),
    prepend_bos: bool | None = None,
    progress: bool = False,
) -> Report:
    """The report card of each SAE, spliced alone into the model with its error dropped.

    Processes that torchrun started share the batches; every one calls it alike, and gets the same
    report.

    Args:
        model: what the SAEs belong to.
        saes: one, several, or a mapping; transcoders are scored at the site they write, a
            crosscoder at each, where what it makes of all its sites in a clean run is put; a
            cross-layer transcoder at each of its sites alone, with what earlier layers write there.
        corpus: whatever `as_corpus` takes; "stdlib" is its held-out part.
        n_tokens: tokens that are scored at least, up to the end of a block.
        context: tokens of a block; None: the model's context, at most 256.
        batch: blocks that run at once; None: about 2,048 tokens.
        prompts: texts after which the most likely next tokens are compared.
        prepend_bos: overrides what the SAEs' files and the family say.
        progress: show a bar on standard error.

    BOS tokens and padding take no part: they are neither replaced nor scored. GossamerError when
    the corpus has fewer tokens than asked.
    """
    prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    how = {"n_tokens": n_tokens, "context": context, "batch": batch, "prepend_bos": prepend_bos}
    work = together(partial(_settled, model, saes, corpus, how, prompts=prompts))
    check_same((model.name, list(work.coders), work.about, work.digest, prompts), "evaluation")
    coders, shows = work.coders, progress and ranks().is_first
    seen = together(partial(_seen, model, work, shows=shows))
    seen = everyones_seen(seen, coders, work.context, model.device)
    means = {site: _mean(seen[site]) for site in coders}
    losses = everyones_losses(together(partial(_scored, model, work, means, shows=shows)))
    about = {**work.about, "n_predicted": next(iter(losses.values())).n}
    cards = {site: _card(model, sae, seen[site], losses[site]) for site, sae in coders.items()}
    return Report(
        cards=cards,
        about=about,
        next_tokens=_next_tokens(model, coders, prompts, work.bos),
        tokens=_named(model, cards),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done."""

    coders: Mapping[str, SparseCoder]
    """By the site each writes."""

    batches: list[Batch]
    """Those of this process."""

    context: int
    """Tokens of a block."""

    bos: bool | None
    """Whether BOS is put before texts."""

    about: Mapping[str, Any]
    """What a report says beside its numbers, as far as it is known before."""

    digest: str
    """Of the tokens of all batches."""


def _settled(
    model: Model, saes: Any, corpus: Any, how: Mapping[str, Any], *, prompts: Sequence[str]
) -> _Work:
    """Everything that can be said before any pass. GossamerError for what cannot be done."""
    coders = as_saes(saes, faces=True, later=True)
    if not coders:
        raise GossamerError("There is nothing to evaluate: give at least one SAE.")
    check_saes(model, coders)
    source = as_corpus(corpus, split="held_out")
    bos = chosen_bos(how["prepend_bos"], coders.values(), [""])
    check_texts(model, prompts, bos)
    context = chosen_context(model, how["context"])
    if context == 2 and puts_bos(source, model, bos):
        raise GossamerError(
            "With context=2 a block is BOS and one token, so that nothing is predicted from a "
            f"token that counts; give 3 to {model.context_length}."
        )
    packed = blocks(source, model, context=context, prepend_bos=bos)
    chosen = _enough(packed, how["n_tokens"], source.name)
    size = max(1, BATCH_TOKENS // context) if how["batch"] is None else how["batch"]
    here, digest = ranks(), hashlib.sha256()
    for block in chosen:
        digest.update(block.tokens.numpy().tobytes() + b"/")
    groups = list(in_groups(chosen, size))[here.rank :: here.size]
    about = {
        "model": model.name,
        "corpus": source.name,
        "context": context,
        "n_tokens": sum(int((~block.special).sum()) for block in chosen),
    }
    batches = [Batch.of(group, model.device) for group in groups]
    return _Work(coders, batches, context, bos, about, digest.hexdigest())


def _seen(model: Model, work: _Work, *, shows: bool) -> dict[str, Seen]:
    """The first pass over the batches of this process."""
    seen: dict[str, Seen] = {}
    for each in tqdm(work.batches, desc="seen", disable=not shows):
        see(model, work.coders, each, seen, context=work.context)
    return seen


def _scored(
    model: Model, work: _Work, means: Mapping[str, Tensor], *, shows: bool
) -> dict[str, Losses]:
    """The second."""
    losses = {site: _none(work.context, model.device) for site in work.coders}
    for each in tqdm(work.batches, desc="scored", disable=not shows):
        score(model, work.coders, each, means=means, losses=losses)
    return losses


def check_texts(model: Model, texts: Sequence[str], bos: bool | None) -> None:
    """PromptError when one of these is empty or too long: said before any pass."""
    for text in texts:
        if not text:
            raise PromptError("A text to try is empty; give at least one token.")
        model.batch([text], prepend_bos=bos)


def _enough(packed: Any, n_tokens: int, name: str) -> list[TokenBlock]:
    """Blocks with at least `n_tokens` tokens that count."""
    if not n_tokens >= 2:  # nan too
        raise GossamerError(f"An evaluation needs at least two tokens, got n_tokens={n_tokens}.")
    found: list[TokenBlock] = []
    left = n_tokens
    for block in packed:
        if len(block.tokens) < 2:
            continue
        found.append(block)
        left -= int((~block.special).sum())
        if left <= 0:
            return found
    if not found:
        raise GossamerError(f"The corpus {name} has no tokens; give one with some text.")
    raise GossamerError(
        f"The corpus {name} has {n_tokens - left:,} tokens that count, {n_tokens:,} were asked "
        "for. Ask for fewer, or give a larger corpus."
    )


def _none(context: int, device: torch.device) -> Losses:
    return Losses(0, {}, {}, 0, torch.zeros(context, 4, dtype=torch.float64, device=device))


def _mean(seen: Seen) -> Tensor:
    assert seen.unexplained is not None
    return seen.unexplained.mean


def _card(model: Model, sae: SparseCoder, seen: Seen, losses: Losses) -> Card:
    assert seen.unexplained is not None
    n, fit = seen.unexplained.n_tokens, seen.unexplained
    if losses.n == 0:
        raise GossamerError("No token of this corpus follows another; give longer documents.")
    ce = {kind: losses.nats[kind] / losses.n for kind in ("clean", *KINDS)}
    means = {name: value / n for name, value in seen.sums.items()}
    latents = torch.arange(len(seen.firings))
    native = sae if isinstance(sae, SAE) else None
    near = None if native is None or len(latents) < 2 else decoder_neighbours(native, latents, 1)
    return Card(
        site_in=sae.site_in,
        site_out=sae.site_out,
        mse=fit.mse,
        mse_per_dim=fit.mse / len(fit.mean),
        fvu=fit.fvu,
        explained_variance=1 - fit.fvu,
        cosine=means["cosine"],
        l2_ratio=means["l2_ratio"],
        error_ratio=means["error_ratio"],
        reconstruction_bias=share(seen.sums["reconstruction"], seen.sums["product"]),
        l0=means["l0"],
        l1=means["l1"],
        dead_fraction=dead_fraction(seen.firings),
        ce_clean=ce["clean"],
        ce_patched=ce["patched"],
        ce_zero_ablated=ce["zero"],
        ce_mean_ablated=ce["mean"],
        ce_increase=ce["patched"] - ce["clean"],
        ce_recovered_zero=share(ce["zero"] - ce["patched"], ce["zero"] - ce["clean"]),
        ce_recovered_mean=share(ce["mean"] - ce["patched"], ce["mean"] - ce["clean"]),
        kl=losses.kl["patched"] / losses.n,
        kl_zero_ablated=losses.kl["zero"] / losses.n,
        kl_mean_ablated=losses.kl["mean"] / losses.n,
        top1_agreement=losses.agree / losses.n,
        firings=seen.firings.cpu(),
        by_position={
            **at_positions(seen.by_position, ("tokens", "mse", "l0")),
            **at_positions(losses.by_position, ("predicted", "ce_clean", "ce_patched", "kl")),
        },
        linear_round_trip=None if native is None else round_trip(native, "linear"),
        active_round_trip=None if native is None else round_trip(native, "active"),
        neighbours=None if near is None else near[1][:, 0],
        neighbour_cosines=None if near is None else near[0][:, 0],
        logits=None if native is None else _logits(model, native, latents),
    )


def _named(model: Model, cards: Mapping[str, Card]) -> dict[int, str]:
    """The tokens of all logit effects, as text."""
    sides = [
        side for card in cards.values() if card.logits is not None for side in card.logits[1::2]
    ]
    ids = torch.cat([side.flatten() for side in sides]).unique().tolist() if sides else []
    return {token: model.token_strings([token])[0] for token in ids}


def _logits(model: Model, sae: SAE, latents: Tensor) -> Any:
    return logit_extremes(model, sae, latents, min(N_LOGITS, model.d_vocab))


@torch.no_grad()
def _next_tokens(
    model: Model, saes: Mapping[str, SparseCoder], prompts: Sequence[str], bos: bool | None
) -> tuple[NextTokens, ...]:
    found = []
    for prompt in prompts:
        clean = _likely(model, run(model, prompt, prepend_bos=bos).logits)
        for site, sae in saes.items():
            if sites_later(sae) or earlier(saes, site):  # others write here too
                tokens = model.batch([prompt], prepend_bos=bos)
                taps = put(saes, site, "patched", tokens.mask, mean=torch.zeros(0))
                patched = model.forward(tokens, taps)
            else:
                patched = run(model, prompt, sae, error="dropped", prepend_bos=bos).logits
            found.append(
                NextTokens(
                    prompt=prompt, site_out=site, clean=clean, patched=_likely(model, patched)
                )
            )
    return tuple(found)


def _likely(model: Model, logits: Tensor | None) -> tuple[tuple[str, float], ...]:
    assert logits is not None
    top = logits[0, -1].float().softmax(-1).topk(min(N_NEXT, logits.shape[-1]))
    strings = [model.token_strings([token])[0] for token in top.indices.tolist()]
    return tuple(islice(zip(strings, top.values.tolist(), strict=True), N_NEXT))
