"""What an SAE's weights say without any text: the one-hot round trip, neighbours, logit effects.

    one-hot round trip   send latent i alone through decoder and encoder: row i of g
        linear           g_ij = ⟨W_enc,j, W_dec,i⟩, no biases, no selection
        active           g_i  = encode(1 · W_dec,i + b_dec), biases and selection on
        ratios           g_ii / max_{j≠i}|g_ij|    g_ii / mean_{j≠i}|g_ij|    g_ii² / Σ_{j≠i} g_ij²
    neighbour            max_{j≠i} cos(W_dec,i, W_dec,j)
    logit effect         ℓ_i = W_U (γ ⊙ W_dec,i) less its mean over the vocabulary; centred first
                         where the last norm is a LayerNorm

The logit effect is the direct one, in units of 1/σ of the last norm: later blocks are ignored.
Everything goes in batches of latents, so d_sae² is never in memory. Processes that torchrun started
share the batches, and each has all rows in the end: what is here is called by all of them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.distributed import all_rows, ranks
from gossamer.models.model import Model
from gossamer.saes.crosscoder import Face
from gossamer.saes.sae import SAE
from gossamer.sites import parse_site

BATCH = 512
"""Latents at once."""


class RoundTrip(NamedTuple):
    """Of each latent; infinite where no other latent answers, nan where none answers at all."""

    max_ratio: Float[Tensor, " d_sae"]
    """Own answer by the largest other."""

    mean_ratio: Float[Tensor, " d_sae"]
    """Own answer by the mean size of the others."""

    square_ratio: Float[Tensor, " d_sae"]
    """Square of the own answer by the sum of the others' squares."""


def in_batches(
    latents: Int64[Tensor, " n"], compute: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """The columns, each of n rows, that `compute` gives of some latents at a time, on the CPU."""
    here, pieces = ranks(), latents.split(BATCH)
    cuts = [len(pieces) * rank // here.size for rank in range(here.size + 1)]
    counts = [sum(map(len, pieces[first:stop])) for first, stop in pairwise(cuts)]
    # One without a share computes the first piece too: so it knows what columns there are.
    mine = pieces[cuts[here.rank] : cuts[here.rank + 1]] or pieces[:1]
    parts = [compute(some) for some in mine]
    columns = (torch.cat(column).cpu()[: counts[here.rank]] for column in zip(*parts, strict=True))
    return tuple(all_rows(column, counts) for column in columns)


@torch.no_grad()
def round_trip(sae: SAE, kind: Literal["linear", "active"]) -> RoundTrip | None:
    """The ratios of every latent; None for a transcoder, which does not read what it writes."""
    if sae.is_transcoder:
        return None
    gain = sae.selection.gain()
    W_read = sae.W_enc if gain is None else sae.W_enc * gain[:, None]

    def ratios(some: Tensor) -> tuple[Tensor, ...]:
        some = some.to(sae.device)
        rows = sae.W_dec[some]
        answers = rows @ W_read.T if kind == "linear" else sae.encode(rows + sae.b_dec)
        return _ratios(answers.double(), some)

    return RoundTrip(*in_batches(torch.arange(sae.d_sae), ratios))


def _ratios(
    answers: Float[Tensor, "n d_sae"], own: Int64[Tensor, " n"]
) -> tuple[Tensor, Tensor, Tensor]:
    mine = answers.gather(1, own[:, None])[:, 0]
    others = answers.abs().scatter(1, own[:, None], 0.0)
    n_others = max(1, answers.shape[1] - 1)
    return (
        mine / others.amax(1),
        mine / (others.sum(1) / n_others),
        mine.square() / others.square().sum(1),
    )


@torch.no_grad()
def decoder_neighbours(
    sae: SAE | Face, latents: Int64[Tensor, " n"], n_nearest: int
) -> tuple[Float[Tensor, "n nearest"], Int64[Tensor, "n nearest"]]:
    """The decoder's largest cosines with other latents, and whose they are."""
    unit = torch.nn.functional.normalize(sae.W_dec, dim=1)
    n_nearest = min(n_nearest, len(unit) - 1)

    def nearest(some: Tensor) -> tuple[Tensor, ...]:
        some = some.to(unit.device)
        cosines = unit[some] @ unit.T
        top = cosines.scatter(1, some[:, None], -2.0).topk(n_nearest, dim=1)
        return top.values, top.indices

    cosines, indices = in_batches(latents, nearest)
    return cosines, indices


def direct_logits(model: Model, site: str) -> Callable[[Tensor], Tensor] | None:
    """The map from rows (n, width) written at a site to logit effects (n, d_vocab).

    None where the way to the residual stream is not linear: inside attention before its output,
    before an activation function, or before a norm after the block's part.
    """
    to_residual = _to_residual(model, site)
    if to_residual is None:
        return None
    adapter = model.layout.adapter
    final: Any = model.language_model.get_submodule(adapter.ln_final)
    W_U = model.language_model.get_output_embeddings().weight.detach()
    gain = (adapter.gain_offset + final.weight).detach()

    @torch.no_grad()
    def effects(rows: Float[Tensor, "n width"]) -> Float[Tensor, "n d_vocab"]:
        stream = to_residual(rows.to(W_U))
        if adapter.norm == "layer":
            stream = stream - stream.mean(-1, keepdim=True)
        logits = (stream * gain) @ W_U.T
        return logits - logits.mean(-1, keepdim=True)

    return effects


def _to_residual(model: Model, site: str) -> Callable[[Tensor], Tensor] | None:
    place, adapter = parse_site(site), model.layout.adapter
    if place.kind in ("hook_embed", "hook_pos_embed") or place.kind.startswith("hook_resid"):
        return lambda rows: rows
    if place.kind in ("hook_mlp_out", "hook_attn_out"):
        return lambda rows: rows
    if place.kind == "mlp.hook_post" and adapter.ln2_post is None:
        path = adapter.mlp.down
    elif place.kind == "attn.hook_z" and adapter.ln1_post is None:
        path = adapter.attention.output
    else:
        return None
    module = model.layout.part(place.layer or 0, path)

    def through(rows: Tensor) -> Tensor:
        return module(rows) - module(torch.zeros_like(rows[:1]))

    return through


@torch.no_grad()
def logit_extremes(
    model: Model, sae: SAE | Face, latents: Int64[Tensor, " n"], n_tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """(top values, top tokens, bottom values, bottom tokens), each (n, n_tokens); None where
    `direct_logits` is."""
    effects = direct_logits(model, sae.site_out)
    if effects is None:
        return None

    def extremes(some: Tensor) -> tuple[Tensor, ...]:
        some = some.to(sae.W_dec.device)
        rows = sae.W_dec[some]
        if isinstance(sae, SAE) and sae.W_later is not None:  # all that they write to the stream
            rows = rows + sae.W_later[some].sum(1)
        found = effects(rows.to(model.device))
        top, bottom = found.topk(n_tokens, dim=1), found.topk(n_tokens, dim=1, largest=False)
        return top.values, top.indices, bottom.values, bottom.indices

    a, b, c, d = in_batches(latents, extremes)
    return a, b, c, d
