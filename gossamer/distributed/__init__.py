"""Several processes as one: the only folder that speaks to torch.distributed.

`torchrun` starts the processes; `joined()` brings them together, and is nothing in a process that
was started alone. Work that needs no more than a number and a sum asks `ranks()`, `total`,
`gathered` and `wait`. Training lays its processes out as a `Mesh` of dp × tp.
"""

from gossamer.distributed.mesh import Mesh, mesh_of
from gossamer.distributed.ranks import (
    Ranks,
    all_rows,
    check_same,
    first,
    gathered,
    is_launched,
    joined,
    largest,
    ranks,
    spread,
    together,
    total,
    wait,
)
from gossamer.distributed.shards import load_shards, save_shards, shapes_in

__all__ = [
    "Mesh",
    "Ranks",
    "all_rows",
    "check_same",
    "first",
    "gathered",
    "is_launched",
    "joined",
    "largest",
    "load_shards",
    "mesh_of",
    "ranks",
    "save_shards",
    "shapes_in",
    "spread",
    "together",
    "total",
    "wait",
]
