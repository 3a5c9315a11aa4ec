"""Effects of many sources on many targets, one run of the model for each source and mode.

Sources run side by side as rows of one batch, whatever their sites and positions; each run is read
by every target that its source is asked about.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from gossamer.attribution.progress import Progress, said
from gossamer.attribution.verifying.readers import Readers, readers
from gossamer.attribution.verifying.replay import Stage, Way, replay
from gossamer.attribution.verifying.sources import Source, sources_of
from gossamer.graph.nodes import Nodes

BATCH_TOKENS = 1024
"""Tokens that run at once, about."""


class Mode(NamedTuple):
    """One way to measure an effect."""

    name: str
    """As in `CheckedEdge`."""

    way: Way
    """What answers."""

    share: float
    """Share of the source that is taken away."""


def modes(small: float) -> tuple[Mode, ...]:
    """All of them; `small` is the small share."""
    return (
        Mode("linear", "linear", 1.0),
        Mode("held", "held", 1.0),
        Mode("norms_held", "scales", 1.0),
        Mode("direct_small", "direct", small),
        Mode("direct", "direct", 1.0),
        Mode("total_small", "total", small),
        Mode("total", "total", 1.0),
    )


class Effects(NamedTuple):
    """What one mode measured, pair by pair."""

    effects: Float[np.ndarray, " n_pairs"]
    """Clean minus changed, divided by the share."""

    flipped: Bool[np.ndarray, " n_pairs"]
    """Whether the target's gate flipped."""

    others: Int[np.ndarray, " n_pairs"]
    """Other latents at its place whose gate flipped."""


class Asked(NamedTuple):
    """Pairs whose targets are read at one site."""

    readers: Readers
    """One for each of them."""

    which: Int[np.ndarray, " n"]
    """Which pairs they are."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which target is read in which source's run."""

    sources: list[Source]
    """Each once."""

    rows: Int[np.ndarray, " n_pairs"]
    """Place of each pair's source in `sources`."""

    groups: list[Asked]
    """All pairs, by where they are read."""

    values: Float[np.ndarray, " n_pairs"]
    """What each target reads in the clean run."""

    @property
    def n_pairs(self) -> int:
        """How many."""
        return len(self.rows)


def pairs_of(
    stage: Stage, nodes: Nodes, sources: Int[np.ndarray, " n"], targets: Int[np.ndarray, " n"]
) -> Pairs:
    """Pairs of nodes. SiteError for a source that cannot change, a target that reads nothing."""
    with torch.no_grad():
        unique, rows = np.unique(sources, return_inverse=True)
        groups = []
        values = np.zeros(len(sources))
        for some in readers(nodes, targets, stage.clean, stage.saes):
            which = np.flatnonzero(np.isin(targets, some.nodes))
            each = some.some(np.searchsorted(some.nodes, targets[which]))
            values[which] = each.values.double().cpu().numpy()
            groups.append(Asked(each, which))
        return Pairs(sources_of(nodes, unique, stage.clean, stage.saes), rows, groups, values)


def measured(
    stage: Stage, pairs: Pairs, wanted: Sequence[Mode], *, progress: Progress
) -> dict[str, Effects]:
    """The pairs' effects, by mode."""
    found = {
        mode.name: Effects(
            np.zeros(pairs.n_pairs), np.zeros(pairs.n_pairs, bool), np.zeros(pairs.n_pairs, int)
        )
        for mode in wanted
    }
    places = frozenset(group.readers.place for group in pairs.groups)
    n_rows = max(1, BATCH_TOKENS // stage.n)
    n_runs = len(wanted) * len(pairs.sources)
    bar = tqdm(total=n_runs, desc="verify", unit=" runs", disable=progress is not True)
    with torch.no_grad(), bar:
        for start in range(0, len(pairs.sources), n_rows):
            some = pairs.sources[start : start + n_rows]
            for number, mode in enumerate(wanted):
                said(progress, len(wanted) * start + number * len(some), n_runs)
                seen = replay(stage, mode.way, some, places, share=mode.share)
                for asked, here in _in_rows(pairs, start, start + len(some)):
                    rows = torch.as_tensor(pairs.rows[here] - start, device=asked.units.device)
                    reading = asked.read(seen[asked.place], rows, mode.way)
                    effects = found[mode.name]
                    effects.effects[here] = reading.effects.double().cpu().numpy() / mode.share
                    effects.flipped[here] = reading.flipped.cpu().numpy()
                    effects.others[here] = reading.others.cpu().numpy()
                bar.update(len(some))
    return found


def _in_rows(pairs: Pairs, start: int, stop: int) -> Iterator[Asked]:
    """The pairs whose sources run in these rows, by where they are read."""
    for group in pairs.groups:
        rows = pairs.rows[group.which]
        chosen = np.flatnonzero((rows >= start) & (rows < stop))
        if len(chosen):
            yield Asked(group.readers.some(chosen), group.which[chosen])
