"""The cost model: its table, the weights and collectives of real steps, the best layout."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gossamer.distributed import Mesh
from gossamer.errors import GossamerError, ShapeError
from gossamer.plan import HARDWARE, Plan, Work, plan
from gossamer.training.abstopk import AbsTopKConfig
from gossamer.training.architecture import AbstractArchitecture
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.checkpoints import save_checkpoint
from gossamer.training.config import DeadConfig, TrainConfig
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.matryoshka import MatryoshkaConfig
from gossamer.training.panneal import PAnnealConfig
from gossamer.training.relu import ReLUConfig
from gossamer.training.start import first_look, new_trainee
from gossamer.training.step import descend_, new_optimizer, outcome
from gossamer.training.topk import TopKConfig
from tests.tiny_training import OTHER, SITE

ROOT = Path(__file__).parent.parent


def work(
    d: int, d_sae: float, k: int, batch: int, *, n_tokens: float = 1e9, **options: Any
) -> Work:
    config = TrainConfig(
        sae=TopKConfig(k=k), d_sae=int(d_sae), n_tokens=n_tokens, batch_tokens=batch
    )
    return Work(config=config, d_in=d, **options)


def tiny(sae: AbstractArchitecture, **options: Any) -> Work:
    """64 tokens, width 8, 48 latents."""
    config = TrainConfig(sae=sae, d_sae=48, n_tokens=6400, batch_tokens=64)
    return Work(config=config, d_in=8, **{"active": 1.5, **options})


TABLE = (  # what docs/scale.md prints: (shape, mesh, ms, million tokens/s, GPU-hours of 1e9, 1e10)
    ((768, 24576, 32, 4096), (1, 1), "1.24", "3.3", "0.1", "0.8"),
    ((768, 1e6, 64, 131072), (1, 8), "106", "1.2", "1.8", "18"),
    ((4096, 1e6, 64, 131072), (1, 8), "329", "0.40", "5.6", "56"),
    ((4096, 1e6, 64, 131072), (8, 8), "129", "1.0", "17.5", "175"),
    ((4096, 1e6, 64, 131072), (1, 64), "115", "1.1", "15.5", "155"),
)


def digits(number: float, like: str) -> str:
    """As many places behind the point as another number has."""
    return f"{number:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize(("shape", "mesh", "ms", "rate", "short", "long"), TABLE)
def test_the_bfloat16_table_comes_out(
    shape: Any, mesh: tuple[int, int], ms: str, rate: str, short: str, long: str
) -> None:
    dp, tp = mesh
    found = plan(work(*shape, numbers="bfloat16"), gpus=dp * tp, dp=dp, tp=tp)
    assert digits(found.step_seconds * 1e3, ms) == ms
    assert digits(found.tokens_per_second / 1e6, rate) == rate
    hours = 1e9 / found.tokens_per_second / 3600 * found.gpus
    for given, n in ((short, hours), (long, 10 * hours)):
        assert n == pytest.approx(float(given), abs=0.06, rel=0.005)
    row = f"| {ms} | {rate} M | {short} | {long} |"
    assert row in (ROOT / "docs" / "scale.md").read_text()


def test_the_page_has_the_rates() -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    for name in HARDWARE["h100"].__slots__[1:]:
        cells = text.partition(f"\n| {name} | ")[2].split(" | ")[:2]
        assert [float(cell) for cell in cells] == [
            getattr(each, name) for each in HARDWARE.values()
        ]


def test_the_terms_of_the_table() -> None:
    first = plan(work(768, 24576, 32, 4096, numbers="bfloat16"))
    ms = {part.name: round(part.seconds * 1e3, 2) for part in first.parts if part.when == "step"}
    assert ms == {"encode": 0.28, "select": 0.34, "sparse": 0.27, "adam": 0.35}
    wide = work(4096, 1e6, 64, 131072, numbers="bfloat16")
    third, fourth = (plan(wide, gpus=8 * dp, dp=dp, tp=8) for dp in (1, 8))
    assert round(third.part("encode").seconds * 1e3) == 244
    states = ("weights", "gradients", "moments", "bfloat16 copy")
    assert sum(third.memory[name] for name in states) / 1e9 == pytest.approx(18.4, abs=0.05)
    traffic = fourth.part("dp traffic").seconds
    assert round(traffic * 1e3) == 80
    assert round((fourth.step_seconds + traffic) * 1e3) == 209  # gradients twice as wide
    assert "hypothetical" in third.remarks[0]
    model = replace(wide, model_parameters=8e9, layer_share=0.5)
    harvest = plan(model).part("harvest").seconds / model.config.batch_tokens
    assert 1 / harvest == pytest.approx(50_000) and harvest * 1e9 / 3600 == pytest.approx(5.6, 0.01)


ARCHITECTURES: tuple[AbstractArchitecture, ...] = (
    *(TopKConfig(k=3), BatchTopKConfig(k=3), MatryoshkaConfig(k=3), AbsTopKConfig(k=3)),
    *(ReLUConfig(), PAnnealConfig(), GatedConfig(), JumpReLUConfig()),
)


@pytest.mark.parametrize("sae", [*ARCHITECTURES, None], ids=lambda sae: sae.name if sae else "skip")
def test_memory_of_weights_is_that_of_a_trainee(
    sae: AbstractArchitecture | None, tmp_path: Path
) -> None:
    """Weights, gradients, moments and a checkpoint's file, of a step that was made."""
    config = TrainConfig(
        sae=sae or TopKConfig(k=3),
        d_sae=48,
        n_tokens=640,
        batch_tokens=64,
        site=SITE,
        **({} if sae else {"site_out": OTHER, "skip": True}),
    )
    batch = {SITE: torch.randn(64, 8), OTHER: torch.randn(64, 5)}
    trainee = new_trainee(config, first_look(iter([batch]), [SITE, OTHER], 64))
    optimizer = new_optimizer(config, trainee)
    y = batch[SITE] if sae else batch[OTHER]
    descend_(config, trainee, optimizer, outcome(config, trainee, batch[SITE], y, step=0), step=0)
    found = plan(Work(config=config, d_in=8, d_out=None if sae else 5, active=3))
    parameters = list(trainee.parameters())
    of_gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    moments = [optimizer.state[p][name] for p in parameters for name in ("exp_avg", "exp_avg_sq")]
    assert found.memory["weights"] == sum(p.nbytes for p in parameters)
    assert found.memory["gradients"] == of_gradients
    assert found.memory["moments"] == sum(moment.nbytes for moment in moments)
    assert found.memory["counters"] == trainee.silent_tokens.nbytes
    save_checkpoint(tmp_path, 1, [trainee], [optimizer], sums=torch.zeros(1, 5).double(), keep=1)
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert 0 < file.stat().st_size - found.disk["checkpoint"] < 5000  # names and shapes
    of_dp = plan(found.work, gpus=2, dp=2, tp=1).collectives
    sizes = [each.bytes for each in of_dp if each.name.startswith("gradient of")]
    assert sorted(sizes) == sorted(p.nbytes for p in parameters)


def table(found: Plan) -> dict[str, Counter[int]]:
    """Bytes of each collective, by group and kind."""
    counted: dict[str, Counter[int]] = {}
    for each in found.collectives:
        sizes = counted.setdefault(f"{each.group} {each.kind}", Counter())
        sizes[each.bytes] += each.count
    return counted


@pytest.mark.parametrize(
    ("sae", "mesh", "wanted"),
    [
        (TopKConfig(k=3), (1, 1), {}),
        (
            TopKConfig(k=3),
            (2, 2),  # 32 tokens of width 8, 24 latents
            {
                "tp all_gather": {2 * 32 * 3 * 4: 1, 2 * 8: 1},
                "tp all_reduce": {32 * 8 * 4: 1, 8 * 4: 1, 4: 1},
                "dp all_reduce": {24 * 8 * 4: 2, 24 * 4: 1, 8 * 4: 1, (24 + 8 + 1) * 4: 1},
                "all all_reduce": {16: 1},
            },
        ),
        (
            AbsTopKConfig(k=40),
            (1, 2),  # of 24 latents no more than those are candidates
            {
                "tp all_gather": {2 * 64 * 24 * 4: 1, 2 * 8: 1},
                "tp all_reduce": {64 * 8 * 4: 1, 8 * 4: 1, 4: 1},
                "all all_reduce": {16: 1},
            },
        ),
        (
            MatryoshkaConfig(k=3, prefixes=(4, 9)),
            (1, 2),
            {
                "tp all_gather": {16: 1},
                "tp all_reduce": {64 * 8 * 4: 3, 8 * 4: 1, 4: 1},
                "all all_reduce": {2049 * 8: 2, 1025 * 8: 1, 3 * 8: 1, 8: 1, 16: 1},
            },
        ),
        (
            GatedConfig(),
            (1, 2),
            {
                "tp all_gather": {16: 1},
                "tp all_reduce": {64 * 8 * 4: 2, 8 * 4: 1, 4: 2},
                "all all_reduce": {16: 1},
            },
        ),
        (
            JumpReLUConfig(penalty="target", target_l0=2.0),
            (2, 1),
            {
                "dp all_reduce": {48 * 8 * 4: 2, 48 * 4: 2, 8 * 4: 1, (48 + 8 + 1) * 4: 1},
                "all all_reduce": {16: 1},
            },
        ),
    ],
)
def test_collectives_written_out(
    sae: AbstractArchitecture, mesh: tuple[int, int], wanted: dict[str, dict[int, int]]
) -> None:
    dp, tp = mesh
    active = float(getattr(sae, "k", 1.5))
    assert table(plan(tiny(sae, active=active), gpus=dp * tp, dp=dp, tp=tp)) == wanted


EXCHANGES = (
    (["dp=2,tp=2", "dp=4,tp=1", "dp=1,tp=4"], [sae.name for sae in ARCHITECTURES], 16, 0.0),
    (["dp=2,tp=2"], ["topk", "abstopk"], 1, 0.5),  # with k = 1 most latents are dead
)


@pytest.mark.slow
@pytest.mark.parametrize(("meshes", "names", "k", "dead"), EXCHANGES)
def test_collectives_of_real_steps(
    tmp_path: Path, meshes: list[str], names: list[str], k: int, dead: float
) -> None:
    """What four processes exchange in a step is what the plan lists, to the byte."""
    path = tmp_path / "acts.safetensors"
    save_file({SITE: torch.randn(400, 24)}, path)
    sizes = {"threads": 1, "d": 24, "d_sae": 256, "k": k, "batch": 98, "steps": 6, "dead": dead}
    task = {"meshes": meshes, "saes": names, "path": str(path), **sizes}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    done = subprocess.run(
        [*command, str(ROOT / "benchmarks" / "scale.py"), "--work", json.dumps(task)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [line[7:] for line in done.stdout.splitlines() if line.startswith("result ")]
    assert done.returncode == 0 and len(lines) == len(meshes) * len(names), done.stderr[-2000:]
    for found in map(json.loads, lines):
        assert found["collectives"][0] > (13 if dead else 0)  # three more for AuxK
        assert found["only_seen"] == found["only_planned"] == [], found
        assert found["seconds"] > 0 and found["plan_seconds"] > 0


def test_auxk_costs_something_while_latents_are_dead() -> None:
    alive, dead = (plan(tiny(TopKConfig(k=3), dead=n), gpus=2, dp=1, tp=2) for n in (0.0, 0.5))
    new = set(dead.collectives) - set(alive.collectives)
    assert {each.name for each in new} == {"candidates of auxk", "what auxk writes"}
    assert dead.part("auxk").seconds > 0 and alive.part("auxk").seconds == 0
    none = TrainConfig(
        sae=TopKConfig(k=3), d_sae=48, n_tokens=1, batch_tokens=64, dead=DeadConfig(remedy="none")
    )
    assert plan(Work(config=none, d_in=8, dead=0.5)).part("auxk").seconds == 0


def test_the_fastest_layout_that_fits_is_taken() -> None:
    wide = work(4096, 1e6, 64, 131072)
    found = plan(wide, gpus=64)
    divisors = [1, 2, 4, 8, 16, 32, 64]
    each = [plan(wide, gpus=64, dp=64 // tp, tp=tp) for tp in divisors]
    assert {(layout.dp, layout.tp) for layout in found.layouts} == {(p.dp, p.tp) for p in each}
    fitting = [p for p in each if p.fits]
    assert 0 < len(fitting) < len(each)
    assert found.step_seconds == min(p.step_seconds for p in fitting)
    slow = max(fitting, key=lambda p: p.step_seconds)
    assert any(f"dp={found.dp} tp={found.tp} is" in remark for remark in slow.remarks)
    assert not any("as fast" in remark for remark in found.remarks)
    too_large = next(p for p in each if not p.fits)
    assert f"dp={found.dp} tp={found.tp} does" in too_large.remarks[0]


def test_what_does_not_fit_says_what_would() -> None:
    found = plan(work(4096, 1e6, 64, 131072))
    assert not found.fits
    (remark,) = (text for text in found.remarks if "does not fit" in text)
    n = int(remark.partition("gpus=")[2].partition(",")[0])
    assert plan(found.work, gpus=n, dp=1, tp=n).fits
    assert not plan(found.work, gpus=n // 2, dp=1, tp=n // 2).fits
    larger = replace(HARDWARE["h100"], memory=1e12)
    assert plan(found.work, hardware=larger).fits


def test_totals_are_sums_and_json_comes_back() -> None:
    found = plan(
        work(768, 24576, 32, 4096, model_parameters=1e8, n_tokens=1e8), gpus=4, hardware="cpu"
    )
    read = json.loads(found.to_json())
    seconds = {part["name"]: part["seconds"] for part in read["parts"]}
    steps = -(-(10**8) // 4096)
    assert read["n_steps"] == steps and read["mesh"]["gpus"] == 4
    assert read["hours"] * 3600 == pytest.approx(steps * sum(seconds.values()))
    assert read["harvest_hours"] * 3600 == pytest.approx(steps * seconds["harvest"])
    assert read["memory_bytes"] == sum(read["memory"].values())
    assert read["disk"]["store"] == 10**8 * (768 * 2 + 5)
    assert [each["name"] for each in read["collectives"]] == [c.name for c in found.collectives]
    live = plan(replace(found.work, store="none"), gpus=4, dp=2, tp=2, hardware="cpu")
    assert live.harvest_hours == 0 and live.part("harvest").when == "step"
    assert live.disk["store"] == 0 and live.part("read").seconds == 0


def test_more_of_anything_never_costs_less() -> None:
    base = work(1024, 65536, 32, 8192)
    step = plan(base).step_seconds
    larger = (work(2048, 65536, 32, 8192), work(1024, 131072, 32, 8192))
    for other in (*larger, work(1024, 65536, 64, 8192), work(1024, 65536, 32, 16384)):
        assert plan(other).step_seconds > step
    dense = tiny(ReLUConfig(), active=10)
    assert plan(dense).part("dense").seconds > 0 and plan(tiny(ReLUConfig())).part("sparse").seconds


@pytest.mark.parametrize(
    "name", [n for n in HARDWARE["h100"].__slots__ if n not in ("name", "memory")]
)
def test_every_rate_counts(name: str) -> None:
    """One that is ten times as large changes some part of a plan that uses all of them."""
    base = HARDWARE["h100"]
    better = replace(base, **{name: getattr(base, name) * 10})
    differ = []
    for numbers in ("float32", "bfloat16"):
        some = work(512, 16384, 32, 4096, numbers=numbers, model_parameters=1e9, dead=0.1)
        one, other = (plan(some, gpus=16, dp=4, tp=4, hardware=h) for h in (base, better))
        differ.append(one.parts != other.parts)
    assert any(differ)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus": 0}, "at least one process, got gpus=0"),
        ({"gpus": 4, "dp": 3}, "dp must divide the 4 processes, got 3; give one of 1, 2, 4"),
        ({"gpus": 4, "dp": 2, "tp": 4}, "are 8 processes, not 4"),
        ({"gpus": 5, "tp": 5}, "tp=5 processes share latents in equal parts"),
        ({"gpus": 128, "dp": 128}, "dp=128 processes share the tokens"),
        ({"gpus": 125}, "125 processes can neither share"),
        ({"hardware": "abacus"}, 'rates of h100, cpu, not of "abacus"'),
    ],
)
def test_layouts_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GossamerError, match=words):
        plan(tiny(TopKConfig(k=3)), **change)


def test_mistakes_are_said() -> None:
    with pytest.raises(GossamerError, match="depends on the activations; give the mean"):
        tiny(ReLUConfig(), active=None)
    with pytest.raises(ShapeError, match="at most d_sae=48"):
        tiny(ReLUConfig(), active=49)
    with pytest.raises(GossamerError, match="flops of hardware must be a finite number above 0"):
        replace(HARDWARE["cpu"], flops=0)
    with pytest.raises(GossamerError, match="layer_share must be a share"):
        tiny(TopKConfig(k=3), layer_share=1.5)


def test_shares_are_those_of_a_mesh() -> None:
    """Tokens and latents as training shares them."""
    mesh = Mesh(3, 4, dp_rank=2, tp_rank=1)
    found = plan(tiny(TopKConfig(k=3)), gpus=12, dp=3, tp=4).share
    assert found.b == max(
        Mesh(3, 4, dp_rank=n).tokens(64).stop - Mesh(3, 4, dp_rank=n).tokens(64).start
        for n in range(3)
    )
    here = mesh.latents(48)
    assert found.f == here.stop - here.start
