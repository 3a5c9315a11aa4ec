"""Crosscoders: one set of latents for several sites.

    pre = Σ_s W_enc^s (x^s [- b_dec^s]) + b_enc        latents = pre where active, else 0
    y^s = latents W_dec^s + b_dec^s [+ W_skip^s x]

(Lindsey et al. 2024, transformer-circuits.pub/2024/crosscoders). A crosscoder writes the sites that
it reads. One that reads a single site and writes several later ones is a row of a cross-layer
transcoder (Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs/methods.html): as
many transcoders as it writes sites, which share an encoder.

With the sites side by side both are an `SAE`, `joint`, and that is how they are computed. Spliced
into a run, a crosscoder is a `Face` at each of its sites, because some of what its latents are made
of comes later than some of what they write: they are those of the clean run. A latent is one at all
of them: any of the sites names it where something is asked, and the first one in what is answered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gossamer.errors import FormatError, GossamerError, ShapeError
from gossamer.kernels.sparse import SparseLatents
from gossamer.saes.native import read_header, read_native, write_native
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.selection import AbstractSelection
from gossamer.sites import parse_site

BETWEEN = "+"
"""What stands between sites in the name of several."""


@final
class Crosscoder(nn.Module):
    """Latents that several sites share; weights are constants, gradients flow to the inputs."""

    joint: SAE

    def __init__(
        self,
        *,
        W_enc: Mapping[str, Float[Tensor, "..."]],
        b_enc: Float[Tensor, "..."],
        W_dec: Mapping[str, Float[Tensor, "..."]],
        b_dec: Mapping[str, Float[Tensor, "..."]],
        selection: AbstractSelection,
        W_skip: Mapping[str, Float[Tensor, "..."]] | None = None,
        subtract_b_dec: bool = False,
        **options: Any,
    ) -> None:
        """By site that is read W_enc (d_sae, width); by site that is written W_dec (d_sae, width)
        and b_dec (width), and with one site that is read perhaps W_skip (width, d_in).

        `options` are prepend_bos, model_name, labels and metadata, as an SAE has them. ShapeError
        when the parts do not fit.
        """
        super().__init__()
        self.reads = {site: tensor.shape[-1] for site, tensor in W_enc.items()}
        self.writes = {site: tensor.shape[-1] for site, tensor in W_dec.items()}
        _check_sites(self.reads, self.writes, set(b_dec), W_skip)
        self.joint = SAE(
            W_enc=torch.cat([*W_enc.values()], dim=1),
            b_enc=b_enc,
            W_dec=torch.cat([*W_dec.values()], dim=1),
            b_dec=torch.cat([b_dec[site] for site in W_dec]),
            W_skip=None if W_skip is None else torch.cat([W_skip[site] for site in W_dec]),
            selection=selection,
            site_in=BETWEEN.join(self.reads),
            site_out=BETWEEN.join(self.writes),
            subtract_b_dec=subtract_b_dec,
            **options,
        )

    @classmethod
    def of_joint(
        cls, joint: SAE, reads: Mapping[str, int], writes: Mapping[str, int]
    ) -> "Crosscoder":
        """From an SAE over sites side by side, and their widths."""
        widths, outputs = [*reads.values()], [*writes.values()]
        sizes = (sum(widths), sum(outputs))
        if (joint.d_in, joint.d_out) != sizes:
            raise ShapeError(
                f"Sites of widths {widths} and {outputs} need W_enc and W_dec of widths {sizes}, "
                f"got {(joint.d_in, joint.d_out)}."
            )
        given = joint.arguments()
        del given["site_in"], given["site_out"], given["normalization"]
        skip = given.pop("W_skip")
        given["W_enc"] = dict(zip(reads, joint.W_enc.split(widths, 1), strict=True))
        given["W_dec"] = dict(zip(writes, joint.W_dec.split(outputs, 1), strict=True))
        given["b_dec"] = dict(zip(writes, joint.b_dec.split(outputs), strict=True))
        if skip is not None:
            given["W_skip"] = dict(zip(writes, skip.split(outputs), strict=True))
        return cls(**given)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.joint.d_sae

    @property
    def metadata(self) -> dict[str, Any]:
        """What else is known."""
        return self.joint.metadata

    def side_by_side(self, x: Mapping[str, Float[Tensor, "..."]]) -> Float[Tensor, "*lead d_in"]:
        """What `joint` reads, from activations (*lead, width) by site."""
        missing = [site for site in self.reads if site not in x]
        if missing:
            raise ShapeError(
                f"This crosscoder reads {', '.join(self.reads)}; give {', '.join(missing)} as well."
            )
        return torch.cat([x[site] for site in self.reads], dim=-1)

    def encode(self, x: Mapping[str, Float[Tensor, "..."]]) -> Float[Tensor, "*lead d_sae"]:
        """Dense latents of activations (*lead, width) by site; zero where not active."""
        return self.joint.encode(self.side_by_side(x))

    def encode_sparse(self, x: Mapping[str, Float[Tensor, "..."]]) -> SparseLatents:
        """The same latents, active ones only."""
        return self.joint.encode_sparse(self.side_by_side(x))

    def decode(
        self,
        latents: Float[Tensor, "*lead d_sae"] | SparseLatents,
        x: Mapping[str, Float[Tensor, "..."]] | None = None,
    ) -> dict[str, Float[Tensor, "..."]]:
        """What the latents write, (*lead, width) by site. `x` is needed with a skip connection."""
        y = self.joint.decode(latents, None if x is None else self.side_by_side(x))
        return dict(zip(self.writes, y.split([*self.writes.values()], -1), strict=True))

    def forward(self, x: Mapping[str, Float[Tensor, "..."]]) -> dict[str, Float[Tensor, "..."]]:
        """What it makes of activations, by site that is written."""
        return self.decode(self.encode(x), x)

    def relative_norms(self) -> Float[Tensor, "d_sae n_sites"]:
        """‖W_dec^s,i‖ / Σ_t ‖W_dec^t,i‖: how much of latent i belongs to each written site.

        Sites are brought to one size first, by what training has left in metadata["scales"].
        """
        scales = self.metadata.get("scales", {})
        parts = self.joint.W_dec.split([*self.writes.values()], 1)
        sizes = [scales.get(site, 1.0) for site in self.writes]
        pairs = zip(parts, sizes, strict=True)
        norms = torch.stack([part.norm(dim=1) * size for part, size in pairs], dim=1)
        return norms / norms.sum(1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)

    def faces(self) -> "dict[str, SAE | Face]":
        """What stands at each site that is written: transcoders where one site is read."""
        if len(self.reads) > 1:
            return {site: Face(self, site) for site in self.writes}
        given: dict[str, Any] = {**self.joint.arguments(), "site_in": next(iter(self.reads))}
        skip = self.joint.W_skip
        found: dict[str, SAE | Face] = {}
        for site, columns in self.columns().items():
            given["W_dec"], given["b_dec"] = self.joint.W_dec[:, columns], self.joint.b_dec[columns]
            given["W_skip"] = None if skip is None else skip[columns]
            found[site] = SAE(**{**given, "site_out": site})
        return found

    def columns(self) -> dict[str, slice]:
        """Where each written site stands in `joint`."""
        found, start = {}, 0
        for site, width in self.writes.items():
            found[site] = slice(start, start + width)
            start += width
        return found

    def save(self, directory: str | Path) -> None:
        """Write it as an SAE is written, with the widths of its sites in the header."""
        parts = {"reads": dict(self.reads), "writes": dict(self.writes)}
        write_native(self.joint.arguments(), directory, parts)


@final
class Face:
    """A crosscoder at one of the sites that it writes, as a run splices it."""

    def __init__(
        self,
        crosscoder: Crosscoder,
        site: str,
        latents: Float[Tensor, "*lead d_sae"] | None = None,
    ) -> None:
        """`latents`: those of the clean run, once they are known."""
        self.crosscoder = crosscoder
        self.site_in = self.site_out = site
        self.latents = latents
        self.prepend_bos = crosscoder.joint.prepend_bos
        self.labels = crosscoder.joint.labels
        self.d_in = self.d_out = crosscoder.writes[site]

    def is_of(self, other: "Face") -> bool:
        """Whether both are of one crosscoder."""
        return self.crosscoder is other.crosscoder

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        """What latents write at this site."""
        return self.crosscoder.joint.W_dec[:, self.crosscoder.columns()[self.site_out]]

    @property
    def b_dec(self) -> Float[Tensor, " d_out"]:
        """The bias at this site."""
        return self.crosscoder.joint.b_dec[self.crosscoder.columns()[self.site_out]]

    def encode(self, x: Float[Tensor, "*lead d_in"], /) -> Float[Tensor, "*lead d_sae"]:
        """The latents that it holds, whatever is at this one site."""
        if self.latents is None or self.latents.shape[:-1] != x.shape[:-1]:
            raise _only_spliced(self)
        return self.latents

    def decode(
        self, latents: Float[Tensor, "*lead d_sae"], /, x: Any = None
    ) -> Float[Tensor, "*lead d_out"]:
        """What latents write at this site."""
        return latents @ self.W_dec + self.b_dec


def spliced_parts(saes: Sequence[Any], *, faces: bool) -> list[Any]:
    """The members, each crosscoder as what stands at its sites. GossamerError for one of several
    sites where `faces` says that it cannot be used."""
    found = [
        part
        for sae in saes
        for part in (sae.faces().values() if isinstance(sae, Crosscoder) else (sae,))
    ]
    for part in found:
        if isinstance(part, Face) and not faces:
            raise _only_spliced(part)
    return found


def parts_at(site: str, saes: Mapping[str, SparseCoder]) -> tuple[SparseCoder, ...]:
    """The SAE that writes `site`, one of `saes`; of a crosscoder all its faces among them, in
    forward order. The first of them gives its latents their name."""
    sae = saes[site]
    if not isinstance(sae, Face):
        return (sae,)
    faces = [each for each in saes.values() if isinstance(each, Face) and each.is_of(sae)]
    return tuple(sorted(faces, key=lambda face: parse_site(face.site_out).order))


def sites_read(sae: SparseCoder) -> tuple[str, ...]:
    """The sites from which latents come: `site_in`, or all those of a crosscoder."""
    return tuple(sae.crosscoder.reads) if isinstance(sae, Face) else (sae.site_in,)


def reader(sae: SparseCoder) -> SparseCoder:
    """What encodes, from that which `sites_read` names, side by side."""
    return sae.crosscoder.joint if isinstance(sae, Face) else sae


def read_by(sae: SparseCoder, at: Callable[[str], Tensor]) -> Float[Tensor, "*lead d_in"]:
    """What an SAE reads, a crosscoder's sites side by side; `at` gives the value at a site."""
    parts = [at(site) for site in sites_read(sae)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def encode_read(sae: SparseCoder, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_sae"]:
    """Latents of what `sites_read` names, side by side."""
    return reader(sae).encode(x)


def held(
    saes: Mapping[str, SparseCoder], values: Mapping[str, Float[Tensor, "..."]]
) -> dict[str, SparseCoder]:
    """The SAEs, those of a crosscoder with its latents at these values of its sites; each of its
    sites writes the same latents, and they are leaves of the graph of gradients."""
    made: dict[int, Tensor] = {}
    found = dict(saes)
    for site, sae in saes.items():
        if isinstance(sae, Face):
            whole = sae.crosscoder
            if id(whole) not in made:
                latents = whole.encode(values).detach()
                made[id(whole)] = latents.requires_grad_(torch.is_grad_enabled())
            found[site] = Face(whole, site, made[id(whole)])
    return found


def shared_edits(edits: Sequence[Any], saes: Mapping[str, SparseCoder]) -> list[Any]:
    """The edits, those of a crosscoder's latents at all sites that are spliced of it: a latent is
    one, wherever it is named."""
    found = []
    for edit in edits:
        face = None if edit.latents is None else saes.get(edit.at)
        sites = [edit.at]
        if isinstance(face, Face):
            sites = [
                site for site, sae in saes.items() if isinstance(sae, Face) and sae.is_of(face)
            ]
        found += [edit if site == edit.at else replace(edit, at=site) for site in sites]
    return found


def is_crosscoder(directory: str | Path) -> bool:
    """Whether a directory in the native format holds a crosscoder."""
    return "reads" in read_header(Path(directory))


def load_crosscoder(directory: str | Path, dtype: torch.dtype | None = None) -> Crosscoder:
    """The crosscoder that was saved in a directory; `dtype` as `load_native` takes it.

    FormatError when a file is missing, damaged, of another version, or holds a plain SAE.
    """
    header = read_header(Path(directory))
    if "reads" not in header:
        raise FormatError(f"{directory} holds an SAE of one site; load it with load_sae.")
    try:
        return Crosscoder.of_joint(
            SAE(**read_native(directory, dtype)), header["reads"], header["writes"]
        )
    except (ShapeError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"The files of the crosscoder in {directory} do not fit each other ({error}); save it "
            "again, or copy it anew."
        ) from error


def _only_spliced(face: Face) -> GossamerError:
    return GossamerError(
        f"The latents at {face.site_out} are of a crosscoder that reads "
        f"{', '.join(face.crosscoder.reads)} at once, some of them later than what it writes, so "
        "that they are those of a clean run beforehand; gossamer.run, evaluate, edges, attribute, "
        "verify and dashboard take it, and this takes SAEs and transcoders."
    )


def _check_sites(
    reads: Mapping[str, int],
    writes: Mapping[str, int],
    biased: set[str],
    W_skip: Mapping[str, Any] | None,
) -> None:
    """ShapeError for sites that make no crosscoder."""
    if set(writes) != biased or (W_skip is not None and set(writes) != set(W_skip)):
        raise ShapeError(
            f"W_dec, b_dec and W_skip are given for the same sites, got {', '.join(writes)} and "
            f"{', '.join(sorted(biased if W_skip is None else biased | set(W_skip)))}."
        )
    if len(reads) > 1 and dict(reads) != dict(writes):
        raise ShapeError(
            "A crosscoder writes the sites that it reads, in their order and widths, got "
            f"{reads} and {writes}; one that writes others reads a single site."
        )
    if len(writes) < 2:
        raise ShapeError(
            f"A crosscoder writes at least two sites, got {', '.join(writes) or 'none'}; for one "
            "take an SAE."
        )
    if len(reads) > 1 and W_skip is not None:
        raise ShapeError("A skip connection is for what reads one site and writes others.")
