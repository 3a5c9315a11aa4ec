"""Directions of interest: the one number of a prompt that a table explains.

    Logits(" x"), LogitDifference(" x", " y")    scores, differences of mean scores of token sets
    LogitMinusMean(" x")                         a score less the mean score of all tokens
    Probability(" x"), LogProbability(" x")      of a set of tokens together
    KL()                                         from the clean prediction to the edited one
    NodeValue(node, of="pre"|"post")             a neuron or latent, before or after its activation
    ResidualDirection(site, direction)           a coordinate of the residual stream
    Through(node, route)                         an upstream trace: what makes a head look or write

Logits are read before any soft-cap, since only those are linear in the residual stream;
probabilities and KL are those of the model, cap included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from gossamer.attribution.targets import LogitDifference, Logits
from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.sites import NodeId, parse_node, parse_site

Tokens = Sequence[str | int] | str | int
"""Tokens that count together: strings that are one token each, or ids."""

Route = Literal["q", "k", "qk", "v", "pre"]
"""The way by which an upstream trace enters a node."""


@dataclass(frozen=True, slots=True)
class AbstractOfTokens:
    """Something of the next token's distribution that is of some tokens together."""

    tokens: Tokens
    """These tokens."""

    position: int = -1
    """Where; negative positions count from the prompt's end."""


@final
@dataclass(frozen=True, slots=True)
class LogitMinusMean(AbstractOfTokens):
    """The mean score of some tokens less the mean score of the whole vocabulary."""


@final
@dataclass(frozen=True, slots=True)
class Probability(AbstractOfTokens):
    """The probability that the next token is one of some tokens."""


@final
@dataclass(frozen=True, slots=True)
class LogProbability(AbstractOfTokens):
    """The logarithm of the same."""


@dataclass(frozen=True, slots=True)
class KL:
    """Σ p_clean log(p_clean / p): how far edits move the prediction, in nats."""

    position: int = -1
    """Where; negative positions count from the prompt's end."""


@dataclass(frozen=True, slots=True)
class NodeValue:
    """A neuron's or latent's value."""

    node: str
    """Its id: blocks.3.mlp.hook_post/12@7, blocks.3.hook_resid_pre/1234@7."""

    of: Literal["pre", "post"] = "pre"
    """Before its activation function or selection, or after."""

    def __post_init__(self) -> None:
        if self.of not in ("pre", "post"):
            raise GossamerError(f'of is "pre" or "post", got {self.of!r}.')
        _unit(self.node)


@dataclass(frozen=True, slots=True)
class ResidualDirection:
    """The residual stream's inner product with a vector."""

    site: str
    """A site of the residual stream."""

    direction: Tensor
    """(d_model,); not normalised."""

    position: int = -1
    """Where; negative positions count from the prompt's end."""

    def __post_init__(self) -> None:
        if not is_residual(self.site):
            raise SiteError(
                f"{self.site} is not in the residual stream; name a hook_resid_pre, hook_resid_mid "
                "or hook_resid_post."
            )
        if not isinstance(self.direction, Tensor) or self.direction.ndim != 1:
            raise ShapeError(
                "direction is a vector of the stream's width, got "
                f"{tuple(torch.as_tensor(self.direction).shape)}."
            )


@dataclass(frozen=True, slots=True)
class Through:
    """An upstream trace of a node: through what it reads.

    q, k, qk   a head's attention score, before soft-cap and mask, through the query, the key, both
    v          what a head writes along a downstream direction, patterns held
    pre        a neuron's or latent's pre-activation
    """

    node: str
    """A head from a query to a key, blocks.9.attn.hook_z/6@14<-4; for v also of all keys,
    blocks.9.attn.hook_z/6@14; for pre a neuron or an active latent."""

    route: Route = "pre"
    """The way into it."""

    downstream: Any = None
    """For v: the direction that the head's output is read along; in a Request its target."""

    def __post_init__(self) -> None:
        if self.route not in get_args(Route):
            raise GossamerError(
                f"A trace goes through one of {', '.join(get_args(Route))}, got {self.route!r}."
            )
        node = _unit(self.node)
        is_head = parse_site(node.site).kind == "attn.hook_z"
        if self.route == "pre":
            if node.key_position is not None:
                raise SiteError(f'"{self.node}" is a head; trace it through "q", "k", "qk" or "v".')
            return
        if not is_head:
            raise SiteError(
                f'"{self.node}" is not a head, so there is no way "{self.route}" into it; write '
                'a head such as blocks.9.attn.hook_z/6@14<-4, or through="pre".'
            )
        if self.route != "v" and node.key_position is None:
            raise SiteError(
                f'"{self.node}" names no key; a score is between a query and a key: write '
                f"{self.node}<-KEY."
            )
        if node.key_position is not None and node.key_position > node.position:
            raise SiteError(
                f'"{self.node}" looks ahead: key {node.key_position} comes after query '
                f"{node.position}, and attention there is exactly 0."
            )


Direction = (
    Logits
    | LogitDifference
    | LogitMinusMean
    | Probability
    | LogProbability
    | KL
    | NodeValue
    | ResidualDirection
    | Through
)
"""What a table explains."""


def as_direction(target: Any) -> Direction:
    """A direction as it is; a token, or several, as the mean of their logits."""
    if isinstance(target, Direction):
        return target
    if isinstance(target, str | int) and not isinstance(target, bool):
        return Logits(target)
    if isinstance(target, Sequence) and target and all(isinstance(t, str | int) for t in target):
        return Logits(list(target))
    raise GossamerError(
        f"A target is a token, several, or a direction such as LogitDifference(a, b) or "
        f"NodeValue(node), got {str(target)[:60]!r} of type {type(target).__name__}."
    )


def is_residual(site: str) -> bool:
    """Whether a site is the residual stream itself."""
    return parse_site(site).kind in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")


def _unit(text: str) -> NodeId:
    """A node whose unit is a number, at a site."""
    node = parse_node(text)
    if not isinstance(node.unit, int):
        raise SiteError(
            f'"{text}" has no value of its own to explain; name a latent, a neuron or a head.'
        )
    parse_site(node.site)
    return node
