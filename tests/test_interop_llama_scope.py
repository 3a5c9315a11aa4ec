"""Llama Scope's layout written here; latents against the authors' order of loading in numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from gossamer.errors import FormatError
from gossamer.interop import llama_scope
from gossamer.saes import SAE, JumpReLU, ReLU, TopK
from tests.tiny_saes import tiny_sae

D_IN, D_OUT, LATENTS = 9, 12, 20
RESID = "blocks.14.hook_resid_post"


def stored(width_out: int = D_IN, dtype: Any = np.float64) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7).normal
    tensors = {"encoder.weight": draw(size=(LATENTS, D_IN)), "encoder.bias": draw(size=LATENTS)}
    tensors |= {
        "decoder.weight": draw(size=(width_out, LATENTS)),
        "decoder.bias": draw(size=width_out),
    }
    return {name: np.ascontiguousarray(array.astype(dtype)) for name, array in tensors.items()}


def place(root: Path, tensors: dict[str, np.ndarray], **settings: Any) -> Path:
    directory = root / "Llama3_1-8B-Base-L14R-8x"
    (directory / "checkpoints").mkdir(parents=True)
    save_file(tensors, directory / "checkpoints" / "final.safetensors")
    config = {
        "hook_point_in": RESID,
        "hook_point_out": RESID,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.8,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
    }
    (directory / "hyperparams.json").write_text(json.dumps(config | settings))
    return directory


def as_authors_load(
    tensors: dict[str, np.ndarray], norms: dict[str, float], threshold: float, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Run on inputs in their own scale, as trained, one latent at a time: the input is scaled, a
    latent is compared in units of what it writes unscaled, the output is scaled back."""
    s_in, s_out = D_IN**0.5 / norms["in"], len(tensors["decoder.bias"]) ** 0.5 / norms["out"]
    latents = np.zeros((len(x), LATENTS))
    output = np.tile(tensors["decoder.bias"] / s_out, (len(x), 1))
    for token, row in enumerate(x):
        for i in range(LATENTS):
            trained = tensors["encoder.weight"][i] @ (s_in * row) + tensors["encoder.bias"][i]
            column = tensors["decoder.weight"][:, i]
            size = np.linalg.norm(column) * trained / s_out  # of what it adds to the output
            if size > threshold:
                latents[token, i] = size
                output[token] += trained * column / s_out
    return latents, output


CASES = {
    "residual": (D_IN, {"in": 4.0, "out": 4.0}, RESID),
    "transcoder": (D_OUT, {"in": 3.0, "out": 0.7}, "blocks.14.hook_mlp_out"),
}


@pytest.mark.parametrize("name", CASES)
def test_latents_are_those_of_the_authors_loading(name: str, tmp_path: Path) -> None:
    width_out, norms, site_out = CASES[name]
    tensors = stored(width_out)
    site_in = RESID if name == "residual" else "blocks.14.ln2.hook_normalized"
    directory = place(
        tmp_path,
        tensors,
        dataset_average_activation_norm=norms,
        hook_point_in=site_in,
        hook_point_out=site_out,
    )
    assert llama_scope.is_here(directory)
    (sae,) = llama_scope.read(directory)
    assert (sae.site_in, sae.site_out) == (site_in, site_out)
    assert sae.model_name == "meta-llama/Llama-3.1-8B" and sae.prepend_bos is True
    x = np.random.default_rng(8).normal(size=(6, D_IN))
    latents, output = as_authors_load(tensors, norms, 0.8, x)
    assert 0.1 < (latents != 0).mean() < 0.9
    np.testing.assert_allclose(sae.encode(torch.tensor(x)).numpy(), latents, atol=1e-12)
    np.testing.assert_allclose(sae(torch.tensor(x)).numpy(), output, atol=1e-12)


def test_activations_and_biases_follow_the_config(tmp_path: Path) -> None:
    def read(name: str, tensors: dict | None = None, **settings: Any) -> SAE:
        return llama_scope.read(place(tmp_path / name, tensors or stored(), **settings))[0]

    topk = read("k", act_fn="topk", jump_relu_threshold=0.0, top_k=4)
    assert isinstance(topk.selection, TopK) and topk.selection.k == 4 and topk.selection.relu
    assert isinstance(read("t", act_fn="topk").selection, JumpReLU)  # with a threshold it is that
    assert isinstance(read("r", act_fn="relu").selection, ReLU)
    bare = {name: tensor for name, tensor in stored().items() if name != "decoder.bias"}
    assert not read("b", bare, use_decoder_bias=False).b_dec.any()
    subtracting = read("s", apply_decoder_bias_to_pre_encoder=True)
    x = torch.randn(4, D_IN, dtype=torch.float64)
    moved = x - subtracting.b_dec
    torch.testing.assert_close(subtracting.encode(x), read("n").encode(moved))
    half = read("h", stored(dtype=np.float16))
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act_fn": "tanh"}, 'the activation "tanh"; relu, jumprelu and topk'),
        ({"use_glu_encoder": True}, "gated linear encoder"),
        ({"norm_activation": "token-wise"}, 'norm_activation "token-wise"; dataset-wise is read'),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, "activation_norm.in, got 0"),
        ({"dataset_average_activation_norm": None}, "activation_norm.in, got None"),
        ({"hook_point_in": None, "hook_point_out": None}, "does not say which site is read"),
        ({"act_fn": "topk", "jump_relu_threshold": 0, "top_k": 900}, "TopK needs k"),
        (
            {"apply_decoder_bias_to_pre_encoder": True, "hook_point_out": "blocks.1.hook_mlp_out"},
            "subtracts its output's bias",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        llama_scope.read(place(tmp_path, stored(), **settings))


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    for name in ("relu", "topk", "jumprelu"):
        sae = tiny_sae(name, RESID, 8)
        if isinstance(sae.selection, JumpReLU):
            with pytest.raises(FormatError, match="one threshold for all latents"):
                llama_scope.write(sae, tmp_path / name)
            sae.selection.threshold.fill_(0.7)
        llama_scope.write(sae, tmp_path / name)
        (again,) = llama_scope.read(tmp_path / name)
        assert again.site_in == RESID and again.selection.scalars() == sae.selection.scalars()
        for (key, ours), theirs in zip(sae.named_buffers(), again.buffers(), strict=True):
            assert torch.equal(ours, theirs), key
    with pytest.raises(FormatError, match="Llama Scope has no gated"):
        llama_scope.write(tiny_sae("gated", RESID, 8), tmp_path / "gated")
