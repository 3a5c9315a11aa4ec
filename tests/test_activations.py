"""Harvest, store and sources: rows against plain hooks, orders, damage."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import gossamer
from gossamer.activations import LiveActivations, Store, TensorActivations, as_source, harvest
from gossamer.activations.store import Shard, sha256_of, shard_order, write_manifest
from gossamer.corpus import Corpus, as_corpus
from gossamer.errors import FormatError, GossamerError, ShapeError, SiteError
from tests.tiny_models import tiny_model

SITES = ("blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out")
module: Any = sys.modules["gossamer.activations.harvest"]


def corpus(n: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(n)
    lengths = torch.randint(1, 12, (n,), generator=generator).tolist()
    return [torch.randint(0, 37, (k,), generator=generator).tolist() for k in lengths]


def small(monkeypatch: pytest.MonkeyPatch, tokens: int = 64) -> None:
    """Shards of a few blocks."""
    monkeypatch.setattr(module, "SHARD_TOKENS", tokens)


def plain_rows(documents: list[list[int]], context: int = 8) -> dict[str, Tensor]:
    """Every token's activation, a document and a block at a time."""
    model = tiny_model("gpt2", torch.float32)
    rows: dict[str, list[Tensor]] = {site: [] for site in SITES}
    for document in documents:
        for start in range(0, len(document), context):
            piece = document[start : start + context]
            with torch.no_grad():
                seen = gossamer.run(model, [piece], record=SITES).activations
            for site in SITES:
                rows[site].append(seen[site][0])
    return {site: torch.cat(parts) for site, parts in rows.items()}


def made(directory: Path, n_tokens: int = 150, documents: Any = None, **options: Any) -> Store:
    model = tiny_model("gpt2", torch.float32)
    options = {"sites": SITES, "context": 8, "batch": 3} | options
    documents = corpus() if documents is None else documents
    return harvest(model, documents, directory=directory, n_tokens=n_tokens, **options)


def test_the_rows_are_those_of_plain_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    store = made(tmp_path)
    assert store.n_rows >= 150 and len(store.shards) > 2 and store.sites == SITES
    expected = plain_rows(corpus())
    for site in SITES:
        found = torch.cat([store.rows(i)[site] for i in range(len(store.shards))])
        torch.testing.assert_close(found, expected[site][: len(found)], rtol=1e-4, atol=1e-5)
        assert store.width(site) == found.shape[1]
    assert Store.open(tmp_path).about == store.about
    with pytest.raises(SiteError, match="not of blocks.2"):
        store.width("blocks.2.hook_resid_pre")


def test_bos_rows_are_left_out_unless_kept(tmp_path: Path) -> None:
    model = gossamer.load_model("pico-python")
    texts, site = ["def f(x):\n    return x\n", "a = 1\n"], "blocks.1.hook_resid_pre"
    tokens = [model.tokenize(text) for text in texts]
    length = sum(map(len, tokens))
    for keep, rows in ((False, length - 2), (True, length)):
        store = harvest(
            model,
            texts,
            sites=[site],
            directory=tmp_path / str(keep),
            n_tokens=rows,
            exclude_special=not keep,
            dtype="bfloat16",
        )
        assert store.n_rows == rows and store.rows(0)[site].dtype == torch.bfloat16


def flat_batches(source: Any, size: int, n: int, **how: Any) -> Tensor:
    return torch.cat(
        [batch[SITES[0]] for batch in itertools.islice(source.batches(size, **how), n)]
    )


def sources(tmp_path: Path) -> list[Any]:
    store = made(tmp_path / "acts")
    tensors = {site: store.rows(0)[site] for site in SITES}
    model = tiny_model("gpt2", torch.float32)
    live = LiveActivations(model, as_corpus(corpus()), SITES, context=8)
    return [store, TensorActivations(tensors, {}), live]


def test_every_row_comes_once_in_an_epoch_and_any_batch_can_be_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    monkeypatch.setattr("gossamer.activations.store.IN_MEMORY", 4 * 32 * 150)
    for source in sources(tmp_path):
        n = source.n_rows or sum(map(len, corpus()))
        rows = flat_batches(source, 1, 2 * n, seed=3)
        epochs = [sorted(map(tuple, part.tolist())) for part in rows.split(n)]
        assert epochs[0] == epochs[1] and not torch.equal(rows[:n], rows[n:])
        assert torch.equal(rows, flat_batches(source, 1, 2 * n, seed=3))
        assert not torch.equal(rows[:n], flat_batches(source, 1, n, seed=4))
        for start in (1, 5, n // 7 + 3):  # over the end of an epoch too
            found = flat_batches(source, 7, 3, seed=3, start=start)
            assert torch.equal(found, rows[7 * start : 7 * start + 21]), (type(source), start)
        pair = next(source.batches(5, seed=0))
        assert set(pair) == set(SITES) and all(len(values) == 5 for values in pair.values())


@pytest.mark.parametrize("in_memory", [2**28, 3000])
def test_parts_of_a_batch_are_the_batch(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    monkeypatch.setattr("gossamer.activations.store.IN_MEMORY", in_memory)
    for source in sources(tmp_path):
        for size, n, start in ((7, 3, 0), (50, 2, 4), (200, 4, 1)):
            whole = itertools.islice(source.batches(size, seed=1, start=start), 5)
            parts = [source.batches(size, seed=1, start=start, part=(i, n)) for i in range(n)]
            for batch in whole:
                pieces = [next(part) for part in parts]
                for site, rows in batch.items():
                    assert torch.equal(torch.cat([piece[site] for piece in pieces]), rows)


def test_all_sites_of_a_batch_are_of_the_same_tokens(tmp_path: Path) -> None:
    store = made(tmp_path)
    whole = {s: store.rows(0)[s] for s in SITES}
    batch = next(store.batches(20, seed=1))
    for first, second in zip(*(batch[site] for site in SITES), strict=True):
        places = (whole[SITES[0]] == first).all(1) & (whole[SITES[1]] == second).all(1)
        assert places.any()


def shard_bytes(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_harvest_run_again_makes_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    store = made(tmp_path)
    before = shard_bytes(tmp_path)
    times = {file: (tmp_path / file).stat().st_mtime_ns for file in before}
    (tmp_path / store.shards[0].file).unlink()
    cut = tmp_path / store.shards[1].file
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(FormatError, match=f"{store.shards[0].file} is missing or cut short"):
        Store.open(tmp_path)
    changed = bytearray(before[store.shards[2].file])
    changed[-1] ^= 1  # the same size, another content
    (tmp_path / store.shards[2].file).write_bytes(changed)
    made(tmp_path)
    assert shard_bytes(tmp_path) == before
    last = store.shards[-1].file
    assert (tmp_path / last).stat().st_mtime_ns == times[last]
    assert made(tmp_path, 230).n_rows >= 230  # goes on


def test_a_shard_that_is_not_this_harvests_is_refused_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the same size, of another model, and one with a single bit changed."""
    small(monkeypatch)
    store = made(tmp_path / "own")
    other = tiny_model("gpt2_inverse_layer", torch.float32)
    options = {"sites": SITES, "context": 8, "batch": 3, "n_tokens": 150}
    harvest(other, corpus(), directory=tmp_path / "other", **options)
    first, foreign = (
        folder / store.shards[0].file for folder in (tmp_path / "own", tmp_path / "other")
    )
    assert first.stat().st_size == foreign.stat().st_size
    whole = first.read_bytes()
    for content in (foreign.read_bytes(), whole[:-1] + bytes([whole[-1] ^ 1])):
        first.write_bytes(content)
        with pytest.raises(FormatError, match=f"{first.name} is damaged, or not of this harvest"):
            next(Store.open(tmp_path / "own").batches(4, seed=0))


def test_another_harvest_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    before = shard_bytes(tmp_path)
    other = tiny_model("llama", torch.float32)
    with pytest.raises(FormatError, match="another harvest.*model.*weights"):
        harvest(other, corpus(), sites=SITES, directory=tmp_path, n_tokens=9, context=8)
    with pytest.raises(FormatError, match="dtype: 'float32', not 'float16'"):
        made(tmp_path, dtype="float16")
    with pytest.raises(FormatError, match="of other tokens than this corpus"):
        made(tmp_path, documents=[[1, 2, 3]] * 80)
    assert shard_bytes(tmp_path) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FormatError, match="not empty and holds no store"):
        made(tmp_path / "full")


def test_a_corpus_smaller_than_asked_says_how_small_and_keeps_what_there_is(tmp_path: Path) -> None:
    total = sum(map(len, corpus()))
    with pytest.raises(GossamerError, match=f"gives {total:,} rows, 5,000 were asked for"):
        made(tmp_path, 5000)
    assert made(tmp_path, total).n_rows == total


def test_bad_arguments(tmp_path: Path) -> None:
    for options, words in (
        ({"sites": ()}, "at least one site"),
        ({"n_tokens": 0}, "at least one site and one token"),
        ({"dtype": "int8"}, "dtype is one of"),
        ({"sites": "blocks.0.hook_resid_per"}, "No site"),
    ):
        with pytest.raises(GossamerError, match=words):
            made(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_part_of_what_processes_share_is_refused() -> None:
    model = tiny_model("gpt2", torch.float32)
    live = LiveActivations(model, as_corpus(corpus()), SITES, context=8, shared=True)
    with pytest.raises(GossamerError, match=r"read whole batches, got part=\(0, 2\)"):
        live.batches(8, seed=0, part=(0, 2))


def test_what_can_be_a_source(tmp_path: Path) -> None:
    store, x = made(tmp_path / "acts"), torch.randn(10, 4)
    np.save(tmp_path / "x.npy", x.numpy())
    save_file({SITES[0]: x}, tmp_path / "x.safetensors")
    model = tiny_model("gpt2", torch.float32)
    assert as_source(store) is store and as_source(tmp_path / "acts").n_rows == store.n_rows
    for what in (x, tmp_path / "x.npy"):
        assert as_source(what, SITES[0]).width(SITES[0]) == 4
        with pytest.raises(SiteError, match="name the site"):
            as_source(what)
    assert as_source(tmp_path / "x.safetensors").sites == (SITES[0],)
    assert as_source({SITES[0]: x}).n_rows == 10
    assert as_source((model, corpus(), SITES[1])).sites == (SITES[1],)
    for what, words in (
        (tmp_path / "none", "no activations at"),
        ({SITES[0]: x, SITES[1]: x[:3]}, "one number of rows"),
        ({SITES[0]: x[0]}, "numbers .rows, width."),
        (3, "got int"),
    ):
        with pytest.raises(GossamerError, match=words):
            as_source(what)
    with pytest.raises(ShapeError):
        TensorActivations({}, {})
    assert json.dumps(dict(as_source((model, corpus(), SITES[1])).about))


def test_a_store_trains_an_sae(tmp_path: Path) -> None:
    store = made(tmp_path / "acts")
    config = gossamer.TrainConfig(
        sae=gossamer.TopKConfig(k=3), d_sae=24, n_tokens=640, site=SITES[0], batch_tokens=64
    )
    result: Any = gossamer.train(config, store)
    assert result.sae.site_in == SITES[0] and result.sae.model_name == store.about["model"]
    live: Any = gossamer.train(config, (tiny_model("gpt2", torch.float32), corpus(), SITES[0]))
    assert live.sae.d_sae == 24


def test_as_many_rows_as_asked_up_to_a_block_and_then_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer harvest makes the last shard again; it is as if it had been asked at first."""
    small(monkeypatch)
    for n_tokens in (1, 30, 50, 130):
        assert n_tokens <= made(tmp_path / "grown", n_tokens).n_rows < n_tokens + 8
    made(tmp_path / "at once", 130)
    assert shard_bytes(tmp_path / "grown") == shard_bytes(tmp_path / "at once")
    assert made(tmp_path / "grown", 20).n_rows >= 130  # more is left as it is


def test_a_row_is_traced_to_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    store, documents = made(tmp_path), corpus()
    found = [store.tokens(i) for i in range(len(store.shards))]
    tokens = torch.cat([each for each, _ in found]).tolist()
    starts = torch.cat([each for _, each in found])
    flat = [token for document in documents for token in document]
    firsts = [i == 0 for document in documents for i in range(len(document))]
    assert tokens == flat[: len(tokens)] and starts.tolist() == firsts[: len(tokens)]


def test_the_same_corpus_under_another_name_goes_on(tmp_path: Path) -> None:
    made(tmp_path / "acts", 20)
    np.save(tmp_path / "one.npy", np.array(sum(corpus(), []), dtype=np.uint16))
    named = Corpus("elsewhere", as_corpus(corpus()).documents)
    assert made(tmp_path / "acts", 60, named).about["corpus"] == "token ids"


def test_a_batch_is_mixed_from_many_sequences(tmp_path: Path) -> None:
    """scale.md 2.3: m_w = 1 + B·L / (open rows), at the size of GPT-2: 16 shards of 65,536 rows,
    of which memory holds 1.33; L = 256, B = 4096."""
    site, length, n_shards, rows = SITES[0], 16, 16, 4096  # all sizes but m_w's by 16
    shards = []
    for number in range(n_shards):
        file = tmp_path / f"shard-{number:05}.safetensors"
        sequence = torch.arange(rows) // length + number * rows // length
        save_file({site: sequence[shard_order(rows), None].float()}, file)
        size, sha = file.stat().st_size, sha256_of(file)
        shards.append(Shard(file=file.name, rows=rows, size=size, sha256=sha, tokens="-"))
    write_manifest(tmp_path, {"model": "tiny", "widths": {site: 1}}, shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gossamer.activations.store.IN_MEMORY", 4 * rows * 4 // 3)
        store = Store.open(tmp_path)
        m_w = []
        for batch in itertools.islice(store.batches(4096, seed=0), 16):
            counts = batch[site][:, 0].long().bincount().double()
            m_w.append((counts.square().sum() / counts.sum()).item())
        assert sum(m_w) / len(m_w) < 1 + 4096 * length / (8 * rows) * 1.2, m_w
