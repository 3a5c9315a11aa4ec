"""Upstream traces of attention heads: through the query, the key, both, or what is written."""

import torch
from torch import Tensor

from gossamer.analysis.directions import Through
from gossamer.analysis.reading import Reading, Seen, Value, at_position, constant
from gossamer.errors import GossamerError, SiteError
from gossamer.models.held import projection
from gossamer.models.model import Model
from gossamer.sites import parse_node, parse_site


def of_head(  # noqa: PLR0917  which head, in which run, and what it is read along
    model: Model,
    direction: Through,
    n: int,
    hold: tuple[str, ...],
    downstream: Reading | None = None,
) -> Reading:
    """How a head's score, or what it writes along `downstream`, is read in a prompt of n tokens."""
    node = parse_node(direction.node)
    model.check_site(node.site)
    query, head, layer = at_position(node.position, n), int(node.unit), parse_site(node.site).layer
    n_heads = model.language_model.config.num_attention_heads
    if head >= n_heads:
        raise SiteError(f"{head} is not a head of {node.site}; choose from 0..{n_heads - 1}.")
    key = None if node.key_position is None else at_position(node.key_position, n)
    at = f"blocks.{layer}."
    rotated = "rot_" if model.layout.adapter.attention.rotary else ""
    q, k = f"{at}attn.hook_{rotated}q", f"{at}attn.hook_{rotated}k"
    residual = f"{at}hook_resid_pre"
    if direction.route == "v":
        assert downstream is not None
        if downstream.downstream is not None:
            raise GossamerError(
                "The direction downstream of a trace through v is not itself a trace through v; "
                "name a neuron, a latent, a score or a token."
            )
        if parse_site(downstream.residual).order <= parse_site(f"{at}hook_attn_out").order:
            raise SiteError(
                f"The head {direction.node} is not upstream of the direction it should be read "
                f"along, which reads {downstream.residual}; name a later one."
            )
        sites = (f"{at}attn.hook_v", f"{at}attn.hook_pattern", residual)
        post = (f"{at}ln1_post.hook_scale",) if model.layout.adapter.ln1_post else ()
        return Reading(
            direction=direction,
            sites=(*sites, *post, *downstream.sites),
            residual=residual,
            position=query,
            constant=constant(f"{at}attn.hook_v", query, "norms" in hold),
            of=_written_value(layer or 0, head, query, key),
            downstream=downstream,
        )
    assert key is not None
    return Reading(
        direction=direction,
        sites=(q, k, residual),
        residual=residual,
        position=query,
        constant=constant(
            f"{at}attn.hook_{'attn_scores' if direction.route == 'qk' else direction.route}",
            key if direction.route == "k" else query,
            "norms" in hold,
        ),
        times=2 if direction.route == "qk" else 1,
        of=_score_value(layer or 0, (q, k), head=head, pair=(query, key), route=direction.route),
    )


def _score_value(
    layer: int, sites: tuple[str, str], *, head: int, pair: tuple[int, int], route: str
) -> Value:
    """q · k · scaling, the side that the route does not take held."""

    def value(seen: Seen, row: int, _: Tensor | None) -> Tensor:
        setting = seen.settings[layer].attention
        allowed = setting.allowed.expand(len(seen.values[sites[0]]), -1, -1, -1)
        if not bool(allowed[row, 0, pair[0], pair[1]]):
            raise SiteError(
                f"In block {layer} query {pair[0]} cannot see key {pair[1]}, which is outside its "
                "window; name a key that it sees."
            )
        queries, keys = (seen.values[site] for site in sites)
        group = queries.shape[2] // keys.shape[2]
        q, k = queries[row, pair[0], head], keys[row, pair[1], head // group]
        score = torch.zeros_like(q.sum())
        if "q" in route:
            score = score + (q * k.detach()).sum()
        if "k" in route:
            score = score + (q.detach() * k).sum()
        return score * setting.scaling

    return value


def _written_value(layer: int, head: int, query: int, key: int | None) -> Value:
    """A · v W_O · g, with A and g held."""

    def value(seen: Seen, row: int, along: Tensor | None) -> Tensor:
        assert along is not None
        at, layout = f"blocks.{layer}.", seen.model.layout
        local = {site: v[row, query : query + 1].detach() for site, v in seen.values.items()}
        weight, _, norm = projection(layout, local, layer, "attn")
        g = along[query][None]
        g = (g if norm is None else norm.pulled(g))[0] @ weight
        values = seen.values[f"{at}attn.hook_v"]
        patterns = seen.values[f"{at}attn.hook_pattern"]
        pattern = patterns[row, head, query].detach()
        v = values[row, :, head // (patterns.shape[1] // values.shape[2])]
        g = g.unflatten(0, (-1, v.shape[-1]))[head].to(v)
        keys = slice(None) if key is None else slice(key, key + 1)
        return (pattern[keys] * (v[keys] @ g)).sum()

    return value
