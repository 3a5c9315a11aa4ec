"""What training refuses: settings that do not fit, numbers out of range, devices not there."""

from typing import Any

import pytest
import torch

from gossamer.errors import GossamerError, ShapeError, SiteError
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
from gossamer.training.relu import ReLUConfig
from gossamer.training.topk import TopKConfig
from tests.test_training import D_IN, D_OUT, D_SAE, config_for
from tests.tiny_training import OTHER, SITE, Rows


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sae": TopKConfig(k=99)}, ShapeError, "k=99 with d_sae=23"),
        ({"n_tokens": 0}, GossamerError, "at least 1"),
        ({"skip": True}, GossamerError, "give site_out"),
        ({"site": "nowhere"}, SiteError, 'No site "nowhere"'),
        ({"site": "blocks.1.hook_resid_pre"}, SiteError, "harvest that site as well"),
        ({"site": None}, SiteError, "say which with site"),
        ({"sae": GatedConfig(), "dead": DeadConfig(remedy="auxk")}, GossamerError, "no gradient"),
        ({"sae": ReLUConfig(l1=-1.0)}, GossamerError, "l1 must be .* at least 0, got -1.0"),
        ({"sae": ReLUConfig(warmup=1.5)}, GossamerError, "warmup must be a share"),
        ({"sae": GatedConfig(l1=float("inf"))}, GossamerError, "l1 must be a finite"),
        ({"sae": BatchTopKConfig(k=0)}, GossamerError, "k must be a whole number of at least 1"),
        ({"sae": BatchTopKConfig(k=1, threshold_decay=1.0)}, GossamerError, "below 1, got 1.0"),
        ({"sae": JumpReLUConfig(bandwidth=0.0)}, GossamerError, "bandwidth must be .* above 0"),
        ({"sae": JumpReLUConfig(start_threshold=-0.1)}, GossamerError, "start_threshold must"),
        ({"sae": JumpReLUConfig(tanh_scale=float("nan"))}, GossamerError, "tanh_scale must"),
        ({"sae": JumpReLUConfig(dead_weight=-1.0)}, GossamerError, "dead_weight must"),
        ({"sae": JumpReLUConfig(penalty="target")}, GossamerError, "target_l0 is given with"),
        ({"sae": JumpReLUConfig(target_l0=3.0)}, GossamerError, "target_l0 is given with"),
        ({"sae": ReLUConfig(norm="unit"), "site_out": OTHER}, GossamerError, "norms are free"),
        ({"n_tokens": 44.5}, GossamerError, "n_tokens must be a whole number .* got 44.5"),
        ({"n_tokens": float("nan")}, GossamerError, "n_tokens must be .* got nan"),
        ({"n_tokens": float("inf")}, GossamerError, "n_tokens must be .* got inf"),
        ({"batch_tokens": 0}, GossamerError, "batch_tokens must be"),
        ({"seed": -1}, GossamerError, "seed must be .* at least 0 and at most 4294967295"),
    ],
)
def test_mistakes_end_in_one_sentence(options: Any, error: Any, message: str) -> None:
    source = Rows({SITE: torch.randn(30, D_IN), OTHER: torch.randn(30, D_OUT)})
    settings: dict[str, Any] = {"sae": TopKConfig(k=1), "d_sae": D_SAE, "n_tokens": 44}
    with pytest.raises(error, match=message):
        train(TrainConfig(**{**settings, "site": SITE, **options}), source)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        *((OptimizerConfig, "rate", v) for v in (0.0, -1.0, float("nan"), float("inf"))),
        *((OptimizerConfig, "betas", v) for v in ((0.9, 1.0), (float("nan"), 0.5))),
        *((OptimizerConfig, "epsilon", v) for v in (0.0, float("nan"))),
        *((OptimizerConfig, "warmup_steps", v) for v in (-1,)),
        *((OptimizerConfig, "decay", v) for v in (-0.1, 1.1, float("nan"))),
        *((OptimizerConfig, "clip", v) for v in (0.0, float("nan"))),
        *((DeadConfig, name, 0) for name in ("after_tokens", "k_aux", "resample_tokens")),
        *((DeadConfig, "aux_weight", v) for v in (-1.0, float("nan"))),
        (StartConfig, "n_tokens", 0),
        *((RunConfig, "checkpoint_seconds", v) for v in (-1.0, float("nan"))),
        *((RunConfig, name, 0) for name in ("keep", "log_steps")),
    ],
)
def test_numbers_out_of_range_are_named(config: Any, field: str, value: Any) -> None:
    with pytest.raises(GossamerError, match=f"{field}.* must be .* got"):
        config(**{field: value})


def test_two_million_may_be_written_as_2e6() -> None:
    config = config_for(TopKConfig(k=1), "autoencoder", n_tokens=2e6)
    assert config.n_steps == -(-2_000_000 // 11)
    config = config_for(TopKConfig(k=1), "autoencoder", n_tokens=44.0)
    assert len(train(config, Rows({SITE: torch.randn(30, D_IN)})).history) == 1


def test_a_device_that_is_not_there_is_named() -> None:
    config = config_for(TopKConfig(k=1), "autoencoder")
    for device in ("cuda:77", "gpu", "meta"):
        with pytest.raises(GossamerError, match=f'no device "{device}"'):
            train(config, Rows({SITE: torch.randn(30, D_IN)}), device=device)


def test_configs_of_one_pass_must_fit_each_other() -> None:
    source = Rows({SITE: torch.randn(30, D_IN)})
    configs = [config_for(TopKConfig(k=1), "autoencoder", batch_tokens=size) for size in (11, 22)]
    with pytest.raises(GossamerError, match="one n_tokens and one batch_tokens"):
        train(configs, source)
    with pytest.raises(GossamerError, match="nothing to train"):
        train([], source)
