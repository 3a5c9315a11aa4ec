"""What single latents read and write at a point: rows of weights, or derivatives of a user's own
SAE.

    read:  ∂ pre-activation / ∂ x at `site_in`      write: ∂ decode / ∂ latent at `site_out`
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.saes.sae import SAE, SparseCoder


def read_rows(
    sae: SparseCoder, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n width"]:
    """What latent indices[i] reads at `site_in`, at x[i]."""
    if isinstance(sae, SAE):
        return sae.read_rows(indices, x)
    if len(indices) == 0:
        return x.new_zeros(0, x.shape[1])
    return torch.stack([_gradient(sae, x[i], int(indices[i])) for i in range(len(indices))])


def write_rows(
    sae: SparseCoder, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n width"]:
    """What latent indices[i] writes at `site_out` per unit of activation, its input x[i] held."""
    if isinstance(sae, SAE):
        return sae.write_rows(indices, x)
    if len(indices) == 0:
        return sae.decode(sae.encode(x), x)
    return torch.stack([_derivative(sae, x[i], int(indices[i])) for i in range(len(indices))])


def n_latents(sae: SparseCoder, x: Float[Tensor, "n d_in"]) -> int:
    """How many latents an SAE has; a user's own is asked with an input."""
    return sae.d_sae if isinstance(sae, SAE) else sae.encode(x[:1]).shape[-1]


def rows_are_constant(sae: SparseCoder) -> bool:
    """Whether a latent's rows are the same at every point."""
    return isinstance(sae, SAE) and sae.normalization in ("none", "center")


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
