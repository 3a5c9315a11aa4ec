"""`scalars`: any derived scalar of a run, also after it."""

from collections.abc import Sequence

from gossamer.analysis.directions import Route
from gossamer.analysis.links import edges_in, edges_out, shares, ways_of
from gossamer.analysis.scalars import AXES, TABLE, Scalars, reduced, sae_sites, sites_of
from gossamer.analysis.view import View, view_of
from gossamer.errors import GossamerError
from gossamer.sites import parse_node
from gossamer.splice import Trace

LINKS = ("edge_in", "edge_out", "share")
"""Metrics that name a second node."""


def scalars(  # noqa: PLR0913  one call for every scalar
    trace: Trace,
    kind: str,
    metric: str,
    *,
    site: str | None = None,
    reduce: Sequence[str] | str = (),
    node: str | None = None,
    route: Route = "pre",
    hold: Sequence[str] = ("norms",),
    prompt: int = 0,
) -> dict[str, Scalars]:
    """A metric of every node of a kind, by site.

    Args:
        trace: an analysis's; for activation and write_norm any run's that recorded the sites.
        kind: embedding, position, head, pair, neuron, latent, error, bias, remainder, layer or
            residual.
        metric: activation, write_norm, direct, total; or one that names a node: edge_in (from every
            node of the kind into it), edge_out (from it into every node of the kind), share (of
            pairs in an attention latent).
        site: only this site. None: all.
        reduce: axes to sum over: any of pos, key and unit.
        node: the other node of an edge or share.
        route: of edges into a head, q, k or qk; of edges out into pairs, q, k or v.
        hold: of edges: kept constant on the way, as in `analyze`.
        prompt: which prompt of the trace.
    """
    check_scalar(kind, metric, node)
    view = view_of(trace, prompt)
    names = (reduce,) if isinstance(reduce, str) else tuple(reduce)
    if metric in ("direct", "total"):
        _ = view.direction  # raises where the trace explains no number
    if node is None:
        found = {place: _whole(view, kind, metric, place) for place in sites_of(view, kind)}
    else:
        found = _linked(trace, view, (kind, metric), node=node, route=route, how=(hold, prompt))
    if not found and node is None:
        _check_recorded(view, kind)
    if site is not None and site not in found:
        raise GossamerError(
            f"There is no {kind} at {site} in this trace; there is one at "
            f"{', '.join(found) or 'no site'}."
        )
    return {
        place: reduced(view, whole, names)
        for place, whole in found.items()
        if site in (None, place)
    }


def _whole(view: View, kind: str, metric: str, site: str) -> Scalars:
    latents = view.active(site)[:2] if kind == "latent" else (None, None)
    values, axes = TABLE[kind, metric](view, site), AXES[kind]
    axes = axes if values.ndim == len(axes) else (*axes, "channel")
    return Scalars(kind, metric, site, axes, values, *latents)


def _check_recorded(view: View, kind: str) -> None:
    """GossamerError where a trace has nodes of a kind, and has not recorded what they need."""
    of_saes = kind in ("latent", "error", "remainder")
    if of_saes and view.saes and not sae_sites(view):
        needs = {place for sae in view.saes.values() for place in (sae.site_in, sae.site_out)}
        raise GossamerError(
            f"The trace has not recorded what its SAEs read and write; record {sorted(needs)}."
        )
    if kind in ("head", "pair", "neuron", "layer", "residual", "embedding"):
        raise GossamerError(
            f"The trace has recorded no site of a {kind}, but {list(view.values)[:4]}; record one."
        )


def _linked(
    trace: Trace,
    view: View,
    what: tuple[str, str],
    *,
    node: str,
    route: Route,
    how: tuple[Sequence[str], int],
) -> dict[str, Scalars]:
    """Edges and shares."""
    kind, metric = what
    parsed = parse_node(node)
    if metric == "share":
        return shares(view, parsed)
    ways = ways_of(trace, view, how[1], how[0])
    link = edges_in if metric == "edge_in" else edges_out
    return link(ways, kind, parsed, route)


def check_scalar(kind: str, metric: str, node: str | None) -> None:
    """GossamerError for a scalar that there is not."""
    if kind not in AXES:
        raise GossamerError(f"kind is one of {', '.join(AXES)}, got {kind!r}.")
    if metric in LINKS:
        if node is None:
            raise GossamerError(f"{metric} is between two nodes; name the other one with node=.")
        if metric == "share" and kind != "pair":
            raise GossamerError(f"share is of pairs in an attention latent, got kind {kind!r}.")
        if kind == "residual":
            raise GossamerError("The residual stream is no node, so it has no edges.")
        return
    if (kind, metric) not in TABLE:
        has = ", ".join([*(m for k, m in TABLE if k == kind), *LINKS])
        raise GossamerError(f"A {kind} has {has}; got {metric!r}.")
    if node is not None:
        raise GossamerError(f"{metric} is of one node; node= belongs to {', '.join(LINKS)}.")
