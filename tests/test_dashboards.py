"""Dashboards against loops over dense latents, also past the bound on memory; file and page."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import gossamer
from gossamer.cli import cli
from gossamer.dashboards import Dashboard, dashboard
from gossamer.dashboards import pairs as pairs_module
from gossamer.dashboards import together as together_module
from gossamer.dashboards.pairs import rank_within
from gossamer.dashboards.together import Together
from gossamer.errors import FormatError, GossamerError
from gossamer.models.model import Model
from gossamer.saes import SAE
from gossamer.saes.sae import SparseLatents
from tests.browser import launched, opened
from tests.tiny_models import tiny_model
from tests.tiny_saes import tiny_sae

SITE = "blocks.1.hook_resid_pre"
GENERATOR = torch.Generator().manual_seed(5)
IDS = [torch.randint(1, 37, (int(n),), generator=GENERATOR).tolist() for n in [11, 7, 12] * 6]
WATCHED = [3, 0, 11, 19]


class Own:
    """A tokenizer for tiny models: token 7 is "t7"."""

    bos_token_id = None

    def decode(self, ids: list[int]) -> str:
        return "".join(f" t{i}" for i in ids)


def parts() -> tuple[Model, SAE]:
    model = tiny_model("gpt2")
    return Model(model.language_model, Own()), tiny_sae("topk", SITE, 16)


def dense(model: Model, sae: SAE) -> list[torch.Tensor]:
    """Latents of each document."""
    with torch.no_grad():
        runs = [gossamer.run(model, [ids], record=SITE, logits=False) for ids in IDS]
        return [sae.encode(run.activations[SITE])[0] for run in runs]


def board_of(**options: Any) -> Dashboard:
    model, sae = parts()
    return dashboard(model, sae, IDS, **{"latents": WATCHED, "context": 12, **options})


@pytest.mark.parametrize("bound", [pairs_module.MAX_PAIRS, 100])
@pytest.mark.parametrize("batch", [1, 5])
def test_counts_and_strongest_examples_are_exact(
    bound: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when pairs beyond the bound are dropped on the way."""
    monkeypatch.setattr(pairs_module, "MAX_PAIRS", bound)
    monkeypatch.setattr(pairs_module, "N_SAMPLED", 3)
    monkeypatch.setattr(pairs_module, "N_TOP", 4)
    model, sae = parts()
    documents = dense(model, sae)
    rows = torch.cat(documents)
    board = board_of(batch=batch, n_top=4, before=3, after=2)
    assert board.sampled == (bound == 100)
    assert board.about["n_tokens"] == len(rows) == sum(map(len, IDS))
    assert torch.equal(board.firings, (rows[:, WATCHED] != 0).sum(0))
    torch.testing.assert_close(board.maxima, rows[:, WATCHED].amax(0).clamp(min=0).float())
    if bound > 100:
        assert torch.equal(board.histogram.sum(1), board.firings)
    for row, latent in enumerate(WATCHED):
        _check_examples(board, row, [document[:, latent] for document in documents])
        squares = torch.zeros(37, dtype=torch.float64)
        squares.index_add_(0, torch.tensor(sum(IDS, [])), rows[:, latent].square())
        expected = squares.argsort(descending=True)[:4]
        expected = [t for t in expected.tolist() if squares[t] >= 0.1 * squares.max() > 0]
        assert list(board.top_tokens[row]) == expected
        active = rows != 0
        either = (active[:, [latent]] | active).sum(0)
        share = (active[:, [latent]] & active).sum(0) / either.clamp(min=1)
        share[latent] = -1
        assert board.together is not None
        expected_shares = share.sort(descending=True).values[:8].float()
        torch.testing.assert_close(board.together[0][row], expected_shares)
    cosines = torch.nn.functional.normalize(sae.W_dec, dim=1)[WATCHED]
    cosines = cosines @ torch.nn.functional.normalize(sae.W_dec, dim=1).T
    cosines[torch.arange(4), torch.tensor(WATCHED)] = -2
    torch.testing.assert_close(board.near[0], cosines.topk(8, dim=1).values.detach())


def _check_examples(board: Dashboard, row: int, documents: list[torch.Tensor]) -> None:
    """The strongest of each document, then windows and activations of every example."""
    mine = board.examples.latents == row
    best = sorted((max(d.tolist()) for d in documents), reverse=True)[:4]
    best = [value for value in best if value > 0]
    found = []
    for block, position, group, tokens, values in zip(
        *(field[mine].tolist() for field in board.examples[2:4]),
        board.examples.groups[mine].tolist(),
        board.examples.tokens[mine].tolist(),
        board.examples.activations[mine].tolist(),
        strict=True,
    ):
        for offset, token, value in zip(range(-3, 3), tokens, values, strict=True):
            at = position + offset
            inside = 0 <= at < len(IDS[block])
            assert token == (IDS[block][at] if inside else -1)
            assert value == pytest.approx(documents[block][at].item() if inside else 0)
        assert values[3] > 0
        found += [values[3]] if group == 0 else []
    assert found == pytest.approx(best)


def test_examples_of_a_quantile_lie_in_it_whatever_the_batch() -> None:
    first, second = (board_of(batch=batch, n_quantiles=4, n_each=2) for batch in (1, 4))
    for a, b in zip(first.examples, second.examples, strict=True):
        torch.testing.assert_close(a, b)
    model, sae = parts()
    rows = torch.cat(dense(model, sae)).float()
    examples, at = first.examples, 16
    for group in (1, 2, 3, 4):
        for row, latent in enumerate(WATCHED):
            values = rows[:, latent][rows[:, latent] > 0].sort(descending=True).values
            part = [v for i, v in enumerate(values.tolist()) if i * 4 // len(values) == group - 1]
            mine = (examples.latents == row) & (examples.groups == group)
            shown = examples.activations[mine][:, at].tolist()
            assert len(shown) == min(2, len(part))
            assert all(any(v == pytest.approx(p, rel=1e-5) for p in part) for v in shown)


def test_a_sample_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "MAX_PAIRS", 60)
    monkeypatch.setattr(pairs_module, "N_SAMPLED", 2)
    boards = [board_of(batch=batch) for batch in (1, 2, 7)]
    assert all(board.sampled for board in boards)
    for board in boards[1:]:
        assert torch.equal(board.histogram, boards[0].histogram)
    assert (boards[0].histogram.sum(1) < boards[0].firings).any()


def test_ranks_within_groups() -> None:
    groups, by = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([3.0, 2.0, 1.0, 2.0, 2.0])
    assert rank_within(groups, by).tolist() == [2, 0, 0, 1, 1]


def test_a_file_gives_the_same_dashboard_back(tmp_path: Path) -> None:
    board = board_of(n_top=2)
    path = board.save(tmp_path / "board.safetensors")
    again = Dashboard.load(path)
    assert again.excerpts() == board.excerpts() and again.labels() == board.labels()
    assert again.about == board.about and again.names == board.names
    for a, b in zip(again.examples, board.examples, strict=True):
        assert torch.equal(a, b)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="damaged"):
        Dashboard.load(path)
    with pytest.raises(FormatError, match="no file"):
        Dashboard.load(tmp_path / "none")
    tiny_sae("topk", SITE, 16).save(tmp_path)
    with pytest.raises(FormatError, match="no dashboard of version"):
        Dashboard.load(tmp_path / "sae.safetensors")


def test_labels_name_what_fires_most() -> None:
    board = board_of(latents=None)
    labels = board.labels()
    assert len(labels) == 20 and labels.contexts is not None
    for latent in range(20):
        assert bool(labels.top_tokens[latent]) == bool(board.firings[latent])
        if labels.top_tokens[latent]:
            assert labels.contexts[latent][0] == board.excerpts()[latent][0]


def test_mistakes_are_said() -> None:
    model, sae = parts()
    for latents, got in (([20], "20"), ([], "none"), ([1, 1], "one twice")):
        with pytest.raises(GossamerError, match=f"from 0 to 19, got {got}"):
            dashboard(model, sae, IDS, latents=latents)
    with pytest.raises(GossamerError, match="1 token at least, got n_tokens=0"):
        dashboard(model, sae, IDS, n_tokens=0)
    with pytest.raises(GossamerError, match="no tokens that count"):
        dashboard(model, sae, [[]])


def test_texts_are_looked_at_before_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    coder = sae["blocks.2.hook_resid_pre"]
    assert isinstance(coder, SAE)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the pass has begun")

    monkeypatch.setattr(type(model), "forward", never)
    for text, words in (("", "text to try is empty"), ("x = 1\n" * 2000, "context holds")):
        with pytest.raises(GossamerError, match=words):
            dashboard(model, coder, ["import os\n"], texts=[text])
        with pytest.raises(GossamerError, match=words):
            gossamer.evaluate(model, coder, ["import os\n"], prompts=[text])


@pytest.mark.parametrize("product_from", [0.0, 10.0])
def test_pairs_of_latents_are_counted_either_way(
    product_from: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one, and by a product; rows of any length, also none."""
    monkeypatch.setattr(together_module, "PRODUCT_FROM", product_from)
    monkeypatch.setattr(together_module, "TOKENS_AT_ONCE", 7)
    generator = torch.Generator().manual_seed(1)
    active = torch.rand(50, 23, generator=generator) < torch.rand(50, 1, generator=generator) ** 3
    active[:4] = False
    watched = torch.tensor([3, 22, 0, 11])
    table = Together(watched, 23)
    for part in active.split(20):
        sparse = SparseLatents.from_dense(part.float())
        table.add_(sparse.indices, sparse.offsets)
    both = active[:, watched].float().T @ active.float()
    assert torch.equal(table.counts, both.int())


def test_a_table_that_is_too_large_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together_module, "MAX_ENTRIES", 79)
    board = board_of()
    assert board.together is None
    assert "4 × 20 pairs are more than the 79" in board.about["no_together"]
    assert "no_together" in board.to_html(tmp_path / "page.html").read_text()
    assert Dashboard.load(board.save(tmp_path / "board")).about == board.about
    monkeypatch.undo()
    assert board_of().about["no_together"] is None


def test_a_text_is_tried_as_it_runs() -> None:
    model, sae = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    coder = sae["blocks.2.hook_resid_pre"]
    assert isinstance(coder, SAE)
    text = "def f(self):\n    return self"
    board = dashboard(model, coder, ["import os\n"], latents=[5, 6], texts=[text])
    trace = gossamer.run(model, text, coder, logits=False)
    assert "".join(board.texts[0].tokens[1:]) == text
    torch.testing.assert_close(
        board.texts[0].activations, trace.latents[coder.site_out][0][:, [5, 6]].T.detach()
    )
    assert board.names[0] == coder.labels[5] if coder.labels else False


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


@pytest.mark.browser
def test_the_page_lists_opens_and_compares(browser: Any, tmp_path: Path) -> None:
    model, sae = parts()
    sae.metadata["neuronpedia_id"] = "tiny/1-res"
    board = dashboard(model, sae, IDS, latents=WATCHED, context=12, before=3, after=2)
    with opened(browser, board.to_html(tmp_path / "latents.html")) as page:
        assert page.locator(".list button").count() == 4
        assert "latent 3" in page.locator(".card.first h2").inner_text()
        link = page.locator(".card.first a").get_attribute("href")
        assert link == "https://www.neuronpedia.org/tiny/1-res/3"
        strongest = page.locator(".card.first .example").first
        assert strongest.locator(".at").count() == 1
        assert "247, 140, 60" in strongest.locator(".at").evaluate("e => e.style.background")
        page.locator(".list button").nth(2).click(modifiers=["Shift"])
        assert "latent 11" in page.locator(".card.second h2").inner_text()
        page.get_by_role("button", name="close").click()
        assert page.locator(".card.second").is_hidden()
        page.get_by_label("find latents").fill("19")
        found = page.locator(".list button").filter(has=page.locator("b", has_text="19"))
        assert found.count() == 1
        found.click()
        assert "latent 19" in page.locator(".card.first h2").inner_text()
        assert page.locator(".card.first rect.bar").count() == 40


def test_the_command_lists_saves_and_labels(tmp_path: Path) -> None:
    site = "blocks.2.hook_resid_pre"
    sae = gossamer.load_sae(f"pico-python/resid/{site}")
    sae.labels = None
    sae.save(tmp_path / "run")
    saved = tmp_path / "board.safetensors"
    arguments = ["dashboard", "--saes", str(tmp_path / "run"), "--latents", "0-2,9", "--tokens"]
    done = CliRunner().invoke(
        cli,
        [*arguments, "20000", "--labels", "--save", str(saved), "--json"],
        catch_exceptions=False,
    )
    found = json.loads(done.stdout)
    assert [row["latent"] for row in found["latents"]] == [0, 1, 2, 9]
    assert found["corpus"] == "stdlib/train" and found["n_tokens"] >= 20_000
    labels = gossamer.load_sae(tmp_path / "run").labels
    assert labels is not None and labels[0] == found["latents"][0]["label"] != ""
    page = tmp_path / "edges.html"
    drawn = CliRunner().invoke(
        cli,
        ["edges", "def un", "--from", site, "--to", "logits", "--html", str(page)]
        + ["--dashboard", str(saved)],
        catch_exceptions=False,
    )
    assert drawn.exit_code == 0 and page.exists()
    for wrong, words in (
        *((text, "ranges such as") for text in ("a", "3-", "1--2", "²", "٣", "")),
        *((text, "from 0 to 2047, and a range rises") for text in ("5-3", "0-999999999", "2048")),
    ):
        found = CliRunner().invoke(cli, [*arguments[:3], "--latents", wrong])
        assert words in str(found.exception), wrong
    for option, value, words in (
        ("--html", str(tmp_path / "none" / "page.html"), "cannot be written"),
        ("--save", str(tmp_path), "cannot be written"),
        ("--tokens", "0", "whole number from 1 on"),
        ("--context", "0", "not in the range"),
    ):
        found = CliRunner().invoke(cli, [*arguments[:3], option, value])
        assert found.exit_code == 2 and words in found.output, option
    found = CliRunner().invoke(cli, [*arguments[:3], "--text", ""])
    assert "--text is empty" in str(found.exception)


def test_a_matrix_shows_excerpts_under_its_nodes() -> None:
    model, saes = gossamer.load_model("pico-python"), gossamer.load_saes("pico-python")
    site = "blocks.2.hook_resid_pre"
    edges = gossamer.edges(
        model, saes, "def un", source=gossamer.Latents(site), target=gossamer.Logits(top=2)
    )
    assert isinstance(edges, gossamer.Edges)
    latent = int(edges.sources.indices[0])
    view = edges.view(excerpts={site: {latent: ["what fires"]}})
    assert view.columns.excerpts[0] == ["what fires"] and view.rows.excerpts == ()
    assert b"what fires" in view.blob()
