"""The page of training curves, as text and in a real browser."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.errors import GossamerError
from gossamer.views.curves import curves_to_html
from tests.browser import launched, opened

HOSTILE = "</script><script>alert(1)</script>"


def rows(n: int = 5) -> list[dict]:
    return [
        {
            "step": step,
            "tokens": 1000 * step,
            "trainee": trainee,
            "site_out": HOSTILE,
            "fvu": 1 / (step + trainee),
            "dead": 0.0,
            **({"loss_l1": math.nan} if trainee else {}),
        }
        for step in range(1, n + 1)
        for trainee in (0, 1)
    ]


def test_the_page_holds_the_curves_and_no_hostile_script(tmp_path: Path) -> None:
    text = curves_to_html(rows(), tmp_path / "curves.html", title=HOSTILE, log=True).read_text()
    assert HOSTILE not in text
    found = re.search(r'id="state">(.*?)</script>', text)
    assert found is not None
    state = json.loads(found[1])
    first, second = state["about"]["curves"]
    assert state["log"] is True and first["tokens"] == [1000, 2000, 3000, 4000, 5000]
    assert first["values"]["fvu"] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert second["values"]["loss_l1"] == [None] * 5 and "loss_l1" not in first["values"]
    assert "<td>0.2</td>" in text  # the last row of the table for browsers without scripts


def test_a_log_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GossamerError, match="no rows"):
        curves_to_html([], tmp_path / "curves.html")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


def heights(page, which: int) -> list[float]:
    path = page.locator("path.curve").nth(which).get_attribute("d")
    return [float(point.split(",")[1]) for point in re.split("[ML]", path)[1:]]


@pytest.mark.browser
def test_curves_are_drawn_where_the_numbers_are(browser, tmp_path: Path) -> None:
    path = curves_to_html(rows(), tmp_path / "curves.html")
    with opened(browser, path) as page:
        values = [1 / step for step in range(1, 6)]
        drawn = heights(page, 0)

        def spread(numbers: list[float]) -> list[float]:
            return [(n - numbers[0]) / (numbers[-1] - numbers[0]) for n in numbers]

        assert spread(drawn) == pytest.approx(spread(values), abs=0.01)
        page.get_by_label("log axis").check()
        assert spread(heights(page, 0)) == pytest.approx(spread([*map(math.log, values)]), abs=0.01)
        page.get_by_label("quantity").select_option("dead")
        assert "10 values are not above 0" in page.locator(".status").inner_text()
        page.get_by_label("log axis").uncheck()
        assert len(set(heights(page, 0))) == 1
