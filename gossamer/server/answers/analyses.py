"""Numbers explained, and further questions."""

from gossamer.server.answers.fields import Fields, Values


class Row(Fields):
    """One node of a table."""

    node: str
    kind: str
    position: int
    token: str
    label: str
    in_cut: bool
    activation: float | None
    write_norm: float | None
    direct: float | None
    total: float | None


class ColumnSum(Fields):
    """What a column adds up to."""

    column: str
    shown: float | None
    not_shown: float | None
    adds_up: bool
    sentence: str


class Prediction(Fields):
    """A next token."""

    token: str
    token_id: int
    logit: float | None
    probability: float | None


class Analysis(Fields):
    """One number explained; `id` is null for the clean run inside another."""

    id: str | None
    prompt_ids: list[int]
    tokens: list[str]
    target: str
    position: int
    value: float | None
    clean_value: float | None
    change: float | None
    estimate: float | None
    cut: str
    hold: list[str]
    rows: list[Row]
    sums: list[ColumnSum]
    predictions: list[Prediction]
    clean: "Analysis | None"
    seconds: float
    peak_bytes: int | None


class Analyses(Fields):
    """Several."""

    analyses: list[Analysis]


class ComparedRow(Fields):
    """One node on both sides."""

    node: str
    right_node: str
    kind: str
    label: str
    in_cut: bool
    left: dict[str, float | None]
    right: dict[str, float | None]
    difference: dict[str, float | None]


class Comparison(Fields):
    """Two analyses side by side."""

    left: Analysis
    right: Analysis
    difference: float | None
    align: str
    rows: list[ComparedRow]
    seconds: float
    peak_bytes: int | None


class ScalarValues(Fields):
    """One metric at one site."""

    kind: str
    metric: str
    site: str
    axes: list[str]
    shape: list[int]
    values: Values
    positions: list[int] | None
    units: list[int] | None


class Scalars(Fields):
    """By site."""

    scalars: dict[str, ScalarValues]
    seconds: float
    peak_bytes: int | None


class LogitRow(Fields):
    """A next token beside others."""

    token: str
    token_id: int
    logit: float | None
    probability: float | None
    relative: float | None
    pinned: bool


class LogitLens(Fields):
    """By site."""

    sites: dict[str, list[LogitRow]]
    seconds: float
    peak_bytes: int | None
