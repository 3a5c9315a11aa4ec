"""What became of each edge: the class it falls in, and how many fall in each.

With A the edge's weight and m a measured effect, m *agrees* when |m − A| ≤ tolerance·|A| + floor,
the floor being what rounding alone may do. The first that applies:

    holds                  direct and total effect of the ablation agree, and t's gate did not flip
    gate flips             t left its SAE's active set in the direct or the total run
    carried by attention   held agrees and direct does not: patterns or norm scales answer
    cancels                direct agrees and total does not: other paths from s make up for it
    other                  held does not agree: a piece of the model that the graph linearised bends
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float

Class = Literal["holds", "gate flips", "carried by attention", "cancels", "other"]
CLASSES: tuple[Class, ...] = get_args(Class)
"""Classes, in the order in which they are tried."""

MODES = ("linear", "held", "norms_held", "direct_small", "direct", "total_small", "total")
"""Names of measured effects: see `CheckedEdge`."""


IN_WORDS = {
    "linear": "in the linearised model",
    "held": "ablated, attention and norms held",
    "norms_held": "ablated, norms alone held",
    "direct_small": "direct effect, small change",
    "direct": "direct effect, ablated",
    "total_small": "total effect, small change",
    "total": "total effect, ablated",
}
"""What each mode is called."""


class CheckedEdge(NamedTuple):
    """One edge: what the graph says, and what was measured.

    Effects are clean minus changed, divided by the share of the source that was taken away, so that
    each is to be compared with the weight.
    """

    source: str
    """Node id of what was changed."""

    target: str
    """Node id of what was read: a latent's pre-activation, a logit before any soft-cap."""

    source_label: str
    """What it means, as far as is known."""

    target_label: str
    """What it means, as far as is known."""

    weight: float
    """What the graph says: A[t, s]."""

    linear: float
    """In the linearised model: any share."""

    held: float
    """Ablated; attention patterns, norm scales and all other spliced sites at clean values."""

    norms_held: float
    """Ablated; norm scales and all other spliced sites at clean values, attention free."""

    direct_small: float
    """A small share taken away; all other spliced sites at clean values."""

    direct: float
    """Ablated; all other spliced sites at clean values."""

    total_small: float
    """A small share taken away; nothing held."""

    total: float
    """Ablated; nothing held."""

    flips_direct: bool
    """Whether the target left the active set in the direct run."""

    flips_total: bool
    """The same in the total run."""

    others_direct: int
    """Other latents at the target's site and position that entered or left in the direct run."""

    others_total: int
    """The same in the total run."""

    floor: float
    """What rounding may do to an ablation's effect, absolute."""

    kind: Class
    """The class."""


class CheckedNode(NamedTuple):
    """One node's effect on what the graph explains: Σ weight · target."""

    node: str
    """Node id."""

    label: str
    """What it means, as far as is known."""

    predicted: float
    """What all paths of the graph add up to, gates as in the clean run."""

    total_small: float
    """A small share taken away, nothing held; divided by the share."""

    total: float
    """Ablated, nothing held."""

    agrees: bool
    """Whether the ablation agrees with what is predicted."""


def agrees(
    measured: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    tolerance: float,
    floor: Float[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """Where measured effects are those predicted."""
    return np.abs(measured - weights) <= tolerance * np.abs(weights) + floor


def class_of(*, direct: bool, total: bool, held: bool, flips: bool) -> Class:
    """The class, from which effects agree and whether the target's gate flipped."""
    if direct and total and not flips:
        return "holds"
    if flips:
        return "gate flips"
    if held and not direct:
        return "carried by attention"
    return "cancels" if direct else "other"
