"""Edits made: where each one acts on a value, and the value that it leaves."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gossamer.edits.edit import (
    NEURONS,
    PATTERNS,
    AbstractEdit,
    Patch,
    Selection,
    chosen_indices,
    indices_of,
)
from gossamer.errors import PromptError, ShapeError


class _Tokens(NamedTuple):
    """The tokens of a batch."""

    positions: Int[Tensor, "batch pos"]
    """Position of each one in its own prompt."""

    mask: Bool[Tensor, "batch pos"]
    """True at real ones."""

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of tokens of each prompt."""
        return self.mask.sum(-1)


def resolved(edits: Iterable[AbstractEdit], written: Collection[str]) -> tuple[AbstractEdit, ...]:
    """The edits, those by a node's id as what it means where SAEs write these sites: a latent of
    the SAE, else a neuron or head."""
    return tuple(
        edit
        if edit.latents is None or edit.units is None
        else replace(edit, **{"units" if edit.at in written else "latents": None})
        for edit in edits
    )


def edited_writers(edits: Iterable[AbstractEdit], written: Collection[str]) -> set[str]:
    """The sites of these SAEs whose latents or error some edit changes: without that, a splice with
    its error recomputed writes what it finds."""
    return {
        edit.at
        for edit in resolved(edits, written)
        if edit.latents is not None or edit.part is not None
    }


def apply_edits(
    edits: Iterable[AbstractEdit],
    value: Float[Tensor, "batch ..."],
    positions: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch ..."]:
    """`value` after each edit in turn: the value at their site, its latents, or its error.

    `positions` and `mask` say which position each token has in its own prompt and which tokens are
    real. The value's position axis is 1, or 2 for attention scores and patterns (batch, n_heads,
    pos, key).
    """
    tokens = _Tokens(positions, mask)
    for edit in edits:
        where = _where(edit, value, tokens)
        made = _aligned(edit, value, where, tokens) if isinstance(edit, Patch) else edit
        changed = made.change(value) if edit.along is None else _changed_along(made, value)
        value = torch.where(where, changed, value)
    return value


def _where(edit: AbstractEdit, value: Tensor, tokens: _Tokens) -> Bool[Tensor, "batch ..."]:
    """Where an edit acts, broadcasting to the value."""
    rows = torch.ones_like(tokens.mask[:, 0])
    if edit.prompts is not None:
        rows = torch.zeros_like(rows)
        rows[chosen_indices(edit.prompts, len(rows), "prompt of this batch")] = True
    kind = edit.at.split(".", 2)[-1]
    if kind in PATTERNS:
        where = _entries(edit, tokens, rows)[:, None]
    else:
        where = _named(edit.positions, tokens, rows)
        where = where.reshape(*where.shape, *[1] * (value.ndim - 2))
    chosen = edit.units if edit.latents is None else edit.latents
    if chosen is None:
        return where
    axis = 1 if kind in PATTERNS else 2
    what = f"{'neuron' if kind in NEURONS else 'head'} of {edit.at}"
    what = what if edit.latents is None else f"latent of the SAE at {edit.at}"
    among = torch.zeros(value.shape[axis], dtype=torch.bool, device=value.device)
    among[chosen_indices(chosen, len(among), what)] = True
    return where & among.reshape(-1, *[1] * (value.ndim - 1 - axis))


def _entries(
    edit: AbstractEdit, tokens: _Tokens, rows: Bool[Tensor, " batch"]
) -> Bool[Tensor, "batch pos key"]:
    """The entries of a pattern that an edit acts on, none of which lies ahead of its query."""
    queries, keys = (_named(which, tokens, rows) for which in (edit.positions, edit.keys))
    if edit.positions is not None and edit.keys is not None:
        at, to = (_placed(which, tokens, rows) for which in (edit.positions, edit.keys))
        ahead = rows[:, None, None] & (to[:, None] > at[:, :, None])
        if ahead.any():
            row, query, key = ahead.nonzero()[0].tolist()
            raise PromptError(
                f"Key {int(to[row, key])} lies after query {int(at[row, query])} in prompt {row}, "
                "which does not see it; name keys up to each query, or leave positions out for "
                "every query that sees the key."
            )
    seen = tokens.positions[:, None] <= tokens.positions[:, :, None]
    return queries[:, :, None] & keys[:, None] & seen


def _named(
    named: Selection, tokens: _Tokens, rows: Bool[Tensor, " batch"]
) -> Bool[Tensor, "batch pos"]:
    """Which tokens are named, in these rows."""
    real = tokens.mask & rows[:, None]
    if named is None:
        return real
    placed = _placed(named, tokens, rows)
    return real & (tokens.positions[:, :, None] == placed[:, None]).any(-1)


def _placed(
    named: Selection, tokens: _Tokens, rows: Bool[Tensor, " batch"]
) -> Int[Tensor, "batch n"]:
    """Named positions counted from the start of each prompt. PromptError for one outside a row."""
    lengths = tokens.lengths
    placed, numbers = _counted(named, lengths)
    outside = rows[:, None] & ((placed < 0) | (placed >= lengths[:, None]))
    if outside.any():
        row, which = outside.nonzero()[0].tolist()
        raise PromptError(
            f"Position {int(numbers[which])} is not in prompt {row}, which has "
            f"{int(lengths[row])} tokens (0..{int(lengths[row]) - 1}, or negative from the end)."
        )
    return placed


def _counted(
    named: Selection, lengths: Int[Tensor, " batch"]
) -> tuple[Int[Tensor, "batch n"], Int[Tensor, " n"]]:
    """Named positions counted from the start of each prompt, and as they were named."""
    numbers = torch.tensor(indices_of(named), dtype=torch.long, device=lengths.device)
    return torch.where(numbers < 0, lengths[:, None] + numbers, numbers), numbers


def _aligned(edit: Patch, value: Tensor, where: Bool[Tensor, "batch ..."], here: _Tokens) -> Patch:
    """The patch with its source's values at the tokens of `value` that they are for."""
    given, is_pattern = edit.recorded(), edit.at.endswith(PATTERNS)
    axis = 2 if is_pattern else 1
    mask = getattr(edit.source, "mask", None)
    has_positions = given.ndim == value.ndim and (mask is not None or given.shape[axis] > 1)
    if is_pattern and mask is None:
        has_positions = has_positions and given.shape[2] == given.shape[3]
    if not has_positions and edit.from_positions is None:
        return replace(edit, source=given)  # one for all tokens, or one for each as it stands
    if not has_positions or len(given) not in (1, len(value)):
        raise ShapeError(
            f"Patch at {edit.at} was given a source of shape {tuple(given.shape)} for the value "
            f"there, {tuple(value.shape)}. Give a trace of one prompt or of as many as this run "
            "has."
        )
    if mask is None:
        mask = torch.ones(len(given), given.shape[axis], dtype=torch.bool)
    mask = mask.to(value.device).expand(len(value), -1)
    given = given.to(value.device).expand(len(value), *given.shape[1:])
    acts = where.any(1).any(-1) if is_pattern else where.flatten(2).any(-1)
    wanted, lengths = here.positions, (mask.sum(-1), here.lengths)
    if edit.from_positions is not None:
        targets, _ = _counted(edit.positions, lengths[1])
        sources, _ = _counted(edit.from_positions, lengths[0])
        for target, source in zip(targets.T, sources.T, strict=True):
            wanted = torch.where(here.positions == target[:, None], source[:, None], wanted)
    _check_there(edit, wanted, acts, lengths)
    start = mask.long().argmax(-1, keepdim=True)  # past padding on the left
    last = mask.shape[1] - 1
    index = (start + wanted).clamp(0, last)
    row = torch.arange(len(value), device=value.device)
    if not is_pattern:
        return replace(edit, source=given[row[:, None], index], from_positions=None)
    _check_there(edit, here.positions, where.any(1).any(1), lengths)
    keys = (start + here.positions).clamp(0, last)
    picked = given[row[:, None, None], :, index[:, :, None], keys[:, None]].movedim(-1, 1)
    return replace(edit, source=picked, from_positions=None)


def _check_there(
    edit: Patch,
    wanted: Int[Tensor, "batch pos"],
    acts: Bool[Tensor, "batch pos"],
    lengths: tuple[Int[Tensor, " batch"], Int[Tensor, " batch"]],
) -> None:
    """PromptError when a position that is needed is none of the source's; `lengths` are the
    source's and this run's."""
    missing = acts & ((wanted < 0) | (wanted >= lengths[0][:, None]))
    if missing.any():
        row, token = missing.nonzero()[0].tolist()
        raise PromptError(
            f"Patch at {edit.at} takes position {int(wanted[row, token])} of a source that has "
            f"{int(lengths[0][row])} tokens, for prompt {row}, which has {int(lengths[1][row])}; "
            "name positions= that both have, or pair them by from_positions=."
        )


def _changed_along(edit: AbstractEdit, value: Tensor) -> Tensor:
    """The value with its coordinate along the edit's direction changed."""
    assert edit.along is not None
    width = value[0, 0].numel()
    if edit.at.endswith((*PATTERNS, "hook_scale")) or len(edit.along) != width:
        raise ShapeError(
            f"along has width {len(edit.along)}, but the value at {edit.at} has shape "
            f"{tuple(value.shape)}: give a direction as wide as the site, at a site that has one."
        )
    # In float32 at least: a coordinate is a long sum.
    wide = torch.promote_types(value.dtype, torch.float32)
    direction = edit.along.to(value.device, wide)
    direction, flat = direction / direction.norm(), value.flatten(2).to(wide)
    before = (flat * direction).sum(-1, keepdim=True)
    if isinstance(edit, Patch):
        other = edit.change(value).flatten(2).to(wide)
        edit = replace(edit, source=(other * direction).sum(-1, keepdim=True))
    changed = flat + (edit.change(before) - before) * direction
    return changed.to(value.dtype).reshape(value.shape)
