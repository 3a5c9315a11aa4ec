"""Blocks of an MLP's Jacobian between the active latents before and after it.

    J[t, j, i] = Σ_m reads[o(t, j), m] · Σ_way slopes_way[t, m] · writes_way[i(t, i), m]

reads[j] = what the hidden units write into latent j (W_enc W_out), writes[i] = what latent i writes
into the hidden units (W_dec W_inᵀ), each with the latent first: a token then reads k whole rows of
each. Gathering columns of a table with the latent last costs several times as much.

Tokens go in chunks that stay in a processor's cache, in buffers that are used again: nothing of
size tokens × k × d_mlp is ever made, neither here nor for the gradient.
"""

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int64
from torch import Tensor

CHUNK_NUMBERS = 786_432
"""Numbers of one gathered operand at a time: 8 tokens of k=32 in 3072 hidden units."""


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
