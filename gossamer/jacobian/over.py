"""A Jacobian over a corpus: how sparse it is, and which pairs of latents carry it.

Entries are counted in comparable units (`Jacobian.comparable`); those above a smallest size are
added up in a sparse table keyed by the pair of latents. Nothing has d_sae × d_sae numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.rows import in_groups, rows_of
from gossamer.corpus import TokenBlock, as_corpus, blocks
from gossamer.errors import GossamerError
from gossamer.jacobian.entries import (
    Activations,
    Found,
    How,
    Pair,
    between,
    make_tables,
    observed,
    promoted,
    recorded,
    root_mean_squares,
)
from gossamer.jacobian.passage import Passage, passage
from gossamer.jacobian.result import THRESHOLDS, Above, comparable
from gossamer.jacobian.sides import active
from gossamer.models.model import Model
from gossamer.saes.rows import rows_are_constant
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.topk import TopK
from gossamer.splice import check_saes, chosen_bos

BATCH_TOKENS = 2048
"""Tokens at once, about."""

MAX_ENTRIES = 8_000_000
"""Entries in memory at once."""

SAMPLE_TOKENS = 16_384
"""Tokens from which the scale of comparable units is taken."""

MAX_PAIRS = 4_000_000
"""Pairs of latents that the table holds; 40 bytes each."""


@dataclass(frozen=True, slots=True)
class PairTable:
    """Sums over tokens for pairs of latents, sorted by (target, source)."""

    targets: Int64[Tensor, " n"]
    """Latent after the MLP."""

    sources: Int64[Tensor, " n"]
    """Latent before it."""

    counts: Int64[Tensor, " n"]
    """Tokens on which the entry was above the smallest size."""

    sums: Float[Tensor, " n"]
    """Σ of the entry there, comparable units."""

    sizes: Float[Tensor, " n"]
    """Σ of its absolute value there."""

    left_out: float
    """No pair that was dropped because the table was full had a Σ|entry| above this, and that of a
    kept one falls short by no more; 0 when none was dropped."""

    def top(self, n: int) -> list[tuple[int, int, int, float]]:
        """(target, source, tokens, mean entry) of the n pairs with the largest Σ|entry|."""
        order = self.sizes.argsort(descending=True, stable=True)[:n]
        means = self.sums[order] / self.counts[order]
        columns = (self.targets[order], self.sources[order], self.counts[order], means)
        return [(int(t), int(s), int(c), float(m)) for t, s, c, m in zip(*columns, strict=True)]


@dataclass(frozen=True, slots=True)
class JacobianReport:
    """A Jacobian over a corpus."""

    about: dict[str, Any]
    """Model, corpus, tokens, sites, how."""

    density: list[Above]
    """Entries above each threshold, a token."""

    mean_size: float
    """Mean |entry|, comparable units, over all entries there are."""

    pairs: PairTable
    """Which pairs those above the smallest size belong to."""


def jacobian_over(  # noqa: PLR0913, PLR0917  the public face; everything by name
    model: Model,
    layer: int,
    sae_in: SparseCoder,
    sae_out: SparseCoder,
    corpus: Any = "stdlib",
    *,
    n_tokens: int = 65_536,
    context: int | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    smallest: float = 0.01,
    how: How | None = None,
    hold: Sequence[str] = (),
    skip: bool | None = None,
    prepend_bos: bool | None = None,
    progress: bool = False,
) -> JacobianReport:
    """Count and add up the entries of a Jacobian over a corpus; BOS tokens count for nothing.

    Args:
        model: the model.
        layer: the block whose MLP it is.
        sae_in: the SAE before the MLP; places as for `mlp_jacobian`.
        sae_out: the SAE after it.
        corpus: whatever `as_corpus` takes; "stdlib" is its held-out part.
        n_tokens: tokens that are looked at, or as many as the corpus has.
        context: tokens of a block; None: the model's context, at most 256.
        thresholds: sizes above which entries are counted.
        smallest: entries up to this size are not in the table of pairs.
        how: as the arguments of `mlp_jacobian`; tables are made once where they pay.
        hold: as there.
        skip: as there.
        prepend_bos: overrides what the SAEs' files and the family say.
        progress: show a bar on standard error.
    """
    pair, how = (sae_in, sae_out), How() if how is None else how
    if n_tokens < 1:
        raise GossamerError(f"n_tokens is how many tokens to look at, 1 or more, got {n_tokens}.")
    if not all(size >= 0 for size in (smallest, *thresholds)):
        raise GossamerError(
            f"Sizes of entries are 0 or more, got smallest={smallest} and thresholds={thresholds}."
        )
    for sae in pair:
        check_saes(model, {sae.site_out: sae})
    way = passage(model, layer, (sae_in.site_out, sae_out.site_in), hold=tuple(hold), skip=skip)
    source = as_corpus(corpus, split="held_out")
    bos = chosen_bos(prepend_bos, pair, [""])
    context = min(256, model.context_length) if context is None else context
    packed = blocks(source, model, context=context, prepend_bos=bos)
    sites = recorded(way, pair)
    sums = _Sums(tuple(float(t) for t in thresholds), smallest)
    bar = tqdm(total=n_tokens, desc="Jacobians", unit=" tokens", disable=not progress)
    with torch.inference_mode(False), torch.no_grad(), bar:
        batches = _batches(model, packed, sites, context=context, n_tokens=n_tokens)
        seen = (observed(way, pair, shown, _none_special(shown, sites[0])) for shown in batches)
        sample = list(_first_tokens(seen, SAMPLE_TOKENS))
        if sample:
            sizes = _pooled([root_mean_squares(each) for each in sample], sample)
            how = _with_tables(how, way, pair, point=sample[0].point, n_tokens=n_tokens)
            for each in chain(sample, seen):
                for piece in _pieces(each, pair):
                    sums.add(between(way, pair, piece, how=how, sizes=sizes))
                bar.update(len(each.point))
    if sums.n_tokens == 0:
        raise GossamerError(
            f"The corpus {source.name} has no tokens that count; give a longer one."
        )
    about = {
        "model": model.name,
        "corpus": source.name,
        "n_tokens": sums.n_tokens,
        "layer": layer,
        "site_in": way.site_in,
        "site_out": way.site_out,
        "at": how.at,
        "hold": list(hold),
        "skip": way.skip,
        "method": "rows" if how.tables is None else "tables",
    }
    return sums.report(about)


def _none_special(shown: dict[str, Tensor], site: str) -> Bool[Tensor, " n"]:
    return torch.zeros(len(shown[site]), dtype=torch.bool, device=shown[site].device)


def _first_tokens(batches: Iterator[Activations], n_tokens: int) -> Iterator[Activations]:
    """Batches until they have that many tokens."""
    while n_tokens > 0 and (batch := next(batches, None)) is not None:
        n_tokens -= len(batch.point)
        yield batch


def _pooled(
    found: list[tuple[Tensor, Tensor]], batches: list[Activations]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Root mean squares of batches together."""
    counts = torch.tensor([len(batch.point) for batch in batches]).to(found[0][0])
    before, after = (
        (torch.stack(side).square() @ counts / counts.sum()).sqrt()
        for side in zip(*found, strict=True)
    )
    return before, after


def _pieces(seen: Activations, pair: Pair) -> Iterator[Activations]:
    """A batch in pieces whose entries fit."""
    rules = [getattr(sae, "selection", None) for sae in pair]
    fixed = [rule.k for rule in rules if isinstance(rule, TopK)]
    if len(fixed) == 2 and len(seen.point) * fixed[0] * fixed[1] <= MAX_ENTRIES:
        yield seen  # known without encoding
        return
    k = [active(sae, x) for sae, x in zip(pair, (seen.read_in, seen.read_out), strict=True)]
    widest = [max(1, int(latents.offsets.diff().max())) for latents in k]
    length = max(1, MAX_ENTRIES // (widest[0] * widest[1]))
    for first in range(0, len(seen.point), length):
        yield seen.at(slice(first, first + length))


def _batches(
    model: Model, packed: Iterator[TokenBlock], sites: list[str], *, context: int, n_tokens: int
) -> Iterator[dict[str, Tensor]]:
    """Activations of the tokens that count, at most `n_tokens` of them."""
    left = n_tokens
    for group in in_groups(packed, max(1, BATCH_TOKENS // context)):
        rows = rows_of(model, group, sites, exclude_special=True)
        yield {site: values[:left] for site, values in rows.items()}
        left -= len(rows[sites[0]])
        if left <= 0:
            return


def _with_tables(
    how: How, way: Passage, pair: Pair, *, point: Float[Tensor, "n width"], n_tokens: int
) -> How:
    """With tables, where they pay for the whole corpus."""
    constant = all(rows_are_constant(sae) for sae in pair)
    as_rows = how.method == "rows" or how.skip_below > 0
    if as_rows or how.tables is not None or not constant:
        return how
    first, last = (sae for sae in pair if isinstance(sae, SAE))
    linear = promoted(way.linearize(point[:1]), pair)
    n_rows = len(linear.ways) * first.d_sae + last.d_sae
    n_bytes = linear.W_out.element_size() * linear.W_out.shape[1] * n_rows
    # A token has at least one latent; 16 is a guess at how many, and only time depends on it.
    pays = n_tokens * 16 > max(first.d_sae, last.d_sae) and n_bytes <= how.memory
    if not pays and how.method == "auto":
        return replace(how, method="rows")
    return replace(how, tables=make_tables(way, pair, linear))


@dataclass(slots=True)
class _Sums:
    """What is added up over batches."""

    thresholds: tuple[float, ...]
    smallest: float
    n_tokens: int = 0
    n_entries: int = 0
    size: float = 0.0
    above: list[int] = field(default_factory=list)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    n_parts: int = 0
    left_out: float = 0.0

    def add(self, found: Found) -> None:
        """One batch."""
        out, into = found.side_out, found.side_in
        exists = (out.indices >= 0)[..., None] & (into.indices >= 0)[:, None]
        entries = comparable(found.values, found.units[1], found.units[0])
        sizes = entries.abs()
        self.n_tokens += len(entries)
        self.n_entries += int(exists.sum())
        self.size += float(sizes.double().sum())
        counts = [int((sizes > threshold).sum()) for threshold in self.thresholds]
        self.above = [a + b for a, b in zip(self.above or [0] * len(counts), counts, strict=True)]
        t, j, i = (sizes > self.smallest).nonzero(as_tuple=True)
        keys = (out.indices[t, j] << 32) | into.indices[t, i]
        values = entries[t, j, i].double()
        self.parts.append(_merged([(keys, torch.ones_like(keys), values, values.abs())]))
        self.n_parts += len(self.parts[-1][0])
        if self.n_parts > 2 * MAX_PAIRS:
            self.compact()

    def compact(self) -> None:
        """One table, the smallest sums dropped where it is too large."""
        keys, counts, sums, sizes = _merged(self.parts)
        if len(keys) > MAX_PAIRS:
            order = sizes.argsort(descending=True, stable=True)
            self.left_out += float(sizes[order[MAX_PAIRS]])
            kept = order[:MAX_PAIRS].sort().values
            keys, counts, sums, sizes = (part[kept] for part in (keys, counts, sums, sizes))
        self.parts = [(keys, counts, sums, sizes)]
        self.n_parts = len(keys)

    def report(self, about: dict[str, Any]) -> JacobianReport:
        """What came of it."""
        self.compact()
        keys, counts, sums, sizes = (part.cpu() for part in self.parts[0])
        pairs = PairTable(keys >> 32, keys & 0xFFFFFFFF, counts, sums, sizes, self.left_out)
        density = [
            Above(t, n / self.n_tokens, n / max(self.n_entries, 1))
            for t, n in zip(self.thresholds, self.above, strict=True)
        ]
        return JacobianReport(about, density, self.size / max(self.n_entries, 1), pairs)


def _merged(
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parts with equal keys added up, keys sorted."""
    keys, *columns = (torch.cat(column) for column in zip(*parts, strict=True))
    unique, inverse = keys.unique(return_inverse=True)
    added = [column.new_zeros(len(unique)).index_add_(0, inverse, column) for column in columns]
    return unique, added[0], added[1], added[2]
