"""What nodes read and write: one row of the residual stream (or another site) for each.

    latent, read:  ∂ pre-activation / ∂ x at its SAE's `site_in`     (the encoder row)
    latent, write: ∂ decode / ∂ latent at its SAE's `site_out`       (the decoder row)
    token, write:  x₀ at its position, since the scale s multiplies it: ∂(s·x₀)/∂s = x₀

An SAE of the user's own is differentiated by autograd, a row at a time.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.nodes import Clean, NodeTable
from gossamer.saes.sae import SAE, SparseCoder


def read_rows(sae: SparseCoder, nodes: NodeTable, clean: Clean) -> Float[Tensor, "n width"]:
    """What each latent reads at `site_in`, at the clean activation."""
    x = clean.at(sae.site_in)[nodes.positions]
    if isinstance(sae, SAE):
        return sae.read_rows(nodes.indices, x)
    return torch.stack([_gradient(sae, x[i], int(nodes.indices[i])) for i in range(len(nodes))])


def write_rows(sae: SparseCoder, nodes: NodeTable, clean: Clean) -> Float[Tensor, "n width"]:
    """What each latent writes at `site_out`, per unit of activation."""
    x = clean.at(sae.site_in)[nodes.positions]
    if isinstance(sae, SAE):
        return sae.write_rows(nodes.indices, x)
    return torch.stack([_derivative(sae, x[i], int(nodes.indices[i])) for i in range(len(nodes))])


def _gradient(sae: SparseCoder, x: Float[Tensor, " d_in"], latent: int) -> Float[Tensor, " d_in"]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(sae.encode(x[None])[0, latent], x)[0]


def _derivative(
    sae: SparseCoder, x: Float[Tensor, " d_in"], latent: int
) -> Float[Tensor, " d_out"]:
    latents = sae.encode(x[None])
    direction = torch.zeros_like(latents)
    direction[0, latent] = 1
    # Not torch.func.jvp: it warns of the deprecated torch.jit.script, which torch still calls.
    return torch.autograd.functional.jvp(lambda f: sae.decode(f, x[None]), latents, direction)[1][0]
