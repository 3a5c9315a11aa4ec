"""Sets of SAEs: keyed by the site each one writes, and what several write at one site together.

A *cross-layer transcoder* (Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs/
methods.html) is a set of transcoders, one for each layer, whose latents write at their own layer's
site and at those of all later layers. With f_i the latents of layer i and one bias at each site,

    y_m = b_dec_m + Σ_{i ≤ m} f_i W_dec^{i→m}  [+ x_m W_skip_m^T]

Its member of layer i is an `SAE` with W_later, which is the writer of its first site: latents and
errors there have its name. So what is spliced at a site is made by its own SAE and by those before.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.errors import GossamerError, SiteError
from gossamer.saes.crosscoder import spliced_parts
from gossamer.saes.rows import write_rows
from gossamer.saes.sae import SAE, SparseCoder


def as_saes(saes: Any, *, faces: bool = False, later: bool = False) -> dict[str, SparseCoder]:
    """None, one SAE, a sequence of SAEs or a mapping, as a dictionary keyed by the site each one
    writes. `faces`: whether crosscoders of several sites can be used, one `Face` at each; `later`:
    whether cross-layer transcoders can."""
    if saes is None:
        return {}
    members: list[Any] = [saes]
    if isinstance(saes, Mapping):
        members = list(saes.values())
    elif isinstance(saes, Iterable) and not isinstance(saes, str | SparseCoder):
        members = list(saes)
    keyed: dict[str, SparseCoder] = {}
    for sae in spliced_parts(members, faces=faces):
        if not isinstance(sae, SparseCoder):
            raise GossamerError(
                f"An SAE has site_in, site_out, encode and decode, got {str(sae)[:40]!r} of type "
                f"{type(sae).__name__}. Load SAEs by name with load_sae or load_saes."
            )
        if sae.site_out in keyed:
            raise SiteError(f"Two SAEs write {sae.site_out}. Splice one of them at a time.")
        keyed[sae.site_out] = sae
    _check_later(keyed, later)
    return keyed


def _check_later(saes: Mapping[str, SparseCoder], later: bool) -> None:
    """Refuse what writes later sites where that cannot be used, or where nothing gathers it."""
    for site, sae in saes.items():
        others = sites_later(sae)
        if others and not later:
            raise GossamerError(
                f"The SAE at {site} is of a cross-layer transcoder and writes {', '.join(others)} "
                "too; gossamer.run, evaluate, edges, attribute and verify take it, and this takes "
                "SAEs that write one site."
            )
        missing = [other for other in others if other not in saes]
        if missing:
            raise SiteError(
                f"The SAE at {site} writes {', '.join(missing)} too, where none of the SAEs passed "
                "stands. Pass the whole cross-layer transcoder, as load_saes gives it."
            )


def sites_later(sae: SparseCoder) -> tuple[str, ...]:
    """The sites beside `site_out` that an SAE's latents write."""
    return sae.sites_later if isinstance(sae, SAE) else ()


def earlier(saes: Mapping[str, SparseCoder], site: str) -> list[SAE]:
    """The SAEs whose latents write a site that is not their own."""
    return [sae for sae in saes.values() if isinstance(sae, SAE) and site in sae.sites_later]


def decoded(
    saes: Mapping[str, SparseCoder],
    site: str,
    latents: Mapping[str, Float[Tensor, "..."]],
    x: Float[Tensor, "*lead d_in"],
) -> Float[Tensor, "*lead d_out"]:
    """What is written at a site in all: by its own SAE, which reads x, and by those from before;
    of `latents` (*lead, d_sae), by the site of their SAE."""
    y = saes[site].decode(latents[site], x)
    for sae in earlier(saes, site):
        y = y + latents[sae.site_out] @ sae.weight_at(site)
    return y


def rows_written(
    sae: SparseCoder, indices: Int64[Tensor, " n"], x: Float[Tensor, "n d_in"]
) -> dict[str, Float[Tensor, "n d_out"]]:
    """What latent indices[i] writes per unit of activation, its input x[i] held, by site; its
    `site_out` first, then later ones."""
    rows = {sae.site_out: write_rows(sae, indices, x)}
    if isinstance(sae, SAE):
        rows |= {site: sae.weight_at(site)[indices] for site in sae.sites_later}
    return rows


def alone(sae: SparseCoder) -> dict[str, SparseCoder]:
    """An SAE as a set of its own: at later sites that it writes nothing else writes."""
    return {sae.site_out: sae, **{site: Nothing(site) for site in sites_later(sae)}}


class Nothing:
    """What stands at a site where only latents from before write: it has none of its own."""

    def __init__(self, site: str) -> None:
        self.site_in = self.site_out = site

    def encode(self, x: Float[Tensor, "*lead d_in"], /) -> Float[Tensor, "*lead none"]:
        """No latents, (*lead, 0)."""
        return x[..., :0]

    def decode(self, latents: Float[Tensor, "*lead none"], /, x: Any = None) -> Tensor:
        """Zero, of the width of the site."""
        return 0 * x
