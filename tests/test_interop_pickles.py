"""Nothing in a .pt file is ever run: what is no tensor or plain value is refused by its name."""

import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.errors import DiskError, FormatError
from gossamer.interop import dictionary_learning, openai
from gossamer.interop.pickles import pickled_words, read_pickle, write_pickle
from tests.foreign_saes import FIXTURES, Attack

TRAINER = '{"trainer": {"dict_class": "AutoEncoder", "layer": 1}}'


@pytest.mark.parametrize("kind", ["zip", "bare", "legacy"])
def test_a_hostile_file_is_refused_by_name_and_never_runs(kind: str, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "ae.pt"
    names = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")
    contents = dict.fromkeys(names, Attack(made))
    if kind == "bare":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind == "zip")
    (tmp_path / "config.json").write_text(TRAINER)
    for reader in (openai, dictionary_learning):
        assert reader.is_here(tmp_path)
        with pytest.raises(FormatError, match=r"run code|truncated or no \.pt"):
            reader.read(tmp_path)
    if kind == "zip":
        with pytest.raises(FormatError, match=r"names posix\.mkdir, which could run code, so it"):
            read_pickle(path)
    assert not made.exists()


@pytest.mark.parametrize(
    "value", [np.zeros(3), collections.defaultdict(int), Path("x"), torch.nn.ReLU()]
)
def test_what_is_no_plain_value_is_refused_by_name(value: object, tmp_path: Path) -> None:
    torch.save({"bias": value}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match=r"names [\w.]+, which could run code"):
        read_pickle(tmp_path / "x.pt")


def test_what_holds_no_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(3)], tmp_path / "x.pt")
    with pytest.raises(FormatError, match="holds a list, not a dict of tensors"):
        read_pickle(tmp_path / "x.pt")
    with pytest.raises(FormatError, match=r"There is no .*y.pt; give a directory"):
        read_pickle(tmp_path / "y.pt")


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = (FIXTURES / "dictionary_learning" / "topk" / "ae.pt").read_bytes()
    for end in (0, 1, 4, 100, len(whole) // 2, len(whole) - 4):
        (tmp_path / "x.pt").write_bytes(whole[:end])
        assert pickled_words(tmp_path / "x.pt") == b""
        with pytest.raises(FormatError, match=r"truncated or no \.pt file|run code"):
            read_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_names_are_found_without_running(zipped: bool, tmp_path: Path) -> None:
    contents = {"a_name": torch.ones(3), "step": 4}
    torch.save(contents, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert b"a_name" in pickled_words(tmp_path / "x.pt")
    assert torch.equal(read_pickle(tmp_path / "x.pt")["a_name"], torch.ones(3))


def test_what_is_written_is_read_and_views_bring_nothing_along(tmp_path: Path) -> None:
    big = torch.randn(1000, 100)
    write_pickle({"row": big[3], "turned": big[:3].T, "k": 4, "word": "x"}, tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt")
    assert torch.equal(found["row"], big[3]) and torch.equal(found["turned"], big[:3].T)
    assert found["turned"].is_contiguous() and (found["k"], found["word"]) == (4, "x")
    assert (tmp_path / "x.pt").stat().st_size < 10_000
    with pytest.raises(DiskError):
        write_pickle({}, tmp_path / "missing" / "x.pt")
