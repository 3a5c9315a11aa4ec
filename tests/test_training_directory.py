"""A run's directory: which activations, SAEs, logs and leftovers belong to it, and which do not."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gossamer.activations import Store
from gossamer.activations.store import Shard, sha256_of, write_manifest
from gossamer.errors import FormatError, GossamerError, ShapeError
from gossamer.saes import load_native
from gossamer.training.config import (
    StartConfig,
)
from gossamer.training.loop import train
from tests.test_training_resume import (
    rows,
    settings,
    stopped,
)
from tests.tiny_models import tiny_model
from tests.tiny_training import SITE, Rows, dictionary_rows


def stored(data: Tensor, directory: Path, n_shards: int) -> Store:
    """A store of the first shards of some rows, as a harvest leaves it."""
    directory.mkdir(exist_ok=True)
    shards = []
    for number, part in enumerate(data.split(100)[:n_shards]):
        file = directory / f"shard-{number:05}.safetensors"
        save_file({SITE: part.clone()}, file)
        size = file.stat().st_size
        shards.append(
            Shard(file=file.name, rows=100, size=size, sha256=sha256_of(file), tokens="-")
        )
    write_manifest(directory, {"model": "tiny", "widths": {SITE: data.shape[1]}}, shards)
    return Store.open(directory)


def test_other_activations_are_refused_and_named(tmp_path: Path) -> None:
    """A tensor, a file, a grown store and a live run with other data than at the start."""
    data = dictionary_rows(500, 40, 16, 3)[0]
    changed = data.clone()
    changed[250:] += 1
    config = settings("topk", site=SITE)

    def file(values: Tensor, folder: str) -> Path:
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "acts.npy", values.numpy())
        return tmp_path / folder / "acts.npy"

    cases: dict[str, tuple[Any, Any, str]] = {
        "tensor": (data, changed, "source.digest"),
        "shape": (data, data[:400], r"source.digest.*source.rows 500, not 400"),
        "file": (file(data, "one"), file(changed, "two"), "source.digest"),
    }
    for name, (first, second, message) in cases.items():
        train(config, first, directory=tmp_path / name)
        train(config, first, directory=tmp_path / name)  # the same is read
        with pytest.raises(GossamerError, match=f"other activations .*{message}"):
            train(config, second, directory=tmp_path / name)
    train(config, stored(data, tmp_path / "acts", 3), directory=tmp_path / "store")
    train(config, stored(data, tmp_path / "acts", 3), directory=tmp_path / "store")
    with pytest.raises(GossamerError, match=r"activations .*source.rows 300, not 400"):
        train(config, stored(data, tmp_path / "acts", 4), directory=tmp_path / "store")
    with pytest.raises(GossamerError, match=r"activations .*source.digest"):
        train(config, stored(changed, tmp_path / "acts", 3), directory=tmp_path / "store")


def test_another_corpus_of_a_live_run_is_refused(tmp_path: Path) -> None:
    model = tiny_model("gpt2", torch.float32)
    config = replace(settings("topk", site=SITE), n_tokens=64, start=StartConfig(n_tokens=1))
    documents = [[1, 2, 3, 4, 5, 6, 7, 8] for _ in range(20)]
    train(config, (model, documents, SITE), directory=tmp_path)
    train(config, (model, documents, SITE), directory=tmp_path)
    documents[3][2] = 9
    with pytest.raises(GossamerError, match="other activations .*source.digest"):
        train(config, (model, documents, SITE), directory=tmp_path)


def test_activations_of_another_width_are_named(tmp_path: Path) -> None:
    """What only a source that says no more of itself can bring about."""
    stopped(tmp_path, settings("topk"), at=8)
    wider = Rows({SITE: torch.randn(500, 20)})
    with pytest.raises(ShapeError, match=r"W_enc \(48, 16\), not \(48, 20\).*another directory"):
        train(settings("topk"), wider, directory=tmp_path)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    train(settings("topk"), rows(), directory=tmp_path / "run")
    alien = tmp_path / "alien"
    load_native(tmp_path / "run").save(alien)
    before = {path: path.read_bytes() for path in alien.iterdir()}
    with pytest.raises(GossamerError, match="holds sae.json, sae.safetensors and no run.json"):
        train(settings("topk"), rows(), directory=alien)
    assert before == {path: path.read_bytes() for path in alien.iterdir()}
    notes = tmp_path / "notes"
    notes.write_text("mine")
    for directory, message in ((notes, "is a file"), (notes / "run", "cannot be made")):
        with pytest.raises(GossamerError, match=message):
            train(settings("topk"), rows(), directory=directory)
    assert notes.read_text() == "mine"


def test_an_sae_of_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    train(settings("topk", seed=1), rows(), directory=tmp_path / "other")
    stopped(tmp_path / "run", settings("topk"), at=8)
    load_native(tmp_path / "other").save(tmp_path / "run")
    with pytest.raises(GossamerError, match="holds an SAE that this run did not make"):
        train(settings("topk"), rows(), directory=tmp_path / "run")


def test_the_log_of_a_finished_run_must_be_there(tmp_path: Path) -> None:
    train(settings("topk"), rows(), directory=tmp_path)
    log = tmp_path / "log.jsonl"
    good = log.read_bytes()
    train(settings("topk"), rows(), directory=tmp_path)
    for bad, message in ((b"\xff\xfe", "cannot be read"), (b"", "missing or cut short")):
        log.write_bytes(bad)
        with pytest.raises(FormatError, match=f"log.jsonl.*{message}"):
            train(settings("topk"), rows(), directory=tmp_path)
    log.unlink()
    with pytest.raises(FormatError, match=r"log.jsonl.*missing.*load_sae"):
        train(settings("topk"), rows(), directory=tmp_path)
    log.write_bytes(b"{}\n" + good)
    with pytest.raises(FormatError, match=r"Line 1 of .*log.jsonl is damaged"):
        train(settings("topk"), rows(), directory=tmp_path)


def test_the_log_is_written_again_only_when_lines_are_cut(tmp_path: Path) -> None:
    train(settings("topk"), rows(), directory=tmp_path)
    log = tmp_path / "log.jsonl"
    os.utime(log, ns=(1, 1))
    train(settings("topk"), rows(), directory=tmp_path)
    assert log.stat().st_mtime_ns == 1
    whole = log.read_text()
    log.write_text(whole + '{"step": 3')
    train(settings("topk"), rows(), directory=tmp_path)
    assert log.read_text() == whole


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    newest = stopped(tmp_path, settings("topk"), at=8)
    leftovers = [newest.with_name("step-00000009.safetensors.partial"), tmp_path / "x.partial"]
    for path in leftovers:
        path.write_bytes(b"half")
    train(settings("topk"), rows(), directory=tmp_path)
    assert not any(path.exists() for path in leftovers)
