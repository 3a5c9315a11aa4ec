"""Which token comes next, and when a text ends.

    weights = softmax(logits / temperature), all but the top_k likeliest and then all beyond the
    likeliest that together reach top_p set to 0;   next = argmax weights / E,  E ~ Exp(1)

With a seed the draws E are the same in every run, the unedited one too: two texts differ only where
their probabilities do. Temperature 0 takes the likeliest token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gossamer.errors import GossamerError, PromptError
from gossamer.models.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0
    """Logits are divided by this; 0 takes the likeliest token."""

    top_k: int | None = None
    """How many of the likeliest tokens may be drawn; None: all."""

    top_p: float | None = None
    """The likeliest tokens that together reach this may be drawn; None: all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise GossamerError(
                f"temperature is 0 (the likeliest token) or more, got {self.temperature}."
            )
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise GossamerError(f"top_k is a whole number from 1 on, or None, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise GossamerError(f"top_p is above 0 and at most 1, or None, got {self.top_p}.")

    def weights(self, logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        """What a token is drawn by, at a temperature above 0."""
        scaled = logits / self.temperature
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            ordered[:, self.top_k :] = -torch.inf
        weights = ordered.softmax(-1)
        if self.top_p is not None:
            reached = weights.cumsum(-1) - weights  # by the likelier tokens
            weights = weights.masked_fill(reached >= self.top_p, 0)
            weights = weights / weights.sum(-1, keepdim=True)
        return torch.zeros_like(weights).scatter(-1, order, weights)

    def choose(
        self, logits: Float[Tensor, "batch d_vocab"], generators: Sequence[torch.Generator]
    ) -> Int[Tensor, " batch"]:
        """The next token of each row, with that row's own generator."""
        if self.temperature == 0:
            return logits.argmax(-1)
        draws = torch.stack(
            [logits.new_empty(logits.shape[-1]).exponential_(generator=g) for g in generators]
        )
        return (self.weights(logits) / draws).argmax(-1)


def seeds_of(seed: int | Sequence[int], n_prompts: int) -> list[int]:
    """One seed for each prompt."""
    seeds = [seed] * n_prompts if isinstance(seed, int) else list(seed)
    if len(seeds) != n_prompts or not all(isinstance(s, int) and 0 <= s < 2**63 for s in seeds):
        raise GossamerError(
            f"seed is a whole number from 0 on, or one for each prompt, got {seed} for {n_prompts}."
        )
    return seeds


@dataclass(frozen=True, slots=True)
class Stop:
    """When a text ends."""

    token_ids: frozenset[int]
    """Tokens that end it."""

    texts: tuple[str, ...]
    """Texts that end it as soon as the new text has one of them."""

    def ends(self, model: Model, new_ids: list[int]) -> bool:
        """Whether the last of the new tokens is the end. It belongs to the text."""
        if new_ids[-1] in self.token_ids:
            return True
        if not self.texts:
            return False
        text = (
            "".join(model.token_strings(new_ids))
            if model.tokenizer is None
            else model.tokenizer.decode(new_ids)
        )
        return any(end in text for end in self.texts)


def as_stop(model: Model, stop: Any) -> Stop:
    """Where to stop. None: at the model's own end tokens; else at texts or token ids."""
    if stop is None:
        settings = getattr(model.language_model, "generation_config", None)
        ends = getattr(settings, "eos_token_id", None)
        ends = [] if ends is None else ends
        return Stop(frozenset([ends] if isinstance(ends, int) else ends), ())
    members = [stop] if isinstance(stop, str | int) else list(stop)
    wrong = [m for m in members if not isinstance(m, str | int) or m == ""]
    if wrong:
        raise PromptError(f"stop takes texts and token ids, got {wrong[0]!r}.")
    ids = frozenset(model.token_id(m) for m in members if isinstance(m, int))
    return Stop(ids, tuple(m for m in members if isinstance(m, str)))
