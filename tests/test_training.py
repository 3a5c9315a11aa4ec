"""Every architecture's loss and gradients equal dense autograd; known ones are recovered."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gossamer.training.architecture as architecture_file
import gossamer.training.dead as dead_file
from gossamer.errors import GossamerError
from gossamer.saes import JumpReLU
from gossamer.training.architecture import AbstractArchitecture
from gossamer.training.batchtopk import BatchTopKConfig
from gossamer.training.config import (
    DeadConfig,
    OptimizerConfig,
    RunConfig,
    StartConfig,
    TrainConfig,
)
from gossamer.training.gated import GatedConfig
from gossamer.training.jumprelu import JumpReLUConfig
from gossamer.training.loop import train
from gossamer.training.progress import tensorboard
from gossamer.training.relu import ReLUConfig
from gossamer.training.schedules import learning_rate
from gossamer.training.start import first_look, geometric_median, new_trainee
from gossamer.training.step import descend_, new_optimizer, outcome
from gossamer.training.topk import TopKConfig
from gossamer.training.trainee import Trainee
from tests.conftest import TOLERANCE
from tests.tiny_training import OTHER, SITE, Rows, dictionary_rows

D_IN, D_OUT, D_SAE = 7, 5, 23

ARCHITECTURES: dict[str, AbstractArchitecture] = {
    "topk": TopKConfig(k=3),
    "topk 1": TopKConfig(k=1),
    "topk all": TopKConfig(k=D_SAE),
    # 2k candidates are all latents here, so that none can be missed.
    "topk bfloat16": TopKConfig(k=12, encode_in="bfloat16"),
    "batchtopk": BatchTopKConfig(k=3),
    "relu": ReLUConfig(l1=0.7, warmup=0.0),
    "relu unit": ReLUConfig(l1=0.7, norm="unit"),
    "gated": GatedConfig(l1=0.3),
    "jumprelu l0": JumpReLUConfig(penalty="l0", coefficient=0.5, bandwidth=0.5),
    "jumprelu target": JumpReLUConfig(penalty="target", target_l0=4.0, bandwidth=0.5),
    "jumprelu tanh": JumpReLUConfig(coefficient=0.5, start_threshold=0.3, dead_weight=0.2),
}
KINDS = ("autoencoder", "transcoder", "skip")
CASES = [(n, kind) for n in ARCHITECTURES for kind in KINDS if (n, kind) != ("relu unit", "skip")]
CASES.remove(("relu unit", "transcoder"))  # refused: nothing would hold its norms


def config_for(architecture: AbstractArchitecture, kind: str, **options: Any) -> TrainConfig:
    remedy = "auxk" if architecture.name != "gated" else "none"
    defaults: dict[str, Any] = {
        "n_tokens": 40 * 11,
        "batch_tokens": 11,
        "dead": DeadConfig(after_tokens=100, remedy=remedy, k_aux=4, aux_weight=0.3),
        "start": StartConfig(n_tokens=1),
    }
    return TrainConfig(
        sae=architecture,
        d_sae=D_SAE,
        site=SITE,
        site_out=None if kind == "autoencoder" else OTHER,
        skip=kind == "skip",
        **defaults | options,
    )


def randomised(config: TrainConfig, bias: float = 0.0) -> tuple[Trainee, Tensor, Tensor]:
    """A trainee with random weights, some latents dead, and a batch for it."""
    x = torch.randn(11, D_IN, dtype=torch.float64)
    y = x if config.site_out is None else torch.randn(11, D_OUT, dtype=torch.float64)
    looks = first_look(iter([{SITE: x, OTHER: y}]), [SITE, OTHER], 1)
    trainee = new_trainee(config, looks)
    with torch.no_grad():
        for parameter in trainee.parameters():
            parameter.copy_(torch.randn_like(parameter))
        trainee.b_enc += bias
        for name, tensor in trainee.extra.items():
            tensor.abs_() if name == "threshold" else tensor.add_(bias)
        trainee.constrain_()
    trainee.silent_tokens[::2] = 1000
    return trainee, x, y


def plain_jump(p: Tensor, theta: Tensor, width: float, both: bool) -> Tensor:
    """The jump written with terms of value 0 that carry the straight-through gradients."""
    near = ((p - theta).abs() < width / 2).double()
    slope = (-theta / width * near).detach()
    jumped = p * (p > theta).double() + slope * (theta - theta.detach())
    return jumped - slope * (p - p.detach()) if both else jumped


def plain_step(p: Tensor, theta: Tensor, width: float) -> Tensor:
    near = ((p - theta).abs() < width / 2).double()
    return (p > theta).double() + (-near / width) * (theta - theta.detach())


def plain_latents(architecture: AbstractArchitecture, t: Trainee, u: Tensor) -> tuple[Tensor, Any]:
    """Dense latents, and what the penalties are computed from."""
    product = u @ t.W_enc.T
    pre = product + t.b_enc
    match architecture:
        case TopKConfig():
            mask = torch.zeros_like(pre).scatter(1, pre.topk(architecture.k).indices, 1.0)
            return pre.relu() * mask, None
        case BatchTopKConfig():
            n = architecture.k * len(u)
            mask = torch.zeros(pre.numel()).double()
            mask[pre.flatten().topk(n).indices] = 1.0
            return pre.relu() * mask.view_as(pre), None
        case GatedConfig():
            gate = product + t.extra["b_gate"]
            size = (t.extra["r_mag"].exp() * product + t.b_enc).relu()
            return size * (gate > 0), gate.relu()
        case JumpReLUConfig():
            tanh = architecture.penalty == "tanh"
            return plain_jump(pre, t.extra["threshold"], architecture.width, tanh), pre
    return pre.relu(), None


def plain_penalty(
    architecture: AbstractArchitecture, t: Trainee, latents: Tensor, more: Any, dead: Tensor
) -> Tensor:
    """Penalties summed over latents, averaged over tokens; without warm-ups."""
    norms = t.W_dec.norm(dim=1)
    match architecture:
        case ReLUConfig():
            weighted = latents * norms if architecture.norm == "decoder" else latents
            return architecture.l1 * weighted.sum(1).mean()
        case GatedConfig():
            norms = 1.0 if t.unit_decoder else norms.detach()
            return architecture.l1 * (more * norms).sum(1).mean()
        case JumpReLUConfig():
            theta = t.extra["threshold"]
            sparsity = plain_step(more, theta, architecture.width).sum(1)
            if architecture.penalty == "tanh":
                sparsity = (architecture.tanh_scale * latents * norms).tanh().sum(1)
            if architecture.penalty == "target":
                sparsity = 2 / 4.0 * (sparsity - 4.0) ** 2
            below = ((theta - more).relu() * norms)[:, dead].sum(1).mean()
            return architecture.weight * sparsity.mean() + architecture.dead_weight * below
    return torch.zeros(()).double()


def plain_auxk(config: TrainConfig, t: Trainee, u: Tensor, error: Tensor, dead: Tensor) -> Tensor:
    """AuxK from dense pre-activations with the living masked out."""
    pre = (u @ t.W_enc.T + t.b_enc)[:, dead]
    k = min(4, len(dead))
    mask = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    missed = error - (pre.relu() * mask) @ t.W_dec[dead]
    share = missed.square().sum() / (error - error.mean(0)).square().sum()
    return config.dead.aux_weight * error.shape[1] * share * min(1.0, len(dead) / 4)


def plain_loss(config: TrainConfig, t: Trainee, x: Tensor, y: Tensor) -> Tensor:
    """The whole loss, densely, at the end of the run, where every warm-up is over."""
    scaled, target = x * t.scale_in, y * t.scale_out
    u = scaled - t.b_dec if t.subtract_b_dec else scaled
    latents, more = plain_latents(config.sae, t, u)
    skip = 0.0 if t.W_skip is None else scaled @ t.W_skip.T
    error = target - latents @ t.W_dec - t.b_dec - skip
    loss = error.square().sum(1).mean()
    dead = (t.silent_tokens >= 100).nonzero()[:, 0]
    loss = loss + plain_penalty(config.sae, t, latents, more, dead)
    if isinstance(config.sae, GatedConfig):
        frozen = 0.0 if t.W_skip is None else scaled @ t.W_skip.detach().T
        missed = target - more @ t.W_dec.detach() - t.b_dec.detach() - frozen
        loss = loss + missed.square().sum(1).mean()
    if config.remedy == "auxk" and len(dead):
        loss = loss + plain_auxk(config, t, u, error.detach(), dead)
    return loss


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("bias", [0.0, -50.0, 3.0])
def test_loss_and_gradients_equal_dense_autograd(
    name: str, kind: str, density: float, bias: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sides of the switches from sparse to dense, also with no active latent at all."""
    monkeypatch.setattr(architecture_file, "MAX_DENSITY", density)
    monkeypatch.setattr(dead_file, "MAX_DENSITY", density)
    config = config_for(ARCHITECTURES[name], kind)
    trainee, x, y = randomised(config, bias)
    found = outcome(config, trainee, x, y, step=config.n_steps - 1)
    parameters = list(trainee.parameters())
    fast = torch.autograd.grad(found.loss, parameters, allow_unused=True)
    loss = plain_loss(config, trainee, x, y)
    plain = torch.autograd.grad(loss, parameters, allow_unused=True)
    torch.testing.assert_close(found.loss, loss, rtol=TOLERANCE[torch.float64], atol=1e-12)
    for parameter, one, other in zip(parameters, fast, plain, strict=True):
        one = torch.zeros_like(parameter) if one is None else one
        other = torch.zeros_like(parameter) if other is None else other
        torch.testing.assert_close(one, other, rtol=TOLERANCE[torch.float64], atol=1e-10)
    if bias == -50.0:
        assert found.n_active == 0 and not found.fired.any()


@pytest.mark.parametrize("sae", [TopKConfig(k=8), BatchTopKConfig(k=8)], ids=lambda sae: sae.name)
def test_a_known_dictionary_is_recovered(sae: AbstractArchitecture) -> None:
    x, directions = dictionary_rows(30_000)
    config = TrainConfig(
        sae=sae,
        d_sae=256,
        n_tokens=150_000,
        batch_tokens=512,
        optimizer=OptimizerConfig(rate=4e-3),
    )
    result = train(config, Rows({SITE: x}))
    found = F.normalize(result.sae.W_dec, dim=1) @ directions.T
    assert found.max(0).values.mean() >= 0.95
    latents = result.sae.encode(x[:8000])
    assert (latents != 0).sum(1).double().mean() == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] != "batchtopk"])
def test_the_saved_sae_is_the_trainee_with_its_scales_folded(name: str, kind: str) -> None:
    x = 40 * torch.randn(500, D_IN, dtype=torch.float64) + 9
    y = x if kind == "autoencoder" else 0.02 * torch.randn(500, D_OUT, dtype=torch.float64) - 1
    config = config_for(ARCHITECTURES[name], kind, n_tokens=110)
    kept: list[Trainee] = []
    result = train_keeping(config, Rows({SITE: x, OTHER: y}), kept)
    trainee, sae = kept[0], result.sae
    scaled, u, _ = trainee.inputs(x[:20], y[:20])
    latents, _ = plain_latents(config.sae, trainee, u)
    skip = 0.0 if trainee.W_skip is None else scaled @ trainee.W_skip.T
    expected = (latents @ trainee.W_dec + trainee.b_dec + skip) / trainee.scale_out
    torch.testing.assert_close(sae(x[:20]), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae.encode(x[:20]), latents / trainee.scale_out)
    assert (sae.site_in, sae.site_out) == (SITE, SITE if kind == "autoencoder" else OTHER)
    if trainee.unit_decoder:
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE).double())


def train_keeping(config: TrainConfig, source: Rows, kept: list[Trainee]) -> Any:
    """Train, and keep the trainee that was saved."""
    import gossamer.training.loop as loop

    real = loop.finished_sae

    def keeping(config: Any, trainee: Trainee, *more: Any) -> Any:
        kept.append(trainee)
        return real(config, trainee, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "finished_sae", keeping)
        return train(config, source)


def test_batchtopk_is_saved_with_one_threshold_whose_mean_l0_is_k() -> None:
    x, _ = dictionary_rows(4000, 40, 16, 3)
    config = config_for(BatchTopKConfig(k=3), "autoencoder", n_tokens=20_000, batch_tokens=100)
    sae = train(config, Rows({SITE: x})).sae
    assert isinstance(sae.selection, JumpReLU)
    assert len(set(sae.selection.threshold.tolist())) == 1
    assert (sae.encode(x) != 0).sum(1).double().mean() == pytest.approx(3, rel=0.02)
    about = sae.metadata
    assert about["threshold"] == pytest.approx(sae.selection.threshold[0].item())
    assert about["running_threshold"] == pytest.approx(about["threshold"], rel=0.3)


@pytest.mark.parametrize("name", ["topk", "relu", "gated", "jumprelu tanh"])
def test_the_scale_of_the_activations_does_not_matter(name: str) -> None:
    """Inputs multiplied by a power of two give the same SAE, multiplied by it."""
    x = torch.randn(300, D_IN, dtype=torch.float64)
    config = config_for(ARCHITECTURES[name], "autoencoder", n_tokens=220)
    one, other = (train(config, Rows({SITE: factor * x})).sae for factor in (1, 64))
    torch.testing.assert_close(other(64 * x), 64 * one(x), rtol=1e-9, atol=1e-9)


def test_unit_decoders_stay_unit_and_their_gradient_is_tangent() -> None:
    config = config_for(TopKConfig(k=3), "autoencoder")
    trainee, x, y = randomised(config)
    outcome(config, trainee, x, y, step=0).loss.backward()
    trainee.constrain_gradient_()
    assert trainee.W_dec.grad is not None
    along = (trainee.W_dec.grad * trainee.W_dec).sum(1)
    torch.testing.assert_close(along, torch.zeros(D_SAE).double(), rtol=0, atol=1e-12)
    descend_(
        config,
        trainee,
        new_optimizer(config, trainee),
        outcome(config, trainee, x, y, step=0),
        step=0,
    )
    norms = trainee.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(D_SAE).double(), rtol=1e-12, atol=0)


def test_gradients_are_clipped_together() -> None:
    config = config_for(TopKConfig(k=3), "autoencoder", optimizer=OptimizerConfig(clip=0.5))
    trainee, x, y = randomised(config)
    found = outcome(config, trainee, x, y, step=0)
    descend_(config, trainee, new_optimizer(config, trainee), found, step=0)
    gradients = [p.grad for p in trainee.parameters() if p.grad is not None]
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(0.5)


def test_the_rate_rises_holds_and_falls() -> None:
    optimizer = OptimizerConfig(rate=1.0, warmup_steps=4, decay=0.5)
    config = config_for(TopKConfig(k=1), "autoencoder", n_tokens=20 * 11, optimizer=optimizer)
    rates = [learning_rate(config, step) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[10:12] == [1.0, 0.9] and rates[-1] == pytest.approx(0.1)


def test_penalties_rise_from_zero() -> None:
    config = config_for(ReLUConfig(l1=2.0, warmup=0.5), "autoencoder")  # 40 steps
    trainee, x, y = randomised(config)
    l1 = [outcome(config, trainee, x, y, step=s).terms["l1"].item() for s in (0, 9, 19, 39)]
    assert l1 == pytest.approx([l1[-1] * share for share in (1 / 20, 0.5, 1, 1)])


def test_the_geometric_median_is_where_the_pulls_cancel() -> None:
    x = torch.randn(101, 3, dtype=torch.float64)
    x[:10] += 1000  # outliers that the mean follows
    median = geometric_median(x)
    pulls = F.normalize(x - median, dim=1).sum(0)
    assert pulls.norm() < 1e-2 and median.norm() < 2 < x.mean(0).norm()


@pytest.mark.parametrize("b_dec", ["mean", "geometric_median", "zero"])
def test_b_dec_starts_where_it_is_told(b_dec: Any) -> None:
    x = torch.randn(101, D_IN, dtype=torch.float64) + 5
    config = config_for(TopKConfig(k=3), "autoencoder", start=StartConfig(b_dec=b_dec))
    look = first_look(iter([{SITE: x}]), [SITE], 1)
    trainee = new_trainee(config, look)
    centre = {"mean": x.mean(0), "geometric_median": geometric_median(x), "zero": 0 * x[0]}[b_dec]
    torch.testing.assert_close(trainee.b_dec.detach(), centre * trainee.scale_in)
    assert (x * trainee.scale_in).norm(dim=1).mean().item() == pytest.approx(D_IN**0.5)
    ratio = trainee.W_enc / trainee.W_dec  # the transpose, up to one factor
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_logs_reach_callbacks_and_history() -> None:
    heard: list[Any] = []
    config = config_for(TopKConfig(k=3), "autoencoder")
    x = torch.randn(300, D_IN)
    run = RunConfig(log_steps=16)
    result = train(config, Rows({SITE: x}), callbacks=[heard.append], run=run)
    assert heard == result.history and [row["step"] for row in heard] == [16, 32, 40]
    assert heard[-1]["tokens"] == 440 and heard[-1]["l0"] <= 3
    assert result.saes == {SITE: result.sae} and result.directory is None
    assert {"fvu", "dead", "loss", "loss_mse", "rate", "waiting", "tokens_per_second"} <= {
        *heard[0]
    }


def test_tensorboard_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(GossamerError, match="TensorBoard is not installed.*pip install"):
        tensorboard("anywhere")


def test_several_are_trained_from_one_pass() -> None:
    """The activations are read once for all of them."""

    class Counted(Rows):
        n_read = 0

        def batches(self, size: int, *, seed: int, start: int = 0) -> Any:
            for batch in super().batches(size, seed=seed, start=start):
                Counted.n_read += 1
                yield batch

    x, y = torch.randn(300, D_IN), torch.randn(300, D_OUT)
    source = Counted({SITE: x, OTHER: y})
    configs = [config_for(TopKConfig(k=k), kind) for k, kind in ((1, "autoencoder"), (3, "skip"))]
    results = train(configs, source)
    assert Counted.n_read == 1 + 40  # the first look, and the steps
    assert [result.sae.site_out for result in results] == [SITE, OTHER]
    assert results[1].sae.W_skip is not None and results[1].sae.W_skip.abs().sum() > 0
