"""The training loop: one pass over the activations, one or several SAEs.

    result = train(TrainConfig(sae=TopKConfig(k=32), d_sae=2048, n_tokens=2_000_000), store)

Step n is a function of the seed, the configs and the activations alone: the order of the data, the
schedules and every random draw are computed from n. So a run that was stopped at any moment and
started again in its directory ends with the same bits as one that was not, on the same machine and
with the same number of threads.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from gossamer.errors import GossamerError, SiteError
from gossamer.saes.files import is_native, load_native
from gossamer.saes.sae import SAE
from gossamer.training.checkpoints import (
    append_log,
    checkpoints,
    load_checkpoint,
    open_run,
    read_log,
    save_checkpoint,
    step_of,
)
from gossamer.training.config import RunConfig, TrainConfig
from gossamer.training.finish import finished_sae, member_names, save_all
from gossamer.training.progress import Bar, Callback, Clock
from gossamer.training.schedules import learning_rate
from gossamer.training.start import first_look, new_trainee
from gossamer.training.step import Outcome, descend_, new_optimizer, outcome
from gossamer.training.trainee import Trainee
from gossamer.views.curves import curves_to_html


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave."""

    sae: SAE
    """The SAE, in the units of the model's activations."""

    history: list[dict[str, Any]]
    """The rows of the log; `gossamer/training/progress.py` says what is in them."""

    directory: Path | None
    """Where the SAE is saved; None when no directory was given."""

    @property
    def saes(self) -> dict[str, SAE]:
        """The SAE by the site it writes, as `gossamer.run` takes it."""
        return {self.sae.site_out: self.sae}

    def to_html(self, path: str | Path, *, log: bool = False) -> Path:
        """Write the curves as a page that opens offline, at first with a log axis if asked."""
        return curves_to_html(self.history, path, title=f"Training {self.sae.site_out}", log=log)


@dataclass(frozen=True, slots=True)
class _Run:
    """What stays the same during the loop."""

    configs: list[TrainConfig]
    source: Any
    directory: Path | None
    run: RunConfig
    callbacks: Sequence[Callback]
    device: torch.device | None

    @property
    def sites(self) -> list[str]:
        """Every site that is read or written."""
        named = [(str(config.site), config.site_out) for config in self.configs]
        return list(dict.fromkeys(site for pair in named for site in pair if site))

    def batches(self, start: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches from number `start`, on the device."""
        first = self.configs[0]
        for batch in self.source.batches(first.batch_tokens, seed=first.seed, start=start):
            yield {site: batch[site].to(self.device) for site in self.sites}


@overload
def train(
    config: TrainConfig,
    source: Any,
    *,
    directory: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    run: RunConfig | None = None,
    device: torch.device | str | None = None,
) -> TrainResult: ...


@overload
def train(
    config: Sequence[TrainConfig],
    source: Any,
    *,
    directory: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    run: RunConfig | None = None,
    device: torch.device | str | None = None,
) -> list[TrainResult]: ...


def train(
    config: TrainConfig | Sequence[TrainConfig],
    source: Any,
    *,
    directory: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    run: RunConfig | None = None,
    device: torch.device | str | None = None,
) -> TrainResult | list[TrainResult]:
    """Train an SAE or transcoder, or several from one pass over the activations.

    Args:
        config: one, or several with the same `n_tokens` and `batch_tokens`; the first one's seed
            orders the data.
        source: a Store, a tensor or file of activations, a live (model, corpus, site), or anything
            with `sites`, `about` and `batches(size, *, seed, start)`.
        directory: where checkpoints, log and SAE go. A run that was stopped there continues, a
            finished one is read. None: nothing is written.
        callbacks: each is called with every row of the log.
        run: what is written how often; none of it changes the result.
        device: None: where the activations are.

    GossamerError when the settings do not fit each other or the directory, or when a batch has a
    loss that is not finite: it names the step, the site and the last checkpoint.
    """
    several = not isinstance(config, TrainConfig)
    configs = list(config) if several else [config]
    source = _as_source(source, configs[0].site if configs else None)
    what = _Run(
        _settled(configs, source),
        source,
        None if directory is None else Path(directory),
        run or RunConfig(),
        callbacks,
        None if device is None else torch.device(device),
    )
    names = member_names(what.configs)
    if what.directory is not None:
        open_run(what.directory, what.configs, source.about)
    finished = _finished(what, names)
    saes, history = finished or _trained(what, names)
    results = [
        TrainResult(
            sae,
            [row for row in history if row["trainee"] == place],
            None if what.directory is None else what.directory / names[place],
        )
        for place, sae in enumerate(saes)
    ]
    return results if several else results[0]


def _trained(what: _Run, names: Sequence[str]) -> tuple[list[SAE], list[dict[str, Any]]]:
    """The loop."""
    trainees, first, sums, history = _begun(what)
    optimizers = [new_optimizer(*each) for each in zip(what.configs, trainees, strict=True)]
    if first:
        assert what.directory is not None
        sums = load_checkpoint(checkpoints(what.directory)[-1], trainees, optimizers).to(sums)
    size, n_steps = what.configs[0].batch_tokens, what.configs[0].n_steps
    batches, clock = what.batches(first), Clock()
    saved, logged = time.monotonic(), first
    with closing(Bar(what.run.progress, first * size, n_steps * size)) as bar:
        for step in range(first, n_steps):
            batch = clock.wait(lambda: next(batches))
            outcomes = []
            for place, config in enumerate(what.configs):
                found = outcome(config, trainees[place], *_pair(config, batch), step=step)
                _check_finite(what, config, found, batch=batch, step=step)
                descend_(config, trainees[place], optimizers[place], found, step=step)
                sums[place] += found.sums()
                outcomes.append(found)
            bar.move(size)
            done = step + 1
            if done % what.run.log_steps == 0 or done == n_steps:
                n_logged = done - logged
                speed = clock.lap(n_logged * size)
                rows = _rows(what, trainees, outcomes, sums=sums, done=done)
                rows = [row | speed for row in rows]
                sums.zero_()
                history += rows
                _tell(what, rows, bar)
                logged = done
            due = time.monotonic() - saved >= what.run.checkpoint_seconds or done == n_steps
            if what.directory is not None and due:
                keep = what.run.keep
                save_checkpoint(what.directory, done, trainees, optimizers, sums=sums, keep=keep)
                saved = time.monotonic()
    return _saved(what, trainees, names), history


def _begun(what: _Run) -> tuple[list[Trainee], int, Tensor, list[dict[str, Any]]]:
    """Trainees as they start, the number of steps done, empty sums, and the rows so far."""
    sums = torch.zeros(len(what.configs), 5, dtype=torch.float64)
    found = checkpoints(what.directory) if what.directory is not None else []
    first = step_of(found[-1]) if found else 0
    # A resumed run looks as well, for the shapes; the checkpoint then overwrites every number.
    n_tokens = max(min(config.start.n_tokens, config.n_tokens) for config in what.configs)
    looks = first_look(what.batches(0), what.sites, 1 if first else n_tokens)
    trainees = [new_trainee(config, looks) for config in what.configs]
    history = read_log(what.directory, first) if what.directory is not None else []
    return trainees, first, sums.to(trainees[0].b_enc.device), history


def _pair(config: TrainConfig, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Input and target of one trainee."""
    x = batch[str(config.site)]
    return x, batch[config.site_out] if config.site_out is not None else x


def _check_finite(
    what: _Run,
    config: TrainConfig,
    found: Outcome,
    *,
    batch: Mapping[str, Tensor],
    step: int,
) -> None:
    if torch.isfinite(found.loss):
        return
    bad = [site for site in what.sites if not torch.isfinite(batch[site]).all()]
    cause = f"the activations of {bad[0]} are not" if bad else "the weights have run away"
    kept = checkpoints(what.directory) if what.directory is not None else []
    last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint"
    raise GossamerError(
        f"The loss at step {step} of {config.site_out or config.site} is not finite, because "
        f"{cause}; {last}."
    )


def _rows(
    what: _Run,
    trainees: list[Trainee],
    outcomes: list[Outcome],
    *,
    sums: Tensor,
    done: int,
) -> list[dict[str, Any]]:
    rows = []
    size = what.configs[0].batch_tokens
    for place, (config, trainee) in enumerate(zip(what.configs, trainees, strict=True)):
        loss, squared_error, variation, n_active = (sums[place, :4] / sums[place, 4]).tolist()
        rows.append(
            {
                "step": done,
                "tokens": done * size,
                "trainee": place,
                "site_out": config.site_out or config.site,
                "loss": loss,
                "fvu": squared_error / variation if variation else 0.0,
                "l0": n_active / size,
                "dead": len(trainee.dead(config.dead_after)) / config.d_sae,
                **{f"loss_{name}": t.item() for name, t in outcomes[place].terms.items()},
                "rate": learning_rate(config, done - 1),
            }
        )
    return rows


def _tell(what: _Run, rows: list[dict[str, Any]], bar: Bar) -> None:
    if what.directory is not None:
        append_log(what.directory, rows)
    for row in rows:
        for callback in what.callbacks:
            callback(row)
    bar.show(rows)


def _saved(what: _Run, trainees: list[Trainee], names: Sequence[str]) -> list[SAE]:
    saes = []
    for config, trainee in zip(what.configs, trainees, strict=True):
        fresh = what.batches(config.n_steps)
        saes.append(finished_sae(config, trainee, fresh, what.source.about))
    if what.directory is not None:
        save_all(saes, names, what.directory)
    return saes


def _finished(what: _Run, names: Sequence[str]) -> tuple[list[SAE], list[dict[str, Any]]] | None:
    """The SAEs and log of a run that has ended, None for any other."""
    if what.directory is None:
        return None
    folders = [what.directory / name for name in names]
    if not all(is_native(folder) for folder in folders):
        return None
    history = read_log(what.directory, what.configs[0].n_steps)
    return [load_native(folder) for folder in folders], history


def _settled(configs: list[TrainConfig], source: Any) -> list[TrainConfig]:
    """The configs with their sites named, checked against the source and each other."""
    if not configs:
        raise GossamerError("There is nothing to train: give at least one TrainConfig.")
    sizes = {(config.n_tokens, config.batch_tokens) for config in configs}
    if len(sizes) > 1:
        raise GossamerError(
            "SAEs trained from one pass need one n_tokens and one batch_tokens, got "
            f"{', '.join(map(str, sorted(sizes)))}; train them one by one."
        )
    sites = tuple(source.sites)
    settled = []
    for config in configs:
        if config.site is None and len(sites) != 1:
            raise SiteError(f"These activations are of {', '.join(sites)}; say which with site.")
        site = config.site or sites[0]
        site_out = None if config.site_out == site else config.site_out
        for each in (site, site_out):
            if each is not None and each not in sites:
                raise SiteError(
                    f"These activations are of {', '.join(sites)}, not of {each}; harvest that "
                    "site as well."
                )
        settled.append(replace(config, site=site, site_out=site_out))
    return settled


def _as_source(source: Any, site: str | None) -> Any:
    """The source itself, or what `as_source` makes of a tensor, a path or a live run."""
    if not isinstance(source, Tensor) and callable(getattr(source, "batches", None)):
        return source
    from gossamer.activations import as_source

    return as_source(source, site)
