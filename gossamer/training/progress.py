"""What a run tells people and programs on the way.

A row is a dictionary of plain numbers, for one trainee and the last `log_steps` steps:

    step tokens site_out trainee      after which step and token, of which SAE (its place)
    loss fvu l0                       means over those steps; fvu over the batches' own variation
    loss_mse, loss_<penalty>, …       terms of the loss of the last of them
    dead rate                         share of dead latents and Adam's learning rate, at the last
    tokens_per_second waiting         speed, and the share of the time spent waiting for data

A callback is anything that takes a row. Weights & Biases, for example, where every SAE of a sweep
needs names of its own:

    import wandb
    run = wandb.init(project="saes")

    def log(row):
        numbers = {name: value for name, value in row.items() if name != "site_out"}
        run.log({f"{row['trainee']}/{name}": v for name, v in numbers.items()}, step=row["step"])

    train(configs, source, callbacks=[log])
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from gossamer.errors import GossamerError
from gossamer.views.curves import NOT_CURVES

Row = Mapping[str, Any]
"""One line of the log."""

Callback = Callable[[Row], object]
"""What is called with every row."""


def tensorboard(directory: str | Path) -> Callback:
    """A callback that writes TensorBoard's files. GossamerError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as problem:
        raise GossamerError(
            "TensorBoard is not installed; write: pip install tensorboard, or leave it out."
        ) from problem
    opened: list[SummaryWriter] = []  # with the first row: a run that is refused leaves no file

    def write(row: Row) -> None:
        if not opened:
            opened.append(SummaryWriter(str(directory)))
        writer = opened[0]
        for name, value in row.items():
            if name not in NOT_CURVES:
                writer.add_scalar(f"{row['trainee']}/{name}", value, row["step"])
        writer.flush()

    return write


@final
class Clock:
    """How long the run has taken since the last row, and how much of that it waited for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0

    def wait(self, produce: Callable[[], Any]) -> Any:
        """Call something that is waited for."""
        before = time.perf_counter()
        result = produce()
        self._waited += time.perf_counter() - before
        return result

    def lap(self, n_tokens: int) -> dict[str, float]:
        """Speed and waiting since the last lap."""
        seconds = time.perf_counter() - self._started
        row = {"tokens_per_second": n_tokens / seconds, "waiting": self._waited / seconds}
        self._started, self._waited = time.perf_counter(), 0.0
        return row


@final
class Bar:
    """A progress bar in tokens, with the newest numbers beside it."""

    def __init__(self, shown: bool | None, first_token: int, n_tokens: int) -> None:
        """`shown=None`: where standard error is a terminal."""
        from tqdm import tqdm

        hidden = not (sys.stderr.isatty() if shown is None else shown)
        self._bar = tqdm(
            initial=first_token,
            total=n_tokens,
            unit="tok",
            unit_scale=True,
            dynamic_ncols=True,
            disable=hidden,
        )

    def move(self, n_tokens: int) -> None:
        """So many tokens more."""
        self._bar.update(n_tokens)

    def show(self, rows: list[dict[str, Any]]) -> None:
        """Means over the trainees."""
        means = {
            name: sum(row[name] for row in rows) / len(rows)
            for name in ("fvu", "l0", "dead", "waiting")
        }
        self._bar.set_postfix_str(
            f"fvu {means['fvu']:.4f}, l0 {means['l0']:.1f}, dead {means['dead']:.1%}, "
            f"waiting {means['waiting']:.0%}"
        )

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()
