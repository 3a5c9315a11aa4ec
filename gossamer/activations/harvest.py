"""Run a model over a corpus and store what it shows at some sites.

Idempotent: a harvest that is run again keeps the shards that are whole and from the same tokens,
and makes the others. So it can be stopped at any moment and started again.
"""

import errno
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from gossamer.activations.rows import Rows, counted, in_groups, rows_of
from gossamer.activations.store import (
    MANIFEST_FILE,
    Shard,
    Store,
    read_manifest,
    sha256_of,
    write_manifest,
)
from gossamer.corpus import TokenBlock, as_corpus, blocks, puts_bos
from gossamer.errors import FormatError, GossamerError
from gossamer.models.model import Model
from gossamer.saes.native import write_tensors

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
        n_tokens: rows to store; more, when shards beyond them are there already, is left as it is.
        dtype: "float32", "float16" or "bfloat16" on disk; None: the model's.
        context: tokens of a block; None: the model's context, at most 256.
        batch: blocks that run at once; None: about 8,192 tokens.
        prepend_bos: overrides the family's rule for texts.
        exclude_special: leave out the rows of BOS tokens.
        progress: show a bar on standard error.

    GossamerError when the corpus is smaller than asked, the disk is full, or the directory holds
    another harvest. What was stored stays, and the same call goes on from there.
    """
    sites = _checked(model, sites, n_tokens)
    context = min(256, model.context_length) if context is None else context
    about = {
        "model": model.name,
        "weights": fingerprint(model),
        "widths": {site: model.width(site) for site in sites},
        "dtype": _dtype(model, dtype),
        "corpus": (source := as_corpus(corpus)).name,
        "context": context,
        "prepend_bos": puts_bos(source, model, prepend_bos),
        "exclude_special": exclude_special,
        "shard_tokens": SHARD_TOKENS,
    }
    directory = Path(directory)
    known = {shard.file: shard for shard in _started(directory, about)}
    size = max(1, BATCH_TOKENS // context) if batch is None else batch
    packed = blocks(source, model, context=context, prepend_bos=prepend_bos)
    shards: list[Shard] = []
    bar = tqdm(total=n_tokens, unit="tok", disable=not progress)
    for number, group in enumerate(in_groups(packed, max(1, SHARD_TOKENS // context))):
        name, tokens = f"shard-{number:05}.safetensors", _tokens_hash(group)
        count = int(counted(group, exclude_special=exclude_special).sum())
        if not _whole(directory, known.get(name), tokens):
            rows = _rows(model, group, (sites, size), exclude_special=exclude_special)
            known[name] = _written(directory / name, rows, about["dtype"], tokens)
            kept = [known[key] for key in sorted(known)]
            write_manifest(directory, about, kept)
        shards.append(known[name])
        bar.update(count)
        if sum(shard.rows for shard in shards) >= n_tokens:
            bar.close()
            return Store.open(directory)
    bar.close()
    rows = sum(shard.rows for shard in shards)
    raise GossamerError(
        f"The corpus {source.name} gives {rows:,} rows, {n_tokens:,} were asked for. Ask for at "
        f"most {rows:,} (they are stored in {directory}), or take a larger corpus."
    )


def _checked(model: Model, sites: Sequence[str], n_tokens: int) -> tuple[str, ...]:
    names = (sites,) if isinstance(sites, str) else tuple(dict.fromkeys(sites))
    if not names or n_tokens < 1:
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
    """16 hexadecimal digits that another set of weights does not have: names, shapes, and up to a
    thousand numbers of each."""
    digest = hashlib.sha256()
    for name, weight in model.language_model.named_parameters():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 1000)].double().cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + sample)
    return digest.hexdigest()[:16]


def _started(directory: Path, about: Mapping[str, Any]) -> tuple[Shard, ...]:
    """The shards there are, once the directory is this harvest's own."""
    if directory.exists() and not directory.is_dir():
        raise FormatError(f"{directory} is a file; name a directory for the store.")
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob("*.partial"):
        leftover.unlink()
    if not (directory / MANIFEST_FILE).exists():
        if any(directory.iterdir()):
            raise FormatError(
                f"{directory} is not empty and holds no store; name a new or empty directory."
            )
        write_manifest(directory, about, [])
        return ()
    there, shards = read_manifest(directory)
    other = [f"{k}: {there.get(k)!r}, not {v!r}" for k, v in about.items() if there.get(k) != v]
    if other:
        raise FormatError(
            f"{directory} holds another harvest ({'; '.join(other)}). Give the settings it was "
            "started with, or another directory."
        )
    return shards


def _tokens_hash(group: Sequence[TokenBlock]) -> str:
    digest = hashlib.sha256()
    for block in group:
        digest.update(block.tokens.numpy().tobytes() + b"/")
    return digest.hexdigest()


def _whole(directory: Path, shard: Shard | None, tokens: str) -> bool:
    """Whether a shard is there, undamaged and of these tokens. FormatError if of others."""
    if shard is None:
        return False
    if shard.tokens != tokens:
        raise FormatError(
            f"{directory / shard.file} is of other tokens than this corpus gives there: the corpus "
            "or the tokenizer has changed. Harvest into another directory."
        )
    file = directory / shard.file
    same_size = file.is_file() and file.stat().st_size == shard.size
    return same_size and sha256_of(file) == shard.sha256


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


def _written(file: Path, rows: Rows, dtype: str, tokens: str) -> Shard:
    """Write one shard. GossamerError when the disk is full."""
    stored = {site: values.to(DTYPES[dtype]) for site, values in rows.items()}
    try:
        write_tensors(stored, file)
    except (OSError, SafetensorError) as error:
        file.with_name(f"{file.name}.partial").unlink(missing_ok=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        if not full:
            raise
        need = sum(values.nbytes for values in stored.values())
        raise GossamerError(
            f"The disk is full: {file} needs {need / 1e6:.1f} MB. The shards before it are kept; "
            "make room and run the same harvest again."
        ) from error
    count = len(next(iter(stored.values())))
    return Shard(
        file=file.name,
        rows=count,
        size=file.stat().st_size,
        sha256=sha256_of(file),
        tokens=tokens,
    )
