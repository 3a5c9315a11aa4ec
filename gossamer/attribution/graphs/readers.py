"""What the targets of a prompt read, and where: latents by their encoder rows, logits by their
unembedding rows less the mean row.

    reads = constant + Σ over nodes of (what they write) · (what comes back of the read row)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.attribution.graphs.places import POST, Place, final, place_of, site_at
from gossamer.attribution.graphs.plain import final_part
from gossamer.attribution.graphs.run import Run
from gossamer.attribution.graphs.writers import LinearParts, linear_value
from gossamer.attribution.targets import Latents, LogitDifference, Logits
from gossamer.errors import GossamerError, PromptError
from gossamer.saes.rows import read_rows
from gossamer.saes.sae import SparseCoder

MASS, AT_MOST = 0.95, 10
"""Logits by default: the smallest set of tokens of this probability, at most so many."""


@dataclass(frozen=True)
class LatentReader:
    """How latents of one SAE read."""

    run: Run
    """The clean run."""

    sae: SparseCoder
    """Whose latents."""

    @property
    def place(self) -> Place:
        """Where they read."""
        return place_of(self.sae.site_in, after=self.sae.site_in != self.sae.site_out)

    def rows(
        self, positions: Int64[Tensor, " n"], units: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n width"]:
        """What each reads."""
        x = self.run.at(self.sae.site_in)[positions]
        return read_rows(self.sae, units, x).to(self.run.model.dtype)

    def whole(self) -> Float[Tensor, "pos width"]:
        """The value that is read."""
        return self.run.at(self.sae.site_in)

    def of_nodes(self, linear: LinearParts) -> Float[Tensor, "pos width"]:
        """The part of it that is made of nodes."""
        return linear_value(self.run, self.place, linear)


@dataclass(frozen=True, kw_only=True)
class LogitTargets:
    """Scores of some tokens at one position, before any soft-cap."""

    run: Run
    """The clean run."""

    position: int
    """Where, from 0."""

    tokens: Int64[Tensor, " n"]
    """Whose scores."""

    distractors: Int64[Tensor, " n"] | None
    """Of differences, the tokens that count negative; else each is less the mean score."""

    weights: Float[Tensor, " n"]
    """How much each counts: its probability; 1 for a difference."""

    @property
    def place(self) -> Place:
        """Where they are read."""
        return final(self.run.n_layers)

    @cached_property
    def rows(self) -> Float[Tensor, "n d_model"]:
        """What each reads of the final norm's output."""
        weight = self.run.model.language_model.get_output_embeddings().weight.detach()
        rows = weight[self.tokens]
        if self.distractors is not None:
            return rows - weight[self.distractors]
        return rows - weight.mean(0)

    def whole(self) -> Float[Tensor, "pos d_model"]:
        """The value that is read: what the final norm gives."""
        return final_value(self.run)

    def of_nodes(self, _linear: LinearParts) -> Float[Tensor, "pos d_model"]:
        """The part of it that is made of nodes."""
        layer = self.run.n_layers - 1
        return final_part(self.run, self.run.values[site_at(layer, POST)][0])

    @cached_property
    def values(self) -> Float[Tensor, " n"]:
        """The clean run's scores."""
        head = self.run.model.language_model.get_output_embeddings()
        hidden = self.whole()[self.position]
        bias = getattr(head, "bias", None)
        scores = F.linear(hidden, head.weight, bias).detach()
        if self.distractors is not None:
            return scores[self.tokens] - scores[self.distractors]
        return scores[self.tokens] - scores.mean()


def final_value(run: Run) -> Float[Tensor, "pos d_model"]:
    """What the final norm gives."""
    layout = run.model.layout
    norm = layout.language_model.get_submodule(layout.adapter.ln_final)
    gain = layout.adapter.gain_offset + norm.get_parameter("weight").detach()
    bias = getattr(norm, "bias", None)
    value = run.at("ln_final.hook_normalized") * gain
    return value if bias is None else value + bias.detach()


def logit_targets(run: Run, target: Logits | LogitDifference) -> LogitTargets:
    """The tokens that a target names. PromptError for a position that is not in the prompt."""
    if not -run.n <= target.position < run.n:
        raise PromptError(
            f"Position {target.position} is not in the prompt, which has {run.n} tokens "
            f"(0..{run.n - 1})."
        )
    position, model = target.position % run.n, run.model
    probabilities = run.values["logits"][0, position].double().softmax(-1)
    if isinstance(target, LogitDifference):
        token, distractor = (_one(model, side) for side in (target.token, target.distractor))
        if token == distractor:
            raise GossamerError(
                f"Both sides of the difference are token {token}; name two different tokens."
            )
        one = torch.ones(1, dtype=torch.float64, device=model.device)
        sides = (torch.tensor([each], device=model.device) for each in (token, distractor))
        tokens, distractors = sides
        return LogitTargets(
            run=run, position=position, tokens=tokens, distractors=distractors, weights=one
        )
    tokens = _tokens(model, target, probabilities)
    return LogitTargets(
        run=run, position=position, tokens=tokens, distractors=None, weights=probabilities[tokens]
    )


def _one(model: Any, side: Sequence[str | int] | str | int) -> int:
    tokens = [side] if isinstance(side, str | int) else list(side)
    if len(tokens) != 1:
        raise GossamerError(
            f"A graph takes a difference of two tokens, got {len(tokens)} on one side; name one."
        )
    return model.token_id(tokens[0])


def _tokens(
    model: Any, target: Logits, probabilities: Float[Tensor, " d_vocab"]
) -> Int64[Tensor, " n"]:
    """Sorted by probability, likeliest first; named ones as named."""
    if target.tokens is not None:
        named = [target.tokens] if isinstance(target.tokens, str | int) else target.tokens
        ids = list(dict.fromkeys(model.token_id(token) for token in named))
        if not ids:
            raise GossamerError("Logits(tokens=…) names at least one token, got none.")
        return torch.tensor(ids, device=probabilities.device)
    order = probabilities.argsort(descending=True, stable=True)
    if target.top is not None and target.mass is None:
        if target.top > len(order):
            raise GossamerError(
                f"top={target.top} tokens were asked for, the vocabulary has {len(order)}."
            )
        return order[: target.top]
    mass, at_most = target.mass, target.top
    if mass is None:
        mass, at_most = MASS, AT_MOST
    found = probabilities[order]
    before = found.cumsum(0) - found
    return order[before < mass][:at_most]


def chosen_latents(
    run: Run, target: Latents, positions: Int64[Tensor, " n"], units: Int64[Tensor, " n"]
) -> Int64[Tensor, " n_chosen"]:
    """Which of an SAE's active latents a target names. GossamerError when it is none."""
    from gossamer.attribution.nodes import Clean, active_latents

    clean = Clean(run.model, run.ids, run.model.token_strings(list(run.ids)), run.values)
    table = active_latents(target, run.saes[target.site], clean)
    if not len(table):
        raise GossamerError(
            f"No latent of {target.site} that the target names is active on this prompt; name one "
            "that is, for example from gossamer.run(…).latents."
        )
    key, wanted = positions * table.units + units, table.positions * table.units + table.indices
    return torch.isin(key, wanted).nonzero()[:, 0]
