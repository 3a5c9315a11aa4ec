"""How sure a mean edge is: prompts drawn anew, a second pass over the corpus for a few rows.

    mean = Σ_p S_p / Σ_p n_p        S_p the sum, n_p the number of edges of the row in prompt p

Tokens of one prompt are not independent, prompts nearly are; so the bootstrap (Efron 1979) draws
whole prompts, with replacement, and takes quantiles of the mean over the draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from gossamer.activations.harvest import fingerprint
from gossamer.attribution.over.found import BUCKETS, Found, active_latents, edges_of
from gossamer.attribution.over.over import counted, run_of, until
from gossamer.attribution.over.table import EdgeRow, EdgeTable
from gossamer.corpus import as_corpus, blocks
from gossamer.errors import GossamerError
from gossamer.models.model import Model
from gossamer.splice import as_saes


class Interval(NamedTuple):
    """The mean of one row, and where it lies when prompts are drawn anew."""

    source: str
    """As in EdgeRow."""

    target: str
    """As there."""

    offset: str
    """As there."""

    n_prompts: int
    """Prompts in which the row has an edge."""

    mean: float
    """Over all edges."""

    low: float
    """Lower end."""

    high: float
    """Upper end."""


def edge_intervals(  # noqa: PLR0913  the public face; everything by name
    table: EdgeTable,
    rows: Sequence[EdgeRow],
    model: Model,
    saes: Any,
    *,
    corpus: Any = "stdlib",
    level: float = 0.95,
    n_draws: int = 1000,
    seed: int = 0,
) -> list[Interval]:
    """Bootstrap intervals by prompt for the means of some rows of a table.

    Args:
        table: whole, not one part of several.
        rows: of the table.
        model: that the table was made with.
        saes: likewise.
        corpus: likewise; its edges into the rows' targets are computed again, with the table's
            settings.
        level: share of draws inside an interval, equal shares beyond each end.
        n_draws: how often the prompts are drawn.
        seed: of the draws.

    GossamerError when model and table do not belong together, or a level is none.
    """
    if not 0 < level < 1 or n_draws < 1:
        raise GossamerError(
            f"level is between 0 and 1 and n_draws 1 or more, got {level} and {n_draws}."
        )
    if table.about["weights"] != fingerprint(model) or table.about["part"] != [0, 1]:
        raise GossamerError(
            "The table is of other weights, or of a part of its corpus; give the model it was made "
            "with, and the merged table."
        )
    sums, counts = _by_prompt(table, rows, model, as_saes(saes), corpus=corpus)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), n_draws)
    totals, numbers = draws @ sums, draws @ counts
    ends = [(1 - level) / 2, (1 + level) / 2]
    found = []
    for i, row in enumerate(rows):
        some = numbers[:, i] > 0
        low, high = np.quantile(totals[some, i] / numbers[some, i], ends)
        mean = float(sums[:, i].sum() / counts[:, i].sum())
        n_prompts = int((counts[:, i] > 0).sum())
        found.append(Interval(*row[:3], n_prompts, mean, float(low), float(high)))
    return found


def _by_prompt(
    table: EdgeTable, rows: Sequence[EdgeRow], model: Model, saes: Mapping[str, Any], *, corpus: Any
) -> tuple[Float[np.ndarray, "n_prompts n"], Float[np.ndarray, "n_prompts n"]]:
    """Σ A and the number of edges of each row in each prompt."""
    about = table.about
    places = {_place(row): i for i, row in enumerate(rows)}
    wanted = {}
    for pair, _, target, _ in places:
        d_sae = about["widths"][pair[0]]
        mask = wanted.setdefault(pair[0], torch.zeros(d_sae, dtype=torch.bool, device=model.device))
        mask[target] = True
    packed = blocks(
        as_corpus(corpus, split="held_out"),
        model,
        context=about["context"],
        prepend_bos=about["prepend_bos"],
    )
    sums, counts = [], []
    for block in until(packed, about["n_tokens"], about["special"]):
        sums.append(np.zeros(len(rows)))
        counts.append(np.zeros(len(rows)))
        chosen = counted(block, about["special"])
        if not chosen.any():
            continue
        run = run_of(model, saes, block)
        latents = active_latents(run, chosen)
        for found in edges_of(run, latents, same=about["offsets"] == "same", wanted=wanted):
            _add(found, places, (sums[-1], counts[-1]), about["smallest"])
    if not sums:
        raise GossamerError("The corpus has no tokens; give the one that the table was made of.")
    return np.stack(sums), np.stack(counts)


def _add(
    found: Found,
    places: Mapping[tuple[tuple[str, str], int, int, int], int],
    into: tuple[np.ndarray, np.ndarray],
    smallest: float,
) -> None:
    """The edges of the rows in question, into one prompt's sums and counts."""
    for (pair, bucket, target, source), i in places.items():
        if pair == found.pair:
            mine = (found.targets == target) & (found.buckets == bucket)
            edges = found.edges[mine][found.sources[found.places[mine]] == source].double()
            edges = edges[edges.abs() > smallest]
            into[0][i] += float(edges.sum())
            into[1][i] += len(edges)


def _place(row: EdgeRow) -> tuple[tuple[str, str], int, int, int]:
    """(pair, bucket, target, source) of a row."""
    (target_site, target), (source_site, source) = (
        node.rsplit("/", 1) for node in (row.target, row.source)
    )
    bucket = BUCKETS.index(row.offset)
    return (target_site, source_site), bucket, int(target), int(source)
