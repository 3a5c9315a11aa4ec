"""A small graph view whose texts try to break out of the page, and the numbers in it."""

import numpy as np

from gossamer.views import GraphEdges, GraphNodes, GraphView
from gossamer.views.graph_columns import CLASSES
from tests.hostile import HOSTILE

ROWS = ("embedding", "0 attn", "0 mlp", "1 attn", "1 mlp", "logits")
"""Rows of the grid, from the bottom up."""

LEAF_KINDS = ("token", "position", "bias", "error", "remainder")


def leaves_and_latents() -> list[tuple[str, str, int, int]]:
    """(id, kind, row, position) of the nodes, sources before their targets."""
    found = []
    for position in range(len(HOSTILE)):
        found.append((f"hook_embed/{position + 5}@{position}", "token", 0, position))
        found.append((f"hook_pos_embed/{position}@{position}", "position", 0, position))
    for row, site in ((1, "attn_out"), (2, "mlp_out"), (3, "attn_out"), (4, "mlp_out")):
        layer = (row - 1) // 2
        for position in range(len(HOSTILE)):
            name = f"blocks.{layer}.hook_{site}"
            latents = range(10 * row, 10 * row + 1 + (position + row) % 3)
            found += [(f"{name}/{i}@{position}", "latent", row, position) for i in latents]
            if (position + row) % 2:
                found.append((f"{name}/error@{position}", "error", row, position))
            if position % 3 == 0:
                found.append((f"{name}/bias@{position}", "bias", row, position))
            if position % 4 == 1:
                found.append((f"{name}/remainder@{position}", "remainder", row, position))
    last = len(HOSTILE) - 1
    found += [(f"logits/{token}@{last}", "logit", 5, last) for token in (318, 262)]
    return found


def influence_on(
    sources: np.ndarray, targets: np.ndarray, sizes: np.ndarray, totals: np.ndarray, w: np.ndarray
) -> np.ndarray:
    """I = w (Ā + Ā² + …), by powers of the dense matrix."""
    normal = np.zeros((len(w), len(w)))
    normal[targets, sources] = sizes / totals[targets]
    flow, step = np.zeros(len(w)), w.copy()
    for _ in range(len(w)):
        step = step @ normal
        flow += step
    return flow


def hostile_graph(*, checked: bool = True, sides: bool = False, **options: object) -> GraphView:
    """Edges from most nodes to most later ones, with hostile texts for labels and tokens."""
    generator = np.random.default_rng(5)
    ids, kinds, rows, positions = map(list, zip(*leaves_and_latents(), strict=True))
    rows, positions = np.array(rows), np.array(positions)
    is_leaf = np.isin(kinds, LEAF_KINDS)
    # A target stands in a later row and not at an earlier position.
    causal = (rows[:, None] > rows[None]) & (positions[:, None] >= positions[None])
    causal &= ~is_leaf[:, None] & (np.array(kinds) != "logit")[None]
    causal &= generator.random(causal.shape) < 0.6
    targets, sources = np.nonzero(causal)
    weights = generator.standard_t(3, len(targets))
    totals = np.bincount(targets, np.abs(weights), len(ids)) * 1.05
    counts = np.where(np.array(kinds) == "logit", 1.0, 0.0)
    counts[-2:] = 0.7, 0.2
    nodes = GraphNodes(
        ids=ids,
        kinds=kinds,
        rows=rows,
        positions=positions,
        indices=np.where(np.isin(kinds, ("latent", "token", "logit")), np.arange(len(ids)), -1),
        values=np.linspace(0.5, 3.0, len(ids)),
        labels=[
            HOSTILE[(row + position) % len(HOSTILE)] if kind in ("latent", "token") else ""
            for kind, row, position in zip(kinds, rows.tolist(), positions.tolist(), strict=True)
        ],
        influence=influence_on(sources, targets, np.abs(weights), totals, counts),
        weights=counts,
        input_totals=totals,
        excerpts=[[HOSTILE[1]] if kind == "latent" else [] for kind in kinds],
        links=["https://example.org/x" if kind == "latent" else "" for kind in kinds],
        sides=[("both", "first", "second", "changed")[i % 4] for i in range(len(ids))]
        if sides
        else (),
    )
    m = len(weights)
    edges = GraphEdges(
        sources=sources,
        targets=targets,
        weights=weights,
        measured=np.where(np.arange(m) % 3, np.nan, weights * 0.9) if checked else None,
        classes=[CLASSES[i % 5 + 1] if i % 3 == 0 else "" for i in range(m)] if checked else (),
        sides=[("both", "first", "second", "changed")[i % 4] for i in range(m)] if sides else (),
    )
    chosen = {
        "title": f"Graph {HOSTILE[0]}",
        "note": HOSTILE[1],
        "tokens": HOSTILE,
        "row_names": ROWS,
        "nodes": nodes,
        "edges": edges,
    }
    return GraphView(**{**chosen, **options})
