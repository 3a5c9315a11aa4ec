"""Numbers that say how good an SAE is: pure functions of tensors, each with its unit.

    fvu           Σ‖y - ŷ‖² / Σ‖y - ȳ‖²         ȳ the mean of y over the whole evaluation
    l0            E #{a_i ≠ 0}
    ce_recovered  (ce_ablated - ce_patched) / (ce_ablated - ce_clean)
    kl            Σ_v P log(P / Q)               P clean, Q patched
    dead_fraction share of latents with no firing

A mean of the ratios of batches is not the ratio of the whole, so FVU is accumulated:
`Unexplained.of` for each batch, `+` between them, in float64, and one division at the end. Every
metric of one evaluation should see the same tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Sums over some tokens from which FVU comes; the sum of two is that of both sets of tokens."""

    n_tokens: int
    """Tokens summed over."""

    mean: Float64[Tensor, " d_out"]
    """ȳ, the mean activation."""

    variation: Float64[Tensor, ""]
    """Σ‖y - ȳ‖² over tokens and dimensions."""

    squared_error: Float64[Tensor, ""]
    """Σ‖y - ŷ‖² over tokens and dimensions."""

    @classmethod
    def of(
        cls, y: Float[Tensor, "*lead d_out"], reconstruction: Float[Tensor, "*lead d_out"]
    ) -> "Unexplained":
        """The sums over one batch; at least one token."""
        y, error = y.detach().double(), (y.double() - reconstruction.double()).detach()
        y = y.flatten(0, -2) if y.ndim > 1 else y[None]  # (tokens, d_out)
        if len(y) == 0:
            raise ShapeError("FVU needs at least one token, got none; leave empty batches out.")
        mean = y.mean(0)
        return cls(len(y), mean, (y - mean).square().sum(), error.square().sum())

    def __add__(self, other: "Unexplained") -> "Unexplained":
        """Chan, Golub and LeVeque 1979: nothing cancels, however large the mean."""
        n = self.n_tokens + other.n_tokens
        shift = other.mean - self.mean
        between = shift.square().sum() * (self.n_tokens * other.n_tokens / n)
        return Unexplained(
            n,
            self.mean + shift * (other.n_tokens / n),
            self.variation + other.variation + between,
            self.squared_error + other.squared_error,
        )

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: 0 perfect, 1 as good as the mean, no upper end.

        A constant that the reconstruction misses counts. ShapeError when every y is the same.
        """
        if not self.variation > 0:
            raise ShapeError(
                f"FVU is undefined over {self.n_tokens} tokens with one and the same activation; "
                "evaluate over tokens that differ."
            )
        return (self.squared_error / self.variation).item()

    @property
    def mse(self) -> float:
        """Mean over tokens of the squared error, summed over dimensions; squared activations."""
        return self.squared_error.item() / self.n_tokens


def fvu(y: Float[Tensor, "*lead d_out"], reconstruction: Float[Tensor, "*lead d_out"]) -> float:
    """Fraction of variance unexplained of one batch that is the whole evaluation."""
    return Unexplained.of(y, reconstruction).fvu


def l0(latents: Float[Tensor, "*lead d_sae"] | SparseLatents) -> float:
    """Active latents per token: the mean number that are not 0."""
    if isinstance(latents, SparseLatents):
        active, n_tokens = latents.values.count_nonzero().item(), latents.offsets.numel() - 1
    else:
        active, n_tokens = latents.count_nonzero().item(), latents[..., 0].numel()
    if n_tokens == 0:
        raise ShapeError("L0 needs at least one token, got none; leave empty batches out.")
    return active / n_tokens


def ce_recovered(ce_clean: float, ce_patched: float, ce_ablated: float) -> float:
    """Share of the loss that ablating a site costs which its reconstruction keeps.

    1 when the patched run loses nothing, 0 when it is as bad as the ablation, which must be named
    beside the number (zero, mean, resample). All three are mean next-token losses in nats over the
    same tokens, changed at the same positions. It saturates near 1: give `ce_patched - ce_clean`
    too.
    """
    if ce_ablated == ce_clean:
        raise ShapeError(
            f"CE recovered is undefined when the ablation costs nothing, got ce_clean={ce_clean} "
            f"and ce_ablated={ce_ablated}; compare ce_patched with ce_clean instead."
        )
    return (ce_ablated - ce_patched) / (ce_ablated - ce_clean)


def kl(
    clean_logits: Float[Tensor, "*lead d_vocab"],
    patched_logits: Float[Tensor, "..."],  # the same shape, checked below, in words
    chunk: int = 16384,
) -> Float[Tensor, "*lead"]:
    """KL(clean ‖ patched) of the next-token distributions, in nats, for each position.

    In float32 at least, `chunk` words of the vocabulary at a time, so that no second copy of the
    logits is made.
    """
    if clean_logits.shape != patched_logits.shape:
        raise ShapeError(
            f"KL compares logits of one shape, got clean {tuple(clean_logits.shape)} and patched "
            f"{tuple(patched_logits.shape)}; run both on the same tokens."
        )
    precise = torch.promote_types(clean_logits.dtype, torch.float32)
    clean_pieces = clean_logits.split(chunk, dim=-1)
    patched_pieces = patched_logits.split(chunk, dim=-1)
    clean_total, patched_total = (
        torch.stack([piece.to(precise).logsumexp(-1) for piece in pieces]).logsumexp(0)
        for pieces in (clean_pieces, patched_pieces)
    )
    total = torch.zeros_like(clean_total)
    for clean, patched in zip(clean_pieces, patched_pieces, strict=True):
        log_p = clean.to(precise) - clean_total[..., None]
        log_q = patched.to(precise) - patched_total[..., None]
        p = log_p.exp()
        # Where p is 0 the term is 0, its limit, also where both runs rule the word out.
        total = total + (p * (log_p - log_q)).where(p > 0, 0).sum(-1)
    return total


def dead_fraction(firings: Int64[Tensor, " d_sae"]) -> float:
    """Share of latents that never fired, from the number of tokens on which each was active.

    State beside it how many tokens were counted: the fewer, the more latents look dead.
    """
    if firings.numel() == 0:
        raise ShapeError("The dead fraction needs at least one latent, got none.")
    return (firings == 0).double().mean().item()


BIN = 0.25
"""Width of a bin of the density histogram, in powers of ten."""


def density_histogram(densities: Float[Tensor, " d_sae"]) -> tuple[Int64[Tensor, " 36"], int]:
    """Latents by log10 of the share of tokens on which they are active, and those at 0.

    Bins of 0.25 from -9 to 0; bin i begins at -9 + i/4, the last includes 0.
    """
    active = densities[densities > 0].double()
    places = ((active.log10() + 9) / BIN).floor().long().clamp(0, 35)
    return torch.bincount(places, minlength=36), int((densities == 0).sum())
