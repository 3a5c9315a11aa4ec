"""Directions of interest in words."""

from typing import Any

from gossamer.analysis.directions import (
    KL,
    Direction,
    LogitMinusMean,
    LogProbability,
    NodeValue,
    Probability,
    ResidualDirection,
    Through,
    Tokens,
    as_direction,
)
from gossamer.attribution.targets import LogitDifference, Logits
from gossamer.models.model import Model


def described(model: Model, direction: Direction) -> str:
    """What is explained, in words."""
    match direction:
        case NodeValue():
            which = "pre-activation" if direction.of == "pre" else "activation"
            return f"{which} of {direction.node}"
        case ResidualDirection():
            return f"a direction of {direction.site}"
        case Through():
            return _trace(model, direction)
        case KL():
            return "KL from the clean prediction, in nats"
    return _logits(model, direction)


def _logits(model: Model, direction: Any) -> str:
    match direction:
        case Logits(tokens=None):
            return "logit of the likeliest next token"
        case LogitDifference():
            minus = _tokens(model, direction.distractor)
            return f"logit of {_tokens(model, direction.token)} less {minus}"
    name = {
        Logits: "logit of {}",
        LogitMinusMean: "logit of {} less the mean logit",
        Probability: "probability of {}",
        LogProbability: "log-probability of {}",
    }[type(direction)]
    return name.format(_tokens(model, direction.tokens))


def _trace(model: Model, direction: Through) -> str:
    match direction.route:
        case "pre":
            return f"pre-activation of {direction.node}"
        case "v":
            along = described(model, as_direction(direction.downstream))
            return f"what {direction.node} writes towards the {along}"
    way = {"q": "the query", "k": "the key", "qk": "query and key"}[direction.route]
    return f"attention score {direction.node} through {way}"


def _tokens(model: Model, tokens: Tokens) -> str:
    named = [tokens] if isinstance(tokens, str | int) else list(tokens)
    return ", ".join(repr(model.token_strings([model.token_id(t)])[0]) for t in named)
