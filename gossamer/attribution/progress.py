"""How far a long computation is: not said, a bar on standard error, or a function of the caller's.

A function is called between two batches with the steps that are done and their number; what it
raises ends the computation, so that it can also stop it.
"""

from collections.abc import Callable

Progress = bool | Callable[[int, int], None]
"""False: silent; True: a bar; else progress(done, total)."""


def said(progress: Progress, done: int, total: int) -> None:
    """Tell the function how far it is, if there is one."""
    if callable(progress):
        progress(done, total)
