"""Whether a graph is of this model, these SAEs and a text that fits, and its clean run again."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.activations.harvest import fingerprint, fingerprint_of
from gossamer.attribution.nodes import Clean
from gossamer.attribution.verifying.replay import FINAL, Stage
from gossamer.errors import GossamerError, SiteError
from gossamer.graph.graph import Graph
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch, check_prompt
from gossamer.models.taps import remember
from gossamer.saes.crosscoder import encode_read, read_by, reader, sites_read
from gossamer.saes.sae import SparseCoder
from gossamer.sites import BEFORE_BLOCKS
from gossamer.splice import as_saes, check_saes

SAME = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""How far an activation may be from the graph's, in parts of the largest one at its site: far more
than rounding, far less than other weights."""


def stage_of(graph: Graph, model: Model, saes: Any, *, error: str) -> Stage:
    """The clean run of a graph's prompt. GossamerError when graph, model and SAEs do not belong
    together."""
    if error not in ("attached", "frozen"):
        raise GossamerError(f'error is "attached" or "frozen" here, got {error!r}.')
    coders = _spliced(graph, as_saes(saes, faces=True, later=True))
    check_saes(model, coders)
    check_prompt(graph.token_ids, model.context_length, model.d_vocab)
    check_digests(graph, model, coders)
    pieces = _pieces(graph, model)
    clean = _clean_run(graph, model, coders, pieces)
    _check_values(graph, clean, coders)
    n = 1 + max((int(p) for p in graph.nodes.positions[graph.nodes.targets]), default=0)
    return Stage(clean, coders, pieces, error, n)


def _spliced(graph: Graph, saes: dict[str, SparseCoder]) -> dict[str, SparseCoder]:
    """Those of the SAEs that the graph splices."""
    nodes = graph.nodes
    of_saes = nodes.of_kind("latent", "error")
    named = {nodes.sites[int(i)] for i in np.unique(nodes.site_of[of_saes])}
    named |= set(graph.about.get("saes", {}))
    missing = sorted(named - set(saes))
    if missing:
        raise SiteError(
            f"The graph splices an SAE at {missing[0]}, and the SAEs passed write "
            f"{', '.join(saes) or 'nowhere'}; pass those that the graph was made with."
        )
    return {site: sae for site, sae in saes.items() if site in named}


def check_digests(graph: Graph, model: Model, saes: Mapping[str, SparseCoder]) -> None:
    """GossamerError for other weights than those the graph says it was made with."""
    known = graph.about.get("model_digest")
    if known and known != fingerprint(model):
        raise GossamerError(
            f"The graph is of the model {graph.about.get('model')} with other weights than those "
            f"of {model.name}; pass the model that it was made with."
        )
    for site, each in saes.items():
        sae, known = reader(each), graph.about.get("saes", {}).get(site)
        if (
            known
            and isinstance(sae, torch.nn.Module)
            and known != fingerprint_of(sae.state_dict().items())
        ):
            raise GossamerError(
                f"The graph splices another SAE at {site} than the one passed; pass those that it"
                " was made with."
            )


def _pieces(graph: Graph, model: Model) -> tuple[str, ...]:
    """Sites that the graph held."""
    hold = tuple(graph.about.get("hold", ()))
    sites = model.held_sites([name for name in hold if name != "mlps"])
    if "mlps" in hold:
        sites += tuple(site for site in model.sites if site.endswith(".hook_mlp_out"))
    return sites


@torch.no_grad()
def _clean_run(
    graph: Graph, model: Model, saes: Mapping[str, SparseCoder], pieces: tuple[str, ...]
) -> Clean:
    tokens = torch.tensor([graph.token_ids], device=model.device)
    batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    sites = {FINAL, *pieces, *(site for site in BEFORE_BLOCKS if site in model.sites)}
    for sae in saes.values():
        sites |= {*sites_read(sae), sae.site_out}
    values: dict[str, Tensor] = {}
    taps = {site: remember(values, site) for site in sites}
    model.forward(batch, taps, to_the_end=False)
    return Clean(model, graph.token_ids, list(graph.tokens), values)


@torch.no_grad()
def _check_values(graph: Graph, clean: Clean, saes: Mapping[str, SparseCoder]) -> None:
    """GossamerError unless the latents of the graph are active here as they were there."""
    nodes = graph.nodes
    for site, sae in saes.items():
        if site not in nodes.sites:
            continue
        place = nodes.sites.index(site)
        here = np.flatnonzero(nodes.of_kind("latent") & (nodes.site_of == place))
        if len(here) == 0:
            continue
        latents = encode_read(sae, read_by(sae, clean.at))
        if nodes.units[here].max() < latents.shape[-1]:
            positions, units = (
                torch.as_tensor(column[here].astype(np.int64)).to(latents.device)
                for column in (nodes.positions, nodes.units)
            )
            found = latents[positions, units].double().cpu().numpy()
            known = nodes.values[here]
            allowed = SAME[clean.model.dtype] * np.abs(known).max()
            if np.mean(np.abs(found - known) > allowed) <= 0.1:  # ties may fall either way
                continue
        raise GossamerError(
            f"The latents of the graph at {site} are not active here as they were there: the graph "
            f"is of another model or other SAEs than {clean.model.name} and those passed; verify "
            "it with those that it was made with."
        )
