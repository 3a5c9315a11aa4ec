"""Effects of nodes on nodes along one prompt: the true gradient between two places of a model.

With x_a the activation where the source writes and x_b the one the target reads, x_b = M(x_a) the
model's own blocks between them, nonlinearities included:

    gradients[t, s]    = read(t) · ∂x_b[p(t)] / ∂x_a[p(s)] · write(s)
    attributions[t, s] = gradients[t, s] · value(s)

x_a is decode(f) + error with the error constant, so the clean run is unchanged; active sets are the
clean run's and stay fixed. `products.py` computes the derivatives.

A crosscoder writes at several places and reads at several: its gradient is the sum over all ways
from one place of writing to one of reading, each with the other places of writing constant. Where a
target reads what the source writes, it reads what has been written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.attribution.budget import Sizes, at_once
from gossamer.attribution.effects import Edges
from gossamer.attribution.nodes import (
    Clean,
    Directions,
    active_latents,
    logit_nodes,
    read_at_each,
    sae_at,
    sites_of,
    token_nodes,
)
from gossamer.attribution.products import (
    Ends,
    at_one_site,
    cheaper_forward,
    pulled_back,
    pushed_forward,
)
from gossamer.attribution.targets import Latents, Source, Target
from gossamer.errors import GossamerError, SiteError
from gossamer.machine import free_memory
from gossamer.models.between import Between
from gossamer.models.blocks import BlockSetting, noted
from gossamer.models.model import HOLDABLE, Model
from gossamer.models.prompts import TokenBatch, are_many, as_prompts
from gossamer.models.taps import Tap, remember
from gossamer.saes.crosscoder import Face, encode_read, parts_at, read_by, sites_read
from gossamer.saes.sae import SparseCoder
from gossamer.saes.sets import rows_written, sites_later
from gossamer.sites import is_before, parse_site
from gossamer.splice import ErrorMode, Plan, as_saes, check_saes, chosen_bos


def edges(  # noqa: PLR0913  the public face, fixed by the design
    model: Model,
    saes: Any,
    prompt: Any,
    *,
    source: Source,
    target: Target,
    hold: Sequence[str] = (),
    direct: bool = False,
    error: ErrorMode = "frozen",
    memory: int | None = None,
) -> Edges | list[Edges]:
    """Effects of `source` nodes on `target` nodes: one prompt gives Edges, a list of prompts a
    list.

    Args:
        model: the model.
        saes: one SAE, several, or a mapping; those that source and target name are used, the others
            only if `direct` is True or MLPs are held. A crosscoder is named by any site it writes.
        prompt: a text, token ids, chat messages, or a list of these, of any lengths.
        source: what to differentiate by.
        target: what to differentiate.
        hold: kept constant in the backward pass: "attention" (patterns), "norms" (every scale),
            "mlps" (the output of each MLP for which a transcoder was passed).
        direct: block the paths through the other SAEs' sites, their errors included.
        error: the source's error term; constant whatever the mode, left out of the run by
            "dropped".
        memory: bytes that the call may take beyond what is taken already; None: half of what is
            free. It sets how many derivatives are computed at once, and no number.

    Raises SiteError when the target is not downstream of the source, GossamerError when the memory
    allowed does not hold the result.
    """
    coders = as_saes(saes, faces=True, later=True)
    check_saes(model, coders)
    Plan(error=error)  # refuses an unknown mode
    prompts = as_prompts(prompt)
    bos = chosen_bos(None, coders.values(), prompts)
    names = (hold,) if isinstance(hold, str) else tuple(hold)
    job = _Job(model, coders, source, target, names, direct, error, memory)
    results = [_edges_of(job, model.batch([p], prepend_bos=bos)) for p in prompts]
    return results if are_many(prompt) else results[0]


@dataclass(frozen=True, slots=True)
class _Job:
    """The arguments of one call."""

    model: Model
    saes: Mapping[str, SparseCoder]
    source: Source
    target: Target
    hold: tuple[str, ...]
    direct: bool
    error: ErrorMode
    memory: int | None


@dataclass(frozen=True, slots=True)
class _Seen:
    """The clean run of one prompt: values at the sites that matter, and what it told the blocks."""

    clean: Clean
    settings: Mapping[int, BlockSetting]


class _Way(NamedTuple):
    """From one place of writing to one of reading."""

    source: str
    """The site that is written."""

    target: str
    """The site that is read."""


@dataclass(frozen=True, slots=True)
class _Start:
    """The run that is differentiated: the clean one, or one without the source's errors."""

    values: Mapping[str, Tensor]
    """(1, pos, …) at the sites that the ways need."""

    put: Mapping[str, Tensor]
    """(1, pos, …) what is put in at each of the source's sites."""


def _edges_of(job: _Job, batch: TokenBatch) -> Edges:
    """Edges of one prompt."""
    ways = _ways(job)
    with torch.no_grad():
        seen = _clean_run(job, batch, ways)
        clean = seen.clean
        sources, targets = _sources(job, clean), _targets(job, clean)
        start = _start(job, batch, clean)
    gradients, blocked = None, True
    for way in ways:
        ends = Ends(
            _between(job, way, seen, start),
            start.put[way.source],
            sources[way.source],
            targets[way.target],
        )
        along, stopped = _derivatives(job, ends, len(sources), len(targets))
        gradients = along if gradients is None else gradients + along
        blocked &= stopped
    assert gradients is not None
    source, target = sources[ways[0].source].nodes, targets[ways[0].target].nodes
    return Edges(
        sources=source,
        targets=target,
        gradients=gradients,
        attributions=gradients * source.values,
        tokens=tuple(clean.strings),
        token_ids=tuple(clean.ids),
        hold=job.hold,
        direct=job.direct,
        error=job.error,
        blocked=blocked,
    )


def _source_sites(job: _Job) -> tuple[str, ...]:
    """Where the source is written, in forward order."""
    if not isinstance(job.source, Latents):
        return (_token_site(job.model),)
    sae_at(job.source.site, job.saes)
    parts = parts_at(job.source.site, job.saes)
    return tuple(site for part in parts for site in (part.site_out, *sites_later(part)))


def _target_sites(job: _Job) -> tuple[str, ...]:
    """Where the target is read."""
    if not isinstance(job.target, Latents):
        return ("logits",)
    return sites_read(sae_at(job.target.site, job.saes))


def _ways(job: _Job) -> list[_Way]:
    """The ways from source to target. SiteError when nothing is read where or after something is
    written."""
    sources, targets = _source_sites(job), _target_sites(job)
    ways = [
        _Way(source, target)
        for target in targets
        for source in sources
        if not is_before(target, source) and (target == source or target not in sources)
    ]
    if not ways:
        raise SiteError(
            f"The target is read at {', '.join(targets)}, before {', '.join(sources)}, where the "
            "source writes. Effects go forward: choose a target further downstream."
        )
    return ways


def _between(job: _Job, way: _Way, seen: _Seen, start: _Start) -> Between | None:
    """The model on a way, the source's other sites constant; None at one site."""
    if way.source == way.target:
        return None
    others = {site: value for site, value in start.put.items() if site != way.source}
    return Between(
        job.model.layout, *way, seen.settings, start.values, _constants(job, way), others
    )


def _constants(job: _Job, way: _Way) -> dict[str, Tap]:
    """What is held and what is blocked, as functions at sites."""
    sites = list(
        job.model.held_sites([name for name in job.hold if name != "mlps"], (*HOLDABLE, "mlps"))
    )
    if "mlps" in job.hold:
        sites += _mlps(job.saes)
    if job.direct:
        own = {*_source_sites(job), getattr(job.target, "site", None)}
        if isinstance(job.saes.get(getattr(job.target, "site", "")), Face):
            own = {*_source_sites(job), way.target}  # it reads here, and has written before
        sites += [site for site in job.saes if site not in own and is_before(way.source, site)]
    return {site: Tensor.detach for site in sites}


def _mlps(saes: Mapping[str, SparseCoder]) -> list[str]:
    """The outputs of the MLPs for which transcoders stand."""
    sites = [
        site
        for site, sae in saes.items()
        if parse_site(site).kind == "hook_mlp_out" and sae.site_in != site
    ]
    if not sites:
        raise GossamerError(
            "hold='mlps' keeps the MLPs constant for which transcoders stand, and none of the SAEs "
            f"passed is one (they write {', '.join(saes) or 'nowhere'}). Pass transcoders with "
            "site_out hook_mlp_out, or leave 'mlps' out."
        )
    return sites


def _needed(job: _Job, ways: Sequence[_Way]) -> set[str]:
    """The sites whose values the ways need."""
    layout = job.model.layout
    sites = {way.source for way in ways}
    return sites.union(*(Between.needed(layout, *way) for way in ways))


def _clean_run(job: _Job, batch: TokenBatch, ways: Sequence[_Way]) -> _Seen:
    """One run without SAEs, to the last site that matters."""
    sites = sites_of(job.source, job.saes) | sites_of(job.target, job.saes) | _needed(job, ways)
    values: dict[str, Tensor] = {}
    settings: dict[int, BlockSetting] = {}
    with noted(job.model.layout, settings):
        job.model.forward(batch, {s: remember(values, s) for s in sites}, to_the_end=False)
    ids = batch.tokens[0].tolist()
    return _Seen(Clean(job.model, ids, job.model.token_strings(ids), values), settings)


def _sources(job: _Job, clean: Clean) -> dict[str, Directions]:
    """Source nodes and what they write, by the site where they do."""
    if not isinstance(job.source, Latents):
        site = _token_site(job.model)
        return {site: Directions(token_nodes(clean), site, clean.at(site))}
    parts = parts_at(job.source.site, job.saes)
    nodes = active_latents(replace(job.source, site=parts[0].site_out), parts[0], clean)
    x = read_by(parts[0], clean.at)[nodes.positions]
    return {
        site: Directions(nodes, site, rows)
        for part in parts
        for site, rows in rows_written(part, nodes.indices, x).items()
    }


def _token_site(model: Model) -> str:
    """Where token and position embedding are one sum."""
    has_positions = model.layout.adapter.position_embedding is not None
    return "blocks.0.hook_resid_pre" if has_positions else "hook_embed"


def _targets(job: _Job, clean: Clean) -> dict[str, Directions]:
    """Target nodes and what they read, by the site where they do."""
    if not isinstance(job.target, Latents):
        return {"logits": Directions(logit_nodes(job.target, clean), "logits", None)}
    part = parts_at(job.target.site, job.saes)[0]
    nodes = active_latents(replace(job.target, site=part.site_out), part, clean)
    x = read_by(part, clean.at)[nodes.positions]
    rows = read_at_each(part, nodes.indices, x)
    return {site: Directions(nodes, site, read) for site, read in rows.items()}


def _start(job: _Job, batch: TokenBatch, clean: Clean) -> _Start:
    """The values that the differentiated run has."""
    sites = _source_sites(job)
    if job.error != "dropped" or not isinstance(job.source, Latents):
        return _Start(clean.values, {site: clean.values[site] for site in sites})
    parts = parts_at(job.source.site, job.saes)
    if sites_later(parts[0]):
        raise GossamerError(
            'error="dropped" leaves what all of a cross-layer transcoder writes, and the source is '
            'one layer of it; take error="frozen", which is the default.'
        )
    x = read_by(parts[0], clean.at)[None]
    latents = encode_read(parts[0], x)
    put = {
        part.site_out: part.decode(latents, x).reshape(value.shape).to(value.dtype)
        for part in parts
        for value in [clean.values[part.site_out]]
    }
    if len(parts) == 1:
        return _Start(clean.values, put)
    # What is between the sites hears of the first ones' errors.
    values: dict[str, Tensor] = {}
    taps = {s: remember(values, s) for s in clean.values}
    taps |= {s: _noted_as(values, s, value) for s, value in put.items()}
    job.model.forward(batch, taps, to_the_end=False)
    return _Start(values, put)


def _noted_as(values: dict[str, Tensor], site: str, value: Tensor) -> Tap:
    """A function that puts a value in at a site, and remembers it."""

    def put_in(_: Tensor) -> Tensor:
        values[site] = value
        return value

    return put_in


def _derivatives(job: _Job, ends: Ends, n_writes: int, n_reads: int) -> tuple[Tensor, bool]:
    """The gradients along one way, and whether it is blocked; a node has so many rows in all."""
    if ends.between is None:
        return at_one_site(ends), False
    model = job.model
    sizes = Sizes(
        n_targets=len(ends.targets.nodes),
        n_sources=len(ends.sources.nodes),
        n_positions=ends.value.shape[1],
        n_blocks=len(ends.between.blocks),
        d_model=model.d_model,
        d_mlp=model.width("blocks.0.mlp.hook_post"),
        n_heads=model.language_model.config.num_attention_heads,
        number=ends.value.element_size(),
        n_writes=n_writes,
        n_reads=n_reads,
    )
    memory = free_memory(model.device) // 2 if job.memory is None else job.memory
    products = pushed_forward if cheaper_forward(ends) else pulled_back
    return products(ends, at_once(sizes, memory, model.device))
