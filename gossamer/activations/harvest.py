"""Run a model over a corpus and store what it shows at some sites.

Idempotent: a harvest that is run again keeps the shards that are whole and from the same tokens,
and makes the others. So it can be stopped at any moment and started again. The last shard ends with
the block in which the rows asked for are reached; a longer harvest makes it again.

Processes that torchrun started share the shards: each cuts the corpus, and of n processes number i
makes shards i, i + n, …; the store is the one that a single process makes. Ray's actors do the same
from tasks that this process hands out.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.ray_actors import over_ray
from gossamer.activations.shards import DTYPES, Outcome, Recipe, Task, harvest_shard
from gossamer.activations.store import Store
from gossamer.activations.unfinished import Unfinished
from gossamer.corpus import Corpus, as_corpus, blocks, chosen_context, puts_bos
from gossamer.distributed import check_same, first, gathered, ranks, together
from gossamer.errors import GossamerError
from gossamer.models.model import Model

SHARD_TOKENS = 65_536
"""Tokens of the blocks of one shard, about."""

BATCH_TOKENS = 8192
"""Tokens that run at once, about."""

ENGINES = ("inline", "ray")
"""Who runs the model: this process and those that torchrun started with it, or Ray's actors."""


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
    engine: str = "inline",
    address: str | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> Store:
    """Store the activations of `n_tokens` tokens of a corpus, all sites in one pass.

    Under torchrun every process calls it alike, and gets the same store.

    Args:
        model: what to run; it stops after the last site.
        corpus: whatever `as_corpus` takes.
        sites: where to record.
        directory: of the store. One that holds part of this harvest is completed. On a disk that
            all machines share, where there are several.
        n_tokens: rows to store at least, up to the end of a block; more, when they are there
            already, is left as it is.
        dtype: "float32", "float16" or "bfloat16" on disk; None: the model's.
        context: tokens of a block; None: the model's context, at most 256.
        batch: blocks that run at once; None: about 8,192 tokens.
        prepend_bos: overrides the family's rule for texts.
        exclude_special: leave out the rows of BOS tokens and padding.
        engine: "inline": this process, and those that torchrun started with it. "ray": actors of a
            Ray cluster, which get the weights once.
        address: of the cluster; "auto" finds the one that runs here; None: one of this machine,
            for this call only.
        workers: actors of Ray; None: one a GPU for a model on cuda, else one a machine.
        progress: show a bar on standard error.

    `remade` of the store names the shards that were missing or damaged. GossamerError when the
    corpus is smaller than asked, the disk is full, a number does not fit `dtype`, or the directory
    holds another harvest. What was stored stays, and the same call goes on from there.
    """
    _check_engine(engine, address, workers)
    how = {"n_tokens": n_tokens, "dtype": dtype, "context": context, "batch": batch}
    how |= {"prepend_bos": prepend_bos, "exclude_special": exclude_special}
    source, about, size = together(partial(_settled, model, corpus, sites, how))
    check_same((about, size, n_tokens), "harvest")
    into = first(partial(_begun, Path(directory), about))
    recipe = Recipe(
        directory=Path(directory).absolute(),
        sites=tuple(about["widths"]),
        dtype=about["dtype"],
        batch=size,
        exclude_special=exclude_special,
    )
    packed = blocks(source, model, context=about["context"], prepend_bos=prepend_bos)
    tasks = into.tasks(packed, n_tokens, max(1, SHARD_TOKENS // about["context"]))
    if engine == "ray":
        outcomes = over_ray(tasks, recipe, model, address=address, workers=workers)
    else:
        outcomes = _over_ranks(tasks, partial(harvest_shard, model, recipe))
    made = []
    with tqdm(total=n_tokens, unit="tok", disable=not (progress and ranks().is_first)) as bar:
        for outcome in outcomes:
            made.append(outcome)
            bar.update(outcome.shard.rows)
    first(partial(into.finish, [outcome.shard for outcome in made]))
    _check_enough(source, sum(outcome.shard.rows for outcome in made), n_tokens, directory)
    remade = sorted(outcome.shard.file for outcome in made if outcome.is_remade)
    return replace(Store.open(directory), remade=tuple(remade))


def _check_engine(engine: str, address: str | None, workers: int | None) -> None:
    if engine not in ENGINES:
        raise GossamerError(f"engine is one of {', '.join(ENGINES)}, got {engine!r}.")
    if engine == "ray" and ranks().size > 1:
        raise GossamerError(
            f"engine ray starts its own workers, got {ranks().size} processes of torchrun; leave "
            "out one of the two."
        )
    if engine != "ray" and (address is not None or workers is not None):
        raise GossamerError(
            "address and workers are for engine ray; give engine ray too, or start several "
            "processes with torchrun --nproc-per-node N -m gossamer harvest …."
        )
    if workers is not None and workers < 1:
        raise GossamerError(f"workers is how many actors Ray starts, at least 1, got {workers}.")


def _settled(
    model: Model, corpus: Any, sites: Sequence[str], how: dict[str, Any]
) -> tuple[Corpus, dict[str, Any], int]:
    """The corpus, what decides the content of the store, and how many blocks run at once."""
    sites = _checked(model, sites, how["n_tokens"])
    context = chosen_context(model, how["context"])
    source = as_corpus(corpus)
    size = max(1, BATCH_TOKENS // context) if how["batch"] is None else how["batch"]
    if size < 1:
        raise GossamerError(f"batch is how many blocks run at once, at least 1, got {size}.")
    about = {
        "model": model.name,
        "weights": fingerprint(model),
        "widths": {site: model.width(site) for site in sites},
        "dtype": _dtype(model, how["dtype"]),
        "corpus": source.name,
        "context": context,
        "prepend_bos": puts_bos(source, model, how["prepend_bos"]),
        "exclude_special": how["exclude_special"],
        "shard_tokens": SHARD_TOKENS,
    }
    return source, about, size


def _begun(directory: Path, about: dict[str, Any]) -> Unfinished:
    into = Unfinished.of(directory, about)
    into.begin()
    return into


def _over_ranks(tasks: Iterator[Task], make: Callable[[Task], Outcome]) -> Iterator[Outcome]:
    """All shards in order, each made by one process: by turns, one shard a process and turn, so
    that all stop where one of them cannot go on."""
    while True:
        found = gathered(together(partial(_turn, tasks, make)))
        if any(tokens != found[0][0] for tokens, _ in found):
            raise GossamerError(
                "The corpus is not the same in all processes; give each of them the same files."
            )
        outcomes = [outcome for _, outcome in found if outcome is not None]
        if not outcomes:
            return
        yield from outcomes


def _turn(
    tasks: Iterator[Task], make: Callable[[Task], Outcome]
) -> tuple[list[str], Outcome | None]:
    """The tokens of one turn's tasks, and the shard of the one that is this process's."""
    here = ranks()
    turn = list(islice(tasks, here.size))
    mine = make(turn[here.rank]) if here.rank < len(turn) else None
    return [task.tokens for task in turn], mine


def _check_enough(source: Corpus, n_rows: int, n_tokens: int, directory: str | Path) -> None:
    if n_rows == 0:
        raise GossamerError(f"The corpus {source.name} has no tokens; give one with some text.")
    if n_rows < n_tokens:
        raise GossamerError(
            f"The corpus {source.name} gives {n_rows:,} rows, {n_tokens:,} were asked for. Ask for "
            f"at most {n_rows:,} (they are stored in {directory}), or take a larger corpus."
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
