"""One prompt's clean run, as everything a graph of it needs to know of the model.

cuts      sites where an SAE writes: what it writes is made of nodes, no path goes through
skips     the skip connection of a transcoder, a path from its site_in to its site_out
held      kept at the clean run's values: attention patterns, norm scales, MLPs
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.graphs.places import ATTN_OUT, MLP_OUT, STATIONS, Z, place_of, site_at
from gossamer.errors import GossamerError
from gossamer.models.blocks import BlockSetting, noted
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.models.taps import remember
from gossamer.saes.crosscoder import Face, reader, sites_read
from gossamer.saes.sae import SAE, SparseCoder
from gossamer.saes.sets import sites_later
from gossamer.splice import flat

HOLDABLE = ("attention", "norms", "mlps")
"""What `hold` may name."""


@dataclass(frozen=True, slots=True)
class Run:
    """A clean run of one prompt, and what is spliced into it and held."""

    model: Model
    """What ran."""

    saes: Mapping[str, SparseCoder]
    """By the site each one writes."""

    hold: tuple[str, ...]
    """Some of HOLDABLE."""

    ids: tuple[int, ...]
    """The prompt."""

    values: Mapping[str, Tensor]
    """(1, pos, …) by site."""

    settings: Mapping[int, BlockSetting]
    """How each block's attention was called."""

    @property
    def n(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids)

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return self.model.n_layers

    def at(self, site: str) -> Float[Tensor, "pos width"]:
        """The value at a site, heads side by side."""
        return flat(self.values[site])[0]

    def cut(self, layer: int, station: int) -> SparseCoder | None:
        """The SAE that writes at a station."""
        return self.saes.get(site_at(layer, station))

    def skip(self, layer: int, station: int) -> tuple[int, Float[Tensor, "d_out d_in"]] | None:
        """(station where it begins, W_skip) of the skip connection that ends at a station."""
        sae = self.cut(layer, station)
        if not isinstance(sae, SAE) or sae.W_skip is None or sae.site_in == sae.site_out:
            return None
        return place_of(sae.site_in, after=True).station, sae.W_skip.to(self.model.dtype)

    def own_read(self, layer: int, station: int) -> bool:
        """Whether an SAE stands at a station that reads what it replaces; a crosscoder has read all
        that it reads in the clean run."""
        sae = self.cut(layer, station)
        return sae is not None and not isinstance(sae, Face) and sae.site_in == sae.site_out

    def is_read(self, layer: int, station: int) -> bool:
        """Whether what a module gives at a station reaches a node or the stream."""
        if self.own_read(layer, station):
            return True
        if self.cut(layer, station) is not None:
            return False
        site = site_at(layer, station)
        by_sae = any(sae.site_in == site for sae in self.saes.values())
        return station != Z or by_sae or self.is_read(layer, ATTN_OUT)

    def held_values(self, layer: int) -> dict[str, Tensor]:
        """Sites of a block that keep the clean run's value, and these values."""
        ends = {"attention": ("attn.hook_pattern",), "norms": ("hook_scale",)}
        kinds = tuple(end for name in self.hold for end in ends.get(name, ()))
        start = f"blocks.{layer}."
        return {s: v for s, v in self.values.items() if s.startswith(start) and s.endswith(kinds)}


def clean_run(
    model: Model, saes: Mapping[str, SparseCoder], hold: tuple[str, ...], batch: TokenBatch
) -> Run:
    """Run one prompt and keep what a graph needs."""
    check_hold(hold)
    check_places(model, saes)
    kinds = (*STATIONS, "attn.hook_pattern", "hook_scale")
    sites = [
        site
        for site in model.sites
        if site.endswith(kinds)
        or site in ("hook_embed", "hook_pos_embed", "ln_final.hook_normalized", "logits")
    ]
    values: dict[str, Tensor] = {}
    settings: dict[int, BlockSetting] = {}
    with torch.no_grad(), noted(model.layout, settings):
        model.forward(batch, {site: remember(values, site) for site in sites})
    values = {site: value.detach() for site, value in values.items()}
    for site, value in values.items():
        if not value.isfinite().all():
            raise GossamerError(
                f"{site} holds numbers that are not finite in this run; check the model's weights, "
                "or load it in a wider dtype."
            )
    return Run(model, saes, hold, tuple(batch.tokens[0].tolist()), values, settings)


def check_hold(hold: tuple[str, ...]) -> None:
    """GossamerError for a name that cannot be held."""
    for name in hold:
        if name not in HOLDABLE:
            raise GossamerError(f"Cannot hold {name!r}. hold takes any of: {', '.join(HOLDABLE)}.")


def check_finite(saes: Mapping[str, SparseCoder]) -> None:
    """GossamerError for an SAE with weights that are no numbers, which would silently never be
    active: by their sum, which is quick."""
    for site, sae in saes.items():
        whole = reader(sae)
        tensors = whole.state_dict() if isinstance(whole, torch.nn.Module) else {}
        for name, tensor in tensors.items():
            wide = torch.promote_types(tensor.dtype, torch.float32)
            if not tensor.is_floating_point():
                continue
            total = tensor.sum(dtype=wide)
            if total.isnan() or (name.startswith("W_") and total.isinf()):  # thresholds may be inf
                raise GossamerError(
                    f"{name} of the SAE at {site} holds numbers that are not finite; load the SAE "
                    "anew, or leave it out."
                )


def check_places(model: Model, saes: Mapping[str, SparseCoder]) -> None:
    """Refuse SAEs that a graph has no place for."""
    for sae in saes.values():
        begins, ends = place_of(sae.site_in, after=False), place_of(sae.site_out, after=True)
        for later in sites_later(sae):
            place_of(later, after=True)
        for read in sites_read(sae):
            place_of(read, after=False)
        skips = isinstance(sae, SAE) and sae.W_skip is not None
        same_block = begins.layer == ends.layer and begins.station < ends.station == MLP_OUT
        if skips and not same_block:
            raise GossamerError(
                f"The skip connection of the SAE at {sae.site_out} begins at {sae.site_in}; a "
                "graph follows skips to hook_mlp_out from earlier in the same block. Leave this "
                "SAE out."
            )
