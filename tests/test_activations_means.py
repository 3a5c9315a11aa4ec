"""Means over a corpus, against the oracle's values averaged token by token."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.activations import Means, means
from gossamer.edits import Ablate, Patch, Set
from gossamer.errors import GossamerError, SiteError
from gossamer.generation.generate import generate
from gossamer.models.model import Model
from gossamer.splice import run
from tests.plain_model import plain_run
from tests.test_prompts import tiny_tokenizer
from tests.tiny_models import tiny_language_model, tiny_model
from tests.tiny_saes import D_SAE, OwnSAE, plain_decode, plain_latents, tiny_sae

MIDDLE, Z, POST = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"
OUT = "blocks.1.hook_mlp_out"
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
LONG = [3, 1, 4, 15, 9, 2, 6]


def documents(count: int, length: int = 40) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 37, size=length - i) for i in range(count)]


def oracle(model: Any, pieces: list[list[int]], site: str) -> Tensor:
    """Rows of a site, the heads side by side."""
    with torch.no_grad():
        rows = [plain_run(model.language_model, ids)[site].flatten(1) for ids in pieces]
    return torch.cat(rows)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_means_are_those_of_every_token(family: str) -> None:
    """Documents of 40, 39, … ids in pieces of 16, so that the last ones are shorter; 100 of 232."""
    model, given = tiny_model(family), documents(6)
    transcoder = tiny_sae("topk", "blocks.1.mlp.hook_in", 16, site_out=OUT, skip=True)
    saes = [tiny_sae("relu", MIDDLE, 16), transcoder, OwnSAE(Z, model.width(Z))]
    pieces = [ids[i : i + 16].tolist() for ids in given for i in range(0, len(ids), 16)]
    for n_tokens in (100, 65_536):
        found = means(model, given, [Z, POST], saes, n_tokens=n_tokens, context=16)
        rows = {site: oracle(model, pieces, site)[:n_tokens] for site in (Z, POST, MIDDLE, OUT)}
        rows[transcoder.site_in] = oracle(model, pieces, transcoder.site_in)[:n_tokens]
        assert found.n_tokens == len(rows[Z]) == min(n_tokens, sum(map(len, given)))
        assert found.activations[Z].shape == run(model, LONG, record=Z).activations[Z].shape[2:]
        for site in (Z, POST):
            mean = found.activations[site].flatten()
            torch.testing.assert_close(mean, rows[site].mean(0), **CLOSE)
        for sae in saes:
            with torch.no_grad():
                x, y = rows[sae.site_in], rows[sae.site_out]
                latents = plain_latents(sae, x)
                missed = (y - plain_decode(sae, latents, x)).mean(0)
            torch.testing.assert_close(found.latents[sae.site_out], latents.mean(0), **CLOSE)
            torch.testing.assert_close(found.errors[sae.site_out], missed, **CLOSE)
        assert not found.activations[Z].requires_grad


def test_beginnings_of_texts_are_left_out() -> None:
    model = Model(tiny_language_model("gpt2"), tiny_tokenizer())
    texts = ["a cat sat", "the cat", "a b a b"]
    ids = [model.tokenize(text) for text in texts]
    assert len({document[0] for document in ids}) == 1
    whole = [token for document in ids for token in document]
    rows = oracle(model, [whole], MIDDLE)
    keep = torch.tensor(whole) != ids[0][0]
    found = means(model, texts, MIDDLE)
    assert found.n_tokens == int(keep.sum())
    torch.testing.assert_close(found.activations[MIDDLE], rows[keep].mean(0), **CLOSE)


def test_patched_means_are_set_values() -> None:
    model, sae = tiny_model("llama"), tiny_sae("topk", MIDDLE, 16)
    found = means(model, documents(3), [MIDDLE, Z, POST], sae)
    assert isinstance(found, Means)
    values = found.activations
    along = torch.linspace(-1, 1, 16)
    unit = along.double() / along.double().norm()
    pairs = [
        (Patch(MIDDLE, found), Set(MIDDLE, values[MIDDLE])),
        (Patch(Z, found, units=2, positions=-1), Set(Z, values[Z], units=2, positions=-1)),
        (Patch(f"{POST}/3@1", found), Set(f"{POST}/3@1", float(values[POST][3]))),
        (
            Patch(MIDDLE, found, latents=range(D_SAE), positions=[1]),
            Set(MIDDLE, found.latents[MIDDLE], latents=range(D_SAE), positions=[1]),
        ),
        (Patch(MIDDLE, found, part="error"), Set(MIDDLE, found.errors[MIDDLE], part="error")),
        (
            Patch(MIDDLE, found, along=along),
            Set(MIDDLE, float(values[MIDDLE] @ unit), along=along),
        ),
    ]
    for patch, expected in pairs:
        for prompts in (LONG, [LONG, LONG[:3]]):
            ours = run(model, prompts, sae, patch).logits
            theirs = run(model, prompts, sae, expected).logits
            torch.testing.assert_close(ours, theirs, **CLOSE)
            assert not torch.allclose(ours, run(model, prompts).logits)
        ours, theirs = (
            generate(model, LONG, sae, edit, 4, compare=False, stop=())
            for edit in (patch, expected)
        )
        torch.testing.assert_close(ours.probabilities, theirs.probabilities, **CLOSE)


def test_means_of_a_float32_model_are_float32() -> None:
    model = tiny_model("gpt2", torch.float32)
    assert means(model, documents(1), MIDDLE).activations[MIDDLE].dtype == torch.float32
    half = tiny_model("llama", torch.bfloat16)
    assert means(half, documents(1), MIDDLE).activations[MIDDLE].dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"sites": "blocks.1.attn.hook_pattern"}, SiteError, "has no mean over tokens.*hook_z"),
        ({"sites": ["blocks.0.attn.hook_attn_scores"]}, SiteError, "has no mean over tokens"),
        ({"sites": "blocks.1.hook_mpl_out"}, SiteError, "blocks.1.hook_mlp_out"),
        ({"sites": []}, GossamerError, "nothing to take means of: give at least one site or SAE"),
        ({"n_tokens": 0}, GossamerError, "n_tokens is a whole number from 1 on, got 0"),
        ({"context": 64}, GossamerError, "context is how many tokens a block has, 2 to 32"),
        ({"corpus": [np.zeros(0, dtype=np.int64)]}, GossamerError, "has no tokens that count"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments: dict[str, Any], kind: type, said: str) -> None:
    options: Any = {"corpus": documents(1), "sites": MIDDLE} | arguments
    with pytest.raises(kind, match=said):
        means(tiny_model("gpt2"), **options)


def test_means_lack_what_was_not_asked_for() -> None:
    model, sae = tiny_model("gpt2"), tiny_sae("topk", MIDDLE, 16)
    found = means(model, documents(1), (), sae)
    assert not found.activations and set(found.latents) == set(found.errors) == {MIDDLE}
    with pytest.raises(SiteError, match=f"no activations at {MIDDLE}, but at no site"):
        run(model, LONG, edits=[Ablate(Z), Patch(MIDDLE, found)])
