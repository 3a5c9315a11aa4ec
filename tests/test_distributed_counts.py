"""What a step exchanges on 64 processes, counted in one: a fake backend is the others."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from gossamer.distributed import Mesh
from gossamer.distributed.shards import placed
from gossamer.training.config import DeadConfig, TrainConfig
from gossamer.training.sharded import kept_of
from gossamer.training.start import FirstLook, first_look, new_trainee, side_by_side
from gossamer.training.step import descend_, new_optimizer, outcome
from gossamer.training.topk import TopKConfig
from tests.mesh_worker import config_of, rows
from tests.tiny_training import OTHER, SITE

MESHES = [(1, 1), (1, 64), (64, 1), (8, 8)]


@pytest.fixture
def world() -> Iterator[None]:
    """Process 0 of 64, whose others are not there."""
    dist.init_process_group("fake", rank=0, world_size=64, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def mesh_of(dp: int, tp: int) -> Mesh:
    return Mesh() if dp * tp == 1 else Mesh.of(dp, tp)


def exchanged(case: str, mesh: Mesh, *, dead: bool) -> tuple[int, int]:
    """(all-gathers, all-reduces) of one step."""
    config = replace(config_of(case), d_sae=1024, batch_tokens=128)
    if not dead:
        config = replace(config, dead=DeadConfig(remedy="none"))
    batch = {site: x.float() for site, x in next(rows().batches(128, seed=0)).items()}
    trainee = new_trainee(config, first_look(iter([batch]), list(batch), 1), mesh)
    if dead:
        trainee.silent_tokens += 1000
    x = side_by_side(config.sites_in, batch)[mesh.tokens(128)]
    y = side_by_side(config.sites_out, batch)[mesh.tokens(128)]
    optimizer = new_optimizer(config, trainee)
    with CommDebugMode() as counting:
        found = outcome(config, trainee, x, y, step=3, n_tokens=128)
        descend_(config, trainee, optimizer, found, step=3)
    counts = {str(kind): n for kind, n in counting.get_comm_counts().items()}
    gathers = sum(n for kind, n in counts.items() if "allgather" in kind)
    assert all("allgather" in kind or "allreduce" in kind for kind in counts)
    return gathers, sum(counts.values()) - gathers


@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_a_step_exchanges_what_it_must(world: None, dp: int, tp: int) -> None:
    """TopK: the candidates' values and the reconstruction over tp, each gradient over dp.

    Beside these: how many latents are dead, the gradient's norm and b_dec's part of it over tp, who
    has fired over dp. AuxK has candidates and a reconstruction of its own, and its variation.
    BatchTopK exchanges four sums and the smallest value kept in place of the candidates.
    """
    split, shared, both = int(tp > 1), int(dp > 1), int(dp * tp > 1)
    n_weights = 4
    gathers, reduces = 2 * split, split + n_weights * shared + 2 * split + shared
    mesh = mesh_of(dp, tp)
    assert exchanged("topk", mesh, dead=False) == (gathers, reduces)
    with_auxk = (gathers + split, reduces + split + shared)
    assert exchanged("topk", mesh, dead=True) == with_auxk
    in_one_search = (split, reduces + 5 * both)
    in_two = (split, reduces + 9 * both)  # where 4k candidates of a token were too few
    assert exchanged("batchtopk", mesh, dead=False) in (in_one_search, in_two)
    assert exchanged("relu", mesh, dead=False) == (split, reduces)  # a penalty, but no b_dec
    target = exchanged("jumprelu target", mesh, dead=False)
    assert target == (split, reduces + shared)  # a threshold is a weight too


def test_a_million_latents_of_width_4096_are_a_64th_each(world: None) -> None:
    """Nothing is allocated: shapes alone, with 8 x 8 processes."""
    d_sae, width, k = 1_000_000, 4096, 64
    config = TrainConfig(
        sae=TopKConfig(k=k),
        d_sae=d_sae,
        n_tokens=1e9,
        batch_tokens=131_072,
        site=SITE,
        site_out=OTHER,
    )
    mesh = Mesh.of(8, 8)
    with FakeTensorMode():
        ones = torch.ones(width, dtype=torch.float64)
        look = FirstLook(ones, ones.sum(), torch.ones(64, width))
        trainee = new_trainee(config, {SITE: look, OTHER: look}, mesh)
        assert trainee.W_enc.shape == trainee.W_dec.shape == (125_000, width)
        assert trainee.W_enc.nbytes == 125_000 * width * 4  # 2.05 GB
        assert (trainee.d_sae, trainee.latents) == (d_sae, slice(0, 125_000))
        whole = placed("W_enc", trainee.W_enc.detach(), {"W_enc"}, mesh)
        assert isinstance(whole, DTensor) and whole.shape == (d_sae, width)
        n_tokens = 131_072 // 8
        with CommDebugMode() as counting:
            kept = kept_of(torch.ones(n_tokens, k), k, mesh)
            written: Tensor = mesh.added(torch.ones(n_tokens, width))
        assert (kept.shape, written.shape) == ((n_tokens, k), (n_tokens, width))
        assert counting.get_total_counts() == 2
        for parameter in trainee.parameters():
            parameter.grad = torch.empty_like(parameter)
        with CommDebugMode() as counting:
            trainee.gather_gradients_()
        assert counting.get_total_counts() == 4
