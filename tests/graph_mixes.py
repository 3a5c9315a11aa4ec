"""Mixes of dictionaries for graphs of tiny models, and how a graph is compared with the oracle."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gossamer.models.model import Model
from gossamer.saes import SAE
from tests.plain_attribution import PlainGraph
from tests.tiny_saes import tiny_sae

IDS = [1, 5, 7, 3, 9]
"""A prompt longer than the windows of Mistral and Gemma."""

ROTATION = ("topk", "relu", "jumprelu", "gated", "topk_signed")

TOLERANCE = 1e-10
"""Of edges, relative to the largest: what rounding costs in a handful of layers in float64."""


def at(model: Model, *ways: str, shift: int = 0, **options: Any) -> list[SAE]:
    """SAEs along `ways`, such as "0.hook_attn_out" or "1.mlp.hook_in>1.hook_mlp_out", architectures
    in turn from the shift-th on; a way that ends in + has a skip connection."""
    coders = []
    for seed, way in enumerate(ways):
        begin, _, end = way.removesuffix("+").partition(">")
        site, width = f"blocks.{begin}", model.width(f"blocks.{begin}")
        architecture = ROTATION[(seed + shift) % len(ROTATION)]
        to = f"blocks.{end}" if end else None
        skip = way.endswith("+")
        sae = tiny_sae(architecture, site, width, site_out=to, skip=skip, seed=seed, **options)
        sae.b_enc.add_(0.3)  # so that some latents are active at small activations too
        coders.append(sae)
    return coders


def narrow(sae: SAE, d_sae: int) -> SAE:
    """Its first latents alone."""
    parts = sae.arguments()
    cut = {name: parts[name][:d_sae] for name in ("W_enc", "b_enc", "W_dec")}
    return SAE(**{**parts, **cut})


def _ways(*ways: str) -> Callable[[Model], list[SAE]]:
    return lambda model: at(model, *ways)


def _transcoders(model: Model) -> list[SAE]:
    return at(model, *(f"{layer}.mlp.hook_in>{layer}.hook_mlp_out" for layer in range(3)))


def _widths(model: Model) -> list[SAE]:
    found = at(model, "0.mlp.hook_in>0.hook_mlp_out", "2.mlp.hook_in>2.hook_mlp_out+")
    found += [*at(model, "1.hook_attn_out"), *at(model, "1.hook_mlp_out", shift=1)]
    return [narrow(sae, 6 + 4 * i) if i % 2 == 0 else sae for i, sae in enumerate(found)]


MIXES: dict[str, Callable[[Model], list[SAE]]] = {
    "none": lambda _: [],
    "residual": _ways(
        "0.hook_resid_pre", "1.hook_resid_pre", "2.hook_resid_pre", "2.hook_resid_post"
    ),
    "middles": _ways("0.hook_resid_mid", "1.hook_resid_pre", "2.hook_resid_mid"),
    "attention outputs": _ways("0.hook_attn_out", "1.hook_attn_out", "2.hook_attn_out"),
    "heads": _ways("0.attn.hook_z", "1.attn.hook_z", "2.attn.hook_z"),
    "MLP outputs": _ways("0.hook_mlp_out", "1.hook_mlp_out", "2.hook_mlp_out"),
    "transcoders": _transcoders,
    "transcoders before the gain": _ways(
        *(f"{layer}.ln2.hook_normalized>{layer}.hook_mlp_out" for layer in range(3))
    ),
    "skip transcoders": _ways(
        "0.mlp.hook_in>0.hook_mlp_out+",
        "1.ln2.hook_normalized>1.hook_mlp_out+",
        "2.mlp.hook_in>2.hook_mlp_out+",
    ),
    "Jacobian pairs": _ways(
        *("0.ln2.hook_normalized", "0.hook_mlp_out", "2.mlp.hook_in", "2.hook_mlp_out")
    ),
    "one layer": _ways("1.mlp.hook_in>1.hook_mlp_out"),
    "last block alone": _ways("2.hook_attn_out", "2.hook_resid_post"),
    "widths": _widths,
    "a skip from an SAE": _ways("1.mlp.hook_in", "1.mlp.hook_in>1.hook_mlp_out+"),
    "heads behind heads": _ways("1.attn.hook_z", "1.hook_attn_out", "2.attn.hook_z"),
    "parts of blocks": _ways(
        *("0.hook_resid_mid>0.hook_mlp_out+", "1.hook_resid_pre>1.hook_attn_out"),
        *("1.hook_resid_pre>1.hook_mlp_out+", "2.hook_resid_pre>2.hook_resid_post"),
    ),
    "across layers": _ways("0.mlp.hook_in>1.hook_mlp_out", "1.hook_attn_out>2.hook_attn_out"),
    "knots": _ways(
        *(
            "0.hook_attn_out",
            "0.hook_attn_out>0.hook_mlp_out+",
            "0.hook_attn_out>0.hook_resid_post",
        ),
        *("1.ln2.hook_normalized", "1.mlp.hook_in", "1.ln2.hook_normalized>1.hook_mlp_out+"),
        *("2.attn.hook_z", "2.hook_resid_pre>2.hook_attn_out", "2.mlp.hook_in"),
    ),
    "everything": _ways(
        *("0.hook_resid_pre", "0.attn.hook_z", "0.mlp.hook_in>0.hook_mlp_out+"),
        *("1.hook_attn_out", "1.hook_resid_mid", "1.ln2.hook_normalized", "1.hook_mlp_out"),
        *("2.attn.hook_z", "2.hook_attn_out", "2.mlp.hook_in>2.hook_mlp_out"),
        "2.hook_resid_post",
    ),
}
"""Every kind of dictionary that a graph takes, alone and beside others."""


def fits(model: Model, name: str) -> bool:
    """Whether the model has every site of a mix; parallel blocks have no middle."""
    middles = ("middles", "parts of blocks", "everything")
    return not (model.layout.parallel and name in middles)


def mixed(model: Model, shift: int = 0) -> list[SAE]:
    """One of each kind, a layer without a dictionary of its MLP, for any family."""
    ways = ("0.hook_attn_out", "0.mlp.hook_in>0.hook_mlp_out+", "1.attn.hook_z", "2.hook_resid_pre")
    return at(model, *ways, "2.ln2.hook_normalized", "2.hook_mlp_out", shift=shift)


def plain_of(model: Model, coders: list[Any], ids: list[int] = IDS, **options: Any) -> PlainGraph:
    """The oracle of one prompt."""
    by_site = {coder.site_out: coder for coder in coders}
    in_order = {site: by_site[site] for site in model.sites if site in by_site}
    return PlainGraph(model.language_model, in_order, ids, **options)


def dense(graph: Any) -> np.ndarray:
    """(n_nodes, n_nodes) of a graph's rows."""
    n = len(graph.nodes)
    matrix = np.zeros((n, n))
    for target in range(n):
        row = graph.rows.row(target)
        assert len(set(row.sources.tolist())) == len(row.sources)
        matrix[target, row.sources] = row.values
    return matrix


def check_graph(graph: Any, plain: PlainGraph, *, every: bool = True) -> None:
    """A graph is what the oracle says, edge by edge; it is complete, causal and in order. `every`:
    it has every active latent, else those it leaves out reach none of its rows."""
    nodes, ids = graph.nodes, graph.nodes.ids
    assert len(set(ids)) == len(ids)
    matrix, columns, rows = dense(graph), list(plain.leaves), plain.targets
    has_row = ~np.isnan(nodes.reads)
    listed = [name for name, row in zip(ids, has_row, strict=True) if row]
    assert set(listed) <= set(rows) and (not every or set(listed) == set(rows))
    sources = [name for name in ids if not name.startswith("logits/")]
    assert set(sources) <= set(columns), sorted(set(sources) - set(columns))[:5]

    place = [rows.index(name) for name in listed]
    here = [nodes.numbers[name] for name in listed]
    expected, edges = np.zeros((2, len(listed), len(columns)))
    expected[:] = plain.edges.detach().numpy()[place]
    known = [k for k, name in enumerate(columns) if name in nodes.numbers]
    edges[:, known] = matrix[np.ix_(here, [nodes.numbers[columns[k]] for k in known])]
    scale = max(float(np.abs(expected).max(initial=0)), 1.0)
    off = np.argwhere(np.abs(edges - expected) > TOLERANCE * scale)
    wrong = [(listed[t], columns[s], edges[t, s], expected[t, s]) for t, s in off[:5]]
    assert not wrong, f"{len(off)} of {edges.size}, (target, source, got, expected): {wrong}"
    close(nodes.reads[here], plain.reads.detach()[place])
    close(nodes.constants[here], plain.constants.detach()[place])
    check_laws(graph, matrix)


def check_laws(graph: Any, matrix: np.ndarray, tolerance: float = 1e-9) -> None:
    """Laws 4 and 5, and the order of nodes, of any graph whose edges are exact."""
    nodes = graph.nodes
    here = np.flatnonzero(~np.isnan(nodes.reads))
    total = np.abs(matrix).sum(1)[here]
    rest = (nodes.reads - nodes.constants - matrix.sum(1))[here]
    assert (np.abs(rest) <= tolerance * np.maximum(total, 1e-3)).all(), np.abs(rest / total).max()
    assert np.abs(rest - nodes.residuals[here]).max() <= TOLERANCE * total.max()
    assert not np.triu(matrix).any()
    later = nodes.positions[None, :] > nodes.positions[:, None]
    assert not matrix[later].any()
    leaves = nodes.of_kind("error", "token", "position", "bias", "remainder")
    assert not matrix[leaves].any() and np.isnan(nodes.reads[leaves]).all()


def close(got: Any, expected: Any) -> None:
    """Equal to float64's precision."""
    got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
