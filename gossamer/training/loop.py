"""The training loop: one pass over the activations, one or several SAEs.

    result = train(TrainConfig(sae=TopKConfig(k=32), d_sae=2048, n_tokens=2_000_000), store)

Step n is a function of the seed, the configs and the activations alone: the order of the data, the
schedules and every random draw are computed from n. So a run that was stopped at any moment and
started again in its directory ends with the same bits as one that was not, on the same machine and
with the same number of threads.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from gossamer.distributed import Mesh, check_same, is_launched
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
    as_json,
    begin_run,
    open_run,
    read_log,
)
from gossamer.training.config import RunConfig, TrainConfig
from gossamer.training.dead import dead_counts
from gossamer.training.finish import (
    finished_sae,
    is_made_by,
    member_names,
    save_all,
    threshold_of,
    whole,
)
from gossamer.training.interrupt import Interrupt
from gossamer.training.joint import JacobianConfig, Joint, jacobian_term
from gossamer.training.progress import Bar, Callback, Clock
from gossamer.training.schedules import learning_rate
from gossamer.training.settled import settled, shared_by, source_of
from gossamer.training.start import side_by_side
from gossamer.training.state import Run, State, agreed, begun, keep_, run_away, summed
from gossamer.training.step import (
    NotFiniteError,
    Outcome,
    descend_,
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
    mesh: Mesh | None = None,
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
    mesh: Mesh | None = None,
) -> list[TrainResult]: ...


def train(  # noqa: PLR0913  the public face; everything by name
    config: TrainConfig | Sequence[TrainConfig] | JacobianConfig,
    source: Any,
    *,
    directory: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    run: RunConfig | None = None,
    device: torch.device | str | None = None,
    model: Model | None = None,
    mesh: Mesh | None = None,
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
        mesh: processes that train together, each calling this with the same arguments, and a
            directory that all of them see; None: this one alone. The result is one process's up to
            rounding, and the first process alone has it: in the others `sae` is None.

    GossamerError when the settings do not fit each other or the directory, or when a batch, its
    loss or its gradient is not finite: it names the step, the site and the last good checkpoint.
    KeyboardInterrupt comes after the step that it met, which is kept in the directory.
    """
    several = not isinstance(config, TrainConfig)
    is_pair = isinstance(config, JacobianConfig)
    configs = config.members() if is_pair else list(config) if several else [config]
    mesh = Mesh() if mesh is None else mesh
    source = source_of(source, configs[0].site if configs else None)
    source = shared_by(mesh, configs, source, is_pair=is_pair)
    joint = Joint.of(config, source, model) if is_pair else None
    about = {**source.about, **({} if joint is None else joint.about())}
    what = Run(
        settled(configs, source),
        joint,
        source,
        json.loads(json.dumps(about)),
        None if directory is None else Path(directory),
        run or RunConfig(),
        callbacks,
        None if device is None else device_of(device),
        mesh,
    )
    if mesh.size > 1:
        check_same([what.about, *map(as_json, what.configs)], "training run")
    names = member_names(what.configs)
    text, is_finished = mesh.first(lambda: _opened(what, names))
    finished = _finished(what, names) if is_finished else None
    saes, history = finished or _trained(what, names, text)
    results = [
        TrainResult(
            sae if mesh.is_first else None,
            [row for row in history if row["trainee"] == place],
            None if what.directory is None else what.directory / names[place],
        )
        for place, sae in enumerate(saes)
    ]
    return results if several else results[0]


def _trained(what: Run, names: Sequence[str], text: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """The loop. `text` is that of the run's file."""
    state, directory = begun(what), what.directory
    if directory is not None:
        what.mesh.first(lambda: begin_run(directory, text))
    size, n_steps = what.configs[0].batch_tokens, what.configs[0].n_steps
    batches, clock = what.batches(state.done), Clock()
    shown = what.run.progress if what.mesh.is_first else False
    bar = Bar(shown, state.done * size, n_steps * size)
    with closing(bar), Interrupt(also_terminate=is_launched()) as interrupt:
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
            due = time.monotonic() - state.saved >= what.run.checkpoint_seconds
            stops, due = agreed(what.mesh, interrupt.wanted, due)
            if is_last or due or stops:
                keep_(what, state)
            if stops:
                raise KeyboardInterrupt
    return _saved(what, state.trainees, names), state.history


def _opened(what: Run, names: Sequence[str]) -> tuple[str, bool]:
    """The text of the run's file, and whether the run has ended."""
    if what.directory is None:
        return "", False
    text = open_run(what.directory, what.configs, what.about)
    return text, _finished(what, names) is not None


def _step_(what: Run, state: State, batch: Mapping[str, Tensor]) -> list[Outcome]:
    """One step of every trainee."""
    members = list(zip(what.configs, state.trainees, state.optimizers, strict=True))
    outcomes = []
    if what.joint is not None:
        outcomes = _both(what.joint, state, batch, members)
    for place, (config, trainee, optimizer) in enumerate(members):
        try:
            if what.joint is None:
                n_tokens = config.batch_tokens
                both = _pair(config, batch)
                found = outcome(config, trainee, *both, step=state.done, n_tokens=n_tokens)
                descend_(config, trainee, optimizer, found, step=state.done)
                outcomes.append(found)
            else:
                update_(config, trainee, optimizer, outcomes[place], step=state.done)
        except NotFiniteError as problem:
            _blame(what, batch, state.done)
            raise run_away(what, config, state.done) from problem
        state.sums[place] += outcomes[place].sums()
    state.done += 1
    return outcomes


def _blame(what: Run, batch: Mapping[str, Tensor], step: int) -> None:
    """GossamerError, in all processes, where the activations of one of them are not finite."""
    bad = [site for site, x in batch.items() if not torch.isfinite(x).all()]
    for site in [site for several in what.mesh.everyones(bad) for site in several][:1]:
        raise what.not_finite(site, step)


def _both(
    joint: Joint, state: State, batch: Mapping[str, Tensor], members: Sequence[Any]
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


def _pair(config: TrainConfig, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Input and target of one trainee."""
    x = side_by_side(config.sites_in, batch)
    return x, x if config.site_out is None else side_by_side(config.sites_out, batch)


def _rows(what: Run, state: State, outcomes: list[Outcome]) -> list[dict[str, Any]]:
    rows = []
    size, done = what.configs[0].batch_tokens, state.done
    sums = summed(state.sums, what.mesh)
    for place, (config, trainee) in enumerate(zip(what.configs, state.trainees, strict=True)):
        means = sums[place, :4] / sums[place, 4]
        loss, squared_error, variation, n_active = means.tolist()
        names = list(outcomes[place].terms)
        terms = torch.stack([outcomes[place].terms[name].detach() for name in names])
        terms = what.mesh.add_(terms, "dp").tolist()
        n_dead = sum(dead_counts(trainee, trainee.dead(config.dead_after)))
        rows.append(
            {
                "step": done,
                "tokens": done * size,
                "trainee": place,
                "site_out": config.written,
                "loss": loss,
                "fvu": squared_error / variation if variation else 0.0,
                "l0": n_active / size,
                "dead": n_dead / config.d_sae,
                **{f"loss_{name}": term for name, term in zip(names, terms, strict=True)},
                "rate": learning_rate(config, done - 1),
            }
        )
    return rows


def _tell(what: Run, rows: list[dict[str, Any]], interrupt: Interrupt) -> None:
    """Log rows, and tell the callbacks; one that is interrupted stops the run after this step."""

    def tell() -> None:
        if what.directory is not None:
            append_log(what.directory, rows)
        try:
            for row in rows:
                for callback in what.callbacks:
                    callback(row)
        except KeyboardInterrupt:
            interrupt.wanted = True

    what.mesh.first(tell)


def _saved(what: Run, trainees: list[Trainee], names: Sequence[str]) -> list[Any]:
    saes = []
    for config, trainee in zip(what.configs, trainees, strict=True):
        threshold = threshold_of(config, trainee, what.batches(config.n_steps))
        made = whole(config, trainee)
        saes.append(None if made is None else finished_sae(config, made, threshold, what.about))
    directory = what.directory
    if directory is not None:
        what.mesh.first(lambda: save_all(saes, names, directory))
    return saes


def _finished(what: Run, names: Sequence[str]) -> tuple[list[Any], list[dict[str, Any]]] | None:
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
