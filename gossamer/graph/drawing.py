"""A graph as a view: the rows of its grid, and the part of it that a page can hold."""

import re
import sys
import tempfile
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from gossamer.errors import GossamerError
from gossamer.graph.edges import EdgeArrays, GraphEdges
from gossamer.graph.influence import sums_of_sizes
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.prune import Pruned

if TYPE_CHECKING:
    from gossamer.views.graph import GraphView
    from gossamer.views.graph_columns import GraphNodes

_BLOCK = re.compile(r"blocks\.([0-9]+)\.(.+)")

_LEVELS = (
    ("hook_resid_pre", "resid"),
    ("attn hook_attn_out ln1 ln1_post", "attn"),
    ("hook_resid_mid", "mid"),
    ("mlp hook_mlp_out ln2 ln2_post", "mlp"),
    ("hook_resid_post", "out"),
)
"""Sites and modules of a block, in forward order, and what their row in the grid is called."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn, and chosen at first."""

    pinned: Sequence[str]
    """Ids of nodes that are pinned."""

    supernodes: Mapping[str, Sequence[str]]
    """Ids of nodes that are grouped, by the group's name."""

    excerpts: Mapping[str, Mapping[int, Sequence[str]]]
    """Texts on which latents fire, by site and latent."""

    verified: Mapping[tuple[str, str], tuple[str, float]]
    """(class, measured effect) of checked edges, by (source id, target id)."""

    max_nodes: int
    """Nodes that are drawn at most, besides tokens, positions, targets and those named."""

    max_edges: int
    """Edges that are drawn at most."""

    def __post_init__(self) -> None:
        if self.max_nodes < 0 or self.max_edges < 0:
            raise GossamerError(
                "max_nodes and max_edges say how many to draw, 0 or more; got "
                f"{self.max_nodes} and {self.max_edges}."
            )


def draw(
    edges: GraphEdges,
    drawing: Drawing,
    *,
    tokens: tuple[str, ...],
    about: Mapping[str, Any],
    influence: Float[np.ndarray, " n"] | None,
    pruned: Pruned | None,
) -> "GraphView":
    """The view of a graph; influence is None where there is no target."""
    from gossamer.views.graph import GraphView
    from gossamer.views.graph_columns import GraphEdges as EdgeColumns

    nodes = edges.nodes
    if pruned is not None and not np.isnan(pruned.influence).any():
        influence = pruned.influence
    influence = np.zeros(len(nodes)) if influence is None else influence
    drawn = _drawn(nodes, influence, drawing)
    chosen = np.flatnonzero(drawn)
    numbers = np.cumsum(drawn) - 1
    strongest = edges.strongest(drawing.max_edges, drawn)
    totals = sums_of_sizes(edges.rows) + (0.0 if pruned is None else pruned.sizes)
    names, rows = grid_rows(nodes.sites)
    counts = ((len(nodes), len(edges)), (len(chosen), len(strongest.weights)))
    return GraphView(
        nodes=_columns(
            nodes.take(chosen),
            tokens,
            rows=rows,
            influence=influence[chosen],
            totals=totals[chosen],
            excerpts=drawing.excerpts,
        ),
        edges=EdgeColumns(
            sources=numbers[strongest.sources],
            targets=numbers[strongest.targets],
            weights=strongest.weights,
            **_checked(strongest, nodes.ids, drawing.verified),
        ),
        tokens=tokens,
        row_names=names,
        title=str(about.get("title") or "Attribution graph"),
        note=note(about, *counts),
        pinned=drawing.pinned,
        supernodes=drawing.supernodes,
    )


def _checked(
    edges: EdgeArrays,
    ids: Sequence[str],
    verified: Mapping[tuple[str, str], tuple[str, float]],
) -> dict[str, Any]:
    """The columns of what checking found; none when nothing was checked."""
    if not verified:
        return {}
    pairs: zip[tuple[int, int]] = zip(edges.sources.tolist(), edges.targets.tolist(), strict=True)
    found = [verified.get((ids[source], ids[target])) for source, target in pairs]
    measured = [np.nan if one is None else one[1] for one in found]
    return {
        "classes": ["" if one is None else one[0] for one in found],
        "measured": np.array(measured, np.float64),
    }


def show(view: "GraphView", name: str) -> Any:
    """The view's widget in a notebook; elsewhere its page in the browser, and where it lies."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and hasattr(shell, "kernel"):
        return view.widget()
    path = view.to_html(Path(tempfile.mkdtemp(prefix="gossamer-")) / name)
    webbrowser.open(path.as_uri())
    return path


def grid_rows(sites: Sequence[str]) -> tuple[list[str], Int[np.ndarray, " n_sites"]]:
    """The names of the rows that these sites need, from the bottom up, and the row of each."""
    places = [_place(site) for site in sites]
    order = sorted(set(places))
    return [name for _, name in order], np.array([order.index(one) for one in places], np.int64)


def note(about: Mapping[str, Any], whole: tuple[int, int], drawn: tuple[int, int]) -> str:
    """How the numbers were made and how much of them is drawn; counts are of nodes and edges."""
    parts = []
    if "effects" in about:
        held = " and ".join(about.get("hold", ())) or "nothing"
        model = f" in {about['model']}" if about.get("model") else ""
        parts.append(f"Effects ({about['effects']}){model}; held: {held}.")
    if "pruned" in about:
        was = about["pruned"]
        parts.append(
            f"Pruned from {was['n_nodes']:,} nodes and {was['n_edges']:,} edges to those with "
            f"{was['nodes']:.0%} of the influence and {was['edges']:.0%} of the edges' scores."
        )
    if drawn[0] < whole[0]:
        parts.append(f"Drawn are the {drawn[0]:,} most influential of {whole[0]:,} nodes.")
    if drawn[1] < whole[1]:
        parts.append(f"Drawn are the {drawn[1]:,} strongest of {whole[1]:,} edges.")
    return " ".join(parts)


def _place(site: str) -> tuple[tuple[int, int, int], str]:
    """Where a site's row stands in the grid, and its name."""
    block = _BLOCK.fullmatch(site)
    if block is None:
        if site in ("hook_embed", "hook_pos_embed", "embed", "pos_embed"):
            return (0, 0, 0), "embedding"
        return ((2, 0, 0), "logits") if site == "logits" else ((1, 1 << 30, 0), "final")
    layer, kind = int(block[1]), block[2]
    for level, (names, word) in enumerate(_LEVELS):
        if kind in names.split() or kind.split(".")[0] in names.split():
            return (1, layer, level), f"{layer} {word}"
    return (1, layer, len(_LEVELS)), f"{layer} {kind}"


def _drawn(
    nodes: Nodes, influence: Float[np.ndarray, " n"], drawing: Drawing
) -> Bool[np.ndarray, " n"]:
    """Tokens, positions, targets, those named, and the most influential of the others."""
    drawn = nodes.of_kind("token", "position") | (nodes.weights > 0)
    named = [*drawing.pinned, *(node for ids in drawing.supernodes.values() for node in ids)]
    drawn[[nodes.numbers[node] for node in named]] = True
    others = np.flatnonzero(~drawn)
    order = np.argsort(-influence[others], kind="stable")
    drawn[others[order[: drawing.max_nodes]]] = True
    return drawn


def _columns(
    nodes: Nodes,
    tokens: tuple[str, ...],
    *,
    rows: Int[np.ndarray, " n_sites"],
    influence: Float[np.ndarray, " n"],
    totals: Float[np.ndarray, " n"],
    excerpts: Mapping[str, Mapping[int, Sequence[str]]],
) -> "GraphNodes":
    """The view's table of nodes; `totals` are sizes of all that comes into each."""
    from gossamer.views.graph_columns import GraphNodes

    shown = []
    for node in nodes:
        text = "".join(tokens[node.position :][:1]) if node.kind == "token" else ""
        known = excerpts.get(node.site, {}) if node.kind == "latent" else {}
        shown.append((node.label or text, known.get(int(node.unit), ()) if known else ()))
    return GraphNodes(
        ids=nodes.ids,
        kinds=[KINDS[kind] for kind in nodes.kinds.tolist()],
        rows=rows[nodes.site_of],
        positions=nodes.positions,
        indices=nodes.units,
        values=np.where(np.isfinite(nodes.values), nodes.values, 0.0),
        labels=[label for label, _ in shown],
        influence=influence,
        weights=nodes.weights,
        input_totals=totals,
        excerpts=[texts for _, texts in shown] if excerpts else (),
    )
