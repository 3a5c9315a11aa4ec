"""Edits: changes at a site, as values. What each does to the value it selects:

    Ablate   0                     Set      a given value
    Scale    value × factor        Patch    the value of another run
    Steer    value + direction     Detach   the value, as a constant

`at` is a site, `"blocks.3.hook_resid_pre"`, or a latent at a position,
`"blocks.3.hook_resid_pre/1234@7"`. With `latents` the edit is on latents of the SAE spliced there,
before they are decoded. `positions` and `prompts` select tokens; negative positions count from each
prompt's own end, None selects all.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gossamer.errors import PromptError, ShapeError, SiteError
from gossamer.sites import parse_node

Selection = int | Sequence[int] | None
"""One index, several, or None for all."""


@runtime_checkable
class Recorded(Protocol):
    """What `Patch` takes values from: a trace, or anything with its values by site."""

    @property
    def activations(self) -> Mapping[str, Tensor]:
        """Values at sites."""
        ...

    @property
    def latents(self) -> Mapping[str, Tensor]:
        """Latents by the site that their SAE writes."""
        ...


@dataclass(frozen=True, kw_only=True)
class AbstractEdit(ABC):
    """Where an edit acts. What it does is `change`."""

    at: str = field(kw_only=False)
    """A site, or a latent at a position."""

    latents: Selection = None
    """Latents of the SAE spliced at the site; None: the value at the site itself."""

    positions: Selection = None
    """Positions in the prompt; None: all."""

    prompts: Selection = None
    """Rows of the batch; None: all."""

    def __post_init__(self) -> None:
        if "/" not in self.at:
            return
        node = parse_node(self.at)
        if not isinstance(node.unit, int) or node.key_position is not None:
            raise SiteError(
                f'"{self.at}" is not a latent. An edit takes a site, or a latent at a position '
                "such as blocks.3.hook_resid_pre/1234@7."
            )
        if self.latents is not None or self.positions is not None:
            raise SiteError(
                f'"{self.at}" names its latent and position; leave latents= and positions= out.'
            )
        object.__setattr__(self, "at", node.site)
        object.__setattr__(self, "latents", node.unit)
        object.__setattr__(self, "positions", node.position)

    @abstractmethod
    def change(self, value: Tensor) -> Tensor:
        """The new value everywhere; `apply_edits` keeps it only where the edit acts."""


@final
@dataclass(frozen=True)
class Ablate(AbstractEdit):
    """Set to zero."""

    def change(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


@final
@dataclass(frozen=True)
class Set(AbstractEdit):
    """Set to a value: a number, or a tensor that broadcasts to the value at the site."""

    value: float | Tensor = field(kw_only=False)

    def change(self, value: Tensor) -> Tensor:
        return _broadcast(self, self.value, value)


@final
@dataclass(frozen=True)
class Scale(AbstractEdit):
    """Multiply by a factor."""

    factor: float = field(kw_only=False)

    def change(self, value: Tensor) -> Tensor:
        return value * self.factor


@final
@dataclass(frozen=True)
class Steer(AbstractEdit):
    """Add a direction, or a number (to a latent's activation, say)."""

    direction: float | Tensor = field(kw_only=False)

    def change(self, value: Tensor) -> Tensor:
        return value + _broadcast(self, self.direction, value)


@final
@dataclass(frozen=True)
class Patch(AbstractEdit):
    """Take the value of another run: a Trace that recorded the site, or the tensor itself."""

    source: Recorded | Tensor = field(kw_only=False)

    def change(self, value: Tensor) -> Tensor:
        source = self.source
        if not isinstance(source, Tensor):
            recorded = source.activations if self.latents is None else source.latents
            if self.at not in recorded:
                what = "activations" if self.latents is None else "latents"
                raise SiteError(
                    f"The trace to patch from has no {what} at {self.at}, but at "
                    f"{', '.join(sorted(recorded)) or 'no site'}. Record that site in its run."
                )
            source = recorded[self.at]
        return _broadcast(self, source, value)


@final
@dataclass(frozen=True)
class Detach(AbstractEdit):
    """Keep the value, stop the gradient."""

    def change(self, value: Tensor) -> Tensor:
        return value.detach()


def apply_edits(
    edits: Iterable[AbstractEdit],
    value: Float[Tensor, "batch ..."],
    positions: Int[Tensor, "batch pos"],
    mask: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch ..."]:
    """`value` after each edit in turn.

    `positions` and `mask` say which position each token has in its own prompt and which tokens are
    real. The value's position axis is 1, or 2 for attention scores and patterns (batch, n_heads,
    pos, key).
    """
    for edit in edits:
        where = _tokens(edit, positions, mask)
        is_pattern = edit.at.endswith(("hook_attn_scores", "hook_pattern"))
        where = (
            where[:, None, :, None]
            if is_pattern
            else where.reshape(*where.shape, *[1] * (value.ndim - 2))
        )
        if edit.latents is not None:
            d_sae = value.shape[-1]
            chosen = torch.zeros(d_sae, dtype=torch.bool, device=value.device)
            what = f"latent of the SAE at {edit.at}"
            chosen[chosen_indices(edit.latents, d_sae, what)] = True
            where = where & chosen
        value = torch.where(where, edit.change(value), value)
    return value


def _tokens(
    edit: AbstractEdit, positions: Int[Tensor, "batch pos"], mask: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos"]:
    """The tokens an edit acts on."""
    n_prompts = len(positions)
    rows = torch.ones(n_prompts, dtype=torch.bool, device=mask.device)
    if edit.prompts is not None:
        rows = torch.zeros_like(rows)
        rows[chosen_indices(edit.prompts, n_prompts, "prompt of this batch")] = True
    if edit.positions is None:
        return mask & rows[:, None]
    lengths = mask.sum(-1)
    where = torch.zeros_like(mask)
    for position in [edit.positions] if isinstance(edit.positions, int) else edit.positions:
        wanted = lengths + position if position < 0 else torch.full_like(lengths, position)
        outside = rows & ((wanted < 0) | (wanted >= lengths))
        if outside.any():
            row = int(outside.nonzero()[0])
            raise PromptError(
                f"Position {position} is not in prompt {row}, which has {int(lengths[row])} tokens "
                f"(0..{int(lengths[row]) - 1}, or negative from the end)."
            )
        where = where | (positions == wanted[:, None])
    return where & mask & rows[:, None]


def chosen_indices(chosen: int | Sequence[int], size: int, what: str) -> list[int]:
    """One index or several as a list; SiteError for one that is not below `size`."""
    indices = [chosen] if isinstance(chosen, int) else [int(i) for i in chosen]
    outside = [i for i in indices if not 0 <= i < size]
    if outside:
        raise SiteError(f"{outside[0]} is not a {what}; choose from 0..{size - 1}.")
    return indices


def _broadcast(edit: AbstractEdit, given: float | Tensor, value: Tensor) -> Tensor:
    given = torch.as_tensor(given, dtype=value.dtype, device=value.device)
    try:
        return given.expand_as(value)
    except RuntimeError:
        raise ShapeError(
            f"{type(edit).__name__} at {edit.at} was given shape {tuple(given.shape)}, which does "
            f"not broadcast to the value there, {tuple(value.shape)}."
        ) from None
