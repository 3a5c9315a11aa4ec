"""`Generation`: a text that a model went on with, its probabilities, and the unedited text."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from gossamer.models.model import Model

N_TOP = 5
"""How many of the likeliest tokens a generation keeps for each step."""


class NewToken(NamedTuple):
    """One token as it comes."""

    prompt: int
    """Which prompt it goes on with, from 0."""

    token_id: int
    """Its id."""

    token: str
    """Its text."""

    probability: float
    """What the model gave it, before temperature, top_k and top_p."""

    edited: bool
    """False in the run without SAEs and edits that is made for comparison."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model went on with after one prompt."""

    prompt_ids: tuple[int, ...]
    """The prompt's tokens, BOS included."""

    text: str
    """The new text."""

    tokens: tuple[str, ...]
    """Each new token as text."""

    token_ids: tuple[int, ...]
    """Each new token's id."""

    probabilities: Float[Tensor, " n_tokens"]
    """Of each new token in this run, before temperature, top_k and top_p."""

    top_ids: Int[Tensor, "n_tokens n_top"]
    """The likeliest tokens at each step, likeliest first."""

    top_tokens: tuple[tuple[str, ...], ...]
    """The same as text."""

    top_probabilities: Float[Tensor, "n_tokens n_top"]
    """Their probabilities."""

    unedited: "Generation | None" = None
    """The same without SAEs and edits; None where there were none, or with compare=False."""

    @property
    def differs_at(self) -> int | None:
        """Number, from 0, of the first new token that is not the unedited text's; None when all
        are, or there is no unedited text."""
        if self.unedited is None or self.token_ids == self.unedited.token_ids:
            return None
        pairs = list(zip(self.token_ids, self.unedited.token_ids, strict=False))
        return next((i for i, (mine, other) in enumerate(pairs) if mine != other), len(pairs))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        steps = zip(
            *(self.tokens, self.token_ids, self.probabilities.tolist()),
            *(self.top_tokens, self.top_ids.tolist(), self.top_probabilities.tolist()),
            strict=True,
        )
        return {
            "prompt_ids": list(self.prompt_ids),
            "text": self.text,
            "tokens": [
                {
                    "token": token,
                    "token_id": token_id,
                    "probability": probability,
                    "top": [
                        {"token": text, "token_id": i, "probability": p}
                        for text, i, p in zip(texts, ids, values, strict=True)
                    ],
                }
                for token, token_id, probability, texts, ids, values in steps
            ],
            "differs_at": self.differs_at,
            "unedited": None if self.unedited is None else self.unedited.to_dict(),
        }


def new_text(model: Model, prompt_ids: list[int], new_ids: list[int]) -> str:
    """What new tokens add to the prompt's text; a space that belongs to the first stays."""
    if model.tokenizer is None:
        return "".join(model.token_strings(new_ids))
    before = model.tokenizer.decode(prompt_ids)
    whole = model.tokenizer.decode(prompt_ids + new_ids)
    return whole[len(before) :] if whole.startswith(before) else model.tokenizer.decode(new_ids)
