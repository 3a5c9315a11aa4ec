"""Directions of the logits: scores of tokens before the soft-cap, probabilities after it."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.analysis.directions import (
    KL,
    LogitMinusMean,
    LogProbability,
    Probability,
    Tokens,
)
from gossamer.analysis.reading import (
    FINAL,
    Reading,
    Seen,
    Value,
    at_position,
    constant,
    read_before,
)
from gossamer.attribution.targets import LogitDifference, Logits
from gossamer.errors import GossamerError, PromptError
from gossamer.models.model import Model


def logits_at(
    seen: Seen, row: int, position: int, ids: Int64[Tensor, " n_ids"] | None = None
) -> Float[Tensor, " n_ids"]:
    """Scores of some tokens, or all, before any soft-cap."""
    layout, language_model = seen.model.layout, seen.model.language_model
    norm = language_model.get_submodule(layout.adapter.ln_final)
    gain = layout.adapter.gain_offset + norm.get_parameter("weight").detach()
    hidden = seen.values[FINAL][row, position] * gain
    own = getattr(norm, "bias", None)
    hidden = hidden if own is None else hidden + own.detach()
    head = language_model.get_output_embeddings()
    wanted = slice(None) if ids is None else ids
    bias = getattr(head, "bias", None)
    return F.linear(
        hidden, head.weight.detach()[wanted], None if bias is None else bias.detach()[wanted]
    )


def capped(model: Model, logits: Float[Tensor, " n_ids"]) -> Float[Tensor, " n_ids"]:
    """The scores that the model gives, from those before its soft-cap."""
    cap = getattr(model.language_model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def token_ids(model: Model, tokens: Tokens) -> Int64[Tensor, " n_ids"]:
    """Ids of tokens that count together, each once. PromptError for none."""
    named = [tokens] if isinstance(tokens, str | int) else list(tokens)
    if not named:
        raise PromptError("A direction names at least one token, got none.")
    ids = dict.fromkeys(model.token_id(token) for token in named)
    return torch.tensor(list(ids), device=model.device)


def of_logits(model: Model, direction: Any, n: int, hold: tuple[str, ...]) -> Reading:
    position = at_position(direction.position, n)
    linear = isinstance(direction, Logits | LogitDifference | LogitMinusMean)
    return Reading(
        direction=direction,
        sites=(FINAL,),
        residual=read_before(model, FINAL),
        position=position,
        constant=constant("logits", position, linear and "norms" in hold),
        of=_logit_value(model, direction, position),
    )


def _logit_value(model: Model, direction: Any, position: int) -> Value:
    """s of a direction of the logits."""
    match direction:
        case LogitDifference():
            plus = token_ids(model, direction.token)
            minus = token_ids(model, direction.distractor)
            return lambda seen, row, _: (
                logits_at(seen, row, position, plus).mean()
                - logits_at(seen, row, position, minus).mean()
            )
        case KL():
            return lambda seen, row, clean: _kl(seen, row, position, clean)
        case Logits(tokens=None):
            if direction.top is not None or direction.mass is not None:
                raise GossamerError(
                    "A table explains one number, and Logits(top=…) or (mass=…) names several; "
                    "name the tokens."
                )
            return lambda seen, row, clean: _likeliest(seen, row, position, clean)
    ids = token_ids(model, direction.tokens)
    match direction:
        case Logits():
            return lambda seen, row, _: logits_at(seen, row, position, ids).mean()
        case LogitMinusMean():

            def less_mean(seen: Seen, row: int, _: Tensor | None) -> Tensor:
                logits = logits_at(seen, row, position)
                return logits[ids].mean() - logits.mean()

            return less_mean
    logarithm = isinstance(direction, LogProbability)
    assert isinstance(direction, Probability | LogProbability)

    def probability(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        logs = capped(model, logits_at(seen, row, position)).log_softmax(-1)
        total = logs[ids].logsumexp(-1)
        return total if logarithm else total.exp()

    return probability


def _likeliest(seen: Seen, row: int, position: int, clean: Tensor | None) -> Tensor:
    """The score of the token that is likeliest in the clean run."""
    logits = logits_at(seen, row, position)
    return logits[(logits if clean is None else clean).argmax()]


def _kl(seen: Seen, row: int, position: int, clean: Tensor | None) -> Tensor:
    """KL from the clean prediction, whose log-probabilities are `clean`; None: this is it."""
    logs = capped(seen.model, logits_at(seen, row, position)).log_softmax(-1)
    if clean is None:
        return logs.sum() * 0  # exactly, and with a gradient of exactly 0
    return (clean.exp() * (clean - logs)).sum()
