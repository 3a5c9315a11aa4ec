"""What the processes of `test_distributed.py` do; started by torchrun with what to do and where."""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.distributed import Mesh, joined, mesh_of
from gossamer.training.abstopk import AbsTopKConfig
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.checkpoints import checkpoints
from gossamer.training.config import (
    DeadConfig,
    OptimizerConfig,
    RunConfig,
    StartConfig,
    TrainConfig,
)
from gossamer.training.dead import auxk
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.loop import train
from gossamer.training.matryoshka import MatryoshkaConfig
from gossamer.training.panneal import PAnnealConfig
from gossamer.training.relu import ReLUConfig
from gossamer.training.start import first_look, new_trainee
from gossamer.training.topk import TopKConfig
from tests.tiny_training import OTHER, SITE, Rows, dictionary_rows

AUXK = DeadConfig(after_tokens=42, remedy="auxk", k_aux=5)
RESAMPLE = DeadConfig(after_tokens=42, remedy="resample", resample_tokens=90)

CASES: dict[str, dict[str, Any]] = {
    "topk": {"sae": TopKConfig(k=2), "dead": AUXK},
    "topk all of a share": {"sae": TopKConfig(k=14), "dead": AUXK},
    "topk resampled": {"sae": TopKConfig(k=2), "dead": RESAMPLE},
    "transcoder": {"sae": TopKConfig(k=2), "dead": AUXK, "site_out": OTHER, "skip": True},
    "batchtopk transcoder": {"sae": BatchTopKConfig(k=2), "site_out": OTHER},
    "crosscoder": {"sae": BatchTopKConfig(k=2), "dead": AUXK, "site": (SITE, OTHER)},
    "batchtopk": {"sae": BatchTopKConfig(k=2), "dead": AUXK},
    "matryoshka": {"sae": MatryoshkaConfig(k=2), "dead": AUXK},
    "abstopk": {"sae": AbsTopKConfig(k=2), "dead": AUXK},
    "relu": {"sae": ReLUConfig(l1=0.5), "dead": RESAMPLE},
    "panneal": {"sae": PAnnealConfig(l1=0.5, n_falls=3), "dead": RESAMPLE},
    "gated": {"sae": GatedConfig(l1=0.5), "dead": RESAMPLE},
    "jumprelu": {"sae": JumpReLUConfig(), "dead": RESAMPLE},
    "jumprelu target": {"sae": JumpReLUConfig(penalty="target", target_l0=4.0)},
}
"""One of each way to choose latents, and of each thing that is added up."""

BATCH = 41
"""Tokens of a step: neither 2 nor 4 processes have equal shares of them."""


def config_of(case: str, n_steps: int = 12) -> TrainConfig:
    """What is trained in a case."""
    given = {"site": SITE, "dead": DeadConfig(remedy="none")} | CASES[case]
    return TrainConfig(
        d_sae=40,
        n_tokens=n_steps * BATCH,
        batch_tokens=BATCH,
        optimizer=OptimizerConfig(rate=3e-3),
        start=StartConfig(n_tokens=200),
        **given,
    )


class Interrupted(Rows):
    """Rows whose second process gets a Ctrl-C of its own on the way to one batch."""

    at: int = -1

    def batches(self, size: int, *, seed: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(super().batches(size, seed=seed, start=start), start):
            if number == self.at and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGINT)
            yield batch


class Dying(Rows):
    """Rows whose process kills itself on the way to one batch, in its first attempt."""

    def batches(self, size: int, *, seed: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(super().batches(size, seed=seed, start=start), start):
            is_first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
            if number == 8 and is_first_try and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def rows(kind: type[Rows] = Rows) -> Rows:
    """Rows in float64, some of them twice, so that there are ties."""
    x = dictionary_rows(300, 12, 10, 2)[0].double()
    x[200:] = x[:100]
    y = (x @ torch.randn(10, 7, generator=torch.Generator().manual_seed(1)).double()).square()
    return kind({SITE: x, OTHER: y})


def trained(case: str, mesh: Mesh | None, **options: Any) -> dict[str, Tensor] | None:
    """What a case ends with: its weights and its log; None where another process has them."""
    given: dict[str, Any] = {"run": RunConfig(log_steps=4, checkpoint_seconds=0.0)} | options
    source = given.pop("source", None) or rows()
    result = train(config_of(case), source, mesh=mesh, **given)
    if result.sae is None:
        return None
    found = {name: tensor.double() for name, tensor in result.sae.state_dict().items()}
    names = [name for name in result.history[-1] if name.startswith(("loss", "fvu", "l0", "dead"))]
    for name in names:
        logged = [row.get(name, 0.0) for row in result.history]
        found[f"log.{name}"] = torch.tensor(logged, dtype=torch.float64)
    return found


def stopped(case: str, mesh: Mesh | None, directory: Path, step: int, **options: Any) -> None:
    """Train until after a step, as Ctrl-C in the first process would have it."""

    def stop(row: Any) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    run = RunConfig(log_steps=4, checkpoint_seconds=0.0, keep=5)
    with contextlib.suppress(KeyboardInterrupt):
        trained(case, mesh, directory=directory, callbacks=[stop], run=run, **options)


def gone_on(mesh: Mesh, out: Path) -> None:
    """Go on with runs that one process began, as far as step 8; the first of them is stopped twice
    more on the way, within one line of the log."""
    for at in (5, 6):
        source = rows(Interrupted)
        assert isinstance(source, Interrupted)
        source.at = at
        stopped(GOES_ON[0], mesh, out / GOES_ON[0], 8, source=source)
    for case in GOES_ON:
        stopped(case, mesh, out / case, 8)
    # A run of this mesh whose last checkpoint was cut short: it ends from the one before.
    case = "topk"
    stopped(case, mesh, out / "cut", 4)
    if mesh.is_first:
        cut_short(checkpoints(out / "cut")[-1])
    mesh.everyones(None)
    found = trained(case, mesh, directory=out / "cut")
    whole = trained(case, mesh)
    if mesh.is_first:
        torch.save((found, whole), out / "cut.pt")


def refused(mesh: Mesh, out: Path) -> dict[str, str]:
    """What this process says where something goes wrong, perhaps in another one alone."""
    said = {}
    run = RunConfig(log_steps=4, checkpoint_seconds=0.0)

    def tried(name: str, case: str, **options: Any) -> None:
        try:
            trained(case, mesh, **({"run": run} | options))
        except Exception as problem:
            said[name] = f"{type(problem).__name__}: {problem}"

    unread, too_large = rows(), rows()
    unread.bad_step = 6  # of an input that no latent reads, in the first process's share
    tried("not finite", "batchtopk transcoder", source=unread)
    too_large.tensors = {site: x.float() for site, x in too_large.tensors.items()}
    too_large.bad_step, too_large.bad_site, too_large.bad_value = 6, OTHER, 2e20
    tried("run away", "transcoder", source=too_large)

    def fail(row: Any) -> None:
        raise ZeroDivisionError("of a callback")

    tried("callback", "topk", callbacks=[fail])
    tried("settings", "relu" if mesh.is_first else "gated")
    tried("begun", "topk", directory=out / "full", callbacks=[fail])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if mesh.dp_rank == 1:  # no room for what this one writes
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    tried("full", "topk", directory=out / "full")
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if mesh.is_first:
        for checkpoint in checkpoints(out / "full"):
            cut_short(checkpoint)
    mesh.everyones(None)
    tried("all cut", "topk", directory=out / "full")
    trainee = new_trainee(config_of("topk"), first_look(rows().batches(BATCH, seed=0), [SITE], 1))
    trainee.mesh = mesh  # dp=2, tp=2: of each latent there are two
    error = torch.randn(10, generator=torch.Generator().manual_seed(0)).double().expand(20, 10)
    here = {"dead": torch.arange(2 * mesh.tp_rank), "k_aux": 2}
    said["auxk of equal rows"] = str(auxk(trainee, error, error, **here).item())
    trained("topk", mesh, directory=out / "finished")
    again = trained("topk", mesh, directory=out / "finished")
    said["finished"] = str(again is None)
    return said


def cut_short(checkpoint: Path) -> None:
    """Take the last half of the largest file of a checkpoint away."""
    largest = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def live_batches(mesh: Mesh, out: Path) -> None:
    """The first batches of a corpus that every process runs a part of."""
    from gossamer.activations import LiveActivations
    from gossamer.corpus import as_corpus
    from gossamer.library import load_model

    model = load_model("pico-python")
    corpus = as_corpus(["one = 1\n" * 40, "def two():\n    return 2\n" * 30, "three"] * 3)
    live = LiveActivations(model, corpus, (SITE,), 32, shared=mesh.size > 1)
    found = [batch[SITE] for batch in islice(live.batches(50, seed=0), 8)]
    if mesh.is_first:
        torch.save(found, out)


GOES_ON = ("topk", "batchtopk", "jumprelu", "topk resampled")
"""Cases that are stopped on one mesh and go on, on another."""


def main() -> None:
    """Do what is asked on each mesh that is named."""
    what, out, *meshes = sys.argv[1:]
    with joined():
        for text in meshes:
            mesh = mesh_of(text)
            place = Path(out) / text
            match what:
                case "cases":
                    found = {case: trained(case, mesh) for case in CASES}
                    if mesh.is_first:
                        torch.save(found, place.with_suffix(".pt"))
                case "go on":
                    gone_on(mesh, Path(out))
                    live_batches(mesh, Path(out) / "live.pt")
                    said = mesh.everyones(refused(mesh, Path(out)))
                    if mesh.is_first:
                        (Path(out) / "said.json").write_text(json.dumps(said))
                case "die":
                    found = trained("topk", mesh, directory=place, source=rows(Dying))
                    whole = trained("topk", mesh)
                    if mesh.is_first:
                        torch.save((found, whole), place.with_suffix(".pt"))


if __name__ == "__main__":
    main()
