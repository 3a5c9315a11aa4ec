"""Read a .pt file that circuit-tracer's `Graph.to_pt` wrote, without running it.

A .pt file is a pickle, a program. Only tensors, plain values and the record types that
circuit-tracer writes are taken, these as empty stand-ins; anything else is refused by its name.

What such a graph does not have: biases, position embeddings, and what is active at position 0. Nor
does it say at which site its transcoders write; they are taken to write `hook_mlp_out`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.graph.graph import Graph
from gossamer.graph.nodes import KINDS, Nodes
from gossamer.graph.rows import Rows
from gossamer.interop.circuit_tracer.records import KEYS, STAND_INS, Settings, Target
from gossamer.interop.pickles import load_pickle


def read_graph_pt(
    path: str | Path, *, tokens: Sequence[str] | None = None, site: str = "hook_mlp_out"
) -> Graph:
    """The graph that circuit-tracer saved at `path`; its edges, in the dtype of the file.

    The file holds the prompt as one text: `tokens` gives its tokens; without it they are called by
    their ids. `site` is the kind of site that the transcoders write. FormatError when the file is
    truncated, no graph, or would run code.
    """
    path = Path(path)
    allowed = [(kind, f"{module}.{name}") for kind, module, name in STAND_INS]
    parts = _checked(load_pickle(path, allowed), path)
    ids = [int(token) for token in parts["input_tokens"]]
    if tokens is None:
        tokens = [f"#{token}" for token in ids]
    elif len(tokens) != len(ids):
        raise FormatError(
            f"{path} has {len(ids)} tokens, got texts of {len(tokens)}; give one for each token."
        )
    nodes, order = _nodes(parts, site)
    return Graph(
        nodes,
        _rows(parts["adjacency_matrix"], order, path),
        tuple(tokens),
        tuple(ids),
        _about(parts),
    )


def _checked(parts: Any, path: Path) -> dict[str, Any]:
    """The parts under today's names, everything in them of the right kind and size."""
    if not isinstance(parts, dict):
        raise FormatError(f"{path} holds a {type(parts).__name__}, not a graph of circuit-tracer.")
    parts = dict(parts)
    if "logit_targets" not in parts and "logit_tokens" in parts:  # the first release
        parts["logit_targets"] = parts["logit_tokens"]
    if missing := [key for key in KEYS if key not in parts]:
        raise FormatError(
            f"{path} lacks {', '.join(missing)}; a graph of circuit-tracer has {', '.join(KEYS)}."
        )
    parts["cfg"] = vars(parts["cfg"]) if isinstance(parts["cfg"], Settings) else parts["cfg"]
    if not isinstance(parts["cfg"], Mapping) or not isinstance(parts["cfg"].get("n_layers"), int):
        raise FormatError(f"{path} does not say how many layers its model has (cfg.n_layers).")
    targets = parts["logit_targets"]
    if isinstance(targets, Tensor):
        targets = [Target("", int(token)) for token in targets]
    try:
        parts["logit_targets"] = [Target(str(text), int(token)) for text, token in targets]
    except (TypeError, ValueError) as problem:
        raise FormatError(f"{path} has logit_targets that are no (text, token).") from problem
    _check_tensors(parts, path)
    return parts


def _check_tensors(parts: Mapping[str, Any], path: Path) -> None:
    """FormatError unless every tensor has the shape that the others ask for, and fits the file."""
    lengths = {
        name: len(parts[name]) if isinstance(parts[name], Tensor) and parts[name].ndim else -1
        for name in KEYS[:6]
    }
    n = _n_nodes(parts, lengths["input_tokens"], lengths["selected_features"])
    expected = {
        "input_tokens": (lengths["input_tokens"],),
        "adjacency_matrix": (n, n),
        "active_features": (lengths["active_features"], 3),
        "activation_values": (lengths["active_features"],),
        "selected_features": (lengths["selected_features"],),
        "logit_probabilities": (len(parts["logit_targets"]),),
    }
    size = path.stat().st_size
    for name, shape in expected.items():
        tensor = parts[name]
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            found = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise FormatError(
                f"{path} has {name} {found}; with its other parts it must be {shape}."
            )
        if tensor.numel() * tensor.element_size() > size:  # one number seen as a large matrix
            raise FormatError(f"{path} is shorter than its {name}; save the graph anew.")
    latents, selected = parts["active_features"], parts["selected_features"]
    bounds = (parts["cfg"]["n_layers"], lengths["input_tokens"], 2**31)
    if latents.is_floating_point() or (latents < 0).any() or (latents >= _row(bounds)).any():
        raise FormatError(f"{path} has active_features outside its {bounds[:2]} layers and tokens.")
    outside = (selected < 0).any() or (selected >= len(latents)).any()
    if selected.is_floating_point() or outside or len(selected.unique()) < len(selected):
        raise FormatError(f"{path} has selected_features that are not places in active_features.")
    if not parts["adjacency_matrix"].dtype.is_floating_point:
        raise FormatError(f"{path} has edges in {parts['adjacency_matrix'].dtype}, not in floats.")


def _row(numbers: Sequence[int]) -> Tensor:  # any length
    return torch.tensor(numbers)


def _n_nodes(parts: Mapping[str, Any], n_tokens: int, n_latents: int) -> int:
    return n_latents + (parts["cfg"]["n_layers"] + 1) * n_tokens + len(parts["logit_targets"])


def _nodes(parts: Mapping[str, Any], site: str) -> tuple[Nodes, np.ndarray]:
    """The nodes in an order in which edges go forward, and for each its row in the file."""
    n_layers, n_tokens = parts["cfg"]["n_layers"], len(parts["input_tokens"])
    chosen = parts["selected_features"].numpy()
    latents = parts["active_features"].numpy()[chosen].astype(np.int64)
    f, k = len(latents), len(parts["logit_targets"])
    layers, places = np.divmod(np.arange(n_layers * n_tokens), n_tokens)
    words = [KINDS.index(kind) for kind in ("latent", "error", "token", "logit")]
    kinds = np.repeat(words, [f, len(layers), n_tokens, k])
    # Sites are numbered in forward order: embeddings, one for each layer, logits.
    site_of = np.concatenate(
        [latents[:, 0] + 1, layers + 1, np.zeros(n_tokens), np.full(k, n_layers + 1)]
    )
    last = np.full(k, n_tokens - 1)
    positions = np.concatenate([latents[:, 1], places, np.arange(n_tokens), last])
    logits = [target.vocab_idx for target in parts["logit_targets"]]
    units = np.concatenate(
        [latents[:, 2], np.full(len(layers), -1), parts["input_tokens"].numpy(), logits]
    ).astype(np.int64)
    values = np.ones(len(kinds))
    values[:f] = parts["activation_values"].double().numpy()[chosen]
    values[len(kinds) - k :] = np.nan  # the scores are not in the file
    weights = np.zeros(len(kinds))
    weights[len(kinds) - k :] = parts["logit_probabilities"].double().numpy()
    order = np.lexsort((np.where(units < 0, 2**62, units), positions, site_of))
    if k:
        order[-k:] = np.arange(len(kinds) - k, len(kinds))  # logits stay sorted by probability
    labels = [""] * (len(kinds) - k) + [target.token_str for target in parts["logit_targets"]]
    unknown = np.full(len(kinds), np.nan)
    sites = ("hook_embed", *(f"blocks.{layer}.{site}" for layer in range(n_layers)), "logits")
    return Nodes(
        sites,
        kinds[order].astype(np.int8),
        site_of[order].astype(np.int32),
        units[order],
        positions[order].astype(np.int32),
        values[order],
        weights[order],
        unknown,
        unknown,
        unknown,
        np.full(len(kinds), -1, np.int64),
        tuple(labels[i] for i in order),
    ), order


def _rows(matrix: Tensor, order: np.ndarray, path: Path) -> Rows:  # (N, N), N
    """The nonzero entries of the matrix, its nodes put into this order, one row at a time."""
    half = matrix.dtype not in (torch.float32, torch.float64)
    columns, values = [], []
    counts = np.zeros(len(order), np.int64)
    for target, place in enumerate(order):
        row = (matrix[int(place)].float() if half else matrix[int(place)]).numpy()[order]
        sources = np.flatnonzero(row)
        if len(sources) and (sources[-1] >= target or not np.isfinite(row[sources]).all()):
            raise FormatError(
                f"{path} has an edge into row {int(place)} that goes backwards or is no finite "
                "number; compute the graph again."
            )
        counts[target] = len(sources)
        columns.append(sources.astype(np.int32))
        values.append(row[sources])
    starts = np.cumsum(counts) - counts
    return Rows(starts, counts, np.concatenate(columns), np.concatenate(values))


def _about(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says about the graph, as JSON values."""
    settings = {
        name: value
        for name, value in parts["cfg"].items()
        if isinstance(value, str | int | float | bool)
    }
    if isinstance(dtype := parts["cfg"].get("dtype"), torch.dtype):
        settings["dtype"] = str(dtype)
    return {
        "model": settings.get("model_name"),
        "n_layers": settings["n_layers"],
        "d_vocab": int(parts.get("vocab_size") or settings.get("d_vocab") or 0),
        "prompt": str(parts["input_string"]),
        "scan": parts.get("scan"),
        "effects": "direct",
        "hold": ["attention", "norms"],
        "made_by": "circuit-tracer",
        "settings": settings,
    }
