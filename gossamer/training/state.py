"""What a run of training is, and where it stands: begun, kept, and agreed on by its processes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from gossamer.activations import Store, TensorActivations
from gossamer.distributed import Mesh
from gossamer.errors import FormatError, GossamerError
from gossamer.training.checkpoints import (
    checkpoints,
    last_good,
    load_checkpoint,
    read_log,
    save_checkpoint,
    set_aside,
    step_of,
)
from gossamer.training.config import RunConfig, TrainConfig
from gossamer.training.joint import Joint
from gossamer.training.progress import Callback
from gossamer.training.start import first_look, new_trainee, the_same
from gossamer.training.step import new_optimizer
from gossamer.training.trainee import Trainee


@dataclass(frozen=True, slots=True)
class Run:
    """What stays the same during the loop."""

    configs: list[TrainConfig]
    """What is trained, with its sites named."""

    joint: Joint | None
    """What joins a Jacobian pair."""

    source: Any
    """Where the activations come from."""

    about: Mapping[str, Any]
    """That, as JSON values."""

    directory: Path | None
    """Where everything is written; None: nowhere."""

    run: RunConfig
    """What is written how often."""

    callbacks: Sequence[Callback]
    """Who is told of every row of the log."""

    device: torch.device | None
    """Where training computes; None: where the activations are."""

    mesh: Mesh
    """The processes that train together."""

    @property
    def sites(self) -> list[str]:
        """Every site that is read or written."""
        named = [(*config.sites_in, *config.sites_out) for config in self.configs]
        return list(dict.fromkeys(site for several in named for site in several))

    def batches(self, start: int, *, whole: bool = False) -> Iterator[Mapping[str, Tensor]]:
        """Finite batches from number `start`, on the device: what is here of them, or the whole.

        GossamerError at any that is not finite; on a mesh the loss tells all processes.
        """
        first, source = self.configs[0], self.source
        here = slice(None) if whole else self.mesh.tokens(first.batch_tokens)
        what: dict[str, Any] = {"seed": first.seed, "start": start}
        # Not of a live run: its processes give each other rows, so all must come to each at once,
        # and where a batch goes over from one run of blocks to the next, parts do not.
        if isinstance(source, Store | TensorActivations) and not whole:
            what["part"], here = (self.mesh.dp_rank, self.mesh.dp), slice(None)
        made = source.batches(first.batch_tokens, **what)
        for step, batch in enumerate(made, start):
            moved = {site: batch[site][here].to(self.device) for site in self.sites}
            for site, x in moved.items():
                if (whole or self.mesh.size == 1) and not torch.isfinite(x).all():
                    raise self.not_finite(site, step)
            yield moved

    def not_finite(self, site: str, step: int) -> GossamerError:
        """What is said of activations."""
        return GossamerError(
            f"The activations of {site} in the batch of step {step} are not finite; "
            f"{last_good(self.directory)}. Harvest them anew, for another directory."
        )


@dataclass(slots=True)
class State:
    """What the loop moves on, whole between two steps."""

    trainees: list[Trainee]
    """The weights."""

    optimizers: list[torch.optim.Adam]
    """Their moments."""

    sums: Tensor
    """Of the log line that is being filled; see `Outcome.sums`."""

    history: list[dict[str, Any]]
    """The rows of the log."""

    done: int
    """Steps."""

    logged: int
    """Steps that have their row."""

    saved: float
    """When the last checkpoint was written, seconds of a clock that only rises."""


def begun(what: Run) -> State:
    """The state before the first step, or as it was at the last checkpoint.

    On a mesh, where a run that lost a process is started again by nobody who could mend it, a
    checkpoint that is damaged is renamed, and the one before it taken.
    """
    directory, mesh = what.directory, what.mesh
    found = [] if directory is None else mesh.first(lambda: checkpoints(directory))
    # A resumed run looks as well, for the shapes; the checkpoint then overwrites every number.
    n_tokens = max(min(config.start.n_tokens, config.n_tokens) for config in what.configs)
    looks = first_look(what.batches(0, whole=True), what.sites, 1 if found else int(n_tokens))
    looks = the_same(looks, mesh)
    trainees = [new_trainee(config, looks, mesh) for config in what.configs]
    optimizers = [new_optimizer(*each) for each in zip(what.configs, trainees, strict=True)]
    sums = torch.zeros(len(trainees), 5, dtype=torch.float64, device=trainees[0].b_enc.device)
    done, damaged = 0, []
    for path in reversed(found if mesh.size > 1 else found[-1:]):
        try:
            sums = load_checkpoint(path, trainees, optimizers).to(sums)
        except FormatError as problem:
            damaged.append((path, problem))
            continue
        done = step_of(path)
        break
    if damaged and done == 0:  # none is good, and all keep their names
        raise damaged[0][1]
    mesh.first(lambda: [set_aside(path) for path, _ in damaged])
    # They are of all processes; the first of those that `summed` adds up has them.
    if mesh.dp_rank > 0:
        sums[:, :4] = 0
    if mesh.tp_rank > 0:
        sums[:, 3] = 0
    history = [] if directory is None else mesh.first(lambda: read_log(directory, done))
    return State(trainees, optimizers, sums, history, done, done, time.monotonic())


def keep_(what: Run, state: State) -> None:
    """Write a checkpoint, of finite weights only."""
    for config, trainee in zip(what.configs, state.trainees, strict=True):
        is_finite = all(torch.isfinite(parameter).all() for parameter in trainee.parameters())
        if any(agreed(what.mesh, not is_finite)):
            raise run_away(what, config, state.done - 1)
    if what.directory is not None:
        each, keep = (state.trainees, state.optimizers), what.run.keep
        sums = summed(state.sums, what.mesh)
        save_checkpoint(what.directory, state.done, *each, sums=sums, keep=keep)
    state.saved = time.monotonic()


def run_away(what: Run, config: TrainConfig, step: int) -> GossamerError:
    """What is said of weights that are no longer finite."""
    return GossamerError(
        f"At step {step} the loss of {config.written}, its gradient or the weights "
        "are no longer finite, although the activations are: the weights have run away; "
        f"{last_good(what.directory)}. Give a lower rate, or clip gradients, in another directory."
    )


def agreed(mesh: Mesh, *wanted: bool) -> list[bool]:
    """What any process of the mesh wants."""
    if mesh.size == 1:
        return list(wanted)
    return [bool(n) for n in mesh.largest_(torch.tensor(wanted, dtype=torch.int64), "all")]


def summed(sums: Float64[Tensor, "n_trainees 5"], mesh: Mesh) -> Float64[Tensor, "n_trainees 5"]:
    """The sums over the tokens, and for active latents over the latents, of all processes."""
    if mesh.size == 1:
        return sums
    found = sums.clone()
    found[:, :4] = mesh.add_(sums[:, :4].clone(), "dp")
    found[:, 3] = mesh.add_(found[:, 3].clone(), "tp")
    return found
