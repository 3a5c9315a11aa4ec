"""The logit lens, both ways: tokens that a node speaks for, and tokens that speak for it.

writes   (C w ⊙ γ) W_Uᵀ [/ σ]            logits that a node's write vector adds, the final norm's
                                         gain γ and centring C counted; σ its scale in a run
reads    E · norm(e_v)                   a node's pre-activation, less its bias, with each token's
                                         embedding e_v as its block's input
stream   ln_final(resid) W_Uᵀ            what the model would say if it stopped at each block
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.analysis.logits import capped
from gossamer.analysis.result import Analysis
from gossamer.analysis.view import view_of
from gossamer.analysis.writes import out
from gossamer.errors import GossamerError, SiteError
from gossamer.models.held import held_norm
from gossamer.models.mlps import mlp_of
from gossamer.models.model import Model
from gossamer.models.norms import visited_norm
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import remember
from gossamer.saes.rows import n_latents, read_rows, rows_are_constant, write_rows
from gossamer.saes.sae import SparseCoder
from gossamer.sites import parse_site
from gossamer.splice import as_saes, check_saes

TOKENS_AT_ONCE = 16_384
"""Embeddings that are read together."""


class TokenScore(NamedTuple):
    """A token and a number."""

    token: str
    """Its text."""

    token_id: int
    """Its id."""

    score: float
    """The number."""


class Lens(NamedTuple):
    """What one latent or neuron speaks for, and what speaks for it."""

    up: tuple[TokenScore, ...]
    """Output tokens whose logits it raises most, per unit of activation."""

    down: tuple[TokenScore, ...]
    """Those that it lowers most."""

    read_up: tuple[TokenScore, ...]
    """Input tokens that excite it most; empty where it does not read the stream through a norm."""

    read_down: tuple[TokenScore, ...]
    """Those that inhibit it most."""


class LogitRow(NamedTuple):
    """One next token."""

    token: str
    """Its text."""

    token_id: int
    """Its id."""

    logit: float
    """Its score, the model's cap included."""

    probability: float
    """Its probability."""

    relative: float
    """Its logit less that of the first pinned token, or of the likeliest."""

    pinned: bool
    """Whether it was asked for by name."""


def logit_table(
    model: Model,
    logits: Float[Tensor, " d_vocab"],
    top: int = 10,
    pinned: Sequence[str | int] | str | int = (),
) -> tuple[LogitRow, ...]:
    """The likeliest next tokens, the pinned ones first."""
    named = [pinned] if isinstance(pinned, str | int) else list(pinned)
    first = list(dict.fromkeys(model.token_id(token) for token in named))
    best = logits.topk(min(top, len(logits))).indices.tolist()
    ids = [*first, *(i for i in best if i not in first)]
    probabilities = logits.softmax(-1)
    base = logits[ids[0]]
    texts = model.token_strings(ids)
    return tuple(
        LogitRow(
            text,
            i,
            float(logits[i]),
            float(probabilities[i]),
            float(logits[i] - base),
            i in first,
        )
        for text, i in zip(texts, ids, strict=True)
    )


def logit_lens(
    analysis: Analysis, top: int = 5, position: int = -1
) -> dict[str, tuple[LogitRow, ...]]:
    """What the model would say at one position if it stopped at each block: the final norm, with
    its own scale, and the unembedding on each recorded residual stream."""
    view = view_of(analysis.trace)
    if not -view.n <= position < view.n:
        raise GossamerError(f"Position {position} is not in the prompt of {view.n} tokens.")
    model = view.model
    found = {}
    for site, value in view.values.items():
        if parse_site(site).kind not in ("hook_resid_pre", "hook_resid_post"):
            continue
        found[site] = logit_table(model, said(model, value[position % view.n]), top)
    return found


def said(model: Model, stream: Float[Tensor, " d_model"]) -> Float[Tensor, " d_vocab"]:
    """The logits of a residual stream, as if it were the last."""
    adapter, language_model = model.layout.adapter, model.language_model
    norm = language_model.get_submodule(adapter.ln_final)
    with torch.no_grad():
        hidden = visited_norm(norm, stream, adapter.gain_offset, lambda _, value: value)
        return capped(model, language_model.get_output_embeddings()(hidden))


def lens(  # noqa: PLR0917  a unit, and how it is shown
    model: Model, site: str, unit: int, saes: Any = None, top: int = 10, *, scale: float = 1.0
) -> Lens:
    """What a latent of the SAE that writes `site`, or a neuron of a mlp.hook_post, speaks for.

    `scale` is the final norm's scale in a run, to have logits that run's size; the order of tokens
    does not depend on it.
    """
    coders = as_saes(saes)
    check_saes(model, coders)
    sae = coders.get(site)
    with torch.no_grad():
        written = _written(model, site, unit, sae)
        logits = _logits_of(model, written) / scale
        reads = _reads(model, site, unit, sae)
    up, down = _both_ends(model, logits, top)
    into = ((), ()) if reads is None else _both_ends(model, reads, top)
    return Lens(up, down, *into)


def _both_ends(
    model: Model, scores: Float[Tensor, " d_vocab"], top: int
) -> tuple[tuple[TokenScore, ...], tuple[TokenScore, ...]]:
    """The largest and the smallest scores."""

    def named(ids: list[int]) -> tuple[TokenScore, ...]:
        texts = model.token_strings(ids)
        return tuple(
            TokenScore(text, i, float(scores[i])) for text, i in zip(texts, ids, strict=True)
        )

    top = min(top, len(scores))
    return named(scores.topk(top).indices.tolist()), named((-scores).topk(top).indices.tolist())


def _logits_of(model: Model, written: Float[Tensor, " d_model"]) -> Float[Tensor, " d_vocab"]:
    """(C w ⊙ γ) W_Uᵀ."""
    language_model = model.language_model
    norm = language_model.get_submodule(model.layout.adapter.ln_final)
    moved = held_norm(model.layout, norm, written.new_ones(1, 1)).out(written[None])[0]
    return language_model.get_output_embeddings().weight @ moved


def _written(
    model: Model, site: str, unit: int, sae: SparseCoder | None
) -> Float[Tensor, " d_model"]:
    """What one unit of activation adds to the stream; behind a post-norm up to its scale."""
    model.check_site(site)
    parsed = parse_site(site)
    width = model.width(site)
    if sae is not None:
        x = torch.zeros(1, model.width(sae.site_in), dtype=model.dtype, device=model.device)
        _check_unit(unit, n_latents(sae, x), f"latent of the SAE at {site}")
        vector = write_rows(sae, torch.tensor([unit], device=model.device), x)[0].to(model.dtype)
    elif parsed.kind == "mlp.hook_post":
        _check_unit(unit, width, f"neuron of {site}")
        vector = torch.zeros(width, dtype=model.dtype, device=model.device)
        vector[unit] = 1
    else:
        raise SiteError(
            f"{site} has no units to look through; name a site that an SAE given writes, or a "
            "blocks.N.mlp.hook_post."
        )
    scales = {
        f"blocks.{parsed.layer}.{name}.hook_scale": vector.new_ones(1, 1)
        for name in ("ln1_post", "ln2_post")
    }
    return out(model.layout, scales, site, vector[None])[0]


def _check_unit(unit: int, size: int, what: str) -> None:
    if not 0 <= unit < size:
        raise SiteError(f"{unit} is not a {what}; choose from 0..{size - 1}.")


def _reads(
    model: Model, site: str, unit: int, sae: SparseCoder | None
) -> Float[Tensor, " d_vocab"] | None:
    """The pre-activation with each token's embedding as the block's input, less its bias; None for
    a node that reads what a whole attention or MLP has made."""
    read_at = site.replace("hook_post", "hook_pre") if sae is None else sae.site_in
    parsed = parse_site(read_at)
    norm = {"mlp.hook_in": "ln2", "mlp.hook_pre": "ln2", "ln2.hook_normalized": "ln2"}
    norm |= {"ln1.hook_normalized": "ln1"}
    streams = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
    if parsed.kind not in (*norm, *streams) or not (sae is None or rows_are_constant(sae)):
        return None
    table = model.language_model.get_input_embeddings().weight
    factor, found = _embedding_scale(model), []
    for first in range(0, len(table), TOKENS_AT_ONCE):
        x = table[first : first + TOKENS_AT_ONCE] * factor
        if parsed.kind in norm:
            x = _normed(model, parsed.layer or 0, norm[parsed.kind], x, parsed.kind)
        if sae is None:
            row = mlp_of(model.layout, parsed.layer or 0).ways[0][unit]
            found.append(x @ row)
        else:
            rows = read_rows(sae, torch.full((len(x),), unit, device=x.device), x)
            found.append((x.to(rows) * rows).sum(1))
    return torch.cat(found)


def _normed(  # noqa: PLR0917  which norm, of what
    model: Model, layer: int, name: str, x: Tensor, kind: str
) -> Tensor:
    """A block's norm of embeddings, as far as the site that is read."""
    adapter = model.layout.adapter
    module = model.layout.part(layer, getattr(adapter, name))
    seen: dict[str, Tensor] = {}

    def visit(step: str, value: Tensor) -> Tensor:
        seen[step] = value
        return value

    whole = visited_norm(module, x, adapter.gain_offset, visit)
    return seen["hook_normalized"] if kind.endswith("hook_normalized") else whole


def _embedding_scale(model: Model) -> float:
    """What a family multiplies embeddings by before its first block."""
    seen: dict[str, Tensor] = {}
    tokens = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    model.forward(batch, {"hook_embed": remember(seen, "hook_embed")}, to_the_end=False)
    row = model.language_model.get_input_embeddings().weight[0]
    place = int(row.abs().argmax())
    return float(seen["hook_embed"][0, 0, place] / row[place])
