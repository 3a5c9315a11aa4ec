"""The shipped assets are whole: they load, fit, and measure what their card says.

Manifest and card come from the recipe; here a small part of the held-out text is run again and
compared with them, with bounds wide enough for the choice of files. Held-out text comes from the
interpreter's own standard library, whose files may differ from those of the recipe's version.
"""

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

import gossamer
from gossamer.corpus import split_stdlib
from gossamer.edits import Ablate
from gossamer.library import assets
from gossamer.models.model import Model
from gossamer.saes import SAE
from gossamer.splice import run

FOLDER = assets() / "pico-python"
MAX_BYTES = 18 * 2**20
SITES = (*(f"blocks.{layer}.hook_resid_pre" for layer in range(4)), "blocks.3.hook_resid_post")
TRANSCODED = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(4))
PAIR = ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")
SETS = {"resid": SITES, "transcoders": TRANSCODED, "jacobian": PAIR}
MEMBERS = tuple(f"{name}/{site}" for name, sites in SETS.items() for site in sites)
BAR_ADDED = 0.03  # nats that a transcoder may add to the loss
BAR_BITS_PER_BYTE = 1.22
BAR_RECOVERED = 0.95


@functools.cache
def manifest() -> dict[str, Any]:
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


@functools.cache
def model() -> Model:
    return gossamer.load_model("pico-python")


@functools.cache
def saes() -> dict[str, SAE]:
    """By set and site."""
    found = {}
    for name in SETS:
        for site, sae in gossamer.load_saes(f"pico-python/{name}").items():
            assert isinstance(sae, SAE)
            found[f"{name}/{site}"] = sae
    return found


def of(table: dict[str, Any], member: str) -> Any:
    """What a table of the manifest, by set and site, says of an SAE."""
    name, site = member.split("/")
    return table[name][site]


@functools.cache
def held_out_texts() -> tuple[str, ...]:
    """The first 1000 bytes or so of some held-out files: every third, in order of path."""
    _, held_out = split_stdlib(FOLDER / "manifest.json")
    return tuple(file.text[:1000] for file in held_out[::3])


def nats(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], mask: Tensor
) -> Float[Tensor, " predicted"]:
    """Loss of every real token but the first of each prompt."""
    log_p = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None].long())[..., 0]
    return -log_p[mask[:, 1:]]


def test_the_assets_fit_in_their_bound_and_are_what_the_manifest_lists() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    listed = manifest()["sha256"]
    found = {file.relative_to(FOLDER).as_posix() for file in files}
    assert found == {*listed, "manifest.json", "README.md"}
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name


def test_no_held_out_file_was_trained_on() -> None:
    training, held_out = manifest()["training"], manifest()["held_out"]
    assert len(set(training)) == len(training) > 100
    assert len(held_out) == manifest()["evaluation"]["model"]["held_out_files"] > 10
    assert not set(training) & set(held_out.values())
    _, here = split_stdlib(FOLDER / "manifest.json")
    assert here and not set(training) & {file.digest for file in here}


def test_the_card_and_the_manifest_meet_the_bars() -> None:
    evaluation = manifest()["evaluation"]
    of_model = evaluation["model"]
    assert of_model["bits_per_byte"] <= BAR_BITS_PER_BYTE
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"| {of_model['bits_per_byte']:.3f} |" in card
    assert f"| {of_model['bits_per_byte_xz']:.3f} |" in card
    for member in MEMBERS:
        report = of(evaluation["saes"], member)
        recovered = min(report["ce_recovered_zero"], report["ce_recovered_mean"])
        if member.startswith("resid"):
            assert recovered >= BAR_RECOVERED, member
        if member.startswith("transcoders"):
            assert report["ce_increase"] <= BAR_ADDED, member
        # Two in block 0 miss the bar of 5 % (docs/log.md).
        late = {"transcoders/blocks.0.hook_mlp_out": 0.12, "jacobian/blocks.0.hook_mlp_out": 0.052}
        most = late.get(member, 0.05)
        assert of(manifest()["labels"]["dead_fraction"], member) <= most, member
        assert f"| `{member}` | {report['l0']:.2f} | {report['fvu']:.4f} |" in card


def test_the_pair_is_sparser_than_one_trained_without_its_jacobian() -> None:
    pairs = manifest()["evaluation"]["pairs"]
    shipped, plain = (
        {each["threshold"]: each["entries"] for each in pairs[name]["density"]}
        for name in ("jacobian", "plain")
    )
    assert shipped[0.01] <= plain[0.01] / 4
    assert pairs["jacobian"]["mean_size"] <= pairs["plain"]["mean_size"] / 4
    for site in PAIR:
        ours, theirs = (pairs[name]["saes"][site] for name in ("jacobian", "plain"))
        assert ours["ce_recovered_zero"] >= theirs["ce_recovered_zero"] - 0.02
    text = held_out_texts()[0]
    found = gossamer.mlp_jacobian(model(), 0, *(saes()[f"jacobian/{site}"] for site in PAIR), text)
    measured = {each.threshold: each.entries for each in found.density()}
    assert 0.4 * shipped[0.01] < measured[0.01] < 2.5 * shipped[0.01]


def test_the_bundled_sets_are_whole() -> None:
    assert set(gossamer.load_saes("pico-python")) == set(SITES)
    assert set(saes()) == set(MEMBERS)
    for member, sae in saes().items():
        is_transcoder = member.startswith("transcoders")
        read = (
            sae.site_out.replace("hook_mlp_out", "mlp.hook_in") if is_transcoder else sae.site_out
        )
        assert (sae.site_in, sae.model_name, sae.prepend_bos) == (read, "pico-python", True)
        assert (sae.d_in, sae.d_sae, sae.selection.scalars()["k"]) == (128, 2048, 32)
        if not is_transcoder:
            assert sae.W_dec.norm(dim=1).sub(1).abs().max() < 2e-3  # float16 rounds to 5e-4


def test_the_tokenizer_gives_every_text_back_and_has_the_ids_of_the_model() -> None:
    ids = model().tokenize("def naïve(x):\n\treturn 'λ' + x  # 東京\n")
    assert ids[0] == 0 and max(ids) < model().d_vocab
    assert model().tokenizer.decode(ids[1:]) == "def naïve(x):\n\treturn 'λ' + x  # 東京\n"


@torch.no_grad()
def test_held_out_text_costs_about_the_bits_per_byte_of_the_card() -> None:
    trace = run(model(), list(held_out_texts()))
    assert trace.logits is not None
    total = nats(trace.logits, trace.tokens, trace.mask).double().sum().item()
    n_bytes = sum(len(text.encode()) for text in held_out_texts())
    found = total / math.log(2) / n_bytes
    # The beginnings of files have less context and more prose than the rest.
    stated = manifest()["evaluation"]["model"]["bits_per_byte"]
    assert 0.9 * stated < found < 1.6 * stated


@pytest.mark.parametrize("member", MEMBERS)
@torch.no_grad()
def test_an_sae_alone_recovers_the_loss_that_ablating_its_site_costs(member: str) -> None:
    prompts = list(held_out_texts()[::4])
    losses = {}
    for kind, arguments in {
        "clean": {},
        "patched": {"saes": saes()[member], "error": "dropped"},
        "ablated": {"edits": [Ablate(member.split("/")[1])]},
    }.items():
        trace = run(model(), prompts, **arguments)
        assert trace.logits is not None
        losses[kind] = nats(trace.logits, trace.tokens, trace.mask).mean().item()
    recovered = (losses["ablated"] - losses["patched"]) / (losses["ablated"] - losses["clean"])
    stated = of(manifest()["evaluation"]["saes"], member)["ce_recovered_zero"]
    assert stated - 0.04 < recovered < 1.01


@pytest.mark.parametrize("member", MEMBERS)
@torch.no_grad()
def test_every_latent_that_fires_on_held_out_text_has_a_label(member: str) -> None:
    sae = saes()[member]
    labels = sae.labels
    assert labels is not None and labels.contexts is not None and len(labels) == sae.d_sae
    unlabelled = torch.tensor([not tokens for tokens in labels.top_tokens])
    stated = of(manifest()["labels"]["dead_fraction"], member)
    assert unlabelled.float().mean().item() == pytest.approx(stated)
    assert all(bool(c) == bool(t) for c, t in zip(labels.contexts, labels.top_tokens, strict=True))
    trace = run(model(), list(held_out_texts()), sae, logits=False)
    fires = (trace.latents[sae.site_out][:, 1:][trace.mask[:, 1:]] > 0).any(
        0
    )  # BOS counts for nothing
    assert fires.float().mean() > 0.25
    # Labels were made on other text: a latent that is dead there may fire here, very rarely.
    assert (fires & unlabelled).sum() <= 2


def test_labels_name_tokens_on_which_their_latents_fire() -> None:
    """The strongest latents on ` self` in plain code say so in their labels."""
    site = "blocks.1.hook_resid_pre"
    with torch.no_grad():
        trace = run(
            model(), "class A:\n    def f(self):\n        return self", saes()[f"resid/{site}"]
        )
    labels = saes()[f"resid/{site}"].labels
    assert labels is not None
    strongest = trace.latents[site][0, -1].topk(8).indices.tolist()
    assert any("self" in labels[latent] for latent in strongest)


def test_nothing_but_the_assets_is_in_the_folder() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("manifest.json", "README.md", *SETS),
    }
    assert not list(Path(FOLDER).rglob("*.partial"))
