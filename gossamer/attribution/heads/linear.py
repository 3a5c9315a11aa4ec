"""The linear run of one prompt: attention patterns and norm scales held, MLPs by their slopes.

What is written at some places goes forward to every later place of its block and of those behind.
A spliced site passes nothing on but its skip connection. Tensors are (pos, batch, width), one
column of the batch for each thing that is written.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.graphs.held import Weights
from gossamer.attribution.graphs.places import (
    ATTN_OUT,
    EMBEDDING,
    IN,
    MID,
    MLP_OUT,
    NORMALIZED,
    POST,
    PRE,
    Place,
    Z,
    final,
)
from gossamer.attribution.graphs.run import Run
from gossamer.models.held import HeldNorm, held_norm

Columns = Float[Tensor, "pos batch d_model"]
"""A value of the stream's width, one column of the batch for each thing that is written."""

Heads = Float[Tensor, "pos batch d_z"]
"""A value of all heads side by side, likewise."""

Writes = Mapping[Place, Float[Tensor, "..."]]
"""What is written, by place: (pos, batch, width) of the place."""


@dataclass(slots=True)
class Moved:
    """What is written, at each place of one block."""

    layer: int
    """Which block."""

    at: dict[Place, Tensor] = field(default_factory=dict)
    """(pos, batch, width) by place."""

    def take(self, station: int, *, after: bool) -> Tensor:
        """At one station."""
        return self.at[Place(self.layer, station, after)]


@dataclass(frozen=True)
class LinearRun:
    """Linear maps between places of a run."""

    run: Run
    """The clean run."""

    @cached_property
    def weights(self) -> tuple[Weights, ...]:
        """Of each block."""
        return tuple(Weights(self.run, layer) for layer in range(self.run.n_layers))

    @cached_property
    def ln_final(self) -> HeldNorm:
        """The norm behind the last block."""
        layout = self.run.model.layout
        module = layout.language_model.get_submodule(layout.adapter.ln_final)
        return held_norm(layout, module, self.run.at("ln_final.hook_scale"))

    def values(self, layer: int, x: Columns) -> Float[Tensor, "pos batch n_kv_heads d_head"]:
        """What each head's keys offer, of the stream before a block."""
        weights = self.weights[layer]
        return einsum(weights.ln1.out(x), weights.value, "pos b model, kv d model -> pos b kv d")

    def attended(self, layer: int, values: Float[Tensor, "pos batch n_kv_heads d_head"]) -> Heads:
        """What heads gather of it, side by side."""
        pattern = self.weights[layer].pattern
        group = len(pattern) // values.shape[2]
        by_kv = rearrange(pattern, "(kv group) query key -> kv group query key", group=group)
        z = einsum(by_kv, values, "kv group query key, key b kv d -> query b kv group d")
        return z.flatten(2)

    def written(self, layer: int, z: Heads) -> Columns:
        """What attention adds to the stream."""
        weight, norm = self.weights[layer].attn_out
        out = z @ weight.T
        return out if norm is None else norm.out(out)

    def normalized(self, layer: int, mid: Columns) -> Columns:
        """What ln2 makes of the stream before the MLP, without its gain."""
        ln2 = self.weights[layer].ln2
        return ln2._replace(gain=torch.ones_like(ln2.gain)).out(mid)

    def received(self, layer: int, normalized: Columns) -> Columns:
        """What the MLP receives."""
        return normalized * self.weights[layer].ln2.gain

    def mlp(self, layer: int, hidden: Columns) -> Columns:
        """What the MLP adds to the stream, by its slopes at the clean run; 0 if MLPs are held."""
        if "mlps" in self.run.hold:
            return torch.zeros_like(hidden)
        W_out, ways = self.weights[layer].mlp
        units = sum((hidden @ W.T) * slopes[:, None] for W, slopes in ways)
        assert isinstance(units, Tensor)
        norm = self.weights[layer].mlp_norm
        out = units @ W_out.T
        return out if norm is None else norm.out(out)

    def blocks(
        self, writes: Writes, stop: int, seeds: Iterable[Float[Tensor, "1 1 d_model"]] = ()
    ) -> Iterator[Moved]:
        """Each block from the first place that is written at to before block `stop`; at
        n_layers + 1 also what the final norm gives. `seeds` are added to the stream before each
        block, in turn."""
        first = max(min(writes).layer, 0)
        some = next(iter(writes.values()))
        stream = some.new_zeros(*some.shape[:2], self.run.model.d_model)
        stream = stream + writes.get(EMBEDDING, 0)
        seed = iter(seeds)
        for layer in range(first, min(stop, self.run.n_layers)):
            moved = self._block(layer, stream, writes, next(seed, None))
            stream = moved.take(POST, after=True)
            yield moved
        if stop > self.run.n_layers:
            yield Moved(stop - 1, {final(self.run.n_layers): self.ln_final.out(stream)})

    def _block(
        self, layer: int, stream: Columns, writes: Writes, seed: Float[Tensor, "1 1 d_model"] | None
    ) -> Moved:
        """One block."""
        moved = Moved(layer)

        def station(number: int, value: Tensor) -> Tensor:
            return self._splice(moved, number, value, writes)

        x = station(PRE, stream)
        if seed is not None:
            x = moved.at[Place(layer, PRE, True)] = x + seed
        z = station(Z, self.attended(layer, self.values(layer, x)))
        out = station(ATTN_OUT, self.written(layer, z))
        parallel = self.run.model.layout.parallel
        mid = x if parallel else station(MID, x + out)
        hidden = station(NORMALIZED, self.normalized(layer, mid))
        hidden = station(IN, self.received(layer, hidden))
        by_mlp = station(MLP_OUT, self.mlp(layer, hidden))
        station(POST, mid + by_mlp + out if parallel else mid + by_mlp)
        return moved

    def _splice(
        self, moved: Moved, station: int, value: Float[Tensor, "..."], writes: Writes
    ) -> Float[Tensor, "..."]:
        """The value behind a station's splice; both sides of it are kept."""
        layer = moved.layer
        before, after = Place(layer, station, False), Place(layer, station, True)
        moved.at[before] = value = value + writes[before] if before in writes else value
        if self.run.cut(layer, station) is not None:
            value = torch.zeros_like(value)
            skip = self.run.skip(layer, station)
            if skip is not None:
                value = moved.take(skip[0], after=True) @ skip[1].T
        moved.at[after] = value = value + writes[after] if after in writes else value
        return value


def is_behind_heads(place: Place, layer: int, *, parallel: bool) -> bool:
    """Whether what the heads of a block write reaches a place."""
    if place.layer != layer:
        return place.layer > layer
    beside = parallel and place.station in (NORMALIZED, IN, MLP_OUT)
    return place.station >= Z and not beside
