"""The nodes of one prompt: tables of latents, tokens and logits, with what each writes or reads.

For effects, a source is a direction that it writes at a place, a target a direction that it reads
there: G[t, s] = read(t) · ∂x_target/∂x_source · write(s). The tables below hold those directions,
active nodes only, sorted by (position, index).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.edits import chosen_indices
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.models.model import Model
from gossamer.saes.crosscoder import Face, parts_at, read_by, sites_read
from gossamer.saes.rows import active_pairs, n_latents, read_rows
from gossamer.saes.sae import SparseCoder
from gossamer.saes.sets import sites_later
from gossamer.splice import flat


@dataclass(frozen=True, slots=True)
class NodeTable:
    """Nodes of one kind at one site, sorted by (position, index)."""

    site: str
    """Where they are: the SAE's `site_out`, of a crosscoder the first site that is spliced,
    `hook_embed` for tokens, `logits`."""

    positions: Int64[Tensor, " n"]
    """Position of each in the prompt."""

    indices: Int64[Tensor, " n"]
    """Latent or token id."""

    values: Float[Tensor, " n"]
    """Activation of a latent, logit of a token, 1 for a source token."""

    tokens: tuple[str, ...]
    """The token at each node's position, as text."""

    labels: tuple[str, ...]
    """What each node means, as far as is known; empty strings otherwise."""

    units: int
    """How many there are to choose from: latents of the SAE, positions for tokens, logits asked
    for."""

    distractors: Int64[Tensor, " n"] | None = None
    """For logit differences, the token whose logit counts negative."""

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def ids(self) -> tuple[str, ...]:
        """Node ids: `site/index@position`; a difference names its distractor after a minus sign."""
        names = [str(i) for i in self.indices.tolist()]
        if self.distractors is not None:
            names = [f"{i}-{j}" for i, j in zip(names, self.distractors.tolist(), strict=True)]
        return tuple(
            f"{self.site}/{name}@{p}"
            for name, p in zip(names, self.positions.tolist(), strict=True)
        )


@dataclass(frozen=True, slots=True)
class Directions:
    """Nodes and one direction for each, at the site where it is written or read."""

    nodes: NodeTable
    """Which."""

    site: str
    """Where the directions live: a source's `site_out`, a target's `site_in`, `logits`."""

    rows: Float[Tensor, "n width"] | None
    """What each node writes or reads there; None for logits, which are read by token id."""


@dataclass(frozen=True, slots=True)
class Clean:
    """What the clean run of one prompt showed at the sites that matter."""

    model: Model
    """The model that ran."""

    ids: Sequence[int]
    """The prompt's token ids."""

    strings: list[str]
    """The prompt's tokens as text."""

    values: Mapping[str, Tensor]
    """(1, pos, …) at each site."""

    def at(self, site: str) -> Float[Tensor, "pos width"]:
        """The value at a site, heads side by side."""
        return flat(self.values[site])[0]

    def position(self, position: int) -> int:
        """A position counted from 0. PromptError when the prompt does not have it."""
        n = len(self.ids)
        if not -n <= position < n:
            raise PromptError(
                f"Position {position} is not in the prompt, which has {n} tokens (0..{n - 1})."
            )
        return position % n


def sites_of(
    what: Tokens | Latents | Logits | LogitDifference, saes: Mapping[str, SparseCoder]
) -> set[str]:
    """The sites a clean run must show to make the nodes of `what`."""
    if isinstance(what, Tokens):
        return {"hook_embed"}
    if isinstance(what, Latents):
        sae = sae_at(what.site, saes)
        parts = parts_at(what.site, saes)
        written = {site for part in parts for site in (part.site_out, *sites_later(part))}
        return {*sites_read(sae), *written}
    return {"logits"}


def sae_at(site: str, saes: Mapping[str, SparseCoder]) -> SparseCoder:
    """The SAE that writes `site`. SiteError names those there are."""
    if site not in saes:
        raise SiteError(
            f"No SAE writes {site}. The SAEs passed write: {', '.join(saes) or 'nowhere'}."
        )
    return saes[site]


def read_at_each(
    sae: SparseCoder, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"]
) -> dict[str, Float[Tensor, "n width"]]:
    """What latents read, by the site where they read it."""
    rows = read_rows(sae, indices, x)
    if not isinstance(sae, Face):
        return {sae.site_in: rows}
    return {site: rows[:, columns] for site, columns in sae.crosscoder.columns().items()}


def active_latents(what: Latents, sae: SparseCoder, clean: Clean) -> NodeTable:
    """The active latents `what` selects, by the SAE's own rule on the clean run."""
    x = read_by(sae, clean.at)
    positions, indices, values = active_pairs(sae, x)
    d_sae = n_latents(sae, x)
    keep = torch.ones_like(positions, dtype=torch.bool)
    if what.positions is not None:
        wanted = [what.positions] if isinstance(what.positions, int) else what.positions
        keep &= torch.isin(
            positions, torch.tensor([clean.position(p) for p in wanted], device=x.device)
        )
    if what.indices is not None:
        wanted = chosen_indices(what.indices, d_sae, f"latent of the SAE at {what.site}")
        keep &= torch.isin(indices, torch.tensor(wanted, device=x.device))
    if what.top is not None:
        strength = values.abs().masked_fill(~keep, -1)
        strongest = strength.topk(min(what.top, int(keep.sum()))).indices
        keep = torch.zeros_like(keep).index_fill(0, strongest, True)
    order = keep.nonzero()[:, 0]
    positions, indices, values = positions[order], indices[order], values[order]
    labels = getattr(sae, "labels", None)
    named = [labels[i] if labels else "" for i in indices.tolist()]
    return NodeTable(
        site=what.site,
        positions=positions,
        indices=indices,
        values=values.detach(),
        tokens=tuple(clean.strings[p] for p in positions.tolist()),
        labels=tuple(named),
        units=d_sae,
    )


def token_nodes(clean: Clean) -> NodeTable:
    """One node for each position of the prompt."""
    n = len(clean.ids)
    device = clean.model.device
    return NodeTable(
        site="hook_embed",
        positions=torch.arange(n, device=device),
        indices=torch.tensor(list(clean.ids), device=device),
        values=torch.ones(n, device=device, dtype=clean.model.dtype),
        tokens=tuple(clean.strings),
        labels=tuple(repr(s) for s in clean.strings),
        units=n,
    )


def logit_nodes(what: Logits | LogitDifference, clean: Clean) -> NodeTable:
    """The logits `what` names, sorted by token id."""
    position = clean.position(what.position)
    logits = clean.values["logits"][0, position]

    def text(token: Tensor | int) -> str:
        return repr(clean.model.token_strings([int(token)])[0])

    distractors = None
    if isinstance(what, LogitDifference):
        sides = (_one_token(clean.model, side) for side in (what.token, what.distractor))
        chosen, distractors = (torch.tensor([token], device=logits.device) for token in sides)
        values = logits[chosen] - logits[distractors]
        labels = [f"{text(chosen)} less {text(distractors)}"]
    else:
        chosen = _chosen_tokens(what, logits, clean.model).sort().values
        values = logits[chosen]
        labels = [text(i) for i in chosen.tolist()]
    return NodeTable(
        site="logits",
        positions=torch.full_like(chosen, position),
        indices=chosen,
        values=values.detach(),
        tokens=(clean.strings[position],) * len(chosen),
        labels=tuple(labels),
        units=len(chosen),
        distractors=distractors,
    )


def _one_token(model: Model, side: Sequence[str | int] | str | int) -> int:
    """The token of one side of a difference. GossamerError for several."""
    tokens = [side] if isinstance(side, str | int) else list(side)
    if len(tokens) != 1:
        raise GossamerError(
            f"edges takes a difference of two tokens, got {len(tokens)} on one side; analyze takes "
            "sets of tokens."
        )
    return model.token_id(tokens[0])


def _chosen_tokens(
    what: Logits, logits: Float[Tensor, " d_vocab"], model: Model
) -> Int64[Tensor, " n"]:
    if what.tokens is not None:
        named = [what.tokens] if isinstance(what.tokens, str | int) else what.tokens
        ids = sorted({model.token_id(token) for token in named})
        return torch.tensor(ids, device=logits.device)
    if what.mass is not None:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities
        return order[before < what.mass][: what.top]
    top = 10 if what.top is None else what.top
    if top > len(logits):
        raise GossamerError(f"top={top} tokens were asked for, the vocabulary has {len(logits)}.")
    return logits.topk(top).indices
