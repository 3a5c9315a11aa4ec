"""OpenAI's autoencoders of GPT-2 small: one .pt for each place, a dict of tensors and settings.

    sparse-autoencoder/gpt2-small/resid_post_mlp_v5_32k/autoencoders/6.pt

    latents = activation(W_enc (u - b) + b_enc)      y = (latents W_dec + b) [* s + mean]

`activation` is ReLU, or TopK, which also means that u is x with its mean taken off and divided by
its deviation s (arXiv 2406.04093, and the models of openai/sparse_autoencoder). One bias b is both
taken off and added. The file does not say its place: the published names of folders do, and so do
the names of files that we write, such as blocks.6.hook_resid_post.pt.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import FormatError, SiteError
from gossamer.interop.pickles import pickled_words, read_pickle, write_pickle
from gossamer.interop.room import Room, Sites, with_sites
from gossamer.interop.whole import bias_as, whole_sae, whole_tensors
from gossamer.saes.native import make_directory
from gossamer.saes.relu import ReLU
from gossamer.saes.sae import SAE
from gossamer.saes.selection import AbstractSelection
from gossamer.saes.topk import TopK
from gossamer.sites import parse_site

NAME = "openai"

LOCATIONS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}
"""Sites within a block, by the words of the published folders."""

POST_ACTIVATIONS = {"ReLU": True, "Identity": False}
"""Whether TopK keeps positive latents alone, by what comes after it."""

ROOM = Room(
    label="OpenAI's autoencoder",
    selections=("relu", "topk", "topk_signed"),
    transcoders=False,
    subtracts=True,
    normalizations=("none", "layer_norm"),
)

_PLACE = re.compile(rf"({'|'.join(LOCATIONS)})(?:_v4|_v5_32k|_v5_128k)?/autoencoders/(\d+)\.pt")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_SETTINGS = ("activation", "activation_state_dict", "activation.k", "activation.postact_fn")
_WORDS = (b"pre_bias", b"latent_bias", b"encoder.weight")


def is_here(path: str | Path) -> bool:
    """Whether a file is such an autoencoder, or a directory holds one; nothing in it is run."""
    return any(_is_file(file) for file in _candidates(path))


def read(path: str | Path, site: Sites = None) -> list[SAE]:
    """The SAE of a file, or each one of a directory, in the order of its files' names.

    FormatError when a file is damaged, would run code, has another activation, or its place is
    neither in its name nor given. `site` is for one file alone.
    """
    found = [file for file in _candidates(path) if _is_file(file)]
    if not found:
        raise FormatError(f"{path} holds no autoencoder of OpenAI's; give a .pt file that is one.")
    if site is not None and len(found) > 1:
        raise FormatError(
            f"{path} holds {len(found)} autoencoders ({', '.join(file.name for file in found)}); "
            "give one of the files to say its site."
        )
    return [_read(file, site) for file in found]


def write(sae: SAE, directory: str | Path) -> None:
    """Write <site>.pt in a directory, for `Autoencoder.from_state_dict(torch.load(file))`, with the
    same latents there.

    There a TopK SAE has layer_norm, and one with ReLU has none. FormatError, before anything is
    written, for another. An SAE that does not subtract b_dec gets the b_enc of one that does. There
    is no room for labels, the model's name and the like.
    """
    ROOM.check(sae)
    topk = isinstance(sae.selection, TopK)
    if topk != (sae.normalization == "layer_norm"):
        raise FormatError(
            f"OpenAI's autoencoder has no {'TopK without' if topk else 'ReLU with'} layer_norm; "
            "save it with sae.save."
        )
    directory = Path(directory)
    contents: dict[str, Any] = {
        "pre_bias": sae.b_dec,
        "latent_bias": bias_as(sae, subtract=True),
        "stats_last_nonzero": torch.zeros(sae.d_sae, dtype=torch.long),
        "latents_activation_frequency": torch.ones(sae.d_sae),
        "latents_mean_square": torch.zeros(sae.d_sae),
        "encoder.weight": sae.W_enc,
        "decoder.weight": sae.W_dec.T,
        "activation": "ReLU",
        "activation_state_dict": {},
    }
    if isinstance(sae.selection, TopK):
        after = "ReLU" if sae.selection.relu else "Identity"
        contents["activation"] = "TopK"
        contents["activation_state_dict"] = {"k": sae.selection.k, "postact_fn": after}
    make_directory(directory)
    write_pickle(contents, directory / f"{sae.site_in}.pt")


def _candidates(path: str | Path) -> list[Path]:
    """The file itself, or the .pt files in a directory."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    return sorted(path.glob("*.pt"), key=lambda file: (len(file.name), file.name))  # 9 before 10


def _is_file(file: Path) -> bool:
    if not file.is_file():
        return False
    words = pickled_words(file)
    return all(word in words for word in _WORDS)


def _read(file: Path, site: Sites) -> SAE:
    contents = read_pickle(file)
    decoder = "decoder.weight" if "decoder.weight" in contents else "decoder.linear.weight"
    tensors = whole_tensors(
        contents,
        needed={"pre_bias", "latent_bias", "encoder.weight", decoder},
        beside=(*_STATISTICS, *_SETTINGS),
        where=file,
    )
    facts = with_sites(_facts_in(file), site, transcoder=False, where=file)
    W_dec = tensors[decoder] if decoder.startswith("decoder.linear") else tensors[decoder].T
    return whole_sae(
        file,
        W_enc=tensors["encoder.weight"],
        b_enc=tensors["latent_bias"],
        W_dec=W_dec,
        b_dec=tensors["pre_bias"],
        selection=_selection(contents, file),
        subtract_b_dec=True,
        normalization="layer_norm" if contents.get("activation") == "TopK" else "none",
        **facts,
    )


def _selection(contents: dict[str, Any], file: Path) -> AbstractSelection:
    """ReLU, or TopK with its settings."""
    activation = contents.get("activation", "ReLU")
    if activation == "ReLU":
        return ReLU()
    if activation != "TopK":
        raise FormatError(
            f"{file} has the activation {activation!r}; ReLU and TopK are read: train it again "
            "with one of these."
        )
    state = contents.get("activation_state_dict")
    state = state if isinstance(state, dict) else {}
    k, after = state.get("k"), state.get("postact_fn")
    k = int(k) if isinstance(k, Tensor) and k.numel() == 1 else k
    if not isinstance(k, int) or k < 1 or after not in POST_ACTIVATIONS:
        raise FormatError(
            f"{file} has TopK with k={k!r} and postact_fn={after!r}; k is 1 or more, postact_fn "
            f"one of {', '.join(POST_ACTIVATIONS)}: copy or download it again."
        )
    return TopK(k, relu=POST_ACTIVATIONS[after])


def _facts_in(file: Path) -> dict[str, Any]:
    """The site that the file's name says, ours or a published one."""
    published = _PLACE.search(file.absolute().as_posix())
    if published is not None:
        location, layer = published.groups()
        place = f"blocks.{layer}.{LOCATIONS[location]}"
        folder = published[0].split("/")[0]
        facts = {"site_in": place, "site_out": place, "metadata": {"folder": folder}}
        return facts | {"model_name": "gpt2"}
    try:
        parse_site(file.stem)
    except SiteError:
        return {}
    return {"site_in": file.stem, "site_out": file.stem}
