"""Passes, effects and texts."""

from gossamer.server.answers.about import TokenList
from gossamer.server.answers.analyses import Prediction
from gossamer.server.answers.fields import Fields, Values


class Predictions(Fields):
    """Next tokens at a position."""

    position: int
    top: list[Prediction]


class ActiveLatent(Fields):
    """A latent that is active."""

    index: int
    activation: float | None
    label: str


class LatentsAt(Fields):
    """An SAE at a position."""

    position: int
    n_active: int
    top: list[ActiveLatent]
    error_norm: float | None
    value_norm: float | None


class RunPrompt(TokenList):
    """What a pass left of one prompt."""

    predictions: list[Predictions]
    latents: dict[str, list[LatentsAt]]
    activations: dict[str, Values]


class Run(Fields):
    """What a pass left."""

    prompts: list[RunPrompt]
    seconds: float
    peak_bytes: int | None


class Nodes(Fields):
    """Sources or targets, column by column."""

    site: str
    ids: list[str]
    positions: list[int]
    indices: list[int]
    values: list[float | None]
    tokens: list[str]
    labels: list[str]


class Edge(Fields):
    """One effect."""

    source: str
    target: str
    source_label: str
    target_label: str
    gradient: float | None
    attribution: float | None
    offset: int


class Density(Fields):
    """How few pairs matter."""

    possible: int
    computed: float
    causal: float
    above: float


class L1(Fields):
    """Sums of absolute values."""

    attributions: float | None
    sources: float | None
    targets: float | None


class EdgesOfPrompt(TokenList):
    """Effects along one prompt."""

    sources: Nodes
    targets: Nodes
    top: list[Edge]
    density: Density
    l1: L1
    hold: list[str]
    direct: bool
    error: str
    blocked: bool
    gradients: list[list[float | None]] | None
    attributions: list[list[float | None]] | None


class Edges(Fields):
    """One for each prompt."""

    edges: list[EdgesOfPrompt]
    seconds: float
    peak_bytes: int | None


class LikelyToken(Fields):
    """A token that might have come."""

    token: str
    token_id: int
    probability: float | None


class GeneratedToken(LikelyToken):
    """A token that came."""

    top: list[LikelyToken]


class Generation(Fields):
    """What a model went on with."""

    prompt_ids: list[int]
    text: str
    tokens: list[GeneratedToken]
    differs_at: int | None
    unedited: "Generation | None"


class Generations(Fields):
    """One for each prompt."""

    generations: list[Generation]
    seconds: float
    peak_bytes: int | None
