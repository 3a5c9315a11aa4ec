"""A graph as one safetensors file: numbers as arrays, what it is as JSON in the header.

The header has one text, "graph": {"format", "version", "sites", "tokens", "token_ids", "about"}.
Labels are the bytes of a JSON list. Edges stay on disk until they are needed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from gossamer.errors import FormatError, GossamerError
from gossamer.graph.mapped import DTYPES, map_arrays, write_arrays
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.prune import Pruned
from gossamer.graph.rows import Rows

FORMAT = "gossamer.graph"
"""First word of the header."""

VERSION = 1
"""Version of the layout described here."""

NODES = {
    "units": "I64",
    "distractors": "I64",
    "values": "F64",
    "weights": "F64",
    "reads": "F64",
    "constants": "F64",
    "residuals": "F64",
    "site_of": "I32",
    "positions": "I32",
    "kinds": "I8",
}
"""Columns of nodes."""

Arrays = Mapping[str, Shaped[np.ndarray, "..."]]


class Parts(NamedTuple):
    """What a graph is made of; see Graph."""

    nodes: Nodes
    rows: Rows
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    about: Mapping[str, Any]
    pruned: Pruned | None


def write_graph(parts: Parts, path: Path) -> None:
    """Write a graph in one move; edges that are memory maps stream. GossamerError when `about` is
    not JSON, DiskError when the disk refuses."""
    nodes, rows = parts.nodes, parts.rows
    about = {
        "format": FORMAT,
        "version": VERSION,
        "sites": nodes.sites,
        "tokens": parts.tokens,
        "token_ids": parts.token_ids,
        "about": dict(parts.about),
    }
    try:
        text = json.dumps(about)
    except (TypeError, ValueError) as problem:
        raise GossamerError(
            f"What is said about the graph is not JSON ({problem}); keep texts, numbers, lists and "
            "dicts of them in graph.about."
        ) from problem
    arrays = {
        f"nodes.{name}": getattr(nodes, name).astype(DTYPES[word], copy=False)
        for name, word in NODES.items()
    }
    arrays["nodes.labels"] = np.frombuffer(json.dumps(nodes.labels).encode(), np.uint8)
    arrays["rows.starts"] = rows.starts.astype(DTYPES["I64"], copy=False)
    arrays["rows.counts"] = rows.counts.astype(DTYPES["I64"], copy=False)
    arrays |= {"rows.columns": rows.columns, "rows.values": rows.values}
    if parts.pruned is not None:
        arrays |= {f"pruned.{name}": column for name, column in parts.pruned._asdict().items()}
    write_arrays(arrays, {"graph": text}, path)


def read_graph(path: Path) -> Parts:
    """The parts of the graph in a file, its edges mapped into memory.

    FormatError when the file is missing, truncated, damaged, of another kind or of a later version.
    Edges that no graph can have are refused when they are read.
    """
    if not path.is_file():
        raise FormatError(f"There is no file {path}. A graph is what graph.save(path) wrote.")
    metadata, arrays = map_arrays(path)
    about = _about(metadata, path)
    try:
        _check_arrays(arrays)
        labels = json.loads(np.asarray(arrays["nodes.labels"]).tobytes())
        _check_texts(about, labels)
        columns = {name: np.array(arrays[f"nodes.{name}"]) for name in NODES}
        _check_columns(columns, len(labels), len(about["sites"]))
        starts, counts = np.array(arrays["rows.starts"]), np.array(arrays["rows.counts"])
        _check_bounds(starts, counts, len(arrays["rows.columns"]), len(labels))
        pruned = None
        if "pruned.sums" in arrays:
            pruned = Pruned(*(np.array(arrays[f"pruned.{name}"]) for name in Pruned._fields))
            if any(len(column) != len(labels) for column in pruned):
                raise ValueError("its columns differ in length")
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        raise FormatError(
            f"{path} is no sound graph: {problem}. Save the graph again, or copy it anew."
        ) from problem
    return Parts(
        Nodes(sites=tuple(about["sites"]), labels=tuple(labels), **columns),
        Rows(starts, counts, arrays["rows.columns"], arrays["rows.values"]),
        tuple(about["tokens"]),
        tuple(about["token_ids"]),
        about["about"],
        pruned,
    )


def _about(metadata: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the header says, once it is known to be a graph of this version."""
    try:
        about = json.loads(metadata.get("graph", "null"))
    except (ValueError, TypeError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FormatError(
            f"{path} is a safetensors file that holds no graph; give a file that graph.save(path) "
            "wrote."
        )
    if about.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {about.get('version')!r}, this release reads version {VERSION}; "
            "update gossamer, or save the graph again."
        )
    return about


def _check_arrays(arrays: Arrays) -> None:
    """ValueError unless the names, dtypes and axes are a graph's."""
    words = {f"nodes.{name}": word for name, word in NODES.items()}
    words |= {"nodes.labels": "U8", "rows.starts": "I64", "rows.counts": "I64"}
    wide = arrays["rows.values"].dtype == DTYPES["F64"] if "rows.values" in arrays else False
    words |= {"rows.columns": "I32", "rows.values": "F64" if wide else "F32"}
    if any(name.startswith("pruned.") for name in arrays):
        words |= {f"pruned.{name}": "F64" for name in Pruned._fields}
    odd = sorted(set(words) ^ set(arrays))
    if odd:
        raise ValueError(f"arrays are missing, or too many: {', '.join(odd)[:200]}")
    for name, word in words.items():
        array = arrays[name]
        if array.dtype != DTYPES[word] or array.ndim != 1:
            raise ValueError(f"{name} is no single column of {word}")
    if len(arrays["rows.columns"]) != len(arrays["rows.values"]):
        raise ValueError("its edges do not each have a source and a size")


def _check_texts(about: Mapping[str, Any], labels: object) -> None:
    """ValueError unless they are lists of texts and, of token ids, of numbers."""
    for name, values, kind in (
        ("labels", labels, str),
        *((name, about.get(name), str) for name in ("sites", "tokens")),
        ("token_ids", about.get("token_ids"), int),
    ):
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise ValueError(f"its {name} are no list of {kind.__name__}")
    if len(about["tokens"]) != len(about["token_ids"]):
        raise ValueError("it has not as many token ids as tokens")
    if not isinstance(about.get("about"), dict):
        raise ValueError("what it says about itself is no JSON object")


def _check_columns(columns: Arrays, n_nodes: int, n_sites: int) -> None:
    """ValueError for columns of different lengths, or numbers that name no site or kind."""
    if any(len(column) != n_nodes for column in columns.values()):
        raise ValueError("its columns differ in length")
    for name, least, end in (
        ("site_of", 0, n_sites),
        ("kinds", 0, len(KINDS)),
        ("positions", 0, 1 << 31),
        ("units", -1, 1 << 63),
        ("distractors", -1, 1 << 63),
    ):
        column = columns[name]
        if n_nodes and not (least <= int(column.min()) and int(column.max()) < end):
            raise ValueError(f"{name} are not all from {least} to {end - 1}")


def _check_bounds(
    starts: Int[np.ndarray, " n"], counts: Int[np.ndarray, " m"], n_entries: int, n_nodes: int
) -> None:
    """ValueError for rows that overlap, or reach beyond the entries."""
    if not len(starts) == len(counts) == n_nodes:
        raise ValueError("its columns differ in length")
    filled = np.flatnonzero(counts)
    if not len(filled):
        return
    order = filled[np.argsort(starts[filled], kind="stable")]
    begins, sizes = starts[order], counts[order]
    if not (counts.min() >= 0 and begins[0] >= 0 and max(begins[-1], sizes.max()) <= n_entries):
        raise ValueError("its rows reach beyond its edges")
    ends = begins + sizes
    if not ((ends[:-1] <= begins[1:]).all() and ends[-1] <= n_entries):
        raise ValueError("its rows overlap, or reach beyond its edges")
