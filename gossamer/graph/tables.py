"""A graph for other libraries: pandas and networkx, imported when they are asked for."""

from typing import Any

import numpy as np
from jaxtyping import Float

from gossamer.errors import GossamerError
from gossamer.graph.edges import GraphEdges
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.prune import Pruned


def edge_table(edges: GraphEdges) -> Any:
    """A pandas DataFrame with a line for each edge, by target and source as they lie: source,
    target, weight, source_label, target_label, offset. GossamerError without pandas."""
    pandas, nodes = pandas_or_error(), edges.nodes
    sources, targets, weights = edges.arrays()
    ids, labels = np.array(nodes.ids, object), np.array(nodes.labels, object)
    return pandas.DataFrame(
        {
            "source": ids[sources],
            "target": ids[targets],
            "weight": weights,
            "source_label": labels[sources],
            "target_label": labels[targets],
            "offset": nodes.positions[targets] - nodes.positions[sources],
        }
    )


def node_table(
    nodes: Nodes,
    tokens: tuple[str, ...],
    influence: Float[np.ndarray, " n"] | None,
    pruned: Pruned | None,
) -> Any:
    """A pandas DataFrame with a line for each node: id and what Node has, the token at its
    position, influence (NaN without a target), and dropped_sum and dropped_size (0 in a whole
    graph). GossamerError without pandas."""
    pandas, n = pandas_or_error(), len(nodes)
    nothing = np.zeros(n)
    return pandas.DataFrame(
        {
            "id": list(nodes.ids),
            "kind": [KINDS[kind] for kind in nodes.kinds.tolist()],
            "site": [nodes.sites[site] for site in nodes.site_of.tolist()],
            "unit": nodes.units,
            "position": nodes.positions,
            "token": [tokens[p] if p < len(tokens) else "" for p in nodes.positions.tolist()],
            "value": nodes.values,
            "label": list(nodes.labels),
            "weight": nodes.weights,
            "reads": nodes.reads,
            "constant": nodes.constants,
            "residual": nodes.residuals,
            "influence": np.full(n, np.nan) if influence is None else influence,
            "dropped_sum": nothing if pruned is None else pruned.sums,
            "dropped_size": nothing if pruned is None else pruned.sizes,
        }
    )


def to_networkx(edges: GraphEdges) -> Any:
    """A networkx DiGraph. GossamerError without networkx."""
    try:
        import networkx
    except ModuleNotFoundError as error:
        raise GossamerError(
            "to_networkx needs the package networkx: pip install networkx; or take the numbers "
            "from graph.edges.arrays()."
        ) from error
    drawn, nodes = networkx.DiGraph(), edges.nodes
    for node in nodes:
        columns = {name: value for name, value in node._asdict().items() if name != "id"}
        drawn.add_node(node.id, **columns)
    ids = nodes.ids
    for block in edges.blocks():
        columns = (column.tolist() for column in block)
        drawn.add_weighted_edges_from(
            (ids[source], ids[target], weight)
            for source, target, weight in zip(*columns, strict=True)
        )
    return drawn


def pandas_or_error() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise GossamerError(
            "to_dataframe needs the package pandas: pip install 'gossamer[notebook]'; or take the "
            "numbers from graph.nodes and graph.edges.arrays()."
        ) from error
    return pandas
