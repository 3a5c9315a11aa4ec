"""What two prompts are contrasted by: the token that each of them leads to."""

from typing import Any

import torch

from gossamer.attribution.targets import LogitDifference
from gossamer.errors import PromptError
from gossamer.models.model import Model

AMONG = 10
"""Likeliest tokens of the second prompt among which the distractor is looked for."""


def contrast(
    model: Model,
    prompt: Any,
    against: Any,
    *,
    position: int = -1,
    prepend_bos: bool | None = None,
) -> LogitDifference:
    """The difference of logits that tells two prompts apart: the likeliest next token of one, less
    that of the other. Where both have the same likeliest token, the distractor is, of the other's
    ten likeliest, the one whose log-probability is higher there by most.

    Args:
        model: the model.
        prompt: a text, token ids or chat messages.
        against: the other prompt.
        position: where the tokens are predicted, counted from either prompt's end when negative.
        prepend_bos: overrides the family's rule for texts, as the SAEs' files may.

    PromptError for a position that one of them does not have.
    """
    logs = []
    for each in (prompt, against):
        batch = model.batch([each], prepend_bos=prepend_bos)
        with torch.no_grad():
            logits = model.forward(batch, {})
        assert logits is not None
        n = logits.shape[1]
        if not -n <= position < n:
            raise PromptError(
                f"Position {position} is not in both prompts; one has {n} tokens (0..{n - 1})."
            )
        logs.append(logits[0, position].double().log_softmax(-1))
    token, distractor = (int(log.argmax()) for log in logs)
    if distractor == token:
        candidates = logs[1].topk(min(AMONG, len(logs[1]))).indices
        candidates = candidates[candidates != token]
        distractor = int(candidates[(logs[1] - logs[0])[candidates].argmax()])
    return LogitDifference(token, distractor, position)
