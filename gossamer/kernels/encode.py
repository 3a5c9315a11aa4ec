"""Which (token, latent) pairs an SAE selects, found without keeping all pre-activations.

The product u W_encᵀ + b_enc is the one dense product of a training step. It is made for some tokens
at a time in one buffer that is used again, and only what the rule selects is kept:

    encode_topk         the k largest of each token
    encode_abs_topk     the k largest of each token in size, whatever their sign (arXiv 2510.00404)
    encode_batch_topk   the k · batch largest of the whole batch (arXiv 2412.06410)
    encode_above        those above a threshold for each latent, unless they are too many

Each stands beside the plain definition that it must equal. Nothing here is differentiable: the
selection is a constant, and `pairs.py` gives the selected values their gradients.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.kernels.pairs import pair_products
from gossamer.kernels.sparse import offsets_of_counts

CHUNK_ROWS = 512
"""Tokens encoded at a time: 1024 are as fast and take twice the memory, 256 are slower."""

CANDIDATES = 4
"""BatchTopK looks first at this many times k of each token."""

Found = tuple[Float[Tensor, " nnz"], Int64[Tensor, " nnz"], Int64[Tensor, " n_offsets"]]
"""Values, latents and row offsets of the selected pairs (CSR rows)."""


@torch.no_grad()
def encode_topk(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """The k largest pre-activations of each token, in no order, and their latents."""
    values, indices = u.new_empty(len(u), k), _empty_indices(u, k)
    for start, pre in _encoded(u, W_enc, b_enc):
        rows = slice(start, start + len(pre))
        torch.topk(pre, k, sorted=False, out=(values[rows], indices[rows]))
    return values, indices


def encode_topk_reference(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """The definition."""
    values, indices = (u @ W_enc.T + b_enc).topk(k)
    return values, indices


@torch.no_grad()
def encode_abs_topk(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """The k pre-activations of each token that are largest in size, in no order, and their
    latents."""
    values, indices = u.new_empty(len(u), k), _empty_indices(u, k)
    for start, pre in _encoded(u, W_enc, b_enc):
        rows = slice(start, start + len(pre))
        torch.topk(pre.abs(), k, sorted=False, out=(values[rows], indices[rows]))
        torch.gather(pre, 1, indices[rows], out=values[rows])
    return values, indices


def encode_abs_topk_reference(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """The definition."""
    pre = u @ W_enc.T + b_enc
    indices = pre.abs().topk(k).indices
    return pre.gather(1, indices), indices


@torch.no_grad()
def encode_topk_bfloat16(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> tuple[Float[Tensor, "batch k"], Int64[Tensor, "batch k"]]:
    """As `encode_topk`, from 2k candidates found in bfloat16 and computed again as u is.

    The values are exact. A latent can be missed whose bfloat16 value is not among the 2k largest;
    bfloat16 alone would choose about one in fifty otherwise, the candidates bring that near none.
    """
    coarse = [tensor.bfloat16() for tensor in (u, W_enc, b_enc)]
    n_candidates = min(2 * k, len(W_enc))
    _, candidates = encode_topk(coarse[0], coarse[1], coarse[2], n_candidates)
    values = pair_products(u, W_enc, candidates) + b_enc[candidates]
    values, places = values.topk(k, sorted=False)
    return values, candidates.gather(1, places)


@torch.no_grad()
def encode_batch_topk(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> Found:
    """The k · batch largest pre-activations of the batch that are positive.

    Each token's 4k largest are candidates. What a token left out is at most its smallest candidate;
    so where that is below the smallest value selected, nothing was missed. The other tokens are
    encoded again and all their entries from there on become candidates; the threshold can only
    rise, so one such round is enough.
    """
    n_candidates = min(CANDIDATES * k, len(W_enc))
    values, indices = encode_topk(u, W_enc, b_enc, n_candidates)
    rows = torch.arange(len(u), device=u.device)[:, None].expand_as(indices)
    candidates = (values.flatten(), indices.flatten(), rows.flatten())
    chosen = _largest(candidates, k * len(u))
    is_full_up = len(chosen[0]) == k * len(u)  # otherwise there is room for every positive value
    threshold = chosen[0].min() if is_full_up else u.new_tensor(0.0)
    full = (values.amin(1) >= threshold).nonzero()[:, 0]
    if len(full) and n_candidates < len(W_enc):
        more = encode_at_least(u[full], W_enc, b_enc, threshold)
        more = (*more[:2], full[more[2]])
        # Computed in another piece a value can differ in its last bit, so pairs are told apart by
        # their places.
        places = [indices + rows * len(W_enc) for _, indices, rows in (more, candidates)]
        new = ~torch.isin(*places)
        parts = zip(candidates, (part[new] for part in more), strict=True)
        chosen = _largest(tuple(torch.cat(part) for part in parts), k * len(u))
    return as_rows(chosen, len(u))


def encode_batch_topk_reference(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
) -> Found:
    """The definition."""
    pre = u @ W_enc.T + b_enc
    flat = torch.zeros_like(pre).flatten()
    largest = pre.flatten().topk(k * len(u))
    flat = flat.scatter(0, largest.indices, largest.values.relu()).view_as(pre)
    rows, indices = flat.nonzero(as_tuple=True)
    return flat[rows, indices], indices, offsets_of_counts((flat > 0).sum(1))


@torch.no_grad()
def encode_above(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, " d_sae"],
    *,
    max_density: float = 1.0,
) -> Found | None:
    """The pre-activations above the threshold of their latent.

    None when they are more than `max_density` of all, which is known after a part of the tokens:
    a dense product is then the faster way.
    """
    limit = max_density * len(u) * len(W_enc)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    count = 0
    for start, pre in _encoded(u, W_enc, b_enc):
        rows, indices = (pre > threshold).nonzero(as_tuple=True)
        found.append((pre[rows, indices], indices, rows + start))
        count += len(rows)
        if count > limit or (start == 0 and count > 2 * max_density * pre.numel()):
            return None
    values, indices, rows = (torch.cat(part) for part in zip(*found, strict=True))
    return values, indices, offsets_of_counts(torch.bincount(rows, minlength=len(u)))


@torch.no_grad()
def encode_at_least(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, ""],
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, latents and rows of the entries at or above one threshold; of no tokens none."""
    parts = [(u.new_empty(0), *torch.empty(2, 0, dtype=torch.int64, device=u.device))]
    for start, pre in _encoded(u, W_enc, b_enc):
        rows, indices = (pre >= threshold).nonzero(as_tuple=True)
        parts.append((pre[rows, indices], indices, rows + start))
    values, indices, rows = (torch.cat(part) for part in zip(*parts, strict=True))
    return values, indices, rows


def encode_above_reference(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, " d_sae"],
) -> Found:
    """The definition."""
    pre = u @ W_enc.T + b_enc
    above = pre > threshold
    rows, indices = above.nonzero(as_tuple=True)
    return pre[rows, indices], indices, offsets_of_counts(above.sum(1))


def _encoded(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
) -> Iterator[tuple[int, Float[Tensor, "rows d_sae"]]]:
    """(first token, pre-activations) of some tokens at a time, in one buffer."""
    buffer = u.new_empty(min(CHUNK_ROWS, len(u)), len(W_enc))
    for start in range(0, len(u), CHUNK_ROWS):
        some = u[start : start + CHUNK_ROWS]
        yield start, torch.addmm(b_enc, some, W_enc.T, out=buffer[: len(some)])


def _largest(candidates: tuple[Tensor, ...], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The n largest positive candidates (values, latents, rows)."""
    values, indices, rows = candidates
    positive = (values > 0).nonzero()[:, 0]
    if len(positive) > n:
        positive = positive[values[positive].topk(n, sorted=False).indices]
    return values[positive], indices[positive], rows[positive]


def as_rows(chosen: tuple[Tensor, Tensor, Tensor], n_rows: int) -> Found:
    """Chosen entries (values, latents, rows) as CSR rows."""
    values, indices, rows = chosen
    order = rows.argsort(stable=True)
    counts = torch.bincount(rows, minlength=n_rows)
    return values[order], indices[order], offsets_of_counts(counts)


def _empty_indices(u: Float[Tensor, "batch d_in"], k: int) -> Int64[Tensor, "batch k"]:
    return torch.empty(len(u), k, dtype=torch.int64, device=u.device)
