"""Which heads carry an edge: at each layer between its ends, one number for each head.

    τ_l    what the source writes, pushed forward to the stream before block l
    γ_l    what the target reads, pulled back to the stream behind the block's attention
    loading[h] = γ_l · head_h(τ_l)        bypass = γ_l · τ_l

Patterns and norm scales are held, so bypass + Σ_h loading[h] is the edge, at every layer between.
In a parallel block, whose MLP reads τ_l too, γ_l is behind the block and the MLP's share is a
number of its own. One sweep back from a target and one forward from a source give all layers
(https://transformer-circuits.pub/2025/attention-qk).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.graphs.places import MID, NORMALIZED, POST, PRE, STATIONS, Place, Z
from gossamer.attribution.graphs.run import Run, clean_run
from gossamer.attribution.heads.asked import check_weight, pairs_of, spliced_by
from gossamer.attribution.heads.carried import EdgeLoadings, HeadLoadings, Move
from gossamer.attribution.heads.ends import Source, Target, source_of, target_of
from gossamer.attribution.heads.linear import LinearRun, Moved, is_behind_heads
from gossamer.attribution.verifying.fit import check_digests
from gossamer.errors import GossamerError, PromptError, SiteError
from gossamer.graph.graph import Graph
from gossamer.models.model import Model
from gossamer.models.prompts import are_many, as_prompts
from gossamer.splice import as_saes, check_saes, chosen_bos

COLUMNS_AT_ONCE = 512
"""Positions × edges that go through the model together: at each layer a few rows of its width."""


def head_loadings(
    model: Model,
    saes: Any,
    prompt: Any,
    edges: Any = None,
    *,
    n_edges: int = 10,
    n_moves: int = 5,
    hold: Sequence[str] = ("attention", "norms"),
) -> HeadLoadings:
    """Which heads carry edges, at every layer between their ends.

    Args:
        model: the model.
        saes: the spliced SAEs, as for the graph: a path through a site where one writes is cut.
        prompt: a Graph that was made with this model and these SAEs; or a text or token ids.
        edges: one edge or several: (source id, target id), or what graph.edges gives. None: the
            graph's strongest between different positions.
        n_edges: how many those are.
        n_moves: how many single moves (head, from key position to query position) to keep at each
            layer of each edge.
        hold: what the edges hold, "attention" and "norms" at least; a Graph says it itself.

    SiteError for a node that is not there, or an edge that would go backwards. GossamerError for an
    edge without an attention layer between its ends, or one that the graph says otherwise.
    """
    coders = as_saes(saes)
    check_saes(model, coders)
    graph = prompt if isinstance(prompt, Graph) else None
    if graph is not None:
        hold = tuple(graph.about.get("hold", hold))
        coders = spliced_by(graph, coders)
        check_digests(graph, model, coders)
    missing = [name for name in ("attention", "norms") if name not in hold]
    if missing:
        raise GossamerError(
            f"Loadings add up to an edge when attention and norms are held, got hold={list(hold)}; "
            f"add {' and '.join(map(repr, missing))}."
        )
    if are_many(prompt) and graph is None:
        raise PromptError("head_loadings takes one prompt, got a list; call it for each.")
    prompts = [list(graph.token_ids)] if graph is not None else as_prompts(prompt)
    pairs = pairs_of(graph, edges, n_edges)
    batch = model.batch(prompts, prepend_bos=chosen_bos(None, coders.values(), prompts))
    linear = LinearRun(clean_run(model, coders, tuple(hold), batch))
    ends = [(source_of(linear, source), target_of(linear, target)) for source, target in pairs]
    layers = [_between(linear.run, *pair) for pair in ends]
    at_once = max(1, COLUMNS_AT_ONCE // linear.run.n)
    found: list[EdgeLoadings] = []
    for start in range(0, len(ends), at_once):
        part = slice(start, start + at_once)
        found += _loadings(linear, ends[part], layers[part], n_moves)
    if graph is not None:
        for each in found:
            check_weight(graph, each, model.dtype)
    return HeadLoadings(tuple(found), tuple(model.token_strings(list(linear.run.ids))))


def _between(run: Run, source: Source, target: Target) -> tuple[int, ...]:
    """The blocks whose attention lies between two ends."""
    last = max(written.place for written in source.written)
    if target.place < last:
        raise SiteError(
            f"{target.id} reads before {source.id} writes, and edges go forward; swap them, or "
            "name a later target."
        )
    parallel = run.model.layout.parallel
    layers = tuple(
        layer
        for layer in range(run.n_layers)
        if last <= Place(layer, PRE, True)
        and is_behind_heads(target.place, layer, parallel=parallel)
    )
    if not layers:
        raise GossamerError(
            f"No attention layer lies between {source.id} and {target.id}, so no head carries the "
            "edge; name an edge across layers."
        )
    return layers


Edge = tuple[Source, Target]


class _Pulled(NamedTuple):
    """Gradients of what the targets read, at places of the blocks between; 0 where absent."""

    at: Mapping[Place, Tensor]
    """(pos, batch, width) by place."""

    def times(self, place: Place, moved: Tensor) -> Float[Tensor, " batch"]:
        """What reaches each target of what stands at a place."""
        gradient = self.at.get(place)
        return moved.new_zeros(moved.shape[1]) if gradient is None else _dot(gradient, moved)


def _dot(gradient: Tensor, moved: Tensor) -> Float[Tensor, " batch"]:
    return (gradient * moved).sum((0, 2))


def _loadings(
    linear: LinearRun, ends: Sequence[Edge], layers: Sequence[tuple[int, ...]], n_moves: int
) -> Iterator[EdgeLoadings]:
    """Some edges together."""
    run, parallel = linear.run, linear.run.model.layout.parallel
    pulled = _pulled(linear, [target for _, target in ends], min(min(each) for each in layers))
    size = (len(ends), run.n_layers)
    heads = np.zeros((*size, len(linear.weights[0].pattern)))
    bypass, beside = np.zeros((2, *size))
    moves: list[list[Move]] = [[] for _ in ends]
    weights = np.zeros(len(ends))
    with torch.no_grad():
        stop = max(target.place.layer for _, target in ends) + 1
        for moved in linear.blocks(_placed(run, [source for source, _ in ends]), stop):
            layer = moved.layer
            for b, (_, target) in enumerate(ends):
                if target.place in moved.at:
                    weights[b] = float(moved.at[target.place][target.position, b] @ target.row)
            if layer == run.n_layers:
                continue
            x = moved.take(PRE, after=True)
            gradient = pulled.at.get(Place(layer, Z, False))
            if gradient is not None:
                both = gradient * moved.take(Z, after=False)
                by_head = rearrange(both, "pos b (h d) -> b h pos d", h=heads.shape[2])
                heads[:, layer] = by_head.sum((2, 3)).double().cpu().numpy()
                values = linear.values(layer, x)
                for b, pair in enumerate(ends):
                    if layer in layers[b]:
                        moves[b] += _moves(
                            linear, layer, pair, gradient[:, b], values[:, b], n_moves
                        )
            past = Place(layer, POST if parallel else MID, False)
            bypass[:, layer] = pulled.times(past, x).double().cpu().numpy()
            beside[:, layer] = _beside(linear, moved, pulled).double().cpu().numpy()
    for b, (source, target) in enumerate(ends):
        here = list(layers[b])
        yield EdgeLoadings(
            source=source.id,
            target=target.id,
            weight=float(weights[b]),
            offset=target.position - source.position,
            layers=layers[b],
            heads=heads[b, here],
            bypass=bypass[b, here],
            beside=beside[b, here],
            moves=tuple(sorted(moves[b], key=lambda move: -abs(move.loading))),
        )


def _placed(run: Run, sources: Sequence[Source]) -> dict[Place, Tensor]:
    """What each source writes, one column for each."""
    writes: dict[Place, Tensor] = {}
    for b, source in enumerate(sources):
        for place, rows in source.written:
            if place not in writes:
                writes[place] = rows.new_zeros(run.n, len(sources), rows.shape[1])
            writes[place][source.position, b] = rows[0]
    return writes


def _pulled(linear: LinearRun, targets: Sequence[Target], first: int) -> _Pulled:
    """One sweep back, as the gradient of a linear run of zeros."""
    run = linear.run
    like = run.at(f"blocks.{first}.hook_resid_pre")
    zeros = like.new_zeros(run.n, len(targets), like.shape[1])
    at: dict[Place, Tensor] = {}
    wanted = _crossed(run) | {target.place for target in targets}
    with torch.enable_grad():
        seeds = (zeros[:1, :1].clone().requires_grad_() for _ in range(run.n_layers))
        stop = max(target.place.layer for target in targets) + 1
        for moved in linear.blocks({Place(first, PRE, True): zeros}, stop, seeds):
            at |= {place: moved.at[place] for place in moved.at if place in wanted}
        reads = [
            (at[target.place][target.position, b] * target.row).sum()
            for b, target in enumerate(targets)
        ]
        total = torch.stack(reads).sum()
        places = [place for place in at if place.layer < run.n_layers and at[place].requires_grad]
        if not total.requires_grad:
            return _Pulled({})
        found = torch.autograd.grad(total, [at[place] for place in places], allow_unused=True)
    return _Pulled({p: g for p, g in zip(places, found, strict=True) if g is not None})


def _crossed(run: Run) -> set[Place]:
    """Where what goes through a block is measured: its heads, what goes past them, and beside."""
    parallel = run.model.layout.parallel
    stations = (Z, NORMALIZED, POST) if parallel else (Z, MID)
    places = {Place(layer, s, False) for layer in range(run.n_layers) for s in stations}
    return places | {
        Place(layer, station, True)
        for layer in range(run.n_layers)
        for station in _skips(run, layer)
    }


def _skips(run: Run, layer: int) -> dict[int, Float[Tensor, "d_out d_in"]]:
    """Skip connections that begin in the stream before attention, by the station where they end."""
    found = ((station, run.skip(layer, station)) for station in range(len(STATIONS)))
    return {station: skip[1] for station, skip in found if skip is not None and skip[0] == PRE}


def _beside(linear: LinearRun, moved: Moved, pulled: _Pulled) -> Float[Tensor, " batch"]:
    """What goes past attention other than in the stream: a parallel block's MLP, and skip
    connections that begin before attention."""
    run, layer = linear.run, moved.layer
    x = moved.take(PRE, after=True)
    total = x.new_zeros(x.shape[1])
    if run.model.layout.parallel:
        normalized = Place(layer, NORMALIZED, False)
        total = total + pulled.times(normalized, moved.at[normalized])
    for station, weight in _skips(run, layer).items():
        total = total + pulled.times(Place(layer, station, True), x @ weight.T)
    return total


def _moves(  # noqa: PLR0917  one layer of one edge
    linear: LinearRun,
    layer: int,
    pair: Edge,
    gradient: Float[Tensor, "pos d_z"],
    values: Float[Tensor, "pos n_kv_heads d_head"],
    n: int,
) -> list[Move]:
    """The largest parts of a layer by head, query and key."""
    start, stop = pair[0].position, pair[1].position + 1
    if n < 1 or stop <= start:
        return []
    pattern = linear.weights[layer].pattern[:, start:stop, start:stop]
    reads = rearrange(gradient[start:stop], "q (h d) -> h q d", h=len(pattern))
    keys = values[start:stop].repeat_interleave(len(pattern) // values.shape[1], dim=1)
    parts = pattern * einsum(reads, keys, "h q d, k h d -> h q k")
    flat = parts.flatten()
    some = flat.abs().topk(min(n, len(flat))).indices
    places = torch.stack(torch.unravel_index(some, parts.shape), 1).tolist()
    return [
        Move(layer, head, start + query, start + key, loading)
        for (head, query, key), loading in zip(places, flat[some].tolist(), strict=True)
        if loading
    ]
