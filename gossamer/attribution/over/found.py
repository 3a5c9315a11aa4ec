"""All edges of one prompt between the latents of each two SAEs, as rows of numbers: one row for a
target and a position, over the latents that are active there.

    edge    A[t, s] = f_s · W_s · J(s→t) · E_t

J with attention and norms held, direct between spliced sites: the numbers that `attribute` gives.
The targets of one SAE are pulled back together. With offsets "same" gradients stay at the targets'
own positions, since what attention has moved to an earlier one cannot come back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.attribution.graphs.gradients import Gradient
from gossamer.attribution.graphs.held import HeldEngine
from gossamer.attribution.graphs.places import Place, place_of
from gossamer.attribution.graphs.readers import LatentReader
from gossamer.attribution.graphs.run import Run
from gossamer.attribution.graphs.walk import pulled_back
from gossamer.saes.rows import active_pairs, write_rows

BUCKETS = ("0", "1", "2+")
"""Offsets, target's position less source's, that are told apart."""

NUMBERS_AT_ONCE = 1 << 22
"""Numbers of the gradients at one place that are pulled back together, about."""

Wanted = Mapping[str, Bool[Tensor, " d_sae"]]
"""Target latents by site; sites that are not named are no targets."""


class Found(NamedTuple):
    """Rows of edges from the latents of one SAE into latents of another."""

    pair: tuple[str, str]
    """(site of the targets, site of the sources)."""

    targets: Int64[Tensor, " n"]
    """Latent of each row."""

    activations: Float[Tensor, " n"]
    """Its activation."""

    buckets: Int64[Tensor, " n"]
    """Number in BUCKETS of each row."""

    places: Int64[Tensor, " n"]
    """Position of each row's sources."""

    sources: Int64[Tensor, "pos k"]
    """Latents that are active at each position, −1 behind the last."""

    edges: Float[Tensor, "n k"]
    """One for each source; anything where there is none."""


@dataclass(frozen=True)
class Active:
    """The latents of one SAE that are active on a prompt, sorted by position."""

    run: Run
    """The clean run."""

    site: str
    """Where the SAE writes."""

    positions: Int64[Tensor, " n"]
    """Where they are active."""

    latents: Int64[Tensor, " n"]
    """Which."""

    values: Float[Tensor, " n"]
    """Activations."""

    @cached_property
    def slots(self) -> Int64[Tensor, " n"]:
        """Each one's number among those of its position."""
        starts = torch.searchsorted(self.positions, torch.arange(self.run.n).to(self.positions))
        return torch.arange(len(self.positions)).to(starts) - starts[self.positions]

    @cached_property
    def k(self) -> int:
        """Most at one position."""
        return int(self.slots.max()) + 1 if len(self.slots) else 0

    @cached_property
    def table(self) -> Int64[Tensor, "pos k"]:
        """Latents by position and slot, −1 behind the last."""
        table = torch.full((self.run.n, self.k), -1).to(self.latents)
        table[self.positions, self.slots] = self.latents
        return table

    @cached_property
    def written(self) -> Float[Tensor, "pos k width"]:
        """What they write, 0 behind the last."""
        sae = self.run.saes[self.site]
        x = self.run.at(sae.site_in)[self.positions]
        rows = write_rows(sae, self.latents, x) * self.values[:, None]
        return self.padded(rows.to(self.run.model.dtype))

    def padded(self, rows: Float[Tensor, "n width"]) -> Float[Tensor, "pos k width"]:
        """Rows of the latents by position and slot, 0 behind the last."""
        out = rows.new_zeros(self.run.n, self.k, rows.shape[1])
        out[self.positions, self.slots] = rows
        return out

    def some(self, chosen: Bool[Tensor, " n"]) -> "Active":
        """Some of them."""
        return Active(
            self.run,
            self.site,
            self.positions[chosen],
            self.latents[chosen],
            self.values[chosen],
        )


def active_latents(run: Run, counted: Bool[Tensor, " pos"]) -> dict[str, Active]:
    """The active latents of each SAE at the positions that count."""
    found = {}
    for site, sae in run.saes.items():
        every = Active(run, site, *active_pairs(sae, run.at(sae.site_in)))
        found[site] = every.some(counted.to(every.positions.device)[every.positions])
    return found


@torch.no_grad()
def edges_of(
    run: Run, latents: Mapping[str, Active], *, same: bool, wanted: Wanted | None = None
) -> Iterator[Found]:
    """Every edge between SAEs' latents of one prompt, in pieces; with `same` those of offset 0."""
    writers = {place_of(site, after=True): each for site, each in latents.items() if each.k}
    for site, each in latents.items():
        if wanted is not None:
            if site not in wanted:
                continue
            each = each.some(wanted[site][each.latents])
        place = LatentReader(run, run.saes[site]).place
        before = {at: writer for at, writer in writers.items() if at <= place}
        if not before or not len(each.positions):
            continue
        engine = HeldEngine(run, same, min(before))
        for some in _batches(each, same):
            yield from _into(engine, some, place, before)


def _batches(each: Active, same: bool) -> Iterator[Active]:
    """The targets that are pulled back together: all, or as many as gradients have room for."""
    n, width = len(each.positions), each.run.model.d_model
    positions = each.positions.tolist()
    start = 0
    for i in range(1, n + 1):
        rows = (i + 1 - start) * (1 if same else positions[min(i, n - 1)] + 1)
        if i == n or rows * width > NUMBERS_AT_ONCE:
            chosen = torch.zeros(n, dtype=torch.bool)
            chosen[start:i] = True
            yield each.some(chosen.to(each.positions.device))
            start = i


def _into(
    engine: HeldEngine, targets: Active, place: Place, before: Mapping[Place, Active]
) -> Iterator[Found]:
    """The edges into some latents of one SAE."""
    run = engine.run
    reader = LatentReader(run, run.saes[targets.site])
    read = reader.rows(targets.positions, targets.latents)
    left = set(before)
    for at, back in pulled_back(engine, place, Gradient(read, targets.positions)):
        if at in left:
            left.remove(at)
            contract = _at_own if back.is_sparse else _at_all
            yield contract(back, targets, before[at])
        if not left:
            return


def _at_own(back: Gradient, targets: Active, sources: Active) -> Found:
    """Edges from latents at the targets' own positions."""
    gradients = targets.padded(back.values)  # (pos, k of the targets, width)
    products = torch.bmm(gradients, sources.written.transpose(1, 2))
    where = targets.positions
    return Found(
        (targets.site, sources.site),
        targets.latents,
        targets.values,
        torch.zeros_like(where),
        where,
        sources.table,
        products[where, targets.slots],
    )


def _at_all(back: Gradient, targets: Active, sources: Active) -> Found:
    """Edges from latents at all positions up to the targets'."""
    n = len(back.values)
    products = torch.bmm(back.values, sources.written[:n].transpose(1, 2))  # (pos, batch, k)
    offsets = targets.positions - torch.arange(n).to(targets.positions)[:, None]
    places, each = (offsets >= 0).nonzero(as_tuple=True)
    return Found(
        (targets.site, sources.site),
        targets.latents[each],
        targets.values[each],
        offsets[places, each].clamp(max=len(BUCKETS) - 1),
        places,
        sources.table,
        products[places, each],
    )
