"""Loading by name: what comes back is what was saved; what cannot be read says so and runs nothing.

Files are made here and then damaged one way at a time.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gossamer
from gossamer.errors import FormatError, GossamerError, PromptError, SiteError
from tests.tiny_files import FIRST, LAST, save_model, save_saes
from tests.tiny_models import tiny_language_model
from tests.tiny_saes import tiny_sae

IDS = [0, 7, 2, 1]
WEIGHT = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two SAEs that no test changes."""
    directory = tmp_path_factory.mktemp("files")
    save_model(directory / "model")
    save_saes(directory / "saes")
    return directory


@pytest.fixture
def model_files(kept: Path, tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return Path(shutil.copytree(kept / "model", tmp_path / "model"))


class Bomb:
    """What a pickle can be: code that runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_directory_and_a_loaded_model_give_the_same_model(kept: Path) -> None:
    original = tiny_language_model("gpt2", torch.float32)
    model = gossamer.load_model(kept / "model")
    assert model.dtype == torch.float32 and model.device.type == "cpu"
    assert model.name == str(kept / "model") and model.tokenize("cat", prepend_bos=False) == [6]
    wrapped = gossamer.load_model(original)
    assert wrapped.language_model is original and wrapped.tokenizer is None
    assert torch.equal(gossamer.run(model, IDS).logits, gossamer.run(wrapped, IDS).logits)
    with_tokenizer = gossamer.load_model(original, tokenizer=str(kept / "model"))
    assert with_tokenizer.tokenize("cat") == model.tokenize("cat")


def test_type_and_device_are_honoured(kept: Path) -> None:
    for dtype in ("float64", torch.float64):
        assert gossamer.load_model(kept / "model", dtype=dtype).dtype == torch.float64
    assert gossamer.load_model(kept / "model", device="meta").device.type == "meta"
    moved = gossamer.load_model(tiny_language_model("llama"), dtype="bfloat16", device="cpu")
    assert moved.dtype == torch.bfloat16
    assert gossamer.load_sae(kept / "saes" / FIRST, dtype="float64").dtype == torch.float64
    assert gossamer.load_saes(kept / "saes", device="cpu")[LAST].device.type == "cpu"


def test_saes_come_back_by_the_site_they_write(kept: Path) -> None:
    saes = gossamer.load_saes(kept / "saes")
    assert list(saes) == [FIRST, LAST]
    assert list(gossamer.load_saes(str(kept / "saes" / LAST))) == [LAST]
    original = tiny_sae("topk", FIRST, 16, dtype=torch.float32)
    x = torch.randn(5, 16)
    assert torch.equal(saes[FIRST].encode(x), original.encode(x))
    elsewhere = gossamer.load_sae(kept / "saes" / FIRST, site="blocks.1.hook_mlp_out")
    assert elsewhere.site_in == elsewhere.site_out == "blocks.1.hook_mlp_out"
    assert torch.equal(elsewhere.encode(x), original.encode(x))


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    tiny_sae("relu", FIRST, 16, dtype=torch.float16).save(tmp_path / "sae")
    assert gossamer.load_sae(tmp_path / "sae").dtype == torch.float32


def cut_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def pickled_weights(directory: Path) -> None:
    no_weights(directory)
    torch.save({"a": Bomb(directory / "it ran")}, directory / "pytorch_model.bin")


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def change_config(directory: Path, **entries: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | entries))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut weights": (cut_weights, "could be loaded"),
    "no weights": (no_weights, "no file named .*model.safetensors"),
    "pickled weights": (
        pickled_weights,
        "a pickle that would run code|Unable to load weights",  # transformers 4.56 says it itself,
    ),
    "a weight missing": (
        lambda d: change_weights(d, lambda w: w.pop(WEIGHT)),
        rf"lack {WEIGHT} \(1 in all\). Copy or download them again",
    ),
    "a weight of another shape": (
        lambda d: change_weights(d, lambda w: w.update({WEIGHT: torch.zeros(3, 3)})),
        "could be loaded",
    ),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "not a valid JSON file"),
    "no config": (lambda d: (d / "config.json").unlink(), "could be loaded"),
    "unsupported": (
        lambda d: change_config(d, model_type="bloom"),
        '"bloom" are not supported. Supported model types: gemma2.*gpt2.*qwen3',
    ),
    "unheard of": (lambda d: change_config(d, model_type="nonsense"), "nonsense"),
    "broken tokenizer": (lambda d: (d / "tokenizer.json").write_text("{"), "No tokenizer .*loaded"),
}
"""One thing wrong at a time, and what is said."""


@pytest.mark.filterwarnings("default")  # transformers may add a warning to what we say
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_refused(name: str, model_files: Path) -> None:
    damage, message = DAMAGE[name]
    damage(model_files)
    with pytest.raises(GossamerError, match=message) as caught:
        gossamer.load_model(model_files)
    assert "\n" not in str(caught.value)
    assert not (model_files / "it ran").exists()


def test_a_model_without_a_tokenizer_takes_ids_alone(model_files: Path) -> None:
    for file in model_files.glob("tokenizer*"):
        file.unlink()
    model = gossamer.load_model(model_files)
    assert model.tokenize(IDS) == IDS
    with pytest.raises(PromptError, match="without a tokenizer"):
        model.tokenize("cat")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            lambda d: gossamer.load_model("some-org/some-model"),
            "No model .*a hub id that can be reached",
        ),
        (lambda d: gossamer.load_model(d / "nowhere"), "No model .*Give a bundled name"),
        (
            lambda d: gossamer.load_model(d / "model" / "config.json"),
            "is a file. Give the directory",
        ),
        (lambda d: gossamer.load_model(7), "a transformers PreTrainedModel, got int"),
        (
            lambda d: gossamer.load_model(d / "model", dtype="float23"),
            'No dtype "float23". Write float32',
        ),
        (
            lambda d: gossamer.load_model(d / "model", device="cude"),
            'device "cude".*such as cpu, cuda',
        ),
        (
            lambda d: gossamer.load_model(d / "model", tokenizer="/nowhere"),
            "No tokenizer at /nowhere",
        ),
        (
            lambda d: gossamer.load_sae(d / "nowhere"),
            "No directory .*nowhere. Give one that holds an SAE",
        ),
        (
            lambda d: gossamer.load_sae(d / "model"),
            "holds no SAE: found .*config.json.*Known are sae.json",
        ),
        (
            lambda d: gossamer.load_sae(d / "saes" / FIRST, center=True),
            "center= is for files of SAELens, and .* is of gossamer",
        ),
        (lambda d: gossamer.load_sae(d / "saes" / FIRST, site="hook_embd"), "hook_embed"),
        (
            lambda d: gossamer.load_sae(d / "saes" / FIRST, device="xpu:7"),
            'cannot be put on device "xpu:7".*such as cpu',
        ),
        (lambda d: gossamer.load_saes("gpt9-tiny"), "No SAEs called gpt9-tiny.*pico-python/resid"),
        (lambda d: gossamer.load_saes(d / "model"), "holds no SAE directories"),
    ],
)
def test_what_cannot_be_loaded_says_what_can(load: Any, message: str, kept: Path) -> None:
    with pytest.raises(GossamerError, match=message):
        load(kept)


def test_a_pickled_sae_is_not_read(tmp_path: Path) -> None:
    torch.save({"a": Bomb(tmp_path / "it ran")}, tmp_path / "sae.pt")
    with pytest.raises(FormatError, match="holds no SAE: found sae.pt. Known are sae.json"):
        gossamer.load_sae(tmp_path)
    assert not (tmp_path / "it ran").exists()


def test_two_writers_of_a_site_in_one_directory_are_refused(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept / "saes", tmp_path / "saes")
    shutil.copytree(kept / "saes" / FIRST, tmp_path / "saes" / "again")
    with pytest.raises(FormatError, match=f"Two SAEs in .* write {FIRST}; load them one by one"):
        gossamer.load_saes(tmp_path / "saes")


def test_one_site_does_not_stand_for_both_of_a_transcoder(tmp_path: Path) -> None:
    site_out = "blocks.0.hook_mlp_out"
    tiny_sae("topk", "blocks.0.mlp.hook_in", 16, site_out=site_out).save(tmp_path)
    assert gossamer.load_sae(tmp_path).site_out == site_out
    with pytest.raises(SiteError, match="is a transcoder .*leave site= out"):
        gossamer.load_sae(tmp_path, site=site_out)
    pair = ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    moved = gossamer.load_sae(tmp_path, site=pair)
    assert (moved.site_in, moved.site_out) == pair
    with pytest.raises(SiteError, match='No site "blocks.1.mlp.hook_inn"'):
        gossamer.load_sae(tmp_path, site=("blocks.1.mlp.hook_inn", site_out))
