"""Corpora: what can be one, how documents are packed, and mistakes in words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gossamer
from gossamer.corpus import as_corpus, blocks
from gossamer.errors import FormatError, GossamerError
from tests.tiny_files import save_model
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return gossamer.load_model(str(save_model(tmp_path_factory.mktemp("corpus") / "model")))


@pytest.mark.parametrize("context", [2, 3, 5, 8, 32])
@pytest.mark.parametrize("bos", [None, False])
def test_blocks_are_the_stream_cut_up(model: Any, context: int, bos: bool | None) -> None:
    texts = ["a cat b", "b", "", "cat cat a b a", "a" * 40]
    packed = list(blocks(as_corpus(texts), model, context=context, prepend_bos=bos))
    first = None if bos is False else model.tokenize("a")[0]
    stream = [t for text in texts for t in model.tokenize(text, prepend_bos=bos)]
    joined: list[int] = []
    for block in packed:
        tokens = block.tokens.tolist()
        assert len(tokens) <= context and (first is None or tokens[0] == first)
        assert block.special.tolist() == [first is not None and t == first for t in tokens]
        cut = first is not None and not bool(block.starts[0])  # a BOS that no document begins with
        joined += tokens[1:] if cut else tokens
    assert joined == stream
    assert sum(int(block.starts.sum()) for block in packed) == len(texts) - (bos is False)
    assert all(len(block.tokens) >= context - 1 for block in packed[:-1])


def test_token_ids_are_taken_verbatim(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    ids = torch.arange(12).reshape(2, 6)
    np.save(tmp_path / "ids.npy", ids.numpy())
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    for what in (
        ids,
        ids.numpy(),
        tmp_path / "ids.npy",
        tmp_path / "ids.safetensors",
        ids.tolist(),
    ):
        packed = list(blocks(as_corpus(what), model, context=4))
        assert [b.tokens.tolist() for b in packed] == [[0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]]
        assert [b.starts.tolist()[0] for b in packed] == [True, False, True, False]
    assert len(list(blocks(as_corpus(list(range(12))), model, context=12))) == 1


def test_files_and_directories_of_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / ".hidden").write_text("no")
    assert list(as_corpus(tmp_path).documents()) == ["first", "second"]
    assert list(as_corpus(str(tmp_path / "a.txt")).documents()) == ["first"]
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(FormatError, match="c.bin is not UTF-8"):
        list(as_corpus(tmp_path).documents())


def test_a_dataset_is_rows_with_a_column() -> None:
    rows = [{"text": "one", "code": "1"}, {"text": "two", "code": "2"}]

    class Streaming:
        def __iter__(self) -> Any:
            return iter(rows)

    for what in (rows, Streaming()):
        assert list(as_corpus(what).documents()) == ["one", "two"]
    corpus = as_corpus(Streaming(), column="code")
    assert list(corpus.documents()) == list(corpus.documents()) == ["1", "2"]
    with pytest.raises(GossamerError, match='no column "body", it has text, code'):
        list(as_corpus(Streaming(), column="body").documents())


def test_the_standard_library_has_two_parts_that_share_nothing() -> None:
    train, held_out = (set(as_corpus(f"stdlib/{p}").documents()) for p in ("train", "held_out"))
    assert len(train) > 500 and len(held_out) > 20 and not train & held_out
    assert as_corpus("stdlib").name == "stdlib/train"
    assert as_corpus("stdlib", split="held_out").name == "stdlib/held_out"


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "two.safetensors")
    for what, words in (
        ("stdlib/test", "parts train, held_out and all"),
        (tmp_path / "none", "There is no corpus"),
        (tmp_path / "empty", "no text files"),
        (tmp_path / "two.safetensors", "holds 2 tensors"),
        (torch.zeros(3), "Token ids are integers"),
        ([], "at least one document"),
        (7, "got int"),
        (iter(["a"]), "only goes once"),
    ):
        with pytest.raises(GossamerError, match=words):
            as_corpus(what)
    model = tiny_model("gpt2")
    with pytest.raises(GossamerError, match="2 to .*got 1"):
        list(blocks(as_corpus([[1, 2]]), model, context=1))
    with pytest.raises(GossamerError, match="Token id 999 is not among the 37"):
        list(blocks(as_corpus([[1, 999]]), model))
