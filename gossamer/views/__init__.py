"""Pictures of plain data: one view, drawn the same under a notebook cell and in an offline page."""

from gossamer.views.matrix import MatrixView, NodeColumn

__all__ = ["MatrixView", "NodeColumn"]
