"""The MLP of a block as plain tensors, and the slopes of its hidden units.

    plain    y = W_out φ(W_in x + b_in) + b_out
    gated    y = W_out (φ(W_gate x + b_gate) ⊙ (W_in x + b_in)) + b_out

An MLP is linear but for its hidden units, so at a point its derivative is

    ∂y/∂x = W_out Σ_way diag(slopes_way) W_way

with one way into the hidden units of a plain MLP (W_in; slope φ') and two of a gated one (W_gate;
φ' ⊙ the linear branch, and W_in; φ).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ShapeError
from gossamer.models.taps import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class MLP:
    """Weights with the hidden unit first on the way in and last on the way out."""

    W_in: Float[Tensor, "d_mlp d_in"]
    """Into the hidden units; in a gated MLP the linear branch."""

    W_out: Float[Tensor, "d_out d_mlp"]
    """Out of them."""

    activation: Callable[[Tensor], Tensor]
    """φ, any function that acts on each number by itself."""

    W_gate: Float[Tensor, "d_mlp d_in"] | None = None
    """The branch that goes through φ in a gated MLP; None for a plain one."""

    b_in: Float[Tensor, " d_mlp"] | None = None
    """Added to W_in x."""

    b_gate: Float[Tensor, " d_mlp"] | None = None
    """Added to W_gate x."""

    b_out: Float[Tensor, " d_out"] | None = None
    """Added to the output."""

    def __post_init__(self) -> None:
        d_mlp = self.W_in.shape[0]
        if self.W_out.shape[1] != d_mlp or (
            self.W_gate is not None and self.W_gate.shape != self.W_in.shape
        ):
            gate = "" if self.W_gate is None else f" and W_gate {tuple(self.W_gate.shape)}"
            raise ShapeError(
                "An MLP needs W_in (d_mlp, d_in), W_out (d_out, d_mlp) and, when gated, W_gate of "
                f"W_in's shape, got W_in {tuple(self.W_in.shape)}, W_out "
                f"{tuple(self.W_out.shape)}{gate}."
            )

    @property
    def d_mlp(self) -> int:
        """Hidden units."""
        return self.W_in.shape[0]

    @property
    def ways(self) -> tuple[Float[Tensor, "d_mlp d_in"], ...]:
        """The matrices into the hidden units, in the order of `slopes`."""
        return (self.W_in,) if self.W_gate is None else (self.W_gate, self.W_in)

    def __call__(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_out"]:
        """What the MLP writes."""
        hidden = F.linear(x, self.W_in, self.b_in)
        if self.W_gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(F.linear(x, self.W_gate, self.b_gate)) * hidden
        return F.linear(hidden, self.W_out, self.b_out)

    def slopes(self, x: Float[Tensor, "*lead d_in"]) -> tuple[Float[Tensor, "*lead d_mlp"], ...]:
        """For each way, the derivative of a hidden unit by what comes in on it; constants."""
        linear = F.linear(x, self.W_in, self.b_in).detach()
        if self.W_gate is None:
            return (value_and_slope(self.activation, linear)[1],)
        value, slope = value_and_slope(self.activation, F.linear(x, self.W_gate, self.b_gate))
        return slope * linear, value


def value_and_slope(
    activation: Callable[[Tensor], Tensor], pre: Float[Tensor, "*lead d_mlp"]
) -> tuple[Float[Tensor, "*lead d_mlp"], Float[Tensor, "*lead d_mlp"]]:
    """φ(pre) and φ'(pre), without gradient."""
    with torch.enable_grad():
        point = pre.detach().requires_grad_()
        value = activation(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), slope


def mlp_of(layout: Layout, layer: int) -> MLP:
    """The MLP of one block."""
    paths = layout.adapter.mlp
    first = _weights(layout.part(layer, paths.pre))
    W_out, b_out = _weights(layout.part(layer, paths.down))
    activation = layout.part(layer, paths.activation)
    if paths.pre_linear is None:
        W_in, b_in = first
        return MLP(W_in=W_in, b_in=b_in, W_out=W_out, b_out=b_out, activation=activation)
    W_in, b_in = _weights(layout.part(layer, paths.pre_linear))
    return MLP(
        W_in=W_in,
        b_in=b_in,
        W_gate=first[0],
        b_gate=first[1],
        W_out=W_out,
        b_out=b_out,
        activation=activation,
    )


def _weights(module: nn.Module) -> tuple[Float[Tensor, "d_out d_in"], Tensor | None]:
    """Matrix (out, in) and bias of a projection; transformers' Conv1D has it the other way."""
    weight = module.get_parameter("weight").detach()
    bias = getattr(module, "bias", None)
    return (
        weight if isinstance(module, nn.Linear) else weight.T,
        None if bias is None else bias.detach(),
    )
