"""Read a Graph JSON: circuit-tracer's, Neuronpedia's, or one that Gossamer wrote."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gossamer.errors import FormatError, SiteError
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS, Kind, Nodes
from gossamer.graph.prune import Pruned
from gossamer.graph.rows import Rows
from gossamer.interop.graph_json.layout import (
    LINK_FIELDS,
    METADATA_FIELDS,
    NODE_FIELDS,
    NUMBERS,
    OWN,
    PARTS,
    unpair,
)
from gossamer.sites import parse_site

MAX_BYTES = 2**30
"""The largest file that is read: text of this size takes about ten times as much memory."""

KIND_OF_TYPE: dict[str, tuple[Kind, str]] = {
    "cross layer transcoder": ("latent", "hook_mlp_out"),
    "unexplored node": ("latent", "hook_mlp_out"),
    "lorsa": ("latent", "hook_attn_out"),
    "mlp reconstruction error": ("error", "hook_mlp_out"),
    "lorsa error": ("error", "hook_attn_out"),
    "embedding": ("token", "hook_embed"),
    "logit": ("logit", "logits"),
    "bias": ("bias", ""),
    "unknown": ("remainder", ""),
}
"""Type of a node in the file to what it is here, and where in its block it writes."""


UNKNOWN = (float("nan"),) * 3
"""Numbers that other programs do not write."""


class Found(NamedTuple):
    """One node as the file has it, in this package's terms; see gossamer.graph.nodes."""

    node_id: str
    """The file's name for it."""

    kind: Kind
    """See Node."""

    site: str
    """See Node."""

    unit: int
    """A number, −1 for words; of a difference its first token."""

    second: int
    """Second token of a difference, else −1."""

    position: int
    """See Node."""

    label: str
    """See Node."""

    numbers: tuple[float, ...]
    """Those of NUMBERS."""

    pruned: tuple[float, ...]
    """Those of Pruned."""


def read_graph_json(path: str | Path) -> Graph:
    """The graph in a file that circuit-tracer's page or Neuronpedia shows.

    Edges are float64. What the file does not say is NaN: scores of logits, what nodes read. Pins
    and supernodes stand in graph.about["qParams"], by the graph's own ids; other metadata in
    graph.about["metadata"]. Links of nodes that are not in the file are left out and counted there
    as "links_without_nodes", as pages do. FormatError when the file is damaged, lacks a field, or
    two of its nodes cannot be told apart.
    """
    path = Path(path)
    contents = _loaded(path)
    metadata, listed = contents["metadata"], contents["nodes"]
    own = metadata.get(OWN) or {}
    tokens = tuple(str(token) for token in metadata["prompt_tokens"])
    found = [_node(node, i, len(tokens), path) for i, node in enumerate(listed)]
    if not all(OWN in node for node in listed):
        found.sort(key=_order)
    numbers = _numbers(found, contents["links"], path)
    rows, dropped = _rows(contents["links"], numbers, found, path)
    nodes = _table(found, own.get("sites"))
    if len(set(nodes.ids)) < len(nodes):
        (twice, _), *_ = Counter(nodes.ids).most_common(1)
        raise FormatError(f"{path} has two nodes that are {twice}; nodes differ in what they are.")
    lost = np.array([node.pruned for node in found]).reshape(len(found), len(Pruned._fields)).T
    names = {node.node_id: nodes.id_of(i) for i, node in enumerate(found)}
    about = _about(metadata, contents["qParams"], found, names)
    if dropped:
        about["links_without_nodes"] = dropped
    ids = own.get("token_ids") or _token_ids(found, len(tokens))
    pruned = None if np.isnan(lost).all() else Pruned(*map(np.ascontiguousarray, lost))
    return Graph(nodes, rows, tokens, tuple(ids), about, pruned)


def _loaded(path: Path) -> dict[str, Any]:
    """The contents, every required field there."""
    if not path.is_file():
        raise FormatError(f"There is no file {path}; name a Graph JSON.")
    if path.stat().st_size > MAX_BYTES:
        raise FormatError(
            f"{path} takes {path.stat().st_size} bytes, and text of up to {MAX_BYTES} is read; "
            "prune the graph, or read it from its .pt."
        )
    try:
        contents = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        raise FormatError(
            f"{path} is truncated or no JSON ({problem}); write it anew."
        ) from problem
    kinds = {"metadata": dict, "qParams": dict, "nodes": list, "links": list}
    for part in PARTS:
        if not isinstance(contents, dict) or not isinstance(contents.get(part), kinds[part]):
            raise FormatError(f"{path} lacks {part}; a Graph JSON has {', '.join(PARTS)}.")
    _check_fields(contents["metadata"], METADATA_FIELDS, "its metadata", path)
    if not isinstance(contents["metadata"]["prompt_tokens"], list):
        raise FormatError(f"{path} has prompt_tokens that are no list of texts.")
    for i, node in enumerate(contents["nodes"]):
        _check_fields(node, NODE_FIELDS, f"node {i}", path)
    for i, link in enumerate(contents["links"]):
        _check_fields(link, LINK_FIELDS, f"link {i}", path)
        if isinstance(link["weight"], bool) or not isinstance(link["weight"], int | float):
            raise FormatError(
                f"{path} has a link {i} whose weight is {link['weight']!r}, no number."
            )
    return contents


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _check_fields(part: Any, fields: Sequence[str], what: str, path: Path) -> None:
    missing = [name for name in fields if not isinstance(part, dict) or name not in part]
    if missing:
        raise FormatError(f"{path} lacks {', '.join(missing)} in {what}; write the graph anew.")


def _node(node: Mapping[str, Any], i: int, n_tokens: int, path: Path) -> Found:
    """One node. FormatError when it is of no known type or its id does not say what it is."""
    place, name = node["ctx_idx"], str(node["node_id"])
    if not isinstance(place, int) or not 0 <= place < n_tokens:
        raise FormatError(f"{path} has node {name} at ctx_idx {place!r} of {n_tokens} tokens.")
    if OWN in node:
        return _own_node(node, name, place, path)
    if node["feature_type"] not in KIND_OF_TYPE:
        raise FormatError(
            f"{path} has node {name} of type {node['feature_type']!r}; known ones are "
            f"{', '.join(KIND_OF_TYPE)}."
        )
    kind, inside = KIND_OF_TYPE[node["feature_type"]]
    site = inside if kind in ("token", "logit") else f"blocks.{_layer(node, path)}.{inside}"
    if not inside:  # an id says which: {layer}_bias_{what}_{pos}
        site += re.sub(r"[/@]", "-", name.split("_", 1)[-1].rsplit("_", 1)[0]) or kind
    unit = -1 if kind in ("error", "bias", "remainder") else _unit(node, kind, name, path)
    value, weight, label = 1.0, 0.0, str(node["clerp"] or "")
    if kind == "latent":
        value = float("nan") if node.get("activation") is None else float(node["activation"])
    if kind == "logit":
        value, weight, label = float("nan"), *_of_logit(node, label, path)
    share = float("nan") if node.get("influence") is None else float(node["influence"])
    numbers, pruned = (value, weight, *UNKNOWN), (*UNKNOWN, share)
    return Found(name, kind, site, unit, -1, place, label, numbers, pruned)


def _layer(node: Mapping[str, Any], path: Path) -> int:
    text = str(node["layer"])
    if not text.isdigit():
        raise FormatError(
            f"{path} has node {node['node_id']} in layer {text!r}, which is no number."
        )
    return int(text)


def _unit(node: Mapping[str, Any], kind: Kind, name: str, path: Path) -> int:
    """The latent or token: as the id has it, else as the pair of layer and latent."""
    parts = name.split("_")
    if len(parts) >= 3 and parts[-2].isdigit() and parts[-1] == str(node["ctx_idx"]):
        return int(parts[-2])
    number = node["feature"]
    if isinstance(number, int) and number >= 0:
        if kind == "logit":
            return number
        if kind == "latent":
            layer, latent = unpair(number)
            if layer == _layer(node, path):
                return latent
    raise FormatError(
        f"{path} has node {name}, whose id does not say which {kind} it is; ids are "
        "layer_latent_position, E_token_position or layer_token_position."
    )


def _of_logit(node: Mapping[str, Any], words: str, path: Path) -> tuple[float, str]:
    """Probability and text of a logit."""
    probability = node.get("token_prob")
    stated = re.search(r"\(p=([0-9.eE+-]+)\)", words)
    if probability is None and stated is None:
        raise FormatError(f"{path} has logit {node['node_id']} without token_prob.")
    text = re.search(r'"(.*)"', words, re.DOTALL)
    weight = probability if probability is not None else stated[1] if stated else 0
    return float(weight), text[1] if text else words


def _own_node(node: Mapping[str, Any], name: str, place: int, path: Path) -> Found:
    """One node that this package wrote."""
    said = node[OWN]
    try:
        site, unit = str(said["id"]).rsplit("@", 1)[0].rsplit("/", 1)
        first, _, second = unit.partition("-")
        number = int(first) if first.isdigit() else -1
        numbers = tuple(float(said.get(key, "nan")) for key in NUMBERS)
        pruned = tuple(float(said.get(key, "nan")) for key in Pruned._fields)
        kind = KINDS[KINDS.index(said["kind"])]
        return Found(
            *(name, kind, site, number, int(second or -1), place),
            *(str(said["label"]), numbers, pruned),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as problem:
        raise FormatError(
            f"{path} has a damaged {OWN} part in node {name}: {problem}."
        ) from problem


def _order(found: Found) -> tuple[tuple[int, int, int], int, bool, int]:
    """Where a node stands: edges go forward."""
    try:
        place = parse_site(found.site).order
    except SiteError:  # a module: before what its block writes
        place = (1, int(found.site.split(".")[1]), -1)
    if found.kind == "logit":
        return place, 0, False, 0
    return place, found.position, found.unit < 0, found.unit


def _numbers(
    found: Sequence[Found], links: Sequence[Mapping[str, Any]], path: Path
) -> dict[str, int]:
    """Each id's row. Old files call the error of layer l as latent l of layer 0: the id is the
    latent's, and FormatError where a link may come from either."""
    numbers: dict[str, int] = {}
    doubtful = set()
    for i, node in enumerate(found):
        if node.node_id in numbers:
            pair = {found[numbers[node.node_id]].kind, node.kind}
            if pair != {"latent", "error"}:
                raise FormatError(f"{path} has two nodes {node.node_id}; ids name one node each.")
            doubtful.add(node.node_id)
        if node.node_id not in numbers or node.kind == "latent":
            numbers[node.node_id] = i
    if doubtful and any(link["source"] in doubtful for link in links):
        raise FormatError(
            f"{path} calls a latent and an error {min(doubtful)}, so the links from it could be "
            "either's; read the graph from its .pt."
        )
    return numbers


def _rows(
    links: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, int],
    found: Sequence[Found],
    path: Path,
) -> tuple[Rows, int]:
    """The links as rows, and how many had no node."""
    entries = np.array(
        [
            (numbers[link["target"]], numbers[link["source"]], link["weight"])
            for link in links
            if link["target"] in numbers and link["source"] in numbers
        ],
        np.float64,
    ).reshape(-1, 3)
    entries = entries[np.lexsort((entries[:, 1], entries[:, 0]))]
    targets, sources = entries[:, 0].astype(np.int64), entries[:, 1].astype(np.int32)
    for i in np.flatnonzero(sources >= targets)[:1].tolist():
        ends = (found[int(sources[i])].node_id, found[int(targets[i])].node_id)
        raise FormatError(
            f"{path} has a link from {ends[0]} to {ends[1]}, which goes backwards; the edges of a "
            "graph go forward."
        )
    if (np.diff(targets * len(found) + sources) == 0).any():
        raise FormatError(f"{path} has two links between the same nodes; add them up.")
    if not np.isfinite(entries[:, 2]).all():
        raise FormatError(f"{path} has a link whose weight is no finite number.")
    counts = np.bincount(targets, minlength=len(found)).astype(np.int64)
    values = np.ascontiguousarray(entries[:, 2])
    return Rows(np.cumsum(counts) - counts, counts, sources, values), len(links) - len(entries)


def _table(found: Sequence[Found], sites: Sequence[str] | None) -> Nodes:
    names = list(dict.fromkeys([*(sites or ()), *(node.site for node in found)]))
    place = {name: i for i, name in enumerate(names)}
    floats = np.array([node.numbers for node in found], np.float64)
    values, weights, reads, constants, residuals = floats.reshape(-1, len(NUMBERS)).T.copy()
    return Nodes(
        sites=tuple(names),
        kinds=np.array([KINDS.index(node.kind) for node in found], np.int8),
        site_of=np.array([place[node.site] for node in found], np.int32),
        units=np.array([node.unit for node in found], np.int64),
        positions=np.array([node.position for node in found], np.int32),
        values=values,
        weights=weights,
        reads=reads,
        constants=constants,
        residuals=residuals,
        distractors=np.array([node.second for node in found], np.int64),
        labels=tuple(node.label for node in found),
    )


def _about(
    metadata: Mapping[str, Any],
    params: Mapping[str, Any],
    found: Sequence[Found],
    names: Mapping[str, str],
) -> dict[str, Any]:
    """What the file says about the graph, its ids replaced by the graph's own."""
    own = metadata.get(OWN) or {}
    about = dict(own.get("about") or {"model": metadata["scan"], "prompt": metadata["prompt"]})
    blocks = [int(n.site.split(".")[1]) for n in found if n.site.startswith("blocks.")]
    about.setdefault("n_layers", max(blocks, default=0) + 1)
    kept = {
        key: value
        for key, value in metadata.items()
        if key not in (OWN, "prompt", "prompt_tokens", "slug")
    }
    params = dict(params)
    for key, value in params.items():
        if key == "pinnedIds" and isinstance(value, list):
            params[key] = [names.get(node, node) for node in value]
        elif key == "supernodes" and isinstance(value, list):
            params[key] = list(_groups(value, names))
        elif key == "clickedId" and isinstance(value, str):
            params[key] = names.get(value, value)
    return {**about, "slug": metadata["slug"], "metadata": kept, "qParams": params}


def _groups(groups: Sequence[Any], names: Mapping[str, str]) -> Iterator[Any]:
    for group in groups:
        known = isinstance(group, list) and group
        yield [group[0], *(names.get(node, node) for node in group[1:])] if known else group


def _token_ids(found: Sequence[Found], n_tokens: int) -> list[int]:
    """Token ids as the embeddings have them; −1 where the file has none."""
    ids = [-1] * n_tokens
    for node in found:
        if node.kind == "token":
            ids[node.position] = node.unit
    return ids
