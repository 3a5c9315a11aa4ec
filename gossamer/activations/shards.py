"""One shard of a harvest: an idempotent function of a model, a recipe and a task.

Whoever makes a shard writes two files and no others: the shard, then its entry, the line that the
manifest will have. So any number of processes make shards of one store without a lock, and a shard
that was finished before a kill is known by its entry.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.activations.rows import Rows, in_groups, rows_of
from gossamer.activations.store import (
    STARTS,
    TOKENS,
    Shard,
    sha256_of,
    shard_order,
    write_entry,
)
from gossamer.corpus import TokenBlock
from gossamer.errors import DiskError, GossamerError
from gossamer.models.model import Model
from gossamer.saes.native import write_tensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How all shards of a store are made."""

    directory: Path
    """Where they lie."""

    sites: tuple[str, ...]
    """Where to record."""

    dtype: str
    """On disk."""

    batch: int
    """Blocks that run at once."""

    exclude_special: bool
    """Whether the rows of BOS tokens and padding are left out."""


@dataclass(frozen=True, slots=True)
class Task:
    """One shard that a store is to have."""

    number: int
    """Its place in the order of the corpus."""

    blocks: Sequence[TokenBlock]
    """What is in it."""

    tokens: str
    """SHA-256 of the token ids of these blocks."""

    known: Shard | None
    """What was listed before, perhaps with fewer blocks."""

    @property
    def file(self) -> str:
        """Its name in the directory."""
        return f"shard-{self.number:05}.safetensors"

    @property
    def was_made(self) -> bool:
        """Whether a shard with all these blocks was listed."""
        return self.known is not None and self.known.blocks >= len(self.blocks)


class Outcome(NamedTuple):
    """A shard that is there now."""

    shard: Shard
    """As the manifest lists it."""

    is_remade: bool
    """Whether it had been made before, and was missing or damaged."""


def harvest_shard(model: Model, recipe: Recipe, task: Task) -> Outcome:
    """Make a shard, unless it is there byte for byte. GossamerError when a number does not fit the
    dtype or the disk is full; then nothing is half-written."""
    return whole_shard(recipe, task) or make_shard(model, recipe, task)


def whole_shard(recipe: Recipe, task: Task) -> Outcome | None:
    """The shard of a task where it is there, byte for byte."""
    file = recipe.directory / task.file
    if task.known is None or not task.was_made or not file.is_file():
        return None
    return Outcome(task.known, False) if sha256_of(file) == task.known.sha256 else None


def make_shard(model: Model, recipe: Recipe, task: Task) -> Outcome:
    """Run the model over a task's blocks, and write the shard and its entry."""
    rows = _rows(model, task.blocks, recipe)
    stored = {site: _stored(rows[site], recipe.dtype, (site, task.file)) for site in recipe.sites}
    stored |= _tokens(task.blocks, exclude_special=recipe.exclude_special)
    try:
        return Outcome(_write(stored, recipe.directory, task), task.was_made)
    except DiskError as problem:
        need = sum(values.nbytes for values in stored.values()) / 1e6
        raise DiskError(
            f"{problem} The shard has {need:.1f} MB; those before it are kept, and the same "
            "harvest run again goes on from there."
        ) from problem


def tokens_hash(blocks: Sequence[TokenBlock]) -> str:
    """SHA-256 of the token ids of some blocks."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block.tokens.numpy().tobytes() + b"/")
    return digest.hexdigest()


def _write(rows: Rows, directory: Path, task: Task) -> Shard:
    file = directory / task.file
    count = len(next(iter(rows.values())))
    order = shard_order(count)
    write_tensors({key: values[order] for key, values in rows.items()}, file)
    shard = Shard(
        file=task.file,
        rows=count,
        size=file.stat().st_size,
        sha256=sha256_of(file),
        blocks=len(task.blocks),
        tokens=task.tokens,
    )
    write_entry(directory, shard)
    return shard


def _rows(model: Model, blocks: Sequence[TokenBlock], recipe: Recipe) -> Rows:
    """All rows of a shard."""
    parts: Iterator[Rows] = (
        rows_of(model, part, recipe.sites, exclude_special=recipe.exclude_special)
        for part in in_groups(blocks, recipe.batch)
    )
    gathered = [{site: rows.cpu() for site, rows in part.items()} for part in parts]
    return {site: torch.cat([part[site] for part in gathered]) for site in recipe.sites}


def _tokens(blocks: Sequence[TokenBlock], *, exclude_special: bool) -> dict[str, Tensor]:
    """The token of each row of a shard, and whether a document starts there."""
    chosen = [~b.special if exclude_special else torch.ones_like(b.special) for b in blocks]
    pairs = list(zip(blocks, chosen, strict=True))
    return {
        TOKENS: torch.cat([block.tokens[keep] for block, keep in pairs]).int(),
        STARTS: torch.cat([block.starts[keep] for block, keep in pairs]),
    }


def _stored(
    values: Float[Tensor, "rows width"], dtype: str, where: tuple[str, str]
) -> Float[Tensor, "rows width"]:
    """As they go to disk. GossamerError unless all are finite, before and after."""
    site, name = where
    if not values.isfinite().all():
        raise GossamerError(
            f"Activations of {site} for {name} are not finite in the model itself, which runs in "
            f"{str(values.dtype).removeprefix('torch.')}; load it with dtype float32 or bfloat16."
        )
    stored = values.to(DTYPES[dtype])
    if not stored.isfinite().all():
        raise GossamerError(
            f"Activations of {site} for {name} reach {values.abs().max().item():.4g}, more than "
            f"{dtype} holds ({torch.finfo(DTYPES[dtype]).max:.4g}); take dtype bfloat16 and "
            "another directory."
        )
    return stored
