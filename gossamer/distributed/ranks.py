"""Processes that were started together: who is one of how many, and what all of them know."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from gossamer.errors import GossamerError

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others."""


class Ranks(NamedTuple):
    """A process among its fellows."""

    rank: int
    """Its number, from 0."""

    size: int
    """How many there are."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0


def ranks() -> Ranks:
    """This process; (0, 1) where it is alone."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks(0, 1)
    return Ranks(dist.get_rank(), dist.get_world_size())


def is_launched() -> bool:
    """Whether torchrun, or something that sets what it sets, started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them at the end.

    Nothing happens in a process that was started alone, or has joined already. The keys of each
    restart have a prefix of their own: those that a killed process left behind name sockets where
    nobody listens, and a restart that reads them never comes together.
    """
    if not is_launched() or ranks().size > 1 or dist.is_initialized():
        yield ranks()
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    has_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
    if has_gpus:  # more processes than GPUs may train on the CPU
        here = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(here % torch.cuda.device_count())
    dist.init_process_group(
        backend,
        store=PrefixStore(f"attempt_{attempt}", store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )
    try:
        yield Ranks(rank, size)
    finally:
        dist.destroy_process_group()


def total(value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum over all processes, in each of them."""
    value = value.clone()
    if ranks().size > 1:
        dist.all_reduce(value)
    return value


def gathered(value: Any) -> list[Any]:
    """What every process has, in the order of their ranks, in each of them; small plain values."""
    found: list[Any] = [value]
    if ranks().size > 1:
        found = [None] * ranks().size
        dist.all_gather_object(found, value)
    return found


def largest(value: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The maximum over all processes, in each of them."""
    value = value.clone()
    if ranks().size > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def spread(value: Shaped[Tensor, "..."], rank: int) -> Shaped[Tensor, "..."]:
    """What the process of a rank has, in each of them; the others give a tensor of its shape."""
    value = value.clone()
    if ranks().size > 1:
        dist.broadcast(value, src=rank)
    return value


def check_same(value: Any, what: str) -> None:
    """GossamerError, in all processes, unless all have the same; small plain values. `what` names
    the work in the sentence."""
    everyone = gathered(value)
    if any(other != everyone[0] for other in everyone):
        raise GossamerError(
            f"The processes of this {what} do not have the same model, corpus and settings; give "
            "each of them the same command and the same files."
        )


def all_rows(here: Shaped[Tensor, "rows ..."], counts: list[int]) -> Shaped[Tensor, "all ..."]:
    """The rows of all processes, in the order of their ranks; `counts` says how many each has."""
    if ranks().size == 1:
        return here
    padded = here.new_zeros(max(counts), *here.shape[1:])
    padded[: len(here)] = here
    found = all_gather(padded, len(counts), dist.group.WORLD)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])


def wait() -> None:
    """Go on when every process has come here."""
    if ranks().size > 1:
        dist.barrier()


def first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, in each of them; small plain values.

    Its GossamerError is raised in all of them. What else goes wrong is raised there, and in the
    others a GossamerError that says so: none of them waits for what never comes.
    """
    outcome: Any = None
    own: Exception | None = None
    if ranks().is_first:
        try:
            outcome = (make(), None)
        except Exception as problem:
            own, outcome = problem, (None, _told(problem))
    if ranks().size > 1:
        box = [outcome]
        dist.broadcast_object_list(box, src=0)
        outcome = box[0]
    made, problem = outcome
    if problem is not None:
        raise problem if own is None else own
    return made


def together(make: Callable[[], Any]) -> Any:
    """What `make` gives in this process, once it is done in all of them. A GossamerError of any of
    them is raised in all: that of the lowest rank. What else goes wrong is raised where it does,
    and a GossamerError that says so in the others."""
    if ranks().size == 1:
        return make()
    made: Any = None
    own: Exception | None = None
    try:
        made = make()
    except Exception as problem:
        own = problem
    for problem in gathered(None if own is None else _told(own)):
        if problem is not None:
            raise problem if own is None or isinstance(own, GossamerError) else own
    return made


def _told(problem: Exception) -> GossamerError:
    """What the other processes are told of what went wrong here."""
    if isinstance(problem, GossamerError):
        return problem
    return GossamerError(
        f"Process {ranks().rank} stopped ({type(problem).__name__}: {problem}); what it says "
        "itself shows where."
    )


def all_gather(value: Tensor, size: int, group: Any) -> Tensor:
    """(size, *shape). torch 2.13 calls it all_gather_single, and warns at the name before that."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    found = value.new_empty(size * value.numel())  # gloo knows no stack of them
    gather(found, value.flatten(), group=group)
    return found.view(size, *value.shape)
