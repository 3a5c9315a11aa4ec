"""A command in one process, or in many that torchrun started."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gossamer.errors import GossamerError

LEAVE_SECONDS = 10.0
"""How long a process lets the first one speak."""


def let_first_speak() -> None:
    """Before a mistake in the words of a command, which all processes find before they join."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(LEAVE_SECONDS)


@contextmanager
def launched() -> Iterator[bool]:
    """Join the processes that torchrun started; gives whether this one speaks, which the first
    does. A user's mistake, raised in all of them, is said once.

    torchrun ends all processes when one has failed. So the first one fails at once, and by the time
    that another would say the same it is no more. A mistake of another one alone is still said.
    """
    from gossamer.distributed import joined

    with joined() as here:
        try:
            yield here.is_first
        except GossamerError:
            if not here.is_first:
                time.sleep(LEAVE_SECONDS)
            raise
