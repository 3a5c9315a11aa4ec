"""What a model shows at some sites on average over a corpus: what a mean ablation puts there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.activations.rows import counted, in_groups, padded
from gossamer.corpus import TokenBlock, as_corpus, blocks, chosen_context
from gossamer.edits import PATTERNS
from gossamer.errors import GossamerError, SiteError
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import remember
from gossamer.saes.sae import SparseCoder
from gossamer.sites import parse_site
from gossamer.splice import as_saes, check_saes, chosen_bos, flat

BATCH_TOKENS = 2048
"""Tokens that run at once, about."""

ENCODE_ROWS = 1024
"""Tokens whose dense latents are in memory at once."""


@dataclass(frozen=True, slots=True)
class Means:
    """Means over the tokens of a corpus, by site: `Patch(at, means)` puts them in."""

    activations: Mapping[str, Tensor]
    """The value at each site, of the shape that one token has there."""

    latents: Mapping[str, Tensor]
    """(d_sae,) by the site the SAE writes."""

    errors: Mapping[str, Tensor]
    """(d_out,) of what the SAE misses, by the site the SAE writes."""

    n_tokens: int
    """Tokens they are the means of."""


@torch.no_grad()
def means(  # noqa: PLR0917  the public face
    model: Model,
    corpus: Any,
    sites: str | Sequence[str],
    saes: Any = None,
    n_tokens: int = 65_536,
    context: int | None = None,
) -> Means:
    """Mean values of the unedited model at sites, and of SAEs' latents and errors.

    Args:
        model: what to run.
        corpus: whatever `as_corpus` takes.
        sites: one, several, or none where SAEs are given.
        saes: None, one, several, or a mapping.
        n_tokens: how many tokens of the corpus count; all, where it has fewer.
        context: tokens of a block; None: the model's context, at most 256.

    BOS tokens and padding are left out. Sums are kept in float64; means are of the model's dtype,
    float32 at least.
    """
    coders = as_saes(saes)
    check_saes(model, coders)
    names = (sites,) if isinstance(sites, str) else tuple(dict.fromkeys(sites))
    _check(model, names, coders, n_tokens)
    source, context = as_corpus(corpus), chosen_context(model, context)
    bos = chosen_bos(None, coders.values(), [""])
    packed = blocks(source, model, context=context, prepend_bos=bos)
    sums, left = _Sums(), n_tokens
    for group in in_groups(packed, max(1, BATCH_TOKENS // context)):
        left -= _add(model, (names, coders), group, left, sums=sums)
        if left == 0:
            break
    if left == n_tokens:
        raise GossamerError(
            f"The corpus {source.name} has no tokens that count; give one with some text."
        )
    return sums.means(n_tokens - left)


def _check(
    model: Model, sites: Sequence[str], saes: Mapping[str, SparseCoder], n_tokens: int
) -> None:
    for site in sites:
        model.check_site(site)
        if parse_site(site).kind in PATTERNS:
            raise SiteError(
                f"{site} has no mean over tokens: a token's value there is as long as what comes "
                "before it. Take another site, such as hook_z of the same block."
            )
    if not sites and not saes:
        raise GossamerError("There is nothing to take means of: give at least one site or SAE.")
    if not isinstance(n_tokens, int) or n_tokens < 1:
        raise GossamerError(f"n_tokens is a whole number from 1 on, got {n_tokens}.")


@dataclass(frozen=True, slots=True)
class _Sums:
    """Float64 sums over tokens by (what, site), and the dtype of what was summed."""

    totals: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    dtypes: dict[tuple[str, str], torch.dtype] = field(default_factory=dict)

    def add(self, what: str, site: str, rows: Float[Tensor, "rows ..."]) -> None:
        """Some more rows."""
        key, total = (what, site), rows.double().sum(0)
        self.totals[key] = self.totals[key] + total if key in self.totals else total
        self.dtypes[key] = torch.promote_types(rows.dtype, torch.float32)

    def means(self, n_tokens: int) -> Means:
        """The sums over so many tokens, divided."""
        parts: dict[str, dict[str, Tensor]] = {"activations": {}, "latents": {}, "errors": {}}
        for (what, site), total in self.totals.items():
            parts[what][site] = (total / n_tokens).to(self.dtypes[what, site])
        return Means(**parts, n_tokens=n_tokens)


def _add(
    model: Model,
    what: tuple[Sequence[str], Mapping[str, SparseCoder]],
    group: Sequence[TokenBlock],
    at_most: int,
    *,
    sums: _Sums,
) -> int:
    """Add the tokens of a group, no more than `at_most`; how many there were."""
    names, saes = what
    chosen = counted(group, exclude_special=True)
    chosen &= (chosen.flatten().cumsum(0) <= at_most).reshape(chosen.shape)
    if not chosen.any():
        return 0
    chosen = chosen.to(model.device)
    tokens, mask = padded(group)
    batch = TokenBatch(tokens.to(model.device), mask.to(model.device))
    seen: dict[str, Tensor] = {}
    sites = {*names, *(site for sae in saes.values() for site in (sae.site_in, sae.site_out))}
    model.forward(batch, {site: remember(seen, site) for site in sites}, to_the_end=False)
    for site in names:
        sums.add("activations", site, seen[site][chosen])
    for site, sae in saes.items():
        x, y = (flat(seen[where])[chosen] for where in (sae.site_in, site))
        for some, those in zip(x.split(ENCODE_ROWS), y.split(ENCODE_ROWS), strict=True):
            latents = sae.encode(some)
            sums.add("latents", site, latents)
            sums.add("errors", site, those - sae.decode(latents, some))
    return int(chosen.sum())
