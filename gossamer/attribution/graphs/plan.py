"""What a graph takes of memory, disk and work, said before its rows are computed, and kept to.

    kept      the clean run's values, what nodes write, the table of nodes     counted, not guessed
    before    the clean run itself: one block by autograd, logits and one SAE's latents once more
    own       of the engine: slopes of MLPs; a block's forward pass by autograd; points of a path
    product   b · (10 d + 3 d_mlp' + 4 n_heads' · pos)       each target and position of a batch
    row       b · (3 n_nodes + n_heads · (d + 2 pos))        each target of a batch
    stored    (4 + b) · nodes before each target             on disk, or in memory where it is small

b bytes of a number, d the larger of the stream's and the heads' width, d_mlp' and n_heads' 0 where
MLPs and attention are held. What is needed before the rows, with them and after them comes one
after another, so the largest of the three counts.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from gossamer.attribution.graphs.batches import AtOnce
from gossamer.attribution.graphs.columns import Columns
from gossamer.attribution.graphs.places import MLP_OUT, Z, site_at
from gossamer.attribution.graphs.run import Run
from gossamer.errors import GossamerError
from gossamer.graph.rows import BLOCK
from gossamer.machine import readable

ROWS_ON_CPU = 1024
"""Targets × positions pulled back at once on a CPU: more leaves its caches and is slower."""

ROWS_ON_DEVICE = 65_536
"""The same on an accelerator."""

IN_MEMORY = 256 << 20
"""Bytes of edges that a graph keeps in memory; more stay in files."""

SLACK = 8 << 20
"""Bytes that Python and the allocator take beside what is counted."""

OF_NODE = 600
"""Bytes of a node in the table, and of its place in the list of rows."""

OF_ENTRY = 24
"""Bytes of an entry while a block of rows is read."""


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

    at_once: AtOnce
    """How large batches are."""

    kept: int
    """Bytes taken by the run and the nodes."""

    before: int
    """Bytes beside these until the nodes are known."""

    batch: int
    """Bytes beside these of a batch at its largest."""

    stored: int
    """Bytes of edges, at most."""

    @property
    def memory(self) -> int:
        """Bytes beyond the model and the SAEs, edges in files not counted."""
        read = OF_ENTRY * min(self.stored // 8, BLOCK)
        after = min(self.stored, IN_MEMORY) + max(self.batch, read)
        return SLACK + self.kept + max(self.before, after)

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
    n, n_nodes, number = run.n, len(columns.nodes), _number(run)
    n_targets = min(n_targets, sum(len(targets.columns) for targets in columns.targets))
    n_heads, wide = _heads(run)
    own, product = _of_engine(run, n_engines, by_hand=by_hand)
    size = max(number, 4)  # rows of narrower types are kept in float32
    row = size * (3 * n_nodes + n_heads * (wide + 2 * n))
    stored = _entries(columns, n_targets) * (4 + size)
    nodes = sum(_bytes(part.rows) for s in columns.sources.values() for part in (s, *s.crowds))
    kept = sum(map(_bytes, run.values.values())) + nodes + OF_NODE * n_nodes
    most = ROWS_ON_CPU if run.model.device.type == "cpu" else ROWS_ON_DEVICE
    plan = GraphPlan(
        n_nodes=n_nodes,
        n_targets=n_targets,
        n_positions=n,
        n_engines=n_engines,
        at_once=AtOnce(n, 1),  # the least: one target at the last position
        kept=kept,
        before=_before(run) + 2 * nodes,
        batch=own + n * product + row,
        stored=stored,
    )
    if plan.memory > memory:
        raise GossamerError(
            f"A graph of {n_nodes:,} nodes over {n:,} tokens needs {readable(plan.memory)} of "
            f"memory, and {readable(memory)} are allowed; {readable(kept)} of it is the clean run "
            "and what nodes write. Take a shorter prompt or fewer SAEs, or allow more with memory=."
        )
    spare = memory - SLACK - kept - min(stored, IN_MEMORY) - own
    targets = max(1, min(most // 4, (spare - n * product) // (2 * row)))
    rows = max(n, min(most, (spare - targets * row) // product))
    batch = own + rows * product + targets * row
    return replace(plan, at_once=AtOnce(rows, targets), batch=batch)


def _number(run: Run) -> int:
    """Bytes of a number."""
    return next(iter(run.values.values())).element_size()


def _heads(run: Run) -> tuple[int, int]:
    """(heads, the larger of the stream's width and theirs)."""
    n_heads, d_head = run.values[site_at(0, Z)].shape[2:]
    return n_heads, max(run.model.d_model, n_heads * d_head)


def _of_engine(run: Run, n_engines: int, *, by_hand: bool) -> tuple[int, int]:
    """Bytes of (the engine itself, each target and position of a batch)."""
    (n_heads, wide), n = _heads(run), run.n
    d_mlp = run.model.width("blocks.0.mlp.hook_post")
    linear = "mlps" not in run.hold and any(
        run.is_read(layer, MLP_OUT) for layer in range(run.n_layers)
    )
    product = 10 * wide + (3 * d_mlp if linear or not by_hand else 0)
    if by_hand:
        own = 2 * n * d_mlp * run.n_layers if linear else 0
    else:
        own = _of_block(run) + n_engines * n * wide * (run.n_layers + 1 + len(run.saes))
        product += 0 if "attention" in run.hold else 4 * n_heads * n
    return _number(run) * own, _number(run) * product


def _of_block(run: Run) -> int:
    """Numbers of one block's forward pass that autograd keeps."""
    n_heads, wide = _heads(run)
    d_mlp = run.model.width("blocks.0.mlp.hook_post")
    return 2 * run.n * (12 * wide + 5 * d_mlp) + 4 * n_heads * run.n**2


def _before(run: Run) -> int:
    """Bytes of the clean run and of linear parts, what stays not counted."""
    _, wide = _heads(run)
    latents = max((getattr(sae, "d_sae", 0) for sae in run.saes.values()), default=0)
    linear = 5 * wide * run.n_layers
    return _number(run) * (
        2 * _of_block(run) + run.n * (2 * run.model.d_vocab + 3 * latents + linear)
    )


def _entries(columns: Columns, n_targets: int) -> int:
    """Most entries that so many rows have: nodes that write before each, and no later position."""
    positions, counts = columns.nodes.positions, []
    for targets in columns.targets:
        up_to = np.cumsum(np.bincount(positions[: columns.n_before(targets.place)]))
        where = targets.positions.cpu().numpy()
        counts.append(up_to[np.minimum(where, len(up_to) - 1)])
    return int(np.sort(np.concatenate(counts))[-n_targets:].sum())


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
