"""What can be asked for, and what is refused when it is written down."""

from typing import Any

import pytest

from gossamer.attribution.targets import Latents, LogitDifference, Logits, Tokens
from gossamer.errors import GossamerError


def test_targets_are_values() -> None:
    assert Tokens() == Tokens()
    assert (
        Latents("hook_embed", top=3)
        == Latents("hook_embed", None, None, 3)
        != Latents("hook_embed")
    )
    assert Logits() == Logits(position=-1) and Logits(mass=1.0).mass == 1.0
    assert LogitDifference(" a", " b").position == -1
    with pytest.raises(AttributeError):
        Logits().top = 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Latents("hook_embed", top=0),
            "top keeps that many latents, got 0; give 1 or more",
        ),
        (lambda: Logits(top=-1), "top keeps that many tokens, got -1; give 1 or more"),
        (lambda: Logits(mass=0.0), r"mass is a probability in \(0, 1\], got 0.0"),
        (lambda: Logits(mass=1.5), r"mass is a probability in \(0, 1\], got 1.5"),
        (lambda: Logits(tokens=[1], top=2), "tokens, or top and mass, got tokens and top"),
    ],
)
def test_contradictions_are_refused(make: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        make()
