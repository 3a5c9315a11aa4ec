"""Load a graph from any file that holds one, by what is in the file."""

from pathlib import Path

from gossamer.errors import FormatError
from gossamer.graph.graph import Graph
from gossamer.interop.circuit_tracer import read_graph_pt
from gossamer.interop.graph_json import read_graph_json


def load_graph(path: str | Path) -> Graph:
    """The graph in a file: one that `graph.save` wrote, a Graph JSON, or circuit-tracer's .pt.

    FormatError when the file is none of these, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"There is no file {path}; name a graph's .safetensors, .json or .pt.")
    with path.open("rb") as file:
        start = file.read(64)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":  # zip, or a bare pickle
        return read_graph_pt(path)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return read_graph_json(path)
    if start[8:9] == b"{":  # the length of safetensors' header stands before it
        return Graph.load(path)
    raise FormatError(
        f"{path} holds no graph; those that graph.save wrote, Graph JSON and circuit-tracer's .pt "
        "are read."
    )
