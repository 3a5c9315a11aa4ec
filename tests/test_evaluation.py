"""Report cards against plain loops over `gossamer.run`, and against what they must be by law."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import gossamer
from gossamer.cli import cli
from gossamer.errors import DiskError, GossamerError
from gossamer.evaluation import Card, evaluate
from gossamer.evaluation.weights import decoder_neighbours, direct_logits, round_trip
from gossamer.metrics import density_histogram
from gossamer.models.model import Model
from gossamer.saes import SAE, ReLU
from tests.small_disk import fill, small_disk
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_saes import ARCHITECTURES, OwnSAE, plain_latents, tiny_sae

SITE = "blocks.1.hook_resid_pre"
IDS = [[int(t) for t in torch.randint(1, 37, (n,), generator=torch.Generator().manual_seed(n))]
       for n in (9, 6, 12)]  # fmt: skip


def plain(model: Model, sae: Any) -> dict[str, float]:
    """The card's numbers by one loop over documents, tokens and runs."""
    ys, guesses, latents = [], [], []
    for ids in IDS:
        seen = gossamer.run(model, [ids], record=[sae.site_in, sae.site_out], logits=False)
        x, y = (seen.activations[site][0].flatten(1) for site in (sae.site_in, sae.site_out))
        a = sae.encode(x)
        ys.append(y)
        guesses.append(sae.decode(a, x))
        latents.append(a)
    y, guess, a = torch.cat(ys), torch.cat(guesses), torch.cat(latents)
    mean = y.mean(0)
    by_head = mean.reshape(seen.activations[sae.site_out].shape[2:])
    steer = [gossamer.Ablate(sae.site_out), gossamer.Steer(sae.site_out, direction=by_head)]
    kinds = {
        "clean": {},
        "patched": {"saes": sae, "error": "dropped"},
        "zero": {"edits": steer[:1]},
        "mean": {"edits": steer},
    }
    log_p: dict[str, Tensor] = {}
    nats: dict[str, float] = {}
    for kind, arguments in kinds.items():
        rows, losses = [], []
        for ids in IDS:
            logits = gossamer.run(model, [ids], **arguments).logits
            assert logits is not None
            row = logits[0, :-1].log_softmax(-1)
            rows.append(row)
            losses.append(-row[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])
        log_p[kind], nats[kind] = torch.cat(rows), torch.cat(losses).mean().item()
    p = log_p["clean"].exp()
    same = log_p["clean"].argmax(1) == log_p["patched"].argmax(1)
    fvu = ((y - guess).square().sum() / (y - mean).square().sum()).item()
    return {
        "mse": (y - guess).square().sum(1).mean().item(),
        "mse_per_dim": (y - guess).square().mean().item(),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "cosine": torch.cosine_similarity(y, guess, dim=1).mean().item(),
        "l2_ratio": (guess.norm(dim=1) / y.norm(dim=1)).mean().item(),
        "error_ratio": ((y - guess).norm(dim=1) / y.norm(dim=1)).mean().item(),
        "reconstruction_bias": (guess.square().sum() / (y * guess).sum()).item(),
        "l0": (a != 0).sum(1).double().mean().item(),
        "l1": a.abs().sum(1).mean().item(),
        "dead_fraction": (~(a != 0).any(0)).double().mean().item(),
        "ce_clean": nats["clean"],
        "ce_patched": nats["patched"],
        "ce_zero_ablated": nats["zero"],
        "ce_mean_ablated": nats["mean"],
        "ce_increase": nats["patched"] - nats["clean"],
        "ce_recovered_zero": (nats["zero"] - nats["patched"]) / (nats["zero"] - nats["clean"]),
        "ce_recovered_mean": (nats["mean"] - nats["patched"]) / (nats["mean"] - nats["clean"]),
        "kl": (p * (log_p["clean"] - log_p["patched"])).sum(1).mean().item(),
        "kl_zero_ablated": (p * (log_p["clean"] - log_p["zero"])).sum(1).mean().item(),
        "kl_mean_ablated": (p * (log_p["clean"] - log_p["mean"])).sum(1).mean().item(),
        "top1_agreement": same.double().mean().item(),
    }


def card_of(model: Model, sae: Any, **options: Any) -> Card:
    n = sum(map(len, IDS))
    return evaluate(model, sae, IDS, n_tokens=n, **options)[sae.site_out]


def agree(card: Card, expected: dict[str, float]) -> None:
    found = card.numbers()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-11), name


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_number_is_the_plain_loops(family: str) -> None:
    model = tiny_model(family)
    for architecture in ARCHITECTURES if family == "gpt2" else ("topk",):
        sae = tiny_sae(architecture, SITE, 16)
        agree(card_of(model, sae, batch=2), plain(model, sae))


@pytest.mark.parametrize("skip", [False, True])
@torch.no_grad()
def test_a_transcoder_is_scored_where_it_writes(skip: bool) -> None:
    model = tiny_model("llama")
    out = "blocks.1.hook_mlp_out"
    sae = tiny_sae("topk", "blocks.1.mlp.hook_in", 16, site_out=out, skip=skip)
    card = card_of(model, sae)
    agree(card, plain(model, sae))
    assert card.linear_round_trip is None


@torch.no_grad()
def test_heads_lie_side_by_side_and_own_classes_are_welcome() -> None:
    model = tiny_model("gpt2")
    for sae in (tiny_sae("topk", "blocks.0.attn.hook_z", 16), OwnSAE(SITE, 16)):
        agree(card_of(model, sae), plain(model, sae))


@torch.no_grad()
def test_batches_and_blocks_do_not_matter() -> None:
    model, sae = tiny_model("qwen3"), tiny_sae("jumprelu", SITE, 16)
    first = card_of(model, sae, batch=1)
    agree(card_of(model, sae, batch=3), {k: v for k, v in first.numbers().items() if v is not None})
    n = first.by_position["tokens"]
    assert n.tolist()[:13] == [3] * 6 + [2] * 3 + [1] * 3 + [0]
    mse = first.by_position["mse"]
    assert ((n * mse.nan_to_num()).sum() / n.sum()).item() == pytest.approx(first.mse)
    predicted = first.by_position["predicted"]
    for name in ("ce_clean", "ce_patched", "kl"):
        whole = (predicted * first.by_position[name].nan_to_num()).sum() / predicted.sum()
        assert whole.item() == pytest.approx(getattr(first, name))


class Constant:
    """Reads anything and writes one vector, or what it read."""

    def __init__(self, vector: Tensor | None) -> None:
        self.site_in = self.site_out = SITE
        self.vector = vector

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, latents: Tensor, x: Any = None) -> Tensor:
        return latents if self.vector is None else self.vector.expand_as(latents)


@torch.no_grad()
def test_what_copies_costs_nothing_and_what_writes_zero_is_zero_ablation() -> None:
    model = tiny_model("gpt2")
    same = card_of(model, Constant(None))
    assert (same.ce_increase, same.kl, same.fvu, same.top1_agreement) == (0, 0, 0, 1)
    assert same.ce_recovered_zero == same.ce_recovered_mean == 1
    zero = card_of(model, Constant(torch.zeros(16, dtype=torch.float64)))
    assert zero.ce_patched == zero.ce_zero_ablated and zero.kl == zero.kl_zero_ablated
    assert zero.reconstruction_bias is None


@torch.no_grad()
def test_bos_is_neither_replaced_nor_scored() -> None:
    """Against runs that edit every position but the first."""
    model = gossamer.load_model("pico-python")
    text, site = "def f(x):\n    return x + 1\n", "blocks.2.hook_resid_pre"
    sae = gossamer.load_saes("pico-python")[site]
    ids = model.tokenize(text)
    card = evaluate(model, sae, [text], n_tokens=len(ids) - 1)[site]
    logits = gossamer.run(model, text, edits=[gossamer.Ablate(site, positions=range(1, len(ids)))])
    assert logits.logits is not None
    log_p = logits.logits[0, 1:-1].log_softmax(-1)
    expected = -log_p[torch.arange(len(ids) - 2), torch.tensor(ids[2:])].mean().item()
    assert card.ce_zero_ablated == pytest.approx(expected, rel=1e-5)
    assert card.by_position["tokens"][:2].tolist() == [0, 1]


def test_round_trips_are_those_of_the_whole_matrix() -> None:
    for architecture in ("relu", "topk", "gated", "jumprelu"):
        sae = tiny_sae(architecture, SITE, 16)
        gain = sae.selection.gain()
        read = sae.W_enc if gain is None else sae.W_enc * gain[:, None]
        one_hot = torch.eye(sae.d_sae, dtype=torch.float64)
        whole = {
            "linear": sae.W_dec @ read.T,
            "active": plain_latents(sae, one_hot @ sae.W_dec + sae.b_dec),
        }
        for kind, g in whole.items():
            found = round_trip(sae, "linear" if kind == "linear" else "active")
            assert found is not None
            for i in range(sae.d_sae):
                others = torch.cat([g[i, :i], g[i, i + 1 :]]).abs()
                expected = (
                    g[i, i] / others.max(),
                    g[i, i] / others.mean(),
                    g[i, i] ** 2 / others.square().sum(),
                )
                for ratios, value in zip(found, expected, strict=True):
                    torch.testing.assert_close(ratios[i], value.detach(), equal_nan=True)


def test_an_orthonormal_dictionary_answers_only_itself() -> None:
    eye = torch.eye(6)
    zeros = torch.zeros(6)
    sae = SAE(W_enc=eye, b_enc=zeros, W_dec=eye, b_dec=zeros, selection=ReLU(), site_in=SITE)
    for kind in ("linear", "active"):
        found = round_trip(sae, kind)
        assert found is not None and all(ratios.isinf().all() for ratios in found)
    cosines, _ = decoder_neighbours(sae, torch.arange(6), 2)
    assert cosines.shape == (6, 2) and cosines.abs().max() == 0


LINEAR = ["hook_resid_pre", "hook_resid_post", "hook_mlp_out", "hook_attn_out", "mlp.hook_post",
          "attn.hook_z"]  # fmt: skip


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
def test_logit_effects_are_the_derivative_past_the_last_norm(family: str) -> None:
    """Pushed through the model with the norms' scales held and all later blocks passed by."""
    model = tiny_model(family)
    last = f"blocks.{model.n_layers - 1}"
    scales: dict[str, Tensor] = {}
    for kind in LINEAR:
        site = f"{last}.{kind}"
        effects = direct_logits(model, site)
        if kind in ("mlp.hook_post", "attn.hook_z") and family == "gemma3":
            assert effects is None
            continue
        assert effects is not None
        if kind in ("hook_resid_pre", "hook_attn_out", "attn.hook_z"):
            continue  # the last block's MLP reads these as well
        width = model.width(site)
        row = torch.randn(width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

        def logits(size: Tensor, site: str = site, row: Tensor = row) -> Tensor:
            def add(value: Tensor) -> Tensor:
                return value + (size * row).reshape(value.shape[2:])

            def hold(value: Tensor) -> Tensor:
                scales["last"] = value.detach()
                return value.detach()

            out = model.forward(model.batch([IDS[0]]), {site: add, "ln_final.hook_scale": hold})
            assert out is not None
            return out[0, -1]

        slope = torch.autograd.functional.jacobian(logits, torch.zeros((), dtype=torch.float64))
        assert isinstance(slope, Tensor)
        found = effects(row[None])[0] / scales["last"].flatten()[-1]
        torch.testing.assert_close(found, slope - slope.mean())


def test_densities_fall_into_their_bins() -> None:
    counts, never = density_histogram(torch.tensor([0.0, 1.0, 0.5, 1e-9, 1e-12, 0.09]))
    assert never == 1 and counts.sum() == 5
    assert counts[35] == 1 and counts[34] == 1 and counts[0] == 2  # 1.0; 0.5; the two smallest
    assert counts[math.floor((math.log10(0.09) + 9) * 4)] == 1


def test_mistakes_are_said() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", SITE, 16)
    with pytest.raises(GossamerError, match="27 tokens that count, 28 were asked"):
        evaluate(model, sae, IDS, n_tokens=28)
    with pytest.raises(GossamerError, match="at least one SAE"):
        evaluate(model, [], IDS)
    with pytest.raises(GossamerError, match="at least two tokens"):
        evaluate(model, sae, IDS, n_tokens=1)


@pytest.mark.browser
def test_the_command_prints_saves_and_draws(tmp_path: Path) -> None:
    site = "blocks.2.hook_resid_pre"
    page, saved = tmp_path / "card.html", tmp_path / "card.json"
    arguments = [
        "evaluate",
        "--tokens",
        "1500",
        "--site",
        site,
        "--prompt",
        "def f(x):\\n    return",
    ]
    done = CliRunner().invoke(
        cli,
        [*arguments, "--html", str(page), "--save", str(saved), "--json"],
        catch_exceptions=False,
    )
    report = json.loads(done.stdout)
    assert report["corpus"] == "stdlib/held_out" and report["n_tokens"] >= 1500
    assert 0.9 < report["saes"][site]["ce_recovered_zero"] <= 1
    whole = json.loads(saved.read_text())
    assert len(whole["saes"][site]["latents"]["density"]) == 2048
    assert report["next_tokens"][0]["prompt"].count("\n") == 1
    assert page.read_text().startswith("<!doctype html>")
    table = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
    assert "ce_recovered_zero" in table and "with the SAE" in table
    wrong = CliRunner().invoke(cli, ["evaluate", "--site", "nowhere"])
    assert "No SAE in pico-python writes nowhere" in str(wrong.exception)


def test_what_would_fail_at_the_end_fails_at_the_start(tmp_path: Path) -> None:
    for arguments, words in (
        (["--html", str(tmp_path / "none" / "card.html")], "cannot be written"),
        (["--save", str(tmp_path)], "cannot be written"),
        *((["--tokens", text], "whole number from 1 on") for text in ("nan", "inf", "-5", "0")),
        (["--context", "0"], "not in the range"),
    ):
        done = CliRunner().invoke(cli, ["evaluate", *arguments])
        assert done.exit_code == 2 and words in done.output, arguments
    for arguments, words in (
        (["--prompt", ""], "--prompt is empty"),
        (["--context", "2"], "BOS and one token.*give 3 to"),
        (["--dashboard", str(tmp_path / "none")], "write that as well"),
        (["--corpus", str(tmp_path / "none")], "There is no corpus"),
    ):
        done = CliRunner().invoke(cli, ["evaluate", "--tokens", "9", *arguments])
        assert re.search(words, str(done.exception)), arguments
    model, sae = tiny_model("gpt2"), tiny_sae("topk", SITE, 16)
    with pytest.raises(GossamerError, match="has no tokens"):
        evaluate(model, sae, [[]], n_tokens=28)


def test_padding_counts_for_nothing_in_any_pass() -> None:
    """The card of padded rows is that of the rows without it."""

    class Padding:
        bos_token_id, pad_token_id = None, 36

        def decode(self, ids: list[int]) -> str:
            return str(ids)

    sae = tiny_sae("topk", SITE, 16)
    model = Model(tiny_model("gpt2").language_model, Padding())
    rows = torch.full((3, 16), 36)
    documents = [[token % 36 for token in ids] for ids in IDS]
    for row, ids in zip(rows, documents, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    n = sum(map(len, documents))
    plain_card = evaluate(model, sae, documents, n_tokens=n)[SITE]
    agree(evaluate(model, sae, rows, n_tokens=n)[SITE], plain_card.numbers())
    boards = [gossamer.dashboard(model, sae, what) for what in (documents, rows)]
    assert torch.equal(boards[0].firings, boards[1].firings)


def test_a_sweep_says_which_and_takes_one(tmp_path: Path) -> None:
    site = "blocks.2.hook_resid_pre"
    sae = gossamer.load_sae(f"pico-python/resid/{site}")
    for folder in (f"00-{site}", f"01-{site}"):
        sae.save(tmp_path / "sweep" / folder)
    arguments = ["evaluate", "--tokens", "300", "--json", "--saes"]
    both = CliRunner().invoke(cli, [*arguments, str(tmp_path / "sweep")])
    assert re.search(rf"Two SAEs .* write {site}; .*one by one: .*00-{site}, ", str(both.exception))
    one = CliRunner().invoke(
        cli, [*arguments, str(tmp_path / "sweep" / f"00-{site}"), "--no-prepend-bos"]
    )
    assert one.exit_code == 0 or "prepend_bos" in str(one.exception)
    one = CliRunner().invoke(cli, [*arguments, str(tmp_path / "sweep" / f"00-{site}")])
    assert list(json.loads(one.stdout)["saes"]) == [site]


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    report = evaluate(tiny_model("gpt2"), tiny_sae("topk", SITE, 16), IDS, n_tokens=27)
    with small_disk(tmp_path / "disk", 64) as disk:
        fill(disk)
        for write in (report.to_json, report.to_html):
            with pytest.raises(DiskError, match="could not be written: the disk is full"):
                write(disk / "report")
        assert [file.name for file in disk.iterdir()] == ["taken"]
