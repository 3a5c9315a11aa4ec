"""Ctrl-C put off to the end of a step, where everything fits together and can be kept."""

import signal
import threading
from types import FrameType
from typing import Any, final


@final
class Interrupt:
    """While entered, the first SIGINT is remembered; a second one interrupts at once.

    `also_terminate`: SIGTERM too, which torchrun sends after a SIGINT of its own; none of them then
    interrupts at once.

    Only the main thread receives signals, and only it may change what they do: elsewhere this does
    nothing.
    """

    def __init__(self, *, also_terminate: bool = False) -> None:
        self.wanted = False
        """Whether the run is to stop after this step."""
        self._before: Any = None
        self._terminates = also_terminate
        self._before_that: Any = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.getsignal(signal.SIGINT)
            if self._before is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._remember)
            if self._terminates:
                self._before_that = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._before is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._before)
        if self._before_that is not None:
            signal.signal(signal.SIGTERM, self._before_that)
        if self.wanted and kind is None:  # it came when the last step had been kept
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and not self._terminates:
            raise KeyboardInterrupt
        self.wanted = True
