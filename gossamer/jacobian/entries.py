"""All entries of a Jacobian over some tokens, of one prompt or many: what a run showed goes in."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gossamer.activations.harvest import fingerprint_of
from gossamer.errors import GossamerError
from gossamer.jacobian.passage import Linear, Passage
from gossamer.jacobian.products import JacobianTables, from_rows, from_tables, tables_pay
from gossamer.jacobian.result import Jacobian
from gossamer.jacobian.sides import Side, active, reading, writing
from gossamer.kernels.sparse import SparseLatents
from gossamer.saes.rows import rows_are_constant, write_rows
from gossamer.saes.sae import SAE, SparseCoder

Point = Literal["input", "reconstruction"]
"""Where the MLP is evaluated."""

Method = Literal["auto", "tables", "rows"]
"""How entries are computed; see `products.py`."""

Pair = tuple[SparseCoder, SparseCoder]
"""The SAE before the MLP and the one after it."""

TABLE_MEMORY = 4 * 2**30
"""Bytes that tables may take unless another number is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How the entries are computed; none of it changes what they are, but for `at`."""

    at: str = "input"
    """Where the MLP is evaluated; the active latents after it are those of the same point."""

    method: str = "auto"
    """"auto": from tables where these are given, or pay for this many tokens and fit."""

    tables: JacobianTables | None = None
    """Made before, for the same SAEs."""

    skip_below: float = 0.0
    """Hidden units with slopes up to this size are left out where that is faster."""

    memory: int = TABLE_MEMORY
    """Bytes that tables may take, and that the entries may."""

    def __post_init__(self) -> None:
        if self.at not in ("input", "reconstruction"):
            raise GossamerError(f'at is "input" or "reconstruction", got {self.at!r}.')
        if self.method not in ("auto", "tables", "rows"):
            raise GossamerError(f'method is "auto", "tables" or "rows", got {self.method!r}.')
        if not self.skip_below >= 0:
            raise GossamerError(f"skip_below is a size, 0 or more, got {self.skip_below}.")
        if self.skip_below > 0 and (self.method == "tables" or self.tables is not None):
            raise GossamerError(
                'Tables go through all hidden units; write method="rows" with skip_below.'
            )


@dataclass(frozen=True, slots=True)
class Activations:
    """What a model showed at some tokens, as far as a Jacobian asks."""

    read_in: Float[Tensor, "n d_in"]
    """What the first SAE reads."""

    point: Float[Tensor, "n width"]
    """The value where it writes."""

    read_out: Float[Tensor, "n d_model"]
    """What the second SAE reads."""

    rest: Float[Tensor, "n d_model"] | None
    """What else is in the residual stream there, where the passage needs it."""

    special: Bool[Tensor, " n"]
    """BOS tokens: left out of every mean, unless there is nothing else."""

    def at(self, chunk: slice) -> "Activations":
        """Those of some tokens."""
        rest = None if self.rest is None else self.rest[chunk]
        parts = (self.read_in[chunk], self.point[chunk], self.read_out[chunk])
        return Activations(*parts, rest, self.special[chunk])


@dataclass(frozen=True, slots=True)
class Found:
    """Entries over some tokens, of one prompt or many."""

    values: Float[Tensor, "n k_out k_in"]
    side_out: Side
    side_in: Side
    units: tuple[Tensor, Tensor]
    seen: Activations
    at: str
    method: str
    bound: float
    passage: Passage
    saes: Pair

    def result(self, chunk: slice, tokens: tuple[str, ...], token_ids: tuple[int, ...]) -> Jacobian:
        """The part of one prompt, no wider than that needs."""
        out, into = self.side_out, self.side_in
        k_out, k_in = (int((side.indices[chunk] >= 0).sum(1).max()) for side in (out, into))
        return Jacobian(
            self.values[chunk, :k_out, :k_in],
            out.indices[chunk, :k_out],
            into.indices[chunk, :k_in],
            out.values[chunk, :k_out],
            into.values[chunk, :k_in],
            self.units[1][chunk, :k_out],
            self.units[0][chunk, :k_in],
            tokens,
            token_ids,
            ~self.seen.special[chunk],
            self.at,
            self.method,
            self.bound,
            self.passage,
            self.saes,
            self.seen.read_in[chunk],
            self.seen.point[chunk],
            None if self.seen.rest is None else self.seen.rest[chunk],
        )


def recorded(way: Passage, saes: Pair) -> list[str]:
    """The sites that a run must show."""
    sites = [saes[0].site_in, way.site_in, way.site_out]
    if way.needs_rest:
        sites.append(way.written)
    return list(dict.fromkeys(sites))


def observed(
    way: Passage,
    saes: Pair,
    shown: dict[str, Tensor],
    special: Bool[Tensor, " n"],
) -> Activations:
    """What the run showed at those sites."""
    after = shown[way.site_out]
    rest = after - shown[way.written] if way.needs_rest else None
    return Activations(shown[saes[0].site_in], shown[way.site_in], after, rest, special)


def between(
    way: Passage,
    saes: Pair,
    seen: Activations,
    *,
    how: How,
    sizes: tuple[Float[Tensor, ""], Float[Tensor, ""]] | None = None,
) -> Found:
    """All entries over some tokens. `sizes`: root mean squares of the activations before and after
    the MLP, for comparable units; None: those of these tokens."""
    sizes = root_mean_squares(seen) if sizes is None else sizes
    latents_in = active(saes[0], seen.read_in)
    if how.at == "reconstruction":
        point = _decoded(saes[0], latents_in, seen.read_in).to(seen.point.dtype)
        seen = replace(seen, point=point, read_out=way.value(point, seen.rest))
    side_in = writing(saes[0], seen.read_in, latents_in)
    side_out = reading(saes[1], seen.read_out, active(saes[1], seen.read_out))
    _check_size(side_out, side_in, how.memory)
    linear = promoted(way.linearize(seen.point), saes)
    tables = _tables_for(way, saes, linear, sides=(side_out, side_in), how=how)
    if tables is None:
        rules = {"skip_below": how.skip_below, "memory": how.memory}
        values, bound = from_rows(linear, side_out, side_in, **rules)
    else:
        values, bound = from_tables(linear, side_out, side_in, tables), 0.0
    exists = (side_out.indices >= 0)[..., None] & (side_in.indices >= 0)[:, None]
    return Found(
        torch.where(exists, values, 0.0),
        side_out,
        side_in,
        _units(saes, (side_in, side_out), seen, sizes),
        seen,
        how.at,
        "rows" if tables is None else "tables",
        bound,
        way,
        saes,
    )


def promoted(linear: Linear, saes: Pair) -> Linear:
    """The derivative in the widest of the types of model and SAEs."""
    dtype = linear.W_out.dtype
    for sae in saes:
        dtype = torch.promote_types(dtype, getattr(sae, "dtype", dtype))
    return linear.to(linear.W_out.new_zeros((), dtype=dtype))


def _check_size(side_out: Side, side_in: Side, memory: int) -> None:
    """GossamerError when the entries would not fit."""
    n, k_out = side_out.indices.shape
    k_in = side_in.indices.shape[1]
    need = 4 * n * k_out * k_in * max(side_out.values.element_size(), 4)
    if need > memory:
        raise GossamerError(
            f"{n:,} tokens with up to {k_out:,} × {k_in:,} active latents need {need / 1e9:.1f} GB "
            f"for their entries, and {memory / 1e9:.1f} GB are allowed; give fewer or shorter "
            "prompts, sparser SAEs, or more with memory=."
        )


def make_tables(way: Passage, saes: Pair, linear: Linear) -> JacobianTables:
    """The products of every latent with the weights on its side. GossamerError for SAEs whose rows
    differ from token to token."""
    for sae in saes:
        if not rows_are_constant(sae):
            raise GossamerError(
                f"Tables need latents that read and write the same at every token; the SAE at "
                f'{sae.site_out} does not: write method="rows".'
            )
    before, after = saes
    assert isinstance(before, SAE) and isinstance(after, SAE)
    every = [torch.arange(sae.d_sae, device=sae.device) for sae in (before, after)]
    dtype = linear.W_out.dtype
    reads = after.read_rows(every[1]).to(dtype) @ linear.W_out
    rows = before.write_rows(every[0]).to(dtype)
    writes = tuple(rows @ w.T for w in linear.ways)
    return JacobianTables(way.site_in, way.site_out, _made_from(way, saes), reads, writes)


def _made_from(way: Passage, saes: Pair) -> str:
    before, after = saes
    assert isinstance(before, SAE) and isinstance(after, SAE)
    weights = (before.W_dec, after.W_enc, way.mlp.W_in, way.mlp.W_out)
    return fingerprint_of((str(place), weight) for place, weight in enumerate(weights))


def _tables_for(
    way: Passage, saes: Pair, linear: Linear, *, sides: tuple[Side, Side], how: How
) -> JacobianTables | None:
    """The tables that are given or worth making; None for rows."""
    if how.method == "rows" or how.skip_below > 0:
        return None
    if how.tables is not None:
        _check_tables(how.tables, way, saes)
        return how.tables
    if how.method == "tables":
        return make_tables(way, saes, linear)
    if not all(rows_are_constant(sae) for sae in saes):
        return None
    widths = [sae.d_sae for sae in saes if isinstance(sae, SAE)]
    numbers = (len(linear.ways) * widths[0] + widths[1]) * linear.W_out.shape[1]
    pays = tables_pay(
        len(sides[0].places),
        min(side.places.shape[1] for side in sides),
        max(widths),
        n_bytes=numbers * linear.W_out.element_size(),
        memory=how.memory,
    )
    return make_tables(way, saes, linear) if pays else None


def _check_tables(tables: JacobianTables, way: Passage, saes: Pair) -> None:
    """GossamerError when tables are of other sites, SAEs or weights."""
    wanted = (way.site_in, way.site_out, *(getattr(sae, "d_sae", None) for sae in saes))
    got = (tables.site_in, tables.site_out, len(tables.writes[0]), len(tables.reads))
    if wanted != got:
        raise GossamerError(
            f"These tables are from {got[0]} ({got[2]} latents) to {got[1]} ({got[3]}), and are "
            f"asked for from {wanted[0]} ({wanted[2]}) to {wanted[1]} ({wanted[3]}); make them "
            "with jacobian_tables from the same model and SAEs."
        )
    if tables.made_from != _made_from(way, saes):
        raise GossamerError(
            f"These tables from {got[0]} to {got[1]} were made from other weights; make them "
            "with jacobian_tables from this model and these SAEs."
        )


def _decoded(
    sae: SparseCoder, latents: SparseLatents, x: Float[Tensor, "n d_in"]
) -> Float[Tensor, "n width"]:
    return sae.decode(latents if isinstance(sae, SAE) else latents.to_dense(), x)


def root_mean_squares(seen: Activations) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Of the activations before and after the MLP, BOS left out."""
    kept = ~seen.special if not seen.special.all() else torch.ones_like(seen.special)
    before, after = (x[kept].square().mean().sqrt() for x in (seen.point, seen.read_out))
    return before, after


def _units(
    saes: Pair,
    sides: tuple[Side, Side],
    seen: Activations,
    sizes: tuple[Float[Tensor, ""], Float[Tensor, ""]],
) -> tuple[Float[Tensor, "n k_in"], Float[Tensor, "n k_out"]]:
    """Norm of what each latent writes, over the root mean square of what is there."""
    found = []
    for sae, side, x, size in zip(saes, sides, (seen.read_in, seen.read_out), sizes, strict=True):
        tokens, columns = (side.indices >= 0).nonzero(as_tuple=True)
        norms = write_rows(sae, side.indices[tokens, columns], x[tokens]).norm(dim=1)
        units = side.values.new_zeros(side.indices.shape)
        units[tokens, columns] = (norms / size).to(units)
        found.append(units)
    return found[0], found[1]
