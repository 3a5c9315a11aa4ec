"""What a graph takes of memory, disk and work, said before its rows are computed, and kept to.

    kept      the clean run's values, what nodes write, the table of nodes     counted, not guessed
    block     b · (4 d_model · pos · L' + 6 d_mlp · pos)   one block's forward pass, by autograd
    product   b · pos · (10 d_model + 3 d_mlp')            each target of a batch
    row       b · n_nodes · 3                              each target of a batch
    stored    n_targets · n_nodes · share · (4 + b)        on disk, or in memory where it is small

b bytes of a number, L' blocks at once, d_mlp' the hidden width where MLPs are linearised.
"""

from dataclasses import dataclass

import torch

from gossamer.attribution.graphs.columns import Columns
from gossamer.attribution.graphs.places import MLP_OUT
from gossamer.attribution.graphs.run import Run
from gossamer.errors import GossamerError
from gossamer.machine import readable

ROWS_ON_CPU = 1024
"""Targets × positions pulled back at once on a CPU: more leaves its caches and is slower."""

ROWS_ON_DEVICE = 65_536
"""The same on an accelerator."""

IN_MEMORY = 256 << 20
"""Bytes of edges that a graph keeps in memory; more stay in files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """The plan of one graph."""

    n_nodes: int
    """Nodes of the prompt, left-out ones included."""

    n_targets: int
    """Rows that will be computed."""

    n_positions: int
    """Tokens of the prompt."""

    n_engines: int
    """Points of the path, 1 without one."""

    rows_at_once: int
    """Targets × positions of a batch."""

    kept: int
    """Bytes taken already by the run and the nodes."""

    batch: int
    """Bytes of a batch at its largest."""

    stored: int
    """Bytes of edges, at most."""

    @property
    def memory(self) -> int:
        """Bytes beyond the model and the SAEs, edges in files not counted."""
        return self.kept + self.batch + min(self.stored, IN_MEMORY)

    def __str__(self) -> str:
        path = f" at {self.n_engines} points" if self.n_engines > 1 else ""
        where = "in memory" if self.stored <= IN_MEMORY else "in files"
        return (
            f"{self.n_nodes:,} nodes over {self.n_positions:,} tokens, {self.n_targets:,} rows of "
            f"edges{path}: at most {readable(self.memory)} of memory, and {readable(self.stored)} "
            f"of edges {where}"
        )


def planned(
    run: Run, columns: Columns, n_targets: int, *, n_engines: int, by_hand: bool, memory: int
) -> GraphPlan:
    """The plan for a graph within `memory` bytes. GossamerError when it does not fit; it says what
    would."""
    number = next(iter(run.values.values())).element_size()
    n, d_model = run.n, run.model.d_model
    n_nodes = len(columns.nodes)
    d_mlp = run.model.width("blocks.0.mlp.hook_post")
    linear = "mlps" not in run.hold and any(
        run.is_read(layer, MLP_OUT) for layer in range(run.n_layers)
    )
    kept = sum(_bytes(value) for value in run.values.values())
    kept += sum(_bytes(source.rows) for source in columns.sources.values()) + 200 * n_nodes
    own = 0 if by_hand else 2 * number * n * (12 * d_model + 5 * d_mlp)
    own += (n_engines - 1) * number * n * d_model * run.n_layers
    each = number * (10 * d_model + (3 * d_mlp if linear or not by_hand else 0))
    most = ROWS_ON_CPU if run.model.device.type == "cpu" else ROWS_ON_DEVICE
    # Edges go forward in layer and position: about a quarter of all pairs.
    stored = int(n_targets * n_nodes * 0.3) * (4 + number)
    free = memory - kept - own - min(stored, IN_MEMORY)
    fits = free // (each + 3 * number * n_nodes // n)
    if fits < n:  # a batch holds at least one target, so the prompt's positions
        need = memory - free + n * (each + 3 * number * n_nodes // n)
        raise GossamerError(
            f"A graph of {n_nodes:,} nodes over {n:,} tokens needs {readable(need)} of memory, and "
            f"{readable(memory)} are allowed; {readable(kept)} of it is the clean run and what "
            "nodes write. Take a shorter prompt or fewer SAEs, or allow more with memory=."
        )
    at_once = max(n, min(most, fits))
    return GraphPlan(
        n_nodes=n_nodes,
        n_targets=n_targets,
        n_positions=n,
        n_engines=n_engines,
        rows_at_once=at_once,
        kept=kept,
        batch=own + at_once * each + at_once // n * 3 * number * n_nodes,
        stored=stored,
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
