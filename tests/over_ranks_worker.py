"""What the processes of `test_over_ranks.py` share: the same calls give the same in one.

Started by torchrun with a directory, each process writes there what it got.
"""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import torch

from gossamer.attribution.over import over as over_module
from gossamer.cli import cli
from gossamer.dashboards import dashboard
from gossamer.dashboards import pairs as pairs_module
from gossamer.dashboards import together as together_module
from gossamer.dashboards.board import parts_of
from gossamer.distributed import gathered, joined, ranks
from gossamer.errors import GossamerError
from gossamer.evaluation import Report, evaluate
from gossamer.evaluation import weights as weights_module
from gossamer.models.model import Model
from tests.test_attribution_over_parts import content, made
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

SITE, OTHER = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"
GENERATOR = torch.Generator().manual_seed(5)
SOME = [torch.randint(1, 37, (int(n),), generator=GENERATOR).tolist() for n in [11, 7, 12] * 4]
IDS = SOME + SOME[:7] + SOME[3:5]  # documents come twice, so that activations are tied
WORDS = "the cat sat on a mat and the cat sat on a hat " * 12

weights_module.BATCH = 3  # so that latents are in several batches
together_module.ROWS_AT_ONCE = 3


class Own:
    """A tokenizer for tiny models: token 7 is "t7"."""

    bos_token_id = None

    def decode(self, ids: list[int]) -> str:
        """The text."""
        return "".join(f" t{i}" for i in ids)


def model() -> Model:
    """A tiny one in float64."""
    return Model(tiny_model("gpt2").language_model, Own())


def report_of(ids: list[list[int]], **options: Any) -> Report:
    """Two report cards."""
    saes = [tiny_sae("topk", SITE, 16), tiny_sae("jumprelu", OTHER, 16, seed=1)]
    given = {"n_tokens": sum(map(len, ids)), "context": 12, "batch": 2, **options}
    return evaluate(model(), saes, ids, **given)


def numbers_of(report: Report) -> dict[str, Any]:
    """What is alike up to rounding, and what is exactly alike."""
    close, exact = {}, {"about": dict(report.about), "tokens": dict(report.tokens)}
    for site, card in report.cards.items():
        close[site] = torch.tensor(list(card.numbers().values()), dtype=torch.float64)
        close |= {f"{site} {name}": row for name, row in card.by_position.items()}
        exact[site] = [card.firings, card.neighbours, card.neighbour_cosines, card.logits]
        exact[site] += [card.linear_round_trip, card.active_round_trip]
    return {"close": close, "exact": exact}


def board_of(bound: int, **options: Any) -> Any:
    """All that a dashboard holds; past `bound` pairs are dropped."""
    kept = pairs_module.MAX_PAIRS, pairs_module.N_TOP, pairs_module.N_SAMPLED
    pairs_module.MAX_PAIRS, pairs_module.N_TOP, pairs_module.N_SAMPLED = bound, 4, 3
    try:
        sae = tiny_sae("topk", SITE, 16)
        given = {"context": 12, "batch": 2, "before": 3, "after": 2, "n_top": 5, "n_each": 2}
        return parts_of(dashboard(model(), sae, IDS, latents=[3, 0, 11, 19], **given | options))
    finally:
        pairs_module.MAX_PAIRS, pairs_module.N_TOP, pairs_module.N_SAMPLED = kept


def stopped(directory: Path) -> Path:
    """A table that one process cannot go on with after some pieces, so that all stop."""
    piece = over_module._piece

    def failing(how: Any, into: Any, task: Any, bar: Any) -> Any:
        if task.number == 5:
            raise GossamerError("Piece 5 is refused.")
        return piece(how, into, task, bar)

    over_module._piece = failing
    try:
        made(directory)
    except GossamerError as problem:
        assert str(problem) == "Piece 5 is refused."
    else:
        raise AssertionError("It went on.")
    finally:
        over_module._piece = piece
    return directory


def printed(*words: str) -> str:
    """What a command says on standard output."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        cli(list(words), standalone_mode=False)
    return said.getvalue()


def mistakes() -> list[str]:
    """What is refused, in the words of each process."""
    rank = ranks().rank
    calls = {
        "large": lambda: report_of(IDS, n_tokens=10**6),
        "one text": lambda: report_of(IDS if rank == 0 else [[1, 99]]),
        "other": lambda: board_of(10**6, n_top=5 + rank),
    }
    found = []
    for name, call in calls.items():
        try:
            call()
            found.append(f"{name}: done")
        except GossamerError as problem:
            found.append(f"{name}: {problem}")
    return found


def commands(place: Path) -> list[str]:
    """The three verbs on the files of `place`, and what they print."""
    of = ("--model", str(place / "model"), "--saes", str(place / "saes"))
    of += ("--corpus", str(place / "words.txt"), "--context", "8", "--json")
    out = place / f"of {ranks().size}"
    if ranks().is_first:
        out.mkdir()
    gathered(None)
    return [
        printed("evaluate", *of, "--tokens", "60", "--save", str(out / "card.json")),
        printed("dashboard", *of, "--site", SITES[0], "--save", str(out / "board")),
        printed("edges-over", *of, "--tokens", "60", "--out", str(out / "table")),
    ]


SITES = ("blocks.0.hook_resid_pre", "blocks.2.hook_resid_post")


def results(place: Path) -> dict[str, Any]:
    """Everything that is compared."""
    size = ranks().size
    return {
        "report": numbers_of(report_of(IDS)),
        "short report": numbers_of(report_of(IDS[:2])),
        "board": board_of(10**6),
        "bounded board": board_of(40),
        "short board": board_of(10**6, n_tokens=5),
        "table": content(made(None)),
        "same table": content(made(None, offsets="same")),
        "part": content(made(None, part=(1, 3))),
        "completed": content(made(stopped(place / f"table of {size}"))),
        "commands": commands(place),
    }


def main() -> None:
    """Do all of it, and write what came out."""
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    with joined() as here:
        found = {**results(place), "mistakes": mistakes()}
        stopped(place / f"begun by {here.size}")
        torch.save(found, place / f"{here.rank} of {here.size}.pt")


if __name__ == "__main__":
    main()
