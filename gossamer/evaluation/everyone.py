"""The sums of an evaluation over all processes that share it, the same in each of them.

Each adds up its own batches; these are a few numbers for each latent, dimension and position, and
only they are exchanged. FVU's parts are put together as `Unexplained` adds them, in the order of
the ranks.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add

import torch
from torch import Tensor

from gossamer.distributed import all_rows, gathered, ranks, total
from gossamer.evaluation.passes import KINDS, SUMS, Losses, Seen
from gossamer.metrics import Unexplained


def everyones_seen(
    here: Mapping[str, Seen], sites: Iterable[str], context: int, device: torch.device
) -> dict[str, Seen]:
    """What all processes have seen. One whose batches have no token that counts has nothing; at
    least one has something."""
    if ranks().size == 1:
        return dict(here)
    everyone = gathered({site: _widths(seen) for site, seen in here.items()})
    widths = {site: pair for each in everyone for site, pair in each.items()}
    found = {}
    for site in sites:
        has = [int(site in each) for each in everyone]
        mine = here[site] if site in here else Seen.nothing(widths[site][0], context, device)
        numbers = [mine.sums.get(name, 0.0) for name in SUMS]
        sums = total(torch.tensor(numbers, dtype=torch.float64)).tolist()
        found[site] = Seen(
            _everyones_fit(mine.unexplained, has, widths[site][1], device),
            total(mine.firings),
            dict(zip(SUMS, sums, strict=True)),
            total(mine.by_position),
        )
    return found


def _widths(seen: Seen) -> tuple[int, int]:
    """Of its latents and of what is written."""
    assert seen.unexplained is not None
    return len(seen.firings), len(seen.unexplained.mean)


def _everyones_fit(
    mine: Unexplained | None, has: list[int], width: int, device: torch.device
) -> Unexplained:
    row = torch.zeros(0, width + 3, dtype=torch.float64, device=device)
    if mine is not None:
        n = mine.mean.new_tensor(mine.n_tokens)
        row = torch.cat([torch.stack([n, mine.variation, mine.squared_error]), mine.mean])[None]
    rows = all_rows(row, has)
    return reduce(add, (Unexplained(round(r[0].item()), r[3:], r[1], r[2]) for r in rows))


def everyones_losses(here: Mapping[str, Losses]) -> dict[str, Losses]:
    """The losses over the predicted tokens of all processes."""
    if ranks().size == 1:
        return dict(here)
    return {site: _everyones_losses(losses) for site, losses in here.items()}


def _everyones_losses(mine: Losses) -> Losses:
    names = ("clean", *KINDS)
    n, agree = total(torch.tensor([mine.n, mine.agree])).tolist()
    nats = total(_in_order(mine.nats, names)).tolist()
    divergences = total(_in_order(mine.kl, KINDS)).tolist()
    return Losses(
        n,
        dict(zip(names, nats, strict=True)),
        dict(zip(KINDS, divergences, strict=True)),
        agree,
        total(mine.by_position),
    )


def _in_order(sums: Mapping[str, float], names: Iterable[str]) -> Tensor:
    return torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64)
