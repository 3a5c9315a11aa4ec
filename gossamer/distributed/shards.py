"""A mesh's tensors on disk, so that any other mesh, and a process alone, reads its own part."""

import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from gossamer.distributed.mesh import Mesh
from gossamer.errors import DiskError, FormatError


def save_shards(
    tensors: Mapping[str, Shaped[Tensor, "..."]],
    rows: Set[str],
    directory: Path,
    mesh: Mesh,
) -> None:
    """Write what a mesh has into a directory: `rows` names what has a row for each latent.

    torch's distributed checkpoint, in which these are DTensors sharded over tp, so that any mesh,
    and a process alone, can read its own rows. The directory has all files, or is not there.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    unfinished = directory.with_name(directory.name + ".partial")
    mesh.first(lambda: _emptied(unfinished))
    state = {name: placed(name, tensor, rows, mesh) for name, tensor in tensors.items()}
    try:
        with _alone_is_fine():
            save(state, storage_writer=FileSystemWriter(unfinished))
    except (Exception, CheckpointException) as problem:  # raised in all when one of them fails
        mesh.first(lambda: _emptied(unfinished))
        raise DiskError(f"{directory} could not be written ({_why(problem)})") from problem
    mesh.first(lambda: _moved(unfinished, directory))


def load_shards(
    tensors: Mapping[str, Shaped[Tensor, "..."]],
    rows: Set[str],
    directory: Path,
    mesh: Mesh,
) -> None:
    """Fill tensors from what `save_shards` wrote on this or another mesh, in place.

    FormatError, in all processes, when one of them cannot: nothing then is known of the tensors.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = mesh.together(lambda: _reader(directory))
    state = {name: placed(name, tensor, rows, mesh) for name, tensor in tensors.items()}
    problem: BaseException | None = None
    try:
        with _alone_is_fine():
            load(state, storage_reader=reader, no_dist=mesh.layout is None)
    except (Exception, CheckpointException) as cut:  # whatever readers of a cut file stumble over
        problem = cut
    n_failed = mesh.add_(torch.tensor(int(problem is not None)), "all")
    if int(n_failed):
        why = "another process could not read it" if problem is None else _why(problem)
        raise FormatError(f"{directory} is damaged ({why})")
    for name, tensor in tensors.items():
        found = here(state[name])
        if found.device != tensor.device:  # a copy was filled
            tensor.copy_(found)


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """torch warns a process alone that it is, which is what it was asked to be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def shapes_in(directory: Path) -> dict[str, tuple[int, ...]]:
    """The whole shape of each tensor in a directory of shards."""
    found = _reader(directory).read_metadata().state_dict_metadata
    return {name: tuple(each.size) for name, each in found.items()}


def placed(name: str, tensor: Tensor, rows: Set[str], mesh: Mesh) -> Tensor:
    """As it stands in the mesh. Shares the tensor's memory where that is on the mesh's kind of
    device, and is a copy there where it is not, as Adam's count of steps may be."""
    if mesh.layout is None:
        return tensor
    from torch.distributed.tensor import DTensor, Replicate, Shard

    places = [Replicate(), Shard(0) if name in rows else Replicate()]
    return DTensor.from_local(tensor, mesh.layout, places, run_check=False)


def here(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that `placed` has given."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


PLAIN = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
"""Modules whose values the list of a checkpoint's shards is made of."""


class _Plain(pickle.Unpickler):
    """Reads that list, which is a pickle, and no code that someone has put there."""

    def find_class(self, module: str, name: str) -> Any:
        is_torch = module == "torch" and name in {"Size", "device"} | _dtypes()
        if module in PLAIN or is_torch or (module, name) in _MADE_BY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


_MADE_BY = {
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
}


def _dtypes() -> set[str]:
    return {name for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


def _reader(directory: Path) -> Any:
    """Reads shards after a look at their list. FormatError where there is none."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    path = directory / ".metadata"
    try:
        with path.open("rb") as file:
            _Plain(file).load()
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError) as problem:
        raise FormatError(f"{directory} is damaged ({_why(problem)})") from problem
    return FileSystemReader(directory)


def _why(problem: BaseException) -> str:
    """The first line of what went wrong."""
    failures = getattr(problem, "failures", None)
    cause = next(iter(failures.values()))[0] if failures else problem
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _emptied(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _moved(unfinished: Path, directory: Path) -> None:
    try:
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)
    except OSError as problem:
        raise DiskError(f"{directory} could not be written ({problem.strerror}).") from problem
