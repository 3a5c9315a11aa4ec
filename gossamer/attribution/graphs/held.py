"""A block of a run pulled back by hand, attention patterns and norm scales held.

Everything but attention acts at each position by itself; attention spreads a gradient over earlier
positions with the clean run's pattern:

    g_z = W_Oᵀ g        g_x[k] = (1/s_k) C (gain ⊙ Σ_h W_V,hᵀ Σ_q A[h, q, k] g_z[q, h])

No query, key or norm derivative is taken, no forward pass is made, and a target's own block costs
one position until its attention: with g at one position p, Σ_q has one term, and each head's row
W_V,hᵀ g_z[p, h] is shared by all k. Tensors are (pos, batch, width): a prefix of the prompt is a
prefix of memory, and the products with weights are single matrix products over pos × batch rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.graphs.gradients import Gradient, added, plus
from gossamer.attribution.graphs.places import (
    ATTN_OUT,
    EMBEDDING,
    IN,
    MID,
    MLP_OUT,
    NORMALIZED,
    PRE,
    Place,
    Z,
    site_at,
)
from gossamer.attribution.graphs.run import Run
from gossamer.models.held import HeldNorm, held_norm, projection
from gossamer.models.mlps import mlp_of

Found = dict[Place, Gradient]
"""Gradients by place."""


@dataclass(frozen=True)
class Weights:
    """What pulls back through one block."""

    run: Run
    """The clean run."""

    layer: int
    """Which block."""

    @cached_property
    def ln1(self) -> HeldNorm:
        """The norm before attention."""
        return self._norm("ln1", self.run.model.layout.adapter.ln1)

    @cached_property
    def ln2(self) -> HeldNorm:
        """The norm before the MLP."""
        return self._norm("ln2", self.run.model.layout.adapter.ln2)

    def _norm(self, name: str, path: str) -> HeldNorm:
        layout = self.run.model.layout
        scale = self.run.at(f"blocks.{self.layer}.{name}.hook_scale")
        return held_norm(layout, layout.part(self.layer, path), scale)

    @cached_property
    def attn_out(self) -> tuple[Float[Tensor, "d_model d_z"], HeldNorm | None]:
        """W_O, and the norm behind it."""
        return self._projection("attn")

    @cached_property
    def mlp_norm(self) -> HeldNorm | None:
        """The norm behind the MLP."""
        return self._projection("mlp")[1]

    def _projection(self, part: str) -> tuple[Tensor, HeldNorm | None]:
        values = {site: value[0] for site, value in self.run.values.items()}
        weight, _, norm = projection(self.run.model.layout, values, self.layer, part)
        return weight, norm

    @cached_property
    def value(self) -> Float[Tensor, "n_kv_heads d_head d_model"]:
        """W_V of each head that keys have."""
        layout, paths = self.run.model.layout, self.run.model.layout.adapter.attention
        d_head = self.run.values[site_at(self.layer, Z)].shape[-1]
        if paths.fused is None:
            weight = _rows(layout.part(self.layer, str(paths.value)))
        else:
            fused = _rows(layout.part(self.layer, paths.fused))
            if paths.fused_by_head:
                fused = fused.unflatten(0, (-1, 3, d_head))[:, 2].flatten(0, 1)
            else:
                fused = fused.unflatten(0, (3, -1))[2]
            weight = fused
        return weight.detach().unflatten(0, (-1, d_head))

    @cached_property
    def pattern(self) -> Float[Tensor, "n_heads query key"]:
        """The clean run's attention."""
        return self.run.values[f"blocks.{self.layer}.attn.hook_pattern"][0]

    @cached_property
    def mlp(self) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        """W_out, and for each way into the hidden units its weights and slopes (pos, d_mlp)."""
        mlp = mlp_of(self.run.model.layout, self.layer)
        slopes = mlp.slopes(self.run.at(site_at(self.layer, IN)))
        return mlp.W_out, tuple(zip(mlp.ways, slopes, strict=True))


@dataclass(frozen=True)
class HeldEngine:
    """Pulls gradients back through blocks by hand."""

    run: Run
    """The clean run; attention and norms are held."""

    own_position: bool = False
    """Whether gradients stay at the targets' own positions: what attention moves is left out, and
    what it gives of a token to the token itself is not."""

    first: Place = EMBEDDING
    """Where it may stop: gradients at places before this one are not wanted, and may be wrong."""

    @cached_property
    def weights(self) -> tuple[Weights, ...]:
        """Of each block."""
        return tuple(Weights(self.run, layer) for layer in range(self.run.n_layers))

    @torch.no_grad()
    def block(
        self, layer: int, above: Gradient | None, read: tuple[Place, Gradient] | None
    ) -> tuple[Found, Gradient | None]:
        """(gradients at places of the block, at what it receives), from that at what it gives and
        from what is read at one place inside."""
        found: Found = {}
        reads = {} if read is None else {read[0]: read[1]}
        parallel = self.run.model.layout.parallel
        out = self._splice(layer, MLP_OUT, above, reads, found)
        hidden = self._mlp(layer, out)
        begin = _skips_to(self.run, layer, found)
        hidden = plus(hidden, begin.get(IN))
        hidden = self._splice(layer, IN, hidden, reads, found)
        hidden = (
            None if hidden is None else hidden.like(hidden.values * self.weights[layer].ln2.gain)
        )
        hidden = plus(hidden, begin.get(NORMALIZED))
        hidden = self._splice(layer, NORMALIZED, hidden, reads, found)
        by_mlp = None if hidden is None else _normed(self.weights[layer].ln2, hidden)
        mid = plus(above, None if parallel else by_mlp)
        if not parallel:
            mid = plus(mid, begin.get(MID))
            mid = self._splice(layer, MID, mid, reads, found)
        written = plus(above if parallel else mid, begin.get(ATTN_OUT))
        written = self._splice(layer, ATTN_OUT, written, reads, found)
        z = plus(self._written(layer, written), begin.get(Z))
        z = self._splice(layer, Z, z, reads, found)
        down = added(self._attention(layer, z), mid)
        return found, plus(down, plus(by_mlp if parallel else None, begin.get(PRE)))

    def through_final(self, gradient: Gradient) -> Gradient:
        """Through the final norm."""
        layout = self.run.model.layout
        module = layout.language_model.get_submodule(layout.adapter.ln_final)
        norm = held_norm(layout, module, self.run.at("ln_final.hook_scale"))
        return _normed(norm, gradient.like(gradient.values * norm.gain))

    def _splice(  # noqa: PLR0917  one station of `block`
        self,
        layer: int,
        station: int,
        gradient: Gradient | None,
        reads: Mapping[Place, Gradient],
        found: Found,
    ) -> Gradient | None:
        """The gradient before a station's splice, from that after it; both are kept."""
        before, after = Place(layer, station, False), Place(layer, station, True)
        gradient = plus(gradient, reads.get(after))
        if gradient is not None:
            found[after] = gradient
        if self.run.cut(layer, station) is not None:
            gradient = None
        gradient = plus(gradient, reads.get(before))
        if gradient is not None:
            found[before] = gradient
        return gradient

    def _mlp(self, layer: int, out: Gradient | None) -> Gradient | None:
        """From what the MLP gives to what it receives."""
        if out is None or "mlps" in self.run.hold:
            return None
        weights = self.weights[layer]
        g = out.values if weights.mlp_norm is None else _pulled(weights.mlp_norm, out)
        W_out, ways = weights.mlp
        hidden = g @ W_out
        total = torch.zeros_like(g)
        for W, slope in ways:
            total += (hidden * _at(out, slope)) @ W
        return out.like(total)

    def _written(self, layer: int, written: Gradient | None) -> Gradient | None:
        """From what attention gives to its heads side by side."""
        if written is None or Place(layer, Z, True) < self.first:
            return None
        weight, norm = self.weights[layer].attn_out
        return written.like((written.values if norm is None else _pulled(norm, written)) @ weight)

    def _attention(self, layer: int, z: Gradient | None) -> Gradient | None:
        """From the heads to the stream before the block, over all earlier positions."""
        if z is None:
            return None
        weights = self.weights[layer]
        pull = _spread_from_one if z.is_sparse else _spread
        pull = _kept if self.own_position else pull
        x = pull(z, weights.pattern, weights.value)
        x *= weights.ln1.gain
        x /= _at(z.like(x), weights.ln1.scale).to(x.dtype)
        if weights.ln1.centres:
            x -= x.mean(-1, keepdim=True)
        return z.like(x)


def _kept(
    z: Gradient,
    pattern: Float[Tensor, "n_heads query key"],
    value: Float[Tensor, "n_kv_heads d_head d_model"],
) -> Float[Tensor, "batch d_model"]:
    """Attention's transpose where each target's gradient is at one position, at this one alone."""
    n_heads, n_kv = len(pattern), len(value)
    own = pattern[:, z.positions, z.positions].T[..., None]  # (batch, n_heads, 1)
    heads = z.values.unflatten(1, (n_heads, -1)) * own
    if n_heads != n_kv:
        heads = heads.unflatten(1, (n_kv, -1)).sum(2)
    return heads.flatten(1) @ value.flatten(0, 1)


def _spread_from_one(
    z: Gradient,
    pattern: Float[Tensor, "n_heads query key"],
    value: Float[Tensor, "n_kv_heads d_head d_model"],
) -> Float[Tensor, "pos batch d_model"]:
    """Attention's transpose where each target's gradient is at one position."""
    n_heads, n_kv = len(pattern), len(value)
    n = int(z.positions[-1]) + 1
    heads = z.values.unflatten(1, (n_kv, n_heads // n_kv, -1))
    rows = torch.einsum("bvgd,vdm->bvgm", heads, value).flatten(1, 2)  # (batch, n_heads, d_model)
    seen = pattern[:, z.positions, :n]  # (n_heads, batch, key)
    return torch.bmm(seen.permute(1, 2, 0), rows).transpose(0, 1)


def _spread(
    z: Gradient,
    pattern: Float[Tensor, "n_heads query key"],
    value: Float[Tensor, "n_kv_heads d_head d_model"],
) -> Float[Tensor, "pos batch d_model"]:
    """Attention's transpose."""
    n, batch = z.values.shape[:2]
    n_heads, (n_kv, d_head, d_model) = len(pattern), value.shape
    by_head = z.values.unflatten(2, (n_heads, d_head)).permute(2, 0, 1, 3).reshape(n_heads, n, -1)
    moved = torch.bmm(pattern[:, :n, :n].transpose(1, 2), by_head)
    if n_heads != n_kv:
        moved = moved.unflatten(0, (n_kv, -1)).sum(1)
    side_by_side = moved.view(n_kv, n * batch, d_head).transpose(0, 1).reshape(n * batch, -1)
    return (side_by_side @ value.reshape(-1, d_model)).view(n, batch, d_model)


def _skips_to(run: Run, layer: int, found: Found) -> dict[int, Gradient]:
    """What skip connections pull back, by the station where they begin."""
    begins: dict[int, Gradient] = {}
    skip, gradient = run.skip(layer, MLP_OUT), found.get(Place(layer, MLP_OUT, True))
    if skip is not None and gradient is not None:
        begins[skip[0]] = gradient.like(gradient.values @ skip[1])
    return begins


def _at(gradient: Gradient, by_position: Float[Tensor, "pos width"]) -> Tensor:
    """Numbers of each position beside a gradient's values."""
    if gradient.is_sparse:
        return by_position[gradient.positions]
    return by_position[: len(gradient.values), None]


def _normed(norm: HeldNorm, gradient: Gradient) -> Gradient:
    """w ↦ C w / scale, the transpose of a held norm without its gain."""
    g = gradient.values / _at(gradient, norm.scale.to(gradient.values.dtype))
    return gradient.like(g - g.mean(-1, keepdim=True) if norm.centres else g)


def _pulled(norm: HeldNorm, gradient: Gradient) -> Tensor:
    """The transpose of a held norm."""
    return _normed(norm, gradient.like(gradient.values * norm.gain)).values


def _rows(module: torch.nn.Module) -> Float[Tensor, "d_out d_in"]:
    """The weight of a projection, outputs first; transformers' Conv1D has it the other way."""
    weight = module.get_parameter("weight").detach()
    return weight if isinstance(module, torch.nn.Linear) else weight.T
