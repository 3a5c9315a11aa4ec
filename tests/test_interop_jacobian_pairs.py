"""Jacobian pairs give the latents the authors' class gives, and our files give it ours.

The fixtures were saved by that class (`fixtures/foreign_fixtures.sh make jacobian_pairs`), which
also read what our writer wrote (`check`): checked.json.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gossamer.errors import FormatError
from gossamer.interop import jacobian_pairs
from gossamer.interop.jacobian_pairs import write_pair
from gossamer.library import load_sae
from gossamer.saes import SAE, JumpReLU, ReLU, TopK
from tests.foreign_saes import (
    D_IN,
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

HERE = FIXTURES / "jacobian_pairs"
CASES = cases("jacobian_pairs")
NORMALIZED, MLP_IN, MLP_OUT = (
    f"blocks.1.{kind}" for kind in ("ln2.hook_normalized", "mlp.hook_in", "hook_mlp_out")
)


@pytest.fixture
def copy(tmp_path: Path):
    """A function that copies a fixture with changed settings or tensors."""

    def make(name: str, tensors: dict | None = None, **config) -> Path:
        directory = Path(shutil.copytree(HERE / name, tmp_path / name))
        path = directory / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        weights = directory / "sae_weights.safetensors"
        kept = load_file(weights) | (tensors or {})
        save_file({key: value for key, value in kept.items() if value is not None}, weights)
        return directory

    return make


def test_the_authors_read_what_we_wrote() -> None:
    assert_small("jacobian_pairs")
    found = checked("jacobian_pairs")
    assert set(found) == {*CASES, "bundled"} and max(found.values()) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_latents_outputs_and_sites_are_those_of_the_authors(name: str) -> None:
    assert jacobian_pairs.is_here(HERE / name)
    first, second = jacobian_pairs.read(HERE / name)
    said = expected(HERE / name)
    assert_gives(first, said, "_in")
    assert_gives(second, said, "_out")
    assert first.site_in == first.site_out == (NORMALIZED if name == "folded" else MLP_IN)
    assert second.site_in == second.site_out == MLP_OUT
    assert second.normalization == {"folded": "center", "layer_norm": "layer_norm"}.get(
        name, "none"
    )
    assert first.model_name == "pythia-70m-deduped" and first.prepend_bos is True
    assert first.metadata["context_size"] == 128 and "d_in" not in first.metadata
    assert first.selection.scalars() == ({} if name == "relu" else {"k": K, "relu": True})


@pytest.mark.parametrize("name", CASES)
def test_write_then_read_is_identity(name: str, tmp_path: Path) -> None:
    pair = jacobian_pairs.read(HERE / name)
    write_pair(*pair, tmp_path / "new")
    for sae, again in zip(pair, jacobian_pairs.read(tmp_path / "new"), strict=True):
        assert_same(sae, again)


def test_a_pair_of_our_own_comes_back(tmp_path: Path) -> None:
    pair = [load_sae(f"pico-python/jacobian/blocks.0.{x}") for x in ("mlp.hook_in", "hook_mlp_out")]
    write_pair(*pair, tmp_path)
    for sae, again in zip(pair, jacobian_pairs.read(tmp_path), strict=True):
        again = SAE(**again.arguments() | {"labels": sae.labels})  # there is no room for labels
        assert_same(sae, again)


def test_sites_can_be_given() -> None:
    assert [sae.site_in for sae in jacobian_pairs.read(HERE / "topk", NORMALIZED)] == [
        NORMALIZED,
        MLP_OUT,
    ]
    pair = jacobian_pairs.read(HERE / "topk", (RESID, MLP_IN))
    assert [sae.site_in for sae in pair] == [RESID, MLP_IN]
    with pytest.raises(FormatError, match=r"sites of its two SAEs .*; pass site=\(site of the fir"):
        jacobian_pairs.read(HERE / "topk", RESID)


def test_sites_that_are_no_mlps_are_kept_beside_what_the_authors_read(tmp_path: Path) -> None:
    pair = [small(ReLU(), site_in=RESID), small(ReLU(), site_in="hook_embed")]
    write_pair(*pair, tmp_path)
    assert [sae.site_in for sae in jacobian_pairs.read(tmp_path)] == [RESID, "hook_embed"]


def test_of_two_that_differ_in_subtracting_neither_does(tmp_path: Path) -> None:
    first = small(TopK(2), site_in=MLP_IN, subtract_b_dec=True)
    second = small(TopK(2), site_in=MLP_OUT)
    write_pair(first, second, tmp_path)
    x = torch.randn(9, 4)
    for sae, again in zip((first, second), jacobian_pairs.read(tmp_path), strict=True):
        assert not again.subtract_b_dec
        assert_near(again.encode(x), sae.encode(x))


def test_a_scaling_factor_of_ones_is_dropped(copy) -> None:
    ones = copy("topk", {"scaling_factor": torch.ones(28)})
    plain = jacobian_pairs.read(HERE / "topk")
    for sae, again in zip(plain, jacobian_pairs.read(ones), strict=True):
        assert_same(sae, again)


REFUSED = [
    ({"architecture": "gated"}, 'of architecture "gated" with the activation "topk"; standard'),
    ({"activation_fn_str": "tanh-relu"}, 'with the activation "tanh-relu"'),
    ({"activation_fn_kwargs": {}}, "has topk with k=None; k is 1 or more"),
    ({"activation_fn_kwargs": {"k": 99}}, "does not hold a whole SAE: TopK needs k in"),
    ({"hook_head_index": 4}, r"one attention head \(hook_head_index=4\)"),
    ({"hook_name": "blocks.1.attn.hook_q"}, "does not say the sites of its two SAEs"),
    ({"normalize_activations": "expected_average_only_in"}, '"expected_average_only_in"; none, '),
    ({"tensors": {"_W_enc_out": None}}, "missing: _W_enc_out, unknown: none"),
    ({"tensors": {"stranger": torch.ones(1)}}, "missing: none, unknown: stranger"),
    ({"tensors": {"_b_enc": torch.ones(3)}}, "does not hold a whole SAE: .*b_enc must have"),
    ({"tensors": {"scaling_factor": torch.full((28,), 2.0)}}, "scaling_factor other than 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_read_is_refused(changes: dict, message: str, copy) -> None:
    with pytest.raises(FormatError, match=message):
        jacobian_pairs.read(copy("topk", **changes))


def test_single_saes_are_not_taken_for_pairs(copy, tmp_path: Path) -> None:
    assert not jacobian_pairs.is_here(FIXTURES / "sae_lens" / "topk_flat")
    directory = copy("topk")
    (directory / "sae_weights.safetensors").write_bytes(b"short")
    assert not jacobian_pairs.is_here(directory) and not jacobian_pairs.is_here(tmp_path)
    with pytest.raises(FormatError, match="sae_weights.safetensors is damaged"):
        jacobian_pairs.read(directory)


IN, OUT = {"site_in": MLP_IN}, {"site_in": MLP_OUT}
NOT_SAID = [
    (small(TopK(2), **IN), small(TopK(3), **OUT), "one activation and one normalization, got"),
    (small(TopK(2), **IN), small(ReLU(), **OUT), "one activation and one normalization, got"),
    (small(ReLU(), **IN), small(ReLU(), d_sae=8, **OUT), "have one d_sae, got 7 and 8"),
    (small(ReLU(), **IN), small(ReLU(), **OUT).double(), "have one dtype, got torch.float32 and"),
    (small(ReLU(), normalization="center", **IN), small(ReLU(), **OUT), "cannot say that the SAE"),
    (small(JumpReLU(torch.ones(7)), **IN), small(ReLU(), **OUT), "A Jacobian pair has no jumprelu"),
    (small(ReLU(), **IN), small(ReLU(), W_skip=torch.ones(4, 4), **OUT), "no skip connection"),
    (small(ReLU(), **IN), small(ReLU(), site_out=MLP_OUT, **IN), "no transcoder, and this one"),
]


@pytest.mark.parametrize(("first", "second", "message"), NOT_SAID)
def test_what_a_pair_cannot_say_is_not_written(first, second, message, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        write_pair(first, second, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_sae_cannot_be_written_and_the_reason_names_what_can() -> None:
    assert jacobian_pairs.write is None
    assert "two SAEs" in jacobian_pairs.NOT_WRITTEN and "write_pair" in jacobian_pairs.NOT_WRITTEN
    assert jacobian_pairs.read(HERE / "topk")[0].d_in == D_IN
