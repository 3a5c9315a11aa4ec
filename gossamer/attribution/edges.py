"""Effects of nodes on nodes along one prompt: the true gradient between two places of a model.

With x_a the activation where the source writes and x_b the one the target reads, x_b = M(x_a) the
model's own blocks between them, nonlinearities included:

    gradients[t, s]    = read(t) · ∂x_b[p(t)] / ∂x_a[p(s)] · write(s)
    attributions[t, s] = gradients[t, s] · value(s)

x_a is decode(f) + error with the error constant, so the clean run is unchanged; active sets are the
clean run's and stay fixed. `products.py` computes the derivatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.attribution.budget import Sizes, at_once
from gossamer.attribution.effects import Edges
from gossamer.attribution.nodes import (
    Clean,
    Directions,
    active_latents,
    logit_nodes,
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
from gossamer.saes.rows import read_rows, write_rows
from gossamer.saes.sae import SparseCoder
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
            only if `direct` is True or MLPs are held.
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
    coders = as_saes(saes)
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


def _edges_of(job: _Job, batch: TokenBatch) -> Edges:
    """Edges of one prompt."""
    taps = _constants(job)
    source_site, target_site = _ends_sites(job)
    with torch.no_grad():
        seen = _clean_run(job, batch, source_site, target_site)
        clean = seen.clean
        sources, targets = _source(job, clean), _target(job, clean)
        value = _put_in(job, clean, source_site)
    layout = job.model.layout
    between = None
    if source_site != target_site:
        between = Between(layout, source_site, target_site, seen.settings, clean.values, taps)
    gradients, blocked = _derivatives(job, Ends(between, value, sources, targets))
    return Edges(
        sources=sources.nodes,
        targets=targets.nodes,
        gradients=gradients,
        attributions=gradients * sources.nodes.values,
        tokens=tuple(clean.strings),
        token_ids=tuple(clean.ids),
        hold=job.hold,
        direct=job.direct,
        error=job.error,
        blocked=blocked,
    )


def _ends_sites(job: _Job) -> tuple[str, str]:
    """Where the source is written and the target read. SiteError unless they are in this order."""
    source = job.source.site if isinstance(job.source, Latents) else _token_site(job.model)
    if isinstance(job.source, Latents):
        sae_at(source, job.saes)
    target = "logits"
    if isinstance(job.target, Latents):
        target = sae_at(job.target.site, job.saes).site_in
    if is_before(target, source):
        raise SiteError(
            f"The target is read at {target}, before {source}, where the source writes. "
            "Effects go forward: choose a target further downstream."
        )
    return source, target


def _constants(job: _Job) -> dict[str, Tap]:
    """What is held and what is blocked, as functions at sites."""
    model, own = job.model, (getattr(job.source, "site", None), getattr(job.target, "site", None))
    sites = list(
        model.held_sites([name for name in job.hold if name != "mlps"], (*HOLDABLE, "mlps"))
    )
    if "mlps" in job.hold:
        sites += _mlps(job.saes)
    if job.direct:
        source = _ends_sites(job)[0]
        sites += [site for site in job.saes if site not in own and is_before(source, site)]
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


def _clean_run(job: _Job, batch: TokenBatch, source: str, target: str) -> _Seen:
    """One run without SAEs, to the last site that matters."""
    layout = job.model.layout
    sites = sites_of(job.source, job.saes) | sites_of(job.target, job.saes)
    sites |= {source, *Between.needed(layout, source, target)}
    values: dict[str, Tensor] = {}
    settings: dict[int, BlockSetting] = {}
    with noted(layout, settings):
        job.model.forward(batch, {s: remember(values, s) for s in sites}, to_the_end=False)
    ids = batch.tokens[0].tolist()
    return _Seen(Clean(job.model, ids, job.model.token_strings(ids), values), settings)


def _source(job: _Job, clean: Clean) -> Directions:
    """Source nodes and what they write."""
    if isinstance(job.source, Latents):
        sae = sae_at(job.source.site, job.saes)
        nodes = active_latents(job.source, sae, clean)
        x = clean.at(sae.site_in)[nodes.positions]
        return Directions(nodes, sae.site_out, write_rows(sae, nodes.indices, x))
    site = _token_site(job.model)
    return Directions(token_nodes(clean), site, clean.at(site))


def _token_site(model: Model) -> str:
    """Where token and position embedding are one sum."""
    has_positions = model.layout.adapter.position_embedding is not None
    return "blocks.0.hook_resid_pre" if has_positions else "hook_embed"


def _target(job: _Job, clean: Clean) -> Directions:
    """Target nodes and what they read."""
    if isinstance(job.target, Latents):
        sae = sae_at(job.target.site, job.saes)
        nodes = active_latents(job.target, sae, clean)
        x = clean.at(sae.site_in)[nodes.positions]
        return Directions(nodes, sae.site_in, read_rows(sae, nodes.indices, x))
    return Directions(logit_nodes(job.target, clean), "logits", None)


def _put_in(job: _Job, clean: Clean, site: str) -> Tensor:
    """The value that the differentiated run has at the source's site."""
    value = clean.values[site]
    if job.error == "dropped" and isinstance(job.source, Latents):
        sae = job.saes[site]
        x = clean.at(sae.site_in)[None]
        return sae.decode(sae.encode(x), x).reshape(value.shape).to(value.dtype)
    return value


def _derivatives(job: _Job, ends: Ends) -> tuple[Tensor, bool]:
    """The gradients, and whether every way from source to target is blocked."""
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
    )
    memory = free_memory(model.device) // 2 if job.memory is None else job.memory
    products = pushed_forward if cheaper_forward(ends) else pulled_back
    return products(ends, at_once(sizes, memory, model.device))
