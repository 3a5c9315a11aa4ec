"""circuit-tracer's cross-layer transcoders: files that its own class saved, latents, outputs and
graphs against what it computed itself (`fixtures/circuit_tracer_fixtures.sh` makes them)."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

import gossamer
from gossamer.attribution.attribute import attribute
from gossamer.cli import cli
from gossamer.errors import FormatError
from gossamer.interop import clt
from gossamer.interop.formats import format_at
from gossamer.models.model import Model
from gossamer.saes import SAE, JumpReLU
from gossamer.saes.sets import decoded
from gossamer.splice import as_saes
from tests.test_interop_circuit_tracer import dense
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_clt, tiny_sae

FIXTURES = Path(__file__).parent / "fixtures" / "circuit_tracer_clt"
IDS = [0, 7, 31, 7, 12, 40]
CASES = {"relu": "hook_resid_mid", "jumprelu": "mlp.hook_in"}
OUT = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of a fixture."""
    return Path(shutil.copytree(FIXTURES / "jumprelu", tmp_path / "clt"))


@cache
def model() -> Model:
    source = FIXTURES.parent / "circuit_tracer" / "model"
    return gossamer.load_model(GPT2LMHeadModel.from_pretrained(source, dtype=torch.float64))


@pytest.mark.parametrize("case", CASES)
def test_latents_and_outputs_equal_circuit_tracers(case: str) -> None:
    known = load_file(FIXTURES / case / "expected.safetensors")
    saes: Any = gossamer.load_saes(FIXTURES / case)
    assert list(saes) == OUT and saes[OUT[1]].site_in == f"blocks.1.{CASES[case]}"
    assert saes[OUT[0]].sites_later == tuple(OUT[1:]) and saes[OUT[2]].sites_later == ()
    latents = {site: sae.encode(x) for (site, sae), x in zip(saes.items(), known["x"], strict=True)}
    for layer, site in enumerate(OUT):
        torch.testing.assert_close(latents[site], known["encoded"][layer], rtol=1e-12, atol=1e-12)
        output = decoded(saes, site, latents, known["x"][layer])
        torch.testing.assert_close(output, known["outputs"][layer], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_edges_of_latents_errors_and_tokens_equal_circuit_tracers(case: str) -> None:
    """As for transcoders (`test_interop_circuit_tracer`): it has no latents at position 0."""
    known = load_file(FIXTURES / case / "expected.safetensors")
    graph = attribute(model(), gossamer.load_saes(FIXTURES / case), IDS)
    assert isinstance(graph, gossamer.Graph)
    ids = [f"blocks.{layer}.hook_mlp_out/{i}@{p}" for layer, p, i in known["latents"].tolist()]
    ids += [f"blocks.{layer}.hook_mlp_out/error@{p}" for layer in range(3) for p in range(len(IDS))]
    ids += [f"hook_embed/{token}@{p}" for p, token in enumerate(IDS)]
    ids += [f"logits/{token}@{len(IDS) - 1}" for token in known["logits"].tolist()]
    theirs = np.zeros((len(ids), len(ids)))
    theirs[tuple(known["entries"].long().T.numpy())] = known["values"].numpy()
    found = dense(graph, ids)
    first = np.array([name.endswith("/error@0") for name in ids])
    assert not theirs[:, first].any() and found[:, first].any()
    found[:, first] = 0
    assert np.abs(found - theirs).max() <= 1e-13 * np.abs(theirs).max()
    assert (theirs != 0).sum() > 1000 and graph.residuals().largest < 1e-12
    rows = [graph.nodes.number(name) for name in ids[: len(known["latents"])]]
    np.testing.assert_allclose(graph.nodes.values[rows], known["activations"], atol=1e-12)


def test_one_layer_is_loaded_or_all_at_other_places(place: Path) -> None:
    form = format_at(place)
    assert form is not None and form.name == clt.NAME
    one = gossamer.load_sae(place, site=OUT[1])
    assert isinstance(one, SAE) and one.sites_later == (OUT[2],) and one.model_name == "tiny/model"
    assert isinstance(one.selection, JumpReLU)
    pair = ("blocks.1.ln2.hook_normalized", OUT[1])
    other = gossamer.load_sae(place, site=pair)
    assert isinstance(other, SAE) and (other.site_in, other.site_out) == pair
    with pytest.raises(FormatError, match="holds 3 SAEs, which write blocks.0.hook_mlp_out"):
        gossamer.load_sae(place)
    with pytest.raises(FormatError, match=r"No transcoder .* it has layers 0 to 2"):
        gossamer.load_sae(place, site="blocks.3.hook_mlp_out")
    (place / "config.yaml").unlink()
    with pytest.raises(FormatError, match="has no config.yaml that says feature_input_hook"):
        gossamer.load_saes(place)
    assert gossamer.load_sae(place, site=pair).d_sae == 24


def test_decoders_stay_in_their_files() -> None:
    """What is mapped shares the memory of the tensor that the file gives: no copy is made."""
    sae = clt.read(FIXTURES / "relu")[0]
    assert sae.W_later is not None and sae.W_later.untyped_storage().nbytes() > sae.W_later.nbytes
    assert not sae.W_later.is_contiguous()


def tensors_of(directory: Path) -> dict[str, Tensor]:
    files = sorted(directory.glob("W_*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same(case: str, tmp_path: Path) -> None:
    """From circuit-tracer's files to ours and to its own again, by the command."""
    for source, wanted, out in (
        (FIXTURES / case, "gossamer", tmp_path / "ours"),
        (tmp_path / "ours", clt.NAME, tmp_path / "theirs"),
    ):
        result = CliRunner().invoke(cli, ["convert", str(source), "--to", wanted, str(out)])
        assert result.exit_code == 0, result.output
    before, after = tensors_of(FIXTURES / case), tensors_of(tmp_path / "theirs")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    config = yaml.safe_load((tmp_path / "theirs" / "config.yaml").read_text())
    known = yaml.safe_load((FIXTURES / case / "config.yaml").read_text())
    assert {name: config[name] for name in known} == known
    ours, theirs = (as_saes(gossamer.load_saes(p), later=True) for p in tmp_path.iterdir())
    assert list(ours) == list(theirs) == OUT


def test_what_is_written_keeps_the_facts(tmp_path: Path) -> None:
    saes = tiny_clt(tiny_model("gpt2"), "jumprelu")
    for sae in saes:
        sae.prepend_bos, sae.metadata = True, {"l0": 2}
    clt.write_set(saes[::-1], tmp_path)
    for sae, again in zip(saes, clt.read(tmp_path), strict=True):
        state = again.state_dict()
        assert all(torch.equal(state[name], value) for name, value in sae.state_dict().items())
        assert (again.prepend_bos, again.metadata) == (True, {"l0": 2})


def test_half_precision_becomes_float32(place: Path) -> None:
    for file in place.glob("W_*.safetensors"):
        save_file({k: v.half() for k, v in load_file(file).items()}, file)
    sae = gossamer.load_sae(place, site=OUT[0])
    assert isinstance(sae, SAE) and sae.dtype == torch.float32
    assert sae.W_later is not None and sae.W_later.dtype == torch.float32


def test_what_cannot_be_read_is_refused(place: Path, tmp_path: Path) -> None:
    decoder = place / "W_dec_1.safetensors"
    kept = load_file(decoder)
    save_file({"W_dec_1": kept["W_dec_1"][:, :1].contiguous()}, decoder)
    with pytest.raises(FormatError, match=r"W_dec_1 alone, \(d_sae, 2, d_model\) for 3 layers"):
        clt.read(place)
    save_file(kept, decoder)
    encoder = place / "W_enc_1.safetensors"
    tensors = load_file(encoder)
    save_file({**tensors, "W_dec_norm": torch.ones(3, 24)}, encoder)
    with pytest.raises(FormatError, match=r"W_enc_1.safetensors .*unknown: W_dec_norm"):
        clt.read(place)
    save_file({**tensors, "b_enc_1": torch.ones(3, dtype=torch.float64)}, encoder)
    with pytest.raises(FormatError, match=r"W_enc_1.safetensors does not hold a whole SAE"):
        clt.read(place)
    encoder.unlink()
    with pytest.raises(FormatError, match="lacks W_enc_1.safetensors of layers 0 to 2"):
        clt.read(place)
    away = tmp_path / "away"
    away.mkdir()
    shutil.copy(place / "config.yaml", away)
    with pytest.raises(FormatError, match="holds no W_enc_0.safetensors"):
        clt.read(away)


def members(change: Any = None, kind: str = "relu") -> list[SAE]:
    saes = tiny_clt(tiny_model("gpt2"), kind)
    return saes if change is None else change(saes)


@pytest.mark.parametrize(
    ("saes", "message"),
    [
        (lambda: members(lambda saes: saes[1:]), "for each layer from 0 on"),
        (lambda: members(lambda saes: saes[:2]), "at its own layer and all later ones"),
        (lambda: members(kind="topk"), "no TopK .it has relu, jumprelu"),
        (lambda: tiny_clt(tiny_model("gpt2"), skip=True), "no skip connection"),
        (lambda: [*members()[:2], *members(kind="jumprelu")[2:]], "all of the same places, kind"),
        (lambda: [tiny_sae("relu", OUT[0], 16)], "only transcoders"),
    ],
)
def test_what_there_is_no_room_for_is_refused(saes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=message):
        clt.write_set(saes(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("circuit-tracer", "no latents that write several sites, here blocks.1.hook_mlp_out"),
        ("sae-lens", "no latents that write several sites, here blocks.1.hook_mlp_out"),
        ("gemma-scope-2", "no latents that write several sites, here blocks.1.hook_mlp_out"),
    ],
)
def test_other_formats_have_no_room_for_it(wanted: str, reason: str, tmp_path: Path) -> None:
    source, out = str(FIXTURES / "jumprelu"), tmp_path / "out"
    result = CliRunner().invoke(cli, ["convert", source, "--to", wanted, str(out)])
    assert isinstance(result.exception, FormatError) and reason in str(result.exception)
    assert not out.exists()
