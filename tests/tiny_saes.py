"""Tiny random SAEs of every architecture, and the oracle of what each of them computes.

    u = normalize(x) [− b_dec];  pre = gain·(W_enc u) + b_enc;  latents = pre where active, else 0
    decode(f, x) = undo(f W_dec + b_dec) [+ W_skip x]

`plain_pre`, `plain_active` and `plain_decode` write this out from the tensors of an SAE, one case
at a time, without calling a method of it.
"""

from typing import Any

import torch
from torch import Tensor

from gossamer.saes import SAE, AbsTopK, Gated, JumpReLU, ReLU, TopK
from gossamer.saes.selection import AbstractSelection

ARCHITECTURES = ("relu", "topk", "topk_signed", "abstopk", "jumprelu", "gated")
"""Every selection rule; `topk_signed` keeps selected values that are negative."""

D_SAE = 20
"""Latents of a tiny SAE."""

Coder = Any
"""An SAE, or an object with the protocol's four names."""


def _selection(
    architecture: str, generator: torch.Generator, dtype: torch.dtype
) -> AbstractSelection:
    spread = torch.rand(D_SAE, generator=generator, dtype=torch.float64).to(dtype)
    match architecture:
        case "relu":
            return ReLU()
        case "topk":
            return TopK(3)
        case "topk_signed":
            return TopK(D_SAE - 3, relu=False)  # so many that some of the chosen are negative
        case "abstopk":
            return AbsTopK(3)
        case "jumprelu":
            return JumpReLU(0.4 + spread)
        case "gated":
            return Gated(b_gate=-0.8 * spread, r_mag=0.4 * spread - 0.2)
    raise ValueError(architecture)


def tiny_sae(
    architecture: str,
    site_in: str,
    width: int,
    *,
    site_out: str | None = None,
    skip: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **options: Any,
) -> SAE:
    """A random SAE; with `site_out` a transcoder of the same width. `options` go to SAE."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return SAE(
        W_enc=normal(D_SAE, width) / width**0.5,
        b_enc=0.2 * normal(D_SAE) - (0.6 if architecture == "relu" else 0.1),
        W_dec=normal(D_SAE, width) / D_SAE**0.5,
        b_dec=0.3 * normal(width),
        W_skip=normal(width, width) / width if skip else None,
        selection=_selection(architecture, generator, dtype),
        site_in=site_in,
        site_out=site_out,
        **options,
    )


def tiny_clt(
    model: Any, architecture: str = "relu", place: str = "mlp.hook_in", *, skip: bool = False
) -> list[SAE]:
    """A cross-layer transcoder of a model's MLPs: a transcoder for each layer, whose latents write
    at its own and all later layers."""
    sites = [f"blocks.{layer}.hook_mlp_out" for layer in range(model.n_layers)]
    members = []
    for layer, site in enumerate(sites):
        width, later = model.d_model, sites[layer + 1 :]
        generator = torch.Generator().manual_seed(50 + layer)
        decoder = torch.randn(D_SAE, len(later), width, generator=generator, dtype=torch.float64)
        members.append(
            tiny_sae(
                architecture,
                f"blocks.{layer}.{place}",
                width,
                site_out=site,
                skip=skip,
                seed=layer,
                W_later=decoder / D_SAE**0.5 if later else None,
                sites_later=later,
            )
        )
    return members


class OwnSAE:
    """A user's own coder: no base class, curved on both sides, four names and nothing else public.

    latents = p + p²/4 where p = A x + a is positive;   decode = latents B + latents² C + x.mean
    """

    def __init__(
        self,
        site_in: str,
        width: int,
        site_out: str | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(3, D_SAE, width, generator=generator, dtype=torch.float64) / width**0.5
        self._read, self._write, self._curve = normal.to(dtype)
        self.site_in = site_in
        self.site_out = site_in if site_out is None else site_out

    def encode(self, x: Tensor) -> Tensor:
        pre = (x @ self._read.T - 0.5).clamp(min=0)
        return pre + pre**2 / 4

    def decode(self, latents: Tensor, x: Any = None) -> Tensor:
        return latents @ self._write + latents**2 @ self._curve + x.mean(-1, keepdim=True)


def plain_normalized(sae: SAE, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """(what the encoder sees, b_dec still in it; factor on the output; what is added to that)."""
    mean = x.mean(-1, keepdim=True)
    if sae.normalization == "center":
        return x - mean, 1.0, mean
    if sae.normalization == "layer_norm":
        deviation = (((x - mean) ** 2).sum(-1, keepdim=True) / (x.shape[-1] - 1)) ** 0.5
        return (x - mean) / (deviation + 1e-5), deviation, mean
    if sae.normalization == "rescale":
        factor = (x.shape[-1] / (x**2).sum(-1, keepdim=True)) ** 0.5
        return x * factor, 1 / factor, 0.0
    return x, 1.0, 0.0


def plain_pre(sae: Coder, x: Tensor) -> Tensor:
    """What the selection chooses from; for a coder of the user's own, its latents."""
    if not isinstance(sae, SAE):
        return sae.encode(x)
    u, _, _ = plain_normalized(sae, x)
    u = u - sae.b_dec if sae.subtract_b_dec else u
    gain = sae.selection.r_mag.exp() if isinstance(sae.selection, Gated) else 1.0
    return (u @ sae.W_enc.T) * gain + sae.b_enc


def plain_active(sae: Coder, x: Tensor) -> Tensor:
    """Which latents are active at x, as booleans."""
    if not isinstance(sae, SAE):
        return sae.encode(x) != 0
    pre, rule = plain_pre(sae, x), sae.selection
    if isinstance(rule, TopK):
        ranks = pre.argsort(-1, descending=True).argsort(-1)
        return (ranks < rule.k) & ((pre > 0) if rule.relu else (pre != 0))
    if isinstance(rule, AbsTopK):
        return (pre.abs().argsort(-1, descending=True).argsort(-1) < rule.k) & (pre != 0)
    if isinstance(rule, JumpReLU):
        return (pre > rule.threshold) & (pre > 0)
    if isinstance(rule, Gated):
        u, _, _ = plain_normalized(sae, x)
        u = u - sae.b_dec if sae.subtract_b_dec else u
        return (u @ sae.W_enc.T + rule.b_gate > 0) & (pre > 0)
    return pre > 0


def plain_latents(sae: Coder, x: Tensor) -> Tensor:
    """Dense latents."""
    return torch.where(plain_active(sae, x), plain_pre(sae, x), 0.0)


def plain_decode(sae: Coder, latents: Tensor, x: Tensor) -> Tensor:
    """What latents write, at the input x they came from."""
    if not isinstance(sae, SAE):
        return sae.decode(latents, x)
    _, factor, added = plain_normalized(sae, x)
    out = (latents @ sae.W_dec + sae.b_dec) * factor + added
    return out if sae.W_skip is None else out + x @ sae.W_skip.T
