"""TransformerLens' own models give its logits as GPT-2 models; saved by TransformerLens itself.

`fixtures/make_transformer_lens.py` made them: norms as they are, folded and centred, and without
gain and bias from the start.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gossamer
from gossamer.errors import FormatError
from gossamer.interop.transformer_lens import read_transformer_lens

FIXTURES = Path(__file__).parent / "fixtures" / "transformer_lens"
CASES = ("plain", "gelu_pt", "folded", "lnpre")


@pytest.fixture
def copy(tmp_path: Path):
    """A function that gives a copy of the plain fixture with other settings or tensors."""

    def make(tensors: dict | None = None, **settings: Any) -> Path:
        directory = Path(shutil.copytree(FIXTURES / "plain", tmp_path / "model"))
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        weights = directory / "model.safetensors"
        kept = load_file(weights) | (tensors or {})
        save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, weights)
        return directory

    return make


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformer_lens(name: str) -> None:
    expected = load_file(FIXTURES / f"{name}.safetensors")
    model = read_transformer_lens(FIXTURES / name)
    with torch.no_grad():
        logits = model(expected["ids"]).logits
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-4, atol=2e-5)


def test_it_is_a_model_with_sites() -> None:
    expected = load_file(FIXTURES / "plain.safetensors")
    model = gossamer.load_model(read_transformer_lens(FIXTURES / "plain"))
    ids = expected["ids"][0].tolist()
    trace = gossamer.run(model, ids)
    torch.testing.assert_close(trace.logits, expected["logits"][:1], rtol=1e-4, atol=2e-5)


def test_any_bias_of_the_unembedding_stays(copy: Any) -> None:
    shift = 3 * torch.randn(21)
    expected = load_file(FIXTURES / "plain.safetensors")
    model = read_transformer_lens(copy({"unembed.b_U": shift}))
    with torch.no_grad():
        logits = model(expected["ids"]).logits
    torch.testing.assert_close(logits, expected["logits"] + shift, rtol=1e-4, atol=2e-5)


REFUSED = [
    ({"attn_only": True}, "attention-only models have no MLPs"),
    ({"act_fn": "solu_ln"}, 'the activation "solu_ln"; read are gelu'),
    ({"normalization_type": "RMS"}, "normalization_type RMS; LN and LNPre"),
    ({"positional_embedding_type": "shortformer"}, "shortformer position embeddings"),
    ({"attention_dir": "bidirectional"}, "attention in both directions"),
    ({"d_head": 8}, "4 heads of 8, which do not make up d_model=16"),
    ({"attn_scale": 3.5}, "attn_scale=3.5, which is not the root"),
    ({"parallel_attn_mlp": True}, "parallel_attn_mlp=True"),
    ({"n_layers": 0}, "needs n_layers as a whole number from 1 on, got 0"),
    ({"n_layers": 3}, "lack blocks.2.attn.W_Q"),
    ({"n_layers": 1}, "have blocks.1.attn"),
    ({"tensors": {"blocks.0.mlp.W_in": None}}, "no state dict of a HookedTransformer: missing are"),
    ({"tensors": {"blocks.1.mlp.b_in": torch.ones(3)}}, "do not fit its settings"),
    ({"tensors": {"stranger": torch.ones(3)}}, "have stranger, which a GPT-2 model"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_gpt2_has_not_is_refused(changes: dict, message: str, copy: Any) -> None:
    with pytest.raises(FormatError, match=message):
        read_transformer_lens(copy(**changes))


def test_one_file_of_weights_is_needed(copy: Any) -> None:
    directory = copy()
    shutil.copy(directory / "model.safetensors", directory / "other.safetensors")
    with pytest.raises(
        FormatError, match="needs one file of weights .* got model.safetensors, oth"
    ):
        read_transformer_lens(directory)
