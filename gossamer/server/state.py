"""What a running server holds: model, SAEs, worker, workspace, jobs, and the last analyses."""

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from gossamer.analysis.result import Analysis
from gossamer.server.config import ServerConfig
from gossamer.server.graphs import Graphs
from gossamer.server.jobs import Jobs
from gossamer.server.store import Store, not_found
from gossamer.server.values import Served
from gossamer.server.worker import Worker


class Kept:
    """The last analyses, whose traces answer further questions; older ones are let go."""

    def __init__(self, n: int, memory: int) -> None:
        self.n = n
        self.memory = memory
        self._guard = threading.Lock()
        self._found: OrderedDict[str, tuple[Analysis, dict[str, Any] | None]] = OrderedDict()

    def add(self, analysis: Analysis, request: dict[str, Any] | None = None) -> str:
        """Keep one; its id."""
        name = f"a-{secrets.token_hex(8)}"
        with self._guard:
            self._found[name] = (analysis, request)
            while len(self._found) > self.n or (len(self._found) > 1 and self._is_large()):
                self._found.popitem(last=False)
        return name

    def _is_large(self) -> bool:
        """Whether they take more memory than they may; those of one pass share it."""
        sizes: dict[int, int] = {}
        for analysis, _ in self._found.values():
            for one in (analysis, analysis.clean):
                if one is None:
                    continue
                for values in (one.trace.activations, one.trace.gradients, one.trace.latents):
                    for value in values.values():
                        storage = value.untyped_storage()
                        sizes[storage.data_ptr()] = storage.nbytes()
        return sum(sizes.values()) > self.memory

    def get(self, name: str) -> tuple[Analysis, dict[str, Any] | None]:
        """One, and what was asked. Refusal 404 when it is not kept any more."""
        with self._guard:
            if name not in self._found:
                raise not_found("analysis", name)
            self._found.move_to_end(name)
            return self._found[name]


@dataclass(frozen=True, slots=True)
class State:
    """Everything that routes need."""

    served: Served
    """The model and its SAEs."""

    config: ServerConfig
    """Limits."""

    worker: Worker
    """What computes."""

    store: Store
    """The workspace."""

    jobs: Jobs
    """Long work."""

    kept: Kept
    """The last analyses."""

    graphs: Graphs
    """Graphs in the workspace."""
