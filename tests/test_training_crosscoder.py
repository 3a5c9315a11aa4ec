"""Training over several sites: losses of dense autograd, scales of each site, resume, files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import gossamer.training.architecture as architecture_file
from gossamer.cli.train import train_command
from gossamer.errors import GossamerError
from gossamer.saes import Crosscoder, load_crosscoder
from gossamer.training.architecture import AbstractArchitecture
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.config import DeadConfig, OptimizerConfig, RunConfig, TrainConfig
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.loop import train
from gossamer.training.matryoshka import MatryoshkaConfig
from gossamer.training.relu import ReLUConfig
from gossamer.training.start import first_look, new_trainee, side_by_side
from gossamer.training.step import outcome
from gossamer.training.topk import TopKConfig
from gossamer.training.trainee import Trainee
from tests.test_training import plain_auxk, plain_latents
from tests.tiny_training import OTHER, SITE, Rows, check_equal, dictionary_rows

THIRD = "blocks.1.hook_resid_pre"
WIDTHS = {SITE: 7, OTHER: 5, THIRD: 4}
KINDS: dict[str, Any] = {
    "crosscoder": {"site": (SITE, OTHER, THIRD)},
    "across": {"site": SITE, "site_out": (OTHER, THIRD)},
    "across skip": {"site": SITE, "site_out": (OTHER, THIRD), "skip": True},
}
ARCHITECTURES: dict[str, AbstractArchitecture] = {
    "topk": TopKConfig(k=3),
    "batchtopk": BatchTopKConfig(k=3),
    "relu": ReLUConfig(l1=0.7, warmup=0.0),
    "jumprelu": JumpReLUConfig(coefficient=0.5, start_threshold=0.3, dead_weight=0.0),
}


def config_for(sae: AbstractArchitecture, kind: str, **options: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "n_tokens": 40 * 11,
        "batch_tokens": 11,
        "dead": DeadConfig(after_tokens=100, remedy="auxk", k_aux=4, aux_weight=0.3),
    }
    return TrainConfig(sae=sae, d_sae=23, **defaults | KINDS[kind] | options)


def rows(n: int = 300) -> dict[str, Tensor]:
    """Three sites of different widths and very different sizes."""
    sizes = {SITE: 1.0, OTHER: 40.0, THIRD: 0.01}
    generator = torch.Generator().manual_seed(3)
    return {
        site: sizes[site] * (torch.randn(n, width, generator=generator).double() + 0.3)
        for site, width in WIDTHS.items()
    }


def plain_loss(config: TrainConfig, t: Trainee, batch: dict[str, Tensor]) -> Tensor:
    """One site after the other, each with its own rows of the weights and its own scale."""
    n_in, scaled = 0, {s: x * WIDTHS[s] ** 0.5 / x.norm(dim=1).mean() for s, x in batch.items()}
    is_wide = config.site_out is None
    u = torch.cat([scaled[site] for site in config.sites_in], 1)
    n_in = u.shape[1]
    u = u - t.b_dec if t.subtract_b_dec else u
    latents, _ = plain_latents(config.sae, t, u)
    loss, errors, norms, start = torch.zeros(()).double(), [], [], 0
    for site in config.sites_out:
        columns = slice(start, start + WIDTHS[site])
        y = latents @ t.W_dec[:, columns] + t.b_dec[columns]
        if t.W_skip is not None:
            assert n_in == WIDTHS[SITE]
            y = y + scaled[SITE] @ t.W_skip[columns].T
        errors.append(scaled[site] - y)
        norms.append(t.W_dec[:, columns].norm(dim=1))
        loss = loss + errors[-1].square().sum(1).mean()
        start += WIDTHS[site]
    sizes = sum(norms) if is_wide else t.W_dec.norm(dim=1)
    match config.sae:
        case ReLUConfig():
            loss = loss + 0.7 * (latents * sizes).sum(1).mean()
        case JumpReLUConfig():
            loss = loss + 0.5 * (4.0 * latents * sizes).tanh().sum(1).mean()
    dead = (t.silent_tokens >= 100).nonzero()[:, 0]
    return loss + plain_auxk(config, t, u, torch.cat(errors, 1).detach(), dead)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_loss_and_gradients_equal_dense_autograd(
    name: str, kind: str, density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture_file, "MAX_DENSITY", density)
    config, batch = config_for(ARCHITECTURES[name], kind), rows(11)
    trainee = new_trainee(config, first_look(iter([batch]), [*batch], 1))
    with torch.no_grad():
        for parameter in trainee.parameters():
            parameter.copy_(torch.randn_like(parameter))
        for threshold in trainee.extra.values():
            threshold.abs_()
        trainee.constrain_()
    trainee.silent_tokens[::2] = 1000
    x = side_by_side(config.sites_in, batch)
    y = x if config.site_out is None else side_by_side(config.sites_out, batch)
    found = outcome(config, trainee, x, y, step=config.n_steps - 1)
    check_equal(found.loss, plain_loss(config, trainee, batch), list(trainee.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_sites_do_not_matter(kind: str) -> None:
    """A site multiplied by a power of two has its output multiplied by it, and no latent moves."""
    one, other = rows(), rows()
    other[OTHER] = 64 * other[OTHER]
    config = config_for(TopKConfig(k=3), kind, n_tokens=220)
    first, second = (train(config, Rows(tensors)).sae for tensors in (one, other))
    assert isinstance(first, Crosscoder)
    torch.testing.assert_close(second.encode(other), first.encode(one), rtol=1e-9, atol=1e-9)
    expected = first(one)
    for site, y in second(other).items():
        torch.testing.assert_close(y, expected[site] * (64 if site == OTHER else 1))
    assert second.metadata["scales"][OTHER] == pytest.approx(first.metadata["scales"][OTHER] / 64)


def test_latents_of_one_site_and_of_both_are_told_apart() -> None:
    """Two sites that share some directions: a latent of each, as its relative norm says."""
    shared, _ = dictionary_rows(6000, 12, 16, 1, seed=0)
    own, _ = dictionary_rows(6000, 12, 16, 1, seed=1)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(5)))[0]
    tensors = {SITE: shared - 0.3, OTHER: (shared - 0.3) @ turn + own - 0.3}
    config = TrainConfig(
        sae=BatchTopKConfig(k=2),
        d_sae=24,
        n_tokens=40_000,
        batch_tokens=256,
        site=(SITE, OTHER),
        optimizer=OptimizerConfig(rate=1e-2),
    )
    result = train(config, Rows(tensors))
    share = result.sae.relative_norms()[:, 0]
    assert ((share > 0.5) & (share < 0.7)).sum() >= 10 and (share < 0.05).sum() >= 8
    latents = result.sae.encode(tensors)
    assert (latents != 0).sum(1).double().mean() == pytest.approx(2, rel=0.03)
    error = sum((tensors[s] - y).square().sum() for s, y in result.sae(tensors).items())
    whole = sum((x - x.mean(0)).square().sum() for x in tensors.values())
    assert error / whole < 0.1
    assert set(result.saes) == {SITE, OTHER} and "fvu" in result.history[-1]


@pytest.mark.parametrize(
    ("kind", "sae"),
    [
        ("crosscoder", BatchTopKConfig(k=3)),
        ("crosscoder", GatedConfig()),
        ("across skip", MatryoshkaConfig(k=3)),
        ("across skip", ReLUConfig()),
    ],
)
def test_resumed_equals_uninterrupted(kind: str, sae: Any, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stopping(row: dict[str, Any]) -> None:
        if row["step"] == 12:
            raise Stopped

    remedy = "auxk" if sae.selects_by_rank else "resample"
    dead = DeadConfig(after_tokens=60, remedy=remedy, resample_tokens=80)
    config, every = config_for(sae, kind, dead=dead), RunConfig(checkpoint_seconds=0.0, log_steps=4)
    straight = train(config, Rows(rows()), run=every).sae
    with pytest.raises(Stopped):
        train(config, Rows(rows()), directory=tmp_path, callbacks=[stopping], run=every)
    resumed = train(config, Rows(rows()), directory=tmp_path, run=every)
    again = train(config, Rows(rows()), directory=tmp_path)  # ended: it is read
    for found in (resumed.sae, again.sae, load_crosscoder(tmp_path)):
        assert found.metadata == straight.metadata
        state = found.state_dict()
        assert all(torch.equal(t, state[n]) for n, t in straight.state_dict().items())


def test_the_command_line_names_all_sites(tmp_path: Path) -> None:
    tensors = {site: x.float() for site, x in rows().items()}
    save_file(tensors, tmp_path / "acts.safetensors")

    def ran(out: str, *arguments: str) -> Any:
        shared = ("--d-sae", "23", "--tokens", "500", "--batch", "50", "--k", "3")
        source = ("--from", str(tmp_path / "acts.safetensors"), "--out", str(tmp_path / out))
        words = [*shared, *source, "--crosscoder", *arguments]
        return CliRunner().invoke(train_command, words, catch_exceptions=False)

    sites = ["--site", SITE, "--site", THIRD]
    (row,) = json.loads(ran("wide", *sites, "--json").stdout)["saes"]
    assert row["site_out"] == f"{SITE}+1"
    assert list(load_crosscoder(tmp_path / "wide").writes) == [SITE, THIRD]
    ran("across", "--site", SITE, "--site-out", OTHER, "--site-out", THIRD, "--sae", "matryoshka")
    found = load_crosscoder(tmp_path / "across")
    assert (list(found.reads), list(found.writes)) == ([SITE], [OTHER, THIRD])
    for wrong in (sites[:2], [*sites, "--site-out", OTHER], []):
        with pytest.raises(GossamerError, match="--crosscoder takes several"):
            ran("x", *wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": (SITE, SITE)}, "differ, got"),
        ({"site": (SITE, OTHER), "site_out": THIRD}, "writes the sites that it reads"),
        ({"site": (SITE, OTHER), "skip": True}, "skip connection is for transcoders"),
        ({"site": (SITE, "nowhere")}, 'No site "nowhere"'),
        ({"site": (SITE, "blocks.9.hook_resid_pre")}, "harvest that site as well"),
    ],
)
def test_mistakes_end_in_one_sentence(options: Any, message: str) -> None:
    with pytest.raises(GossamerError, match=message):
        train(TrainConfig(sae=TopKConfig(k=1), d_sae=9, n_tokens=20, **options), Rows(rows()))


def test_it_starts_with_the_transpose_of_its_decoder() -> None:
    config, batch = config_for(TopKConfig(k=3), "crosscoder"), rows()
    trainee = new_trainee(config, first_look(iter([batch]), [*batch], 1))
    ratio = trainee.W_enc / trainee.W_dec
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    torch.testing.assert_close(trainee.W_dec.norm(dim=1), torch.ones(23).double())
    scaled, _, _ = trainee.inputs(*(side_by_side(config.sites_in, batch),) * 2)
    centre = torch.cat([batch[s].mean(0) * WIDTHS[s] ** 0.5 / batch[s].norm(dim=1).mean()
                        for s in config.sites_in])  # fmt: skip
    torch.testing.assert_close(trainee.b_dec.detach(), centre)
    torch.testing.assert_close(F.normalize(scaled.mean(0), dim=0), F.normalize(centre, dim=0))
