"""The edges of a corpus, added up by pair of latents and offset.

Processes that torchrun started share the pieces of the corpus: by turns, one piece a process and
turn. Each writes the files of its piece, and merges some pairs of sites; the first one lists them.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.harvest import fingerprint, fingerprint_of
from gossamer.activations.rows import in_groups
from gossamer.attribution.graphs.run import Run, clean_run
from gossamer.attribution.over.directory import Counted, Directory, Piece
from gossamer.attribution.over.found import active_latents, edges_of
from gossamer.attribution.over.gathered import Gathered
from gossamer.attribution.over.sides import Sides, both, no_sides, sides_of
from gossamer.attribution.over.table import EdgeTable
from gossamer.corpus import TokenBlock, as_corpus, blocks, chosen_context, puts_bos
from gossamer.distributed import check_same, first, gathered, ranks, together, wait
from gossamer.errors import GossamerError
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.saes.rows import n_latents
from gossamer.splice import as_saes, check_saes, chosen_bos

Offsets = Literal["same", "all"]
"""Edges between latents of one token, or of all tokens."""

HELD = ("attention", "norms")
"""Kept at each prompt's clean run."""

PIECE_TOKENS: dict[str, int] = {"same": 16_384, "all": 2048}
"""Tokens of a piece of the corpus, about: a killed run loses what it did of one; processes share
them."""

RESOLUTION = 2.0**-24
"""Edges are rounded to multiples of this."""

MEMORY = 1 << 29
"""Bytes of sums in memory."""


def edges_over(  # noqa: PLR0913  the public face; everything by name
    model: Model,
    saes: Any,
    corpus: Any = "stdlib",
    *,
    n_tokens: int = 65_536,
    offsets: Offsets = "same",
    context: int | None = None,
    smallest: float = 0.0,
    special: bool = False,
    resolution: float = RESOLUTION,
    part: tuple[int, int] = (0, 1),
    directory: str | Path | None = None,
    memory: int = MEMORY,
    prepend_bos: bool | None = None,
    progress: bool = False,
) -> EdgeTable:
    """Add up the edges between latents over a corpus: direct ones between the SAEs passed, with
    attention and norms held, as `attribute` gives them for one prompt.

    Under torchrun every process calls it alike, and gets the same table.

    Args:
        model: the model.
        saes: at least two, or one transcoder set; all are spliced, and every path through a splice
            is cut.
        corpus: whatever `as_corpus` takes; "stdlib" is its held-out part.
        n_tokens: tokens that are looked at, up to the end of a block, or as many as there are.
        offsets: "same": edges between latents of one token; "all": of all earlier tokens too, some
            hundred times as many.
        context: tokens of a block, which is a prompt by itself; None: the model's, at most 256.
        smallest: edges up to this size are left out and counted; at 0 those that are exactly 0.
        special: whether latents at BOS tokens and padding count.
        resolution: a power of two; edges are rounded to multiples of it, so that sums are exact and
            in any order the same.
        part: (i, n): only the pieces i, i + n, … of the corpus, for `EdgeTable.merge`.
        directory: of the table. One that holds part of it is completed. None: a temporary place.
            On a disk that all machines share, where there are several.
        memory: bytes that sums may take; more go to files.
        prepend_bos: overrides what the SAEs' files and the family say.
        progress: show a bar on standard error.

    The result is the same, bit for bit, however the work is cut: in one call, in parts, over
    processes, or resumed after a kill (on one kind of machine with one number of threads, as the
    model's numbers are).
    """
    _check(n_tokens, offsets, part, smallest=smallest, resolution=resolution)
    given = {"n_tokens": n_tokens, "offsets": offsets, "smallest": float(smallest)}
    given |= {"special": special, "resolution": resolution, "part": list(part)}
    given |= {"context": context, "prepend_bos": prepend_bos}
    how, packed = together(partial(_settled, model, saes, corpus, given, memory=memory))
    check_same(how.about, "table")
    labels = {site: getattr(sae, "labels", None) for site, sae in how.saes.items()}
    shows = progress and ranks().is_first
    bar = tqdm(total=n_tokens, desc="Edges", unit=" tokens", disable=not shows)
    with _place(directory) as place, bar:
        first(lambda: Directory.of(place, how.about).tidy())
        into = together(partial(_opened, place, how.about))
        _complete(how, into, packed, bar)
        table = together(lambda: EdgeTable.of(Directory.open(place), labels))
        wait()  # files that are mapped stay until nobody maps them
        return table


@contextmanager
def _place(directory: str | Path | None) -> Iterator[Path]:
    """The directory, or one that the first process makes for all of them, and takes away."""
    if directory is not None:
        yield Path(directory)
        return
    with ExitStack() as stack:

        def make() -> str:
            return stack.enter_context(tempfile.TemporaryDirectory(prefix="gossamer-edges-"))

        yield Path(first(make))


def _opened(place: Path, about: dict[str, Any]) -> Directory:
    """A directory that the first process has made, as another one writes to it."""
    here = ranks()
    if not place.is_dir():
        raise GossamerError(
            f"Process {here.rank} does not find {place}, where the first one writes; name a "
            "directory on a disk that all machines share."
        )
    into = Directory.of(place, about)
    into.share = here
    return into


def _settled(
    model: Model, saes: Any, corpus: Any, given: dict[str, Any], *, memory: int
) -> tuple["_How", Iterator[TokenBlock]]:
    """What stays the same over a call, and the corpus."""
    coders = as_saes(saes)
    check_saes(model, coders)
    source = as_corpus(corpus, split="held_out")
    bos = chosen_bos(given["prepend_bos"], coders.values(), [""])
    context = chosen_context(model, given["context"])
    about = {
        "model": model.name,
        "weights": fingerprint(model),
        "saes": {site: _digest(sae) for site, sae in coders.items()},
        "widths": {site: _width(model, sae) for site, sae in coders.items()},
        "corpus": source.name,
        "n_tokens": given["n_tokens"],
        "offsets": given["offsets"],
        "context": context,
        "prepend_bos": puts_bos(source, model, bos),
        "smallest": given["smallest"],
        "special": given["special"],
        "resolution": given["resolution"],
        "part": given["part"],
        "piece_tokens": PIECE_TOKENS[given["offsets"]],
    }
    packed = blocks(source, model, context=context, prepend_bos=bos)
    return _How(model, coders, about, memory), packed


@dataclass(frozen=True, slots=True)
class _How:
    """What stays the same over a call."""

    model: Model
    saes: Mapping[str, Any]
    about: dict[str, Any]
    memory: int


def _check(
    n_tokens: int, offsets: str, part: tuple[int, int], *, smallest: float, resolution: float
) -> None:
    if n_tokens < 1:
        raise GossamerError(f"n_tokens is how many tokens to look at, 1 or more, got {n_tokens}.")
    if offsets not in get_args(Offsets):
        raise GossamerError(f"offsets is one of {', '.join(get_args(Offsets))}, got {offsets!r}.")
    if not smallest >= 0:
        raise GossamerError(f"smallest is the size of an edge, 0 or more, got {smallest}.")
    if not 2.0**-60 <= resolution <= 1 or resolution.hex().split("p")[0] != "0x1.0000000000000":
        raise GossamerError(
            f"resolution is a power of two from 2**-60 to 1, such as 2**-24, got {resolution}."
        )
    if len(part) != 2 or not 0 <= part[0] < part[1]:
        raise GossamerError(f"part is (i, n) with 0 ≤ i < n, got {part}.")


def _digest(sae: Any) -> str:
    if not isinstance(sae, torch.nn.Module):
        return ""
    return fingerprint_of(sae.state_dict().items())


def _width(model: Model, sae: Any) -> int:
    x = torch.zeros(1, model.width(sae.site_in), dtype=model.dtype, device=model.device)
    return n_latents(sae, x)


class _Task(NamedTuple):
    """A piece of the corpus that is not in the table yet."""

    number: int
    """Which."""

    digest: str
    """Of its tokens."""

    group: Sequence[TokenBlock]
    """Its blocks."""


def _complete(how: _How, into: Directory, packed: Iterator[TokenBlock], bar: Any) -> None:
    """Do what is missing."""
    if into.finished:
        bar.update(bar.total)
        return
    tasks, n_pieces = _missing(how, into, packed, bar), len(into.pieces)
    while True:
        found = gathered(together(partial(_turn, how, into, tasks, bar)))
        if any(digests != found[0][0] for digests, _ in found):
            raise GossamerError(
                "The corpus is not the same in all processes; give each of them the same files."
            )
        done = [piece for _, piece in found if piece is not None]
        if not done:
            break
        n_pieces += len(done)
        into.n_files = max(piece.n_files for piece in done)
        into.add(done)
        others = [piece for number, (_, piece) in enumerate(found) if number != ranks().rank]
        bar.update(sum(piece.counted.n_tokens for piece in others if piece is not None))
    if not n_pieces:
        turn, n_parts = how.about["part"]
        raise GossamerError(
            f"Part {turn} of {n_parts} of the corpus {how.about['corpus']} has no tokens; give a "
            "longer corpus, or fewer parts."
        )
    into.finish()


def _missing(how: _How, into: Directory, packed: Iterator[TokenBlock], bar: Any) -> Iterator[_Task]:
    """The pieces that are still to be done, in order."""
    about = how.about
    enough = until(packed, about["n_tokens"], about["special"])
    turn, n_parts = about["part"]
    size = max(1, about["piece_tokens"] // about["context"])
    for number, group in enumerate(in_groups(enough, size)):
        task = _Task(number, _tokens_hash(group), group)
        if number % n_parts == turn and not into.has(number, task.digest):
            yield task
        else:
            bar.update(sum(int(counted(block, about["special"]).sum()) for block in group))


def _turn(
    how: _How, into: Directory, tasks: Iterator[_Task], bar: Any
) -> tuple[list[str], Piece | None]:
    """The digests of one turn's pieces, and that piece which this process does."""
    here = ranks()
    turn = list(islice(tasks, here.size))
    mine = _piece(how, into, turn[here.rank], bar) if here.rank < len(turn) else None
    return [task.digest for task in turn], mine


def _piece(how: _How, into: Directory, task: _Task, bar: Any) -> Piece:
    """The edges of some blocks, in files."""
    about, widths = how.about, how.about["widths"]
    runs: list[dict[str, list[str]]] = []
    sums = Gathered(
        widths,
        about["resolution"],
        about["smallest"],
        how.memory,
        lambda pair, run: runs.append(into.write_run({pair: run})),
    )
    sides: Sides = no_sides(widths)
    n_tokens = 0
    for block in task.group:
        chosen = counted(block, about["special"])
        if chosen.any():
            run = run_of(how.model, how.saes, block)
            latents = active_latents(run, chosen)
            sides = both(sides, sides_of(latents, widths, about["resolution"]))
            for found in edges_of(run, latents, same=about["offsets"] == "same"):
                sums.add(found)
        n_tokens += int(chosen.sum())
        bar.update(int(chosen.sum()))
    sums.give()
    done = Counted(
        n_tokens=n_tokens,
        n_prompts=len(task.group),
        n_edges=sums.n_edges,
        n_left_out=sums.left_out.n_edges,
        size_left_out=sums.left_out.size,
    )
    name = into.write_sides(sides)
    return Piece(task.number, task.digest, runs, name, done, into.n_files)


def run_of(model: Model, saes: Mapping[str, Any], block: TokenBlock) -> Run:
    """The clean run of a block."""
    tokens = block.tokens[None].to(model.device)
    return clean_run(model, saes, HELD, TokenBatch(tokens, torch.ones_like(tokens).bool()))


def counted(block: TokenBlock, special: bool) -> Bool[Tensor, " pos"]:
    """Which tokens of a block count."""
    return torch.ones_like(block.special) if special else ~block.special


def until(packed: Iterator[TokenBlock], n_tokens: int, special: bool) -> Iterator[TokenBlock]:
    """Blocks until so many tokens count."""
    for block in packed:
        yield block
        n_tokens -= int(counted(block, special).sum())
        if n_tokens <= 0:
            return


def _tokens_hash(group: Sequence[TokenBlock]) -> str:
    digest = hashlib.sha256()
    for block in group:
        digest.update(block.tokens.numpy().tobytes() + b"/")
    return digest.hexdigest()
