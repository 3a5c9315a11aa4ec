"""Write a .pt file that circuit-tracer's `Graph.from_pt` reads."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from gossamer.errors import FormatError, placed
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import Nodes
from gossamer.interop.circuit_tracer.records import CONFIG_FIELDS, STAND_INS, Settings, Target

MAX_BYTES = 2**32
"""The largest matrix that is written: about 32,000 nodes in float32."""


def write_graph_pt(graph: Graph, path: str | Path) -> None:
    """Write the graph as circuit-tracer stores one: every pair of nodes in one dense matrix.

    Its nodes are latents, one dictionary for each layer, errors of every layer and position, tokens
    and logits. What else the graph has, position embeddings, biases and remainders, has no place
    there and is left out, with the edges from it.

    FormatError, before anything is written, when the graph has two dictionaries in a layer,
    explains something other than logits at the last position, or makes a matrix of over 4 GiB.
    """
    nodes = graph.nodes
    places, n_layers = _places(graph)
    latents = np.flatnonzero(nodes.of_kind("latent"))
    latents = latents[np.lexsort((nodes.units[latents], nodes.positions[latents], places[latents]))]
    logits = np.flatnonzero(nodes.of_kind("logit"))
    n_tokens, n = len(graph.tokens), len(latents) + len(logits)
    n += (n_layers + 1) * n_tokens
    dtype = torch.from_numpy(graph.rows.values[:0].copy()).dtype
    if n * n * dtype.itemsize > MAX_BYTES:
        raise FormatError(
            f"A graph of {n} nodes makes a matrix of {n * n * dtype.itemsize / 2**30:.0f} GiB, and "
            f"up to {MAX_BYTES // 2**30} are written; prune it first, such as graph.prune(0.8)."
        )
    numbers = np.full(len(nodes), -1)
    numbers[latents] = np.arange(len(latents))
    errors, tokens = (np.flatnonzero(nodes.of_kind(kind)) for kind in ("error", "token"))
    numbers[errors] = len(latents) + places[errors] * n_tokens + nodes.positions[errors]
    numbers[tokens] = len(latents) + n_layers * n_tokens + nodes.positions[tokens]
    numbers[logits] = n - len(logits) + np.arange(len(logits))
    matrix = torch.zeros(n, n, dtype=dtype)
    for block in graph.edges.blocks():
        sources, targets = numbers[block.sources], numbers[block.targets]
        there = sources >= 0
        matrix[targets[there], sources[there]] = torch.from_numpy(block.weights[there])
    columns = (places[latents], nodes.positions[latents], nodes.units[latents])
    about = graph.about
    prompt = about.get("prompt")
    vocabulary = int(about.get("d_vocab") or nodes.units.max() + 1)
    parts = {
        "input_string": "".join(graph.tokens) if prompt is None else str(prompt),
        "adjacency_matrix": matrix,
        "cfg": _settings(about, n_layers, vocabulary),
        "active_features": torch.from_numpy(np.stack(columns, 1).astype(np.int64)),
        "logit_targets": _targets(nodes, logits, vocabulary),
        "logit_probabilities": torch.from_numpy(nodes.weights[logits]).to(dtype),
        "vocab_size": vocabulary,
        "input_tokens": torch.tensor(graph.token_ids),
        "selected_features": torch.arange(len(latents)),
        "activation_values": torch.from_numpy(nodes.values[latents]).to(dtype),
        "scan": about.get("scan"),
    }
    with placed(path) as temporary:
        torch.save(parts, temporary, pickle_module=_RENAMING)


def _places(graph: Graph) -> tuple[Int[np.ndarray, " n"], int]:
    """The layer of each node, −1 outside blocks, and how many layers the model has. FormatError for
    a graph that circuit-tracer cannot have."""
    nodes = graph.nodes
    blocks = [int(site.split(".")[1]) if site.startswith("blocks.") else -1 for site in nodes.sites]
    n_layers = int(graph.about.get("n_layers") or max(blocks) + 1)
    dictionaries = nodes.of_kind("latent", "error")
    used = sorted({nodes.sites[i] for i in nodes.site_of[dictionaries].tolist()})
    layers = [blocks[nodes.sites.index(site)] for site in used]
    if len(set(layers)) < len(layers) or -1 in layers:
        raise FormatError(
            "circuit-tracer's graphs have one dictionary for each layer, and this one has "
            f"{', '.join(used)}; write it as Graph JSON."
        )
    targets = nodes.targets
    last = nodes.positions[targets] == len(graph.tokens) - 1
    if not len(targets) or not (nodes.of_kind("logit")[targets] & last).all():
        raise FormatError(
            "circuit-tracer's graphs explain logits at the last position, and this one explains "
            f"{', '.join(nodes.id_of(int(i)) for i in targets[:3]) or 'nothing'}; write it as "
            "Graph JSON."
        )
    return np.array(blocks)[nodes.site_of], n_layers


def _settings(about: Any, n_layers: int, vocabulary: int) -> Settings:
    known = about.get("settings", {})
    settings = Settings()
    given = {"n_layers": n_layers, "d_vocab": vocabulary, "model_name": about.get("model") or ""}
    for name, unknown in CONFIG_FIELDS.items():
        setattr(settings, name, known.get(name, given.get(name, unknown)))
    dtype = getattr(torch, str(known.get("dtype")).removeprefix("torch."), None)
    settings.__dict__["dtype"] = dtype if isinstance(dtype, torch.dtype) else None
    return settings


def _targets(nodes: Nodes, logits: Int[np.ndarray, " k"], vocabulary: int) -> list[Target]:
    """Texts and tokens; differences are numbered after the vocabulary, by their place."""
    found = []
    for place, i in enumerate(logits.tolist()):
        single = nodes.distractors[i] < 0
        found.append(Target(nodes.labels[i], int(nodes.units[i]) if single else vocabulary + place))
    return found


_InPython: Any = pickle._Pickler  # pyright: ignore[reportAttributeAccessIssue]


class _Pickler(_InPython):  # only the one in Python lets a class have another's name
    """Writes stand-ins under the names of the classes that they stand in for."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write the name of a class or function."""
        for stand_in, module, known in STAND_INS:
            if obj is stand_in:
                self.write(pickle.GLOBAL + f"{module}\n{known}\n".encode())
                self.memoize(obj)
                return
        super().save_global(obj, name)


_RENAMING = SimpleNamespace(Pickler=_Pickler, __name__="pickle")
"""What torch.save takes for the pickle module."""
