"""A harvest through Ray Data: a pool of actors, each with the model, which turn tasks into shards.

A task brings its tokens (about 6 bytes each, in Ray's object store), so actors need neither the
corpus nor a tokenizer; the weights are sent once. Actors write the shards themselves, where the
store is, and give back what the manifest says of them. Ray restarts an actor that died and gives
its tasks to others; that is safe since a shard is a function of its task, and a driver that died is
started again like any harvest.
"""

import io
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch

from gossamer.activations.shards import Outcome, Recipe, Task, make_shard, whole_shard
from gossamer.corpus import TokenBlock
from gossamer.errors import GossamerError
from gossamer.models.model import Model

TRIES = 5
"""How often a shard is begun: Ray itself would restart for ever an actor that dies of its task."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Read by Ray when it starts: it reports nothing to its makers, and says nothing among our words;
what is set already stays."""


def over_ray(
    tasks: Iterator[Task],
    recipe: Recipe,
    model: Model,
    *,
    address: str | None,
    workers: int | None,
) -> Iterator[Outcome]:
    """The shard of each task, as they are ready. GossamerError of any actor, when Ray is not
    installed, or when there is no such cluster."""
    ray = _ray()
    waiting = [{"task": _sent(task)} for task in tasks]
    if not waiting:
        return
    with _cluster(ray, address):
        options = _places(ray, model, workers)
        given = (recipe, _weights(ray, model), model.name)
        data = ray.data.from_items(waiting, override_num_blocks=len(waiting))
        for row in data.map(_Maker, fn_constructor_args=given, **options).iter_rows():
            outcome, problem = pickle.loads(row["outcome"])
            if problem is not None:
                raise problem
            yield outcome


class _Maker:
    """What an actor is: it makes shards, and takes the model when the first is not there yet."""

    def __init__(self, recipe: Recipe, weights: Any, name: str) -> None:
        self._recipe = recipe
        self._weights = weights
        self._name = name
        self._model: Model | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The outcome of a task, or its GossamerError."""
        try:
            found = (self._made(_received(row["task"])), None)
        except GossamerError as problem:
            found = (None, problem)
        return {"outcome": pickle.dumps(found)}

    def _made(self, task: Task) -> Outcome:
        whole = whole_shard(self._recipe, task)
        if whole is not None:
            return whole
        tries = self._recipe.directory / f"{task.file}.tries.partial"
        with tries.open("ab") as marks:  # a byte a try
            marks.write(b".")
        if tries.stat().st_size > TRIES:
            tries.unlink()
            raise GossamerError(
                f"{task.file} was begun {TRIES} times and its worker died each time, perhaps for "
                "want of memory; take a smaller batch or fewer workers. The shards that were made "
                "are kept, and the same harvest run again goes on from there."
            )
        made = make_shard(self._loaded(), self._recipe, task)
        tries.unlink(missing_ok=True)
        return made

    def _loaded(self) -> Model:
        if self._model is None:
            import ray

            device, reference = self._weights
            buffer = io.BytesIO(ray.get(reference))
            language_model = torch.load(buffer, map_location=device, weights_only=False)
            self._model = Model(language_model, name=self._name)
        return self._model


def _ray() -> Any:
    """The package, quiet. GossamerError where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as problem:
        raise GossamerError(
            f"engine ray needs Ray with its data part ({problem}); install it with pip install "
            "'gossamer[scale]', or leave engine out."
        ) from problem
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    return ray


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connected: to the cluster at an address, to one of our own, or as the caller already is. What
    Ray prints about workers that died goes to standard error, not among our output."""
    if ray.is_initialized():
        with redirect_stdout(sys.stderr):
            yield
        return
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise GossamerError(
            f"There is no Ray cluster at {address or 'this machine'} ({reason}); start one with "
            "ray start --head, or leave address out for one of this machine alone."
        ) from problem
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()


def _places(ray: Any, model: Model, workers: int | None) -> dict[str, Any]:
    """How many actors, and what each takes of a machine, so that all of them have room."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    on_gpu = model.device.type == "cuda"
    count = workers or (n_gpus if on_gpu else len(nodes))
    if on_gpu and not 1 <= count <= n_gpus:
        raise GossamerError(
            f"{count} workers on cuda need as many GPUs, this Ray cluster has {n_gpus}; give "
            "workers that fit, or load the model on cpu."
        )
    smallest = min(node.get("CPU", 1.0) for node in nodes)
    each = smallest / -(-count // len(nodes))
    options = {"num_cpus": int(each) if each >= 1 else each}
    options |= {"num_gpus": 1} if on_gpu else {}
    return {"compute": ray.data.ActorPoolStrategy(size=count), **options}


def _weights(ray: Any, model: Model) -> tuple[str, Any]:
    """The device's kind, and a reference to the language model in Ray's object store."""
    buffer = io.BytesIO()
    torch.save(model.language_model, buffer)
    try:
        reference = ray.put(np.frombuffer(buffer.getbuffer(), dtype=np.uint8))
    except ray.exceptions.ObjectStoreFullError as problem:
        raise GossamerError(
            f"The model's {buffer.tell() / 1e9:.1f} GB do not fit into Ray's object store; start "
            "Ray with a larger --object-store-memory, or harvest with torchrun, each process of "
            "which loads the model itself."
        ) from problem
    return model.device.type, reference


def _sent(task: Task) -> bytes:
    """A task as few bytes."""
    blocks = task.blocks
    lengths = [len(block.tokens) for block in blocks]
    columns = [torch.cat([block.tokens for block in blocks]).int().numpy()]
    columns += [torch.cat([block.starts for block in blocks]).numpy()]
    columns += [torch.cat([block.special for block in blocks]).numpy()]
    return pickle.dumps((task.number, task.tokens, task.known, lengths, columns))


def _received(data: bytes) -> Task:
    """The inverse of `_sent`."""
    number, tokens, known, lengths, columns = pickle.loads(data)
    ids, starts, special = (torch.from_numpy(each).split(lengths) for each in columns)
    blocks = [TokenBlock(i.long(), s, x) for i, s, x in zip(ids, starts, special, strict=True)]
    return Task(number, blocks, tokens, known)
