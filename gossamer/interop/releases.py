"""Published sets of SAEs on the hub, by the names that SAELens gave them.

Names, repositories and directories are those of SAELens' list; sites and centring are ours. Left
out of the list are those in formats that are not read here.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Where a release lies on the hub, and what its SAEs are."""

    repository: str
    """owner/name."""

    folder: str
    """Directory of one SAE, of any: {layer} stands for its layer, {kind} for a place within a
    block, * for anything in a directory's name; "" when the repository is one set."""

    sites: tuple[str, str] | None = None
    """Sites read and written, with {layer} or {kind}; None when the repository is one set."""

    files_say_sites: bool = False
    """Whether the files say their sites, so that `sites` only serves to choose."""

    center: bool | None = None
    """Whether the model's writing weights were centred, which these files do not say; None
    believes them."""


def _same(place: str) -> tuple[str, str]:
    """Read and written at one place of each block."""
    return (f"blocks.{{layer}}.{place}", f"blocks.{{layer}}.{place}")


def _gpt2() -> dict[str, Release]:
    found = {
        "gpt2-small-res-jb": Release(
            repository="jbloom/GPT2-Small-SAEs-Reformatted",
            folder="blocks.{layer}.{kind}",
            sites=_same("{kind}"),
            center=True,
        ),
        "gpt2-small-res-jb-feature-splitting": Release(
            repository="jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
            folder="blocks.{layer}.hook_resid_pre_*",
            sites=_same("hook_resid_pre"),
            center=True,
        ),
    }
    places = {"attn-out": "hook_attn_out", "mlp-out": "hook_mlp_out"}
    places |= {"resid-mid": "hook_resid_mid", "resid-post": "hook_resid_post"}
    for word, place in places.items():
        for size in ("32k", "128k"):
            found[f"gpt2-small-{word}-v5-{size}"] = Release(
                repository=f"jbloom/GPT2-Small-OAI-v5-{size}-{word}-SAEs",
                folder=f"v5_{size}_layer_{{layer}}*",
                sites=_same(place),
            )
    return found


def _gemma() -> dict[str, Release]:
    inside = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}
    first = [(model, kind) for model in ("2b-pt", "9b-pt") for kind in inside]
    first += [("9b-it", "res"), ("27b-pt", "res")]
    found = {
        f"gemma-scope-{model}-{kind}": Release(
            repository=f"google/gemma-scope-{model}-{kind}",
            folder="layer_{layer}/width_*/average_l0_*",
            sites=_same(inside[kind]),
        )
        for model, kind in first
    }
    found |= {f"{name}-canonical": release for name, release in found.items()}
    found["gemma-scope-2b-pt-transcoders"] = Release(
        repository="google/gemma-scope-2b-pt-transcoders",
        folder="layer_{layer}/width_*/average_l0_*",
        sites=("blocks.{layer}.ln2.hook_normalized", "blocks.{layer}.hook_mlp_out"),
    )
    kinds = {"res": "resid_post", "att": "attn_out", "mlp": "mlp_out", "transcoders": "transcoder"}
    coder = ("blocks.{layer}.mlp.hook_in", "blocks.{layer}.hook_mlp_out")
    for size in ("270m", "1b", "4b", "12b", "27b"):
        for tuned in ("pt", "it"):
            for kind, folder in kinds.items():
                for end in ("", "_all"):
                    name = f"gemma-scope-2-{size}-{tuned}-{kind}{end.replace('_', '-')}"
                    found[name] = Release(
                        repository=f"google/gemma-scope-2-{size}-{tuned}",
                        folder=f"{folder}{end}/layer_{{layer}}_width_*_l0_*",
                        sites=coder if kind == "transcoders" else _same(inside[kind]),
                    )
    return found


def _llama() -> dict[str, Release]:
    places = {
        "R": _same("hook_resid_post"),
        "A": _same("hook_attn_out"),
        "M": _same("hook_mlp_out"),
        "TC": ("blocks.{layer}.ln2.hook_normalized", "blocks.{layer}.hook_mlp_out"),
    }
    found = {
        f"llama_scope_lx{word.lower()}_{times}": Release(
            repository=f"fnlp/Llama3_1-8B-Base-LX{word}-{times}",
            folder=f"Llama3_1-8B-Base-L{{layer}}{word}-{times}",
            sites=sites,
            files_say_sites=True,
        )
        for word, sites in places.items()
        for times in ("8x", "32x")
    }
    return found | {"llama-scope": found["llama_scope_lxr_8x"]}


def _others() -> dict[str, Release]:
    found = {
        f"pythia-70m-deduped-{word}-sm": Release(
            repository=f"ctigges/pythia-70m-deduped__{word}-sm_processed",
            folder=f"{{layer}}-{word}-sm",
            sites=_same(place),
        )
        for word, place in (
            ("res", "hook_resid_post"),
            ("att", "hook_attn_out"),
            ("mlp", "hook_mlp_out"),
        )
    }
    found |= {
        "gemma-2b-res-jb": Release(
            repository="jbloom/Gemma-2b-Residual-Stream-SAEs",
            folder="gemma_2b_blocks.{layer}.hook_resid_post_*",
            sites=_same("hook_resid_post"),
        ),
        "gemma-2b-it-res-jb": Release(
            repository="jbloom/Gemma-2b-IT-Residual-Stream-SAEs",
            folder="gemma_2b_it_blocks.{layer}.hook_resid_post_*",
            sites=_same("hook_resid_post"),
        ),
        "llama-3-8b-it-res-jh": Release(
            repository="Juliushanhanhan/llama-3-8b-it-res",
            folder="blocks.{layer}.{kind}",
            sites=_same("{kind}"),
        ),
        "gemma-2-2b-res-matryoshka-dc": Release(
            repository="chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40",
            folder="standard/blocks.{layer}.{kind}",
            sites=_same("{kind}"),
        ),
        "gemma-2-9b-res-matryoshka-dc": Release(
            repository="chanind/gemma-2-9b-batch-topk-matryoshka-saes-w-32k-l0-60",
            folder="blocks.{layer}.{kind}",
            sites=_same("{kind}"),
        ),
    }
    models = ("4b", "8b", "14b", "0.6b-lowl0", "1.7b-lowl0", "14b-lowl0")
    for model in models:
        size, _, low = model.partition("-")
        name = f"qwen3-{size}-transcoders" + f"-{low}" * bool(low)
        found[f"mwhanna-{name}"] = Release(repository=f"mwhanna/{name}", folder="")
    return found


RELEASES: dict[str, Release] = _gpt2() | _gemma() | _llama() | _others()
"""Releases by name."""


def release_called(name: str) -> tuple[Release, str] | None:
    """(release, the rest of the name after it), None when the name begins with no release."""
    first, _, rest = name.partition("/")
    return (RELEASES[first], rest.strip("/")) if first in RELEASES else None


def near_names(name: str, known: Iterable[str]) -> str:
    """Up to six names near to one that is not known, for an error."""
    near = difflib.get_close_matches(name, list(known), n=6, cutoff=0.5)
    return ", ".join(near)
