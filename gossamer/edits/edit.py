"""Edits: changes at a site, as values. What each does to the value it selects:

    Ablate   0                     Set      a given value
    Scale    value × factor        Patch    the value of another run
    Steer    value + direction     Detach   the value, as a constant

`at` is a site or a node's id. What is edited there, and the ids that say the same at one position:

    nothing more      the value at the site
    latents           latents of the SAE spliced there      blocks.3.hook_resid_pre/1234@7
    part="error"      the splice's error term               blocks.3.hook_resid_pre/error@7
    units             neurons, heads                        blocks.3.mlp.hook_post/12@7
    units, keys       entries of the attention pattern      blocks.9.attn.hook_z/6@14<-4
    along             the value's coordinate along a direction; the rest of it stays

An id with a number means a latent where an SAE is spliced, else a neuron or a head. `positions` and
`prompts` select tokens, of attention patterns queries; negative positions count from each prompt's
own end, None selects all. A query sees no later key, whatever the edit.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.errors import PromptError, ShapeError, SiteError
from gossamer.sites import parse_node, parse_site

Selection = int | Sequence[int] | None
"""One index, several, or None for all."""

PATTERNS = ("attn.hook_attn_scores", "attn.hook_pattern")
"""Kinds of site whose value is (batch, n_heads, pos, key)."""

NEURONS = ("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post")
"""Kinds of site whose units are neurons."""

HEADS = (
    *("attn.hook_q", "attn.hook_k", "attn.hook_v"),
    *("attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_z"),
)
"""Kinds of site whose units are heads, on axis 2."""


@runtime_checkable
class Recorded(Protocol):
    """What `Patch` takes values from: a trace, means, or anything with its values by site."""

    @property
    def activations(self) -> Mapping[str, Tensor]:
        """Values at sites."""
        ...

    @property
    def latents(self) -> Mapping[str, Tensor]:
        """Latents by the site that their SAE writes."""
        ...

    @property
    def errors(self) -> Mapping[str, Tensor]:
        """Error terms by the site that the SAE writes."""
        ...


@dataclass(frozen=True, kw_only=True)
class AbstractEdit(ABC):
    """Where an edit acts. What it does is `change`."""

    at: str = field(kw_only=False)
    """A site, or a node's id."""

    latents: Selection = None
    """Latents of the SAE spliced at the site; None: the value at the site itself."""

    units: Selection = None
    """Neurons or heads of the value at the site. The same number in `latents` and here, as an id
    gives it, means a latent where an SAE is spliced."""

    keys: Selection = None
    """Of patterns and scores: positions attended to; None: all."""

    part: Literal["error"] | None = None
    """ "error": the splice's error term."""

    along: Float[Tensor, " width"] | None = None
    """A direction, of any length: only the value's coordinate along it is edited."""

    positions: Selection = None
    """Positions in the prompt; None: all."""

    prompts: Selection = None
    """Rows of the batch; None: all."""

    def __post_init__(self) -> None:
        if "/" in self.at:
            self._take_node()
        kind = parse_site(self.at).kind if self.units is not None or self.keys is not None else ""
        if self.units is not None and kind not in (*NEURONS, *HEADS, *PATTERNS):
            raise SiteError(
                f"{self.at} has no units. units= are neurons of {', '.join(NEURONS)}, or heads of "
                f"{', '.join((*HEADS, *PATTERNS))}."
            )
        if self.keys is not None and kind not in PATTERNS:
            raise SiteError(f"{self.at} has no keys. keys= go with {' and '.join(PATTERNS)}.")
        if self.part not in ("error", None):
            raise SiteError(f'part is "error" or None, got "{self.part}".')
        self._check_one()
        if self.along is None:
            return
        length = float(self.along.detach().double().norm())
        if self.along.ndim != 1 or not 0 < length < math.inf:
            raise ShapeError(
                "along is a direction of shape (width,), finite and not zero, got shape "
                f"{tuple(self.along.shape)} and length {length:g}."
            )

    def _check_one(self) -> None:
        """SiteError when the fields name more than one thing to edit."""
        is_named = isinstance(self.units, int) and self.latents == self.units
        names = ["latents", "part", "along"] + ([] if is_named else ["units"])
        names += ["keys"] if self.units is None else []
        several = [name for name in names if getattr(self, name) is not None]
        if len(several) > 1:
            raise SiteError(
                f"An edit at {self.at} was given {' and '.join(several)}. It acts on one of "
                "latents, units (with keys), part and along; make one edit for each."
            )

    def _take_node(self) -> None:
        """Turn a node's id in `at` into the fields it stands for."""
        node = parse_node(self.at)
        given = (self.latents, self.units, self.keys, self.part, self.positions)
        if any(field is not None for field in given):
            raise SiteError(
                f'"{self.at}" names its unit and position; leave latents=, units=, keys=, part= '
                "and positions= out."
            )
        kind = node.site.split(".", 2)[-1]
        site, fields = node.site, unit_fields(node.site, node.unit)
        if node.key_position is not None:
            # The id of a pair of tokens is that of their head; its weight stands in the pattern.
            site = site.removesuffix("hook_z") + "hook_pattern" if kind == "attn.hook_z" else site
            fields = {"units": node.unit, "keys": node.key_position}
        is_head = isinstance(node.unit, int) and kind in (*PATTERNS, "attn.hook_z")
        if node.unit in ("bias", "remainder") or (node.key_position is not None and not is_head):
            raise SiteError(
                f'"{self.at}" cannot be edited. An edit takes a site, a latent, neuron, head or '
                "error at a position such as blocks.3.hook_resid_pre/1234@7, or a head from a "
                "query to a key such as blocks.9.attn.hook_z/6@14<-4."
            )
        for name, value in ({"at": site, "positions": node.position} | fields).items():
            object.__setattr__(self, name, value)

    @abstractmethod
    def change(self, value: Tensor) -> Tensor:
        """The new value everywhere; `apply_edits` keeps it only where the edit acts."""


def unit_fields(site: str, unit: int | str) -> dict[str, Any]:
    """The fields of an edit that mean this unit of a site, as ids name it."""
    kind = site.split(".", 2)[-1]
    if isinstance(unit, str):
        return {"part": unit}
    if kind in PATTERNS:
        return {"units": unit}
    return {"latents": unit, "units": unit} if kind in NEURONS + HEADS else {"latents": unit}


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
        return broadcast(self, self.value, value)


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
        return value + broadcast(self, self.direction, value)


@final
@dataclass(frozen=True)
class Patch(AbstractEdit):
    """Take the value of another run: a Trace that recorded the site, means, or a tensor.

    A source with a batch and a position axis gives each token the value at its own position,
    counted from the start. One row stands for every row.
    """

    source: Recorded | Tensor = field(kw_only=False)

    from_positions: Selection = field(default=None, kw_only=True)
    """Positions in the source, one for each of `positions`; negative from the source's own end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        here, there = indices_of(self.positions), indices_of(self.from_positions)
        if self.from_positions is not None and len(here) != len(there):
            raise PromptError(
                f"from_positions of the Patch at {self.at} names {len(there)} positions and "
                f"positions {len(here)}; they are paired, so give as many of each."
            )

    def change(self, value: Tensor) -> Tensor:
        return broadcast(self, self.recorded(), value)

    def recorded(self) -> Tensor:
        """The source's values, on its own tokens. SiteError when it has none at the site."""
        source = self.source
        if isinstance(source, Tensor):
            return source
        what = "errors" if self.part else "activations" if self.latents is None else "latents"
        recorded: Mapping[str, Tensor] = getattr(source, what)
        if self.at not in recorded:
            raise SiteError(
                f"The trace to patch from has no {what} at {self.at}, but at "
                f"{', '.join(sorted(recorded)) or 'no site'}. Record that site in its run."
            )
        return recorded[self.at]


@final
@dataclass(frozen=True)
class Detach(AbstractEdit):
    """Keep the value, stop the gradient."""

    def change(self, value: Tensor) -> Tensor:
        return value.detach()


def indices_of(chosen: Selection) -> list[int]:
    """One index or several as a list; none for all."""
    if chosen is None:
        return []
    return [chosen] if isinstance(chosen, int) else [int(i) for i in chosen]


def chosen_indices(chosen: int | Sequence[int], size: int, what: str) -> list[int]:
    """One index or several as a list; SiteError for one that is not below `size`."""
    indices = indices_of(chosen)
    outside = [i for i in indices if not 0 <= i < size]
    if outside:
        raise SiteError(f"{outside[0]} is not a {what}; choose from 0..{size - 1}.")
    return indices


def broadcast(edit: AbstractEdit, given: float | Tensor, value: Tensor) -> Tensor:
    """What was given, in the value's shape and dtype. ShapeError when it does not fit."""
    given = torch.as_tensor(given, dtype=value.dtype, device=value.device)
    try:
        return given.expand_as(value)
    except RuntimeError:
        raise ShapeError(
            f"{type(edit).__name__} at {edit.at} was given shape {tuple(given.shape)}, which does "
            f"not broadcast to the value there, {tuple(value.shape)}."
        ) from None
