"""Schedules as functions of the step alone, so that a resumed run needs no state for them."""

from gossamer.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Adam's rate of step 0, 1, …: up over the warm-up, constant, linear to 0 at the end.

    The last step has a rate above 0: the first one that would have 0 is the one after it.
    """
    n_steps, decay = config.n_steps, config.optimizer.decay
    given = config.optimizer.warmup_steps
    warmup = min(1000, n_steps // 20) if given is None else given
    rising = (step + 1) / warmup if warmup else 1.0
    falling = (n_steps - step) / (decay * n_steps) if decay else 1.0
    return config.rate * min(rising, 1.0, falling)


def progress(config: TrainConfig, step: int) -> float:
    """Share of the run that is done after this step."""
    return (step + 1) / config.n_steps
