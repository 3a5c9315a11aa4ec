"""A table of edges is the same, bit for bit, made at once, in parts in any order, or after kills;
and sums of many keys stay within their memory."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer
from gossamer.attribution.over import over as module
from gossamer.attribution.over import sums as sums_module
from gossamer.attribution.over.gathered import Gathered
from gossamer.attribution.over.sums import BYTES, Sums, empty, merged, merged_runs, of_edges
from gossamer.attribution.over.table import EdgeTable
from gossamer.errors import FormatError, GossamerError
from tests.test_attribution_over import saes_of
from tests.tiny_models import tiny_model

CHILD = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.test_attribution_over_parts import made
made(Path(sys.argv[1]), n_tokens=480)
"""
IDS = np.random.default_rng(1).integers(0, 37, (60, 8))


def made(directory: Path | None, **options: Any) -> EdgeTable:
    """Pieces of 16 tokens each."""
    module.PIECE_TOKENS["all"] = 16
    given: dict[str, Any] = {"n_tokens": 96, "context": 8, "offsets": "all", **options}
    return module.edges_over(
        tiny_model("gpt2"), saes_of("transcoders"), IDS, directory=directory, **given
    )


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PIECE_TOKENS, "all", 16)


def content(table: EdgeTable) -> dict[Any, list[bytes]]:
    """Every number of a table, as bytes; where rows are cut into segments does not count."""
    found: dict[Any, list[bytes]] = {
        pair: [np.concatenate(column).tobytes() for column in zip(*run, strict=True)]
        for pair, run in table.pairs.items()
    }
    found |= {
        site: [side.counts.tobytes(), side.sums.tobytes()] for site, side in table.sides.items()
    }
    return found | {"counted": [repr(table.counted).encode()]}


def test_parts_in_any_order_are_the_whole(tmp_path: Path) -> None:
    whole = made(None)
    parts = [made(tmp_path / f"part-{i}", part=(i, 3)) for i in range(3)]
    assert all(set(a.pieces).isdisjoint(b.pieces) for a, b in itertools.combinations(parts, 2))
    for number, order in enumerate(itertools.permutations(parts)):
        both = EdgeTable.merge(order, tmp_path / f"merged-{number}")
        assert content(both) == content(whole) and both.pieces == dict(whole.pieces)
        assert both.about == whole.about
    two = EdgeTable.merge(parts[:2], tmp_path / "two")
    assert two.counted.n_tokens < whole.counted.n_tokens
    assert content(EdgeTable.merge([parts[2], two], tmp_path / "three")) == content(whole)
    with pytest.raises(GossamerError, match="Piece 0 of the corpus is in two of the tables"):
        EdgeTable.merge([whole, parts[0]], tmp_path / "twice")
    with pytest.raises(GossamerError, match="Tables differ in n_tokens"):
        EdgeTable.merge([parts[0], made(None, n_tokens=64)], tmp_path / "other")


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    table = made(None)
    table.save(tmp_path / "saved")
    back = EdgeTable.load(tmp_path / "saved")
    assert content(back) == content(table) and back.top(9) == table.top(9)
    assert back.pieces == dict(table.pieces) and back.about == table.about


def test_neither_portions_nor_memory_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content(made(None, n_tokens=32))
    gathered = "gossamer.attribution.over.gathered"
    for dense, edges, rows, kept in ((0, 64, 40, 400), (10**9, 50, 70, 1000)):
        monkeypatch.setattr(sums_module, "DENSE", dense)
        monkeypatch.setattr(f"{gathered}.EDGES_AT_ONCE", edges)
        monkeypatch.setattr(f"{gathered}.ROWS_AT_ONCE", rows)
        monkeypatch.setattr(f"{gathered}.KEPT_EDGES", kept)
        monkeypatch.setattr("gossamer.attribution.over.directory.ROWS_AT_ONCE", rows)
        monkeypatch.setattr("gossamer.attribution.over.found.NUMBERS_AT_ONCE", kept)
        assert content(made(None, n_tokens=32, memory=edges * BYTES)) == whole


def state(directory: Path) -> tuple[int, set[str]]:
    """How many pieces the manifest lists, and the files that are there."""
    path = directory / "edges.json"
    listed = len(json.loads(path.read_text())["pieces"]) if path.exists() else 0
    return listed, {file.name for file in directory.glob("*")}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_table(tmp_path: Path) -> None:
    whole, killed = content(made(None, n_tokens=480)), tmp_path / "killed"
    root = Path(gossamer.__file__).parent.parent
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    chance, seen = random.Random(0), []
    while len(seen) < 4:
        before = state(killed)[1]
        command = [sys.executable, "-c", CHILD, str(killed)]
        with subprocess.Popen(command, cwd=root, env=environment) as child:
            while child.poll() is None and not state(killed)[1] - before:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL, "it ended before it was killed"
        seen.append(state(killed)[0])
    assert seen == sorted(seen) and 0 < seen[-1] < 30, seen
    (killed / "sums-999999.safetensors").write_bytes(b"half")  # what a kill may leave
    assert content(made(killed, n_tokens=480)) == whole
    assert content(EdgeTable.load(killed)) == whole
    assert not (killed / "sums-999999.safetensors").exists()


def test_an_unfinished_or_foreign_directory_is_told(tmp_path: Path) -> None:
    made(tmp_path / "table", n_tokens=64)
    with pytest.raises(FormatError, match="holds another table .n_tokens: 64, not 96"):
        made(tmp_path / "table")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("…")
    with pytest.raises(FormatError, match="holds no table of edges; name a new"):
        made(tmp_path / "mine")
    manifest = tmp_path / "table" / "edges.json"
    manifest.write_text(manifest.read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(GossamerError, match="is not complete"):
        EdgeTable.load(tmp_path / "table")
    manifest.write_text("{")
    with pytest.raises(FormatError, match="is damaged"):
        EdgeTable.load(tmp_path / "table")


def random_sums(generator: np.random.Generator, n: int, span: int) -> Sums:
    edges, f = generator.standard_normal((2, n))
    return of_edges(generator.integers(0, span, n), edges, abs(f).round(3), 2.0**-24)


@pytest.mark.parametrize("span", [50, 5000, 2**60])
def test_runs_merge_to_what_all_edges_give(span: int) -> None:
    generator = np.random.default_rng(2)
    keys = generator.integers(0, span, 4000)
    edges, f = generator.standard_normal((2, 4000))
    f = (f * 2**10).round() / 2**10
    whole = of_edges(keys, edges, f, 2.0**-24)
    assert (np.diff(whole.keys) > 0).all() and whole.counts.sum() == 4000
    assert np.allclose(whole.sums.sum(), edges.sum(), atol=1e-3)
    runs = []
    for part in np.array_split(generator.permutation(4000), 5):
        run = of_edges(keys[part], edges[part], f[part], 2.0**-24)
        cuts = sorted(generator.integers(0, len(run.keys) + 1, 3).tolist())
        ends = [0, *cuts, len(run.keys)]
        runs.append([run.between(a, b) for a, b in itertools.pairwise(ends)])
    for at_once in (1, 13, 10**6):
        segments = list(merged_runs(runs, at_once))
        assert all(len(part.keys) <= max(5, at_once) for part in segments)
        assert all(len(part.keys) >= at_once // 2 for part in segments[:-1])
        columns = zip(*segments, strict=True)
        for found, expected in zip(columns, whole, strict=True):
            assert np.concatenate(found).tobytes() == expected.tobytes()
    assert len(merged([empty(), empty()]).keys) == 0


def test_memory_does_not_grow_with_the_number_of_keys() -> None:
    """Three million edges, nearly all of keys of their own, that a dense table would hold in
    2²⁹ times 56 bytes: sums beyond the limit are handed over."""
    import torch

    from gossamer.attribution.over.found import Found

    d_sae, k, memory, n_given, most = 1 << 14, 64, 8 << 20, 0, 0
    pair = ("a", "b")

    def spill(_pair: Any, run: Any) -> None:
        nonlocal n_given, most
        n_given += sum(len(part.keys) for part in run)
        most = max(most, sum(len(part.keys) for part in run))

    gathered = Gathered({"a": d_sae, "b": d_sae}, 2.0**-24, 0.0, memory, spill)
    generator = torch.Generator().manual_seed(0)
    tracemalloc.start()
    for _ in range(12):
        n = 4096
        targets = torch.randint(d_sae, (n,), generator=generator)
        sources = torch.randint(d_sae, (n, k), generator=generator)
        edges = torch.randn(n, k, generator=generator)
        zeros = torch.zeros_like(targets)
        gathered.add(Found(pair, targets, torch.ones(n), zeros, torch.arange(n), sources, edges))
        gathered.settle()
    gathered.give()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert gathered.n_edges == 12 * 4096 * k and n_given > 0.95 * gathered.n_edges
    assert most * BYTES < 4 * memory and peak < 12 * memory, (most, peak)


def test_intervals_are_quantiles_over_drawn_prompts() -> None:
    from gossamer.attribution.over.intervals import edge_intervals

    corpus, saes = IDS[:30], saes_of("transcoders")
    table = module.edges_over(
        tiny_model("gpt2"), saes, corpus, n_tokens=240, context=8, offsets="all"
    )
    rows = [row for row in table.top(40) if row.n_edges > 12][:5]
    given = (table, rows, tiny_model("gpt2"), saes)
    options: dict[str, Any] = {"corpus": corpus, "n_draws": 200}
    found = edge_intervals(*given, seed=3, **options)
    assert found == edge_intervals(*given, seed=3, **options)
    for row, interval in zip(rows, found, strict=True):
        assert interval[:3] == row[:3]
        assert abs(interval.mean - row.mean) < 1e-6
        assert interval.low < row.mean < interval.high
        wide = (interval.high - interval.low) / (2 * 1.96 * row.error)
        assert 0.3 < wide < 4  # prompts are nearly independent here, as tokens are
    assert edge_intervals(*given, seed=4, **options) != found
    with pytest.raises(GossamerError, match="between 0 and 1"):
        edge_intervals(*given, level=95.0)
    with pytest.raises(GossamerError, match="of other weights"):
        edge_intervals(table, rows, tiny_model("llama"), saes)
