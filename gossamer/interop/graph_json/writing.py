"""Write a graph for the pages of circuit-tracer and Neuronpedia."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Float

from gossamer.errors import FormatError, placed
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import Node
from gossamer.graph.prune import Pruned
from gossamer.interop.graph_json.layout import NUMBERS, OWN, TYPES, Name, Naming

MAX_NODES, MAX_LINKS = 20_000, 1_000_000
"""What a page still opens: a million links take about 90 MB of text; Neuronpedia takes 100 MiB."""

START = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
"""qParams of a graph that nobody has looked at."""


def write_graph_json(
    graph: Graph,
    path: str | Path,
    *,
    slug: str | None = None,
    scan: str | None = None,
    nodes: float | None = 0.8,
    edges: float | None = 0.98,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the graph, pruned to the shares `nodes` and `edges` unless it is already pruned.

    `slug` names the graph (the file's name if None), `scan` its model or dictionaries, for
    Neuronpedia its model id there (the graph's model if None). With `nodes` or `edges` None nothing
    is pruned. `extra` is added to the metadata, such as
    {"feature_details": {"neuronpedia_source_set": …}}. Pins and supernodes in
    graph.about["qParams"] go along. Each node's `influence` is what pages expect: the share of all
    influence that nodes have down to it. Neuronpedia's page opens no graph whose latents are all in
    the first layer.

    FormatError, before anything is written, when the graph is too large for a page, has no target,
    or holds what JSON cannot.
    """
    path = Path(path)
    if graph.pruned is None and nodes is not None and edges is not None:
        graph = graph.prune(nodes, edges)
    if len(graph.nodes) > MAX_NODES or len(graph.edges) > MAX_LINKS:
        raise FormatError(
            f"The graph has {len(graph.nodes)} nodes and {len(graph.edges)} edges, and pages open "
            f"up to {MAX_NODES} and {MAX_LINKS}; write it pruned further, such as nodes=0.6."
        )
    name = slug or re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise FormatError(
            f'A slug has letters, digits, ".", "_" and "-", got "{name}"; name another.'
        )
    about = graph.about
    naming = Naming(
        graph.nodes,
        n_layers=n_layers_of(graph),
        n_tokens=len(graph.tokens),
        d_vocab=int(about.get("d_vocab") or graph.nodes.units.max() + 1),
    )
    names = [naming.of(i) for i in range(len(graph.nodes))]
    shown = {node: made.node_id for node, made in zip(graph.nodes.ids, names, strict=True)}
    _check_numbers(graph)
    head = {
        "metadata": _metadata(graph, name, scan, extra),
        "qParams": _translated(about.get("qParams", {}), shown),
    }
    texts = [_text(_node(graph, i, made)) for i, made in _with_influence(graph, names)]
    texts_of_head = _text(head)
    with placed(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(texts_of_head[:-1] + ',"nodes":[' + ",\n".join(texts) + '],"links":[')
        _write_links(graph, names, file)
        file.write("]}\n")


def n_layers_of(graph: Graph) -> int:
    """Blocks of the model: as the graph says, else up to the last that it has a node of."""
    known = graph.about.get("n_layers")
    found = [int(site.split(".")[1]) for site in graph.nodes.sites if site.startswith("blocks.")]
    return int(known) if known is not None else max(found, default=0) + 1


def _text(value: Any) -> str:
    """JSON. FormatError for what it cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as problem:
        raise FormatError(
            f"The graph holds what JSON cannot ({problem}); keep numbers, texts and lists of them "
            "in graph.about."
        ) from problem


def _check_numbers(graph: Graph) -> None:
    for block in graph.edges.blocks():
        if not np.isfinite(block.weights).all():
            raise FormatError("The graph has edges that are no finite numbers; compute it again.")


def _metadata(
    graph: Graph, slug: str, scan: str | None, extra: Mapping[str, Any] | None
) -> dict[str, Any]:
    about = dict(graph.about)
    about.pop("qParams", None)
    kept = about.pop("metadata", {})  # what a file that was read had besides
    model = scan or kept.get("scan") or about.get("scan") or about.get("model") or "unknown"
    prompt = about.get("prompt")
    shares = about.get("pruned", {})
    metadata = {
        "slug": slug,
        "scan": "-".join(model) if isinstance(model, list) else str(model),
        "transcoder_list": [],
        "prompt_tokens": list(graph.tokens),
        "prompt": "".join(graph.tokens) if prompt is None else str(prompt),
        "schema_version": 1,
        "info": {"generator": {"name": "Gossamer"}},
    }
    if "nodes" in shares:
        metadata["node_threshold"] = shares["nodes"]
        metadata["pruning_settings"] = {
            "node_threshold": shares["nodes"],
            "edge_threshold": shares["edges"],
        }
    own = {"about": about, "token_ids": list(graph.token_ids), "sites": list(graph.nodes.sites)}
    said = {key: value for key, value in kept.items() if key not in metadata or key == "info"}
    return {**metadata, **said, **(extra or {}), "schema_version": 1, OWN: own}


def _translated(params: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """qParams with the graph's ids replaced by `names`; ids that are not there stay as they are."""
    found = {**START, **params}
    found["pinnedIds"] = [names.get(node, node) for node in found["pinnedIds"]]
    found["supernodes"] = [
        [group[0], *(names.get(node, node) for node in group[1:])] if group else []
        for group in found["supernodes"]
    ]
    found["clickedId"] = names.get(found["clickedId"], found["clickedId"])
    return found


def cumulative_influence(graph: Graph) -> Float[np.ndarray, " n"]:
    """The share of all influence that nodes have down to each, sorted by it; of the whole graph
    where a pruned one knows it."""
    if graph.pruned is not None:  # a file does not say it of logits
        unknown = np.isnan(graph.pruned.cumulative) & ~graph.nodes.of_kind("logit")
        if not unknown.any():
            return graph.pruned.cumulative
    influence = graph.influence()
    order = np.argsort(-influence, kind="stable")
    shares = np.empty(len(influence))
    shares[order] = np.cumsum(influence[order]) / max(float(influence.sum()), 1e-300)
    return shares


def _with_influence(graph: Graph, names: list[Name]) -> Iterator[tuple[int, tuple[Name, float]]]:
    shares = cumulative_influence(graph)
    return ((i, (name, float(shares[i]))) for i, name in enumerate(names))


def _node(graph: Graph, i: int, made: tuple[Name, float]) -> dict[str, Any]:
    """One node of the file."""
    node, (name, influence) = graph.nodes[i], made
    is_logit = node.kind == "logit"
    likeliest = is_logit and node.weight == graph.nodes.weights[graph.nodes.of_kind("logit")].max()
    numbers = {key: getattr(node, key) for key in NUMBERS}
    if graph.pruned is not None:
        lost = zip(Pruned._fields, graph.pruned, strict=True)
        numbers |= {key: float(column[i]) for key, column in lost}
    return {
        "node_id": name.node_id,
        "feature": name.feature,
        "layer": name.layer,
        "ctx_idx": node.position,
        "feature_type": TYPES[node.kind],
        "token_prob": node.weight if is_logit else 0.0,
        "is_target_logit": bool(likeliest),
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": name.script_id,
        "clerp": _words(node, graph.tokens),
        "influence": None if is_logit else influence,
        "activation": node.value if node.kind == "latent" and math.isfinite(node.value) else None,
        OWN: {"id": node.id, "kind": node.kind, "label": node.label}
        | {key: value for key, value in numbers.items() if math.isfinite(value)},
    }


def _words(node: Node, tokens: tuple[str, ...]) -> str:
    """What a page writes at a node. Of a logit it reads the token between double quotes and the
    probability after "(p="."""
    match node.kind:
        case "logit":
            text = (node.label or f"#{node.unit}").replace('"', "”").replace("(p=", "(p =")
            return f'Output "{text}" (p={node.weight:.3f})'
        case "token":
            return f"Emb: “{tokens[node.position]}”"
        case "position":
            return f"Position {node.unit}"
        case "error":
            return f"Err: {node.site}"
        case "bias" | "remainder":
            return f"{node.kind.capitalize()}: {node.site}"
    return node.label


def _write_links(graph: Graph, names: list[Name], file: TextIO) -> None:
    ids = [json.dumps(name.node_id, ensure_ascii=False) for name in names]
    between = ""
    for block in graph.edges.blocks():
        columns = (column.tolist() for column in block)
        for source, target, weight in zip(*columns, strict=True):
            file.write(
                f'{between}{{"source":{ids[source]},"target":{ids[target]},"weight":{weight}}}'
            )
            between = ",\n"
