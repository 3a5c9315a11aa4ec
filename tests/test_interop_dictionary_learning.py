"""dictionary_learning's files give the latents that library gives, and our files give it ours.

The fixtures were saved by dictionary-learning 0.1.0 (`fixtures/foreign_fixtures.sh make
dictionary_learning`), which also read what our writer wrote (`check`): checked.json.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from gossamer.errors import FormatError
from gossamer.interop import dictionary_learning
from gossamer.interop.dictionary_learning.classes import CLASSES
from gossamer.saes import SAE, Gated, JumpReLU, Labels, ReLU, TopK
from tests.foreign_saes import (
    D_IN,
    D_SAE,
    FIXTURES,
    RESID,
    K,
    assert_gives,
    assert_near,
    assert_same,
    assert_small,
    cases,
    checked,
    expected,
    small,
)

HERE = FIXTURES / "dictionary_learning"
CASES = cases("dictionary_learning")
MLP_OUT = "blocks.1.hook_mlp_out"


def config_of(name: str) -> dict:
    """The config of a fixture."""
    return json.loads((HERE / name / "config.json").read_text())


def read_one(path: Path, site=None) -> SAE:
    """The one SAE there."""
    (sae,) = dictionary_learning.read(path, site)
    return sae


@pytest.fixture
def copy(tmp_path: Path):
    """A function that copies a fixture with changed tensors, trainer settings, or buffer."""

    def make(name: str, tensors: dict | None = None, buffer: dict | None = None, **trainer) -> Path:
        directory = Path(shutil.copytree(HERE / name, tmp_path / name))
        config = config_of(name)
        config["trainer"] |= trainer
        config["buffer"] |= buffer or {}
        (directory / "config.json").write_text(json.dumps(config))
        state = torch.load(directory / "ae.pt", weights_only=True) | (tensors or {})
        kept = {key: value for key, value in state.items() if value is not None}
        torch.save(kept, directory / "ae.pt")
        return directory

    return make


def test_every_class_has_a_fixture_and_the_library_read_what_we_wrote() -> None:
    assert {config_of(name)["trainer"]["dict_class"] for name in CASES} == set(CLASSES)
    assert_small("dictionary_learning")
    found = checked("dictionary_learning")
    ours = {f"ours_{x}_{y}" for x in "relu topk jumprelu gated".split() for y in (True, False)}
    assert set(found) == {*CASES, *ours} and max(found.values()) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_latents_outputs_and_facts_are_those_of_the_library(name: str) -> None:
    assert dictionary_learning.is_here(HERE / name)
    sae = read_one(HERE / name)
    assert_gives(sae, expected(HERE / name))
    assert sae.site_in == sae.site_out == "blocks.1.hook_resid_post"
    assert sae.model_name == "EleutherAI/pythia-70m-deduped" and sae.prepend_bos is None
    assert sae.d_sae == (D_IN if name == "square" else D_SAE)
    assert sae.metadata["dict_class"] == config_of(name)["trainer"]["dict_class"]
    assert "layer" in sae.metadata and "lm_name" not in sae.metadata


@pytest.mark.parametrize("name", CASES)
def test_write_then_read_is_identity(name: str, tmp_path: Path) -> None:
    sae = read_one(HERE / name)
    dictionary_learning.write(sae, tmp_path / "new")
    assert_same(sae, read_one(tmp_path / "new"))
    written = json.loads((tmp_path / "new" / "config.json").read_text())["trainer"]
    theirs = config_of(name)["trainer"]
    for key in ("dict_class", "activation_dim", "dict_size", "layer", "lm_name", "submodule_name"):
        assert written[key] == theirs[key], key
    assert written.get("k") == theirs.get("k")


def test_a_backup_holds_the_state_in_units_of_its_norm_factor() -> None:
    backup, finished = read_one(HERE / "backup"), read_one(HERE / "trained_batchtopk")
    raw = torch.load(HERE / "backup" / "ae.pt", weights_only=True)
    assert raw["norm_factor"] == 3.25
    assert_near(backup.b_dec, finished.b_dec, 1e-6)
    assert not torch.allclose(raw["ae"]["b_dec"], finished.b_dec)


def test_decoder_rows_become_unit_vectors_only_where_the_library_makes_them_so() -> None:
    for name, unit in (("standard", True), ("standard_unit", True), ("april", False)):
        norms = read_one(HERE / name).W_dec.norm(dim=1)
        assert torch.allclose(norms, torch.ones(D_SAE)) == unit
    stored = torch.load(HERE / "standard_unit" / "ae.pt", weights_only=True)["decoder.weight"]
    assert torch.equal(read_one(HERE / "standard_unit").W_dec, stored.T)


def test_a_checkpoint_of_a_run_is_read_by_its_file(tmp_path: Path) -> None:
    shutil.copytree(HERE / "topk", tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    path = tmp_path / "run" / "checkpoints" / "ae_100.pt"
    shutil.copy(HERE / "topk" / "ae.pt", path)
    assert dictionary_learning.is_here(path)
    assert_same(read_one(path), read_one(HERE / "topk"))


@pytest.mark.parametrize(
    ("trainer", "buffer", "site"),
    [
        ({"layer": 3}, {}, "blocks.3.hook_resid_post"),
        ({"layer": 3}, {"io": "in"}, "blocks.3.hook_resid_pre"),
        ({"submodule_name": "resid_post_layer_7"}, {}, "blocks.7.hook_resid_post"),
        ({"submodule_name": "mlp_out"}, {}, "blocks.1.hook_mlp_out"),
        ({"submodule_name": "attention_out_layer_2"}, {}, "blocks.2.hook_attn_out"),
    ],
)
def test_the_site_is_the_one_that_was_trained_on(trainer, buffer, site: str, copy) -> None:
    assert read_one(copy("topk", buffer=buffer, **trainer)).site_in == site


@pytest.mark.parametrize(
    ("trainer", "buffer"),
    [({"submodule_name": "lm_head"}, {}), ({"layer": None}, {}), ({}, {"io": "in_and_out"})],
)
def test_a_config_that_leaves_the_site_open_needs_one(trainer, buffer, copy) -> None:
    directory = copy("topk", buffer=buffer, **trainer)
    with pytest.raises(FormatError, match="does not say which site is read; pass site="):
        read_one(directory)
    assert read_one(directory, RESID).site_in == RESID


@pytest.mark.parametrize("name", ["standard", "gated", "topk", "batchtopk", "april"])
def test_a_pair_of_sites_makes_a_transcoder_with_the_same_latents(name: str, copy) -> None:
    directory = copy(name, buffer={"io": "in_and_out"})
    sae = read_one(directory, (RESID, MLP_OUT))
    assert sae.is_transcoder and not sae.subtract_b_dec
    assert_gives(sae, expected(HERE / name))


REFUSED = [
    ("topk", {"dict_class": "CrossCoder"}, "names the class 'CrossCoder'; read here are AutoEnc"),
    ("topk", {"dict_class": None}, "names the class None"),
    ("topk", {"k": 6}, "has k=5 and the config beside it k=6; both are the same number"),
    ("batchtopk", {"tensors": {"k": torch.tensor(0)}}, "has k=0 and the config"),
    ("batchtopk", {"tensors": {"threshold": torch.tensor(-1.0)}}, "has threshold -1: training end"),
    ("batchtopk", {"tensors": {"threshold": torch.ones(3)}}, "a threshold that is one number"),
    ("batchtopk", {"tensors": {"threshold": None}}, "lacks threshold; copy or download it again"),
    ("matryoshka", {"tensors": {"group_sizes": None}}, "lacks group_sizes"),
    ("gated", {"tensors": {"r_mag": None}}, "missing: r_mag, unknown: none"),
    ("april", {"tensors": {"stranger": torch.ones(1)}}, "missing: none, unknown: stranger"),
    ("april", {"tensors": {"encoder.weight": torch.ones(3)}}, "which is no matrix"),
    ("topk", {"tensors": {"encoder.bias": torch.ones(3)}}, "does not hold a whole SAE: .*b_enc"),
    ("jumprelu", {"tensors": {"threshold": torch.ones(1)}}, "a whole SAE: JumpReLU needs"),
    ("topk", {"tensors": {"ae": 3}}, "is a backup without its state"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_cannot_be_read_is_refused(name: str, changes: dict, message: str, copy) -> None:
    with pytest.raises(FormatError, match=message):
        read_one(copy(name, **changes))


def test_other_directories_are_not_taken_for_one(tmp_path: Path) -> None:
    assert not dictionary_learning.is_here(tmp_path)
    shutil.copy(HERE / "topk" / "ae.pt", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert not dictionary_learning.is_here(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not dictionary_learning.is_here(tmp_path)
    with pytest.raises(FormatError, match="config.json is not JSON"):
        read_one(tmp_path)


SELECTIONS = {
    "relu": ReLU(),
    "topk": TopK(3),
    "jumprelu": JumpReLU(torch.linspace(-0.5, 0.5, 7)),
    "gated": Gated(torch.linspace(-1, 1, 7), torch.linspace(-0.3, 0.3, 7)),
}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("options", [{"subtract_b_dec": True}, {}, {"site_out": MLP_OUT}])
def test_any_bias_gives_the_same_latents_after_writing(name: str, options, tmp_path: Path) -> None:
    sae = small(SELECTIONS[name], labels=Labels((("a",),) * 7), **options)
    dictionary_learning.write(sae, tmp_path)
    again = read_one(tmp_path)
    x = torch.randn(9, 4)
    assert_near(again.encode(x), sae.encode(x))
    assert_near(again(x), sae(x))
    assert (again.site_in, again.site_out) == (sae.site_in, sae.site_out)
    assert again.labels == sae.labels


def test_one_threshold_is_not_taken_for_batchtopk_when_it_would_change(tmp_path: Path) -> None:
    weights = {name: part.double() for name, part in small(ReLU()).named_buffers()}
    options = {"site_in": RESID, "subtract_b_dec": True, "metadata": {"k": K}}
    for value, name in ((0.1, "JumpReluAutoEncoder"), (0.25, "BatchTopKSAE")):
        threshold = JumpReLU(torch.full((7,), value, dtype=torch.float64))  # 0.1 is no float32
        dictionary_learning.write(SAE(**weights, selection=threshold, **options), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["trainer"]["dict_class"] == name
        assert torch.equal(read_one(tmp_path).selection.threshold, threshold.threshold)


NOT_SAID = [
    (small(TopK(2, relu=False)), "no TopK that keeps negative latents"),
    (small(ReLU(), normalization="layer_norm"), r"no normalization of its input \(layer_norm\)"),
    (small(ReLU(), W_skip=torch.ones(4, 4)), "no skip connection; save it with sae.save"),
    (small(ReLU(), d_out=3, site_out=MLP_OUT), r"no transcoder of two widths \(4 and 3\)"),
]


@pytest.mark.parametrize(("sae", "message"), NOT_SAID)
def test_what_it_cannot_say_is_not_written(sae, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        dictionary_learning.write(sae, tmp_path)
    assert list(tmp_path.iterdir()) == []
