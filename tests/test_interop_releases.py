"""The table of releases, and which files of a repository a name means."""

import pytest

from gossamer.errors import FormatError
from gossamer.interop.places import places_in, places_of, places_under
from gossamer.interop.releases import RELEASES, near_names, release_called
from gossamer.sites import parse_site

SAE_LENS = ("cfg.json", "sae_weights.safetensors")
MOST_USED = (
    *("gpt2-small-res-jb", "gpt2-small-res-jb-feature-splitting", "gpt2-small-resid-post-v5-32k"),
    *("gpt2-small-resid-mid-v5-128k", "gpt2-small-attn-out-v5-32k", "gpt2-small-mlp-out-v5-32k"),
    *("gemma-scope-2b-pt-res", "gemma-scope-2b-pt-res-canonical", "gemma-scope-2b-pt-mlp"),
    *("gemma-scope-2b-pt-att", "gemma-scope-9b-pt-res", "gemma-scope-9b-it-res"),
    *("gemma-scope-27b-pt-res", "gemma-scope-2b-pt-transcoders", "gemma-scope-2-1b-pt-res"),
    *("llama-scope", "llama_scope_lxr_8x", "llama_scope_lxm_32x", "pythia-70m-deduped-res-sm"),
    *("gemma-2b-res-jb", "gemma-2b-it-res-jb", "mwhanna-qwen3-4b-transcoders"),
)


def names(folder: str, files: tuple[str, ...] = SAE_LENS) -> list[str]:
    return [f"{folder}/{file}" for file in files]


def test_the_most_used_are_there_and_their_sites_are_sites() -> None:
    assert set(MOST_USED) <= RELEASES.keys()
    for name, release in RELEASES.items():
        assert release.repository.count("/") == 1, name
        for site in release.sites or ():
            parse_site(site.format(layer=3, kind="hook_resid_pre"))
    assert RELEASES["gpt2-small-res-jb"].center is True
    assert RELEASES["gemma-scope-2b-pt-res"].center is None
    assert RELEASES["mwhanna-qwen3-4b-transcoders"].sites is None


PUBLISHED = {
    "gpt2-small-res-jb": ("blocks.11.hook_resid_post", "blocks.11.hook_resid_post"),
    "gpt2-small-resid-mid-v5-32k": ("v5_32k_layer_7", "blocks.7.hook_resid_mid"),
    "gpt2-small-resid-post-v5-32k": ("v5_32k_layer_7.pt", "blocks.7.hook_resid_post"),
    "gpt2-small-mlp-out-v5-128k": ("v5_128k_layer_11", "blocks.11.hook_mlp_out"),
    "gemma-2b-res-jb": (
        "gemma_2b_blocks.0.hook_resid_post_16384_anthropic",
        "blocks.0.hook_resid_post",
    ),
    "pythia-70m-deduped-att-sm": ("5-att-sm", "blocks.5.hook_attn_out"),
    "gemma-2-2b-res-matryoshka-dc": (
        "standard/blocks.24.hook_resid_post",
        "blocks.24.hook_resid_post",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_directories_are_found(name: str) -> None:
    folder, site = PUBLISHED[name]
    (place,) = places_of(RELEASES[name], [*names(folder), "README.md", "other/x.txt"], "")
    assert place.folder == folder and place.site == (site, site)
    assert place.files == tuple(names(folder)) and place.center is RELEASES[name].center


def test_a_site_is_written_by_the_narrowest_with_an_l0_near_100() -> None:
    scope = ("params.npz",)
    folders = [
        f"layer_7/width_{width}/average_l0_{l0}"
        for width in ("65k", "16k", "1m")
        for l0 in (9, 92, 131, 408)
    ]
    files = [file for folder in folders for file in names(folder, scope)]
    release = RELEASES["gemma-scope-2b-pt-mlp"]
    (place,) = places_of(release, files, "")
    assert place.folder == "layer_7/width_16k/average_l0_92"
    (place,) = places_of(release, files, "width_1m")
    assert place.folder == "layer_7/width_1m/average_l0_92"
    (place,) = places_of(release, files, "layer_7/width_65k/average_l0_408")
    assert place.folder == "layer_7/width_65k/average_l0_408"
    with pytest.raises(FormatError, match=r"has no layer_.* with width_4k in its name; give one"):
        places_of(release, files, "width_4k")


def test_gemma_scope_2_is_chosen_without_affine_and_of_medium_l0() -> None:
    ends = ("big", "big_affine", "medium", "medium_affine", "small", "small_affine")
    folders = [f"transcoder/layer_13_width_{w}_l0_{end}" for w in ("16k", "65k") for end in ends]
    files = [
        file for folder in folders for file in names(folder, ("config.json", "params.safetensors"))
    ]
    files += names("resid_post/layer_13_width_16k_l0_medium", ("params.safetensors",))
    (place,) = places_of(RELEASES["gemma-scope-2-1b-pt-transcoders"], files, "")
    assert place.folder == "transcoder/layer_13_width_16k_l0_medium"
    assert place.site == ("blocks.13.mlp.hook_in", "blocks.13.hook_mlp_out")
    assert len(place.files) == 2
    (place,) = places_of(RELEASES["gemma-scope-2-1b-pt-res"], files, "")
    assert place.folder == "resid_post/layer_13_width_16k_l0_medium"


def test_llama_scope_is_found_by_layer_and_its_files_say_the_sites() -> None:
    files = [
        f"Llama3_1-8B-Base-L{layer}TC-8x/{file}"
        for layer in (2, 14)
        for file in ("hyperparams.json", "checkpoints/final.safetensors", "checkpoints/other.pt")
    ]
    release = RELEASES["llama_scope_lxtc_8x"]
    places = places_of(release, files, "")
    assert [place.folder[-5:] for place in places] == ["2TC-8x"[-5:], "14TC-8x"[-5:]]
    (place,) = places_of(release, files, "", "blocks.14.hook_mlp_out")
    assert place.site is None and place.folder == "Llama3_1-8B-Base-L14TC-8x"
    assert [file.split("/", 1)[1] for file in place.files] == [
        "checkpoints/final.safetensors",
        "hyperparams.json",
    ]


def test_the_saes_of_any_repository_are_seen_by_their_files() -> None:
    files = ["README.md", "model.safetensors", "config.json", *names("a/b"), "a/b/runner_cfg.json"]
    files += [*names("c", ("sae.json", "sae.safetensors")), "d/e.pt"]
    assert [place.folder for place in places_in(files)] == ["a/b", "c"]
    assert [place.folder for place in places_under(files, "a", "o/r")] == ["a/b"]
    (place,) = places_under(files, "d/e.pt", "o/r")
    assert place.files == ("d/e.pt",)
    with pytest.raises(
        FormatError, match="holds no SAE in a/bb of a known format; near names: a/b"
    ):
        places_under(files, "a/bb", "o/r")


def test_names_are_split_and_near_ones_listed() -> None:
    assert release_called("nothing") is None
    found = release_called("gemma-scope-2b-pt-res/layer_20/width_16k")
    assert found is not None and found[1] == "layer_20/width_16k"
    assert near_names("gpt2-small-rez-jb", RELEASES).startswith("gpt2-small-res-jb")
