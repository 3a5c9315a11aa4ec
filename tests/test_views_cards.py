"""The page of report cards, as text and in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.views.cards import cards_to_html
from tests.browser import launched, opened

HOSTILE = "</script><script>alert(1)</script>"
SITE = "blocks.0.hook_resid_pre"
POSITIONS = ("ce_patched", "ce_clean", "kl", "mse", "l0")


def report() -> dict:
    trip = {name: {"median": 2.0} for name in ("max_ratio", "mean_ratio", "square_ratio")}
    histogram = {"first": -9, "width": 0.25, "counts": [0] * 34 + [1, 1], "never": 1}
    return {
        "model": HOSTILE,
        "corpus": "texts",
        "context": 4,
        "n_tokens": 12,
        "n_predicted": 9,
        "saes": {
            SITE: {
                "site_in": SITE,
                "d_sae": 3,
                "fvu": 0.125,
                "ce_recovered_zero": None,
                "density_histogram": histogram,
                "by_position": dict.fromkeys(POSITIONS, [None, 1.0, 2.0, 3.0]),
                "linear_round_trip": trip,
                "active_round_trip": None,
                "latents": {
                    "density": [0.5, 0.0, 0.9],
                    "firings": [6, 0, 11],
                    "neighbour": [2, 0, 0],
                    "neighbour_cosine": [0.3, 0.1, 0.3],
                    "linear_round_trip_max_ratio": [1.5, None, 0.5],
                    "logits_top_tokens": [[0, 1], [1, 0], [0, 1]],
                    "logits_bottom_tokens": [[1, 0], [0, 1], [1, 0]],
                },
            }
        },
        "next_tokens": [
            {"prompt": "a\n", "site_out": SITE, "clean": [[HOSTILE, 0.5]], "patched": [["b", 0.25]]}
        ],
        "tokens": {0: " zero", 1: HOSTILE},
    }  # fmt: skip


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    text = cards_to_html(report(), tmp_path / "card.html", labels={SITE: [HOSTILE] * 3}).read_text()
    assert HOSTILE not in text and "<td>0.125</td>" in text
    options = {"excerpts": {SITE: {1: [HOSTILE]}, "elsewhere": {0: ["x"]}}}
    assert HOSTILE not in cards_to_html(report(), tmp_path / "card.html", **options).read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


@pytest.mark.browser
def test_the_card_shows_numbers_and_orders_latents(browser, tmp_path: Path) -> None:
    excerpts = {SITE: {2: ["what fires", "and this"], 0: []}}
    path = tmp_path / "card.html"
    cards_to_html(report(), path, labels={SITE: ["x", "y", "z"]}, excerpts=excerpts)
    with opened(browser, path) as page:
        numbers = page.locator(".numbers tr").filter(has_text="fvu")
        assert numbers.locator("td").nth(1).inner_text() == "0.125"
        assert page.locator(".densities rect.bar").count() == 2
        rows = page.locator(".latents tr")
        assert rows.nth(1).locator("td").first.inner_text() == "2"  # the densest first
        rows.nth(1).hover()
        assert page.locator(".tip .excerpt").all_inner_texts() == ["what fires", "and this"]
        rows.nth(2).hover()
        assert page.locator(".tip").is_hidden()
        page.get_by_label("order of latents").select_option("-linear_round_trip_max_ratio")
        firsts = [rows.nth(i).locator("td").first.inner_text() for i in (1, 2, 3)]
        assert firsts == ["2", "0", "1"]  # what has no number comes last
        assert rows.nth(1).locator("td").nth(6).inner_text().startswith("␣zero")
        assert "50.0 %" in page.locator(".next").inner_text()
        page.get_by_label("by position").select_option("kl")
        assert page.locator("path.curve").count() == 1
