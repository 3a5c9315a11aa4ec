"""What a residual stream is made of: the parts that stand in it at one position.

    an SAE at the stream, the latest there is    its latents, error, bias and remainder,
    and every later writer                       or else tokens, positions and every writer:
      attention of a block                       an SAE's parts at its output or its heads;
                                                 else each head, and the projection's bias
      MLP of a block                             an SAE's parts at its output or its neurons;
                                                 else all of it, as one part

The parts add up to the stream. What a module or an SAE makes of earlier parts is a part of its own:
nothing is followed through it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.models.held import Projection, projection
from gossamer.models.model import Model
from gossamer.saes.rows import active_pairs, splice_parts, write_rows
from gossamer.saes.sae import SparseCoder
from gossamer.sites import BEFORE_BLOCKS, NodeId, parse_site
from gossamer.splice import flat

OUTPUTS = {"attn": ("hook_attn_out", "attn.hook_z"), "mlp": ("hook_mlp_out", "mlp.hook_post")}
"""Of each module, where an SAE may stand for it: at what it writes, or before its projection."""


class Part(NamedTuple):
    """Some parts of one kind at one site."""

    kind: str
    """latent, error, bias, remainder, token, position, head; or layer, all that an MLP writes."""

    ids: tuple[str, ...]
    """Node ids."""

    values: Float[Tensor, " n"]
    """Activations of latents, else 1."""

    labels: tuple[str, ...]
    """What they mean, as far as is known."""

    vectors: Float[Tensor, "n d_model"]
    """What each adds to the stream."""


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream that one block receives, in one run."""

    model: Model
    """What ran."""

    saes: Mapping[str, SparseCoder]
    """By the site each one writes."""

    layer: int
    """Which block."""

    ids: Sequence[int]
    """The prompt."""

    values: Mapping[str, Tensor]
    """(1, pos, …) at `needed`."""

    def writers(self) -> list[str]:
        """What is added up, in forward order: a spliced site of the stream or an embedding, then
        blocks' modules."""
        end = parse_site(f"blocks.{self.layer}.hook_resid_pre").order
        streams = [
            site
            for site in self.saes
            if parse_site(site).kind.startswith("hook_resid") and parse_site(site).order <= end
        ]
        modules = [f"blocks.{m}.{part}" for m in range(self.layer) for part in OUTPUTS]
        if not streams:
            return [*(site for site in BEFORE_BLOCKS if site in self.model.sites), *modules]
        latest = max(streams, key=lambda site: parse_site(site).order)
        return [latest, *(m for m in modules if _added_at(m) > parse_site(latest).order)]

    def needed(self) -> set[str]:
        """The sites of the run that the parts are made from."""
        sites = {f"blocks.{self.layer}.hook_resid_pre"}
        for writer in self.writers():
            site = self._standing(writer)
            sites |= {site, self.saes[site].site_in} if site in self.saes else {site}
            if writer.startswith("blocks.") and writer not in self.saes:
                block, part = writer.rsplit(".", 1)
                post = f"{block}.{'ln1' if part == 'attn' else 'ln2'}_post.hook_scale"
                sites |= {post} & set(self.model.sites)
        return sites

    def _standing(self, writer: str) -> str:
        """The site at which a writer's parts stand."""
        if writer in self.saes or writer in BEFORE_BLOCKS:
            return writer
        block, part = writer.rsplit(".", 1)
        places = [f"{block}.{kind}" for kind in OUTPUTS[part]]
        spliced = [site for site in places if site in self.saes]
        return spliced[0] if spliced else places[part == "attn"]

    @torch.no_grad()
    def parts(self, position: int) -> Iterator[Part]:
        """What stands in the stream at a position."""
        here = {site: flat(value)[0, position : position + 1] for site, value in self._vectors()}
        for writer in self.writers():
            site = self._standing(writer)
            through = None
            if parse_site(site).kind in ("attn.hook_z", "mlp.hook_post"):
                layer, part = parse_site(site).layer or 0, writer.rsplit(".", 1)[1]
                through = projection(self.model.layout, here, layer, part)
            if site in self.saes:
                found = self._of_sae(site, position, here)
            elif site in BEFORE_BLOCKS:
                found = [self._embedding(site, position, here[site])]
            elif through is not None:
                found = [self._heads(site, position)]
            else:
                name = str(NodeId(site, "output", position))
                found = [Part("layer", (name,), here[site].new_ones(1), ("",), here[site])]
            for each in found:
                yield (
                    each
                    if through is None
                    else each._replace(vectors=_through(through, each.vectors))
                )
            if through is not None and through.bias is not None:
                bias = through.bias[None]
                bias = bias if through.norm is None else through.norm.out(bias)
                name = str(NodeId(writer, "bias", position))
                yield Part("bias", (name,), bias.new_ones(1), ("",), bias)

    def _vectors(self) -> Iterator[tuple[str, Tensor]]:
        return ((site, self.values[site]) for site in self.needed())

    def _embedding(self, site: str, position: int, vector: Float[Tensor, "1 d_model"]) -> Part:
        """A token or position embedding."""
        token = self.ids[position]
        kind, unit = ("token", token) if site == "hook_embed" else ("position", position)
        label = repr(self.model.token_strings([token])[0]) if kind == "token" else ""
        name = str(NodeId(site, unit, position))
        return Part(kind, (name,), vector.new_ones(1), (label,), vector)

    def _heads(self, site: str, position: int) -> Part:
        """Each head of a block, in the width of all of them side by side."""
        z = self.values[site][0, position]
        alone = torch.zeros(len(z), *z.shape, dtype=z.dtype, device=z.device)
        each = torch.arange(len(z), device=z.device)
        alone[each, each] = z
        names = tuple(str(NodeId(site, head, position)) for head in range(len(z)))
        return Part("head", names, z.new_ones(len(z)), ("",) * len(z), alone.flatten(1))

    def _of_sae(self, site: str, position: int, here: Mapping[str, Tensor]) -> Iterator[Part]:
        """An SAE's latents, error, bias and remainder, at its own site."""
        sae = self.saes[site]
        x, y = here[sae.site_in], here[site]
        zeros, units, values = active_pairs(sae, x)
        rows = (write_rows(sae, units, x[zeros]) * values[:, None]).to(y)
        names = tuple(str(NodeId(site, unit, position)) for unit in units.tolist())
        labels = getattr(sae, "labels", None)
        named = tuple(labels[unit] if labels else "" for unit in units.tolist())
        yield Part("latent", names, values, named, rows)
        for kind, vector in splice_parts(sae, x, y, rows.sum(0, keepdim=True)).items():
            name = str(NodeId(site, kind, position))
            yield Part(kind, (name,), vector.new_ones(1), ("",), vector)


def _added_at(module: str) -> tuple[int, int, int]:
    """Where a module's output is added to the stream."""
    block, _, part = module.rpartition(".")
    return parse_site(f"{block}.hook_{part}_out").order


def _through(way: Projection, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n d_model"]:
    """Rows before a module's projection as the stream gets them; one position's scale for all."""
    moved = rows.to(way.weight.dtype) @ way.weight.T
    return moved if way.norm is None else way.norm.out(moved[None])[0]
