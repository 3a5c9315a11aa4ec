"""Run a model over a corpus and store what it shows at some sites.

Idempotent: a harvest that is run again keeps the shards that are whole and from the same tokens,
and makes the others. So it can be stopped at any moment and started again. The last shard ends with
the block in which the rows asked for are reached; a longer harvest makes it again.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.rows import Rows, counted, in_groups, rows_of
from gossamer.activations.store import (
    MANIFEST_FILE,
    STARTS,
    TOKENS,
    Shard,
    Store,
    read_manifest,
    sha256_of,
    shard_order,
    write_manifest,
)
from gossamer.corpus import TokenBlock, as_corpus, blocks, chosen_context, puts_bos
from gossamer.errors import DiskError, FormatError, GossamerError
from gossamer.models.model import Model
from gossamer.saes.native import make_directory, write_tensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHARD_TOKENS = 65_536
"""Tokens of the blocks of one shard, about."""

BATCH_TOKENS = 8192
"""Tokens that run at once, about."""


def harvest(  # noqa: PLR0913  the public face; everything by name
    model: Model,
    corpus: Any,
    *,
    sites: Sequence[str],
    directory: str | Path,
    n_tokens: int,
    dtype: str | None = None,
    context: int | None = None,
    batch: int | None = None,
    prepend_bos: bool | None = None,
    exclude_special: bool = False,
    progress: bool = False,
) -> Store:
    """Store the activations of `n_tokens` tokens of a corpus, all sites in one pass.

    Args:
        model: what to run; it stops after the last site.
        corpus: whatever `as_corpus` takes.
        sites: where to record.
        directory: of the store. One that holds part of this harvest is completed.
        n_tokens: rows to store at least, up to the end of a block; more, when they are there
            already, is left as it is.
        dtype: "float32", "float16" or "bfloat16" on disk; None: the model's.
        context: tokens of a block; None: the model's context, at most 256.
        batch: blocks that run at once; None: about 8,192 tokens.
        prepend_bos: overrides the family's rule for texts.
        exclude_special: leave out the rows of BOS tokens and padding.
        progress: show a bar on standard error.

    `remade` of the store names the shards that were missing or damaged. GossamerError when the
    corpus is smaller than asked, the disk is full, a number does not fit `dtype`, or the directory
    holds another harvest. What was stored stays, and the same call goes on from there.
    """
    sites = _checked(model, sites, n_tokens)
    context = chosen_context(model, context)
    source = as_corpus(corpus)
    about = {
        "model": model.name,
        "weights": fingerprint(model),
        "widths": {site: model.width(site) for site in sites},
        "dtype": _dtype(model, dtype),
        "corpus": source.name,
        "context": context,
        "prepend_bos": puts_bos(source, model, prepend_bos),
        "exclude_special": exclude_special,
        "shard_tokens": SHARD_TOKENS,
    }
    size = max(1, BATCH_TOKENS // context) if batch is None else batch
    if size < 1:
        raise GossamerError(f"batch is how many blocks run at once, at least 1, got {batch}.")
    into = _Unfinished.of(Path(directory), about)
    broken = into.broken()
    packed = blocks(source, model, context=context, prepend_bos=prepend_bos)
    n_rows, remade = 0, []
    bar = tqdm(total=n_tokens, unit="tok", disable=not progress)
    for number, group in enumerate(in_groups(packed, max(1, SHARD_TOKENS // context))):
        name = f"shard-{number:05}.safetensors"
        chosen = into.chosen(name, group, _enough(group, n_tokens - n_rows, exclude_special))
        if name in broken or not into.is_whole(name, chosen):
            remade += [name] if into.had(name, chosen) else []
            rows = _rows(model, chosen, (sites, size), exclude_special=exclude_special)
            stored = {
                site: _stored(values, about["dtype"], (site, name)) for site, values in rows.items()
            }
            tokens = _tokens(chosen, exclude_special=exclude_special)
            into.write(name, stored | tokens, chosen)
            broken.discard(name)
        n_rows += into.shards[name].rows
        bar.update(into.shards[name].rows)
        if n_rows >= n_tokens and not broken:
            bar.close()
            return replace(Store.open(directory), remade=tuple(remade))
    bar.close()
    if n_rows == 0:
        raise GossamerError(f"The corpus {source.name} has no tokens; give one with some text.")
    raise GossamerError(
        f"The corpus {source.name} gives {n_rows:,} rows, {n_tokens:,} were asked for. Ask for at "
        f"most {n_rows:,} (they are stored in {directory}), or take a larger corpus."
    )


def _checked(model: Model, sites: Sequence[str], n_tokens: int) -> tuple[str, ...]:
    names = (sites,) if isinstance(sites, str) else tuple(dict.fromkeys(sites))
    if not names or not 1 <= n_tokens < math.inf:
        raise GossamerError(
            f"A harvest needs at least one site and one token, got {len(names)} and {n_tokens}."
        )
    for site in names:
        model.width(site)
    return names


def _dtype(model: Model, dtype: str | None) -> str:
    name = str(model.dtype).removeprefix("torch.") if dtype is None else dtype
    if name not in DTYPES:
        raise GossamerError(f"dtype is one of {', '.join(DTYPES)}, got {name!r}.")
    return name


def fingerprint(model: Model) -> str:
    """16 hexadecimal digits that another set of weights does not have."""
    return fingerprint_of(model.language_model.named_parameters())


def fingerprint_of(tensors: Iterable[tuple[str, Shaped[Tensor, "..."]]]) -> str:
    """16 hexadecimal digits from names, shapes, and up to a thousand numbers of each."""
    digest = hashlib.sha256()
    for name, weight in tensors:
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 1000)].double().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample)
    return digest.hexdigest()[:16]


@dataclass(slots=True)
class _Unfinished:
    """A store that is being made."""

    directory: Path
    """Where."""

    about: Mapping[str, Any]
    """What decides its content."""

    shards: dict[str, Shard]
    """What is there, by file."""

    @staticmethod
    def of(directory: Path, about: Mapping[str, Any]) -> "_Unfinished":
        """Nothing is written yet. FormatError unless the directory is empty or this harvest's."""
        if directory.exists() and not directory.is_dir():
            raise FormatError(f"{directory} is a file; name a directory for the store.")
        there: Mapping[str, Any] = about
        shards: tuple[Shard, ...] = ()
        if (directory / MANIFEST_FILE).exists():
            there, shards = read_manifest(directory)
        elif directory.exists() and any(directory.iterdir()):
            raise FormatError(
                f"{directory} is not empty and holds no store; name a new or empty directory."
            )
        if not shards:
            return _Unfinished(directory, about, {})
        other = [
            f"{name}: {there.get(name)!r}, not {value!r}"
            for name, value in about.items()
            if name != "corpus" and there.get(name) != value  # the hash of its tokens says more
        ]
        if other:
            raise FormatError(
                f"{directory} holds another harvest ({'; '.join(other)}). Give the settings it was "
                "started with, or another directory."
            )
        return _Unfinished(directory, there, {shard.file: shard for shard in shards})

    def broken(self) -> set[str]:
        """Shards that are missing or cut short."""
        return {
            name
            for name, shard in self.shards.items()
            if not (file := self.directory / name).is_file() or file.stat().st_size != shard.size
        }

    def chosen(self, name: str, group: Sequence[TokenBlock], enough: int) -> Sequence[TokenBlock]:
        """The blocks of a shard: enough, and all that it had. FormatError if it had others."""
        shard = self.shards.get(name)
        if shard is not None and shard.tokens != _tokens_hash(group[: shard.blocks]):
            raise FormatError(
                f"{self.directory / name} is of other tokens than this corpus gives there: the "
                "corpus or the tokenizer has changed. Harvest into another directory."
            )
        return group[: max(enough, 0 if shard is None else shard.blocks)]

    def had(self, name: str, chosen: Sequence[TokenBlock]) -> bool:
        """Whether a shard with all these blocks was made."""
        return name in self.shards and self.shards[name].blocks >= len(chosen)

    def is_whole(self, name: str, chosen: Sequence[TokenBlock]) -> bool:
        """Whether such a shard is there, byte for byte."""
        made = self.had(name, chosen)
        return made and sha256_of(self.directory / name) == self.shards[name].sha256

    def write(self, name: str, rows: Rows, chosen: Sequence[TokenBlock]) -> None:
        """Add one shard, then list it."""
        try:
            self._write(name, rows, chosen)
        except DiskError as problem:
            need = sum(values.nbytes for values in rows.values()) / 1e6
            raise DiskError(
                f"{problem} The shard has {need:.1f} MB; those before it are kept, and the same "
                "harvest run again goes on from there."
            ) from problem

    def _write(self, name: str, rows: Rows, chosen: Sequence[TokenBlock]) -> None:
        make_directory(self.directory)
        for leftover in self.directory.glob("*.partial"):
            leftover.unlink()
        file = self.directory / name
        if not self.shards:  # so that a shard whose harvest was killed is known as its own
            write_manifest(self.directory, self.about, [])
        count = len(next(iter(rows.values())))
        order = shard_order(count)
        write_tensors({key: values[order] for key, values in rows.items()}, file)
        self.shards[name] = Shard(
            file=name,
            rows=count,
            size=file.stat().st_size,
            sha256=sha256_of(file),
            blocks=len(chosen),
            tokens=_tokens_hash(chosen),
        )
        write_manifest(self.directory, self.about, [self.shards[k] for k in sorted(self.shards)])


def _enough(group: Sequence[TokenBlock], n_rows: int, exclude_special: bool) -> int:
    """How many blocks have so many rows; all, when they have fewer."""
    counts = counted(group, exclude_special=exclude_special).sum(1).cumsum(0)
    return min(len(group), int((counts < n_rows).sum()) + 1)


def _tokens_hash(group: Sequence[TokenBlock]) -> str:
    digest = hashlib.sha256()
    for block in group:
        digest.update(block.tokens.numpy().tobytes() + b"/")
    return digest.hexdigest()


def _rows(
    model: Model,
    group: Sequence[TokenBlock],
    how: tuple[Sequence[str], int],
    *,
    exclude_special: bool,
) -> Rows:
    """All rows of a shard."""
    sites, size = how
    parts: Iterator[Rows] = (
        rows_of(model, part, sites, exclude_special=exclude_special)
        for part in in_groups(group, size)
    )
    gathered = [{site: rows.cpu() for site, rows in part.items()} for part in parts]
    return {site: torch.cat([part[site] for part in gathered]) for site in sites}


def _tokens(group: Sequence[TokenBlock], *, exclude_special: bool) -> dict[str, Tensor]:
    """The token of each row of a shard, and whether a document starts there."""
    chosen = [~b.special if exclude_special else torch.ones_like(b.special) for b in group]
    pairs = list(zip(group, chosen, strict=True))
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
