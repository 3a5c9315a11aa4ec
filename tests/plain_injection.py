"""Edges the plain way, which the fast ways must equal: whole prompt, one product at a time.

Each target's read row is put in as the cotangent of one run of the model's own forward pass; what
comes back at the source's site is dotted with each source's write row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer.attribution.products import Ends
from gossamer.models.model import Model
from gossamer.models.taps import Tap, remember


def plain_products(
    model: Model, ids: Sequence[int], ends: Ends, constants: dict[str, Tap]
) -> Tensor:
    """(n_targets, n_sources) by `torch.autograd.grad`, row by row."""
    source, target = ends.sources.site, ends.targets.site
    leaf = ends.value.detach().clone().requires_grad_()
    seen: dict[str, Tensor] = {}
    taps: dict[str, Tap] = {**constants, source: lambda _: leaf, target: remember(seen, target)}
    model.forward(model.batch([list(ids)]), taps)
    read, nodes = seen[target], ends.targets.nodes
    rows: list[Any] = []
    for t, position in enumerate(nodes.positions.tolist()):
        if ends.targets.rows is None:
            value = read[0, position, nodes.indices[t]]
            if nodes.distractors is not None:
                value = value - read[0, position, nodes.distractors[t]]
        else:
            value = read[0, position].flatten() @ ends.targets.rows[t]
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
        places = gradient[0].flatten(1)[ends.sources.nodes.positions]
        assert ends.sources.rows is not None
        rows.append((places * ends.sources.rows).sum(-1))
    return torch.stack(rows)
