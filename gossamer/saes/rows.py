"""What single latents read and write at a point: rows of weights, or derivatives of a user's own
SAE.

    read:  ∂ pre-activation / ∂ x at `site_in`      write: ∂ decode / ∂ latent at `site_out`

The x of a `Face` is what its crosscoder reads at all its sites, side by side, and so are read rows.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.kernels.sparse import SparseLatents
from gossamer.saes.crosscoder import Face, reader
from gossamer.saes.normalization import output_scale
from gossamer.saes.sae import SAE, SparseCoder


def read_rows(
    sae: SparseCoder, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n width"]:
    """What latent indices[i] reads at `site_in`, at x[i]."""
    sae = reader(sae)
    if isinstance(sae, SAE):
        return sae.read_rows(indices, x)
    if len(indices) == 0:
        return x.new_zeros(0, x.shape[1])
    return torch.stack([_gradient(sae, x[i], int(indices[i])) for i in range(len(indices))])


def write_rows(
    sae: SparseCoder, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n width"]:
    """What latent indices[i] writes at `site_out` per unit of activation, its input x[i] held."""
    if isinstance(sae, Face):
        return sae.W_dec[indices]
    if isinstance(sae, SAE):
        return sae.write_rows(indices, x)
    if len(indices) == 0:
        return sae.decode(sae.encode(x), x)
    return torch.stack([_derivative(sae, x[i], int(indices[i])) for i in range(len(indices))])


def active_pairs(
    sae: SparseCoder, x: Float[Tensor, "pos d_in"]
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Float[Tensor, " n"]]:
    """(positions, units, values) of active latents, sorted by position and unit."""
    sae = reader(sae)
    if isinstance(sae, SAE):
        sparse = sae.encode_sparse(x)
        positions, units, values = sparse.rows, sparse.indices, sparse.values
        order = torch.argsort(positions * sae.d_sae + units)
        return positions[order], units[order], values[order]
    dense = sae.encode(x)
    positions, units = dense.nonzero(as_tuple=True)
    return positions, units, dense[positions, units]


def splice_parts(
    sae: SparseCoder,
    x: Float[Tensor, "pos d_in"],
    value: Float[Tensor, "pos width"],
    by_latents: Float[Tensor, "pos width"],
    *,
    latents: SparseLatents | Float[Tensor, "pos d_sae"] | None = None,
) -> dict[str, Float[Tensor, "pos width"]]:
    """What a splice adds at `value` beside what its latents write, `by_latents` in all: error,
    bias, and a remainder (a skip, what a normalization puts back, what is not linear in a latent)
    for SAEs that have one. `latents` are those of x unless given."""
    parts: dict[str, Tensor] = {}
    if isinstance(sae, Face):
        bias = sae.b_dec.to(value).expand_as(value)
        return {"error": value - by_latents - bias, "bias": bias}
    bias = torch.zeros_like(by_latents)
    if isinstance(sae, SAE):
        bias = sae.b_dec * output_scale(sae.normalization, x.to(sae.dtype))
        parts["bias"] = bias = bias.expand_as(value).to(value)
        if sae.normalization in ("none", "rescale") and sae.W_skip is None:
            return {"error": value - by_latents - bias, **parts}
    own = sae.encode_sparse if isinstance(sae, SAE) else sae.encode
    decoded = sae.decode(own(x) if latents is None else latents, x).to(value)
    parts["error"] = value - decoded
    parts["remainder"] = decoded - by_latents - bias
    return parts


def n_latents(sae: SparseCoder, x: Float[Tensor, "n d_in"]) -> int:
    """How many latents an SAE has; a user's own is asked with an input."""
    sae = reader(sae)
    return sae.d_sae if isinstance(sae, SAE) else sae.encode(x[:1]).shape[-1]


def rows_are_constant(sae: SparseCoder) -> bool:
    """Whether a latent's rows are the same at every point."""
    sae = reader(sae)
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
