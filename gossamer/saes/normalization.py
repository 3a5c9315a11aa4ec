"""What some SAEs do to each token before encoding, undone after decoding.

    none         u = x                             y
    center       u = x - mean(x)                   y + mean(x)
    layer_norm   u = (x - mean(x)) / (s + 1e-5)    y * s + mean(x)       s = unbiased std(x)
    rescale      u = x * sqrt(d_in) / |x|          y * |x| / sqrt(d_in)

`center` serves SAEs trained on models whose writing weights had been centred, run on models whose
weights were not.
"""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

Normalization = Literal["none", "center", "layer_norm", "rescale"]

KINDS: tuple[Normalization, ...] = get_args(Normalization)
"""The kinds there are."""

EPSILON = 1e-5
"""Added to the standard deviation on the way in, not on the way out (as SAELens and OpenAI do)."""


def normalize(kind: Normalization, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_in"]:
    """What the encoder sees of x."""
    match kind:
        case "none":
            return x
        case "center":
            return x - x.mean(-1, keepdim=True)
        case "layer_norm":
            return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPSILON)
        case "rescale":
            return x * x.shape[-1] ** 0.5 / x.norm(dim=-1, keepdim=True)


def denormalize(
    kind: Normalization, y: Float[Tensor, "*lead d_out"], x: Float[Tensor, "*lead d_in"]
) -> Float[Tensor, "*lead d_out"]:
    """The output in the units of the site, from the decoder's output y and the token's input x."""
    match kind:
        case "none":
            return y
        case "center":
            return y + x.mean(-1, keepdim=True)
        case "layer_norm":
            return y * output_scale(kind, x) + x.mean(-1, keepdim=True)
        case "rescale":
            return y * output_scale(kind, x)


def output_scale(kind: Normalization, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead 1"]:
    """What `denormalize` multiplies the decoder's output by, for each token."""
    match kind:
        case "layer_norm":
            return x.std(-1, keepdim=True)
        case "rescale":
            return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        case _:
            return x.new_ones(*x.shape[:-1], 1)


def pull_back(
    kind: Normalization, rows: Float[Tensor, "n d_in"], x: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n d_in"]:
    """rows[i] times the Jacobian of `normalize` at x[i]: a gradient by u as a gradient by x."""
    match kind:
        case "none":
            return rows
        case "center":
            return rows - rows.mean(-1, keepdim=True)
        case "layer_norm":
            centred = x - x.mean(-1, keepdim=True)
            s = x.std(-1, keepdim=True)
            along = (centred * rows).sum(-1, keepdim=True) / ((x.shape[-1] - 1) * s * (s + EPSILON))
            pulled = (rows - along * centred) / (s + EPSILON)
            return pulled - pulled.mean(-1, keepdim=True)
        case "rescale":
            length = x.norm(dim=-1, keepdim=True)
            unit = x / length
            along = (unit * rows).sum(-1, keepdim=True)
            return (rows - along * unit) * x.shape[-1] ** 0.5 / length
