"""Graphs, parts of them, and what checking and comparing them found."""

from typing import Any, Literal

from gossamer.server.answers.fields import Fields

Side = Literal["first", "second", "both", "changed"]


class GraphInfo(Fields):
    """A graph in the workspace, in short; `verified` says how many edges hold, when it was
    checked."""

    id: str
    title: str
    created: float
    prompt: str
    target: str
    n_nodes: int
    n_edges: int
    verified: str | None


class GraphList(Fields):
    """All of them, newest first."""

    graphs: list[GraphInfo]


class GraphNode(Fields):
    """One node."""

    id: str
    kind: str
    site: str
    unit: str
    position: int
    token: str
    value: float | None
    label: str
    weight: float
    reads: float | None
    constant: float | None
    residual: float | None


class Graph(GraphInfo):
    """A graph, without its nodes and edges."""

    tokens: list[str]
    token_ids: list[int]
    kinds: dict[str, int]
    targets: list[GraphNode]
    replacement_score: float | None
    completeness: float | None
    largest_residual: float | None
    residual_node: str
    about: dict[str, Any]
    request: dict[str, Any]


class EdgePair(Fields):
    """An edge of one graph or both."""

    source: str
    target: str
    side: Side
    first: float | None
    second: float | None


class GraphComparison(Fields):
    """Two graphs side by side."""

    first: str
    second: str
    align: str | list[list[int]]
    tolerance: float
    pruned: bool
    counts: dict[str, dict[Side, int]]
    top: list[EdgePair]
    page: str
    seconds: float
    peak_bytes: int | None


class Attribution(Fields):
    """One graph for each prompt; a comparison where one prompt stands against another."""

    graphs: list[Graph]
    comparison: GraphComparison | None
    seconds: float
    peak_bytes: int | None


class GraphEdge(Fields):
    """One edge."""

    source: str
    target: str
    weight: float | None
    source_label: str
    target_label: str
    offset: int


class GraphEdges(Fields):
    """Some edges, strongest first."""

    edges: list[GraphEdge]


class NearNode(GraphNode):
    """A node, with its influence in the whole graph."""

    influence: float


class Neighbourhood(Fields):
    """A part of a graph: what there is, and of it what is listed."""

    n_nodes: int
    n_edges: int
    nodes: list[NearNode]
    edges: list[GraphEdge]


class CheckedEdge(Fields):
    """An edge beside what ablating its source did, by mode."""

    source: str
    target: str
    source_label: str
    target_label: str
    weight: float | None
    linear: float | None
    held: float | None
    norms_held: float | None
    direct_small: float | None
    direct: float | None
    total_small: float | None
    total: float | None
    flips_direct: bool
    flips_total: bool
    others_direct: int
    others_total: int
    floor: float | None
    kind: str


class CheckedNode(Fields):
    """A node's effect on the targets, predicted and measured."""

    node: str
    label: str
    predicted: float | None
    total_small: float | None
    total: float | None
    agrees: bool


class Report(Fields):
    """How many edges hold, and each of them."""

    graph: str
    sentence: str
    lines: list[str]
    modes: dict[str, float | None]
    classes: dict[str, float | None]
    edges: list[CheckedEdge]
    nodes: list[CheckedNode]
    about: dict[str, Any]
