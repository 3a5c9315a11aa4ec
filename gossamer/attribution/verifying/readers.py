"""What targets read: the pre-activation of a latent, the score of a logit, and whether gates flip.

A logit is read before the model's soft-cap, if there is one: a token's score less the mean score,
or less another token's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from gossamer.attribution.nodes import Clean
from gossamer.attribution.verifying.replay import FINAL, Seen, Way
from gossamer.errors import SiteError
from gossamer.graph.nodes import Nodes
from gossamer.saes.crosscoder import Face
from gossamer.saes.rows import read_rows
from gossamer.saes.sae import SAE, SparseCoder

ROWS_AT_ONCE = 1024
"""Activations whose dense latents are in memory at once."""


class Reading(NamedTuple):
    """What some runs did to some targets."""

    effects: Float[Tensor, " n"]
    """Clean minus changed; of a linear run, what goes with the whole source."""

    flipped: Bool[Tensor, " n"]
    """Whether the target entered or left its SAE's active set."""

    others: Int64[Tensor, " n"]
    """Other latents of that SAE, at the target's position, that did."""


@dataclass(frozen=True, slots=True)
class Readers:
    """Target nodes that are read at one site."""

    place: Seen
    """Where."""

    sae: SparseCoder | None
    """Whose latents they are; None: logits."""

    nodes: Int[np.ndarray, " n"]
    """Which nodes they are."""

    positions: Int64[Tensor, " n"]
    """In the prompt."""

    units: Int64[Tensor, " n"]
    """Latents or tokens."""

    rows: Float[Tensor, "n width"]
    """What each one reads: the derivative at the clean run."""

    clean: Float[Tensor, "n width"]
    """What stood there in the clean run."""

    values: Float[Tensor, " n"]
    """What was read there: pre-activations, scores."""

    def read(
        self, seen: Float[Tensor, "batch pos width"], rows: Int64[Tensor, " n_pairs"], way: Way
    ) -> Reading:
        """Each reader in the run of its own row."""
        x = seen[rows, self.positions]
        flipped = torch.zeros(len(rows), dtype=torch.bool, device=seen.device)
        others = torch.zeros(len(rows), dtype=torch.long, device=seen.device)
        if way == "linear":
            return Reading((x.to(self.rows) * self.rows).sum(1), flipped, others)
        if self.sae is None:
            effects = ((self.clean - x).to(self.rows) * self.rows).sum(1)
            return Reading(effects, flipped, others)
        places = rows * seen.shape[1] + self.positions
        places, first, which = _unique(places)
        values = []
        for start in range(0, len(places), ROWS_AT_ONCE):
            some = first[start : start + ROWS_AT_ONCE]
            pre, active = read_pre(self.sae, x[some])
            changes = active != read_pre(self.sae, self.clean[some])[1]
            here = ((which >= start) & (which < start + ROWS_AT_ONCE)).nonzero()[:, 0]
            at = which[here] - start, self.units[here]
            flipped[here] = changes[at]
            others[here] = changes.sum(1)[at[0]] - changes[at].long()
            values.append((here, pre[at]))
        effects = self.values.clone()
        for here, pre in values:
            effects[here] -= pre
        return Reading(effects, flipped, others)

    def some(self, chosen: Int[np.ndarray, " n_chosen"]) -> "Readers":
        """Some of them, in the order given, as often as they are named."""
        index = torch.as_tensor(chosen, device=self.positions.device)
        return Readers(
            self.place,
            self.sae,
            self.nodes[chosen],
            self.positions[index],
            self.units[index],
            self.rows[index],
            self.clean[index],
            self.values[index],
        )


def _unique(
    places: Int64[Tensor, " n"],
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"], Int64[Tensor, " n"]]:
    """Each place once, where one of its kind stands, and the number of each."""
    unique, which = places.unique(return_inverse=True)
    first = torch.zeros_like(unique)
    first[which] = torch.arange(len(places), device=places.device)  # any of them
    return unique, first, which


def readers(
    nodes: Nodes, targets: Int[np.ndarray, " n"], clean: Clean, saes: dict[str, SparseCoder]
) -> Iterator[Readers]:
    """The targets, each once, by where they are read. SiteError for what reads nothing."""
    wanted = np.unique(targets)
    for place in sorted({int(place) for place in nodes.site_of[wanted]}):
        here = wanted[nodes.site_of[wanted] == place]
        site = nodes.sites[place]
        node = nodes[int(here[0])]
        leaf = node.kind == "latent" and isinstance(saes.get(site), Face | None)
        if node.kind not in ("latent", "logit") or leaf:
            raise SiteError(f"{node.id} is no target; latents and logits are.")
        yield _readers(nodes, here, site, clean=clean, sae=saes.get(site))


def _readers(
    nodes: Nodes, here: Int[np.ndarray, " n"], site: str, *, clean: Clean, sae: SparseCoder | None
) -> Readers:
    """The readers among nodes of one site."""
    device = clean.model.device
    positions = torch.as_tensor(nodes.positions[here].astype(np.int64), device=device)
    units = torch.as_tensor(nodes.units[here].astype(np.int64), device=device)
    if sae is None:
        distractors = torch.as_tensor(nodes.distractors[here].astype(np.int64), device=device)
        x = clean.at(FINAL)[positions]
        rows, constants = logit_rows(clean, units, distractors)
        values = (x.to(rows) * rows).sum(1) + constants
        return Readers(Seen(FINAL, False), None, here, positions, units, rows, x, values)
    x = clean.at(sae.site_in)[positions]
    pre = torch.cat([read_pre(sae, some)[0].cpu() for some in x.split(ROWS_AT_ONCE)]).to(device)
    values = pre[torch.arange(len(here)), units]
    rows = read_rows(sae, units, x)
    place = Seen(sae.site_in, sae.site_in == sae.site_out)
    return Readers(place, sae, here, positions, units, rows, x, values)


def read_pre(
    sae: SparseCoder, x: Float[Tensor, "n d_in"]
) -> tuple[Float[Tensor, "n d_sae"], Tensor]:
    """Pre-activations and which latents are active; of a user's own SAE its latents."""
    if isinstance(sae, SAE):
        pre = sae.pre_activations(x)
        return pre, sae.selection.active(pre, sae.b_enc)
    latents = sae.encode(x)
    return latents, latents != 0


def logit_rows(
    clean: Clean, tokens: Int64[Tensor, " n"], distractors: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """What logits read at `FINAL`, and their constant parts, before any soft-cap: a token's score
    less the mean score, or less the distractor's where that is not −1."""
    model = clean.model
    norm = model.language_model.get_submodule(model.layout.adapter.ln_final)
    head = model.language_model.get_output_embeddings()
    weight = head.weight.detach()
    less = distractors >= 0
    other = distractors.clamp(min=0)
    rows = weight[tokens] - torch.where(less[:, None], weight[other], weight.mean(0))
    constants = rows.new_zeros(len(tokens))
    if getattr(norm, "bias", None) is not None:
        constants = rows @ norm.get_parameter("bias").detach()
    if getattr(head, "bias", None) is not None:
        bias = head.bias.detach()
        constants = constants + bias[tokens] - torch.where(less, bias[other], bias.mean())
    gain = model.layout.adapter.gain_offset + norm.get_parameter("weight").detach()
    return rows * gain, constants
