"""A sparse autoencoder or transcoder for inference, built from tensors.

    u = normalize(x) [- b_dec]
    pre = gain * (W_enc u) + b_enc
    latents = pre where the selection says so, else 0
    y = denormalize(latents W_dec + b_dec) [+ W_skip x]

The latent is the first axis of weights: W_enc[i] is what latent i reads, W_dec[i] what it writes.
Latents may write further sites too, later ones: W_later[i, j] is what latent i writes at the j-th
of them. So do those of a cross-layer transcoder, a set of transcoders, one for each layer; what its
members write at one site adds up (`gossamer.saes.sets`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ShapeError
from gossamer.kernels.sparse import SparseLatents, sparse_decode
from gossamer.saes.labels import Labels
from gossamer.saes.native import write_native
from gossamer.saes.normalization import (
    KINDS,
    Normalization,
    denormalize,
    normalize,
    output_scale,
    pull_back,
)
from gossamer.saes.selection import AbstractSelection
from gossamer.sites import is_before


@runtime_checkable
class SparseCoder(Protocol):
    """What a user's own SAE must have to be spliced into a model."""

    site_in: str
    site_out: str

    def encode(self, x: Any, /) -> Any:
        """Dense latents (*lead, d_sae) of activations (*lead, d_in)."""
        ...

    def decode(self, latents: Any, /, x: Any = None) -> Any:
        """What latents (*lead, d_sae) write at `site_out`, (*lead, d_out)."""
        ...


@final
class SAE(nn.Module):
    """Sparse autoencoder, or transcoder when `site_out` differs from `site_in`.

    The weights are constants: gradients flow to the inputs. The tensors are taken as they are, not
    copied, when their layout allows. Inputs are cast to the weights' dtype.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    W_skip: Tensor | None
    W_later: Tensor | None
    normalization: Normalization

    def __init__(  # noqa: PLR0913  one argument for each part that makes an SAE, all by name
        self,
        *,
        W_enc: Float[Tensor, "..."],  # shapes are checked below, in words
        b_enc: Float[Tensor, "..."],
        W_dec: Float[Tensor, "..."],
        b_dec: Float[Tensor, "..."],
        selection: AbstractSelection,
        site_in: str,
        site_out: str | None = None,
        W_skip: Float[Tensor, "..."] | None = None,
        W_later: Float[Tensor, "..."] | None = None,
        sites_later: Sequence[str] = (),
        subtract_b_dec: bool = False,
        normalization: str = "none",
        prepend_bos: bool | None = None,
        model_name: str | None = None,
        labels: Labels | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """W_enc (d_sae, d_in), b_enc (d_sae), W_dec (d_sae, d_out), b_dec (d_out).

        `site_out=None` means `site_in`. `W_skip` (d_out, d_in) acts on the raw input. `W_later`
        (d_sae, n_later, d_out) is what latents write at `sites_later`, each after `site_out`.
        `normalization` is one of "none", "center", "layer_norm", "rescale". `prepend_bos=None`: not
        known. `metadata` is anything else worth keeping, as JSON values. ShapeError when the parts
        do not fit.
        """
        super().__init__()
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "W_skip": W_skip}
        for name, tensor in tensors.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().contiguous())
        # As it is, however large: perhaps a part of a file of which only some rows are ever read.
        self.register_buffer("W_later", None if W_later is None else W_later.detach())
        self.selection = selection
        self.site_in = site_in
        self.site_out = site_in if site_out is None else site_out
        self.sites_later = tuple(sites_later)
        self.subtract_b_dec = subtract_b_dec
        self.normalization = cast(Normalization, normalization)
        self.prepend_bos = prepend_bos
        self.model_name = model_name
        self.labels = labels
        self.metadata = {} if metadata is None else metadata
        _check_shapes(self)
        _check_options(self)
        selection.check(self.d_sae)

    @property
    def d_in(self) -> int:
        """Width of the activation that is read."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the activation that is written."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[0]

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes another site than it reads."""
        return self.site_in != self.site_out

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights, and so of latents and outputs."""
        return self.W_enc.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc.device

    def pre_activations(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_sae"]:
        """What the selection chooses from; an active latent has its value and its derivative."""
        self._check_width(x)
        u = normalize(self.normalization, x.to(self.dtype))
        u = u - self.b_dec if self.subtract_b_dec else u
        gain = self.selection.gain()
        if gain is None:
            return F.linear(u, self.W_enc, self.b_enc)
        return F.linear(u, self.W_enc) * gain + self.b_enc

    def activate(self, pre: Float[Tensor, "*lead d_sae"]) -> Float[Tensor, "*lead d_sae"]:
        """Dense latents from pre-activations, zero where not active."""
        return torch.where(self.selection.active(pre, self.b_enc), pre, 0)

    def encode(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_sae"]:
        """Dense latents, zero where not active."""
        return self.activate(self.pre_activations(x))

    def encode_sparse(self, x: Float[Tensor, "*lead d_in"]) -> SparseLatents:
        """The same latents, active ones only."""
        return self.selection.sparse(self.pre_activations(x), self.b_enc)

    def decode(
        self,
        latents: Float[Tensor, "*lead d_sae"] | SparseLatents,
        x: Float[Tensor, "*lead d_in"] | None = None,
    ) -> Float[Tensor, "*lead d_out"]:
        """What the latents write at `site_out`.

        `x`, the input that they came from, is needed with a normalization or a skip connection.
        """
        y = self._decoded(latents) + self.b_dec
        if self.normalization == "none" and self.W_skip is None:
            return y
        x = self._needed(x, "decode").to(self.dtype)
        y = denormalize(self.normalization, y, x)
        return y if self.W_skip is None else y + F.linear(x, self.W_skip)

    def forward(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_out"]:
        """The reconstruction of x, or what a transcoder predicts at `site_out`."""
        return self.decode(self.encode(x), x)

    def read_rows(
        self, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"] | None = None
    ) -> Float[Tensor, "n d_in"]:
        """Gradient of the pre-activation of latent indices[i] by its token's input, at x[i].

        `x` is needed for the normalizations that are not linear, "layer_norm" and "rescale".
        """
        gain = self.selection.gain()
        rows = self.W_enc[indices]
        rows = rows if gain is None else rows * gain[indices, None]
        if self.normalization in ("none", "center"):
            return pull_back(self.normalization, rows, rows)  # linear: the same at every point
        return pull_back(self.normalization, rows, self._needed(x, "read_rows").to(self.dtype))

    def write_rows(
        self, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"] | None = None
    ) -> Float[Tensor, "n d_out"]:
        """Derivative of the output by latent indices[i], the token's input x[i] held.

        `x` is needed for the normalizations that scale the output, "layer_norm" and "rescale".
        """
        rows = self.W_dec[indices]
        if self.normalization in ("none", "center"):
            return rows
        x = self._needed(x, "write_rows").to(self.dtype)
        return rows * output_scale(self.normalization, x)

    def weight_at(self, site: str) -> Float[Tensor, "d_sae d_out"]:
        """What latents write at a site: W_dec at `site_out`, its part of W_later at a later one."""
        if site == self.site_out:
            return self.W_dec
        if self.W_later is None or site not in self.sites_later:
            raise ShapeError(
                f"This SAE writes {', '.join((self.site_out, *self.sites_later))}, not {site}."
            )
        return self.W_later[:, self.sites_later.index(site)]

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments: `SAE(**sae.arguments())` is the same SAE again."""
        names = (
            "W_enc b_enc W_dec b_dec W_skip W_later selection site_in site_out sites_later "
            "subtract_b_dec normalization prepend_bos model_name labels metadata"
        )
        return {name: getattr(self, name) for name in names.split()}

    def save(self, directory: str | Path) -> None:
        """Write it as sae.safetensors, sae.json and, with labels, labels.json.gz."""
        write_native(self.arguments(), directory)

    def extra_repr(self) -> str:
        """The widths and sites, for torch's repr."""
        widths = f"d_in={self.d_in}, d_out={self.d_out}, d_sae={self.d_sae}"
        return f"{self.site_in} -> {self.site_out}, {widths}, normalization={self.normalization}"

    def _decoded(
        self, latents: Float[Tensor, "*lead d_sae"] | SparseLatents
    ) -> Float[Tensor, "*lead d_out"]:
        width = latents.d_sae if isinstance(latents, SparseLatents) else latents.shape[-1]
        if width != self.d_sae:
            raise ShapeError(
                f"This SAE has {self.d_sae} latents, got latents of width {width}; "
                "decode what its own encode gave, or latents of that width."
            )
        if isinstance(latents, Tensor):
            return latents @ self.W_dec
        y = sparse_decode(latents.values, latents.indices, latents.offsets, self.W_dec)
        return y.reshape(*latents.shape, self.d_out)

    def _check_width(self, x: Tensor) -> None:  # any tensor: the shape is what is in question
        if x.shape[-1] != self.d_in:
            raise ShapeError(
                f"This SAE reads activations of width {self.d_in} at {self.site_in}, got shape "
                f"{tuple(x.shape)}; give it activations of that site, width last."
            )

    def _needed(self, x: Tensor | None, method: str) -> Tensor:
        if x is None:
            scaled = f"a normalization ({self.normalization})"
            raise ShapeError(
                f"This SAE has {'a skip connection' if self.normalization == 'none' else scaled}, "
                f"so {method} needs the input that the latents came from: write {method}(..., x)."
            )
        self._check_width(x)
        return x


def _check_shapes(sae: SAE) -> None:
    if sae.W_enc.ndim != 2 or sae.W_dec.ndim != 2:
        raise ShapeError(
            "An SAE needs W_enc (d_sae, d_in) and W_dec (d_sae, d_out), the latent first, got "
            f"W_enc {tuple(sae.W_enc.shape)} and W_dec {tuple(sae.W_dec.shape)}."
        )
    if (sae.W_later is None) == bool(sae.sites_later):
        raise ShapeError(
            "W_later and sites_later are given together, got "
            f"{'no W_later' if sae.W_later is None else 'W_later'} and sites_later "
            f"{', '.join(sae.sites_later) or 'empty'}."
        )
    d_sae, d_in = sae.W_enc.shape
    d_out = sae.W_dec.shape[1]
    expected = {
        "b_enc": (d_sae,),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_in),
        "W_later": (d_sae, len(sae.sites_later), d_out),
    }
    for name, shape in expected.items():
        tensor = getattr(sae, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(
                f"With W_enc ({d_sae}, {d_in}) and W_dec of width {d_out}, {name} must have shape "
                f"{shape}, got {tuple(tensor.shape)}; weights are stored with the latent first."
            )
    if len({buffer.dtype for buffer in sae.buffers()}) > 1:
        found = ", ".join(f"{name} {buffer.dtype}" for name, buffer in sae.named_buffers())
        raise ShapeError(f"All tensors of an SAE need one dtype, got {found}; cast them first.")


def _check_options(sae: SAE) -> None:
    if sae.normalization not in KINDS:
        raise ShapeError(
            f'An SAE\'s normalization is one of {", ".join(KINDS)}, got "{sae.normalization}".'
        )
    if not sae.is_transcoder and sae.d_in != sae.d_out:
        raise ShapeError(
            f"An SAE that reads and writes {sae.site_in} needs one width, got d_in={sae.d_in} and "
            f"d_out={sae.d_out}; give site_out for a transcoder."
        )
    if sae.subtract_b_dec and sae.is_transcoder:
        raise ShapeError(
            "subtract_b_dec takes the output's bias from the input, so both must be one site, got "
            f"{sae.site_in} and {sae.site_out}; fold the bias into b_enc instead."
        )
    _check_later(sae)
    if sae.normalization == "center" and sae.is_transcoder:
        raise ShapeError(
            "center adds the input's mean to the output, so both must be one site, got "
            f"{sae.site_in} and {sae.site_out}; subtract the mean of each row of W_enc instead."
        )
    if sae.labels is not None and len(sae.labels) != sae.d_sae:
        raise ShapeError(f"This SAE has {sae.d_sae} latents, got labels of {len(sae.labels)}.")


def _check_later(sae: SAE) -> None:
    later = sae.sites_later
    if len({sae.site_out, *later}) <= len(later) or any(is_before(s, sae.site_out) for s in later):
        raise ShapeError(
            f"sites_later are different sites after {sae.site_out}, got {', '.join(later)}."
        )
    if later and (sae.normalization != "none" or not sae.is_transcoder):
        raise ShapeError(
            "An SAE that writes later sites is a transcoder without normalization, got one from "
            f"{sae.site_in} to {sae.site_out} with {sae.normalization}."
        )
