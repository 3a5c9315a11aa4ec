"""Graph JSON, as circuit-tracer's page and Neuronpedia show it, read and written."""

from gossamer.interop.graph_json.reading import read_graph_json
from gossamer.interop.graph_json.writing import write_graph_json

__all__ = ["read_graph_json", "write_graph_json"]
