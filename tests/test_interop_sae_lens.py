"""SAELens files give the latents SAELens gives, and our files give SAELens ours.

The fixtures were saved by SAELens 6.54.12, with the latents and outputs it computes beside them;
`fixtures/sae_lens_fixtures.sh check` lets SAELens read what our writer wrote.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.interop.sae_lens import is_sae_lens, read_sae_lens, write_sae_lens
from gossamer.library import load_sae
from gossamer.saes import SAE, Gated, JumpReLU, Labels, ReLU, TopK

FIXTURES = Path(__file__).parent / "fixtures" / "sae_lens"
CASES = sorted(path.name for path in FIXTURES.iterdir())
RESID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_pre", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
D_IN, D_SAE = 12, 28


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest value."""
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= tolerance, f"off by {error:.1e} of the largest value"


@pytest.fixture
def copy(tmp_path: Path):
    """A function that gives a copy of a fixture with changed settings or tensors."""

    def make(
        name: str, tensors: dict | None = None, metadata: dict | None = None, **config
    ) -> Path:
        directory = Path(shutil.copytree(FIXTURES / name, tmp_path / name))
        path = directory / "cfg.json"
        contents = json.loads(path.read_text())
        contents |= config
        if metadata is not None:
            contents["metadata"] |= metadata
        path.write_text(json.dumps(contents))
        weights = directory / "sae_weights.safetensors"
        kept = load_file(weights) | (tensors or {})
        save_file({key: value for key, value in kept.items() if value is not None}, weights)
        return directory

    return make


def test_there_is_a_fixture_of_every_architecture() -> None:
    from gossamer.interop.sae_lens.layout import ARCHITECTURES

    assert set(ARCHITECTURES) <= set(CASES) and len(CASES) >= 19
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*")) < 300_000


@pytest.mark.parametrize("name", CASES)
def test_latents_and_outputs_are_those_of_sae_lens(name: str) -> None:
    assert is_sae_lens(FIXTURES / name)
    half = name == "standard_bfloat16"
    sae = read_sae_lens(FIXTURES / name, dtype=torch.bfloat16 if half else None)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    x, tolerance = expected["x"], 2e-2 if half else 1e-5  # sums of bfloat16 differ by their order
    assert sae.dtype == (torch.bfloat16 if half else torch.float32)
    assert_near(sae.encode(x), expected["latents"], tolerance)
    assert_near(sae(x), expected["output"], tolerance)
    assert_near(sae.decode(sae.encode_sparse(x), x), expected["output"], tolerance)


@pytest.mark.parametrize("name", CASES)
def test_facts_are_read(name: str) -> None:
    sae = read_sae_lens(FIXTURES / name, dtype=torch.float64)
    assert sae.dtype == torch.float64
    sites = (MLP_IN, MLP_OUT) if sae.is_transcoder else (RESID, RESID)
    sites = ("blocks.1.attn.hook_z",) * 2 if name == "standard_hook_z" else sites
    assert (sae.site_in, sae.site_out) == sites
    assert sae.is_transcoder == ("transcoder" in name)
    assert sae.model_name == "gpt2-small" and sae.prepend_bos is True
    expected = "context_size" if name.endswith("_flat") else "neuronpedia_id"
    assert expected in sae.metadata
    assert not {"W_enc", "hook_name", "d_in", "architecture"} & sae.metadata.keys()


@pytest.mark.parametrize("name", CASES)
def test_write_then_read_is_identity(name: str, tmp_path: Path) -> None:
    sae = read_sae_lens(FIXTURES / name)
    write_sae_lens(sae, tmp_path)
    again = read_sae_lens(tmp_path)
    for (key, buffer), other in zip(sae.named_buffers(), again.buffers(), strict=True):
        assert buffer.dtype == other.dtype and torch.equal(buffer, other), key
    assert sae.selection.scalars() == again.selection.scalars()
    for key in "site_in site_out subtract_b_dec normalization prepend_bos model_name".split():
        assert getattr(sae, key) == getattr(again, key), key
    for key in sae.metadata.keys() - {"sae_lens_version"}:
        assert sae.metadata[key] == again.metadata[key], key


def test_what_is_written_is_what_sae_lens_asks_for(tmp_path: Path) -> None:
    sae = read_sae_lens(FIXTURES / "jumprelu_skip_transcoder")
    write_sae_lens(sae, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
    }
    for key in ("architecture", "d_in", "d_sae", "d_out", "apply_b_dec_to_input", "dtype"):
        config = json.loads((tmp_path / "new" / "cfg.json").read_text())
        assert (
            config[key]
            == json.loads((FIXTURES / "jumprelu_skip_transcoder" / "cfg.json").read_text())[key]
        )
    tensors = load_file(tmp_path / "new" / "sae_weights.safetensors")
    theirs = load_file(FIXTURES / "jumprelu_skip_transcoder" / "sae_weights.safetensors")
    assert tensors.keys() == theirs.keys()
    assert all(torch.equal(tensors[key], theirs[key]) for key in theirs)


def test_metadata_below_version_6_is_lifted_and_labels_travel(tmp_path: Path) -> None:
    labels = Labels(tuple(("a",) for _ in range(D_SAE)))
    sae = read_sae_lens(FIXTURES / "topk_flat")
    sae = SAE(**sae.arguments() | {"labels": labels, "metadata": {"sae_lens_version": "5.1.0"}})
    write_sae_lens(sae, tmp_path)
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert metadata["sae_lens_version"] == "6.0.0" and metadata["hook_name"] == RESID
    assert read_sae_lens(tmp_path).labels == labels


def test_centring_follows_the_file_the_norms_and_the_caller(copy) -> None:
    assert read_sae_lens(FIXTURES / "standard_centred").normalization == "center"
    assert read_sae_lens(FIXTURES / "standard_centred", center=False).normalization == "none"
    assert read_sae_lens(FIXTURES / "standard", center=True).normalization == "center"
    assert (
        read_sae_lens(FIXTURES / "standard_layer_norm", center=True).normalization == "layer_norm"
    )
    # TransformerLens centres no RMSNorm model, and nothing but the residual stream and its writers
    gemma = copy("standard_centred", metadata={"model_name": "google/gemma-2-2b"})
    assert read_sae_lens(gemma).normalization == "none"
    site = "blocks.1.mlp.hook_post"
    assert read_sae_lens(FIXTURES / "standard_centred", site=site).normalization == "none"


@pytest.mark.parametrize("name", ["transcoder", "jumprelu_skip_transcoder"])
def test_a_transcoder_of_a_centred_stream_reads_the_centred_input(name: str) -> None:
    x = load_file(FIXTURES / name / "expected.safetensors")["x"].double()
    plain = read_sae_lens(FIXTURES / name, dtype=torch.float64)
    centred = read_sae_lens(FIXTURES / name, center=True, dtype=torch.float64)
    assert centred.normalization == "none"
    torch.testing.assert_close(centred(x), plain(x - x.mean(-1, keepdim=True)))


def test_a_centred_sae_of_our_own_says_so_in_the_file(tmp_path: Path) -> None:
    write_sae_lens(small(ReLU(), normalization="center", model_name="gpt2"), tmp_path)
    assert read_sae_lens(tmp_path).normalization == "center"


def test_a_centred_sae_read_uncentred_is_written_uncentred(tmp_path: Path) -> None:
    write_sae_lens(read_sae_lens(FIXTURES / "standard_centred", center=False), tmp_path)
    assert read_sae_lens(tmp_path).normalization == "none"


def test_decoder_norms_are_folded_and_latents_are_in_their_units() -> None:
    raw = load_file(FIXTURES / "topk_decoder_norm" / "sae_weights.safetensors")
    sae = read_sae_lens(FIXTURES / "topk_decoder_norm")
    assert raw["W_dec"].norm(dim=-1).std() > 0.1
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_finetuning_scales_change_the_output_and_not_the_latents(copy) -> None:
    scale = torch.rand(D_SAE) + 0.5
    plain = read_sae_lens(FIXTURES / "standard_flat")
    used = copy("standard_flat", {"scaling_factor": scale}, finetuning_scaling_factor=True)
    sae = read_sae_lens(used)
    x = torch.randn(5, D_IN)
    latents = plain.encode(x)
    assert torch.equal(sae.encode(x), latents)
    assert_near(sae(x), plain.decode(latents * scale))


def test_finetuning_scales_of_one_are_dropped_and_unannounced_ones_refused(copy) -> None:
    ones = copy("standard_flat", {"scaling_factor": torch.ones(D_SAE)})
    assert torch.equal(read_sae_lens(ones).W_dec, read_sae_lens(FIXTURES / "standard_flat").W_dec)
    other = copy("standard", {"finetuning_scaling_factor": torch.full((D_SAE,), 2.0)})
    with pytest.raises(FormatError, match='set "finetuning_scaling_factor" there to true'):
        read_sae_lens(other)


def test_a_log_threshold_is_read(copy) -> None:
    threshold = torch.rand(D_SAE) + 0.1
    directory = copy("jumprelu", {"threshold": None, "log_threshold": threshold.log()})
    torch.testing.assert_close(read_sae_lens(directory).selection.threshold, threshold)


def test_sites_can_be_given(copy) -> None:
    site = "blocks.1.hook_resid_post"
    sae = read_sae_lens(FIXTURES / "standard", site=site)
    assert (sae.site_in, sae.site_out) == (site, site)
    assert read_sae_lens(FIXTURES / "transcoder", site=site).site_out == site
    pair = ("blocks.1.ln2.hook_normalized", site)
    sae = read_sae_lens(FIXTURES / "transcoder", site=pair)
    assert (sae.site_in, sae.site_out) == pair


def test_a_transcoder_that_leaves_out_its_output_writes_the_mlp_output(copy) -> None:
    directory = copy("transcoder", metadata={"hook_name_out": None})
    assert read_sae_lens(directory).site_out == MLP_OUT
    path = directory / "cfg.json"
    path.write_text(path.read_text().replace(MLP_IN, RESID))
    with pytest.raises(FormatError, match=r"hook_name_out=None\); pass site=\(site_in, site_out\)"):
        read_sae_lens(directory)


def test_a_file_that_says_nothing_of_b_dec_follows_the_architecture(copy) -> None:
    for name, subtracts in (("standard", True), ("transcoder", False), ("standard_flat", True)):
        directory = copy(name)
        config = json.loads((directory / "cfg.json").read_text())
        del config["apply_b_dec_to_input"]
        (directory / "cfg.json").write_text(json.dumps(config))
        assert read_sae_lens(directory).subtract_b_dec is subtracts


REFUSED = [
    ("standard", {"architecture": "temporal"}, 'architecture "temporal"; read here are standard,'),
    ("standard", {"is_pair": True}, 'architecture "pair"'),
    ("topk", {"architecture": "batchtopk"}, 'architecture "batchtopk"'),
    ("standard_flat", {"activation_fn_str": "tanh-relu"}, 'activation "tanh-relu"; relu and topk'),
    ("standard", {"metadata": {"hook_head_index": 3}}, r"hook_head_index=3\); only SAEs of all"),
    ("standard", {"metadata": {"hook_name": None}}, r"\(no hook_name\); pass site="),
    ("standard", {"normalize_activations": "covariance_whitening"}, '"covariance_whitening"; of'),
    ("transcoder", {"normalize_activations": "layer_norm"}, r"\(transcoder\) none can be read"),
    ("standard", {"normalize_activations": "expected_average_only_in"}, "put activation_scaler.js"),
    ("standard_flat", {"normalize_activations": True}, "put activation_scaler.json of its"),
    ("standard", {"tensors": {"b_enc": None}}, "missing: b_enc, unknown: none: copy or download"),
    ("standard", {"tensors": {"stranger": torch.ones(1)}}, "missing: none, unknown: stranger"),
    ("jumprelu", {"tensors": {"threshold": torch.ones(1)}}, "does not hold a whole SAE: JumpReLU"),
    ("standard", {"tensors": {"W_enc": torch.ones(1)}}, "weights that are no matrices"),
    ("topk", {"k": 999}, "got k=999 with d_sae=28"),
    ("transcoder", {"apply_b_dec_to_input": True}, "fold the bias into b_enc"),
    (
        "transcoder",
        {"metadata": {"model_from_pretrained_kwargs": {"fold_ln": True}}},
        r'with fold_ln, where .*mlp.hook_in comes before .* site="blocks.\d.ln2.hook_normalized"',
    ),
    (
        "standard",
        {
            "metadata": {
                "hook_name": "blocks.0.attn.hook_z",
                "model_from_pretrained_kwargs": {"fold_value_biases": True},
            }
        },
        "with fold_value_biases, where blocks.0.attn.hook_z lacks the value biases",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_cannot_be_read_is_refused(name: str, changes: dict, message: str, copy) -> None:
    with pytest.raises(FormatError, match=message):
        read_sae_lens(copy(name, **changes))


def test_bad_scalers_and_damaged_files_are_refused(copy, tmp_path: Path) -> None:
    directory = copy("standard_scaled")
    for contents in ('{"scaling_factor": 0}', '{"scaling_factor": 2, "has_whitening": true}', "{}"):
        (directory / "activation_scaler.json").write_text(contents)
        with pytest.raises(FormatError, match="needs a positive scaling_factor and no whitening"):
            read_sae_lens(directory)
    with pytest.raises(FormatError, match="pass center=False if the model was not centred"):
        read_sae_lens(FIXTURES / "standard_rescale", center=True)
    (directory / "sae_weights.safetensors").write_bytes(b"short")
    with pytest.raises(FormatError, match="sae_weights.safetensors is damaged"):
        read_sae_lens(directory)
    (directory / "cfg.json").write_text("{")
    with pytest.raises(FormatError, match="cfg.json is not JSON"):
        read_sae_lens(directory)
    assert not is_sae_lens(tmp_path)
    with pytest.raises(FormatError, match="cfg.json cannot be read"):
        read_sae_lens(tmp_path)


def small(selection, width: int = 4, **options) -> SAE:
    """A small SAE, a transcoder if `site_out` is given."""
    weights = {"W_enc": torch.randn(7, 4), "b_enc": torch.randn(7)}
    weights |= {"W_dec": torch.randn(7, width), "b_dec": torch.randn(width)}
    return SAE(**weights, selection=selection, **{"site_in": RESID} | options)


NOT_SAID = [
    (lambda: small(TopK(2, relu=False)), "no TopK that keeps negative latents"),
    (lambda: small(TopK(2), 3, site_out=MLP_OUT), "no topk transcoder; it has standard, topk"),
    (
        lambda: small(Gated(torch.ones(7), torch.ones(7)), W_skip=torch.ones(4, 4)),
        "no gated skip transcoder",
    ),
    (
        lambda: small(ReLU(), 3, site_out=MLP_OUT, normalization="layer_norm"),
        r"no transcoder that undoes its normalization \(layer_norm\)",
    ),
    (
        lambda: small(ReLU(), W_skip=torch.ones(4, 4), subtract_b_dec=True),
        "no skip connection together with subtract_b_dec",
    ),
    (
        lambda: small(ReLU(), normalization="center", site_in="blocks.1.mlp.hook_post"),
        "no centring at blocks.1.mlp.hook_post",
    ),
]


@pytest.mark.parametrize(("make", "message"), NOT_SAID)
def test_what_sae_lens_cannot_say_is_not_written(make, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        write_sae_lens(make(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_autoencoder_with_a_skip_connection_is_written_as_a_transcoder(tmp_path: Path) -> None:
    sae = small(JumpReLU(torch.rand(7)), W_skip=torch.randn(4, 4))
    write_sae_lens(sae, tmp_path)
    again = read_sae_lens(tmp_path)
    x = torch.randn(3, 4)
    assert again.site_in == again.site_out == RESID and torch.equal(again(x), sae(x))


@pytest.mark.parametrize("subtracts", [True, False])
def test_the_advice_about_folded_value_biases_gives_the_folded_latents(
    subtracts: bool, copy
) -> None:
    folded = {"model_from_pretrained_kwargs": {"fold_value_biases": True}}
    heads = "blocks.0.attn.hook_z"
    directory = copy(
        "standard", metadata={"hook_name": RESID, **folded}, apply_b_dec_to_input=subtracts
    )
    old = read_sae_lens(directory)
    tensors = load_file(directory / "sae_weights.safetensors")
    b_V = torch.linspace(-1, 1, D_IN)
    changed = {"b_dec": tensors["b_dec"] + b_V}
    if not subtracts:
        changed["b_enc"] = tensors["b_enc"] - b_V @ tensors["W_enc"]
    shutil.rmtree(directory)
    plain = {"hook_name": heads, "model_from_pretrained_kwargs": {"fold_value_biases": False}}
    new = read_sae_lens(copy("standard", changed, plain, apply_b_dec_to_input=subtracts))
    z = torch.randn(9, D_IN)
    assert old.encode(z - b_V).count_nonzero() > 9
    assert_near(new.encode(z), old.encode(z - b_V))
    assert_near(new(z), old(z - b_V) + b_V)


def test_the_place_before_gain_and_bias_can_be_named_as_the_refusal_says(copy) -> None:
    directory = copy("transcoder", metadata={"model_from_pretrained_kwargs": {"fold_ln": True}})
    pair = ("blocks.1.ln2.hook_normalized", MLP_OUT)
    sae = load_sae(directory, site=pair)
    assert (sae.site_in, sae.site_out) == pair
