"""Graphs as circuit-tracer stores them (`Graph.to_pt`), read without running them, and written."""

from gossamer.interop.circuit_tracer.reading import read_graph_pt
from gossamer.interop.circuit_tracer.writing import write_graph_pt

__all__ = ["read_graph_pt", "write_graph_pt"]
