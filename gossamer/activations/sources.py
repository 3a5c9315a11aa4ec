"""Where training takes activations from: one protocol, and what can be made into it.

`about` says where a source's activations come from and ends in a digest of them, so that a run that
continues with other ones is found out: of a store its shards' hashes, of tensors some of their
rows, of a live run the model's weights and the first documents.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gossamer.activations.harvest import fingerprint
from gossamer.activations.rows import (
    Group,
    Rows,
    counted,
    cut,
    in_groups,
    order_of,
    rows_of,
)
from gossamer.activations.store import MANIFEST_FILE, Store, load_shard
from gossamer.corpus import Corpus, TokenBlock, as_corpus, blocks, puts_bos
from gossamer.distributed import all_rows, ranks
from gossamer.errors import FormatError, GossamerError, ShapeError, SiteError
from gossamer.models.model import Model

RUN_BLOCKS = 32
"""Blocks that run at once."""

DIGEST_ROWS = 1024
"""Rows of a tensor that its digest is of, spread evenly over all of them."""

DIGEST_DOCUMENTS = 64
"""Documents that a corpus' digest is of, the first ones."""


@runtime_checkable
class ActivationSource(Protocol):
    """Endless batches of activations, each a function of its number."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it has rows of."""
        ...

    @property
    def n_rows(self) -> int | None:
        """Rows of one epoch; None where that is not known."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Where they come from, as JSON values."""
        ...

    def width(self, site: str) -> int:
        """Width of the rows at a site."""
        ...

    def batches(self, size: int, *, seed: int, start: int = 0) -> Iterator[Rows]:
        """Batches of `size` rows by site, number `start` first."""
        ...


@dataclass(frozen=True, slots=True)
class TensorActivations:
    """Activations in memory, shuffled anew in each epoch."""

    tensors: Mapping[str, Float[Tensor, "rows width"]]
    """By site."""

    origin: Mapping[str, Any]
    """Where they come from."""

    def __post_init__(self) -> None:
        lengths = {len(values) for values in self.tensors.values()}
        if len(lengths) != 1 or 0 in lengths:
            shapes = {site: tuple(values.shape) for site, values in self.tensors.items()}
            raise ShapeError(f"Activations need one number of rows at every site, got {shapes}.")

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites it has rows of."""
        return tuple(self.tensors)

    @property
    def n_rows(self) -> int:
        """Rows of one epoch."""
        return len(next(iter(self.tensors.values())))

    @property
    def about(self) -> dict[str, Any]:
        """Where they come from, their number, and a digest of shapes, dtypes and some rows."""
        digest = hashlib.sha256()
        for site, values in sorted(self.tensors.items()):
            digest.update(f"{site} {values.dtype} {tuple(values.shape)} ".encode())
            step = max(1, len(values) // DIGEST_ROWS)
            some = torch.cat([values[::step], values[-1:]])
            digest.update(some.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return {**self.origin, "rows": self.n_rows, "digest": digest.hexdigest()[:16]}

    def width(self, site: str) -> int:
        """Width of the rows at a site."""
        return self.tensors[site].shape[1]

    def batches(
        self, size: int, *, seed: int, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Endless shuffled batches, number `start` first; `part=(i, n)`: part i of n of each."""
        return cut(self._groups(seed), size, start, part)

    def _groups(self, seed: int) -> Iterator[Group]:
        epoch = 0
        while True:
            yield Group(self.n_rows, partial(self._load, seed, epoch))
            epoch += 1

    def _load(self, seed: int, epoch: int, places: Int64[Tensor, " n"] | None) -> Rows:
        order = order_of(self.n_rows, seed, epoch)
        order = order if places is None else order[places]
        return {
            site: values[order.to(values.device)].float() for site, values in self.tensors.items()
        }


@dataclass(frozen=True, slots=True)
class LiveActivations:
    """Activations of a corpus made as they are asked for, nothing stored.

    Runs of `shuffle_blocks` blocks, in the order of the corpus, are shuffled each by itself.
    Starting at a later batch tokenizes what comes before it, and runs the model only from there.
    """

    model: Model
    """What runs."""

    corpus: Corpus
    """What it reads."""

    sites: tuple[str, ...]
    """Where it is read."""

    context: int | None = None
    """Tokens of a block; None: the model's context, at most 256."""

    exclude_special: bool = False
    """Whether the rows of BOS tokens are left out."""

    shuffle_blocks: int = 64
    """Blocks whose rows are in memory and shuffled together: more mix a batch better."""

    shared: bool = False
    """Whether all processes that have joined read the same batches, and each runs the model on its
    part of the blocks."""

    def __post_init__(self) -> None:
        longest = self.model.context_length
        if self.context is not None and not 2 <= self.context <= longest:
            raise GossamerError(
                f"context is how many tokens a block has, 2 to {longest} for {self.model.name}, "
                f"got {self.context}."
            )

    @property
    def n_rows(self) -> None:
        """Not known before the corpus has been read."""
        return None

    @property
    def about(self) -> Mapping[str, Any]:
        """Model, corpus, sites, and a digest of the first documents."""
        return {
            "model": self.model.name,
            "weights": fingerprint(self.model),
            "corpus": self.corpus.name,
            "context": self.context,
            "prepend_bos": puts_bos(self.corpus, self.model, None),
            "exclude_special": self.exclude_special,
            "shuffle_blocks": self.shuffle_blocks,
            "sites": list(self.sites),
            "digest": _documents_digest(self.corpus),
        }

    def width(self, site: str) -> int:
        """Width of the rows at a site."""
        return self.model.width(site)

    def batches(
        self, size: int, *, seed: int, start: int = 0, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Endless shuffled batches, number `start` first; `part=(i, n)`: part i of n of each.

        GossamerError for a part of what is shared: processes give each other rows, and would wait
        for one whose part needs none.
        """
        if self.shared and part != (0, 1):
            raise GossamerError(
                f"Processes that share a live run all read whole batches, got part={part}; leave "
                "part out, or shared."
            )
        return cut(self._groups(seed), size, start, part)

    def _groups(self, seed: int) -> Iterator[Group]:
        epoch = 0
        while True:
            packed = blocks(self.corpus, self.model, context=self.context)
            rows = 0
            for number, group in enumerate(in_groups(packed, self.shuffle_blocks)):
                count = int(counted(group, exclude_special=self.exclude_special).sum())
                rows += count
                yield Group(count, partial(self._load, group, (seed, epoch, number)))
            if rows == 0:
                raise GossamerError(f"The corpus {self.corpus.name} has no tokens.")
            epoch += 1

    def _load(
        self,
        group: list[TokenBlock],
        place: tuple[int, ...],
        places: Int64[Tensor, " n"] | None,
    ) -> Rows:
        rank, size = ranks() if self.shared else (0, 1)
        shares = [group[len(group) * i // size : len(group) * (i + 1) // size] for i in range(size)]
        parts = [
            rows_of(self.model, part, self.sites, exclude_special=self.exclude_special)
            for part in in_groups(shares[rank], RUN_BLOCKS)
        ]
        none = torch.zeros(0, 0, device=self.model.device)
        whole = {
            site: torch.cat([part[site].float() for part in parts])
            if parts
            else none.new_zeros(0, self.width(site))
            for site in self.sites
        }
        if size > 1:
            counts = [
                int(counted(share, exclude_special=self.exclude_special).sum()) if share else 0
                for share in shares
            ]
            whole = {site: all_rows(rows, counts) for site, rows in whole.items()}
        count = len(next(iter(whole.values())))
        order = order_of(count, *place)
        order = order if places is None else order[places]
        return {site: values[order.to(values.device)] for site, values in whole.items()}


def _documents_digest(corpus: Corpus) -> str:
    """16 hexadecimal digits of the first documents: reading all of them would be too dear."""
    digest = hashlib.sha256()
    for document in islice(corpus.documents(), DIGEST_DOCUMENTS):
        if isinstance(document, str):
            digest.update(f"text {len(document)} {document}".encode("utf-8", "surrogatepass"))
        else:
            digest.update(f"ids {len(document)} ".encode())
            digest.update(np.asarray(document, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def as_source(what: Any, site: str | None = None) -> ActivationSource:
    """A source of activations.

    Args:
        what: a store or its directory; (model, corpus, site or sites) to run live; a tensor (rows,
            width), a mapping of them by site, or a .npy or .safetensors file of such; or a source.
        site: of a tensor that comes without one.
    """
    if isinstance(what, Store | TensorActivations | LiveActivations):
        return what
    if isinstance(what, tuple) and len(what) == 3 and isinstance(what[0], Model):
        model, corpus, sites = what
        names = (sites,) if isinstance(sites, str) else tuple(sites)
        for name in names:
            model.width(name)
        return LiveActivations(model, as_corpus(corpus), names)
    if isinstance(what, str | Path):
        return _from_path(Path(what), site)
    if isinstance(what, Tensor | np.ndarray):
        return _from_tensor(torch.as_tensor(what), site, "tensor")
    if isinstance(what, Mapping):
        return TensorActivations({k: _two_axes(v, k) for k, v in what.items()}, {"from": "tensors"})
    if isinstance(what, ActivationSource):
        return what
    raise GossamerError(
        "Activations come from a store, a tensor or file, or (model, corpus, site); got "
        f"{type(what).__name__}."
    )


def _from_path(path: Path, site: str | None) -> ActivationSource:
    if (path / MANIFEST_FILE).is_file():
        return Store.open(path)
    if path.suffix == ".npy" and path.is_file():
        return _from_tensor(_loaded(path), site, path.name)
    if path.suffix == ".safetensors" and path.is_file():
        tensors = {name: _two_axes(values, name) for name, values in load_shard(path).items()}
        return TensorActivations(tensors, {"from": path.name})
    raise FormatError(
        f"There are no activations at {path}: give a store's directory, or a .npy or .safetensors "
        "file."
    )


def _loaded(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, mmap_mode="c"))
    except (ValueError, OSError, TypeError, EOFError) as error:
        raise FormatError(
            f"{path} holds no activations that can be read ({error}); save numbers (rows, width)."
        ) from error


def _from_tensor(values: Tensor, site: str | None, name: str) -> TensorActivations:
    if site is None:
        raise SiteError(
            "A bare tensor of activations does not say where it is from: name the site, or give "
            "{site: tensor}."
        )
    return TensorActivations({site: _two_axes(values, name)}, {"from": name})


def _two_axes(values: Any, name: str) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim != 2 or not values.is_floating_point():
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ShapeError(f"Activations are numbers (rows, width), got {got} for {name}.")
    return values
