"""Random graphs and dense references for them: matrices in float64, straight from definitions."""

from fractions import Fraction

import numpy as np

from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.rows import from_dense

LEAVES = ("token", "position", "error", "bias", "remainder")


def random_graph(
    seed: int, n: int = 40, *, n_targets: int = 2, density: float = 0.5, dtype: type = np.float64
) -> tuple[Graph, np.ndarray]:
    """A graph whose first third are leaves of every kind, and its matrix. Every other node has an
    edge in; rows and edges differ in size by orders of magnitude."""
    generator = np.random.default_rng(seed)
    n_leaves = n // 3
    kinds = [KINDS.index(LEAVES[i % len(LEAVES)]) for i in range(n_leaves)]
    kinds += [KINDS.index("latent")] * (n - n_leaves - n_targets) + [
        KINDS.index("logit")
    ] * n_targets
    matrix = np.tril(generator.standard_t(1.5, (n, n)), -1)
    matrix *= generator.random((n, n)) < density
    matrix[:, -n_targets:] = 0
    matrix[np.arange(n), np.arange(n) // 2] += 1e-3
    matrix *= 10 ** generator.uniform(-3, 3, (n, 1))
    matrix[:n_leaves] = 0
    matrix = matrix.astype(dtype)
    weights = np.zeros(n)
    weights[-n_targets:] = np.sort(generator.random(n_targets))[::-1]
    return Graph(
        table(np.array(kinds), weights, matrix),
        from_dense(matrix),
        tuple(("a", " b", '"\n', "é", "�")[i % 5] for i in range(-(-n // 5))),
        tuple(range(-(-n // 5))),
        {"model": "tiny", "hold": ["attention", "norms"], "effects": "direct"},
    ), matrix.astype(np.float64)


def table(kinds: np.ndarray, weights: np.ndarray, matrix: np.ndarray) -> Nodes:
    """Nodes that read what their edges add up to, and a half."""
    n = len(kinds)
    words = [KINDS.index(kind) for kind in ("error", "bias", "remainder")]
    reads = matrix.astype(np.float64).sum(1)
    leaf = ~matrix.any(1)
    return Nodes(
        sites=("blocks.0.hook_mlp_out", "logits", "hook_embed"),
        kinds=kinds.astype(np.int8),
        site_of=np.where(kinds == KINDS.index("logit"), 1, np.where(kinds == 2, 2, 0)).astype(
            np.int32
        ),
        units=np.where(np.isin(kinds, words), -1, np.arange(n)),
        positions=(np.arange(n) // 5).astype(np.int32),
        values=np.linspace(0.5, 2, n),
        weights=weights,
        reads=np.where(leaf, np.nan, reads + 0.5),
        constants=np.where(leaf, np.nan, 0.5),
        residuals=np.where(leaf, np.nan, 0.0),
        distractors=np.full(n, -1),
        labels=tuple(f"means {i}" for i in range(n)),
    )


def normalised(matrix: np.ndarray) -> np.ndarray:
    """Ā."""
    sizes = np.abs(matrix)
    return sizes / np.maximum(sizes.sum(1, keepdims=True), 1e-10)


def influence(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """w·Ā·(1 − Ā)⁻¹ by a linear solve."""
    share = normalised(matrix)
    return np.linalg.solve(np.eye(len(share)) - share.T, weights) - weights


def sorted_threshold(values: np.ndarray, share: float) -> float:
    """Down the sorted values until they reach the share of their exact total."""
    if share == 1:
        return 0.0
    total = sum(map(Fraction, values.ravel().tolist()))
    reached = Fraction(0)
    for value in np.sort(values, axis=None)[::-1].tolist():
        reached += Fraction(value)
        if reached >= Fraction(share) * total:
            return value
    return 0.0


def pruned(
    graph: Graph, matrix: np.ndarray, nodes: float, edges: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes and which edges stay, step by step as the rule is written."""
    weights = graph.nodes.weights
    whole = influence(matrix, weights)
    always = graph.nodes.of_kind("token", "position") | (weights > 0)
    kept = (whole >= sorted_threshold(whole, nodes)) | always
    inside = np.where(kept[:, None] & kept[None], matrix, 0.0)
    part = influence(inside, weights)
    marks = normalised(inside) * (part + weights)[:, None]
    there = (inside != 0) & (marks >= sorted_threshold(marks, edges))
    latent, target = graph.nodes.of_kind("latent"), weights > 0
    while True:
        before = kept.copy()
        kept &= always | there.any(0)
        kept &= ~latent | target | there.any(1)
        there &= kept[:, None] & kept[None]
        if (kept == before).all():
            return kept, there
