"""Jacobian pairs: their loss has the gradient of dense double autograd, and does what it is for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer
from gossamer.errors import GossamerError
from gossamer.jacobian import products
from gossamer.training.joint import Joint, jacobian_term, penalty
from gossamer.training.start import first_look, new_trainee
from gossamer.training.step import outcome
from tests.plain_jacobian import plain_mlp, plain_norm
from tests.tiny_models import tiny_model
from tests.tiny_training import Rows

L = 1
IN, NORMALIZED = f"blocks.{L}.mlp.hook_in", f"blocks.{L}.ln2.hook_normalized"
OUT = f"blocks.{L}.hook_mlp_out"
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def rows_of(family: str, n: int = 400, dtype: torch.dtype = torch.float64) -> Rows:
    """Real activations of a tiny model before and after its MLP."""
    model = tiny_model(family, dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 37, (n // 25, 25), generator=generator).tolist()
    with torch.no_grad():
        seen = gossamer.run(model, ids, record=[IN, NORMALIZED, OUT], logits=False).activations
    return Rows({site: value.flatten(0, 1) for site, value in seen.items()})


def config(**changes: Any) -> gossamer.JacobianConfig:
    each = gossamer.TrainConfig(
        sae=gossamer.TopKConfig(k=3),
        d_sae=24,
        n_tokens=changes.pop("n_tokens", 1600),
        batch_tokens=32,
        optimizer=gossamer.OptimizerConfig(rate=3e-3),
        start=gossamer.StartConfig(n_tokens=200),
    )
    return gossamer.JacobianConfig(
        each=each, **{"layer": L, "weight": 0.5, "warmup": 0.0} | changes
    )


@pytest.mark.parametrize("sharing", [False, True])
@pytest.mark.parametrize("kind", ["l1", "root", "log", "tanh", "capped", "normalized"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_term_and_its_gradient_equal_dense_double_autograd(
    family: str, kind: str, sharing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "sharing_pays", lambda *_, **__: sharing)
    check_term(family, config(penalty=kind, size=0.1), IN)


@pytest.mark.parametrize(("family", "site"), [("gemma2", IN), ("gpt2", NORMALIZED)])
def test_with_norms_on_the_way(family: str, site: str) -> None:
    check_term(family, config(site=site), site)


def test_over_a_share_of_the_tokens() -> None:
    check_term("gpt2", config(share=0.25), IN)


def check_term(family: str, settings: gossamer.JacobianConfig, site: str) -> None:
    model, source = tiny_model(family), rows_of(family)
    joint = Joint.of(settings, source, model)
    configs = settings.members()
    looks = first_look(source.batches(32, seed=0), [site, OUT], 200)
    trainees = [new_trainee(each, looks) for each in configs]
    batch = next(source.batches(12, seed=1))
    step = 5
    outcomes = [
        outcome(each, trainee, batch[str(each.site)], batch[str(each.site)], step=step)
        for each, trainee in zip(configs, trainees, strict=True)
    ]
    term = jacobian_term(joint, trainees, outcomes, batch, step=step)
    weights = (trainees[0].W_dec, trainees[1].W_enc)
    got = torch.autograd.grad(term, weights)

    tokens = range(12)
    if settings.share < 1:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randperm(12, generator=generator)[:3].sort().values.tolist()
    blocks = torch.stack([plain_block(model, site, trainees, batch, t, looks) for t in tokens])
    plain = settings.weight * 16 * plain_penalty(blocks, settings.penalty)
    torch.testing.assert_close(term, plain, **CLOSE)
    for ours, theirs in zip(got, torch.autograd.grad(plain, weights), strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs, **CLOSE)


def plain_block(
    model: Any, site: str, trainees: Any, batch: dict[str, Tensor], t: int, looks: Any
) -> Tensor:
    """The k × k Jacobian of one token in the units of training, by autograd through everything."""
    first, second = trainees
    adapter, part = model.layout.adapter, lambda path: model.layout.part(L, path)
    x, y = batch[site][t], batch[OUT][t]
    s_in, s_out = looks[site].scale, looks[OUT].scale
    pre_in = (x * s_in - first.b_dec.detach()) @ first.W_enc.T + first.b_enc
    pre_out = (y * s_out - second.b_dec.detach()) @ second.W_enc.T + second.b_enc
    i, j = pre_in.topk(3).indices, pre_out.topk(3).indices

    def value(f: Tensor) -> Tensor:
        moved = x + (f @ first.W_dec[i]) / s_in
        if site == NORMALIZED:
            module = part(adapter.ln2)
            moved = moved * (adapter.gain_offset + module.weight) + module.bias
        out = plain_mlp(model, L, moved)
        if adapter.ln2_post is not None:
            _, out = plain_norm(part(adapter.ln2_post), out, adapter.gain_offset, False)
        return (s_out * out) @ second.W_enc[j].T

    block = torch.autograd.functional.jacobian(
        value, torch.zeros(3, dtype=torch.float64), create_graph=True
    )
    # Entries in the order of latents do not matter to a mean; clipped ones count for nothing.
    return block * (pre_out[j] > 0)[:, None] * (pre_in[i] > 0)


def plain_penalty(blocks: Tensor, kind: str) -> Tensor:
    d = 0.1
    size = blocks.abs()
    match kind:
        case "root":
            return (2 * d**0.5 * ((size + d) ** 0.5 - d**0.5)).mean()
        case "log":
            return (d * torch.log(1 + size / d)).mean()
        case "tanh":
            return (d * torch.tanh(size / d)).mean()
        case "capped":
            return torch.minimum(size, size.new_tensor(d)).mean()
        case "normalized":
            norms = [b.abs().sum() / (b.square().sum() ** 0.5 * 3) for b in blocks]
            return torch.stack(norms).mean()
    return size.mean()


def test_small_entries_cost_the_same_under_every_penalty() -> None:
    entries = 1e-6 * torch.randn(4, 3, 3, dtype=torch.float64)
    for kind in ("root", "log", "tanh", "capped"):
        torch.testing.assert_close(
            penalty(entries, kind, 0.1), penalty(entries, "l1", 0.1), rtol=1e-4, atol=0.0
        )
    larger = penalty(10 * entries, "normalized", 0.1)
    torch.testing.assert_close(larger, penalty(entries, "normalized", 0.1))
    assert penalty(torch.zeros(2, 3, 3), "normalized", 0.1) == 0


def test_a_pair_trains_to_a_sparser_jacobian_and_says_what_it_is(tmp_path: Path) -> None:
    model, source = tiny_model("gpt2", torch.float32), rows_of("gpt2", 2000, torch.float32)
    entries = {}
    for weight in (0.0, 2.0):
        settings = config(weight=weight, n_tokens=8_000)
        directory = tmp_path / str(weight)
        results = gossamer.train(settings, source, model=model, directory=directory)
        saes = gossamer.load_saes(directory)
        assert set(saes) == {IN, OUT} == {result.sae.site_out for result in results}
        found = gossamer.mlp_jacobian(model, L, saes[IN], saes[OUT], [3, 1, 4, 15, 9, 2, 6] * 4)
        entries[weight] = found.density([0.05])[0].entries
        last = results[1].history[-1]
        assert ("loss_jacobian" in last) == (weight > 0)
        assert results[0].sae.metadata["source"]["jacobian"]["weight"] == weight
    assert entries[2.0] < 0.7 * entries[0.0]


@pytest.mark.parametrize("multiply_in", ["float32", "bfloat16"])
def test_a_stopped_pair_goes_on_bit_for_bit(tmp_path: Path, multiply_in: Any) -> None:
    model, source = tiny_model("gpt2", torch.float32), rows_of("gpt2", 400, torch.float32)
    settings = config(n_tokens=640, share=0.5, multiply_in=multiply_in)
    whole = gossamer.train(settings, source, model=model)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 10:
            raise KeyboardInterrupt

    often = gossamer.RunConfig(checkpoint_seconds=0.0, log_steps=5)
    with pytest.raises(KeyboardInterrupt):
        gossamer.train(
            settings, source, model=model, directory=tmp_path / "run", callbacks=[stop], run=often
        )
    resumed = gossamer.train(settings, source, model=model, directory=tmp_path / "run", run=often)
    for one, other in zip(whole, resumed, strict=True):
        for name, tensor in one.sae.named_buffers():
            assert torch.equal(tensor, other.sae.get_buffer(name)), name
    products_in: Any = {"float32": "bfloat16", "bfloat16": "float32"}[multiply_in]
    for other in (replace(settings, weight=0.25), replace(settings, multiply_in=products_in)):
        with pytest.raises(GossamerError, match="jacobian"):
            gossamer.train(other, source, model=model, directory=tmp_path / "run")


@pytest.mark.parametrize(("family", "site"), [("gpt2", IN), ("gemma2", NORMALIZED)])
def test_products_in_half_precision_give_nearly_the_same_gradient(family: str, site: str) -> None:
    model, source = tiny_model(family, torch.float32), rows_of(family, dtype=torch.float32)
    settings = config(site=site)
    configs = settings.members()
    looks = first_look(source.batches(32, seed=0), [site, OUT], 200)
    trainees = [new_trainee(each, looks) for each in configs]
    batch = next(source.batches(128, seed=1))
    found = []
    for multiply_in in ("float32", "bfloat16"):
        outcomes = [
            outcome(each, trainee, batch[str(each.site)], batch[str(each.site)], step=1)
            for each, trainee in zip(configs, trainees, strict=True)
        ]
        joint = Joint.of(replace(settings, multiply_in=multiply_in), source, model)
        term = jacobian_term(joint, trainees, outcomes, batch, step=1)
        found.append(torch.autograd.grad(term, (trainees[0].W_dec, trainees[1].W_enc)))
    for full, half in zip(*found, strict=True):
        assert half.dtype == torch.float32
        # |J| has a kink at 0, and half precision can put a tiny entry on its other side.
        assert 0 < (half - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_may_have_another_type_than_the_activations(dtype: torch.dtype) -> None:
    source = rows_of("llama", 200, torch.float32)
    results = gossamer.train(config(n_tokens=96), source, model=tiny_model("llama", dtype))
    assert results[1].history[-1]["loss_jacobian"] > 0


def test_weight_zero_is_two_saes_trained_apart() -> None:
    model, source = tiny_model("gpt2", torch.float32), rows_of("gpt2", 400, torch.float32)
    settings = config(weight=0.0, n_tokens=640)
    together = gossamer.train(settings, source, model=model)
    apart = gossamer.train(settings.members(), source)
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one.sae.W_dec, other.sae.W_dec)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight": -1.0}, "weight"),
        ({"share": 0.0}, "share=0"),
        ({"warmup": 2.0}, "warmup"),
        ({"site": "blocks.1.hook_resid_mid"}, "a pair is trained at".capitalize()),
        ({"layer": 7}, "layer is a block"),
    ],
)
def test_mistakes_are_sentences(changes: dict[str, Any], says: str) -> None:
    source = rows_of("gpt2", 50)
    with pytest.raises(GossamerError, match=says):
        gossamer.train(config(**changes), source, model=tiny_model("gpt2"))
    with pytest.raises(GossamerError, match="needs the model"):
        gossamer.train(config(), source)


def test_the_command_line_trains_a_pair(tmp_path: Path, capsys: Any) -> None:
    from gossamer.cli import cli

    out = tmp_path / "pair"
    command = [
        *("train", "--sae", "jacobian", "--layer", "1", "--d-sae", "64", "--k", "4"),
        *("--model", "pico-python", "--tokens", "3000", "--batch", "500", "--context", "64"),
    ]
    cli(
        [*command, "--out", str(out), "--jacobian-share", "0.5", "--jacobian-bfloat16"],
        standalone_mode=False,
    )
    assert set(gossamer.load_saes(out)) == {IN, OUT}
    source = gossamer.load_saes(out)[OUT].metadata["source"]["jacobian"]
    assert source["weight"] == 4**2 / (2 * 128) and source["share"] == 0.5
    assert source["multiply_in"] == "bfloat16"
    rest = ["--sae", "jacobian", "--d-sae", "64", "--k", "4", "--out", str(tmp_path / "x")]
    for wrong, says in (
        (["train", *rest, "--model", "pico-python"], "needs --model"),
        (["train", *rest, "--layer", "1", "--from", str(out)], "needs --model"),
        (["train", *rest[:4], "--layer", "1", "--model", "pico-python", "--out", "y"], "needs --k"),
        ([*command, "--site-out", OUT, "--out", str(tmp_path / "x")], "no --site-out"),
        ([*command, "--k", "8", "--out", str(tmp_path / "x")], "has one --k"),
        (
            ["train", "--d-sae", "64", "--k", "4", "--layer", "1", "--from", "x", "--out", "y"],
            "--layer is for jacobian",
        ),
    ):
        with pytest.raises(GossamerError, match=says):
            cli(wrong, standalone_mode=False)
