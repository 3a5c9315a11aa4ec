"""What a Graph JSON holds, and how a node is called in one.

    latent       {layer}_{latent}_{pos}             feature: the Cantor pair of (layer, latent)
    error        {layer}_-1_{pos}                   feature: −1
    token        E_{token}_{pos}                    feature: pos
    position     E_pos{n}_{pos}                     feature: n_tokens + n
    bias         {layer}_{module}_bias_{pos}        feature: −2, −3, …
    remainder    {layer}_{module}_remainder_{pos}   likewise
    logit        {n_layers + 1}_{token}_{pos}       feature: the token
    difference   {n_layers + 1}_{a}-{b}_{pos}       feature: from the size of the vocabulary on

One dictionary of each layer, the one that writes the MLP's output if there is one, has these names.
Another one's ids have its site between layer and number, and its pairs a layer that no model of
this depth has, so that pages find no latent under them rather than a wrong one.

The pages of circuit-tracer and Neuronpedia know four types of node. Position embeddings go as
"embedding", biases and remainders as "mlp reconstruction error": both are leaves, a type that the
pages do not know would shift the logits in Neuronpedia's scores, and no smaller claim is made than
holds. Pages say "Emb" and "Err" of them; circuit-tracer's keeps the text that says what they are.
"""

from math import isqrt
from typing import NamedTuple

import numpy as np

from gossamer.errors import FormatError, SiteError
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.sites import parse_site

PARTS = ("metadata", "qParams", "nodes", "links")
"""What a Graph JSON must have."""

METADATA_FIELDS = ("slug", "scan", "prompt_tokens", "prompt")
"""What its metadata must have."""

NODE_FIELDS = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp")
"""What each node must have."""

LINK_FIELDS = ("source", "target", "weight")
"""What each link must have."""

LATENT, ERROR, TOKEN, LOGIT = (
    "cross layer transcoder",
    "mlp reconstruction error",
    "embedding",
    "logit",
)
"""Types of node that the pages know."""

TYPES = {
    "latent": LATENT,
    "error": ERROR,
    "token": TOKEN,
    "position": TOKEN,
    "bias": ERROR,
    "remainder": ERROR,
    "logit": LOGIT,
}
"""Kind of a node to its type in the file."""

LARGEST_PAIR = 2**53
"""Numbers up to here survive a page, which keeps them as doubles."""

OWN = "gossamer"
"""Key of what other programs do not need: in the metadata, and in each node."""

NUMBERS = ("value", "weight", "reads", "constant", "residual")
"""What a node has besides what pages know."""

EMBEDDINGS = ("hook_embed", "hook_pos_embed")


class Name(NamedTuple):
    """How a node is called in the file."""

    node_id: str
    """Unique in it."""

    layer: str
    """Number of the block; "E" for embeddings; the logits' is n_layers + 1."""

    feature: int
    """Unique among the nodes of one type, layer and position."""

    script_id: str
    """The file's jsNodeId."""


def pair(layer: int, latent: int) -> int:
    """The Cantor pair of two numbers from 0. FormatError beyond what a page keeps exactly."""
    total = layer + latent
    number = total * (total + 1) // 2 + latent
    if number > LARGEST_PAIR:
        raise FormatError(
            f"Latent {latent} of layer {layer} has no number in a Graph JSON, which pairs both into"
            f" one of at most 2^53; latents up to about {isqrt(2 * LARGEST_PAIR) - layer} fit."
        )
    return number


def unpair(number: int) -> tuple[int, int]:
    """The inverse of `pair`: (layer, latent)."""
    total = (isqrt(8 * number + 1) - 1) // 2
    latent = number - total * (total + 1) // 2
    return total - latent, latent


class Naming:
    """Names of the nodes of one graph."""

    def __init__(self, nodes: Nodes, *, n_layers: int, n_tokens: int, d_vocab: int) -> None:
        """`n_layers` of the model, `n_tokens` of the prompt, `d_vocab` the size of the vocabulary,
        from which on differences are numbered."""
        self.nodes = nodes
        self.n_layers, self.n_tokens, self.d_vocab = n_layers, n_tokens, d_vocab
        self._dictionaries = _by_layer(nodes, n_layers, ("latent", "error"))
        self._leaves = _by_layer(nodes, n_layers, ("error", "bias", "remainder"))
        differences = np.flatnonzero(nodes.distractors >= 0)
        self._differences = {int(i): place for place, i in enumerate(differences)}

    def of(self, i: int) -> Name:
        """The name of one node. FormatError for a latent too large to have one."""
        node = self.nodes[i]
        layer, position = layer_of(node.site, self.n_layers), node.position
        match node.kind:
            case "latent":
                return self._latent(layer, node.site, int(node.unit), position)
            case "error" | "bias" | "remainder":
                return self._leaf(layer, node.site, node.kind, position)
            case "token":
                return Name(
                    f"E_{node.unit}_{position}", layer, position, f"E_{node.unit}-{position}"
                )
            case "position":
                number = self.n_tokens + int(node.unit)
                return Name(
                    f"E_pos{node.unit}_{position}", layer, number, f"E_pos{node.unit}-{position}"
                )
        last = str(self.n_layers + 1)
        number = int(self.nodes.units[i])
        if i in self._differences:
            number = self.d_vocab + self._differences[i]
        return Name(f"{last}_{node.unit}_{position}", last, number, f"L_{node.unit}-{position}")

    def _latent(self, layer: str, site: str, latent: int, position: int) -> Name:
        place = self._dictionaries[layer].index((site, "dictionary"))
        between = f"{_inside(site)}_" if place or layer == "E" else ""
        # A virtual layer, one row of layers further for each further dictionary of a layer.
        row = self.n_layers if layer == "E" else int(layer)
        number = pair(row + place * (self.n_layers + 2), latent)
        start = f"{layer}_{between}{latent}"
        return Name(f"{start}_{position}", layer, number, f"{start}-0")

    def _leaf(self, layer: str, site: str, kind: str, position: int) -> Name:
        number = -1 - self._leaves[layer].index((site, kind))
        if kind == "error":
            first = layer != "E" and self._dictionaries[layer][0] == (site, "dictionary")
            middle = "-1" if first else f"{_inside(site)}_-1"
        else:
            middle = f"{_inside(site)}_{kind}"
        return Name(f"{layer}_{middle}_{position}", layer, number, f"{layer}_{middle}-0")


def layer_of(site: str, n_layers: int) -> str:
    """The layer of a site or module, as the file writes it; constants after the last block have
    `n_layers`."""
    if site in EMBEDDINGS or site.startswith("embed"):
        return "E"
    block = site.split(".")
    return block[1] if block[0] == "blocks" else str(n_layers)


def _inside(site: str) -> str:
    """A site's or module's name within its block."""
    return site.split(".", 2)[2] if site.startswith("blocks.") else site


def _by_layer(
    nodes: Nodes, n_layers: int, kinds: tuple[str, ...]
) -> dict[str, list[tuple[str, str]]]:
    """What is numbered within a layer: dictionaries, or leaves of these kinds, the MLP's first."""
    found: dict[str, set[tuple[str, str]]] = {}
    for site, kind in set(zip(nodes.site_of.tolist(), nodes.kinds.tolist(), strict=True)):
        name, word = nodes.sites[site], KINDS[kind]
        if word in kinds:
            entry = (name, "dictionary" if "latent" in kinds else word)
            found.setdefault(layer_of(name, n_layers), set()).add(entry)
    return {layer: sorted(entries, key=_precedence) for layer, entries in found.items()}


def _precedence(entry: tuple[str, str]) -> tuple[bool, bool, tuple[int, int, int], str, str]:
    """Errors before other leaves, the MLP's output before other sites, then forward order."""
    site, kind = entry
    try:
        order = parse_site(site).order
    except SiteError:  # a module
        order = (3, 0, 0)
    return (kind not in ("dictionary", "error"), _inside(site) != "hook_mlp_out", order, *entry)
