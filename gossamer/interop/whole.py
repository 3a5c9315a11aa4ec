"""Whether the tensors of a foreign file make a whole SAE, and where its encoder's bias stands.

Some formats subtract b_dec from the input, others do not; both say the same with another b_enc:

    pre = gain (W_enc (u - b_dec)) + b_enc = gain (W_enc u) + (b_enc - gain (W_enc b_dec))
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gossamer.errors import FormatError, ShapeError
from gossamer.saes.native import as_wanted
from gossamer.saes.sae import SAE


def whole_tensors(
    contents: Mapping[str, Any],
    *,
    needed: Collection[str],
    beside: Collection[str] = (),
    where: Path,
) -> dict[str, Tensor]:
    """The tensors called `needed`, half precision as float32; those in `beside` are passed over.

    FormatError when one is missing or no tensor, when there is another, or when a name with
    "weight" or "W_" is no matrix.
    """
    missing = sorted(set(needed) - contents.keys())
    unknown = sorted(map(str, contents.keys() - set(needed) - set(beside)))
    if missing or unknown:
        raise FormatError(
            f"{where} should hold {', '.join(sorted(needed))}; missing: "
            f"{', '.join(missing) or 'none'}, unknown: {', '.join(unknown) or 'none'}: copy or "
            "download it again."
        )
    found: dict[str, Tensor] = {}
    for name in needed:
        tensor = contents[name]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise FormatError(
                f"{where} holds a {type(tensor).__name__} as {name} that is no tensor of real "
                "numbers; copy or download it again."
            )
        if ("weight" in name or "W_" in name) and tensor.ndim != 2:
            raise FormatError(
                f"{where} holds {name} of shape {tuple(tensor.shape)}, which is no matrix; copy or "
                "download it again."
            )
        found[name] = as_wanted(tensor, None)
    return found


def whole_sae(where: Path, **arguments: Any) -> SAE:
    """An SAE of these constructor arguments. FormatError when the parts do not fit each other."""
    try:
        return SAE(**arguments)
    except ShapeError as error:
        raise FormatError(f"{where} does not hold a whole SAE: {error}") from error


def moved_bias(
    bias: Float[Tensor, "..."],  # shapes are checked by SAE, in words
    *,
    W_enc: Float[Tensor, "..."],
    b_dec: Float[Tensor, "..."],
    gain: Float[Tensor, "..."] | None = None,
    subtract: bool,
) -> Tensor:
    """The encoder's bias once b_dec is subtracted from the input, or with `subtract=False` once it
    no longer is. Computed in float64, given in the dtype of `bias`."""
    if W_enc.shape != (*bias.shape, *b_dec.shape):
        raise FormatError(
            f"b_dec of shape {tuple(b_dec.shape)} cannot be taken from the input of an encoder "
            f"{tuple(W_enc.shape)} with a bias {tuple(bias.shape)}."
        )
    shift = W_enc.double() @ b_dec.double()
    shift = shift if gain is None else shift * gain.double()
    return (bias.double() + (shift if subtract else -shift)).to(bias.dtype)


def bias_as(sae: SAE, *, subtract: bool) -> Tensor:
    """b_enc of this SAE for a format that subtracts b_dec from the input, or that does not."""
    if sae.subtract_b_dec == subtract:
        return sae.b_enc
    gain = sae.selection.gain()
    return moved_bias(sae.b_enc, W_enc=sae.W_enc, b_dec=sae.b_dec, gain=gain, subtract=subtract)
