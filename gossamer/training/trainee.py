"""One SAE that is being trained: its weights, and the numbers that no gradient moves.

Activations come divided out: x is multiplied by `scale_in` and the target by `scale_out`, each the
square root of the width over the mean norm, so that rates and penalties mean the same at every
site. `folded` takes the scales into the weights again.

On a mesh of processes each holds the rows of its own latents, and everything else as all do. What a
process computes is then a part of the gradients, and `gather_gradients_` makes the whole of it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.distributed import Mesh


class Form(NamedTuple):
    """What a trainee is, beside its numbers."""

    is_autoencoder: bool
    """Whether it writes what it reads."""

    subtract_b_dec: bool
    """Whether it reads x - b_dec."""

    unit_decoder: bool
    """Whether its decoder rows have norm 1."""

    widths: tuple[int, ...]
    """Of the sites that it writes."""

    mesh: Mesh = Mesh()
    """Processes that train it together."""


@final
class Trainee(nn.Module):
    """Weights with the latent first, and what has to be remembered between steps."""

    silent_tokens: Tensor
    scale_in: Tensor
    scale_out: Tensor

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        extra: Mapping[str, Float[Tensor, " d_sae"]],
        estimates: Mapping[str, Float[Tensor, ""]],
        scales: tuple[Float64[Tensor, "..."], Float64[Tensor, "..."]],
        form: Form,
    ) -> None:
        """`weights` W_enc, b_enc, W_dec, b_dec and perhaps W_skip; `scales` of input and target,
        one for each of their columns where they are several sites."""
        super().__init__()
        self.W_enc = nn.Parameter(weights["W_enc"])
        self.b_enc = nn.Parameter(weights["b_enc"])
        self.W_dec = nn.Parameter(weights["W_dec"])
        self.b_dec = nn.Parameter(weights["b_dec"])
        skip = weights.get("W_skip")
        self.W_skip = None if skip is None else nn.Parameter(skip)
        own = {name: nn.Parameter(tensor.to(self.b_enc)) for name, tensor in extra.items()}
        self.extra = nn.ParameterDict(own)
        self.is_autoencoder = form.is_autoencoder
        self.subtract_b_dec = form.subtract_b_dec
        self.unit_decoder = form.unit_decoder
        self.widths = form.widths
        self.mesh = form.mesh
        # What is subtracted before encoding shares b_dec's numbers, but not its gradient: the
        # latents here give a part of that, while all of them give the rest.
        is_split = form.subtract_b_dec and form.mesh.tp > 1
        self.subtracted = self.b_dec.detach().requires_grad_() if is_split else None
        silent = torch.zeros(len(self.b_enc), dtype=torch.int64, device=self.b_enc.device)
        self.register_buffer("silent_tokens", silent)
        self.register_buffer("scale_in", scales[0])
        self.register_buffer("scale_out", scales[1])
        for name, tensor in estimates.items():
            self.register_buffer(name, tensor)

    @property
    def d_sae(self) -> int:
        """Number of latents, here and elsewhere."""
        return len(self.b_enc) * self.mesh.tp

    @property
    def latents(self) -> slice:
        """Which of them are here."""
        return self.mesh.latents(self.d_sae)

    @property
    def shift(self) -> Float[Tensor, " d_in"] | None:
        """What is taken from x before encoding: b_dec, or nothing."""
        whole = self.b_dec if self.subtract_b_dec else None
        return whole if self.subtracted is None else self.subtracted

    def by_latent(self) -> set[str]:
        """Names in `state_dict` of what has a row for each latent here."""
        own = {f"extra.{name}" for name in self.extra}
        return {"W_enc", "b_enc", "W_dec", "silent_tokens"} | own

    @property
    def unit(self) -> Float64[Tensor, ""]:
        """What latents shrink by in the model's units: the target's scale; 1 where there are
        several."""
        return self.scale_out if self.scale_out.ndim == 0 else self.scale_out.new_ones(())

    def decoder_norms(self) -> Float[Tensor, " d_sae"]:
        """Norm of each decoder row; of a crosscoder's, the sum of its norms at each site, so that
        a penalty tells latents of one site from those of several."""
        if not self.is_autoencoder or len(self.widths) == 1:
            return self.W_dec.norm(dim=1)
        parts = self.W_dec.split(list(self.widths), dim=1)
        return torch.stack([part.norm(dim=1) for part in parts]).sum(0)

    def moved_shift(self) -> Float[Tensor, "..."]:
        """Zeros that carry the gradient of `shift`, for what was computed without it."""
        shift = self.shift
        return self.b_dec.new_zeros(()) if shift is None else shift - shift.detach()

    def inputs(
        self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch d_in"], Tensor]:
        """(scaled x, what the encoder reads of it without gradient, scaled target)."""
        scaled = x.to(self.b_enc) * self.scale_in.to(self.b_enc)
        target = scaled if y is x else y.to(self.b_enc) * self.scale_out.to(self.b_enc)
        return scaled, scaled - self.b_dec.detach() if self.subtract_b_dec else scaled, target

    def output(
        self, decoded: Float[Tensor, "batch d_out"], x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """The reconstruction, from what the latents write."""
        y = decoded + self.b_dec
        return y if self.W_skip is None else y + F.linear(x, self.W_skip)

    @torch.no_grad()
    def gather_gradients_(self) -> None:
        """Add up what the tokens, and for b_dec the latents, of other processes give."""
        if self.subtracted is not None and self.subtracted.grad is not None:
            part = self.mesh.add_(self.subtracted.grad, "tp")
            self.b_dec.grad = part.clone() if self.b_dec.grad is None else self.b_dec.grad + part
            self.subtracted.grad = None
        for parameter in self.parameters():
            if parameter.grad is not None:
                self.mesh.add_(parameter.grad, "dp")

    @torch.no_grad()
    def gradient_norm(self) -> Float[Tensor, ""]:
        """The norm of the whole gradient."""
        here: list[Tensor] = []
        everywhere: list[Tensor] = []
        rows = self.by_latent()
        for name, parameter in self.named_parameters():
            if parameter.grad is not None:
                (here if name in rows else everywhere).append(parameter.grad)
        if self.mesh.tp == 1:
            return torch.nn.utils.get_total_norm([*here, *everywhere])
        squared = self.mesh.add_(torch.nn.utils.get_total_norm(here).square(), "tp")
        return (squared + torch.nn.utils.get_total_norm(everywhere).square()).sqrt()

    @torch.no_grad()
    def constrain_gradient_(self) -> None:
        """Where decoder rows have norm 1, remove the part of their gradient along themselves."""
        gradient = self.W_dec.grad
        if self.unit_decoder and gradient is not None:
            along = torch.bmm(gradient[:, None], self.W_dec[..., None])[:, 0]
            gradient.addcmul_(self.W_dec, along, value=-1)  # without a temporary of that size

    @torch.no_grad()
    def constrain_(self) -> None:
        """Where decoder rows have norm 1, bring them back there after a step."""
        if self.unit_decoder:
            norms = torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True)
            self.W_dec.div_(norms.clamp_(min=torch.finfo(norms.dtype).tiny))

    def dead(self, after_tokens: int) -> Int64[Tensor, " n_dead"]:
        """Latents that were not active on any of the last tokens."""
        return (self.silent_tokens >= after_tokens).nonzero()[:, 0]

    @torch.no_grad()
    def folded(self) -> dict[str, Any]:
        """Weights for activations as the model has them; latents are in the target's units.

        All latents shrink with the target, so rows of W_dec stay as they are, and an autoencoder's
        W_enc too. Where targets of several sites have scales of their own, latents keep the units
        of training.
        """
        s_in, s_out, unit = self.scale_in, self.scale_out, self.unit
        skip = None if self.W_skip is None else self.W_skip.double() * (s_in / s_out[..., None])
        folded = {
            "W_enc": self.W_enc.double() * (s_in / unit),
            "b_enc": self.b_enc.double() / unit,
            "W_dec": self.W_dec.double() * (unit / s_out),
            "b_dec": self.b_dec.double() / s_out,
            "W_skip": skip,
        }
        return {
            name: None if tensor is None else tensor.to(self.b_enc.dtype, copy=True)
            for name, tensor in folded.items()
        }
