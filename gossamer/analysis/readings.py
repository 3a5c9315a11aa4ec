"""How any direction is read off a run: neurons, latents, the stream itself; logits and heads are in
their own files."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from gossamer.analysis.directions import (
    Direction,
    NodeValue,
    ResidualDirection,
    Through,
    as_direction,
    is_residual,
)
from gossamer.analysis.heads import of_head
from gossamer.analysis.logits import of_logits
from gossamer.analysis.reading import (
    FINAL,
    Reading,
    Seen,
    Value,
    at_position,
    constant,
    read_before,
)
from gossamer.errors import GossamerError, ShapeError, SiteError
from gossamer.models.model import Model
from gossamer.saes.rows import rows_are_constant
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.sites import parse_node, parse_site

_UNITS = ("mlp.hook_post", "mlp.hook_pre")
"""Sites whose coordinates are neurons."""

_AFFINE = (
    *("ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v"),
    *("ln2.hook_normalized", "mlp.hook_in", FINAL),
)
"""Kinds of site between which and the stream there is nothing but a norm and a projection."""


def reading(  # noqa: PLR0917  what is read, and in which run
    model: Model,
    saes: Mapping[str, SparseCoder],
    direction: Direction,
    n: int,
    hold: tuple[str, ...],
) -> Reading:
    """How `direction` is read in a prompt of n tokens. Errors for what is not there."""
    if isinstance(direction, NodeValue):
        return _of_node(model, saes, direction, n, hold)
    if isinstance(direction, ResidualDirection):
        return _of_stream(model, direction, n)
    if isinstance(direction, Through):
        if direction.route == "pre":
            found = _of_node(model, saes, NodeValue(direction.node), n, hold)
            return replace(found, direction=direction)
        along = None
        if direction.route == "v":
            if direction.downstream is None:
                raise GossamerError(
                    'A trace through "v" asks what moves a head\'s output along a direction; give '
                    "that direction as target=, for example a token or NodeValue(node)."
                )
            along = reading(model, saes, as_direction(direction.downstream), n, hold)
        return of_head(model, direction, n, hold, along)
    return of_logits(model, direction, n, hold)


def _of_node(  # noqa: PLR0917  the arguments of `reading`
    model: Model,
    saes: Mapping[str, SparseCoder],
    direction: NodeValue,
    n: int,
    hold: tuple[str, ...],
) -> Reading:
    node = parse_node(direction.node)
    position, unit = at_position(node.position, n), int(node.unit)
    if node.key_position is not None:
        raise SiteError(f'"{direction.node}" is a head, whose value is a vector; use Through.')
    if node.site in saes:
        sae = saes[node.site]
        site, value = sae.site_in, _latent_value(sae, unit, position, direction)
        is_near = is_residual(site) or parse_site(site).kind in _AFFINE
        affine = is_near and rows_are_constant(sae)
        sites = (site, read_before(model, site))
    else:
        model.check_site(node.site)
        kind = parse_site(node.site).kind
        if kind not in _UNITS:
            raise SiteError(
                f"{node.site} has no neurons, and no SAE is given that writes there; SAEs write "
                f"{', '.join(saes) or 'nowhere'} here, and neurons are at blocks.N.mlp.hook_post."
            )
        site = f"blocks.{parse_site(node.site).layer}.mlp.hook_{direction.of}"
        width = model.width(site)
        if unit >= width:
            raise SiteError(f"{unit} is not a neuron of {node.site}; choose from 0..{width - 1}.")
        value, affine = _coordinate(site, position, unit), direction.of == "pre"
        sites = (site, read_before(model, site))
    return Reading(
        direction=direction,
        sites=sites,
        residual=sites[1],
        position=position,
        constant=constant(
            node.site if node.site in saes else site,
            position,
            affine and ("norms" in hold or is_residual(site)),
        ),
        of=value,
        splice=node.site if site == node.site and is_residual(site) else None,
    )


def _coordinate(site: str, position: int, unit: int) -> Value:
    return lambda seen, row, _: seen.values[site][row, position, unit]


def _latent_value(sae: SparseCoder, unit: int, position: int, direction: NodeValue) -> Value:
    def value(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        x = seen.read_by(sae)[row, position][None]
        pre = sae.pre_activations(x)[0] if isinstance(sae, SAE) else sae.encode(x)[0]
        if unit >= len(pre):
            raise SiteError(
                f"{unit} is not a latent of the SAE at {sae.site_out}; choose from "
                f"0..{len(pre) - 1}."
            )
        if direction.of == "post" and isinstance(sae, SAE) and not sae.activate(pre)[unit]:
            return pre[unit] * 0
        return pre[unit]

    return value


def _of_stream(model: Model, direction: ResidualDirection, n: int) -> Reading:
    model.check_site(direction.site)
    position, site = at_position(direction.position, n), direction.site
    if len(direction.direction) != model.d_model:
        raise ShapeError(
            f"The direction has {len(direction.direction)} numbers, the residual stream of "
            f"{model.name} {model.d_model}."
        )

    def value(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        x = seen.values[site][row, position]
        return x @ direction.direction.to(x)

    return Reading(
        direction=direction,
        sites=(site,),
        residual=site,
        position=position,
        constant=constant(site, position, True),
        of=value,
    )
