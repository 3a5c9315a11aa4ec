"""What `edges` found: effects of sources on targets, both named, and the ways to read them."""

import csv
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gossamer.attribution.edge_files import read_parts, write_parts
from gossamer.attribution.nodes import NodeTable
from gossamer.errors import FormatError, GossamerError
from gossamer.saes.native import write_text
from gossamer.splice import ErrorMode

if TYPE_CHECKING:
    from gossamer.views import MatrixView, NodeColumn

Excerpts = Mapping[str, Mapping[int, Sequence[str]]]
"""Texts on which latents fire, by site and latent."""


class Edge(NamedTuple):
    """One effect."""

    source: str
    """Node id of what is changed."""

    target: str
    """Node id of what moves."""

    source_label: str
    """Label and token of the source."""

    target_label: str
    """Label and token of the target."""

    gradient: float
    """Change of the target per unit of the source."""

    attribution: float
    """Gradient times the source's activation."""

    offset: int
    """Positions from the source to the target."""


class Density(NamedTuple):
    """How few of all possible pairs matter, as shares of `possible`."""

    possible: int
    """Pairs there could be: the two SAEs' latents; positions for tokens, logits asked for."""

    computed: float
    """Active target with active source, over the whole prompt; the notebook's "L0"."""

    causal: float
    """Those of them whose source is not later than its target."""

    above: float
    """Those of them whose |attribution| is above the threshold."""


class L1(NamedTuple):
    """Sums of absolute values."""

    attributions: float
    """Over all pairs."""

    sources: float
    """Of the sources' activations."""

    targets: float
    """Of the targets' activations or logits."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Effects of all sources on all targets of one prompt: rows are targets, columns are
    sources."""

    sources: NodeTable
    """The columns, sorted by (position, index)."""

    targets: NodeTable
    """The rows, sorted by (position, index)."""

    gradients: Float[Tensor, "n_targets n_sources"]
    """∂ target / ∂ source; of a target latent, its pre-activation."""

    attributions: Float[Tensor, "n_targets n_sources"]
    """Gradients times the sources' activations."""

    tokens: tuple[str, ...]
    """The prompt, token by token."""

    token_ids: tuple[int, ...]
    """The prompt's token ids, BOS included."""

    hold: tuple[str, ...]
    """What was kept constant in the backward pass."""

    direct: bool
    """Whether paths through the other SAEs passed were blocked."""

    error: ErrorMode
    """The source's error term."""

    blocked: bool
    """Whether every path was blocked: no entry can be anything but 0."""

    def strongest(self, n: int = 20) -> list[tuple[int, int]]:
        """(row, column) of the n entries of largest |attribution|, strongest first."""
        if n < 0:
            raise GossamerError(f"n is how many edges to give, got {n}; give 0 or more.")
        order = self.attributions.abs().flatten().argsort(descending=True, stable=True)[:n]
        return [divmod(int(i), len(self.sources)) for i in order]

    def top(self, n: int = 20) -> list[Edge]:
        """The n edges of largest |attribution|, strongest first."""
        return [self.edge(target, source) for target, source in self.strongest(n)]

    def edge(self, target: int, source: int) -> Edge:
        """The edge at one row and column."""
        return Edge(
            source=self.sources.ids[source],
            target=self.targets.ids[target],
            source_label=self.sources.labels[source],
            target_label=self.targets.labels[target],
            gradient=float(self.gradients[target, source]),
            attribution=float(self.attributions[target, source]),
            offset=int(self.targets.positions[target] - self.sources.positions[source]),
        )

    def density(self, threshold: float | int = 0.0) -> Density:
        """Which share of all possible pairs was computed, can be causal, is above `threshold`."""
        possible = self.targets.units * self.sources.units
        causal = self._offsets() >= 0
        above = causal & (self.attributions.abs() > threshold)
        counts = (self.gradients.numel(), int(causal.sum()), int(above.sum()))
        return Density(possible, *(count / max(possible, 1) for count in counts))

    def l1(self) -> L1:
        """Σ|attributions|, and Σ|activations| on both sides, in float64."""
        tables = (self.attributions, self.sources.values, self.targets.values)
        return L1(*(float(table.double().abs().sum()) for table in tables))

    def cross_position(self, threshold: float | int | None = None) -> list[Edge]:
        """Edges between different positions with |attribution| above the threshold, strongest
        first; None: every one that is not 0."""
        sizes = self.attributions.abs()
        chosen = (self._offsets() != 0) & (sizes > (0.0 if threshold is None else threshold))
        pairs = chosen.nonzero()
        order = sizes[chosen].argsort(descending=True, stable=True)
        return [self.edge(int(t), int(s)) for t, s in pairs[order].tolist()]

    def into(
        self,
        target: int | str,
        n: int | None = None,
        *,
        by: Literal["attribution", "gradient"] = "attribution",
        signed: bool = False,
    ) -> list[Edge]:
        """Edges into one target, a row or a node id, sorted by size, or by value when `signed`;
        the first n, or all."""
        row = self._row(target)
        values = {"attribution": self.attributions, "gradient": self.gradients}.get(by)
        if values is None:
            raise GossamerError(f'Edges are sorted by "attribution" or "gradient", got {by!r}.')
        keys = values[row] if signed else values[row].abs()
        order = keys.argsort(descending=True, stable=True)[:n]
        return [self.edge(row, int(column)) for column in order]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a line for each pair whose source is not later than its target,
        in the order of rows and columns."""
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise GossamerError(
                "to_dataframe needs the package pandas: pip install 'gossamer[notebook]'; "
                "or write the same table with to_csv(path)."
            ) from error
        return pandas.DataFrame(self._columns())

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """The table of `to_dataframe` as a file, in one move; returns its path."""
        columns = self._columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        path = _writable(path)
        write_text(text.getvalue(), path)
        return path

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Everything in one safetensors file, written in one move; `Edges.load` gives it back."""
        path = _writable(path)
        write_parts({field.name: getattr(self, field.name) for field in fields(self)}, path)
        return path

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Edges":
        """What `save` wrote. FormatError when the file is missing, damaged or of another kind."""
        parts = read_parts(Path(path))
        if set(parts) != {field.name for field in fields(Edges)}:
            raise FormatError(f"{path} does not have the parts of edges; save them again.")
        return Edges(**parts)

    def view(
        self,
        *,
        threshold: float | int = 0.0,
        cross_only: bool = False,
        excerpts: Excerpts | None = None,
    ) -> "MatrixView":
        """The matrix of attributions to look at; entries below the threshold are hidden at first,
        or all within one position.

        `excerpts`, by site and latent, are texts shown with a node: {board.site_out:
        board.excerpts()} of a Dashboard.
        """
        from gossamer.views import MatrixView

        return MatrixView(
            values=_array(self.attributions),
            gradients=_array(self.gradients),
            rows=_side(self.targets, excerpts or {}),
            columns=_side(self.sources, excerpts or {}),
            title=f"{self.sources.site} → {self.targets.site}",
            note=self._note(),
            prompt_tokens=self.tokens,
            threshold=threshold,
            cross_only=cross_only,
        )

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        threshold: float | int = 0.0,
        cross_only: bool = False,
        excerpts: Excerpts | None = None,
    ) -> Path:
        """The view as one HTML file that opens offline; returns its path."""
        view = self.view(threshold=threshold, cross_only=cross_only, excerpts=excerpts)
        return view.to_html(path)

    def show(
        self,
        *,
        threshold: float | int = 0.0,
        cross_only: bool = False,
        excerpts: Excerpts | None = None,
    ) -> Any:
        """In a notebook the view as a widget, whose `selected` reads and sets the chosen pair;
        elsewhere the page, opened in the browser, and its path."""
        view = self.view(threshold=threshold, cross_only=cross_only, excerpts=excerpts)
        if _in_notebook():
            return view.widget()
        import webbrowser

        path = view.to_html(Path(tempfile.mkdtemp(prefix="gossamer-")) / "edges.html")
        webbrowser.open(path.as_uri())
        return path

    def _offsets(self) -> Tensor:
        """(n_targets, n_sources): positions from source to target."""
        return self.targets.positions[:, None] - self.sources.positions

    def _row(self, target: int | str) -> int:
        names, n = self.targets.ids, len(self.targets)
        if isinstance(target, str) and target in names:
            return names.index(target)
        if isinstance(target, int) and -n <= target < n:
            return target % n
        raise GossamerError(
            f"No target {target!r}: give a row 0..{n - 1} or a node id such as "
            f"{names[0] if names else 'site/index@position'}."
        )

    def _columns(self) -> dict[str, list[Any]]:
        """The long table, column by column."""
        rows, columns = (self._offsets() >= 0).nonzero(as_tuple=True)
        table: dict[str, list[Any]] = {}
        for name, nodes, chosen in (
            ("source", self.sources, columns.tolist()),
            ("target", self.targets, rows.tolist()),
        ):
            for heading, values in _named_columns(nodes):
                table[f"{name}{heading}"] = [values[i] for i in chosen]
        table["offset"] = self._offsets()[rows, columns].tolist()
        table["gradient"] = self.gradients[rows, columns].tolist()
        table["attribution"] = self.attributions[rows, columns].tolist()
        return table

    def _note(self) -> str:
        """How the numbers were made, in a sentence or two."""
        held = " and ".join(self.hold) or "nothing"
        parts = [f"Effects of {self.sources.site} on {self.targets.site}; held: {held}."]
        if self.direct:
            parts.append("Paths through the other SAEs are blocked.")
        if self.error == "dropped":
            parts.append("The source's error is left out.")
        if self.blocked:
            parts.append("Every path is blocked by another SAE.")
        return " ".join(parts)


def _named_columns(nodes: NodeTable) -> Iterator[tuple[str, list[Any]]]:
    yield "", list(nodes.ids)
    yield "_position", nodes.positions.tolist()
    yield "_token", list(nodes.tokens)
    yield "_index", nodes.indices.tolist()
    yield "_label", list(nodes.labels)
    yield "_value", nodes.values.tolist()


def _side(nodes: NodeTable, excerpts: Excerpts) -> "NodeColumn":
    from gossamer.views import NodeColumn

    known = excerpts.get(nodes.site, {})
    return NodeColumn(
        name=nodes.site,
        ids=nodes.ids,
        positions=nodes.positions.cpu().numpy(),
        tokens=nodes.tokens,
        indices=nodes.indices.cpu().numpy(),
        values=_array(nodes.values),
        labels=nodes.labels,
        excerpts=[known.get(i, ()) for i in nodes.indices.tolist()] if known else (),
    )


def _array(values: Float[Tensor, "*shape"]) -> Any:
    """As numpy, which has no bfloat16."""
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _writable(path: str | os.PathLike[str]) -> Path:
    """A path to write a file at. GossamerError when its directory does not exist."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise GossamerError(f"{path} cannot be written; name a file in a directory that exists.")
    return path


def _in_notebook() -> bool:
    """Whether this Python is the kernel of a notebook."""
    import sys

    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
