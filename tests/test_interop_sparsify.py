"""sparsify's files give the latents sparsify gives, and our files give sparsify ours.

The fixtures were saved by eai-sparsify 1.3.3 (`fixtures/foreign_fixtures.sh make sparsify`), which
also read what our writer wrote (`check`): checked.json.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gossamer.errors import FormatError, SiteError
from gossamer.interop import sparsify
from gossamer.saes import Gated, JumpReLU, Labels, ReLU, TopK
from tests.foreign_saes import (
    D_IN,
    FIXTURES,
    RESID,
    assert_gives,
    assert_near,
    assert_same,
    assert_small,
    cases,
    checked,
    expected,
    small,
)

HERE = FIXTURES / "sparsify"
CASES = cases("sparsify")
SITES = {
    "topk": ("blocks.1.hook_resid_post",) * 2,
    "unit_decoder": ("blocks.1.hook_attn_out",) * 2,
    "square": ("blocks.1.hook_resid_post",) * 2,
    "skip": ("blocks.1.hook_mlp_out",) * 2,
    "bfloat16": ("blocks.0.hook_resid_post",) * 2,
    "transcoder": ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
    "skip_transcoder": ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"),
}


def place(name: str) -> Path:
    """The directory of a fixture's one sparse coder."""
    return next((HERE / name).rglob("cfg.json")).parent


@pytest.fixture
def copy(tmp_path: Path):
    """A function that copies a fixture under another hookpoint with changed settings or tensors."""

    def make(name: str, hookpoint: str = "layers.1", tensors: dict | None = None, **config) -> Path:
        directory = Path(shutil.copytree(place(name), tmp_path / hookpoint))
        path = directory / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        kept = load_file(directory / "sae.safetensors") | (tensors or {})
        kept = {key: value for key, value in kept.items() if value is not None}
        save_file(kept, directory / "sae.safetensors")
        return directory

    return make


def test_the_fixtures_cover_the_format_and_the_library_read_what_we_wrote() -> None:
    assert set(CASES) == set(SITES)
    assert_small("sparsify")
    found = checked("sparsify")
    assert set(found) == {*CASES, "not_subtracting"} and max(found.values()) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_latents_outputs_and_facts_are_those_of_sparsify(name: str) -> None:
    assert sparsify.is_here(place(name)) and not sparsify.is_here(HERE / name)
    (sae,) = sparsify.read(place(name))
    assert_gives(sae, expected(HERE / name))
    assert (sae.site_in, sae.site_out) == SITES[name]
    assert sae.dtype == torch.float32
    assert sae.model_name == "openai-community/gpt2" and sae.prepend_bos is None
    assert sae.metadata["expansion_factor"] == (2 if name == "unit_decoder" else 32)


@pytest.mark.parametrize("name", CASES)
def test_write_then_read_is_identity(name: str, tmp_path: Path) -> None:
    (sae,) = sparsify.read(place(name))
    sparsify.write(sae, tmp_path / "anywhere")
    assert_same(sae, sparsify.read(tmp_path / "anywhere")[0])


def test_another_sites_wins_over_the_file_and_labels_travel(tmp_path: Path) -> None:
    sae = small(TopK(2), site_out="blocks.1.hook_mlp_out", labels=Labels((("a",),) * 7))
    sparsify.write(sae, tmp_path)
    assert_same(sae, sparsify.read(tmp_path)[0])
    again = sparsify.read(tmp_path, ("hook_embed", RESID))[0]
    assert (again.site_in, again.site_out) == ("hook_embed", RESID)
    assert sparsify.read(tmp_path, RESID)[0].site_out == RESID
    with pytest.raises(SiteError, match="blocks.1.hook_resid_past"):
        sparsify.read(tmp_path, "blocks.1.hook_resid_past")


def test_an_sae_that_does_not_subtract_gets_the_bias_of_one_that_does(tmp_path: Path) -> None:
    sae = small(TopK(2), W_skip=torch.randn(4, 4))
    sparsify.write(sae, tmp_path)
    (again,) = sparsify.read(tmp_path)
    x = torch.randn(9, 4)
    assert again.subtract_b_dec and not sae.subtract_b_dec
    assert_near(again.encode(x), sae.encode(x))
    assert_near(again(x), sae(x))


def test_settings_that_are_left_out_are_those_of_sparsify(copy) -> None:
    directory = copy("topk", tensors={"encoder.weight": torch.randn(40, D_IN)})
    tensors = load_file(directory / "sae.safetensors")
    tensors |= {"encoder.bias": torch.randn(40), "W_dec": torch.randn(40, D_IN)}
    save_file(tensors, directory / "sae.safetensors")
    (directory / "cfg.json").write_text('{"d_in": 12}')
    (sae,) = sparsify.read(directory)
    assert isinstance(sae.selection, TopK) and sae.selection.k == 32
    assert sae.subtract_b_dec and sae.W_skip is None


@pytest.mark.parametrize(
    ("hookpoint", "site"),
    [("h.11.mlp", "blocks.11.hook_mlp_out"), ("wte", "hook_embed"), ("embed_in", "hook_embed")],
)
def test_a_hookpoint_is_a_site(hookpoint: str, site: str, copy) -> None:
    assert sparsify.read(copy("topk", hookpoint))[0].site_in == site


def test_a_module_before_a_norm_is_no_site(copy, tmp_path: Path) -> None:
    directory = copy("topk", "layers.1.mlp")
    (tmp_path / "config.json").write_text('{"model": "google/gemma-2-2b"}')
    with pytest.raises(FormatError, match=r"layers.1.mlp of google/gemma-2-2b, which no site here"):
        sparsify.read(directory)
    assert sparsify.read(directory, RESID)[0].model_name == "google/gemma-2-2b"
    (tmp_path / "config.json").unlink()
    directory = copy("transcoder", "h.1.attn")
    with pytest.raises(FormatError, match=r"h.1.attn, from its input, which no site here is; pass"):
        sparsify.read(directory)


REFUSED = [
    ({"activation": "groupmax"}, 'by "groupmax"; of sparsify only topk is read'),
    ({"signed": True}, 'by "signed"; of sparsify only topk is read'),
    ({"k": 0}, "has k=0; k is 1 or more"),
    ({"k": 99}, "does not hold a whole SAE: TopK needs k in 1..d_sae, got k=99"),
    ({"d_in": 13}, "says d_in=13 and sae.safetensors beside it has 12"),
    ({"skip_connection": True}, "missing: W_skip, unknown: none: copy or download it again"),
    ({"tensors": {"W_skip": torch.ones(D_IN, D_IN)}}, "missing: none, unknown: W_skip"),
    ({"tensors": {"W_dec": None}}, "missing: W_dec"),
    ({"tensors": {"W_dec": torch.ones(3)}}, r"W_dec of shape \(3,\), which is no matrix"),
    ({"tensors": {"b_dec": torch.ones(3)}}, "does not hold a whole SAE: .* b_dec must have shape"),
    ({"tensors": {"b_dec": torch.ones(12).int()}}, "as b_dec that is no tensor of real numbers"),
    ({"hookpoint": "run"}, 'does not say which site is read; pass site="blocks.3'),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_read_is_refused(changes: dict, message: str, copy) -> None:
    with pytest.raises(FormatError, match=message):
        sparsify.read(copy("topk", **changes))


def test_damaged_files_are_refused(copy) -> None:
    directory = copy("topk")
    weights = directory / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(FormatError, match="sae.safetensors is damaged"):
        sparsify.read(directory)
    (directory / "cfg.json").write_text("[")
    with pytest.raises(FormatError, match="cfg.json is not JSON"):
        sparsify.read(directory)


NOT_SAID = [
    (small(ReLU()), r"sparsify has no relu \(it has TopK\); save it with sae.save"),
    (small(JumpReLU(torch.ones(7))), "no jumprelu"),
    (small(Gated(torch.ones(7), torch.ones(7))), "no gated"),
    (small(TopK(2, relu=False)), "no TopK that keeps negative latents"),
    (small(TopK(2), normalization="layer_norm"), r"no normalization of its input \(layer_norm\)"),
    (small(TopK(2), d_out=3, site_out="blocks.1.hook_mlp_out"), r"two widths \(4 and 3\)"),
]


@pytest.mark.parametrize(("sae", "message"), NOT_SAID)
def test_what_sparsify_cannot_say_is_not_written(sae, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        sparsify.write(sae, tmp_path)
    assert list(tmp_path.iterdir()) == []
