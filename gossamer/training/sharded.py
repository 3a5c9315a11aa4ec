"""Selection by rank where the latents, or the tokens, are spread over processes. Exact.

TopK: every process finds the k largest of its own latents; their values alone are exchanged, and
all processes sort the same list, so they agree on which are kept (ties go to the process before).

BatchTopK: the K-th largest of all values of all processes is found bit by bit of its binary form,
which for positive floats is in their order: three histograms of at most 2,048 counts are added up
for float32, whatever the batch. A fourth sum says how ties are shared out, and whether a token's
candidates were too few: its others are then added, and the search is made once more.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gossamer.distributed import Mesh
from gossamer.kernels.encode import CANDIDATES, Found, as_rows, encode_at_least, encode_topk

DIGIT_BITS = 11
"""Bits of a value that one histogram tells apart."""


def kept_of(
    sizes: Float[Tensor, "batch k_here"], k: int, mesh: Mesh, *, width: int | None = None
) -> Bool[Tensor, "batch k_here"] | None:
    """Which of the candidates here, at most k, are among the k largest of each token over tp; None
    for all of them, where no other process has any.

    `width` is how many candidates the process with most of them has; None: all as many as here.
    """
    if mesh.tp == 1:
        return None
    n_here = sizes.shape[1]
    n_each = n_here if width is None else width
    padded = sizes.new_full((len(sizes), n_each), -torch.inf)
    padded[:, :n_here] = sizes
    everyone = mesh.gathered(padded, "tp").transpose(0, 1).flatten(1)
    order = everyone.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(everyone, dtype=torch.bool).scatter_(1, order, True)
    first = mesh.tp_rank * n_each
    return kept[:, first : first + n_here]


def kept_pairs(
    values: Float[Tensor, "batch k_here"],
    indices: Int64[Tensor, "batch k_here"],
    kept: Bool[Tensor, "batch k_here"] | None,
) -> Found:
    """The kept candidates as CSR rows; None: all are kept."""
    if kept is None:
        offsets = torch.arange(len(values) + 1, device=values.device) * values.shape[1]
        return values.flatten(), indices.flatten(), offsets
    offsets = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
    offsets[1:] = kept.sum(1).cumsum(0)
    return values[kept], indices[kept], offsets


class Cut(NamedTuple):
    """Where the n largest of many values end."""

    value: Float[Tensor, ""]
    """The n-th largest; 0 where there are fewer."""

    n_ties: int
    """How many of those equal to it are among the n largest."""


def cut_of(values: Float[Tensor, " n"], n: int, mesh: Mesh) -> Cut:
    """The n-th largest of the positive values of all processes; `n` here, added up over them."""
    bits = values.to(torch.promote_types(values.dtype, torch.float32))
    integer = torch.int64 if bits.dtype == torch.float64 else torch.int32
    keys = bits[bits > 0].view(integer).long()
    left: int | None = None
    value = 0
    for shift, n_bits in _digits(64 if integer is torch.int64 else 32):
        digits = (keys >> shift) & (2**n_bits - 1)
        counts = torch.bincount(digits, minlength=2**n_bits + 1)
        if left is None:
            counts[-1] = n  # how many are wanted travels with the first counts
        counts = mesh.add_(counts, "all").cpu()  # one wait for the device
        if left is None:
            left = int(counts[-1])
            if int(counts[:-1].sum()) < left:
                return Cut(bits.new_zeros(()), 0)
        from_above = counts[:-1].flip(0).cumsum(0)
        place = int((from_above < left).sum())
        digit = 2**n_bits - 1 - place
        left -= int(from_above[place - 1]) if place else 0
        value |= digit << shift
        keys = keys[digits == digit]
    assert left is not None
    found = torch.tensor(value, dtype=integer, device=values.device).view(bits.dtype)
    return Cut(found.to(values.dtype), left)


def _digits(n_bits: int) -> tuple[tuple[int, int], ...]:
    """(where it begins, bits) of each digit, the highest first: (21, 11), (10, 11), (0, 10)."""
    ends = range(n_bits, 0, -DIGIT_BITS)
    return tuple((max(0, end - DIGIT_BITS), min(DIGIT_BITS, end)) for end in ends)


def encode_batch_topk_over(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    *,
    k: int,
    mesh: Mesh,
) -> Found:
    """The pairs here of the k · batch largest positive pre-activations of all processes."""
    n_candidates = min(CANDIDATES * k, len(W_enc))
    values, indices = encode_topk(u, W_enc, b_enc, n_candidates)
    rows = torch.arange(len(u), device=u.device)[:, None].expand_as(indices)
    lowest = values.amin(1)
    found = (values.flatten(), indices.flatten(), rows.flatten())
    n_here = k * len(u) if mesh.tp_rank == 0 else 0  # the tokens of a tp group are the same
    cut = cut_of(found[0], n_here, mesh)
    full = lowest >= cut.value if n_candidates < len(W_enc) else torch.zeros_like(lowest).bool()
    ties, n_full = _ties(found[0], cut, int(full.sum()), mesh)
    if n_full:
        more = _others(u, (W_enc, b_enc), full, cut)
        places = [part[1] + part[2] * len(W_enc) for part in (more, found)]
        new = ~torch.isin(*places)
        pairs = zip(found, (part[new] for part in more), strict=True)
        found = tuple(torch.cat(part) for part in pairs)
        cut = cut_of(found[0], n_here, mesh)
        ties, _ = _ties(found[0], cut, 0, mesh)
    kept = found[0] > cut.value
    if ties:
        kept[(found[0] == cut.value).nonzero()[:ties, 0]] = True
    return as_rows((found[0][kept], found[1][kept], found[2][kept]), len(u))


def _ties(values: Tensor, cut: Cut, n_full: int, mesh: Mesh) -> tuple[int, int]:
    """(values equal to the cut that are kept here, tokens anywhere whose candidates are too few).

    The processes take theirs in order until there are enough.
    """
    counts = torch.zeros(mesh.size + 1, dtype=torch.int64, device=values.device)
    place = mesh.dp_rank * mesh.tp + mesh.tp_rank
    here = int((values == cut.value).sum())
    counts[place], counts[-1] = here, n_full
    mesh.add_(counts, "all")
    before = int(counts[:place].sum())
    return max(0, min(here, cut.n_ties - before)), int(counts[-1])


def _others(
    u: Tensor, encoder: tuple[Tensor, Tensor], full: Bool[Tensor, " batch"], cut: Cut
) -> tuple[Tensor, Tensor, Tensor]:
    """All entries from the cut on of the tokens that may have left some out."""
    tokens = full.nonzero()[:, 0]
    values, indices, rows = encode_at_least(u[tokens], *encoder, cut.value)
    return values, indices, tokens[rows]
