"""The training loop: one pass over the activations, one or several SAEs.

    result = train(TrainConfig(sae=TopKConfig(k=32), d_sae=2048, n_tokens=2_000_000), store)

Step n is a function of the seed, the configs and the activations alone: the order of the data, the
schedules and every random draw are computed from n. So a run that was stopped at any moment and
started again in its directory ends with the same bits as one that was not, on the same machine and
with the same number of threads.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from gossamer.errors import FormatError, GossamerError
from gossamer.machine import device_of
from gossamer.models.model import Model
from gossamer.saes.crosscoder import is_crosscoder, load_crosscoder
from gossamer.saes.files import is_native, load_native
from gossamer.saes.sae import SparseCoder
from gossamer.splice import as_saes
from gossamer.training.checkpoints import (
    LOG_FILE,
    append_log,
    begin_run,
    checkpoints,
    last_good,
    load_checkpoint,
    open_run,
    read_log,
    save_checkpoint,
    step_of,
)
from gossamer.training.config import RunConfig, TrainConfig
from gossamer.training.finish import finished_sae, is_made_by, member_names, save_all
from gossamer.training.interrupt import Interrupt
from gossamer.training.joint import JacobianConfig, Joint, jacobian_term
from gossamer.training.progress import Bar, Callback, Clock
from gossamer.training.schedules import learning_rate
from gossamer.training.settled import settled, source_of
from gossamer.training.start import first_look, new_trainee, side_by_side
from gossamer.training.step import (
    NotFiniteError,
    Outcome,
    descend_,
    new_optimizer,
    outcome,
    update_,
)
from gossamer.training.trainee import Trainee
from gossamer.views.curves import curves_to_html


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave."""

    sae: Any
    """The SAE, or a `Crosscoder`, in the units of the model's activations."""

    history: list[dict[str, Any]]
    """The rows of the log; `gossamer/training/progress.py` says what is in them."""

    directory: Path | None
    """Where the SAE is saved; None when no directory was given."""

    @property
    def saes(self) -> dict[str, SparseCoder]:
        """By the site it writes, as `gossamer.run` takes it."""
        return as_saes(self.sae, faces=True)

    def to_html(self, path: str | Path, *, log: bool = False) -> Path:
        """Write the curves as a page that opens offline, at first with a log axis if asked."""
        return curves_to_html(self.history, path, title=f"Training {', '.join(self.saes)}", log=log)


@dataclass(frozen=True, slots=True)
class _Run:
    """What stays the same during the loop."""

    configs: list[TrainConfig]
    joint: Joint | None
    source: Any
    about: Mapping[str, Any]
    directory: Path | None
    run: RunConfig
    callbacks: Sequence[Callback]
    device: torch.device | None

    @property
    def sites(self) -> list[str]:
        """Every site that is read or written."""
        named = [(*config.sites_in, *config.sites_out) for config in self.configs]
        return list(dict.fromkeys(site for several in named for site in several))

    def batches(self, start: int) -> Iterator[Mapping[str, Tensor]]:
        """Finite batches from number `start`, on the device. GossamerError at any other."""
        first = self.configs[0]
        made = self.source.batches(first.batch_tokens, seed=first.seed, start=start)
        for step, batch in enumerate(made, start):
            moved = {site: batch[site].to(self.device) for site in self.sites}
            for site, x in moved.items():
                if not torch.isfinite(x).all():
                    raise GossamerError(
                        f"The activations of {site} in the batch of step {step} are not finite; "
                        f"{last_good(self.directory)}. Harvest them anew, for another directory."
                    )
            yield moved


@dataclass(slots=True)
class _State:
    """What the loop moves on, whole between two steps."""

    trainees: list[Trainee]
    optimizers: list[torch.optim.Adam]
    sums: Tensor
    history: list[dict[str, Any]]
    done: int
    logged: int
    saved: float


@overload
def train(
    config: TrainConfig,
    source: Any,
    *,
    directory: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    run: RunConfig | None = None,
    device: torch.device | str | None = None,
    model: Model | None = None,
) -> TrainResult: ...


@overload
def train(
    config: Sequence[TrainConfig] | JacobianConfig,
    source: Any,
    *,
    directory: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    run: RunConfig | None = None,
    device: torch.device | str | None = None,
    model: Model | None = None,
) -> list[TrainResult]: ...


def train(
    config: TrainConfig | Sequence[TrainConfig] | JacobianConfig,
    source: Any,
    *,
    directory: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    run: RunConfig | None = None,
    device: torch.device | str | None = None,
    model: Model | None = None,
) -> TrainResult | list[TrainResult]:
    """Train an SAE or transcoder, several from one pass over the activations, or a Jacobian pair.

    Args:
        config: one, or several with the same `n_tokens` and `batch_tokens`; the first one's seed
            orders the data. A JacobianConfig is two SAEs with one loss.
        source: a Store, a tensor or file of activations, a live (model, corpus, site), or anything
            with `sites`, `about` and `batches(size, *, seed, start)`.
        directory: where checkpoints, log and SAE go. A run that was stopped there continues, a
            finished one is read. None: nothing is written.
        callbacks: each is called with every row of the log.
        run: what is written how often; none of it changes the result.
        device: None: where the activations are.
        model: whose MLP stands between a Jacobian pair; None: the one that runs live.

    GossamerError when the settings do not fit each other or the directory, or when a batch, its
    loss or its gradient is not finite: it names the step, the site and the last good checkpoint.
    KeyboardInterrupt comes after the step that it met, which is kept in the directory.
    """
    several = not isinstance(config, TrainConfig)
    is_pair = isinstance(config, JacobianConfig)
    configs = config.members() if is_pair else list(config) if several else [config]
    source = source_of(source, configs[0].site if configs else None)
    joint = Joint.of(config, source, model) if is_pair else None
    about = {**source.about, **({} if joint is None else joint.about())}
    what = _Run(
        settled(configs, source),
        joint,
        source,
        json.loads(json.dumps(about)),
        None if directory is None else Path(directory),
        run or RunConfig(),
        callbacks,
        None if device is None else device_of(device),
    )
    names = member_names(what.configs)
    text = "" if what.directory is None else open_run(what.directory, what.configs, what.about)
    finished = _finished(what, names)
    saes, history = finished or _trained(what, names, text)
    results = [
        TrainResult(
            sae,
            [row for row in history if row["trainee"] == place],
            None if what.directory is None else what.directory / names[place],
        )
        for place, sae in enumerate(saes)
    ]
    return results if several else results[0]


def _trained(what: _Run, names: Sequence[str], text: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """The loop. `text` is that of the run's file."""
    state = _begun(what)
    if what.directory is not None:
        begin_run(what.directory, text)
    size, n_steps = what.configs[0].batch_tokens, what.configs[0].n_steps
    batches, clock = what.batches(state.done), Clock()
    bar = Bar(what.run.progress, state.done * size, n_steps * size)
    with closing(bar), Interrupt() as interrupt:
        while state.done < n_steps:
            outcomes = _step_(what, state, clock.wait(lambda: next(batches)))
            bar.move(size)
            is_last = state.done == n_steps
            if is_last or state.done % what.run.log_steps == 0:
                speed = clock.lap((state.done - state.logged) * size)
                rows = [row | speed for row in _rows(what, state, outcomes)]
                state.sums.zero_()
                state.history += rows
                state.logged = state.done
                _tell(what, rows, interrupt)
                bar.show(rows)
            stops = interrupt.wanted
            due = time.monotonic() - state.saved >= what.run.checkpoint_seconds
            if is_last or due or stops:
                _keep_(what, state)
            if stops:
                raise KeyboardInterrupt
    return _saved(what, state.trainees, names), state.history


def _begun(what: _Run) -> _State:
    """The state before the first step, or as it was at the last checkpoint."""
    found = checkpoints(what.directory) if what.directory is not None else []
    first = step_of(found[-1]) if found else 0
    # A resumed run looks as well, for the shapes; the checkpoint then overwrites every number.
    n_tokens = max(min(config.start.n_tokens, config.n_tokens) for config in what.configs)
    looks = first_look(what.batches(0), what.sites, 1 if first else int(n_tokens))
    trainees = [new_trainee(config, looks) for config in what.configs]
    optimizers = [new_optimizer(*each) for each in zip(what.configs, trainees, strict=True)]
    sums = torch.zeros(len(trainees), 5, dtype=torch.float64, device=trainees[0].b_enc.device)
    if found:
        sums = load_checkpoint(found[-1], trainees, optimizers).to(sums)
    history = read_log(what.directory, first) if what.directory is not None else []
    return _State(trainees, optimizers, sums, history, first, first, time.monotonic())


def _step_(what: _Run, state: _State, batch: Mapping[str, Tensor]) -> list[Outcome]:
    """One step of every trainee."""
    members = list(zip(what.configs, state.trainees, state.optimizers, strict=True))
    outcomes = []
    if what.joint is not None:
        outcomes = _both(what.joint, state, batch, members)
    for place, (config, trainee, optimizer) in enumerate(members):
        try:
            if what.joint is None:
                found = outcome(config, trainee, *_pair(config, batch), step=state.done)
                descend_(config, trainee, optimizer, found, step=state.done)
                outcomes.append(found)
            else:
                update_(config, trainee, optimizer, outcomes[place], step=state.done)
        except NotFiniteError as problem:
            raise _run_away(what, config, state.done) from problem
        state.sums[place] += outcomes[place].sums()
    state.done += 1
    return outcomes


def _both(
    joint: Joint, state: _State, batch: Mapping[str, Tensor], members: Sequence[Any]
) -> list[Outcome]:
    """The outcomes of a pair, the last with what joins them; gradients are there."""
    outcomes = []
    for config, trainee, optimizer in members:
        optimizer.zero_grad(set_to_none=True)
        outcomes.append(outcome(config, trainee, *_pair(config, batch), step=state.done))
    if joint.config.weight > 0:
        term = jacobian_term(joint, state.trainees, outcomes, batch, step=state.done)
        outcomes[1] = replace(outcomes[1], terms={**outcomes[1].terms, "jacobian": term})
    torch.stack([found.loss for found in outcomes]).sum().backward()
    return outcomes


def _keep_(what: _Run, state: _State) -> None:
    """Write a checkpoint, of finite weights only."""
    for config, trainee in zip(what.configs, state.trainees, strict=True):
        if not all(torch.isfinite(parameter).all() for parameter in trainee.parameters()):
            raise _run_away(what, config, state.done - 1)
    if what.directory is not None:
        each, keep = (state.trainees, state.optimizers), what.run.keep
        save_checkpoint(what.directory, state.done, *each, sums=state.sums, keep=keep)
    state.saved = time.monotonic()


def _run_away(what: _Run, config: TrainConfig, step: int) -> GossamerError:
    return GossamerError(
        f"At step {step} the loss of {config.written}, its gradient or the weights "
        "are no longer finite, although the activations are: the weights have run away; "
        f"{last_good(what.directory)}. Give a lower rate, or clip gradients, in another directory."
    )


def _pair(config: TrainConfig, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Input and target of one trainee."""
    x = side_by_side(config.sites_in, batch)
    return x, x if config.site_out is None else side_by_side(config.sites_out, batch)


def _rows(what: _Run, state: _State, outcomes: list[Outcome]) -> list[dict[str, Any]]:
    rows = []
    size, done = what.configs[0].batch_tokens, state.done
    for place, (config, trainee) in enumerate(zip(what.configs, state.trainees, strict=True)):
        means = state.sums[place, :4] / state.sums[place, 4]
        loss, squared_error, variation, n_active = means.tolist()
        rows.append(
            {
                "step": done,
                "tokens": done * size,
                "trainee": place,
                "site_out": config.written,
                "loss": loss,
                "fvu": squared_error / variation if variation else 0.0,
                "l0": n_active / size,
                "dead": len(trainee.dead(config.dead_after)) / config.d_sae,
                **{f"loss_{name}": t.item() for name, t in outcomes[place].terms.items()},
                "rate": learning_rate(config, done - 1),
            }
        )
    return rows


def _tell(what: _Run, rows: list[dict[str, Any]], interrupt: Interrupt) -> None:
    """Log rows, and tell the callbacks; one that is interrupted stops the run after this step."""
    if what.directory is not None:
        append_log(what.directory, rows)
    try:
        for row in rows:
            for callback in what.callbacks:
                callback(row)
    except KeyboardInterrupt:
        interrupt.wanted = True


def _saved(what: _Run, trainees: list[Trainee], names: Sequence[str]) -> list[Any]:
    saes = []
    for config, trainee in zip(what.configs, trainees, strict=True):
        fresh = what.batches(config.n_steps)
        saes.append(finished_sae(config, trainee, fresh, what.about))
    if what.directory is not None:
        save_all(saes, names, what.directory)
    return saes


def _finished(what: _Run, names: Sequence[str]) -> tuple[list[Any], list[dict[str, Any]]] | None:
    """The SAEs and log of a run that has ended, None for any other."""
    if what.directory is None:
        return None
    folders = [what.directory / name for name in names]
    for config, folder in zip(what.configs, folders, strict=True):
        if is_native(folder) and not is_made_by(config, what.about, folder):
            raise GossamerError(
                f"{folder} holds an SAE that this run did not make; move it away, or give another "
                "directory."
            )
    if not all(is_native(folder) for folder in folders):
        return None
    history = read_log(what.directory, what.configs[0].n_steps)
    if {row["trainee"] for row in history} != set(range(len(folders))):
        raise FormatError(
            f"{what.directory / LOG_FILE} of this finished run is missing or cut short; put it "
            f"back, or read the SAE itself: gossamer.load_sae({str(folders[0])!r})."
        )
    loads = [load_crosscoder if is_crosscoder(folder) else load_native for folder in folders]
    return [load(folder) for load, folder in zip(loads, folders, strict=True)], history
