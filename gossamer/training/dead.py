"""Dead latents: latents that have not been active on any of the last tokens.

AuxK (arXiv 2406.04093, A.2) asks those with the largest pre-activations to reconstruct what the
others missed: with e = y - ŷ held constant and A the k_aux largest relu(p_i) of dead latents,

    ê = Σ_{i ∈ A} relu(p_i) W_dec,i          L = ‖e - ê‖² / ‖e - mean e‖²

without b_dec, which the others have used already. Where latents can be negative A is the k_aux
largest |p_i|, and ê the sum of p_i W_dec,i. Resampling (Bricken et al. 2023) gives a dead
latent the direction of an input that is reconstructed badly.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from gossamer.kernels.encode import encode_abs_topk, encode_topk
from gossamer.kernels.pairs import Pairs, read_pairs, write_pairs
from gossamer.training.architecture import AbstractArchitecture
from gossamer.training.trainee import Trainee

MAX_DENSITY = 0.04
"""Share of the dead latents in A from which dense products are the faster way."""


def auxk(
    trainee: Trainee,
    x: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_out"],
    *,
    dead: Int64[Tensor, " n_dead"],
    k_aux: int,
    signed: bool = False,
) -> Float[Tensor, ""]:
    """L above, times min(1, n_dead / k_aux); 0 where the error does not vary. `signed`: whether
    latents can be negative."""
    shift = trainee.shift
    u = x if shift is None else x - shift
    W_enc, W_dec = trainee.W_enc.index_select(0, dead), trainee.W_dec.index_select(0, dead)
    b_enc = trainee.b_enc.index_select(0, dead)
    k = min(k_aux, len(dead))
    written = _dense if k > MAX_DENSITY * len(dead) else _sparse
    missed = (error - written(u, W_enc, b_enc, W_dec, k, signed=signed)).square().sum()
    variation = (error - error.mean(0)).square().sum()
    # What is left of the variation of equal rows is rounding. The quotient not taken must be finite
    # too, or its gradient is 0 · inf.
    varies = variation > (100 * torch.finfo(error.dtype).eps) ** 2 * error.square().sum()
    ratio = torch.where(varies, missed / torch.where(varies, variation, 1), 0)
    return ratio * min(1.0, len(dead) / k_aux)


def _dense(  # noqa: PLR0917  the parts of a small SAE
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_dead d_in"],
    b_enc: Float[Tensor, " n_dead"],
    W_dec: Float[Tensor, "n_dead d_out"],
    k: int,
    *,
    signed: bool,
) -> Float[Tensor, "batch d_out"]:
    pre = u @ W_enc.T + b_enc
    pre = pre if signed else pre.relu()
    if k < len(b_enc):
        kept = pre.detach().abs().topk(k, sorted=False).indices
        pre = torch.zeros_like(pre).scatter(1, kept, pre.gather(1, kept))
    return pre @ W_dec


def _sparse(  # noqa: PLR0917  the parts of a small SAE
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_dead d_in"],
    b_enc: Float[Tensor, " n_dead"],
    W_dec: Float[Tensor, "n_dead d_out"],
    k: int,
    *,
    signed: bool,
) -> Float[Tensor, "batch d_out"]:
    encode = encode_abs_topk if signed else encode_topk
    values, indices = encode(u.detach(), W_enc.detach(), b_enc.detach(), k)
    offsets = torch.arange(0, values.numel() + 1, k, device=u.device)
    pairs = Pairs.of(indices.flatten(), offsets, len(b_enc))
    pre = read_pairs(u, W_enc, b_enc, pairs=pairs, values=values.flatten())
    return write_pairs(pre if signed else pre.relu(), W_dec, pairs=pairs)


@torch.no_grad()
def resample_(
    trainee: Trainee,
    dead: Int64[Tensor, " n_dead"],
    u: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_out"],
    *,
    sae: AbstractArchitecture,
    generator: torch.Generator,
) -> None:
    """Point dead latents at inputs drawn in proportion to their squared loss, ‖e‖⁴.

    The encoder row becomes the input's direction from their centre, at a fifth of the mean norm of
    the live ones, or at all of it where latents are chosen by rank: a fifth would never be. The
    centre is b_dec where that is taken from the input, and b_enc is then 0; else
    the batch's mean, and b_enc makes up for it, so that about as many tokens lie on either side.
    What an architecture has of its own starts anew from that b_enc. An autoencoder's
    decoder row becomes the direction that is read, a transcoder's that of the error there; its norm
    that of the live ones. `silent_tokens` stay: a latent is dead until it is active.
    """
    alive = torch.ones(trainee.d_sae, dtype=torch.bool, device=u.device)
    alive[dead] = False
    if not alive.any():
        alive[:] = True
    losses = error.double().square().sum(1).square().cpu()
    if not losses.any():
        return
    drawn = torch.multinomial(losses, len(dead), replacement=True, generator=generator)
    drawn = drawn.to(u.device)
    centre = u.mean(0) if trainee.shift is None else torch.zeros_like(u[0])
    reads = F.normalize(u[drawn] - centre, dim=1)
    writes = reads if trainee.is_autoencoder else F.normalize(error[drawn], dim=1)
    size = 1.0 if sae.selects_by_rank else 0.2
    trainee.W_enc[dead] = reads * size * trainee.W_enc[alive].norm(dim=1).mean()
    trainee.W_dec[dead] = writes * trainee.W_dec[alive].norm(dim=1).mean()
    trainee.b_enc[dead] = -(trainee.W_enc[dead] @ centre)
    for name, start in sae.extra(trainee.b_enc.detach()).items():
        trainee.extra[name][dead] = start[dead]


def forget_(
    optimizer: torch.optim.Optimizer,
    trainee: Trainee,
    dead: Int64[Tensor, " n_dead"],
) -> None:
    """Adam's moments of resampled latents become 0."""
    rows = [trainee.W_enc, trainee.W_dec, trainee.b_enc, *trainee.extra.values()]
    for parameter in rows:
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimizer.state[parameter]:
                optimizer.state[parameter][name][dead] = 0
