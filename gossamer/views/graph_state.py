"""What a reader of a graph chooses, as observed traits: the same in every host, no Jupyter here.

A trait marked `sync` is sent to the browser and back. Values are replaced, never changed in place:
traits notice a new value only.
"""

import math
from typing import Any

from traitlets import Bool, Dict, Enum, Float, HasTraits, List, Tuple, Unicode, validate

from gossamer.errors import GossamerError, SiteError
from gossamer.views.graph_columns import CLASSES, SIDES

LINKS = ("in", "out", "both", "pinned", "all")
"""Which edges are drawn: into, out of, or at the pinned nodes; between them; all that pass."""

COLOURS = ("sign", "side", "check")
"""What the colour of an edge says: its sign, the prompt it belongs to, what a check found."""

ORDERS = ("weight", "label", "token", "measured")
"""How the connections of a node are sorted."""


class GraphState(HasTraits):
    """The choices of one graph view."""

    selected = Unicode("").tag(sync=True)
    """Id of the selected node; empty when none is."""

    pinned = List(Unicode()).tag(sync=True)
    """Ids of the pinned nodes, in the order in which they were pinned."""

    supernodes = Dict(value_trait=List(Unicode()), key_trait=Unicode()).tag(sync=True)
    """Groups of the subgraph: ids by name. A node is in one group at most."""

    places = Dict(value_trait=List(Float()), key_trait=Unicode()).tag(sync=True)
    """Where nodes and groups were dragged to in the subgraph: [x, y] in its units, by id of the
    node, or of the group's first node."""

    threshold = Float(0.0).tag(sync=True)
    """Edges below it in size are hidden."""

    influence = Float(1.0).tag(sync=True)
    """The most influential nodes with this share of all influence are shown, besides tokens,
    targets and pins; 1 shows all."""

    links = Enum(LINKS, "all").tag(sync=True)
    """Which edges are drawn."""

    hide_errors = Bool(False).tag(sync=True)
    """Whether errors and remainders are hidden."""

    hide_biases = Bool(False).tag(sync=True)
    """Whether biases and position embeddings are hidden."""

    hidden_classes = List(Enum(CLASSES)).tag(sync=True)
    """Edges of these classes are hidden; "" stands for those not checked."""

    hidden_sides = List(Enum(SIDES)).tag(sync=True)
    """Nodes and edges of these sides are hidden."""

    colour_by = Enum(COLOURS, "sign").tag(sync=True)
    """What the colour of an edge says; negative ones are dashed whatever it is."""

    sort_by = Enum(ORDERS, "weight").tag(sync=True)
    """Order of a node's connections."""

    node_ids = Tuple()
    """The ids that nodes have."""

    @validate("selected")
    def _check_selected(self, proposal: Any) -> str:
        if proposal["value"]:
            self._check_ids([proposal["value"]])
        return proposal["value"]

    @validate("pinned")
    def _check_pinned(self, proposal: Any) -> list[str]:
        self._check_ids(proposal["value"])
        return proposal["value"]

    @validate("supernodes")
    def _check_supernodes(self, proposal: Any) -> dict[str, list[str]]:
        value = proposal["value"]
        if not all(name.strip() for name in value):
            raise GossamerError("A supernode has a name; got an empty one.")
        if not all(value.values()):
            raise GossamerError("A supernode has nodes; leave out those that have none.")
        self._check_ids([node for ids in value.values() for node in ids])
        return value

    @validate("places")
    def _check_places(self, proposal: Any) -> dict[str, list[float]]:
        for node, place in proposal["value"].items():
            if len(place) != 2 or not all(math.isfinite(one) for one in place):
                raise GossamerError(f"A place is finite x and y, got {place} for {node!r}.")
        return proposal["value"]

    @validate("threshold")
    def _check_threshold(self, proposal: Any) -> float:
        value = proposal["value"]
        if not (math.isfinite(value) and value >= 0):
            raise GossamerError(f"A threshold is a finite number from 0 up, got {value}.")
        return value

    @validate("influence")
    def _check_influence(self, proposal: Any) -> float:
        value = proposal["value"]
        if not 0 <= value <= 1:
            raise GossamerError(f"A share of the influence is from 0 to 1, got {value}.")
        return value

    def _check_ids(self, nodes: list[str]) -> None:
        """SiteError when no node has an id; GossamerError when one stands twice."""
        known = set(self.node_ids)
        for node in nodes:
            if node not in known:
                some = ", ".join(self.node_ids[:3]) or "none"
                raise SiteError(
                    f"No node of this graph is {node!r}; it has {len(known)}, such as: {some}."
                )
        if len(set(nodes)) < len(nodes):
            twice = next(node for node in nodes if nodes.count(node) > 1)
            raise GossamerError(f"{twice!r} stands twice; a node is pinned, or in a group, once.")
