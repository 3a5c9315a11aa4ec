"""Numbers of a config, checked: each says its name, what it was and what it may be."""

import math

from gossamer.errors import GossamerError


def check_whole(
    name: str, value: int | float | None, least: int = 1, most: int | float = math.inf
) -> None:
    """GossamerError unless a whole number from `least` to `most`, or None."""
    if value is None:
        return
    if not (math.isfinite(value) and value == int(value) and least <= value <= most):
        upper = "" if most == math.inf else f" and at most {most:.0f}"
        raise GossamerError(
            f"{name} must be a whole number of at least {least}{upper}, got {value}."
        )


def check_positive(name: str, value: int | float | None) -> None:
    """GossamerError unless finite and above 0, or None."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise GossamerError(f"{name} must be a finite number above 0, got {value}.")


def check_not_negative(name: str, value: int | float | None) -> None:
    """GossamerError unless finite and at least 0, or None."""
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise GossamerError(f"{name} must be a finite number of at least 0, got {value}.")


def check_share(name: str, value: int | float, *, below_1: bool = False) -> None:
    """GossamerError unless from 0 to 1, 1 itself perhaps left out."""
    if not 0 <= value <= 1 or (below_1 and value == 1):
        allowed = "at least 0 and below 1" if below_1 else "a share, from 0 to 1"
        raise GossamerError(f"{name} must be {allowed}, got {value}.")
