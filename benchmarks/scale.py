"""Training on several processes of this machine, beside what `gossamer.plan` says of it.

    python benchmarks/scale.py [--sae topk --sae batchtopk] [--steps 20]

One process with as many threads as a mesh has processes is the yardstick of each mesh; efficiency
is its step over the mesh's. d = 256, 8,192 latents, k = 32, 2,048 tokens of random activations in a
file, float32, gloo. Of each mesh:

    collectives, bytes   seen in one step by a dispatch mode, and as the plan lists them; the exit
                         status is 1 if one of them is off by more than a fifth
    ms, plan             the fastest step, and the step of the plan from rates that are measured in
                         the same processes, all at once, before they train: products of a tile,
                         a copy, choosing the largest, sums over a group of the largest size
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import click

MESHES = ("dp=1,tp=1", "dp=2,tp=1", "dp=1,tp=2", "dp=2,tp=2")
SITE = "blocks.0.hook_resid_pre"
WARM = 3
"""Steps before the clock starts: the first one makes Adam's moments."""

TOLERANCE = 0.2
"""Share by which collectives and bytes may be off."""

HEADER = (
    f"{'':<11}{'mesh':<11}{'threads':>7}{'ms':>9}{'efficiency':>11}{'plan':>9}{'ratio':>7}"
    f"{'collectives':>13}{'bytes, seen / planned':>27}\n"
)


class Task(NamedTuple):
    """What the processes of one launch do."""

    meshes: list[str]
    saes: list[str]
    threads: int
    d: int
    d_sae: int
    k: int
    batch: int
    steps: int
    dead: float
    path: str


class Marked:
    """A source that notes when each batch of the loop is asked for, and looks into one step."""

    def __init__(self, source: Any, seen: Any = None) -> None:
        self.source, self.seen, self.times, self.calls = source, seen, [], 0
        self.sites, self.about, self.n_rows = source.sites, source.about, source.n_rows
        self.width = source.width

    def batches(self, size: int, *, seed: int, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """The source's; the second call is the loop's, the first looks at scales."""
        self.calls += 1
        is_loop = self.calls == 2
        for number, batch in enumerate(self.source.batches(size, seed=seed, start=start)):
            if not is_loop:
                yield batch
                continue
            self.times.append(time.perf_counter())
            if self.seen is None or number != WARM:
                yield batch
                continue
            with self.seen:
                yield batch


def counting() -> Any:
    """A dispatch mode that counts the results of collectives, by kind and bytes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: Counter[tuple[str, int]] = Counter()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "c10d":
                kind = "all_gather" if "gather" in func.name() else "all_reduce"
                result = args[0] if isinstance(args[0], list) else [args[0]]
                self.found[kind, sum(tensor.nbytes for tensor in result)] += 1
            return func(*args, **(kwargs or {}))

    return Seen()


def config_of(task: Task, sae: str) -> Any:
    """What is trained; nothing dies in so short a run, but where that is asked for."""
    from gossamer.cli.plan import architecture_of
    from gossamer.training.config import DeadConfig, TrainConfig

    return TrainConfig(
        sae=architecture_of(sae, task.k),
        d_sae=task.d_sae,
        n_tokens=task.steps * task.batch,
        batch_tokens=task.batch,
        site=SITE,
        dead=DeadConfig(after_tokens=1 if task.dead else 10**9),
    )


def best_seconds(work: Callable[[], object], mesh: Any, rounds: int = 10) -> float:
    """Of the fastest call, while all processes make it."""
    found = []
    for _ in range(rounds + 1):
        mesh.everyones(None)
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def measured(task: Task, mesh: Any) -> Any:
    """This machine as the processes find it who are all at work; what is stored is in memory."""
    import torch

    from gossamer.kernels.encode import CHUNK_ROWS
    from gossamer.plan import Hardware

    rows, f = min(CHUNK_ROWS, task.batch // mesh.dp), task.d_sae // mesh.tp
    u, weights, bias = torch.randn(rows, task.d), torch.randn(f, task.d), torch.zeros(f)
    tile, table, other = torch.empty(rows, f), torch.zeros(2**23), torch.zeros(2**23)
    multiply = best_seconds(lambda: torch.addmm(bias, u, weights.T, out=tile), mesh)
    copy = best_seconds(lambda: other.copy_(table), mesh)
    choose = best_seconds(lambda: tile.topk(min(task.k, f), sorted=False), mesh)
    bandwidth = 2 * table.nbytes / copy
    sums = {"tp": torch.zeros(task.batch // mesh.dp, task.d), "dp": torch.zeros(f, task.d)}
    speeds = {}
    for group, value in sums.items():
        n = mesh.width(group)
        spent = best_seconds(lambda g=group, v=value: mesh.add_(v, g), mesh)
        speeds[group] = 2 * (n - 1) / n * value.nbytes / spent if n > 1 else 1e12
    small = torch.zeros(1)
    empty = best_seconds(lambda: mesh.add_(small, "all"), mesh, 20)
    if mesh.tp == 1:
        speeds["tp"] = speeds["dp"]
    # A tp group counts as one node, so that each group has a rate of its own.
    return Hardware(
        name="measured",
        flops=2 * rows * f * task.d / multiply,
        half_flops=1.0,
        model_flops=1.0,
        bandwidth=bandwidth,
        link=speeds["tp"],
        network=speeds["dp"] if mesh.dp > 1 else speeds["tp"],
        latency=empty,
        disk=1e15,
        memory=1e12,
        per_node=mesh.tp,
        select_passes=max(0.0, choose * bandwidth / tile.nbytes - 1),
    )


def one(task: Task, mesh: Any, sae: str, hardware: Any) -> dict[str, Any]:
    """Train twice, once against the clock and once looked into; what was seen and foreseen."""
    from gossamer.activations import as_source
    from gossamer.plan import Work, plan
    from gossamer.training.config import RunConfig
    from gossamer.training.loop import train

    config, run = config_of(task, sae), RunConfig(log_steps=task.steps, progress=False)
    timed = Marked(as_source(Path(task.path), SITE))
    train(config, timed, mesh=mesh, run=run)
    steps = [b - a for a, b in zip(timed.times[WARM:], timed.times[WARM + 1 :], strict=False)]
    seen = counting()
    train(config, Marked(as_source(Path(task.path), SITE), seen), mesh=mesh, run=run)
    # Random activations leave penalties no time: about half of all latents are active.
    active = task.k if config.sae.selects_by_rank else task.d_sae / 2
    found = plan(
        Work(config=config, d_in=task.d, active=active, dead=task.dead),
        gpus=mesh.size,
        dp=mesh.dp,
        tp=mesh.tp,
        hardware=hardware,
    )
    foreseen: Counter[tuple[str, int]] = Counter()
    for each in found.collectives:
        foreseen[each.kind, each.bytes] += each.count
    return {
        "mesh": f"dp={mesh.dp},tp={mesh.tp}",
        "threads": task.threads,
        "sae": sae,
        "seconds": min(steps),
        "plan_seconds": found.step_seconds,
        "parts": {part.name: part.seconds for part in found.parts if part.when == "step"},
        "hardware": {"flops": hardware.flops, "bandwidth": hardware.bandwidth}
        | {"tp": hardware.link, "dp": hardware.network, "latency": hardware.latency}
        | {"select_passes": hardware.select_passes},
        "collectives": [sum(seen.found.values()), sum(foreseen.values())],
        "bytes": [
            sum(n * size for (_, size), n in each.items()) for each in (seen.found, foreseen)
        ],
        "only_seen": [[*key, n] for key, n in (seen.found - foreseen).items()],
        "only_planned": [[*key, n] for key, n in (foreseen - seen.found).items()],
    }


def work(task: Task) -> None:
    """One of the processes; the first writes a line of JSON for each mesh and architecture."""
    import torch

    from gossamer.distributed import joined, mesh_of

    torch.set_num_threads(task.threads)
    with joined():
        for text in task.meshes:
            mesh = mesh_of(text)
            hardware = measured(task, mesh)
            for sae in task.saes:
                found = one(task, mesh, sae, hardware)
                if mesh.is_first:
                    sys.stdout.write(f"result {json.dumps(found)}\n")
                    sys.stdout.flush()


def launched(task: Task, n: int) -> list[dict[str, Any]]:
    """What n processes found; SystemExit when they fail."""
    command = [sys.executable]
    if n > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    done = subprocess.run(
        [*command, __file__, "--work", json.dumps(task._asdict())],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(task.threads)},
    )
    lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("result ")]
    if done.returncode or len(lines) != len(task.meshes) * len(task.saes):
        raise SystemExit(f"{n} processes failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in lines]


def line(found: Mapping[str, Any], yardstick: float | None) -> str:
    """A row of the table."""
    efficiency = "" if yardstick is None else f"{yardstick / found['seconds']:.2f}"
    ratio = found["plan_seconds"] / found["seconds"]
    counts = "{} / {}".format(*found["collectives"])
    sizes = "{:,} / {:,}".format(*found["bytes"])
    return (
        f"{found['sae']:<11}{found['mesh']:<11}{found['threads']:>7}{found['seconds'] * 1e3:>9.1f}"
        f"{efficiency:>11}{found['plan_seconds'] * 1e3:>9.1f}{ratio:>7.2f}{counts:>13}{sizes:>27}\n"
    )


def is_off(found: Mapping[str, Any]) -> bool:
    """Whether collectives or bytes are further from the plan than they may be."""
    return any(
        abs(seen - foreseen) > TOLERANCE * foreseen
        for seen, foreseen in (found["collectives"], found["bytes"])
    )


def runs(task: Task, meshes: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], float | None]]:
    """What each launch found, and the seconds of its yardstick; a yardstick itself has none."""
    yardsticks: dict[tuple[int, str], float] = {}
    for mesh in meshes:
        dp, tp = (int(part[3:]) for part in mesh.split(","))
        n = dp * tp
        if (n, task.saes[0]) not in yardsticks:
            for found in launched(task._replace(meshes=["dp=1,tp=1"], threads=n), 1):
                yardsticks[n, found["sae"]] = found["seconds"]
                yield found, None
        if n > 1:
            for found in launched(task._replace(meshes=[mesh]), n):
                yield found, yardsticks[n, found["sae"]]


@click.command()
@click.option("--sae", "saes", multiple=True, default=["topk"], show_default=True)
@click.option("--mesh", "meshes", multiple=True, default=MESHES, show_default=True)
@click.option("--d", default=256, show_default=True)
@click.option("--d-sae", default=8192, show_default=True)
@click.option("--k", default=32, show_default=True)
@click.option("--batch", default=2048, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--dead", default=0.0, help="Share planned as dead; then what one batch left out is.")
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as JSON.")
@click.option("--work", "given", hidden=True)
def main(saes: tuple[str, ...], meshes: tuple[str, ...], given: str | None, **options: Any) -> None:
    """Train on each mesh and print it beside its plan."""
    if given is not None:
        return work(Task(**json.loads(given)))
    import torch
    from safetensors.torch import save_file

    as_json = options.pop("as_json")
    if options["steps"] < WARM + 2:
        raise click.UsageError(f"--steps must be at least {WARM + 2}.")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acts.safetensors"
        save_file({SITE: torch.randn(4 * options["batch"], options["d"])}, path)
        task = Task([], list(saes), 1, path=str(path), **options)
        sys.stdout.write("" if as_json else HEADER)
        for found, yardstick in runs(task, meshes):
            rows.append(found)
            sys.stdout.write("" if as_json else line(found, yardstick))
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    for found, name in product(rows, ("only_seen", "only_planned")):
        if found[name]:
            sys.stderr.write(f"{found['sae']} {found['mesh']} {name}: {found[name]}\n")
    sys.exit(int(any(is_off(found) for found in rows)))


if __name__ == "__main__":
    main()
