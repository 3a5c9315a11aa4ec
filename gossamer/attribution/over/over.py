"""The edges of a corpus, added up by pair of latents and offset."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from gossamer.activations.harvest import fingerprint, fingerprint_of
from gossamer.activations.rows import in_groups
from gossamer.attribution.graphs.run import Run, clean_run
from gossamer.attribution.over.directory import Counted, Directory
from gossamer.attribution.over.found import active_latents, edges_of
from gossamer.attribution.over.gathered import Gathered
from gossamer.attribution.over.sides import Sides, both, no_sides, sides_of
from gossamer.attribution.over.table import EdgeTable
from gossamer.corpus import TokenBlock, as_corpus, blocks, chosen_context, puts_bos
from gossamer.errors import GossamerError
from gossamer.models.model import Model
from gossamer.models.prompts import TokenBatch
from gossamer.saes.rows import n_latents
from gossamer.splice import as_saes, check_saes, chosen_bos

Offsets = Literal["same", "all"]
"""Edges between latents of one token, or of all tokens."""

HELD = ("attention", "norms")
"""Kept at each prompt's clean run."""

PIECE_TOKENS: dict[str, int] = {"same": 65_536, "all": 2048}
"""Tokens of a piece of the corpus, about: a killed run loses what it did of one."""

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
        memory: bytes that sums may take; more go to files.
        prepend_bos: overrides what the SAEs' files and the family say.
        progress: show a bar on standard error.

    The result is the same, bit for bit, however the work is cut: in one call, in parts, or resumed
    after a kill (on one kind of machine with one number of threads, as the model's numbers are).
    """
    coders = as_saes(saes)
    check_saes(model, coders)
    _check(n_tokens, offsets, part, smallest=smallest, resolution=resolution)
    source = as_corpus(corpus, split="held_out")
    bos = chosen_bos(prepend_bos, coders.values(), [""])
    context = chosen_context(model, context)
    how = _How(
        model,
        coders,
        {
            "model": model.name,
            "weights": fingerprint(model),
            "saes": {site: _digest(sae) for site, sae in coders.items()},
            "widths": {site: _width(model, sae) for site, sae in coders.items()},
            "corpus": source.name,
            "n_tokens": n_tokens,
            "offsets": offsets,
            "context": context,
            "prepend_bos": puts_bos(source, model, bos),
            "smallest": float(smallest),
            "special": special,
            "resolution": resolution,
            "part": list(part),
            "piece_tokens": PIECE_TOKENS[offsets],
        },
        memory,
    )
    labels = {site: getattr(sae, "labels", None) for site, sae in coders.items()}
    packed = blocks(source, model, context=context, prepend_bos=bos)
    bar = tqdm(total=n_tokens, desc="Edges", unit=" tokens", disable=not progress)
    with tempfile.TemporaryDirectory(prefix="gossamer-edges-") as temporary, bar:
        into = Directory.of(Path(temporary if directory is None else directory), how.about)
        into.tidy()
        _complete(how, into, packed, bar)
        return EdgeTable.of(into, labels)  # files that are mapped stay until nobody maps them


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


def _complete(how: _How, into: Directory, packed: Iterator[TokenBlock], bar: Any) -> None:
    """Do what is missing."""
    if into.finished:
        bar.update(bar.total)
        return
    about = how.about
    enough = until(packed, about["n_tokens"], about["special"])
    turn, n_parts = about["part"]
    size = max(1, about["piece_tokens"] // about["context"])
    for number, group in enumerate(in_groups(enough, size)):
        piece = (number, _tokens_hash(group))
        if number % n_parts == turn and not into.has(*piece):
            _add_piece(how, into, piece, group, bar=bar)
        else:
            bar.update(sum(int(counted(block, about["special"]).sum()) for block in group))
    if not into.pieces:
        raise GossamerError(
            f"Part {turn} of {n_parts} of the corpus {about['corpus']} has no tokens; give a "
            "longer corpus, or fewer parts."
        )
    into.finish()


def _add_piece(
    how: _How, into: Directory, piece: tuple[int, str], group: Sequence[TokenBlock], *, bar: Any
) -> None:
    """The edges of some blocks."""
    about, widths, runs = how.about, how.about["widths"], []
    gathered = Gathered(
        widths,
        about["resolution"],
        about["smallest"],
        how.memory,
        lambda pair, run: runs.append(into.write_run({pair: run})),
    )
    sides: Sides = no_sides(widths)
    n_tokens = 0
    for block in group:
        chosen = counted(block, about["special"])
        n = int(chosen.sum())
        if n:
            run = run_of(how.model, how.saes, block)
            latents = active_latents(run, chosen)
            sides = both(sides, sides_of(latents, widths, about["resolution"]))
            for found in edges_of(run, latents, same=about["offsets"] == "same"):
                gathered.add(found)
        n_tokens += n
        bar.update(n)
    gathered.give()
    done = Counted(
        n_tokens=n_tokens,
        n_prompts=len(group),
        n_edges=gathered.n_edges,
        n_left_out=gathered.left_out.n_edges,
        size_left_out=gathered.left_out.size,
    )
    into.add(piece, runs, sides, done)


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
