"""What an edge predicts beside what happens when its source is really ablated.

The source latent is set to zero in the running model, its error term kept at the clean value, and
nothing is
held: attention, norms and every nonlinearity respond. An effect is clean minus edited; of a latent
its pre-activation, of a logit the logit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.attribution.effects import Edge, Edges
from gossamer.attribution.nodes import NodeTable, sae_at
from gossamer.edits import Ablate
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.splice import Plan, as_saes, flat, run_batch

ROWS = 16
"""Ablated copies of the prompt that run side by side."""


class MeasuredEdge(NamedTuple):
    """An edge and what ablating its source did to its target."""

    edge: Edge
    """The prediction: `edge.attribution`."""

    measured: float
    """Clean minus ablated, in the target's units."""

    @property
    def sign_agrees(self) -> bool:
        """Whether prediction and measurement have the same sign."""
        return self.edge.attribution * self.measured > 0


def measure(
    model: Model, saes: Any, edges: Edges, pairs: Sequence[tuple[int, int]]
) -> list[MeasuredEdge]:
    """Ablate the source of each (target row, source column) of `edges` and measure the target.

    `model` and `saes` are those that made `edges`.
    """
    if not pairs:
        return []
    coders = as_saes(saes)
    columns = sorted({source for _, source in pairs})
    clean = _target_values(model, coders, edges, [None])[0]
    ablated: dict[int, Tensor] = {}
    for start in range(0, len(columns), ROWS):
        group = columns[start : start + ROWS]
        values = _target_values(model, coders, edges, group)
        ablated |= dict(zip(group, values, strict=True))
    return [
        MeasuredEdge(edges.edge(target, source), float(clean[target] - ablated[source][target]))
        for target, source in pairs
    ]


@torch.no_grad()
def _target_values(
    model: Model, saes: Mapping[str, SparseCoder], edges: Edges, ablated: Sequence[int | None]
) -> Float[Tensor, "rows n_targets"]:
    """The targets' values in one row for each source to ablate; None ablates nothing."""
    sources = edges.sources
    latents = sources.site in saes
    edits = []
    for row, column in enumerate(ablated):
        if column is not None:
            position = int(sources.positions[column])
            latent = int(sources.indices[column]) if latents else None
            edits.append(
                Ablate(
                    _edited_site(model, sources), latents=latent, positions=position, prompts=row
                )
            )
    spliced = {sources.site: sae_at(sources.site, saes)} if latents else {}
    tokens = torch.tensor([edges.token_ids] * len(ablated), device=model.device)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    site = "logits" if edges.targets.site == "logits" else sae_at(edges.targets.site, saes).site_in
    plan = Plan(tuple(edits), (site,), "frozen", site == "logits")
    seen = run_batch(model, batch, spliced, plan).activations[site]
    return _read(saes, edges.targets, flat(seen))


def _edited_site(model: Model, sources: NodeTable) -> str:
    """Where the source is ablated: token and position embedding together for a token."""
    if sources.site != "hook_embed":
        return sources.site
    return (
        "hook_embed"
        if model.layout.adapter.position_embedding is None
        else "blocks.0.hook_resid_pre"
    )


def _read(
    saes: Mapping[str, SparseCoder], targets: NodeTable, seen: Float[Tensor, "rows pos width"]
) -> Float[Tensor, "rows n_targets"]:
    """Pre-activations of target latents, or target logits."""
    positions: Int64[Tensor, " n"] = targets.positions
    if targets.site == "logits":
        values = seen[:, positions, targets.indices]
        return (
            values
            if targets.distractors is None
            else values - seen[:, positions, targets.distractors]
        )
    sae = saes[targets.site]
    pre = sae.pre_activations(seen) if isinstance(sae, SAE) else sae.encode(seen)
    return pre[:, positions, targets.indices]
