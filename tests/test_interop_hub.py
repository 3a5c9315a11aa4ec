"""Releases and hub ids, loaded from a hub on this machine that speaks the hub's protocol."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

import gossamer
from gossamer.cli import cli
from gossamer.errors import FormatError, GossamerError
from gossamer.interop.hub import is_hub_name, split_hub_name
from gossamer.interop.sae_lens import write_sae_lens
from tests.hub_server import Hub, point_at, serving
from tests.test_interop_gemma_scope import parts
from tests.tiny_saes import tiny_sae

JB, SCOPE = "jbloom/GPT2-Small-SAEs-Reformatted", "google/gemma-scope-2b-pt-res"
SITES = ("blocks.0.hook_resid_pre", "blocks.5.hook_resid_pre")
LAYERS = Path(__file__).parent / "fixtures" / "circuit_tracer" / "relu"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories as published: SAELens, Gemma Scope, a transcoder set, and one of our own."""
    root = tmp_path_factory.mktemp("hub")
    for seed, site in enumerate(SITES):
        sae = tiny_sae("relu", site, 12, seed=seed, dtype=torch.float32, subtract_b_dec=True)
        write_sae_lens(sae, root / JB / site)
        tiny_sae("topk", site, 12, seed=seed, dtype=torch.float32).save(root / "me/own" / site)
    (root / JB / "README.md").write_text("about")
    (root / JB / SITES[0] / "sparsity.safetensors").write_bytes(b"not read")
    for layer, width, l0 in [(20, "16k", 71), (20, "16k", 408), (20, "65k", 100), (3, "16k", 60)]:
        folder = root / SCOPE / f"layer_{layer}/width_{width}/average_l0_{l0}"
        folder.mkdir(parents=True)
        latents = {"16k": 18, "65k": 24}[width]
        weights = parts(latents=latents) | {"b_dec": np.full(10, l0, np.float32)}
        np.savez(folder / "params.npz", **{name: array for name, array in weights.items()})
    coder = root / "mwhanna/qwen3-4b-transcoders"
    coder.mkdir(parents=True)
    for file in LAYERS.glob("layer_*.safetensors"):
        shutil.copy(file, coder)
    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    settings = {"model_name": "Qwen/Qwen3-4B", "model_kind": "transcoder_set"} | hooks
    (coder / "config.yaml").write_text(yaml.safe_dump(settings))
    (root / "me/empty").mkdir(parents=True)
    (root / "me/empty/README.md").write_text("nothing")
    return root


@pytest.fixture
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(repositories) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        yield hub


def test_a_release_of_sae_lens_is_loaded_and_centred(hub: Hub, repositories: Path) -> None:
    saes = gossamer.load_saes("gpt2-small-res-jb")
    assert list(saes) == list(SITES)
    assert sorted(hub.downloads()) == sorted(
        f"{site}/{file}" for site in SITES for file in ("cfg.json", "sae_weights.safetensors")
    )
    one = gossamer.load_sae("gpt2-small-res-jb", site=SITES[1])
    local = gossamer.load_sae(repositories / JB / SITES[1], center=True)
    x = torch.randn(4, 12)
    assert one.normalization == "center" and torch.equal(one.encode(x), local.encode(x))
    assert gossamer.load_sae(f"gpt2-small-res-jb/{SITES[1]}", center=False).normalization == "none"
    assert len(hub.downloads()) == 4  # nothing that is in the cache is fetched again


def test_one_sae_of_gemma_scope_is_chosen_by_site_and_by_directory(hub: Hub) -> None:
    site, l0 = "blocks.20.hook_resid_post", gossamer.load_sae
    chosen = l0("gemma-scope-2b-pt-res", site=site)
    assert hub.downloads() == ["layer_20/width_16k/average_l0_71/params.npz"]
    assert chosen.site_in == site and float(chosen.b_dec[0]) == 71 and chosen.prepend_bos
    wide = l0("gemma-scope-2b-pt-res/width_65k", site=site)
    assert wide.d_sae == 24 and float(wide.b_dec[0]) == 100
    dense = l0("gemma-scope-2b-pt-res/layer_20/average_l0_408")
    assert float(dense.b_dec[0]) == 408 and dense.site_out == site
    everywhere = gossamer.load_saes("gemma-scope-2b-pt-res-canonical")
    assert list(everywhere) == ["blocks.3.hook_resid_post", site]
    with pytest.raises(GossamerError, match="has 2 SAEs .*layer_20/width_16k/average_l0_71.*site="):
        l0("gemma-scope-2b-pt-res")
    with pytest.raises(
        FormatError, match="has no layer_.*for blocks.9.hook_resid_post.*give one of"
    ):
        l0("gemma-scope-2b-pt-res", site="blocks.9.hook_resid_post")


def test_one_layer_of_a_set_fetches_no_other(hub: Hub) -> None:
    name = "mwhanna-qwen3-4b-transcoders"
    sae = gossamer.load_sae(name, site="blocks.1.hook_mlp_out")
    assert sae.site_in == "blocks.1.mlp.hook_in" and sae.model_name == "Qwen/Qwen3-4B"
    assert sorted(hub.downloads()) == ["config.yaml", "layer_1.safetensors"]
    with pytest.raises(GossamerError, match="has 3 SAEs .*layer_0.safetensors.*load_saes"):
        gossamer.load_sae(name)
    with pytest.raises(FormatError, match="has no layer_8.safetensors for blocks.8"):
        gossamer.load_sae(name, site="blocks.8.hook_mlp_out")
    assert len(gossamer.load_saes(name)) == 3


def test_hub_ids_are_loaded_by_directory_site_and_file(hub: Hub) -> None:
    assert list(gossamer.load_saes("me/own")) == list(SITES)
    assert gossamer.load_sae(f"me/own/{SITES[0]}").site_in == SITES[0]
    assert gossamer.load_sae("me/own", site=SITES[1]).site_in == SITES[1]
    with pytest.raises(GossamerError, match="me/own has 2 SAEs"):
        gossamer.load_sae("me/own")
    file = f"{SCOPE}/layer_3/width_16k/average_l0_60/params.npz"
    assert gossamer.load_sae(file).site_in == "blocks.3.hook_resid_post"
    with pytest.raises(FormatError, match="holds no SAE in blocks.0.hook_resid of a known.*_pre"):
        gossamer.load_sae("me/own/blocks.0.hook_resid")
    with pytest.raises(FormatError, match="me/empty holds no SAE in any directory"):
        gossamer.load_saes("me/empty")
    with pytest.raises(FormatError, match="of the hub's me/nothing cannot be had"):
        gossamer.load_saes("me/nothing")


def test_a_release_is_converted(hub: Hub, tmp_path: Path) -> None:
    arguments = [
        "convert",
        "gpt2-small-res-jb",
        "--to",
        "gossamer",
        str(tmp_path / "out"),
        "--json",
    ]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    folders = [Path(each["directory"]).name for each in json.loads(done.stdout)["saes"]]
    assert folders == list(SITES)
    assert gossamer.load_saes(tmp_path / "out")[SITES[0]].normalization == "center"


def test_without_a_network_the_cache_is_used_and_else_the_files_are_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gossamer.load_sae("gpt2-small-res-jb", site=SITES[1])
    n_asked = len(hub.asked)
    point_at(monkeypatch, None, tmp_path / "cache")
    assert gossamer.load_sae("gpt2-small-res-jb", site=SITES[1]).site_in == SITES[1]
    with pytest.raises(FormatError, match="has no blocks.*for blocks.0.hook_resid_pre"):
        gossamer.load_sae("gpt2-small-res-jb", site=SITES[0])
    message = r"layer_\{layer\}/width_\*.* of the hub's google/gemma-scope-2b-pt-res cannot be had"
    with pytest.raises(FormatError, match=message) as caught:
        gossamer.load_saes("gemma-scope-2b-pt-res")
    assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="of the hub's me/own cannot be had"):
        gossamer.load_saes("me/own")
    assert len(hub.asked) == n_asked


def test_only_a_hub_id_or_a_release_is_looked_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/r2", "nowhere", "./a/b", str(tmp_path / "a"), "pico-python/nope", "../a/b"):
        with pytest.raises(FormatError, match="^No directory"):
            gossamer.load_sae(name)
        with pytest.raises(FormatError, match="^No SAEs called"):
            gossamer.load_saes(name)
    with pytest.raises(FormatError, match="near names: gpt2-small-res-jb"):
        gossamer.load_sae("gpt2-small-resjb")
    assert gossamer.load_saes("pico-python") and hub.asked == []
    assert is_hub_name("a/b") and is_hub_name("a/b/c.d/e") and not is_hub_name("a")
    assert split_hub_name("a/b/c/d") == ("a/b", "c/d") and split_hub_name("a/b") == ("a/b", "")
