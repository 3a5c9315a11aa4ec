"""`Analysis`: a node table that adds up to a direction of interest, and what the run left."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from gossamer.errors import GossamerError
from gossamer.splice import Trace

COLUMNS = ("activation", "write_norm", "direct", "total")
"""What each row says."""


class TableRow(NamedTuple):
    """One node."""

    node: str
    """Its id."""

    kind: str
    """embedding, position, head, pair, neuron, latent, error, bias, remainder."""

    position: int
    """Where it is, from 0; of a head its query."""

    token: str
    """The token there."""

    label: str
    """What a latent means, as far as is known."""

    in_cut: bool
    """Whether it counts in the sums: every path crosses the cut once."""

    activation: float | None
    """Its own value; None where a kind has none."""

    write_norm: float | None
    """Length of what it adds to the residual stream."""

    direct: float
    """What it adds to the number with no other node between."""

    total: float
    """Activation times the number's gradient by it: every path, to first order."""


class ColumnSum(NamedTuple):
    """What a column adds up to over the cut."""

    column: str
    """Its name."""

    shown: float
    """Over the rows that are listed."""

    not_shown: float
    """Over the rest."""

    adds_up: bool
    """Whether both together are the number that is explained."""

    sentence: str
    """The same in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """One number of one prompt, explained."""

    prompt_ids: tuple[int, ...]
    """The prompt's tokens, BOS included."""

    tokens: tuple[str, ...]
    """The same as text."""

    target: str
    """What is explained, in words."""

    position: int
    """Where it is read."""

    value: float
    """The number, after edits."""

    clean_value: float | None
    """Without the edits; None where there are none."""

    estimate: float | None
    """What the clean run's gradient says of value − clean_value; None where there are no edits."""

    cut: str
    """Site at which the model is cut into the nodes that count: hook_embed, or a residual SAE's."""

    hold: tuple[str, ...]
    """What was held constant in the backward pass."""

    rows: tuple[TableRow, ...]
    """The union over columns of the largest and smallest, each row complete; by |direct|, then
    |total|."""

    sums: tuple[ColumnSum, ...]
    """What the columns add up to."""

    predictions: tuple[tuple[str, int, float, float], ...]
    """Likeliest next tokens at `position`: token, id, logit, probability; empty where the run ended
    before the logits."""

    trace: Trace
    """The run, for gossamer.analysis."""

    clean: "Analysis | None"
    """The same without the edits; None where there are none."""

    seconds: float
    """Of the pass it was part of, and its own table."""

    peak_bytes: int | None
    """Memory that the pass took at its peak, beyond what was taken before."""

    logits: Float[Tensor, " d_vocab"] | None = None
    """Scores at `position`, cap included."""

    rows_at: Callable[[list[str]], tuple[TableRow, ...]] | None = None
    """Rows of nodes by their ids, whether listed or not."""

    @property
    def change(self) -> float | None:
        """What the edits did to the number."""
        return None if self.clean_value is None else self.value - self.clean_value

    def top(self, n: int = 20, by: str = "direct") -> tuple[TableRow, ...]:
        """The rows of largest magnitude in one column."""
        if by not in COLUMNS:
            raise GossamerError(f"by is one of {', '.join(COLUMNS)}, got {by!r}.")
        order = sorted(self.rows, key=lambda row: -abs(getattr(row, by) or 0.0))
        return tuple(order[:n])

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(
            [row._asdict() for row in self.rows], columns=list(TableRow._fields)
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the trace as plain values, ready for JSON."""
        return {
            "prompt_ids": list(self.prompt_ids),
            "tokens": list(self.tokens),
            "target": self.target,
            "position": self.position,
            "value": self.value,
            "clean_value": self.clean_value,
            "change": self.change,
            "estimate": self.estimate,
            "cut": self.cut,
            "hold": list(self.hold),
            "rows": [row._asdict() for row in self.rows],
            "sums": [each._asdict() for each in self.sums],
            "predictions": [
                {"token": token, "token_id": i, "logit": logit, "probability": p}
                for token, i, logit, p in self.predictions
            ],
            "clean": None if self.clean is None else self.clean.to_dict(),
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }
