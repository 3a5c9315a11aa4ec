"""OpenAI's autoencoders give the latents their own code gives, and our files give it ours.

The fixtures were saved by that code (`fixtures/foreign_fixtures.sh make openai`), which also read
what our writer wrote (`check`): checked.json.
"""

from pathlib import Path

import pytest
import torch

from gossamer.errors import FormatError
from gossamer.interop import openai
from gossamer.saes import Gated, JumpReLU, ReLU, TopK
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

HERE = FIXTURES / "openai"
CASES = cases("openai")
SITES = {
    "relu": "blocks.1.mlp.hook_post",
    "topk": "blocks.1.hook_resid_post",
    "topk_signed": "blocks.1.hook_attn_out",
    "tied": "blocks.1.hook_mlp_out",
    "square": "blocks.1.hook_resid_mid",
}


def file_of(name: str) -> Path:
    """The one autoencoder of a fixture."""
    return next((HERE / name).rglob("1.pt"))


def changed(name: str, path: Path, **changes: object) -> Path:
    """A copy with other contents; None takes one away."""
    contents = torch.load(file_of(name), weights_only=True) | changes
    torch.save({key: value for key, value in contents.items() if value is not None}, path)
    return path


def test_the_fixtures_cover_every_place_and_their_code_read_what_we_wrote() -> None:
    assert set(CASES) == set(SITES)
    assert {site.split(".", 2)[2] for site in SITES.values()} == set(openai.LOCATIONS.values())
    assert_small("openai")
    found = checked("openai")
    assert set(found) == {*CASES, "not_subtracting_relu", "not_subtracting_topk"}
    assert max(found.values()) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_latents_outputs_and_sites_are_those_published(name: str) -> None:
    assert openai.is_here(file_of(name)) and openai.is_here(file_of(name).parent)
    assert not openai.is_here(HERE / name)
    (sae,) = openai.read(file_of(name))
    assert_gives(sae, expected(HERE / name))
    assert (sae.site_in, sae.site_out, sae.model_name) == (SITES[name], SITES[name], "gpt2")
    assert sae.normalization == ("none" if name in ("relu", "tied") else "layer_norm")
    assert sae.d_sae == (D_IN if name == "square" else D_SAE) and sae.subtract_b_dec
    assert sae.selection.scalars() in ({}, {"k": K, "relu": name != "topk_signed"})


@pytest.mark.parametrize("name", CASES)
def test_write_then_read_is_identity(name: str, tmp_path: Path) -> None:
    (sae,) = openai.read(file_of(name))
    openai.write(sae, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{SITES[name]}.pt"]
    assert_same(sae, openai.read(tmp_path / "new")[0], facts=False)  # there is no room for them


def test_an_sae_that_does_not_subtract_gets_the_bias_of_one_that_does(tmp_path: Path) -> None:
    sae = small(TopK(2), normalization="layer_norm")
    openai.write(sae, tmp_path)
    (again,) = openai.read(tmp_path)
    x = torch.randn(9, 4)
    assert again.subtract_b_dec
    assert_near(again.encode(x), sae.encode(x))
    assert_near(again(x), sae(x))


def test_a_directory_gives_all_in_order_and_one_site_is_for_one_file(tmp_path: Path) -> None:
    for layer in (2, 10, 9):
        openai.write(small(ReLU(), site_in=f"blocks.{layer}.hook_resid_post"), tmp_path)
    (tmp_path / "notes.pt").write_bytes(b"none")
    found = [sae.site_in for sae in openai.read(tmp_path)]
    assert found == [f"blocks.{layer}.hook_resid_post" for layer in (2, 9, 10)]
    with pytest.raises(FormatError, match=r"holds 3 autoencoders .* give one of the files"):
        openai.read(tmp_path, RESID)
    assert openai.read(tmp_path / "blocks.9.hook_resid_post.pt", RESID)[0].site_in == RESID


def test_a_file_with_an_unknown_name_needs_a_site(tmp_path: Path) -> None:
    path = changed("topk", tmp_path / "mine.pt")
    with pytest.raises(FormatError, match="mine.pt does not say which site is read; pass site="):
        openai.read(path)
    assert openai.read(path, RESID)[0].site_in == RESID


def test_a_file_that_says_no_activation_has_relu(tmp_path: Path) -> None:
    path = changed("relu", tmp_path / f"{RESID}.pt", activation=None, activation_state_dict=None)
    assert isinstance(openai.read(path)[0].selection, ReLU)


REFUSED = [
    ({"activation": "Identity"}, "has the activation 'Identity'; ReLU and TopK are read"),
    ({"activation_state_dict": {"k": 0, "postact_fn": "ReLU"}}, "has TopK with k=0"),
    ({"activation_state_dict": {"k": 3, "postact_fn": "GELU"}}, "postact_fn='GELU'; k is 1 or"),
    ({"activation_state_dict": None}, "has TopK with k=None and postact_fn=None"),
    ({"decoder.weight": None}, "missing: decoder.linear.weight, unknown: none"),
    ({"decoder.bias": torch.ones(3)}, "missing: none, unknown: decoder.bias"),
    ({"pre_bias": torch.ones(3)}, "does not hold a whole SAE: .* b_dec must have shape"),
    ({"encoder.weight": torch.ones(3)}, r"encoder.weight of shape \(3,\), which is no matrix"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_read_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        openai.read(changed("topk", tmp_path / f"{RESID}.pt", **changes))


def test_what_holds_none_is_refused(tmp_path: Path) -> None:
    assert not openai.is_here(tmp_path / "nothing") and not openai.is_here(tmp_path)
    with pytest.raises(FormatError, match="holds no autoencoder of OpenAI's; give a .pt file"):
        openai.read(tmp_path)


NOT_SAID = [
    (small(TopK(2)), "no TopK without layer_norm; save it with sae.save"),
    (small(ReLU(), normalization="layer_norm"), "no ReLU with layer_norm"),
    (small(ReLU(), normalization="center"), r"no normalization of its input \(center\)"),
    (small(JumpReLU(torch.ones(7))), "no jumprelu"),
    (small(Gated(torch.ones(7), torch.ones(7))), "no gated"),
    (small(ReLU(), W_skip=torch.ones(4, 4)), "no skip connection"),
    (small(ReLU(), site_out="blocks.1.hook_mlp_out"), "no transcoder, and this one reads"),
]


@pytest.mark.parametrize(("sae", "message"), NOT_SAID)
def test_what_it_cannot_say_is_not_written(sae, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        openai.write(sae, tmp_path)
    assert list(tmp_path.iterdir()) == []
