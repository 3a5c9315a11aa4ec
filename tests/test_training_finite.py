"""Activations, gradients and weights that are not finite stop a run and leave good checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gossamer.errors import GossamerError
from gossamer.training.checkpoints import checkpoints
from gossamer.training.config import (
    OptimizerConfig,
)
from gossamer.training.loop import train
from gossamer.training.trainee import Trainee
from tests.test_training_resume import (
    ARCHITECTURES,
    EVERY_STEP,
    bits,
    rows,
    settings,
)
from tests.tiny_training import OTHER, SITE, Rows

REFUSED = (("panneal", "transcoder"),)
"""What is not trained."""


@pytest.mark.parametrize(
    ("name", "kind", "where"),
    [
        (name, kind, where)
        for name in ARCHITECTURES
        for kind, where in (("autoencoder", "in"), ("transcoder", "in"), ("transcoder", "out"))
        if (name, kind) not in REFUSED
    ],
)
def test_a_batch_that_is_not_finite_stops_the_run(
    name: str, where: str, kind: str, tmp_path: Path
) -> None:
    x = rows().tensors[SITE]
    pair = {SITE: x, OTHER: x[:, :9].square()}
    bad = SITE if where == "in" else OTHER
    config = settings(name, site=SITE, site_out=OTHER if kind == "transcoder" else None)
    message = rf"activations of {bad} in the batch of step 10 .*step-00000010"
    with pytest.raises(GossamerError, match=message):
        train(config, Rows(pair, bad_step=10, bad_site=bad), directory=tmp_path, run=EVERY_STEP)
    assert not (tmp_path / "sae.json").exists()
    resumed = train(config, Rows(pair), directory=tmp_path, run=EVERY_STEP)
    straight = train(config, Rows(pair))
    assert all(torch.equal(t, bits(resumed.sae)[n]) for n, t in bits(straight.sae).items())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in ARCHITECTURES
        for kind in ("autoencoder", "transcoder")
        if (name, kind) not in REFUSED
    ],
)
def test_a_gradient_that_is_not_finite_stops_the_run(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a finite loss of finite activations, with the gradient unclipped."""
    config = settings(name, site=SITE, site_out=OTHER if kind == "transcoder" else None)
    config = replace(config, optimizer=OptimizerConfig(rate=1e-3, clip=None))
    real = Trainee.constrain_gradient_
    calls = iter(range(1000))

    def poisoned(trainee: Trainee) -> None:
        real(trainee)
        if next(calls) == 7 and trainee.b_dec.grad is not None:
            trainee.b_dec.grad[0] = float("nan")

    monkeypatch.setattr(Trainee, "constrain_gradient_", poisoned)
    x = rows().tensors[SITE]
    source = Rows({SITE: x, OTHER: x[:, :9].square()})
    with pytest.raises(GossamerError, match=r"At step 7 .*weights have run away.*step-00000007"):
        train(config, source, directory=tmp_path, run=EVERY_STEP)
    tensors = load_file(checkpoints(tmp_path)[-1])
    assert all(torch.isfinite(tensor.double()).all() for tensor in tensors.values())


def test_no_checkpoint_has_weights_that_are_not_finite(tmp_path: Path) -> None:
    """The last step before they are noticed by their loss."""
    optimizer = OptimizerConfig(rate=1e38, warmup_steps=0, clip=None)
    with pytest.raises(GossamerError, match=r"At step \d+ .*weights have run away"):
        config = replace(settings("relu"), optimizer=optimizer)
        train(config, rows(), directory=tmp_path, run=EVERY_STEP)
    for path in checkpoints(tmp_path):
        tensors = load_file(path)
        assert all(torch.isfinite(t).all() for n, t in tensors.items() if "adam" not in n)
