"""One prompt of a trace, cut to its own length, and the active latents in it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.kernels.sparse import offsets_of_counts, sparse_decode
from gossamer.models.held import recorded
from gossamer.models.model import Model
from gossamer.saes.normalization import output_scale
from gossamer.saes.rows import active_pairs, n_latents, splice_parts, write_rows
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.sites import parse_site
from gossamer.splice import Trace, flat

PAIRS_AT_ONCE = 8192
"""Rows of decoders that are gathered together."""


class Active(NamedTuple):
    """Active latents of one SAE in one prompt, sorted by (position, index)."""

    positions: Int64[Tensor, " n"]
    """Where."""

    units: Int64[Tensor, " n"]
    """Which."""

    values: Float[Tensor, " n"]
    """Their activations."""


@dataclass(frozen=True, slots=True)
class View:
    """What a run of one prompt left, without its batch axis and padding."""

    model: Model
    """What ran."""

    n: int
    """Tokens of the prompt."""

    saes: Mapping[str, SparseCoder]
    """By the site each one writes."""

    values: Mapping[str, Tensor]
    """(pos, …) by site; attention patterns (n_heads, query, key)."""

    gradients: Mapping[str, Tensor]
    """Of the number that is explained, likewise."""

    read: str | None
    """The stream that it is read from."""

    spliced: Mapping[str, tuple[Tensor, Tensor]]
    """Latents (pos, d_sae) and errors (pos, d_out) of SAEs that were spliced."""

    known: dict[str, Active] = field(default_factory=dict)
    """Active latents found so far."""

    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Pieces of SAEs found so far."""

    @property
    def direction(self) -> Float[Tensor, "pos d_model"]:
        """g = ∂s/∂r, r the residual stream that s is read from. GossamerError without a number."""
        if self.read is None:
            raise GossamerError(
                "This trace explains no number, so nothing has an effect on one; take the trace of "
                "an analysis (gossamer.analyze), or ask for activation or write_norm."
            )
        return self.gradients[self.read]

    def at(self, site: str) -> Tensor:
        """The value at a site. SiteError when the trace has not recorded it."""
        return recorded(self.values, site)

    def active(self, site: str) -> Active:
        """The active latents of the SAE that writes `site`."""
        if site not in self.known:
            self.known[site] = self._found(site)
        return self.known[site]

    def _found(self, site: str) -> Active:
        if site not in self.spliced:
            return Active(*active_pairs(self.saes[site], self.read_by(site)))
        dense = self.spliced[site][0]
        positions, units = dense.nonzero(as_tuple=True)
        return Active(positions, units, dense[positions, units])

    def read_by(self, site: str) -> Float[Tensor, "pos d_in"]:
        """What the SAE that writes `site` reads."""
        return flat(self.at(self.saes[site].site_in)[None])[0]

    def d_sae(self, site: str) -> int:
        """How many latents the SAE that writes `site` has."""
        return n_latents(self.saes[site], self.read_by(site))

    def rows(
        self, site: str, some: Int64[Tensor, " n_some"] | None = None
    ) -> Iterator[tuple[Int64[Tensor, " c"], Float[Tensor, "c width"]]]:
        """(which of the active latents, what each writes at `site` per unit of activation), a chunk
        at a time, of some of them or all."""
        active, sae, x = self.active(site), self.saes[site], self.read_by(site)
        if some is None:
            some = torch.arange(len(active.units), device=active.units.device)
        for chunk in some.split(PAIRS_AT_ONCE) if len(some) else ():
            yield chunk, write_rows(sae, active.units[chunk], x[active.positions[chunk]])

    def dotted(self, site: str, along: Float[Tensor, "pos width"]) -> Float[Tensor, " n"]:
        """f · (what each active latent writes · along[its position])."""
        active = self.active(site)
        out = active.values.new_zeros(len(active.values))
        # A direct effect is 0 but at a few positions; their latents alone are worth gathering.
        there = along.any(1)[active.positions].nonzero()[:, 0]
        for chunk, rows in self.rows(site, there):
            read = (rows * along[active.positions[chunk]].to(rows)).sum(1)
            out[chunk] = read * active.values[chunk]
        return out

    def pieces(self, site: str) -> dict[str, Float[Tensor, "pos width"]]:
        """What an SAE's splice adds at its site beside the latents: error, bias, remainder.

        The remainder (skip connection, the mean that a normalization puts back, what is not linear
        in a latent) is there only for SAEs that have one.
        """
        if site not in self.parts:
            self.parts[site] = self._pieces(site)
        return self.parts[site]

    def _pieces(self, site: str) -> dict[str, Float[Tensor, "pos width"]]:
        sae, x = self.saes[site], self.read_by(site)
        value = flat(self.at(site)[None])[0]
        by_latents = self._by_latents(site, x).to(value)
        dense = None
        if site in self.spliced:  # perhaps edited
            dense = self.spliced[site][0].to(_dtype(sae, value))
        parts = splice_parts(sae, x, value, by_latents, latents=dense)
        if site in self.spliced:
            parts["error"] = self.spliced[site][1]
        return parts

    def _by_latents(self, site: str, x: Float[Tensor, "pos d_in"]) -> Float[Tensor, "pos width"]:
        """The sum of what the active latents write."""
        sae, active = self.saes[site], self.active(site)
        if isinstance(sae, SAE):
            offsets = offsets_of_counts(torch.bincount(active.positions, minlength=self.n))
            summed = sparse_decode(active.values, active.units, offsets, sae.W_dec)
            return summed * output_scale(sae.normalization, x.to(sae.dtype))
        rows = write_rows(sae, active.units, x[active.positions]) * active.values[:, None]
        return rows.new_zeros(self.n, rows.shape[1]).index_add(0, active.positions, rows)


def view_of(trace: Trace, prompt: int = 0, known: Mapping[str, Active] | None = None) -> View:
    """One prompt of a trace, and what is known of its active latents already. GossamerError for a
    trace that does not know its model."""
    if trace.model is None:
        raise GossamerError("This trace does not say which model ran; make it with gossamer.run.")
    if not 0 <= prompt < len(trace.tokens):
        raise GossamerError(
            f"prompt is the number of one of the trace's {len(trace.tokens)}, from 0, got {prompt}."
        )
    where = trace.mask[prompt].nonzero()[:, 0]

    def cut(site: str, value: Tensor) -> Tensor:
        value = value[prompt].detach()
        if parse_site(site).kind in ("attn.hook_pattern", "attn.hook_attn_scores"):
            return value[:, where][:, :, where]
        return value[where]

    spliced = {
        site: (latents[prompt, where].detach(), trace.errors[site][prompt, where].detach())
        for site, latents in trace.latents.items()
        if site in trace.errors
    }
    return View(
        trace.model,
        len(where),
        trace.saes,
        {site: cut(site, value) for site, value in trace.activations.items()},
        {site: cut(site, value) for site, value in trace.gradients.items()},
        trace.read,
        spliced,
        dict(known or {}),
    )


def _dtype(sae: SparseCoder, value: Tensor) -> torch.dtype:
    return torch.promote_types(getattr(sae, "dtype", value.dtype), value.dtype)
