"""The oracle of MLP Jacobians: jacrev through decode → the model's modules → encode, densely."""

from typing import Any

import torch
from torch import Tensor

import gossamer
from gossamer.models.model import Model
from tests.tiny_saes import plain_active, plain_decode, plain_latents, plain_pre


def plain_norm(module: Any, x: Tensor, offset: float, held: bool) -> tuple[Tensor, Tensor]:
    """(before gain and bias, after), written out."""
    is_layer = isinstance(module, torch.nn.LayerNorm)
    centred = x - x.mean(-1, keepdim=True) if is_layer else x
    eps = getattr(module, "variance_epsilon", None) or module.eps
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps) ** 0.5
    normalized = centred / (scale.detach() if held else scale)
    out = normalized * (offset + module.weight)
    return normalized, out if getattr(module, "bias", None) is None else out + module.bias


def plain_jacobian(
    model: Model,
    layer: int,
    before: Any,
    after: Any,
    ids: list[int],
    *,
    at: str = "input",
    hold: Any = (),
    skip: bool | None = None,
) -> Tensor:
    """(pos, D_out, D_in), zeros included."""
    adapter, part = model.layout.adapter, lambda path: model.layout.part(layer, path)
    place, end = before.site_out.split(".", 2)[2], after.site_in.split(".", 2)[2]
    held, offset = "norms" in hold, adapter.gain_offset
    mlp_out = f"blocks.{layer}.hook_mlp_out"
    record = {before.site_in, before.site_out, after.site_in, mlp_out}
    seen = gossamer.run(model, ids, record=sorted(record)).activations
    rows = []
    for t in range(len(ids)):
        x_read, x_point = seen[before.site_in][0, t], seen[before.site_out][0, t]
        f = plain_latents(before, x_read).detach()
        error = x_point - plain_decode(before, f, x_read)
        rest = seen[after.site_in][0, t] - seen[mlp_out][0, t]

        def value(f: Tensor, x_read=x_read, error=error, rest=rest) -> Tensor:
            x = plain_decode(before, f, x_read)
            x = x + error.detach() if at == "input" else x
            hidden = x
            if place == "ln2.hook_normalized":
                module = part(adapter.ln2)
                hidden = x * (offset + module.weight)
                hidden = hidden if getattr(module, "bias", None) is None else hidden + module.bias
            if place == "hook_resid_mid":
                _, hidden = plain_norm(part(adapter.ln2), x, offset, held)
            y = plain_mlp(model, layer, hidden)
            if adapter.ln2_post is not None:
                _, y = plain_norm(part(adapter.ln2_post), y, offset, held)
            if end != "hook_resid_post":
                return y
            if place == "hook_resid_mid":
                return y + (x.detach() if skip is False else x)
            return y + rest

        y = (seen[after.site_in][0, t] if at == "input" else value(f)).detach()
        chosen = plain_active(after, y)

        def latents(f: Tensor, value=value, chosen=chosen) -> Tensor:
            return torch.where(chosen, plain_pre(after, value(f)), 0.0)

        jacobian = torch.autograd.functional.jacobian(latents, f)
        rows.append(jacobian * plain_active(before, x_read))
    return torch.stack(rows).detach()


def plain_mlp(model: Model, layer: int, hidden: Tensor) -> Tensor:
    """The block's MLP, by its modules."""
    paths, part = model.layout.adapter.mlp, lambda path: model.layout.part(layer, path)
    post = part(paths.activation)(part(paths.pre)(hidden[None]))
    if paths.pre_linear is not None:
        post = post * part(paths.pre_linear)(hidden[None])
    return part(paths.down)(post)[0]
