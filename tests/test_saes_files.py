"""Save then load is the identity (law 10), and no damaged directory is read as something else."""

import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gossamer.errors import DiskError, FormatError
from gossamer.saes import (
    SAE,
    Gated,
    JumpReLU,
    Labels,
    ReLU,
    TopK,
    is_native,
    load_native,
)
from gossamer.saes.labels import save_labels
from gossamer.saes.native import write_tensors, write_text
from tests.small_disk import fill, small_disk

D_IN, D_OUT, D_SAE = 6, 5, 9
SITE, SITE_OUT = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
LABELS = Labels(
    tuple((f" tok{i}", "\n") for i in range(D_SAE)), tuple(("ein « Satz »",) for _ in range(D_SAE))
)
SELECTIONS = ["relu", "topk", "topk_signed", "jumprelu", "gated"]


def make_sae(selection: str = "relu", dtype: torch.dtype = torch.float64, **options) -> SAE:
    """A random SAE; a transcoder with a skip connection when `site_out` is among the options."""
    width = D_OUT if "site_out" in options else D_IN

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    selections = {
        "relu": ReLU,
        "topk": lambda: TopK(3),
        "topk_signed": lambda: TopK(3, relu=False),
        "jumprelu": lambda: JumpReLU(randn(D_SAE)),
        "gated": lambda: Gated(randn(D_SAE), randn(D_SAE)),
    }
    return SAE(
        W_enc=randn(D_SAE, D_IN),
        b_enc=randn(D_SAE),
        W_dec=randn(D_SAE, width),
        b_dec=randn(width),
        W_skip=randn(width, D_IN) if "site_out" in options else None,
        selection=selections[selection](),
        site_in=SITE,
        **options,
    )


def assert_same(one: SAE, other: SAE) -> None:
    """Every tensor bit for bit, every option, and so every latent and output."""
    buffers, others = dict(one.named_buffers()), dict(other.named_buffers())
    assert buffers.keys() == others.keys()
    for name, buffer in buffers.items():
        assert buffer.dtype == others[name].dtype and torch.equal(buffer, others[name]), name
    assert type(one.selection) is type(other.selection)
    assert one.selection.scalars() == other.selection.scalars()
    names = "site_in site_out subtract_b_dec normalization prepend_bos model_name labels metadata"
    for name in names.split():
        assert getattr(one, name) == getattr(other, name), name
    x = torch.randn(4, D_IN, dtype=torch.float64)
    assert torch.equal(one.encode(x), other.encode(x)) and torch.equal(one(x), other(x))


OPTIONS = [
    {},
    {"subtract_b_dec": True, "normalization": "center", "labels": LABELS, "prepend_bos": False},
    {"normalization": "layer_norm", "model_name": "gpt2", "prepend_bos": True},
    {"normalization": "rescale", "metadata": {"l0": 31.5, "notes": ["a", None], "é": {"b": True}}},
    {"site_out": SITE_OUT, "labels": LABELS},
    {"site_out": SITE_OUT, "normalization": "layer_norm"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_save_then_load_is_identity(selection: str, options: dict, tmp_path: Path) -> None:
    sae = make_sae(selection, **options)
    sae.save(tmp_path / "deep" / "sae")
    assert is_native(tmp_path / "deep" / "sae") and not is_native(tmp_path)
    assert_same(sae, load_native(tmp_path / "deep" / "sae"))


def test_saving_twice_writes_the_same_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    sae = make_sae("gated", labels=LABELS)
    names = {"sae.json", "sae.safetensors", "labels.json.gz"}
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    for directory in (tmp_path / "a", tmp_path / "b"):
        sae.save(str(directory))
        sae.save(directory)
        assert {path.name for path in directory.iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).stat().st_mode == ordinary.stat().st_mode
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    sae = make_sae("gated")
    sae = SAE(**sae.arguments() | {"W_dec": sae.W_enc, "b_enc": sae.selection.b_gate})
    sae.save(tmp_path)
    assert_same(sae, load_native(tmp_path))


def test_a_new_save_replaces_the_old_one_and_its_labels(tmp_path: Path) -> None:
    make_sae("gated", labels=LABELS).save(tmp_path)
    new = make_sae("topk")
    new.save(tmp_path)
    assert_same(new, load_native(tmp_path))


@pytest.mark.parametrize(
    ("stored", "asked", "loaded"),
    [
        (torch.float16, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.float16, torch.float16, torch.float16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_dtypes(
    stored: torch.dtype, asked: torch.dtype | None, loaded: torch.dtype, tmp_path: Path
) -> None:
    sae = make_sae("jumprelu", stored)
    sae.save(tmp_path)
    again = load_native(tmp_path, dtype=asked)
    assert {buffer.dtype for buffer in again.buffers()} == {loaded}
    assert torch.equal(again.W_enc, sae.W_enc.to(loaded))


def change_header(directory: Path, **changes) -> None:
    """Edit sae.json; a value of `...` removes the key."""
    path = directory / "sae.json"
    header = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in header.items() if value is not ...}))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"sae.json cannot be read \(No such file.*give the dir"):
        load_native(tmp_path / "nowhere")
    make_sae().save(tmp_path)
    (tmp_path / "sae.safetensors").unlink()
    with pytest.raises(FormatError, match=r"There is no .*sae.safetensors; give a directory"):
        load_native(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_tensors(kept: int, tmp_path: Path) -> None:
    make_sae().save(tmp_path)
    path = tmp_path / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FormatError, match=r"sae.safetensors is damaged \(.*copy or download"):
        load_native(tmp_path)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    make_sae().save(tmp_path)
    for name in ("sae.safetensors", "sae.json", "labels.json.gz"):
        saved = (tmp_path / name).read_bytes() if name != "labels.json.gz" else None
        (tmp_path / name).write_bytes(pickle.dumps({"W_enc": [1.0]}))
        with pytest.raises(FormatError, match=name):
            load_native(tmp_path)
        if saved is not None:
            (tmp_path / name).write_bytes(saved)


def test_damaged_headers(tmp_path: Path) -> None:
    make_sae("topk").save(tmp_path)
    good = (tmp_path / "sae.json").read_text()
    for text, message in (
        (good[:-20], "sae.json is not JSON .* copy or download it again"),
        ("[1]", "holds no JSON object"),
        (good.encode().decode() + "\x00", "is not JSON"),
    ):
        (tmp_path / "sae.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            load_native(tmp_path)
    (tmp_path / "sae.json").write_text(good)
    for changes, message in (
        ({"format": "other"}, "its \"format\" is 'other'; give a directory that holds sae.json"),
        ({"fingerprint": ...}, "no header of a Gossamer SAE"),
        ({"version": 2}, "has version 2, this release reads version 1; update gossamer"),
        ({"version": ...}, "has version None"),
        ({"site_in": ...}, r"sae.json is damaged \('site_in'\)"),
        ({"selection": {"name": "softmax"}}, r"sae.json is damaged \('softmax'\)"),
        ({"selection": {"name": "topk"}}, r"sae.json is damaged \(.*'k'"),
        ({"selection": 3}, r"sae.json is damaged"),
        ({"selection": {"name": "topk", "k": 99}}, "got k=99 with d_sae=9"),
        ({"normalization": "softmax"}, 'does not fit sae.json .* got "softmax"'),
    ):
        change_header(tmp_path, **changes)
        with pytest.raises(FormatError, match=message):
            load_native(tmp_path)
        (tmp_path / "sae.json").write_text(good)
    load_native(tmp_path)


def test_halves_of_two_saves_are_not_one_sae(tmp_path: Path) -> None:
    make_sae().save(tmp_path / "a")
    make_sae().save(tmp_path / "b")
    (tmp_path / "a" / "sae.json").replace(tmp_path / "b" / "sae.json")
    with pytest.raises(FormatError, match="come from different saves; save the SAE again"):
        load_native(tmp_path / "b")


def rewrite_tensors(directory: Path, **changes: Tensor | None) -> None:
    """Replace tensors of sae.safetensors, keeping its fingerprint; None removes one."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = directory / "sae.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, path, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_dec": None}, r"sae.safetensors lacks b_dec"),
        ({"b_dec": torch.zeros(3, dtype=torch.float64)}, r"b_dec must have shape \(6,\), got \(3"),
        ({"b_dec": torch.zeros(D_IN)}, "need one dtype"),
        ({"selection__threshold": torch.zeros(3, dtype=torch.float64)}, "needs a threshold"),
        ({"selection__threshold": None}, r"sae.json is damaged \(.*threshold"),
        ({"stranger": torch.zeros(3)}, r"sae.json is damaged \(.*stranger"),
    ],
)
def test_tensors_that_do_not_fit(changes: dict, message: str, tmp_path: Path) -> None:
    make_sae("jumprelu").save(tmp_path)
    rewrite_tensors(tmp_path, **changes)
    with pytest.raises(FormatError, match=message):
        load_native(tmp_path)


@pytest.mark.parametrize(
    "metadata", [{"a": object()}, {"a": (1, 2)}, {"a": {1: "b"}}, {"a": float("nan")}]
)
def test_metadata_that_would_not_come_back_is_refused_with_nothing_written(
    metadata: dict, tmp_path: Path
) -> None:
    old = make_sae("topk")
    old.save(tmp_path)
    with pytest.raises(FormatError, match="metadata (is not|would come back changed)"):
        make_sae("gated", metadata=metadata).save(tmp_path)
    assert_same(old, load_native(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "labels.json.gz is damaged"),
        (b'{"version": 1, "top_tok', "labels.json.gz is damaged"),
        (b'{"version": 1}', "labels.json.gz is damaged"),
        (b"[]", "labels.json.gz is damaged .* delete it to do without labels"),
        (b'{"version": 9, "contexts": null}', "has version 9, this release reads"),
        (b'{"version": 1, "top_tokens": [], "contexts": null}', "got labels of 0"),
    ],
)
def test_damaged_labels(text: bytes | None, message: str, tmp_path: Path) -> None:
    contents = b"" if text is None else gzip.compress(text)
    make_sae().save(tmp_path)
    (tmp_path / "labels.json.gz").write_bytes(contents)
    with pytest.raises(FormatError, match=message):
        load_native(tmp_path)


def test_truncated_labels(tmp_path: Path) -> None:
    make_sae(labels=LABELS).save(tmp_path)
    path = tmp_path / "labels.json.gz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FormatError, match="labels.json.gz is damaged"):
        load_native(tmp_path)


@pytest.mark.parametrize("name", ["sae.safetensors", "sae.json", "labels.json.gz"])
def test_a_full_disk_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    old = make_sae(labels=LABELS)
    text = "".join(map(chr, torch.randint(33, 999, (30_000,)).tolist()))  # which gzip cannot shrink
    with small_disk(tmp_path / "disk", 200) as disk:
        old.save(disk / "run")
        before = {file.name: file.read_bytes() for file in (disk / "run").iterdir()}
        fill(disk, 8192)
        large = {
            "sae.safetensors": lambda: write_tensors({"a": torch.zeros(9000)}, disk / "run" / name),
            "sae.json": lambda: write_text(text, disk / "run" / name),
            "labels.json.gz": lambda: save_labels(Labels(((text,),), None), disk / "run"),
        }
        with pytest.raises(DiskError, match=f"{name} could not be written: the disk is full"):
            large[name]()
        assert before == {file.name: file.read_bytes() for file in (disk / "run").iterdir()}
        assert_same(old, load_native(disk / "run"))


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DiskError, match="cannot be made"):
        make_sae().save(tmp_path / "file" / "run")
    for path in (tmp_path, tmp_path / "none" / "a.json"):
        with pytest.raises(DiskError, match="cannot be written; name a file in a directory"):
            write_text("a", path)
