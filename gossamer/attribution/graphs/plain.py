"""A block of a run pulled back by autograd: every way of holding, at any point of a path.

This is the plain engine: what `held.py` computes by hand for held patterns and norms must equal it.
The Hugging Face modules run once more on the first positions of the prompt, with a leaf wherever an
SAE writes, and torch differentiates: all targets of a batch at once over one saved forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.graphs.gradients import Gradient
from gossamer.attribution.graphs.places import (
    ATTN_OUT,
    IN,
    MID,
    MLP_OUT,
    NORMALIZED,
    POST,
    PRE,
    Place,
    Z,
    site_at,
)
from gossamer.attribution.graphs.run import Run
from gossamer.models.blocks import Span
from gossamer.models.norms import visited_norm
from gossamer.models.taps import Tap, weights_constant


@dataclass(frozen=True, slots=True)
class Point:
    """Values of the stream and of what SAEs write, at one point of a path to the clean run."""

    streams: Mapping[int, Float[Tensor, "1 pos d_model"]]
    """What each block receives; n_layers: what the final norm receives."""

    written: Mapping[str, Tensor]
    """(1, pos, …) what is written at each spliced site, skip connections left out."""

    before: Mapping[Place, Tensor] = field(default_factory=dict)
    """(1, pos, d_model) the stream before the splices at both ends of each block; of points of a
    path."""


@dataclass(slots=True)
class Passed:
    """One forward pass of a block: tensors before and after the splice of each station."""

    before: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlainEngine:
    """Pulls gradients back through blocks by autograd."""

    run: Run
    """The clean run, and what is held."""

    point: Point
    """Where derivatives are taken."""

    def block(
        self, layer: int, above: Gradient | None, read: tuple[Place, Gradient] | None
    ) -> tuple[dict[Place, Gradient], Gradient | None]:
        """(gradients at places of the block, at what it receives), from that at what it gives and
        from what is read at one place inside."""
        given = [each for each in (above, None if read is None else read[1]) if each is not None]
        if not given:
            return {}, None
        n = int(given[0].positions[-1]) + 1
        with torch.enable_grad(), weights_constant(self.run.model.layout):
            leaf = self.point.streams[layer][:, :n].detach().requires_grad_()
            passed = passed_block(self, layer, leaf, leaves=())
        outputs, cotangents = [], []
        if above is not None:
            outputs.append(passed.before[POST])
            cotangents.append(_batched(above, passed.before[POST]))
        if read is not None:
            place, gradient = read
            tensor = (passed.after if place.after else passed.before)[place.station]
            outputs.append(tensor)
            cotangents.append(_batched(gradient, tensor))
        places = [Place(layer, s, False) for s in passed.before if s not in (PRE, POST)]
        places += [Place(layer, s, True) for s in passed.after if s not in (PRE, POST)]
        inputs = [leaf]
        inputs += [(passed.after if p.after else passed.before)[p.station] for p in places]
        found = _pulled(outputs, inputs, cotangents)
        gradients = {
            place: given[0].like(gradient[:, 0].flatten(2).transpose(0, 1))
            for place, gradient in zip(places, found[1:], strict=True)
            if gradient is not None
        }
        down = found[0]
        return gradients, None if down is None else given[0].like(down[:, 0].transpose(0, 1))

    def through_final(self, gradient: Gradient) -> Gradient:
        """Through the final norm; sparse stays sparse, since a norm acts at each position."""
        x = self.point.streams[self.run.n_layers][0, gradient.positions]
        scale = None
        if "norms" in self.run.hold:
            scale = self.run.at("ln_final.hook_scale")[gradient.positions]
        with torch.enable_grad(), weights_constant(self.run.model.layout):
            leaf = x.detach().requires_grad_()
            out = final_norm(self.run, leaf, scale)
            return gradient.like(torch.autograd.grad(out, leaf, gradient.values)[0])


def final_norm(
    run: Run, x: Float[Tensor, "n d_model"], scale: Float[Tensor, "n 1"] | None
) -> Float[Tensor, "n d_model"]:
    """What the final norm gives, its scale held at `scale` unless that is None."""
    layout = run.model.layout
    norm = layout.language_model.get_submodule(layout.adapter.ln_final)
    return visited_norm(norm, x, layout.adapter.gain_offset, partial(_scaled, scale))


def final_part(run: Run, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
    """J · x for the final norm at x: the linear part of what it gives."""
    scale = run.at("ln_final.hook_scale") if "norms" in run.hold else None
    with torch.enable_grad(), weights_constant(run.model.layout):
        leaf = x.detach().requires_grad_()
        out = final_norm(run, leaf, scale)
        dummy = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, leaf, dummy, create_graph=True)  # linear in dummy
        return torch.autograd.grad(back, dummy, leaf.detach())[0]


def _scaled(scale: Tensor | None, kind: str, value: Tensor) -> Tensor:
    held = kind == "hook_scale" and scale is not None
    return scale.to(value.dtype) if held and scale is not None else value


def passed_block(
    engine: PlainEngine, layer: int, x: Float[Tensor, "1 pos d_model"], leaves: tuple[int, ...]
) -> Passed:
    """A block's forward pass at the engine's point; `leaves` are stations cut beside the SAEs'."""
    run, n = engine.run, x.shape[1]
    passed = Passed({}, {PRE: x})
    at: dict[str, Tap] = {
        site: partial(_constant, _first(site, value, n))
        for site, value in run.held_values(layer).items()
    }
    for station in range(PRE + 1, POST):
        site = site_at(layer, station)
        if site in run.model.sites:
            at[site] = partial(_tap, engine, layer, station, leaves, passed)
    span = Span(run.model.layout, run.settings, layer, layer)
    passed.before[POST] = span.run(x, at)
    return passed


def _tap(  # noqa: PLR0917  all but the value are fixed before the pass
    engine: PlainEngine,
    layer: int,
    station: int,
    leaves: tuple[int, ...],
    passed: Passed,
    value: Tensor,
) -> Tensor:
    run = engine.run
    if station == MLP_OUT and "mlps" in run.hold:
        value = run.values[site_at(layer, station)][:, : value.shape[1]].detach().requires_grad_()
    passed.before[station] = value
    if run.cut(layer, station) is not None:
        written = engine.point.written[site_at(layer, station)][:, : value.shape[1]]
        after = written.detach().reshape(value.shape).requires_grad_()
        skip = run.skip(layer, station)
        if skip is not None:
            begin, W_skip = skip
            x = passed.after[begin].flatten(2)
            after = after + F.linear(x, W_skip).reshape(value.shape)
    elif station in leaves:
        after = value.detach().requires_grad_()
    else:
        after = value.view_as(value)
    passed.after[station] = after
    return after


def _constant(held: Tensor, value: Tensor) -> Tensor:
    return held.to(value.dtype)


def _first(site: str, value: Tensor, n: int) -> Tensor:
    """The first positions of a value, of patterns in both axes."""
    return value[:, :, :n, :n] if site.endswith("hook_pattern") else value[:, :n]


def _batched(gradient: Gradient, like: Tensor) -> Tensor:
    """(batch, *like.shape)."""
    dense = gradient.dense().transpose(0, 1)
    return dense.reshape(len(dense), *like.shape).to(like.dtype)


def _pulled(
    outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor]
) -> list[Tensor | None]:
    """The cotangents at each input, None where nothing arrives."""
    able = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not able:
        return [None] * len(inputs)
    wanted = [i for i, each in enumerate(inputs) if each.requires_grad]
    found = torch.autograd.grad(
        [outputs[i] for i in able],
        [inputs[i] for i in wanted],
        [cotangents[i] for i in able],
        is_grads_batched=True,
        allow_unused=True,
    )
    by_input: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        by_input[i] = gradient
    return by_input


PIECES = (Z, ATTN_OUT, NORMALIZED, IN, MLP_OUT)
"""Stations at which the modules of a block give something."""


def linear_parts(engine: PlainEngine, layer: int) -> dict[int, Tensor]:
    """(1, pos, …) by station of PIECES: J · (value it is made from).

    z is made from the stream before the block; attn_out from z; ln2's value, what the MLP receives
    and its output from the stream before the MLP, or from the SAE that stands nearest before.
    """
    run = engine.run
    with torch.enable_grad(), weights_constant(run.model.layout):
        leaf = engine.point.streams[layer].detach().requires_grad_()
        passed = passed_block(engine, layer, leaf, leaves=(Z, MID))
        ends = [s for s in PIECES if passed.before[s].requires_grad]
        begins = [s for s in (PRE, Z, MID, NORMALIZED, IN) if s in passed.after]
        begins = [s for s in begins if passed.after[s].is_leaf]
        dummies = [torch.zeros_like(passed.before[s], requires_grad=True) for s in ends]
        pulled = torch.autograd.grad(
            [passed.before[s] for s in ends],
            [passed.after[s] for s in begins],
            dummies,
            create_graph=True,
            allow_unused=True,
        )
        pairs = [(g, passed.after[s].detach()) for g, s in zip(pulled, begins, strict=True)]
        total = sum((g * x).sum() for g, x in pairs if g is not None)
        moved: tuple[Tensor | None, ...] = (None,) * len(ends)
        if isinstance(total, Tensor) and total.requires_grad:
            moved = torch.autograd.grad(total, dummies, allow_unused=True)
    found = dict(zip(ends, moved, strict=True))
    return {
        s: torch.zeros_like(passed.before[s]) if (value := found.get(s)) is None else value.detach()
        for s in PIECES
    }
