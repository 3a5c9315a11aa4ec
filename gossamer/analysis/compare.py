"""Two analyses side by side: two prompts, or one with edits and without.

Rows are the union of both tables' rows, each complete on both sides. Nodes correspond by unit and
by position, counted from the prompts' starts or from their ends; a token's node corresponds to
whatever token stands there.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from gossamer.analysis.result import COLUMNS, Analysis, TableRow
from gossamer.errors import GossamerError
from gossamer.sites import NodeId, parse_node


class ComparedRow(NamedTuple):
    """One node in both runs."""

    node: str
    """Its id on the left, or on the right where the left prompt has no such position."""

    right_node: str
    """Its id on the right, likewise."""

    kind: str
    """Kind of node."""

    label: str
    """What a latent means, as far as is known."""

    in_cut: bool
    """Whether it counts in the sums."""

    left: dict[str, float | None]
    """Each column; 0 for a latent that is not active, None for a position that is not there."""

    right: dict[str, float | None]
    """The same on the right."""

    difference: dict[str, float | None]
    """Left less right."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two numbers, explained side by side."""

    left: Analysis
    """On the left; the edited run."""

    right: Analysis
    """On the right; the clean run."""

    align: str
    """Where positions are counted from."""

    rows: tuple[ComparedRow, ...]
    """Sorted by the magnitude of the direct effects' difference, then of the total effects'."""

    @property
    def difference(self) -> float:
        """The left number less the right one."""
        return self.left.value - self.right.value

    def to_dict(self) -> dict[str, Any]:
        """Both analyses and the rows as plain values, ready for JSON."""
        return {
            "left": self.left.to_dict(),
            "right": self.right.to_dict(),
            "difference": self.difference,
            "align": self.align,
            "rows": [row._asdict() for row in self.rows],
        }

    def to_dataframe(self) -> Any:
        """The rows as a pandas DataFrame, with a column for each side of each column."""
        import pandas

        records = []
        for row in self.rows:
            record: dict[str, Any] = {"node": row.node, "kind": row.kind, "label": row.label}
            for side in ("left", "right", "difference"):
                record |= {f"{name}_{side}": getattr(row, side)[name] for name in COLUMNS}
            records.append(record)
        return pandas.DataFrame(records)


def compare(left: Analysis, right: Analysis | None = None, align: str = "start") -> Comparison:
    """Two analyses side by side; without `right`, an edited one beside its own clean run.

    GossamerError when they explain different cuts, so that their rows would not correspond.
    """
    if right is None:
        right = left.clean
    if right is None:
        raise GossamerError(
            "This analysis has no edits, so there is no clean run beside it; give another analysis "
            "to compare with."
        )
    if align not in ("start", "end"):
        raise GossamerError(f'align is "start" or "end", got {align!r}.')
    if left.cut != right.cut:
        raise GossamerError(
            f"The left analysis cuts the model at {left.cut}, the right one at {right.cut}; give "
            "both the same cut=."
        )
    shift = 0 if align == "start" else len(right.tokens) - len(left.tokens)
    pairs = dict.fromkeys(
        [(row.node, _moved(row.node, shift, right)) for row in left.rows]
        + [(_moved(row.node, -shift, left), row.node) for row in right.rows]
    )
    mine = {row.node: row for row in _rows(left, [a for a, _ in pairs if a is not None])}
    theirs = {row.node: row for row in _rows(right, [b for _, b in pairs if b is not None])}
    rows = [_row(a, b, mine, theirs) for a, b in pairs if a in mine or b in theirs]
    rows.sort(key=lambda row: (-abs(row.difference["direct"] or 0),
                               -abs(row.difference["total"] or 0)))  # fmt: skip
    return Comparison(left, right, align, tuple(rows))


def _rows(analysis: Analysis, nodes: list[str]) -> tuple[TableRow, ...]:
    return () if analysis.rows_at is None else analysis.rows_at(nodes)


def _moved(node: str, shift: int, there: Analysis) -> str | None:
    """The corresponding node of another prompt; None where that has no such position."""
    parsed = parse_node(node)
    position = parsed.position + shift
    key = None if parsed.key_position is None else parsed.key_position + shift
    if not 0 <= position < len(there.tokens) or (key is not None and key < 0):
        return None
    unit = parsed.unit
    if parsed.site == "hook_embed" and isinstance(unit, int):
        unit = there.prompt_ids[position]
    elif parsed.site == "hook_pos_embed" and isinstance(unit, int):
        unit = position
    return str(NodeId(parsed.site, unit, position, key))


def _row(
    a: str | None, b: str | None, mine: dict[str, TableRow], theirs: dict[str, TableRow]
) -> ComparedRow:
    """One node in both runs."""
    left, right = mine.get(a or ""), theirs.get(b or "")
    one = left or right
    assert one is not None
    sides = []
    for name, row in ((a, left), (b, right)):
        absent = None if name is None or one.kind != "latent" else 0.0
        sides.append({c: absent if row is None else getattr(row, c) for c in COLUMNS})
    difference = {
        c: None if sides[0][c] is None or sides[1][c] is None else sides[0][c] - sides[1][c]
        for c in COLUMNS
    }
    return ComparedRow(
        a or b or "", b or a or "", one.kind, one.label, one.in_cut, sides[0], sides[1], difference
    )
