"""Pictures of plain data: one view, drawn the same under a notebook cell and in an offline page."""

from gossamer.views.graph import GraphView
from gossamer.views.graph_columns import GraphEdges, GraphNodes
from gossamer.views.matrix import MatrixView, NodeColumn

__all__ = ["GraphEdges", "GraphNodes", "GraphView", "MatrixView", "NodeColumn"]
