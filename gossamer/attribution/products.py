"""Many derivatives between two places of one prompt, in reverse or forward mode.

    gradients[t, s] = read(t) · ∂M[p(t)]/∂x[p(s)] · write(s)

Reverse mode pulls each target's read row back to the source's site: one vector–Jacobian product a
target. Targets go in bands of neighbouring positions, and a band runs the blocks on the prompt only
up to its own end: nothing later can matter. In the last block only the band's rows are computed.
What comes back is contracted with the write rows of the sources, position by position, so that
neither a dense (pos, d_sae) tensor nor a gathered (n_sources, d) one is ever made.

Forward mode pushes each source's write row on to the target's site: one Jacobian–vector product a
source, over the whole prompt. It is written as the derivative of a vector–Jacobian product by its
cotangent, which is the same linear map. `cheaper_forward` says when it is taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.attribution.nodes import Directions, NodeTable
from gossamer.errors import GossamerError
from gossamer.models.between import Between

BAND = 48
"""Targets that make it worth running the blocks on one more prefix of the prompt."""

FORWARD_COST = 1.5
"""What a forward-mode product costs, in reverse-mode ones over as many positions."""


@dataclass(frozen=True, slots=True)
class Ends:
    """What to differentiate: the way, the value put in at its start, the nodes at both ends."""

    between: Between | None
    """None when source and target stand at one site: the way is the identity."""

    value: Float[Tensor, "1 pos *rest"]
    """What is put in at the source's site."""

    sources: Directions
    """What is written there, sorted by position."""

    targets: Directions
    """What is read at the way's end, sorted by position."""


def bands(positions: list[int], at_least: int) -> Iterator[slice]:
    """Slices of sorted target positions: whole positions together, `at_least` targets or more."""
    start = 0
    for i in range(1, len(positions) + 1):
        new_position = i == len(positions) or positions[i] != positions[i - 1]
        if new_position and (i - start >= at_least or i == len(positions)):
            yield slice(start, i)
            start = i


def cheaper_forward(ends: Ends) -> bool:
    """Whether pushing the sources forward costs less than pulling the targets back.

    A product costs its positions: a target's end at its band's, a source's at the last target.
    """
    positions = ends.targets.nodes.positions.tolist()
    if ends.between is None or not positions:
        return False
    reverse = sum((b.stop - b.start) * (positions[b.stop - 1] + 1) for b in bands(positions, BAND))
    n_sources = int((ends.sources.nodes.positions <= positions[-1]).sum())
    return FORWARD_COST * n_sources * (positions[-1] + 1) < reverse


def pulled_back(ends: Ends, at_once: int) -> tuple[Float[Tensor, "n_targets n_sources"], bool]:
    """Gradients by reverse mode, `at_once` products at a time, and whether every way is blocked."""
    out = _empty(ends)
    positions = ends.targets.nodes.positions.tolist()
    columns = list(_by_position(ends.sources))
    for band in bands(positions, BAND):
        start, stop = positions[band.start], positions[band.stop - 1] + 1
        leaf, read = _run(ends, start, stop)
        if not read.requires_grad:
            return out, True
        for first in range(band.start, band.stop, at_once):
            chunk = slice(first, min(first + at_once, band.stop))
            cotangents = _cotangents(ends.targets, chunk, read, start)
            (gradient,) = torch.autograd.grad(
                read, leaf, cotangents, is_grads_batched=True, retain_graph=True
            )
            _contract(gradient[:, 0].flatten(2), _rows(ends.sources), columns, out[chunk])
    return out, False


def pushed_forward(ends: Ends, at_once: int) -> tuple[Float[Tensor, "n_targets n_sources"], bool]:
    """The same by forward mode."""
    out = _empty(ends)
    positions = ends.targets.nodes.positions.tolist()
    start, stop = positions[0], positions[-1] + 1
    leaf, read = _run(ends, start, stop)
    if not read.requires_grad:
        return out, True
    dummy = torch.zeros_like(read, requires_grad=True)
    (back,) = torch.autograd.grad(read, leaf, dummy, create_graph=True)  # linear in dummy
    n_sources = int((ends.sources.nodes.positions < stop).sum())
    for first in range(0, n_sources, at_once):
        chunk = slice(first, min(first + at_once, n_sources))
        tangents = _placed(ends.sources, chunk, back, 0)
        (moved,) = torch.autograd.grad(
            back, dummy, tangents, is_grads_batched=True, retain_graph=True
        )
        _read_off(moved[:, 0].flatten(2), ends.targets, start, out[:, chunk])
    return out, False


def at_one_site(ends: Ends) -> Float[Tensor, "n_targets n_sources"]:
    """Read rows against write rows, where both stand at the same position of one site."""
    out = _empty(ends)
    reads, writes = _rows(ends.targets), _rows(ends.sources)
    columns = dict(_by_position(ends.sources))
    for position, rows in _by_position(ends.targets):
        if position in columns:
            out[rows, columns[position]] = reads[rows] @ writes[columns[position]].T
    return out


def _empty(ends: Ends) -> Float[Tensor, "n_targets n_sources"]:
    """Zeros, in the wider of the types of the model and the SAEs."""
    dtype = torch.promote_types(ends.value.dtype, _rows(ends.sources).dtype)
    if ends.between is None:
        dtype = torch.promote_types(dtype, _rows(ends.targets).dtype)
    shape = (len(ends.targets.nodes), len(ends.sources.nodes))
    return torch.zeros(shape, dtype=dtype, device=ends.value.device)


def _run(ends: Ends, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """A leaf at the source's site, and what it makes of the target's at positions start..stop−1."""
    assert ends.between is not None
    with torch.enable_grad():
        leaf = ends.value[:, :stop].detach().requires_grad_()
        ids = None if ends.targets.rows is not None else _logit_ids(ends.targets.nodes)
        return leaf, ends.between.run(leaf, start, ids)


def _rows(directions: Directions) -> Float[Tensor, "n width"]:
    """The rows of nodes that have rows."""
    if directions.rows is None:
        raise GossamerError(f"Nodes at {directions.site} are read by token id, not by a row.")
    return directions.rows


def _logit_ids(nodes: NodeTable) -> Int64[Tensor, " n_ids"]:
    """The tokens whose logits are needed, each once, sorted."""
    both = (
        nodes.indices
        if nodes.distractors is None
        else torch.cat([nodes.indices, nodes.distractors])
    )
    return both.unique()


def _placed(
    directions: Directions, chunk: slice, like: Float[Tensor, "1 rows *rest"], start: int
) -> Float[Tensor, "chunk 1 rows *rest"]:
    """For each node of the chunk a tensor like `like`, its row at its position and 0 elsewhere."""
    rows = _rows(directions)[chunk]
    placed = like.new_zeros(len(rows), *like.shape)
    each = torch.arange(len(rows), device=like.device)
    positions = directions.nodes.positions[chunk] - start
    placed[each, 0, positions] = rows.reshape(len(rows), *like.shape[2:]).to(like.dtype)
    return placed


def _cotangents(
    targets: Directions, chunk: slice, read: Float[Tensor, "1 rows *rest"], start: int
) -> Float[Tensor, "chunk 1 rows *rest"]:
    """What is pulled back for each target of the chunk."""
    if targets.rows is not None:
        return _placed(targets, chunk, read, start)
    nodes, ids = targets.nodes, _logit_ids(targets.nodes)
    indices = nodes.indices[chunk]
    cotangents = read.new_zeros(len(indices), *read.shape)
    each = torch.arange(len(indices), device=read.device)
    positions = nodes.positions[chunk] - start
    cotangents[each, 0, positions, torch.searchsorted(ids, indices)] = 1
    if nodes.distractors is not None:
        cotangents[each, 0, positions, torch.searchsorted(ids, nodes.distractors[chunk])] -= 1
    return cotangents


def _by_position(directions: Directions) -> Iterator[tuple[int, slice]]:
    """(position, where its nodes stand) for the positions that have nodes."""
    positions, counts = directions.nodes.positions.unique_consecutive(return_counts=True)
    start = 0
    for position, count in zip(positions.tolist(), counts.tolist(), strict=True):
        yield position, slice(start, start + count)
        start += count


def _contract(
    gradient: Float[Tensor, "chunk pos width"],
    rows: Float[Tensor, "n_sources width"],
    columns: Sequence[tuple[int, slice]],
    out: Float[Tensor, "chunk n_sources"],
) -> None:
    """Each position's gradient dotted with the write rows of the sources there, into `out`."""
    for position, here in columns:
        if position >= gradient.shape[1]:
            break
        out[:, here] = gradient[:, position].to(out.dtype) @ rows[here].to(out.dtype).T


def _read_off(
    moved: Float[Tensor, "chunk rows width"],
    targets: Directions,
    start: int,
    out: Float[Tensor, "n_targets chunk"],
) -> None:
    """What each target reads of each pushed-forward source, into `out`."""
    if targets.rows is None:
        ids, nodes = _logit_ids(targets.nodes), targets.nodes
        logits = moved[:, 0].T
        values = logits[torch.searchsorted(ids, nodes.indices)]
        if nodes.distractors is not None:
            values = values - logits[torch.searchsorted(ids, nodes.distractors)]
        out[:] = values
        return
    for position, rows in _by_position(targets):
        reads = targets.rows[rows].to(out.dtype)
        out[rows] = reads @ moved[:, position - start].to(out.dtype).T
