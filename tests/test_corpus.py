"""Corpora: what can be one, how documents are packed, and mistakes in words."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gossamer
from gossamer.activations.rows import counted
from gossamer.corpus import Corpus, as_corpus, blocks, puts_bos
from gossamer.errors import FormatError, GossamerError
from gossamer.models.model import Model
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
        as_corpus(tmp_path)


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


def test_what_is_plainly_no_text_is_left_out_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    (tmp_path / "c.dat").write_bytes(b"one\0two")
    assert list(as_corpus(tmp_path).documents()) == ["x = 1"]
    (tmp_path / "z.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(FormatError, match=r"z\.txt is not UTF-8"):  # before anything runs
        as_corpus(tmp_path)


def test_arrays_are_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither `puts_bos` nor the first block touches the end of a file."""
    model = tiny_model("gpt2")
    ids = np.random.default_rng(0).integers(0, 37, 1000).astype(">u2")
    np.save(tmp_path / "ids.npy", ids)
    monkeypatch.setattr(sys.modules["gossamer.corpus.blocks"], "READ_TOKENS", 64)
    corpus = as_corpus(tmp_path / "ids.npy")
    (mapped,) = list(corpus.documents())
    assert isinstance(mapped, np.memmap) and puts_bos(corpus, model, None) is None
    found = list(blocks(corpus, model, context=8))
    assert torch.equal(torch.cat([b.tokens for b in found]), torch.from_numpy(ids.astype(int)))
    assert [int(b.starts.sum()) for b in found] == [1] + [0] * 124
    ids[900] = 40
    np.save(tmp_path / "ids.npy", ids)
    read = []
    with pytest.raises(GossamerError, match="Token id 40 is not among the 37"):
        read.extend(iter(blocks(as_corpus(tmp_path / "ids.npy"), model, context=8)))


def test_puts_bos_reads_no_document(model: Any) -> None:
    def never() -> Any:
        raise AssertionError

    assert puts_bos(Corpus("texts", never, is_text=True), model, None) is True
    assert puts_bos(Corpus("ids", never, is_text=False), model, None) is None


class Padding:
    """A tokenizer of tiny models with another padding token than BOS."""

    bos_token_id, pad_token_id = 0, 36


@pytest.mark.parametrize("lengths", [(5,), (12, 3), (0, 9)])
def test_padding_at_the_end_of_token_rows_is_special(lengths: tuple[int, ...]) -> None:
    model = Model(tiny_model("gpt2").language_model, Padding())
    ids = torch.full((len(lengths), 12), 36)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.arange(length)
        row[2:3] = 36  # in the middle it is a token
    found = list(blocks(as_corpus(ids), model, context=4))
    special = torch.cat([block.special for block in found]).reshape(ids.shape)
    for row, kept in zip(ids.tolist(), special.tolist(), strict=True):
        end = max((i + 1 for i, token in enumerate(row) if token != 36), default=0)
        assert kept == [i >= end or token == 0 for i, token in enumerate(row)]
    assert sum(int(counted([b], exclude_special=True).sum()) for b in found) == int(
        (~special).sum()
    )


def test_real_datasets(tmp_path: Path, model: Any) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"a cat {i}", "code": "b" * i} for i in range(1, 6)]
    whole = datasets.Dataset.from_list(rows)
    streaming = datasets.IterableDataset.from_generator(lambda: iter(rows))
    for what in (whole, streaming, whole.to_iterable_dataset()):
        corpus = as_corpus(what, column="code")
        assert list(corpus.documents()) == list(corpus.documents()) == [r["code"] for r in rows]
        assert len(list(blocks(corpus, model, context=4))) > 0
    whole.save_to_disk(str(tmp_path / "saved"))
    assert list(as_corpus(tmp_path / "saved").documents()) == [r["text"] for r in rows]
    both = datasets.DatasetDict({"train": whole, "test": whole})
    both.save_to_disk(str(tmp_path / "both"))
    assert len(list(as_corpus(str(tmp_path / "both" / "test")).documents())) == 5
    for what, words in (
        (both, "got a DatasetDict with the keys 'train', 'test'"),
        (tmp_path / "both", "both/train, .*both/test"),
    ):
        with pytest.raises(GossamerError, match=words):
            as_corpus(what)


def test_datasets_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    name = f"hf:{tmp_path / 'data'}"
    corpus = as_corpus(f"{name}:test", column="body")
    assert corpus.name == f"{name}:test" and list(corpus.documents()) == ["one", "two"]
    for wrong, words in (
        (name, f"several splits; give one of them: {name}:train, {name}:test"),
        (f"{name}:valid", "could not be loaded .*hf:NAME:SPLIT"),
        (f"hf:{tmp_path / 'none'}", "could not be loaded"),
    ):
        with pytest.raises(GossamerError, match=words):
            as_corpus(wrong)


def test_mistakes_in_what_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "objects.npy", np.array([1, "a"], dtype=object))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "none.npy", np.zeros(0, dtype=np.int32))
    cases: list[tuple[Any, str]] = [
        (tmp_path / "objects.npy", "objects.npy is damaged, or no plain array"),
        (tmp_path / "cut.npy", "cut.npy is damaged"),
        (tmp_path / "empty.npy", "empty.npy is damaged"),
        (tmp_path / "none.npy", "at least one token"),
        ("x" * 5000, "of 5,000 characters.*a text itself stands in a list"),
        ("a\0b", "There is no corpus"),
        ([None], "got NoneType at place 0"),
        ([1.5], "got float at place 0"),
        ([1, 2.5], "Token ids are integers, got float"),
        ([True, False], "got bool at place 0"),
        ([[1, True]], "got bool in the list at place 0"),
        ([b"a"], "got bytes at place 0"),
        (b"abc", "got bytes"),
        (["a", 1], "got int at place 1"),
        (np.array([True, False]), "got bool of shape"),
        (torch.tensor([1.0]), "got float32"),
    ]
    for what, words in cases:
        with pytest.raises(GossamerError, match=words):
            as_corpus(what)
    for value, kind in ((None, "NoneType"), (3, "int")):
        with pytest.raises(GossamerError, match=f'"text" .* holds texts, got {kind} in row 1'):
            list(as_corpus([{"text": "a"}, {"text": value}]).documents())
    assert list(as_corpus([{"code": "a"}], column="code").documents()) == ["a"]
