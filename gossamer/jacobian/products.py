"""The entries of a Jacobian, in one of three ways.

    tables   reads = R W_out and writes = W W_wayᵀ for every latent, made once: a token then
             gathers its rows. With D_in and D_out latents and n_ways ways they are
             2 d_mlp (n_ways D_in d_in + D_out d_out) FLOP, and n_ways D_in + D_out rows of d_mlp.
    chain    a token's rows of one side go through W_out, the slopes and W_way (or backwards, from
             the other side), and meet those of the other side where these are: for n tokens
             2 d_mlp n min(k_in, k_out) (d_out + n_ways d_in) FLOP. A norm on the way is two
             numbers and a row for each token, which change the rows before and after.
    shared   tables of the latents that occur, for one call: with U_in and U_out of them
             2 d_mlp (n_ways U_in d_in + U_out d_out) FLOP, and gathering as from tables, where a
             row costs as much as `READ` more rows of the products.

A token has k rows on a side, so tables cost as much as the chain of D / k tokens: they are made
when more tokens than that are asked for and they fit the memory allowed (`tables_pay`). Else the
cheaper of the other two is taken (`sharing_pays`): latents must occur on several tokens each, since
a chain gathers d_model numbers a row where the others gather d_mlp.

Hidden units whose slopes are exactly 0 add nothing. Where at most a fifth of them have another
slope, tokens go one by one through the others alone; `skip_below` does the same with slopes up to
that size, and `bound` says what that can cost an entry.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.jacobian.passage import Linear, Norm
from gossamer.jacobian.sides import Side
from gossamer.kernels.jacobian import Chain, Scaled, jacobian_blocks, jacobian_chain
from gossamer.kernels.pairs import Pairs, pair_products, read_pairs

READ = 256
"""Multiplications in a product that cost as much as gathering a number: measured in float32."""

FEW_LIVE = 0.2
"""Share of hidden units with a slope below which going token by token is the faster way."""

Rows = tuple[Float[Tensor, "_ _"], Int64[Tensor, "_ _"]]
"""Rows of one side at the site, each once, and which of them belongs to each latent of a token."""


@dataclass(frozen=True, slots=True)
class JacobianTables:
    """Products of every latent with the weights on its side."""

    site_in: str
    """Where the latents write."""

    site_out: str
    """Where the latents read."""

    made_from: str
    """What tells the weights they were made from from others."""

    reads: Float[Tensor, "D_out d_mlp"]
    """What the hidden units write into each latent."""

    writes: tuple[Float[Tensor, "D_in d_mlp"], ...]
    """What each latent writes into the hidden units, for each way."""

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return sum(table.nbytes for table in (self.reads, *self.writes))


class _Operand(NamedTuple):
    """One side's latents at some tokens."""

    hidden: tuple[Float[Tensor, "n_rows d_mlp"], ...]
    """Their rows in the hidden units, for each way."""

    places: Int64[Tensor, "c k"]
    """Which of those rows belongs to each latent of a token."""

    rows: Float[Tensor, "n_unique width"]
    """Their rows at the site, where something beside the hidden units needs them."""

    row_places: Int64[Tensor, "c k"]
    """Which of those."""


def tables_pay(n_tokens: int, k: int, d_sae: int, *, n_bytes: int, memory: int) -> bool:
    """Whether tables cost less than rows and fit: n_tokens · k > d_sae, n_bytes ≤ memory."""
    return n_tokens * k > d_sae and n_bytes <= memory


def from_tables(
    linear: Linear, side_out: Side, side_in: Side, tables: JacobianTables
) -> Float[Tensor, "n k_out k_in"]:
    """All entries, from the tables of every latent."""
    operands = [
        _Operand(hidden, side.places.clamp(min=0), *_rows_if_needed(linear, side))
        for hidden, side in (((tables.reads,), side_out), (tables.writes, side_in))
    ]
    return _entries(linear, operands[0], operands[1])


def from_rows(
    linear: Linear,
    side_out: Side,
    side_in: Side,
    *,
    skip_below: float = 0.0,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n k_out k_in"], float]:
    """All entries, differentiable in the sides' rows, and a bound on what hidden units that were
    left out for their small slopes could add. Products are made in `dtype` where that is given."""
    n_tokens = len(linear.slopes[0])
    # Not "> skip_below": a slope that is not a number counts.
    live = torch.stack([~(slope.abs() <= skip_below) for slope in linear.slopes]).any(0)
    if n_tokens == 0 or live.float().mean() > FEW_LIVE:
        out, into = side_out.among(slice(None)), side_in.among(slice(None))
        if dtype is None and sharing_pays(linear, out, into, memory=memory):
            writes = tuple(into[0] @ way.T for way in linear.ways)
            hidden = (
                _Operand((out[0] @ linear.W_out,), out[1], *out),
                _Operand(writes, into[1], *into),
            )
            return _entries(linear, *hidden), 0.0
        return _chained(linear, out, into, dtype), 0.0
    parts, bound = [], 0.0
    for t in range(n_tokens):
        token = slice(t, t + 1)
        here, out, into = linear.at(token), side_out.among(token), side_in.among(token)
        if skip_below > 0:
            bound = max(bound, _bound(here, ~live[t], out[0], into[0]))
        parts.append(_chained(here.only(live[t].nonzero()[:, 0]), out, into, dtype))
    return torch.cat(parts), bound


def sharing_pays(linear: Linear, out: Rows, into: Rows, *, memory: int | None) -> bool:
    """Whether tables of the latents that occur cost less than a chain, and fit."""
    (n_tokens, k_out), k_in, n_ways = out[1].shape, into[1].shape[1], len(linear.ways)
    d_out, d_in = out[0].shape[1], into[0].shape[1]
    gathered = n_tokens * (k_out + n_ways * k_in)
    shared = len(out[0]) * d_out + n_ways * len(into[0]) * d_in + READ * gathered
    chained = n_tokens * min(k_out, k_in) * (d_out + n_ways * d_in)
    numbers = (len(out[0]) + n_ways * len(into[0])) * linear.W_out.shape[1]
    fits = memory is None or numbers * linear.W_out.element_size() <= memory
    return shared < chained and fits


def _chained(
    linear: Linear, out: Rows, into: Rows, dtype: torch.dtype | None
) -> Float[Tensor, "c k_out k_in"]:
    """All entries by a chain, from the side with fewer latents a token."""
    rows_out, W_out = out[0], linear.W_out
    if linear.norm_out is not None:  # diag(gain) before, centring behind what differs by token
        rows_out = rows_out * linear.norm_out.gain
        W_out = linear.norm_out.centred(linear.bare_out)
    sides = [(rows_out, out[1], linear.norm_out), (into[0], into[1], linear.norm_in)]
    weights = [(W_out,), linear.ways]
    backwards = out[1].shape[1] > into[1].shape[1]
    if backwards:
        sides.reverse()
        weights = [tuple(way.T for way in linear.ways), (W_out.T,)]
    (starts, start_places, before), (ends, end_places, behind) = sides
    places, scaled = (start_places, end_places), (_scaled(before), _scaled(behind))
    chain = Chain(weights[0], linear.slopes, weights[1], places, scaled, dtype)
    entries = jacobian_chain(starts, ends, chain)
    entries = entries.mT if backwards else entries
    return entries + _past(out, into) if linear.skip else entries


def _scaled(norm: Norm | None) -> Scaled | None:
    """What of a norm differs by token."""
    return None if norm is None else Scaled(norm.scale, None if norm.held else norm.normalized)


def _past(out: Rows, into: Rows) -> Float[Tensor, "c k_out k_in"]:
    """What latents after the MLP read of what latents before it write, past the MLP."""
    ones = torch.ones(len(out[1]), out[0].shape[1]).to(out[0])
    rows = {"out_rows": out[1], "in_rows": into[1]}
    return jacobian_blocks(out[0], (into[0],), (ones,), **rows)


def _rows_if_needed(
    linear: Linear, side: Side
) -> tuple[Float[Tensor, "n_unique width"], Int64[Tensor, "c k"]]:
    """Rows at the site, unless the hidden units are the only way and nothing asks for them."""
    if linear.skip or linear.norm_in is not None or linear.norm_out is not None:
        return side.among(slice(None))
    return side.values.new_zeros(0, 0), side.places


def _entries(linear: Linear, out: _Operand, into: _Operand) -> Float[Tensor, "c k_out k_in"]:
    """The entries of some tokens: hidden units, then the norms, then the way past both."""
    tokens = torch.arange(len(into.places), device=into.places.device)[:, None]

    def through(hidden: Tensor, places: Tensor) -> Tensor:
        """What the hidden units write along some rows, by what the latents write."""
        rows = {"out_rows": places, "in_rows": into.places}
        found = jacobian_blocks(hidden, into.hidden, linear.slopes, **rows)
        if linear.norm_in is None:
            return found
        found = found / linear.norm_in.scale[:, None, None]
        if linear.norm_in.held:
            return found
        along = tuple(linear.norm_in.normalized @ way.T for way in linear.ways)
        rows = {"out_rows": places, "in_rows": tokens}
        more = jacobian_blocks(hidden, along, linear.slopes, **rows)
        return found - more * _shares(linear.norm_in, linear.norm_in.normalized, into)[:, None]

    entries = through(out.hidden[0], out.places)
    if linear.norm_out is not None:
        norm = linear.norm_out
        entries = entries / norm.scale[:, None, None]
        if not norm.held:
            more = through(norm.normalized @ linear.bare_out, tokens)
            entries = entries - more * _shares(norm, norm.normalized * norm.gain, out)[..., None]
    if linear.skip:
        entries = entries + _past((out.rows, out.row_places), (into.rows, into.row_places))
    return entries


def _shares(
    norm: Norm, direction: Float[Tensor, "c width"], side: _Operand
) -> Float[Tensor, "c k"]:
    """(row · direction) / (d s): how much of each row moves the norm's scale."""
    places = side.row_places
    products = pair_products(direction, side.rows, places)
    if side.rows.requires_grad:
        offsets = torch.arange(0, places.numel() + 1, places.shape[1], device=places.device)
        pairs = Pairs.of(places.flatten(), offsets, len(side.rows))
        none = side.rows.new_zeros(len(side.rows))
        flat = read_pairs(direction, side.rows, none, pairs=pairs, values=products.flatten())
        products = flat.view_as(places)
    return products / (direction.shape[1] * norm.scale[:, None])


def _bound(
    linear: Linear,
    left_out: Bool[Tensor, " d_mlp"],
    rows_out: Float[Tensor, "n_out d_out"],
    rows_in: Float[Tensor, "n_in width"],
) -> float:
    """Σ_way max|slope left out| ‖W_way‖ ‖W_out‖ max‖row out‖ max‖row in‖ / scales, at one token.

    A norm before the MLP is its folded factor times something that makes no vector longer; of one
    after it, diag(gain) stands apart, since that something stands between it and W_out.
    """
    W_out = linear.W_out
    size = rows_out.norm(dim=1).max() * rows_in.norm(dim=1).max()
    if linear.norm_out is not None:
        W_out = linear.norm_out.centred(linear.bare_out)
        size = size * linear.norm_out.gain.abs().max()
    size = size * _norm_bound(W_out)
    for norm in (linear.norm_in, linear.norm_out):
        size = size if norm is None else size / norm.scale[0]
    small = [
        _norm_bound(way) * slope[0].abs().masked_fill(~left_out, 0).max()
        for way, slope in zip(linear.ways, linear.slopes, strict=True)
    ]
    return float(size * torch.stack(small).sum())


def _norm_bound(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """At least the largest singular value: Frobenius's norm, or √(norm₁ · norm_∞)."""
    size = matrix.abs()
    return torch.minimum((size.sum(0).max() * size.sum(1).max()).sqrt(), matrix.norm())
