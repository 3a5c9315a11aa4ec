"""The clean run again, row beside row, with a share of one node taken away in each.

    linear   the derivative of the run in the direction of what is taken away: held pieces constant,
             everything else by its tangent at the clean run
    held     the model itself; held pieces and all other spliced sites at their clean values
    scales   the same with norm scales alone among the held pieces
    direct   the model itself; all other spliced sites at their clean values
    total    the model itself; nothing is held

"Pieces" are what the graph held: attention patterns, norm scales, outputs of MLPs. A spliced
site at its clean value stops latents and errors alike; only a transcoder's skip connection goes on,
as it does in the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.attribution.nodes import Clean
from gossamer.attribution.verifying.sources import Source, taken
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import Tap
from gossamer.saes.crosscoder import Face
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.sets import earlier
from gossamer.sites import parse_site
from gossamer.splice import flat

Way = Literal["linear", "held", "scales", "direct", "total"]
"""What answers; see the top of this module."""


class Seen(NamedTuple):
    """A site as a reader sees it."""

    site: str
    """Its name."""

    before: bool
    """As the SAE that stands there reads it, before its splice."""


FINAL = "ln_final.hook_normalized"
"""Where logits are read: before the final norm's gain, the unembedding and any soft-cap."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What stays the same in all runs."""

    clean: Clean
    """The run without changes."""

    saes: dict[str, SparseCoder]
    """Those the graph splices, by the site each writes."""

    pieces: tuple[str, ...]
    """Sites that the graph held: patterns, scales, outputs of MLPs."""

    error: str
    """What errors do in total runs: "attached": they follow, so the model answers as it is;
    "frozen": they keep their clean values, so that effects travel through latents only."""

    n: int
    """Positions that run; nothing later matters."""

    def held(self, way: Way) -> tuple[str, ...]:
        """Pieces that keep their clean values."""
        if way == "scales":
            return tuple(site for site in self.pieces if site.endswith("hook_scale"))
        return self.pieces if way in ("linear", "held") else ()

    def value(self, site: str) -> Tensor:
        """The clean value at a site, on the positions that run."""
        value = self.clean.values[site]
        if parse_site(site).kind.endswith(("hook_pattern", "hook_attn_scores")):
            return value[..., : self.n, : self.n]
        return value[:, : self.n]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The sources of one batch and what is taken from each, by site."""

    stage: Stage
    way: Way
    at: Mapping[str, list[tuple[int, int, Tensor]]]
    """(row, position, what is taken away) by site."""

    wanted: frozenset[Seen]
    """What is read."""

    seen: dict[Seen, Tensor] = field(default_factory=dict)
    """What was there: (rows, pos, width)."""

    leaves: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """In linear runs, by site: a leaf added there, and the direction in which it moves."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """What transcoders read, by site, until they write."""

    def visit(self, site: str, value: Tensor) -> Tensor:
        """Held → own SAE reads → splice → change → others read."""
        if site in self.stage.held(self.way):
            value = self.stage.value(site).expand_as(value)
        self.note(Seen(site, True), value)
        writer = self.stage.saes.get(site)
        if writer is not None:
            value = self.spliced(site, writer, value)
        if site in self.at:
            value = self.changed(site, value)
        self.note(Seen(site, False), value)
        self.inputs[site] = value
        return value

    def note(self, place: Seen, value: Tensor) -> None:
        """Keep what is at a site, if it is wanted."""
        if place in self.wanted:
            self.seen[place] = flat(value)

    def spliced(self, site: str, sae: SparseCoder, value: Tensor) -> Tensor:
        """The value after the splice, before this row's change."""
        clean = self.stage.value(site)
        if self.way != "total":
            skipped = self.skipped(sae)
            clean = clean.expand_as(value)
            return clean if skipped is None else clean + skipped.reshape(value.shape)
        if self.stage.error == "attached":
            return value
        if isinstance(sae, Face):  # latents and error are those of the clean run
            return clean.expand_as(value)
        x = flat(value if sae.site_in == site else self.inputs[sae.site_in])
        before = flat(self.stage.value(sae.site_in))
        moved = sae.decode(sae.encode(x), x) - sae.decode(sae.encode(before), before)
        for other in earlier(self.stage.saes, site):
            x, before = flat(self.inputs[other.site_in]), flat(self.stage.value(other.site_in))
            moved = moved + (other.encode(x) - other.encode(before)) @ other.weight_at(site)
        return clean + moved.reshape(value.shape).to(value.dtype)

    def skipped(self, sae: SparseCoder) -> Tensor | None:
        """What a skip connection adds to the clean value."""
        if not isinstance(sae, SAE) or sae.W_skip is None or not sae.is_transcoder:
            return None
        x = flat(self.inputs[sae.site_in])
        return F.linear(x - flat(self.stage.value(sae.site_in)), sae.W_skip.to(x.dtype))

    def changed(self, site: str, value: Tensor) -> Tensor:
        """The value with what is taken away gone, or with a leaf that moves that way."""
        gone = torch.zeros_like(flat(value))
        for row, position, taken_away in self.at[site]:
            gone[row, position] = taken_away.to(gone)
        gone = gone.reshape(value.shape)
        if self.way == "linear":
            leaf = torch.zeros_like(gone, requires_grad=True)
            self.leaves[site] = (leaf, gone)
            return value + leaf
        return value - gone


def replay(
    stage: Stage, way: Way, sources: Sequence[Source], wanted: frozenset[Seen], *, share: float
) -> dict[Seen, Tensor]:
    """(rows, pos, width) at the wanted places of a run with a share of one source gone in each
    row; of a linear run what of it goes with the whole source."""
    at: dict[str, list[tuple[int, int, Tensor]]] = {}
    for row, source in enumerate(sources):
        if way == "linear":
            gone = {source.site: source.written, **source.elsewhere}
        else:
            gone = taken(source, share, stage.clean, stage.saes)
        for site, each in gone.items():
            at.setdefault(site, []).append((row, source.position, each))
    rows = _Rows(stage, way, at, wanted)
    sites = {
        *at,
        *(place.site for place in wanted),
        *stage.saes,
        *(sae.site_in for sae in stage.saes.values()),
    }
    sites |= set(stage.held(way))
    taps: dict[str, Tap] = {site: partial(rows.visit, site) for site in sites}
    model = stage.clean.model
    tokens = torch.tensor([list(stage.clean.ids[: stage.n])] * len(sources), device=model.device)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.set_grad_enabled(way == "linear"):
        model.forward(batch, taps, to_the_end=False)
        return _derivatives(rows) if way == "linear" else rows.seen


def _derivatives(rows: _Rows) -> dict[Seen, Tensor]:
    """What is seen, differentiated along the leaves' directions: the derivative of a product with
    cotangents by these cotangents, which is the same linear map."""
    able = {place: value for place, value in rows.seen.items() if value.requires_grad}
    found = {place: torch.zeros_like(value) for place, value in rows.seen.items()}
    leaves = [leaf for leaf, _ in rows.leaves.values()]
    cotangents = [torch.zeros_like(value, requires_grad=True) for value in able.values()]
    if not able:
        return found
    pulled = torch.autograd.grad(
        list(able.values()), leaves, cotangents, create_graph=True, allow_unused=True
    )
    pairs = zip(pulled, rows.leaves.values(), strict=True)
    total = sum((back * gone).sum() for back, (_, gone) in pairs if back is not None)
    if isinstance(total, Tensor) and total.requires_grad:
        moved = torch.autograd.grad(total, cotangents, allow_unused=True)
        found |= {p: m for p, m in zip(able, moved, strict=True) if m is not None}
    return found
