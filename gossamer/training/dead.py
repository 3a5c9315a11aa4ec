"""Dead latents: latents that have not been active on any of the last tokens.

AuxK (arXiv 2406.04093, A.2) asks those with the largest pre-activations to reconstruct what the
others missed: with e = y - ŷ held constant and A the k_aux largest relu(p_i) of dead latents,

    ê = Σ_{i ∈ A} relu(p_i) W_dec,i          L = ‖e - ê‖² / ‖e - mean e‖²

without b_dec, which the others have used already. Where latents can be negative A is the k_aux
largest |p_i|, and ê the sum of p_i W_dec,i. Resampling (Bricken et al. 2023) gives a dead
latent the direction of an input that is reconstructed badly.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from gossamer.distributed import Mesh
from gossamer.kernels.encode import encode_abs_topk, encode_topk
from gossamer.kernels.pairs import Pairs, read_pairs, write_pairs
from gossamer.training.architecture import AbstractArchitecture
from gossamer.training.sharded import kept_of, kept_pairs
from gossamer.training.trainee import Trainee

MAX_DENSITY = 0.04
"""Share of the dead latents in A from which dense products are the faster way."""


def dead_counts(trainee: Trainee, dead: Int64[Tensor, " n_dead"]) -> list[int]:
    """How many latents are dead in each process of tp, `dead` being those here."""
    if trainee.mesh.tp == 1:
        return [len(dead)]
    return trainee.mesh.gathered(dead.new_tensor([len(dead)]), "tp").flatten().tolist()


def auxk(
    trainee: Trainee,
    x: Float[Tensor, "batch d_in"],
    error: Float[Tensor, "batch d_out"],
    *,
    dead: Int64[Tensor, " n_dead"],
    k_aux: int,
    signed: bool = False,
    counts: list[int] | None = None,
) -> Float[Tensor, ""]:
    """L above, times min(1, n_dead / k_aux); 0 where the error does not vary. `signed`: whether
    latents can be negative; `counts`: `dead_counts`, where they are known.

    Where other processes have some of the tokens, it is what those here add to L.
    """
    shift = trainee.shift
    u = x if shift is None else x - shift
    W_enc, W_dec = trainee.W_enc.index_select(0, dead), trainee.W_dec.index_select(0, dead)
    b_enc = trainee.b_enc.index_select(0, dead)
    counts = dead_counts(trainee, dead) if counts is None else counts
    k, n_dead = min(k_aux, sum(counts)), sum(counts)
    rule = _Chosen(k, n_dead, min(k, max(counts)), signed, trainee.mesh)
    written = _dense if k > MAX_DENSITY * n_dead else _sparse
    guess = trainee.mesh.added(written(u, W_enc, b_enc, W_dec, rule=rule))
    missed = (error - guess).square().sum()
    variation, size = _variation(error, trainee.mesh)
    # What is left of the variation of equal rows is rounding. The quotient not taken must be finite
    # too, or its gradient is 0 · inf.
    varies = variation > (100 * torch.finfo(error.dtype).eps) ** 2 * size
    ratio = torch.where(varies, missed / torch.where(varies, variation, 1), 0)
    return ratio * min(1.0, n_dead / k_aux)


def _variation(
    error: Float[Tensor, "batch d_out"], mesh: Mesh
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(Σ‖e - mean e‖², Σ‖e‖²) over the tokens of all processes."""
    if mesh.dp == 1:
        return (error - error.mean(0)).square().sum(), error.square().sum()
    e = error.double()
    sums = torch.cat([e.sum(0), e.square().sum()[None], e.new_tensor([len(e)])])
    mesh.add_(sums, "dp")
    size, n = sums[-2], sums[-1]
    variation = size - sums[:-2].square().sum() / n
    is_rounding = variation < 100 * torch.finfo(torch.float64).eps * size
    return variation.masked_fill(is_rounding, 0).to(error), size.to(error)


class _Chosen(NamedTuple):
    """Which dead latents take part for each token."""

    k: int
    """How many."""

    n_dead: int
    """Of how many, here and elsewhere."""

    width: int
    """Candidates of the process that has most."""

    signed: bool
    """Whether their size counts, and not their value."""

    mesh: Mesh
    """Where the others are."""

    def kept(self, sizes: Float[Tensor, "batch k_here"]) -> Bool[Tensor, "batch k_here"] | None:
        """Which of the candidates here do; None for all of them."""
        return kept_of(sizes, self.k, self.mesh, width=self.width)


def _dense(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_dead d_in"],
    b_enc: Float[Tensor, " n_dead"],
    W_dec: Float[Tensor, "n_dead d_out"],
    *,
    rule: _Chosen,
) -> Float[Tensor, "batch d_out"]:
    pre = u @ W_enc.T + b_enc
    pre = pre if rule.signed else pre.relu()
    if rule.k < rule.n_dead:
        sizes, chosen = pre.detach().abs().topk(min(rule.k, len(b_enc)), sorted=False)
        values, kept = pre.gather(1, chosen), rule.kept(sizes)
        pre = torch.zeros_like(pre).scatter(1, chosen, values if kept is None else values * kept)
    return pre @ W_dec


def _sparse(
    u: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_dead d_in"],
    b_enc: Float[Tensor, " n_dead"],
    W_dec: Float[Tensor, "n_dead d_out"],
    *,
    rule: _Chosen,
) -> Float[Tensor, "batch d_out"]:
    encode = encode_abs_topk if rule.signed else encode_topk
    k = min(rule.k, len(b_enc))
    values, indices = encode(u.detach(), W_enc.detach(), b_enc.detach(), k)
    kept = rule.kept(values.abs() if rule.signed else values)
    values, indices, offsets = kept_pairs(values, indices, kept)
    pairs = Pairs.of(indices, offsets, len(b_enc))
    pre = read_pairs(u, W_enc, b_enc, pairs=pairs, values=values)
    return write_pairs(pre if rule.signed else pre.relu(), W_dec, pairs=pairs)


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
    counts = dead_counts(trainee, dead)
    u, error = (_all_tokens(rows, trainee.mesh) for rows in (u, error))
    alive = torch.ones(len(trainee.b_enc), dtype=torch.bool, device=u.device)
    if sum(counts) < trainee.d_sae:
        alive[dead] = False
    losses = error.double().square().sum(1).square().cpu()
    if not losses.any():
        return
    drawn = torch.multinomial(losses, sum(counts), replacement=True, generator=generator)
    drawn = drawn.split(counts)[trainee.mesh.tp_rank].to(u.device)
    centre = u.mean(0) if trainee.shift is None else torch.zeros_like(u[0])
    reads = F.normalize(u[drawn] - centre, dim=1)
    writes = reads if trainee.is_autoencoder else F.normalize(error[drawn], dim=1)
    size = 1.0 if sae.selects_by_rank else 0.2
    trainee.W_enc[dead] = reads * size * _mean_norm(trainee.W_enc[alive], trainee.mesh)
    trainee.W_dec[dead] = writes * _mean_norm(trainee.W_dec[alive], trainee.mesh)
    trainee.b_enc[dead] = -(trainee.W_enc[dead] @ centre)
    for name, start in sae.extra(trainee.b_enc.detach()).items():
        trainee.extra[name][dead] = start[dead]


def _all_tokens(rows: Float[Tensor, "batch width"], mesh: Mesh) -> Float[Tensor, "all width"]:
    """Those of all processes, in their order; shares differ by at most one row."""
    if mesh.dp == 1:
        return rows
    counts = mesh.gathered(torch.tensor([len(rows)], device=rows.device), "dp").flatten().tolist()
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))
    shares = mesh.gathered(padded, "dp")
    return torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)])


def _mean_norm(rows: Float[Tensor, "n width"], mesh: Mesh) -> Float[Tensor, ""]:
    """Over the rows of all processes."""
    if mesh.tp == 1:
        return rows.norm(dim=1).mean()
    norms = rows.norm(dim=1)
    sums = mesh.add_(torch.stack([norms.sum(), norms.new_tensor(len(norms))]), "tp")
    return sums[0] / sums[1]


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
