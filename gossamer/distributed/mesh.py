"""Processes laid out as dp × tp: tokens are shared over dp, latents over tp.

    W_enc, W_dec, b_enc, silence    each tp process has its own latents, alike on all dp
    b_dec, W_skip, scales           alike everywhere

The groups do what a step needs and nothing else: a sum, a maximum, a gathering. A group of one
process never communicates.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from gossamer.distributed.ranks import all_gather, first, gathered, ranks, together
from gossamer.errors import GossamerError

Over = Literal["dp", "tp", "all"]
"""A group: those with the same latents, those with the same tokens, or everyone."""


def mesh_of(text: str | None, device: str = "cpu") -> "Mesh":
    """The mesh that a text such as dp=2,tp=2 names; what is left out is 1.

    None: this process alone, where it is. GossamerError for any other text, or where the processes
    that have joined are not as many.
    """
    if text is None:
        if ranks().size == 1:
            return Mesh()
        raise GossamerError(
            f"{ranks().size} processes were started; say how they share the work, for example "
            f"dp={ranks().size} (tokens) or tp={ranks().size} (latents)."
        )
    found = {"dp": 1, "tp": 1}
    for part in text.replace(" ", "").split(","):
        name, _, number = part.partition("=")
        if name not in found or not number.isdecimal():
            raise GossamerError(f'A mesh is written as dp=2,tp=2, got "{text}".')
        found[name] = int(number)
    return Mesh.of(found["dp"], found["tp"], device)


@final
@dataclass(frozen=True, slots=True)
class Mesh:
    """dp × tp processes, and where among them this one is. `Mesh()` is a process alone."""

    dp: int = 1
    """Processes that share the tokens of a step."""

    tp: int = 1
    """Processes that share the latents of a dictionary."""

    dp_rank: int = 0
    """Which share of the tokens is here."""

    tp_rank: int = 0
    """Which latents are here."""

    layout: Any = field(default=None, repr=False, compare=False)
    """torch's DeviceMesh with axes dp and tp; None for a process alone."""

    @staticmethod
    def of(dp: int, tp: int, device: str = "cpu") -> "Mesh":
        """The mesh of all that have joined. GossamerError where dp · tp are not as many."""
        size = ranks().size
        if dp < 1 or tp < 1 or dp * tp != size:
            raise GossamerError(
                f"A mesh dp={dp},tp={tp} has {dp * tp} processes, {size} "
                f"{'is' if size == 1 else 'are'} running; start it with torchrun --nproc-per-node "
                f"{max(1, dp) * max(1, tp)} -m gossamer train …, or give dp and tp whose product "
                f"is {size}."
            )
        if not dist.is_initialized():
            return Mesh()
        if "cpu:" not in dist.get_backend_config():  # counts and flags are on the CPU
            raise GossamerError(
                f'The processes have joined by "{dist.get_backend_config()}", which knows no CPU; '
                'join them with gossamer.distributed.joined(), or by "cpu:gloo,cuda:nccl".'
            )
        layout = dist.device_mesh.init_device_mesh(device, (dp, tp), mesh_dim_names=("dp", "tp"))
        return Mesh(dp, tp, layout.get_local_rank("dp"), layout.get_local_rank("tp"), layout=layout)

    @property
    def size(self) -> int:
        """All processes."""
        return self.dp * self.tp

    @property
    def is_first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.dp_rank == 0 and self.tp_rank == 0

    def tokens(self, n: int) -> slice:
        """Which of the n tokens of a step are here."""
        return slice(n * self.dp_rank // self.dp, n * (self.dp_rank + 1) // self.dp)

    def latents(self, d_sae: int) -> slice:
        """Which of all latents are here; tp divides them."""
        each = d_sae // self.tp
        return slice(each * self.tp_rank, each * (self.tp_rank + 1))

    def first(self, make: Callable[[], Any]) -> Any:
        """As `first`, among the processes of the mesh."""
        return make() if self.size == 1 else first(make)

    def together(self, make: Callable[[], Any]) -> Any:
        """As `together`, among the processes of the mesh."""
        return make() if self.size == 1 else together(make)

    def everyones(self, value: Any) -> list[Any]:
        """As `gathered`, among the processes of the mesh."""
        return [value] if self.size == 1 else gathered(value)

    def width(self, over: Over) -> int:
        """Processes of a group."""
        return {"dp": self.dp, "tp": self.tp, "all": self.size}[over]

    def add_(self, value: Shaped[Tensor, "..."], over: Over) -> Shaped[Tensor, "..."]:
        """The sum over a group, in place."""
        if self.width(over) > 1:
            dist.all_reduce(value, group=self._group(over))
        return value

    def largest_(self, value: Shaped[Tensor, "..."], over: Over) -> Shaped[Tensor, "..."]:
        """The maximum over a group, in place."""
        if self.width(over) > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group(over))
        return value

    def copy_(self, value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The first process's, in place, everywhere."""
        if self.size > 1:
            dist.broadcast(value, src=0)
        return value

    def gathered(self, value: Shaped[Tensor, "..."], over: Over) -> Shaped[Tensor, "size ..."]:
        """Everyone's in a group, by rank; all have one shape."""
        if self.width(over) == 1:
            return value[None]
        return all_gather(value, self.width(over), self._group(over))

    def added(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The sum over tp of what different latents give, whose gradient each of them gets."""
        return value if self.tp == 1 else _Added.apply(value, self)

    def _group(self, over: Over) -> Any:
        return dist.group.WORLD if over == "all" else self.layout.get_group(over)


class _Added(torch.autograd.Function):
    """A sum forward; backward every part's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, mesh: Mesh) -> Tensor:
        return mesh.add_(value.clone(), "tp")

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None
