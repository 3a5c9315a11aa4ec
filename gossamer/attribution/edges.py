"""Effects of nodes on nodes along one prompt: the true gradient between two places of a model.

With x_a the activation where the source writes and x_b the one the target reads, x_b = M(x_a) the
model's own blocks between them, nonlinearities included:

    gradients[t, s]    = read(t) · ∂x_b[p(t)] / ∂x_a[p(s)] · write(s)
    attributions[t, s] = gradients[t, s] · value(s)

x_a is decode(f) + error with the error constant, so the clean run is unchanged; active sets are the
clean run's and stay fixed. A target is one vector–Jacobian product: its read row is put in as the
cotangent at (site_in, p(t)) and what comes back is contracted, position by position, with the write
rows of the sources active there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.directions import read_rows, write_rows
from gossamer.attribution.nodes import (
    Clean,
    Directions,
    NodeTable,
    active_latents,
    logit_nodes,
    sae_at,
    sites_of,
    token_nodes,
)
from gossamer.attribution.targets import Latents, Source, Target, Tokens
from gossamer.errors import GossamerError, SiteError
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch, are_many, as_prompts
from gossamer.models.taps import Tap, remember
from gossamer.saes.sae import SparseCoder
from gossamer.sites import is_before
from gossamer.splice import ErrorMode, Plan, as_saes, check_saes, chosen_bos

CHUNK = 32
"""Targets pulled back at once. Larger chunks are slower on a CPU and take memory in proportion."""


class Edge(NamedTuple):
    """One effect."""

    source: str
    """Node id of what is changed."""

    target: str
    """Node id of what moves."""

    source_label: str
    """Label and token of the source."""

    target_label: str
    """Label and token of the target."""

    gradient: float
    """Change of the target per unit of the source."""

    attribution: float
    """Gradient times the source's activation."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Effects of all sources on all targets of one prompt: rows are targets, columns are
    sources."""

    sources: NodeTable
    """The columns, sorted by (position, index)."""

    targets: NodeTable
    """The rows, sorted by (position, index)."""

    gradients: Float[Tensor, "n_targets n_sources"]
    """∂ target / ∂ source; of a target latent, its pre-activation."""

    attributions: Float[Tensor, "n_targets n_sources"]
    """Gradients times the sources' activations."""

    tokens: tuple[str, ...]
    """The prompt, token by token."""

    token_ids: tuple[int, ...]
    """The prompt's token ids, BOS included."""

    hold: tuple[str, ...]
    """What was kept constant in the backward pass."""

    direct: bool
    """Whether paths through the other SAEs passed were blocked."""

    error: ErrorMode
    """The source's error term."""

    blocked: bool
    """Whether every path was blocked: no entry can be anything but 0."""

    def strongest(self, n: int = 20) -> list[tuple[int, int]]:
        """(row, column) of the n entries of largest |attribution|, strongest first."""
        if n < 0:
            raise GossamerError(f"n is how many edges to give, got {n}; give 0 or more.")
        order = self.attributions.abs().flatten().argsort(descending=True, stable=True)[:n]
        return [divmod(int(i), len(self.sources)) for i in order]

    def top(self, n: int = 20) -> list[Edge]:
        """The n edges of largest |attribution|, strongest first."""
        return [self.edge(target, source) for target, source in self.strongest(n)]

    def edge(self, target: int, source: int) -> Edge:
        """The edge at one row and column."""
        return Edge(
            source=self.sources.ids[source],
            target=self.targets.ids[target],
            source_label=self.sources.labels[source],
            target_label=self.targets.labels[target],
            gradient=float(self.gradients[target, source]),
            attribution=float(self.attributions[target, source]),
        )


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
) -> Edges | list[Edges]:
    """Effects of `source` nodes on `target` nodes: one prompt gives Edges, a list of prompts a
    list.

    Args:
        model: the model.
        saes: one SAE, several, or a mapping; those that source and target name are used, the others
            only
            if `direct` is True.
        prompt: a text, token ids, chat messages, or a list of these.
        source: what to differentiate by.
        target: what to differentiate.
        hold: kept constant in the backward pass: "attention" (patterns), "norms" (every scale).
        direct: block the paths through the other SAEs' sites, their errors included.
        error: the source's error term; constant whatever the mode, left out of the run by
            "dropped".

    Raises SiteError when the target is not downstream of the source.
    """
    coders = as_saes(saes)
    check_saes(model, coders)
    Plan(error=error)  # refuses an unknown mode
    prompts = as_prompts(prompt)
    bos = chosen_bos(None, coders.values(), prompts)
    job = _Job(model, coders, source, target, tuple(hold), direct, error)
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


def _edges_of(job: _Job, batch: TokenBatch) -> Edges:
    """Edges of one prompt."""
    with torch.no_grad():
        clean = _clean_run(job, batch)
        sources, targets = _source(job, clean), _target(job, clean)
    _check_order(sources.site, targets.site)
    with torch.enable_grad():
        leaf, read = _graph(job, batch, clean, (sources.site, targets.site))
    rows = [_contract(gradient, sources) for gradient in _pulled_back(leaf, read, targets)]
    gradients = torch.cat(rows) if rows else sources.nodes.values.new_zeros(0, len(sources.nodes))
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
        blocked=not read.requires_grad,
    )


def _clean_run(job: _Job, batch: TokenBatch) -> Clean:
    """One run without SAEs, to the last site that matters."""
    sites = sites_of(job.source, job.saes) | sites_of(job.target, job.saes)
    if isinstance(job.source, Tokens) and job.model.layout.adapter.position_embedding is not None:
        sites |= {"blocks.0.hook_resid_pre"}
    seen: dict[str, Tensor] = {}
    job.model.forward(batch, {s: remember(seen, s) for s in sites}, to_the_end=False)
    ids = batch.tokens[0].tolist()
    return Clean(job.model, ids, job.model.token_strings(ids), seen)


def _source(job: _Job, clean: Clean) -> Directions:
    """Source nodes and what they write."""
    if isinstance(job.source, Latents):
        sae = sae_at(job.source.site, job.saes)
        nodes = active_latents(job.source, sae, clean)
        return Directions(nodes, sae.site_out, write_rows(sae, nodes, clean))
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
        return Directions(nodes, sae.site_in, read_rows(sae, nodes, clean))
    return Directions(logit_nodes(job.target, clean), "logits", None)


def _check_order(source: str, target: str) -> None:
    if is_before(target, source):
        raise SiteError(
            f"The target is read at {target}, before {source}, where the source writes. "
            "Effects go forward: choose a target further downstream."
        )


def _graph(
    job: _Job, batch: TokenBatch, clean: Clean, sites: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Run with a leaf at the source's site; returns it and the value at the target's site."""
    source, target = sites
    value = clean.values[source]
    if job.error == "dropped" and isinstance(job.source, Latents):
        sae = job.saes[source]
        x = clean.at(sae.site_in)[None]
        value = sae.decode(sae.encode(x), x).reshape(value.shape)
    leaf = value.detach().requires_grad_()
    taps: dict[str, Tap] = {site: Tensor.detach for site in job.model.held_sites(job.hold)}
    if job.direct:
        own = job.target.site if isinstance(job.target, Latents) else None
        taps |= {
            site: Tensor.detach
            for site in job.saes
            if site not in (source, own) and is_before(source, site)
        }
    seen: dict[str, Tensor] = {}
    block, keep = taps.get(target), remember(seen, target)
    taps[target] = keep if block is None else lambda value: keep(block(value))
    taps[source] = lambda _value: leaf
    if source == target:
        seen[target] = leaf
    else:
        job.model.forward(batch, taps, to_the_end=False)
    return leaf, seen[target]


def _pulled_back(
    leaf: Tensor, read: Tensor, targets: Directions
) -> Iterator[Float[Tensor, "chunk pos width"]]:
    """Gradients of the targets, a chunk at a time, with respect to the leaf."""
    if leaf is read:
        read = leaf.view_as(leaf)
    n = len(targets.nodes)
    if not read.requires_grad:  # every path from the source is blocked
        yield leaf.new_zeros(n, *leaf.shape[1:]).flatten(2)
        return
    for start in range(0, n, CHUNK):
        chunk = slice(start, min(start + CHUNK, n))
        cotangents = read.new_zeros(chunk.stop - start, *read.shape)
        rows = torch.arange(chunk.stop - start, device=read.device)
        positions = targets.nodes.positions[chunk]
        if targets.rows is not None:
            cotangents[rows, 0, positions] = targets.rows[chunk].reshape(len(rows), *read.shape[2:])
        else:
            cotangents[rows, 0, positions, targets.nodes.indices[chunk]] = 1
            if targets.nodes.distractors is not None:
                cotangents[rows, 0, positions, targets.nodes.distractors[chunk]] -= 1
        (gradient,) = torch.autograd.grad(
            read, leaf, cotangents, is_grads_batched=True, retain_graph=True
        )
        yield gradient[:, 0].flatten(2)


def _contract(
    gradient: Float[Tensor, "chunk pos width"], sources: Directions
) -> Float[Tensor, "chunk n_sources"]:
    """Dot each position's gradient with the write rows of the sources there."""
    if sources.rows is None:
        raise GossamerError("Sources write rows; logits cannot be sources.")
    precise = torch.promote_types(gradient.dtype, sources.rows.dtype)
    gradient, rows = gradient.to(precise), sources.rows.to(precise)
    out = gradient.new_empty(len(gradient), len(sources.nodes))
    counts = torch.bincount(sources.nodes.positions, minlength=gradient.shape[1]).tolist()
    start = 0
    for position, count in enumerate(counts):
        columns = slice(start, start + count)
        out[:, columns] = gradient[:, position] @ rows[columns].T
        start += count
    return out
