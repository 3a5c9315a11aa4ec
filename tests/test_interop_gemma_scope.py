"""Gemma Scope 1 and 2: the published layouts written here in numpy, latents against plain numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gossamer.errors import FormatError, GossamerError, SiteError
from gossamer.interop import gemma_scope, gemma_scope_2
from gossamer.saes import SAE, JumpReLU, Labels

WIDTH, LATENTS = 10, 18


def parts(width: int = WIDTH, latents: int = LATENTS) -> dict[str, np.ndarray]:
    """Weights as Gemma Scope stores them, float32, with a negative threshold among them."""
    draw = np.random.default_rng(5).normal
    weights = {"W_enc": draw(size=(width, latents)), "b_enc": draw(size=latents)}
    weights |= {"W_dec": draw(size=(latents, width)), "b_dec": draw(size=width)}
    weights["threshold"] = np.linspace(-0.5, 1.5, latents)
    return {name: array.astype(np.float32) for name, array in weights.items()}


def oracle(weights: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents and output, one token and one latent at a time, in float64."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    latents = np.zeros((len(x), weights["b_enc"].size))
    for token, row in enumerate(x):
        for i in range(latents.shape[1]):
            pre = row @ weights["W_enc"][:, i] + weights["b_enc"][i]
            if pre > weights["threshold"][i] and pre > 0:
                latents[token, i] = pre
    return latents, latents @ weights["W_dec"] + weights["b_dec"]


def check(sae: SAE, weights: dict[str, np.ndarray], skip: np.ndarray | None = None) -> None:
    x = np.random.default_rng(6).normal(size=(7, weights["W_enc"].shape[0]))
    latents, output = oracle(weights, x)
    output = output if skip is None else output + x @ skip
    ours = sae.to(torch.float64)
    assert 0.2 < (latents != 0).mean() < 0.8
    np.testing.assert_allclose(ours.encode(torch.tensor(x)).numpy(), latents, rtol=1e-9)
    np.testing.assert_allclose(ours(torch.tensor(x)).numpy(), output, rtol=1e-9)


def place(root: Path, *folders: str, **arrays: Any) -> Path:
    directory = root.joinpath(*folders)
    directory.mkdir(parents=True)
    np.savez(directory / "params.npz", **arrays)
    return directory


PUBLISHED = [
    ("gemma-scope-2b-pt-res", ["blocks.20.hook_resid_post"] * 2),
    ("gemma-scope-9b-pt-att", ["blocks.20.attn.hook_z"] * 2),
    ("gemma-scope-27b-pt-mlp", ["blocks.20.hook_mlp_out"] * 2),
    ("gemma-scope-2b-pt-transcoders", ["blocks.20.ln2.hook_normalized", "blocks.20.hook_mlp_out"]),
]


@pytest.mark.parametrize(("release", "sites"), PUBLISHED)
@pytest.mark.parametrize("latents", [LATENTS, WIDTH])
def test_sites_come_from_the_directories(
    release: str, sites: list[str], latents: int, tmp_path: Path
) -> None:
    weights = parts(latents=latents)
    folders = (release, "layer_20", "width_16k", "average_l0_71")
    directory = place(tmp_path, *folders, **weights)
    assert gemma_scope.is_here(directory) and gemma_scope.is_here(directory / "params.npz")
    (sae,) = gemma_scope.read(directory)
    assert [sae.site_in, sae.site_out] == sites
    assert sae.prepend_bos is True and sae.dtype == torch.float32
    assert sae.model_name == f"google/gemma-2-{release.split('-')[2]}"
    assert sae.metadata == {"release": release, "folder": "layer_20/width_16k/average_l0_71"}
    check(sae, weights)


def test_the_cache_of_the_hub_and_other_spellings_are_read(tmp_path: Path) -> None:
    weights = parts()
    lower = {"w_enc": weights["W_enc"], "w_dec": weights["W_dec"]}
    rest = {name: weights[name] for name in ("b_enc", "b_dec", "threshold")}
    scale = np.full(LATENTS, 2, np.float32)
    folders = ("models--google--gemma-scope-9b-it-res", "snapshots", "12ab", "layer_9", "width_16k")
    directory = place(tmp_path, *folders, "average_l0_88", **lower, **rest, scaling_factor=scale)
    (sae,) = gemma_scope.read(directory)
    assert sae.site_in == "blocks.9.hook_resid_post" and sae.model_name == "google/gemma-2-9b-it"
    check(sae, weights | {"W_dec": 2 * weights["W_dec"]})


def test_an_sae_of_the_embedding_table_reads_scaled_embeddings(tmp_path: Path) -> None:
    weights, root = parts(), WIDTH**0.5
    folders = ("gemma-scope-2b-pt-res", "embedding", "width_4k", "average_l0_6")
    (sae,) = gemma_scope.read(place(tmp_path, *folders, **weights))
    assert sae.site_in == sae.site_out == "hook_embed"
    rows = np.random.default_rng(1).normal(size=(4, WIDTH))
    latents, output = oracle(weights, rows)
    ours, scaled = sae.to(torch.float64), torch.tensor(rows * root)
    np.testing.assert_allclose(ours.encode(scaled).numpy(), latents, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours(scaled).numpy(), output * root, rtol=1e-5, atol=1e-6)


def test_elsewhere_the_caller_names_the_site(tmp_path: Path) -> None:
    directory = place(tmp_path, "mine", **parts())
    with pytest.raises(FormatError, match="does not say which site is read; pass site="):
        gemma_scope.read(directory)
    (sae,) = gemma_scope.read(directory, "blocks.3.hook_mlp_out")
    assert sae.site_in == sae.site_out == "blocks.3.hook_mlp_out"
    pair = ("blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out")
    (sae,) = gemma_scope.read(directory, pair)
    assert (sae.site_in, sae.site_out) == pair
    with pytest.raises(SiteError, match="Near names"):
        gemma_scope.read(directory, "blocks.3.hook_mpl_out")


def test_damaged_and_pickled_files_are_refused(tmp_path: Path) -> None:
    site = "blocks.3.hook_mlp_out"
    short = {name: array for name, array in parts().items() if name != "threshold"}
    with pytest.raises(FormatError, match="missing: threshold"):
        gemma_scope.read(place(tmp_path, "short", **short), site)
    pickled = place(tmp_path, "pickled", **parts() | {"b_enc": np.array([{}], dtype=object)})
    with pytest.raises(FormatError, match="cannot be read .*allow_pickle=False"):
        gemma_scope.read(pickled, site)
    wrong = place(tmp_path, "wrong", **parts() | {"b_dec": np.zeros(3, np.float32)})
    with pytest.raises(FormatError, match="does not hold a whole SAE"):
        gemma_scope.read(wrong, site)
    (tmp_path / "params.npz").write_bytes(b"PK nothing")
    assert not gemma_scope.is_here(tmp_path)
    assert not gemma_scope.is_here(place(tmp_path, "other", x=np.zeros(2)))


def jumprelu(**options: Any) -> SAE:
    weights = {name: torch.tensor(array) for name, array in parts().items()}
    selection = JumpReLU(weights.pop("threshold"))
    weights["W_enc"] = weights["W_enc"].T
    place = {"site_in": "blocks.1.hook_resid_pre"}
    return SAE(**weights, selection=selection, **place | options)


def equal(first: SAE, second: SAE) -> None:
    for (name, ours), theirs in zip(first.named_buffers(), second.buffers(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
    for name in "site_in site_out normalization prepend_bos model_name metadata labels".split():
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize("form", [gemma_scope, gemma_scope_2])
def test_what_is_written_comes_back(form: Any, tmp_path: Path) -> None:
    labels = Labels(tuple(("a",) for _ in range(LATENTS)))
    facts = {"model_name": "tiny", "prepend_bos": False, "metadata": {"l0": 3}, "labels": labels}
    for number, options in enumerate(
        [{}, {"site_in": "blocks.1.mlp.hook_in", "site_out": "blocks.1.hook_mlp_out", **facts}]
    ):
        sae = jumprelu(**options)
        form.write(sae, tmp_path / str(number))
        assert form.is_here(tmp_path / str(number))
        (again,) = form.read(tmp_path / str(number))
        equal(sae, again)
    subtracting = jumprelu(subtract_b_dec=True).to(torch.float64)
    form.write(subtracting, tmp_path / "folded")
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    (again,) = form.read(tmp_path / "folded")
    torch.testing.assert_close(again.encode(x), subtracting.encode(x))


def test_what_there_is_no_room_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="no normalization of its input"):
        gemma_scope.write(jumprelu(normalization="layer_norm"), tmp_path)
    with pytest.raises(FormatError, match="no skip connection"):
        gemma_scope.write(jumprelu(W_skip=torch.ones(WIDTH, WIDTH)), tmp_path)
    with pytest.raises(FormatError, match="no bfloat16; cast"):
        gemma_scope.write(jumprelu().to(torch.bfloat16), tmp_path)
    assert not list(tmp_path.iterdir())


def scope_2(root: Path, folder: str, config: dict | None, **arrays: np.ndarray) -> Path:
    """A directory as Gemma Scope 2 has them."""
    directory = root / "gemma-scope-2-1b-pt" / folder
    directory.mkdir(parents=True)
    lower = {"W_enc": "w_enc", "W_dec": "w_dec"}
    ready = {lower.get(name, name): np.ascontiguousarray(a) for name, a in arrays.items()}
    save_file(ready, directory / "params.safetensors")
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config))
    return directory


POINTS = {
    "resid_post": ("output", "output", "hook_resid_post", "hook_resid_post"),
    "attn_out": ("self_attn.o_proj.input",) * 2 + ("attn.hook_z",) * 2,
    "mlp_out": ("post_feedforward_layernorm.output",) * 2 + ("hook_mlp_out",) * 2,
    "transcoder_all": (
        *("pre_feedforward_layernorm.output", "post_feedforward_layernorm.output"),
        *("mlp.hook_in", "hook_mlp_out"),
    ),
}


@pytest.mark.parametrize("kind", POINTS)
@pytest.mark.parametrize("named", [True, False])
def test_gemma_scope_2_sites_come_from_the_config_or_the_directories(
    kind: str, named: bool, tmp_path: Path
) -> None:
    module_in, module_out, site_in, site_out = POINTS[kind]
    config = {
        "architecture": "jump_relu",
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": f"model.layers.13.{module_in}",
        "hf_hook_point_out": f"model.layers.13.{module_out}",
    }
    weights = parts()
    folder = f"{kind}/layer_13_width_16k_l0_small"
    directory = scope_2(tmp_path, folder, config if named else None, **weights)
    assert gemma_scope_2.is_here(directory) and not gemma_scope.is_here(directory)
    (sae,) = gemma_scope_2.read(directory)
    assert (sae.site_in, sae.site_out) == (f"blocks.13.{site_in}", f"blocks.13.{site_out}")
    assert sae.model_name == "google/gemma-3-1b-pt"
    check(sae, weights)


def test_gemma_scope_2_has_an_affine_connection_and_refuses_the_rest(tmp_path: Path) -> None:
    weights = parts()
    skip = np.random.default_rng(3).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    folder = "transcoder/layer_7_width_16k_l0_small_affine"
    directory = scope_2(tmp_path, folder, None, **weights, affine_skip_connection=skip)
    (sae,) = gemma_scope_2.read(directory)
    check(sae, weights, skip.astype(np.float64))
    gemma_scope_2.write(sae, tmp_path / "again")
    again, first = (load_file(d / "params.safetensors") for d in (tmp_path / "again", directory))
    assert again.keys() == first.keys()
    assert all(np.array_equal(again[name], first[name]) for name in first)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["hf_hook_point_in"] == "model.layers.7.pre_feedforward_layernorm.output"
    layer = np.zeros((LATENTS, 2, WIDTH), np.float32)
    clt = scope_2(tmp_path, "clt/layer_0_width_16k_l0_small", None, **weights | {"W_dec": layer})
    with pytest.raises(FormatError, match="one layer of a cross-layer transcoder"):
        gemma_scope_2.read(clt)
    odd = {"hf_hook_point_in": "model.layers.1.mlp", "architecture": "jump_relu"}
    with pytest.raises(FormatError, match=r"names the place model\.layers\.1\.mlp"):
        gemma_scope_2.read(scope_2(tmp_path, "resid_post/layer_1_a", odd, **weights))
    with pytest.raises(FormatError, match='of architecture "topk"; jump_relu is read'):
        topk = {"architecture": "topk"}
        gemma_scope_2.read(scope_2(tmp_path, "resid_post/layer_1_b", topk, **weights))
