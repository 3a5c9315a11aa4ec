"""Blocks of an MLP's Jacobian between the active latents before and after it.

    J[t, j, i] = Σ_m reads[o(t, j), m] · Σ_way slopes_way[t, m] · writes_way[i(t, i), m]

reads[j] = what the hidden units write into latent j (W_enc W_out), writes[i] = what latent i writes
into the hidden units (W_dec W_inᵀ), each with the latent first: a token then reads k whole rows of
each. Gathering columns of a table with the latent last costs several times as much.

`jacobian_blocks` has both; `jacobian_chain` takes a token's rows of one side through the weights,
its slopes and the weights again, and multiplies them with those of the other side where these are:
d_model numbers a row are gathered then, not d_mlp.

Tokens go in chunks, in buffers that are used again: nothing of size tokens × k × d_mlp is ever
made, neither here nor for the gradient.
"""

from typing import Any, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Int64
from torch import Tensor

CHUNK_NUMBERS = 786_432
"""Numbers of one gathered operand at a time: 8 tokens of k=32 in 3072 hidden units."""

CHAIN_ROWS = 2048
"""Rows that a chain takes through the weights together: 25 MB in 3072 hidden units of float32."""


class Scaled(NamedTuple):
    """w ↦ (w − n (n·w) / d) / s at each token: what is between a norm's gain and its centring."""

    scale: Float[Tensor, " pos"]
    """s."""

    direction: Float[Tensor, "pos d"] | None
    """n, the normalized value; None where s is held constant."""

    def of(self, rows: Float[Tensor, "c k d"], chunk: slice) -> Float[Tensor, "c k d"]:
        """It of some tokens' rows; the map is its own transpose."""
        if self.direction is not None:
            n = self.direction[chunk, :, None].to(rows)
            rows = rows - (rows @ n) * (n.mT / n.shape[1])
        return rows / self.scale[chunk, None, None].to(rows)


def jacobian_blocks(
    reads: Float[Tensor, "n_out d_mlp"],
    writes: tuple[Float[Tensor, "n_in d_mlp"], ...],
    slopes: tuple[Float[Tensor, "pos d_mlp"], ...],
    *,
    out_rows: Int64[Tensor, "pos k_out"],
    in_rows: Int64[Tensor, "pos k_in"],
) -> Float[Tensor, "pos k_out k_in"]:
    """The blocks; differentiable in reads, writes and slopes, touching no other row of them."""
    return _Blocks.apply(out_rows, in_rows, reads, *writes, *slopes)


def jacobian_chain(
    starts: Float[Tensor, "n_start d_start"], ends: Float[Tensor, "n_end d_end"], chain: "Chain"
) -> Float[Tensor, "pos k_start k_end"]:
    """start · Σ_way first_way diag(slopes_way) last_way · end for the rows of each token;
    differentiable in starts and ends."""
    return _Chained.apply(starts, ends, chain)


def jacobian_blocks_reference(
    reads: Float[Tensor, "n_out d_mlp"],
    writes: tuple[Float[Tensor, "n_in d_mlp"], ...],
    slopes: tuple[Float[Tensor, "pos d_mlp"], ...],
    *,
    out_rows: Int64[Tensor, "pos k_out"],
    in_rows: Int64[Tensor, "pos k_in"],
) -> Float[Tensor, "pos k_out k_in"]:
    """The definition."""
    return sum(
        (
            einsum(
                reads[out_rows],
                slope,
                write[in_rows],
                "pos k_out d_mlp, pos d_mlp, pos k_in d_mlp -> pos k_out k_in",
            )
            for write, slope in zip(writes, slopes, strict=True)
        ),
        start=reads.new_zeros(()),
    )


def jacobian_loop(
    reads: Float[Tensor, "n_out d_mlp"],
    writes: Float[Tensor, "n_in d_mlp"],
    slopes: Float[Tensor, "pos d_mlp"],
    *,
    out_rows: Int64[Tensor, "pos k_out"],
    in_rows: Int64[Tensor, "pos k_in"],
) -> Float[Tensor, "pos k_out k_in"]:
    """The definition entry by entry, as three nested loops."""
    blocks = reads.new_zeros(len(slopes), out_rows.shape[1], in_rows.shape[1])
    for t in range(len(slopes)):
        for j, latent_out in enumerate(out_rows[t].tolist()):
            for i, latent_in in enumerate(in_rows[t].tolist()):
                blocks[t, j, i] = (reads[latent_out] * slopes[t] * writes[latent_in]).sum()
    return blocks


class _Blocks(torch.autograd.Function):
    """Chunks of gathered rows, forward and backward."""

    @staticmethod
    def forward(ctx: Any, out_rows, in_rows, reads, *tables):
        ctx.save_for_backward(out_rows, in_rows, reads, *tables)
        blocks = reads.new_empty(len(out_rows), out_rows.shape[1], in_rows.shape[1])
        buffers = _Buffers(reads, out_rows, in_rows)
        for chunk in buffers.chunks():
            read, moved = buffers.gather(chunk, (out_rows, in_rows), reads, tables)
            torch.bmm(read, moved.mT, out=blocks[chunk])
        return blocks

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (out_rows, in_rows, reads, *tables) = gradients, ctx.saved_tensors
        n_ways = len(tables) // 2
        writes, slopes = tables[:n_ways], tables[n_ways:]
        needs = ctx.needs_input_grad[2:]
        of_reads = torch.zeros_like(reads) if needs[0] else None
        of_tables = [
            torch.zeros_like(table) if need else None
            for table, need in zip(tables, needs[1:], strict=True)
        ]
        buffers = _Buffers(reads, out_rows, in_rows)
        for chunk in buffers.chunks():
            read, moved = buffers.gather(chunk, (out_rows, in_rows), reads, tables)
            here = gradient[chunk]
            if of_reads is not None:
                of_reads.index_add_(0, out_rows[chunk].flatten(), (here @ moved).flatten(0, 1))
            if not any(needs[1:]):
                continue
            of_moved = torch.bmm(here.mT, read, out=moved)  # what was moved is not needed any more
            for way in range(n_ways):
                of_write, of_slope = of_tables[way], of_tables[n_ways + way]
                if of_slope is not None:
                    rows = writes[way][in_rows[chunk]]
                    of_slope[chunk] = (of_moved * rows).sum(1)
                if of_write is not None:
                    scaled = of_moved * slopes[way][chunk, None]
                    of_write.index_add_(0, in_rows[chunk].flatten(), scaled.flatten(0, 1))
        return None, None, of_reads, *of_tables


class Chain(NamedTuple):
    """What stands between the rows of a token."""

    first: tuple[Float[Tensor, "d_start d_mlp"], ...]
    """Into the hidden units, for each way or for all."""

    slopes: tuple[Float[Tensor, "pos d_mlp"], ...]
    """Of the hidden units, for each way."""

    last: tuple[Float[Tensor, "d_mlp d_end"], ...]
    """Out of them, for each way or for all; only one of `first` and `last` is for all of many."""

    places: tuple[Int64[Tensor, "pos k_start"], Int64[Tensor, "pos k_end"]]
    """Which rows belong to each token."""

    scaled: tuple[Scaled | None, Scaled | None] = (None, None)
    """What is done to them before, for the starts and the ends."""

    dtype: torch.dtype | None = None
    """The type of the products, of all numbers that go into them and come out; None: that of the
    rows. Sums over tokens have the type of the rows."""

    def weights(self, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(first, last) in the type of the products."""
        first, last = ([weight.to(dtype) for weight in part] for part in (self.first, self.last))
        return tuple(first), tuple(last)

    def chunks(self) -> list[slice]:
        """Runs of tokens."""
        n_tokens, k = self.places[0].shape
        if k == 0:
            return []
        length = max(1, CHAIN_ROWS // k)
        return [slice(start, min(start + length, n_tokens)) for start in range(0, n_tokens, length)]

    def rows(self, side: int, table: Float[Tensor, "n d"], chunk: slice) -> Float[Tensor, "c k d"]:
        """Some tokens' rows of one side, scaled."""
        places, scaled = self.places[side][chunk], self.scaled[side]
        rows = table.index_select(0, places.flatten()).view(*places.shape, table.shape[1])
        return rows if scaled is None else scaled.of(rows, chunk)

    def add_(
        self, side: int, table: Float[Tensor, "n d"], rows: Float[Tensor, "c k d"], chunk: slice
    ) -> None:
        """Add to the rows that `rows` gives what came back for them."""
        scaled = self.scaled[side]
        rows = rows if scaled is None else scaled.of(rows, chunk)
        table.index_add_(0, self.places[side][chunk].flatten(), rows.flatten(0, 1).to(table))

    def room(self, like: Float[Tensor, "..."]) -> Float[Tensor, "n_buffers n d_mlp"]:
        """Buffers for a chunk in the hidden units: fresh memory is slow."""
        n_tokens, k = self.places[0].shape
        n_rows = min(max(CHAIN_ROWS, k), n_tokens * k)
        return like.new_empty(min(2, len(self.slopes)), n_rows, self.slopes[0].shape[1])

    def through(
        self,
        rows: Float[Tensor, "c k d_from"],
        chunk: slice,
        weights: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
        room: Float[Tensor, "n_buffers n d_mlp"],
    ) -> Float[Tensor, "c k d_to"]:
        """Σ_way (rows first_way · slopes_way) last_way; what all ways share is done once."""
        (first, last), flat = weights, rows.flatten(0, 1)
        slopes = [slope[chunk, None].to(rows) for slope in self.slopes]
        hidden, *more = (part[: len(flat)] for part in room)
        shaped = (*rows.shape[:2], -1)
        torch.mm(flat, first[0], out=hidden)
        if len(last) == 1:
            hidden.view(shaped).mul_(slopes[0])
            for weight, slope in zip(first[1:], slopes[1:], strict=True):
                torch.mm(flat, weight, out=more[0])
                hidden.view(shaped).addcmul_(more[0].view(shaped), slope)
            return (hidden @ last[0]).view(shaped)
        moved = flat.new_zeros(len(flat), last[0].shape[1])
        for weight, slope in zip(last, slopes, strict=True):
            torch.mul(hidden.view(shaped), slope, out=more[0].view(shaped))
            moved.addmm_(more[0], weight)
        return moved.view(shaped)


class _Chained(torch.autograd.Function):
    """Chunks of rows through the weights; backward they go the other way."""

    @staticmethod
    def forward(ctx: Any, starts, ends, chain):
        ctx.chain, ctx.types = chain, (starts.dtype, ends.dtype)
        dtype = starts.dtype if chain.dtype is None else chain.dtype
        starts, ends = starts.to(dtype), ends.to(dtype)
        (pos, k_start), k_end = chain.places[0].shape, chain.places[1].shape[1]
        blocks = starts.new_empty(pos, k_start, k_end)
        # What the gradient of `ends` needs: as wide as the ends, not as the hidden units.
        kept = starts.new_empty(pos, k_start, ends.shape[1]) if ctx.needs_input_grad[1] else None
        weights, room = chain.weights(dtype), chain.room(starts)
        for chunk in chain.chunks():
            moved = chain.through(chain.rows(0, starts, chunk), chunk, weights, room)
            torch.bmm(moved, chain.rows(1, ends, chunk).mT, out=blocks[chunk])
            if kept is not None:
                kept[chunk] = moved
        ctx.save_for_backward(starts, ends, kept)
        return blocks.to(ctx.types[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        chain, (starts, ends, kept) = ctx.chain, ctx.saved_tensors
        needs, gradient = ctx.needs_input_grad, gradients[0].to(starts)
        of_starts, of_ends = (
            torch.zeros_like(rows, dtype=dtype) if need else None
            for rows, dtype, need in zip((starts, ends), ctx.types, needs[:2], strict=True)
        )
        first, last = chain.weights(starts.dtype)
        back = tuple(weight.T for weight in last), tuple(weight.T for weight in first)
        room = chain.room(starts)
        for chunk in chain.chunks():
            here = gradient[chunk]
            if of_ends is not None:
                chain.add_(1, of_ends, here.mT @ kept[chunk], chunk)
            if of_starts is not None:
                moved = here @ chain.rows(1, ends, chunk)
                chain.add_(0, of_starts, chain.through(moved, chunk, back, room), chunk)
        return of_starts, of_ends, None


class _Buffers:
    """Room for the gathered rows of a chunk of tokens."""

    def __init__(
        self,
        reads: Float[Tensor, "n_out d_mlp"],
        out_rows: Int64[Tensor, "pos k_out"],
        in_rows: Int64[Tensor, "pos k_in"],
    ) -> None:
        self.n_tokens, k_out = out_rows.shape
        k_in, d_mlp = in_rows.shape[1], reads.shape[1]
        longest = max(1, CHUNK_NUMBERS // max(1, max(k_out, k_in) * d_mlp))
        self.length = min(longest, max(1, self.n_tokens))
        self.read = reads.new_empty(self.length, k_out, d_mlp)
        self.moved = reads.new_empty(self.length, k_in, d_mlp)
        self.further: Tensor | None = None

    def chunks(self) -> list[slice]:
        """Runs of tokens."""
        return [
            slice(first, min(first + self.length, self.n_tokens))
            for first in range(0, self.n_tokens, self.length)
        ]

    def gather(
        self,
        chunk: slice,
        rows: tuple[Int64[Tensor, "pos k_out"], Int64[Tensor, "pos k_in"]],
        reads: Float[Tensor, "n_out d_mlp"],
        tables: Any,
    ) -> tuple[Float[Tensor, "c k_out d_mlp"], Float[Tensor, "c k_in d_mlp"]]:
        """(what is read, what is written into the hidden units times their slopes)."""
        out_rows, in_rows = rows[0][chunk], rows[1][chunk]
        n_ways = len(tables) // 2
        read = _gathered(reads, out_rows, self.read)
        moved = _gathered(tables[0], in_rows, self.moved).mul_(tables[n_ways][chunk, None])
        for way in range(1, n_ways):
            if self.further is None:
                self.further = torch.empty_like(self.moved)
            more = _gathered(tables[way], in_rows, self.further)
            moved.addcmul_(more, tables[n_ways + way][chunk, None])
        return read, moved


def _gathered(
    table: Float[Tensor, "n d_mlp"], rows: Int64[Tensor, "c k"], buffer: Float[Tensor, "c_max k d"]
) -> Float[Tensor, "c k d_mlp"]:
    """Rows of a table, in the buffer."""
    room = buffer[: len(rows)]
    torch.index_select(table, 0, rows.flatten(), out=room.view(rows.numel(), table.shape[1]))
    return room
