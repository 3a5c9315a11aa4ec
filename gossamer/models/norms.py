"""LayerNorm and RMSNorm in two visible steps, the scale and the normalised value.

    LayerNorm: c = x − mean(x), scale = √(mean(c²) + ε), normalised = c / scale, out =
    normalised·gain + bias
    RMSNorm:   scale = √(mean(x²) + ε), normalised = x / scale, out = normalised·(offset + gain)

With the scale held constant both are linear (up to the bias), which is what holding norms means.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` in float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def visited_norm(
    module: Any,  # an nn.LayerNorm, or a family's own RMSNorm
    x: Float[Tensor, "*lead width"],
    gain_offset: float,
    visit: Callable[[str, Tensor], Tensor],
) -> Float[Tensor, "*lead width"]:
    """What `module` computes from `x`, with `visit` called at "hook_scale" and "hook_normalized".

    Computed in float32 at least, and in float64 for a float64 model, where transformers' own
    RMSNorms round through float32.
    """
    wide = at_least_float32(x)
    if isinstance(module, nn.LayerNorm):
        eps = module.eps
        wide = wide - wide.mean(-1, keepdim=True)
    else:
        llamas = hasattr(module, "variance_epsilon")  # its name in most families; Gemma's is eps
        eps = module.variance_epsilon if llamas else module.eps
    scale = visit("hook_scale", (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt())
    normalized = visit("hook_normalized", (wide / scale).to(x.dtype))
    out = normalized * (gain_offset + module.weight)
    bias = getattr(module, "bias", None)
    return out if bias is None else out + bias
