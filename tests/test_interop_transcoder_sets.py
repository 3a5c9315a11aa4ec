"""circuit-tracer's transcoder sets: files that its own class saved, latents against plain numpy.

The layers are those of `fixtures/circuit_tracer`; configs are by the published layout.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

import gossamer
from gossamer.errors import FormatError, GossamerError
from gossamer.interop import transcoder_sets
from gossamer.saes import SAE
from tests.tiny_saes import tiny_sae

FIXTURES = Path(__file__).parent / "fixtures" / "circuit_tracer"
CONFIG = {
    "model_name": "tiny/model",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
}
KINDS = ("relu", "jumprelu", "topk", "topk_negative", "skip")


@pytest.fixture
def place(tmp_path: Path):
    """A function that gives a directory with the layers of a fixture and a config."""

    def make(kind: str = "relu", **settings: Any) -> Path:
        directory = tmp_path / kind
        directory.mkdir()
        for file in (FIXTURES / kind).glob("layer_*.safetensors"):
            shutil.copy(file, directory)
        config = CONFIG | settings
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        return directory

    return make


def oracle(kind: str, tensors: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, Any]:
    """Latents and output of one layer."""
    pre = np.einsum("id,td->ti", tensors["W_enc"], x) + tensors["b_enc"]
    latents = np.zeros_like(pre)
    for token, row in enumerate(pre):
        if kind.startswith("topk"):
            chosen = sorted(range(len(row)), key=lambda i: -row[i])[: int(tensors["k"])]
        else:
            bound = tensors.get("activation_function.threshold", np.zeros(len(row)))
            chosen = [i for i in range(len(row)) if row[i] > bound[i]]
        latents[token, chosen] = row[chosen]
    output = np.einsum("ti,io->to", latents, tensors["W_dec"]) + tensors["b_dec"]
    if "W_skip" in tensors:
        output += np.einsum("od,td->to", tensors["W_skip"], x)
    return latents, output


@pytest.mark.parametrize("kind", KINDS)
def test_latents_and_outputs_of_every_layer(kind: str, place: Any) -> None:
    directory = place(kind)
    assert transcoder_sets.is_here(directory)
    saes = transcoder_sets.read(directory)
    assert [sae.site_out for sae in saes] == [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    assert saes[1].site_in == "blocks.1.mlp.hook_in" and saes[1].model_name == "tiny/model"
    for layer, sae in enumerate(saes):
        x = np.random.default_rng(layer).normal(size=(5, sae.d_in))
        latents, output = oracle(kind, load_file(directory / f"layer_{layer}.safetensors"), x)
        np.testing.assert_allclose(sae.encode(torch.tensor(x)).numpy(), latents, atol=1e-12)
        np.testing.assert_allclose(sae(torch.tensor(x)).numpy(), output, atol=1e-12)
        assert kind != "topk_negative" or (latents < 0).any()


def test_a_set_or_one_of_its_layers_is_loaded(place: Any) -> None:
    directory = place()
    saes = gossamer.load_saes(directory)
    assert list(saes) == [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    one = gossamer.load_sae(directory, site="blocks.2.hook_mlp_out")
    assert torch.equal(one.W_enc, saes["blocks.2.hook_mlp_out"].W_enc)
    pair = ("blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out")
    other = gossamer.load_sae(directory, site=pair)
    assert (other.site_in, other.site_out) == pair and torch.equal(other.W_enc, one.W_enc)
    with pytest.raises(FormatError, match="holds 3 SAEs, which write blocks.0.hook_mlp_out"):
        gossamer.load_sae(directory)
    with pytest.raises(FormatError, match="No transcoder .* writes blocks.7.hook_mlp_out"):
        gossamer.load_sae(directory, site="blocks.7.hook_mlp_out")


def test_other_names_of_places_and_half_precision(place: Any) -> None:
    directory = place(feature_input_hook="hook_mlp_in", feature_output_hook="mlp.hook_out")
    (sae, *_) = transcoder_sets.read(directory)
    assert (sae.site_in, sae.site_out) == ("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out")
    for file in directory.glob("*.safetensors"):
        save_file({k: v.astype(np.float16) for k, v in load_file(file).items()}, file)
    assert gossamer.load_sae(directory, site=sae.site_out).dtype == torch.float32


def tensors_without(directory: Path, name: str) -> None:
    file = directory / "layer_1.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != name}, file)


def test_what_cannot_be_read_is_refused(place: Any, tmp_path: Path) -> None:
    directory = place(model_kind="cross_layer_transcoder")
    wrong = "is of model_kind cross_layer_transcoder; a transcoder_set"
    with pytest.raises(FormatError, match=wrong):
        transcoder_sets.read(directory)
    directory = place("jumprelu", activation="gelu")
    with pytest.raises(FormatError, match='the activation "gelu"; relu, jump_relu and topk'):
        transcoder_sets.read(directory)
    directory = place("topk", feature_input_hook=None)
    with pytest.raises(FormatError, match="that says its sites; pass site="):
        transcoder_sets.read(directory)
    directory = place("skip", activation="jump_relu")
    with pytest.raises(FormatError, match="lacks activation_function.threshold"):
        transcoder_sets.read(directory)
    tensors_without(directory, "b_dec")
    (directory / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(FormatError, match="layer_1.safetensors .*missing: b_dec"):
        transcoder_sets.read(directory)
    away = tmp_path / "away"
    away.mkdir()
    listed = {"transcoders": ["hf://someone/layers/layer_0.safetensors"]}
    (away / "config.yaml").write_text(yaml.safe_dump(CONFIG | listed))
    with pytest.raises(FormatError, match="its config lists hf://someone/layers"):
        transcoder_sets.read(away)
    (away / "config.yaml").write_text("model_kind: [")
    with pytest.raises(FormatError, match="is not YAML"):
        transcoder_sets.read(away)


def coder(kind: str, layer: int, **options: Any) -> SAE:
    place = {"site_out": f"blocks.{layer}.hook_mlp_out", "seed": layer}
    return tiny_sae(kind, f"blocks.{layer}.mlp.hook_in", 16, **place | options)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    for kind in ("relu", "jumprelu", "topk_signed"):
        facts = {"model_name": "tiny", "prepend_bos": True, "metadata": {"l0": 2}}
        saes = [coder(kind, layer, skip=kind == "relu", **facts) for layer in range(3)]
        transcoder_sets.write_set(saes[::-1], tmp_path / kind)
        for sae, again in zip(saes, transcoder_sets.read(tmp_path / kind), strict=True):
            for (name, ours), theirs in zip(sae.named_buffers(), again.buffers(), strict=True):
                assert torch.equal(ours, theirs), name
            for name in "site_in site_out model_name prepend_bos metadata".split():
                assert getattr(sae, name) == getattr(again, name), name
            assert again.selection.scalars() == sae.selection.scalars()


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        (lambda: [coder("relu", 1)], "one transcoder for each layer from 0 on"),
        (lambda: [coder("relu", 0), coder("topk_signed", 1)], "of the same places, kind and width"),
        (lambda: [coder("topk", 0)], "no TopK .it has relu, jumprelu, TopK that keeps negative"),
        (lambda: [coder("gated", 0)], "no gated"),
        (lambda: [coder("relu", 0, normalization="layer_norm")], r"no normalization .*layer_norm"),
        (lambda: [tiny_sae("relu", "blocks.0.hook_mlp_out", 16)], "only transcoders"),
    ],
)
def test_what_there_is_no_room_for_is_refused(saes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match=message):
        transcoder_sets.write_set(saes(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
