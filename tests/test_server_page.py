"""The debugger's page in a real browser, against a real server with the bundled model.

What the page shows is compared with what the library's own functions return; every page must log
no error and ask nothing of any other server.
"""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import pytest

import gossamer
from gossamer.views.text import show_token
from tests.browser import launched, needs, watched
from tests.hostile import HOSTILE

pytestmark = pytest.mark.browser

PROMPT = "def add(self, other):\n    return self"
OTHER = "def add(this, other):\n    return this"
TARGET = gossamer.LogitDifference(".", "\n")
QUESTION = {"prompt": PROMPT, "targets": ".", "less": "\n"}


@pytest.fixture(scope="module")
def model() -> Any:
    return gossamer.load_model("pico-python")


@pytest.fixture(scope="module")
def saes() -> Any:
    return gossamer.load_saes("pico-python")


@contextmanager
def running(app: Any, **options: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine."""
    import uvicorn

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **options))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        end = time.monotonic() + 30
        while not server.started and thread.is_alive() and time.monotonic() < end:
            time.sleep(0.02)
        assert server.started
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def app(saes, tmp_path_factory) -> Any:
    """With a model of its own: its thread may still compute while a test uses the other."""
    needs("fastapi", "uvicorn")
    from gossamer.server.app import create_app

    workspace = tmp_path_factory.mktemp("workspace")
    return create_app(gossamer.load_model("pico-python"), saes, workspace)


@pytest.fixture(scope="module")
def address(app) -> Iterator[str]:
    with running(app) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as found:
        yield found


@contextmanager
def asked(browser, address: str, console: bool = True, **state: Any) -> Iterator:
    """The page with a question in its address, answered."""
    size = state.pop("size", (1280, 900))
    options = {"color_scheme": state.pop("scheme", "light")}
    options["viewport"] = {"width": size[0], "height": size[1]}
    query = urlencode(state, doseq=True)
    url = f"{address}?{query}" if query else address
    with watched(browser, url, console=console, **options) as page:
        ready(page)
        yield page


def ready(page) -> None:
    page.wait_for_selector("body[data-ready=true]")


def number(page, name: str) -> float:
    """A number of the summary, as the page got it."""
    return float(page.locator(f"#value [data-name='{name}']").get_attribute("data-value"))


def listed(page) -> list[str]:
    """Ids of the table's rows."""
    return page.locator("#scroll tbody tr").evaluate_all("rows => rows.map(r => r.dataset.id)")


def line(page, node: str):
    return page.locator(f"#scroll tr[data-id='{node}']")


def column(page, place: int) -> list[str]:
    """The texts of one column of numbers, minus signs made plain."""
    read = f"rows => rows.map(r => r.querySelectorAll('td.number')[{place}].textContent)"
    return [t.replace("−", "-") for t in page.locator("#scroll tbody tr").evaluate_all(read)]


def by_direct(rows: Any) -> list[str]:
    return [row.node for row in sorted(rows, key=lambda row: -abs(row.direct))]


def trees(page) -> dict[str, int]:
    return page.evaluate("() => ({broken: window.broken ?? 0, images: document.images.length})")


def test_a_prompt_and_targets_make_a_table(browser, address, model, saes) -> None:
    with asked(browser, address) as page:
        assert page.get_by_text("Type a prompt").is_visible()
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        for name, token in (("add a target", "."), ("add a distractor", r"\n")):
            page.get_by_label(name).fill(token)
            page.get_by_label(name).press("Enter")
            ready(page)
        clean = gossamer.analyze(model, PROMPT, TARGET, saes)
        assert number(page, "value") == pytest.approx(clean.value, 1e-4)
        assert listed(page) == by_direct(clean.rows)
        assert page.locator("#scroll tr.outside").count() == sum(not r.in_cut for r in clean.rows)
        shown = [float(text) for text in column(page, 2)]
        assert shown == pytest.approx([row.direct for row in clean.rows], abs=1e-3)
        for each in clean.sums:
            sentence = page.locator(f".sum[data-column={each.column}]")
            assert sentence.text_content().startswith(f"{each.column}: the nodes of the cut at")
            assert ("whole" in sentence.get_attribute("class")) == each.adds_up


def test_the_loop_and_the_way_back(browser, address, model, saes) -> None:
    """Ablate, change, trace, sentence and table, remove; going back restores each."""
    with asked(browser, address, **QUESTION) as page:
        clean = gossamer.analyze(model, PROMPT, TARGET, saes)
        early = (row for row in clean.rows if row.node.startswith("blocks.1.hook_resid_pre/"))
        latent = next(row for row in early if row.kind == "latent")
        line(page, latent.node).get_by_role("button", name="ablate").click()
        ready(page)
        edit = gossamer.Ablate(latent.node)
        edited = gossamer.analyze(model, PROMPT, TARGET, saes, edit)
        expected = (edited.value, clean.value, edited.change, edited.estimate)
        for name, value in zip(
            ("with edits", "clean", "change", "estimate"), expected, strict=True
        ):
            assert number(page, name) == pytest.approx(value, 1e-3)
        rows = gossamer.compare(edited).rows
        assert sorted(listed(page)) == sorted(row.node for row in rows)
        assert line(page, latent.node).get_by_role("button", name="restore").is_visible()
        chip = page.locator(f".edits [data-id='{latent.node}']")
        assert chip.is_visible()
        with_edit = page.url

        late = (row for row in rows if row.node.startswith("blocks.3.hook_resid_pre/"))
        actives = (row for row in late if row.left["activation"])
        through = next(row for row in actives if row.right["activation"])
        line(page, through.node).get_by_role("button", name="trace").click()
        ready(page)
        traced = gossamer.upstream(model, PROMPT, through.node, saes=saes, edits=edit)
        assert number(page, "with edits") == pytest.approx(traced.value, 1e-3)
        sentence = page.locator(".trace").text_content()
        assert sentence.startswith("What caused L") and "before its activation" in sentence
        assert sorted(listed(page)) == sorted(r.node for r in gossamer.compare(traced).rows)

        page.get_by_role("button", name="remove the trace").click()
        ready(page)
        assert number(page, "with edits") == pytest.approx(edited.value, 1e-4)
        chip.get_by_role("button", name="restore").click()
        ready(page)
        assert number(page, "value") == pytest.approx(clean.value, 1e-4)
        for has_edit, has_trace in ((True, False), (True, True), (True, False), (False, False)):
            page.go_back()
            ready(page)
            assert (chip.count(), page.locator(".trace").count()) == (has_edit, has_trace)
            assert (page.url == with_edit) == (has_edit and not has_trace)
        assert listed(page) == by_direct(clean.rows)


def test_heads_by_key_and_their_ways(browser, address, model, saes) -> None:
    """A head's keys, then what made it look: through the query, the key, both, the value."""
    with asked(browser, address, **QUESTION) as page:
        head = page.locator("#scroll tr[data-kind=head]").first
        node = head.get_attribute("data-id")
        head.get_by_role("button", name="by key").click()
        ready(page)
        pairs = listed(page)
        assert pairs and all(pair.startswith(f"{node}<-") for pair in pairs)
        for way in ("q", "k", "qk", "v"):
            line(page, pairs[0]).locator(f"[data-way={way}]").click()
            ready(page)
            target = {"target": TARGET} if way == "v" else {}
            expected = gossamer.upstream(model, PROMPT, pairs[0], way, saes=saes, **target)
            assert number(page, "value") == pytest.approx(expected.value, 1e-3)
            assert "from " in page.locator(".trace").text_content()
            page.go_back()
            ready(page)
        assert listed(page) == pairs


def test_two_prompts_stand_side_by_side(browser, address, model, saes) -> None:
    with asked(browser, address, **QUESTION) as page:
        page.get_by_role("button", name="Compare with a second").click()
        page.get_by_label("Prompt, right").fill(OTHER)
        page.get_by_role("button", name="Analyze").click()
        ready(page)
        left, right = (gossamer.analyze(model, text, TARGET, saes) for text in (PROMPT, OTHER))
        both = gossamer.compare(left, right)
        assert number(page, "left") == pytest.approx(left.value, 1e-4)
        assert number(page, "right") == pytest.approx(right.value, 1e-4)
        assert number(page, "left less right") == pytest.approx(both.difference, 1e-3)
        assert sorted(listed(page)) == sorted(row.node for row in both.rows)
        heads = page.locator("#scroll thead tr").nth(1).get_by_role("button").all_text_contents()
        assert heads == 4 * ["left", "diff", "right"]
        shown = dict(zip(listed(page), column(page, 7), strict=True))
        for row in both.rows[:20]:
            assert float(shown[row.node]) == pytest.approx(row.difference["direct"], abs=2e-3)
        assert page.locator("[id=second]").input_value() == OTHER
        page.get_by_label("positions from the").select_option("end")
        ready(page)
        assert "align=end" in page.url
        page.get_by_role("button", name="Remove the second").click()
        ready(page)
        assert number(page, "value") == pytest.approx(left.value, 1e-4)


def test_a_link_asks_the_same_question(browser, address) -> None:
    state = {
        **QUESTION,
        "at": 9,
        "ablate": ["blocks.1.attn.hook_z/2@9", "hook_embed/264@4"],
        "hold": "norms,attention",
        "cut": "hook_embed",
        "kinds": "embedding,head",
        "top": 7,
        "sort": "-total.1",
        "find": "head",
    }
    with asked(browser, address, **state) as page:
        assert page.get_by_label("attention").is_checked()
        assert page.get_by_label("where the model is cut").input_value() == "hook_embed"
        assert page.locator(".edits .chip").count() == 2
        assert page.locator(".token[aria-pressed=true]").get_attribute("data-position") == "9"
        assert page.locator("th[aria-sort=ascending]").text_content() == "change"
        values = [float(text.replace("+", "")) for text in column(page, 10)]
        assert values == sorted(values) and values
        kinds = page.locator("#scroll tbody tr").evaluate_all("r => r.map(e => e.dataset.kind)")
        assert set(kinds) == {"head"}
        again = page.evaluate("""async () => {
          const { readState, writeState } = await import("./static/state.js");
          const once = writeState(readState(location.search));
          return [once, writeState(readState(`?${once}`)), location.search.slice(1)];
        }""")
        assert again[0] == again[1]
        before, shown = number(page, "with edits"), listed(page)
        page.reload()
        ready(page)
        assert (number(page, "with edits"), listed(page)) == (before, shown)


@pytest.mark.parametrize(
    ("state", "field", "word"),
    [
        ({"targets": "several tokens here"}, "target", "token"),
        ({"targets": ".", "less": "several tokens here"}, "target", "token"),
        ({"top": 5000}, "top", "2000"),
        ({"cut": "blocks.1.hook_resid_mid"}, "cut", "cut"),
        ({"ablate": "blocks.1.attn.hook_z/99@4"}, "edits", "99"),
        ({"trace": "blocks.1.hook_resid_pre/0@3"}, "trace", "active"),
        ({"prompt": "x " * 600}, "prompt", "512"),
        ({"second": "x " * 600}, "second", "512"),
    ],
)
def test_an_error_stands_at_its_field(browser, address, state, field, word) -> None:
    with asked(browser, address, console=False, **{"prompt": PROMPT, **state}) as page:
        found = page.locator(f"[data-field={field}] .error, #trouble:not([hidden])").first
        found.wait_for()
        assert word in found.text_content()
        assert found.get_attribute("role") == "alert"
        assert page.locator("#unanswered").is_visible()
        for invalid in page.locator("[aria-invalid=true]").all():
            assert invalid.get_attribute("aria-describedby") == found.get_attribute("id")
        page.goto(f"{address}?{urlencode({'prompt': PROMPT})}")
        ready(page)
        assert not any(page.locator(".error").all_text_contents())
        assert page.locator("#scroll tbody tr").count() > 20


def test_an_error_keeps_the_answer_before(browser, address) -> None:
    with asked(browser, address, console=False, **QUESTION) as page:
        assert page.locator("#unanswered").is_hidden()
        page.get_by_label("add a target").fill("two words")
        page.get_by_label("add a target").press("Enter")
        page.locator("[data-field=target] .error").wait_for()
        assert page.locator("#answer.stale #scroll tbody tr").count() > 20
        page.get_by_role("button", name="remove two words").click()
        ready(page)
        assert page.locator("[data-field=target] .error").count() == 0
        assert page.locator("#answer.stale").count() == 0


def test_a_label_survives_a_reload(browser, address) -> None:
    hostile = "<img src=x onerror='window.broken = 1'> \u202e?"
    with asked(browser, address, **QUESTION) as page:
        cell = page.locator("#scroll tr[data-kind=latent] .label").first
        node = page.locator("#scroll tr[data-kind=latent]").first.get_attribute("data-id")
        own = cell.text_content()
        cell.click()
        page.locator("#panel .lens").wait_for()
        page.get_by_label("label").fill(hostile)
        page.get_by_role("button", name="Save").click()
        page.get_by_text("saved").wait_for()
        label = line(page, node).locator(".label bdi")
        assert label.text_content() == show_token(hostile)
        page.reload()
        ready(page)
        assert label.text_content() == show_token(hostile)
        assert trees(page) == {"broken": 0, "images": 0}
        page.get_by_label("label").fill("")
        page.get_by_role("button", name="Save").click()
        page.get_by_text("saved").wait_for()
        assert line(page, node).locator(".label").text_content() == own


def test_the_panel_says_what_a_latent_speaks_for(browser, address, model, saes) -> None:
    with asked(browser, address, **QUESTION) as page:
        line_ = page.locator("#scroll tr[data-kind=latent]").first
        node = line_.get_attribute("data-id")
        line_.locator(".label").click()
        site, _, unit = node.rpartition("@")[0].rpartition("/")
        seen = gossamer.lens(model, site, int(unit), saes)
        page.locator("#panel .lens").wait_for()
        shown = page.locator("#panel .lens section").first.locator("bdi").all_text_contents()
        assert shown == [show_token(each.token) for each in seen.up]
        page.keyboard.press("Escape")
        assert page.locator("#panel").is_hidden()


def test_targets_are_pinned_whatever_their_rank(browser, address, model, saes) -> None:
    tokens = (".", " lambda")
    with asked(
        browser, address, prompt=PROMPT, targets=tokens, ablate="blocks.1.attn.hook_z/2@9"
    ) as page:
        page.wait_for_function(
            "() => ![...document.querySelectorAll('#next td')].some(c => c.textContent == '–')"
        )
        rows = page.locator("#next tbody tr")
        assert [rows.nth(i).locator("bdi").text_content() for i in (0, 1)] == [".", "␣lambda"]
        edits = gossamer.Ablate("blocks.1.attn.hook_z/2@9")
        for i, token in enumerate(tokens):
            expected = gossamer.analyze(model, PROMPT, token, saes, edits, kinds="embedding")
            cells = rows.nth(i).locator("td").all_text_contents()
            for cell, value in zip(cells, (expected.value, expected.clean_value), strict=False):
                assert float(cell.replace("−", "-")) == pytest.approx(value, abs=6e-3)
        page.locator("#next tbody tr:not(.target)").first.get_by_role("button").last.click()
        ready(page)
        assert page.locator("[data-field=less] .chip").count() == 1
        assert page.locator("#next tr.distractor").count() == 1


def test_swap_position_and_options_ask_again(browser, address, model, saes) -> None:
    with asked(browser, address, **QUESTION) as page:
        value = number(page, "value")
        page.get_by_role("button", name="swap").click()
        ready(page)
        assert number(page, "value") == pytest.approx(-value, 1e-4)
        page.locator(".token[data-position='9']").click()
        ready(page)
        there = gossamer.analyze(
            model, PROMPT, gossamer.LogitDifference("\n", ".", position=9), saes
        )
        assert number(page, "value") == pytest.approx(there.value, 1e-4)
        page.get_by_label("what of the targets").select_option("log_probability")
        page.get_by_label("norms").uncheck()
        page.get_by_label("so many of the largest").fill("5")
        page.get_by_label("so many of the largest").press("Enter")
        page.get_by_label("kinds of node").click()
        page.get_by_label("latent", exact=True).check()
        ready(page)
        target = gossamer.LogProbability("\n", position=9)
        there = gossamer.analyze(model, PROMPT, target, saes, hold=(), top=5, kinds="latent")
        assert number(page, "value") == pytest.approx(there.value, 1e-4)
        assert sorted(listed(page)) == sorted(row.node for row in there.rows)


def test_find_and_sort_look_at_the_same_answer(browser, address) -> None:
    with asked(browser, address, **QUESTION) as page:
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        everything = listed(page)
        page.get_by_label("find").fill("resid_pre @10")
        some = listed(page)
        assert 0 < len(some) < len(everything)
        assert all("resid_pre" in node and node.endswith("@10") for node in some)
        page.keyboard.press("Escape")
        assert listed(page) == everything
        heading = page.get_by_role("columnheader", name="Total")
        orders = []
        for sort in ("descending", "descending", "ascending"):
            heading.get_by_role("button").click()
            assert heading.get_attribute("aria-sort") == sort
            orders.append([float(text) for text in column(page, 3)])
        sizes, falling, rising = orders
        assert [abs(v) for v in sizes] == sorted((abs(v) for v in sizes), reverse=True)
        assert falling == sorted(falling, reverse=True) and rising == sorted(rising)
        page.get_by_label("in the cut only").check()
        assert page.locator("#scroll tr.outside").count() == 0
        assert listed(page)
        assert not requests


def test_keys(browser, address) -> None:
    with asked(browser, address, **QUESTION) as page:
        here = "document.activeElement.closest('tr')?.dataset.id"
        rows = listed(page)
        page.locator("#scroll tbody tr").first.focus()
        for key, row in (
            ("ArrowDown", 1),
            ("ArrowDown", 2),
            ("ArrowUp", 1),
            ("End", -1),
            ("Home", 0),
        ):
            page.keyboard.press(key)
            assert page.evaluate(here) == rows[row]
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.tagName") == "BUTTON"
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("document.activeElement.tagName") == "TR"
        page.keyboard.press("?")
        assert page.get_by_role("dialog", name="keys").is_visible()
        page.keyboard.press("Escape")
        assert page.get_by_role("dialog", name="keys").is_hidden()
        page.keyboard.press("f")
        assert page.evaluate("document.activeElement.id") == "find"
        page.keyboard.type("fa?")
        assert page.locator("#find").input_value() == "fa?", "letters typed are no keys"
        page.keyboard.press("Escape")
        row = page.locator("#scroll tr[data-kind=latent]").first
        node = row.get_attribute("data-id")
        row.focus()
        page.keyboard.press("Enter")
        page.locator("#panel .lens").wait_for()
        page.keyboard.press("Escape")
        assert page.locator("#panel").is_hidden()
        assert page.evaluate(here) == node, "focus returns to the row"
        page.keyboard.press("a")
        ready(page)
        assert page.locator(f".edits [data-id='{node}']").is_visible()
        assert page.evaluate(here) == node
        page.keyboard.press("a")
        ready(page)
        assert page.locator("#changes").is_hidden()
        page.keyboard.press("t")
        ready(page)
        assert page.locator(f".trace[data-id='{node}']").is_visible()


def test_generation_beside_the_unedited(browser, address, model, saes) -> None:
    node = "blocks.2.hook_resid_pre/1375@10"
    with asked(browser, address, **QUESTION, ablate=node) as page:
        page.get_by_label("tokens", exact=True).last.fill("6")
        page.get_by_role("button", name="Go on with the prompt").click()
        page.wait_for_selector("#generation[aria-busy=false] .written >> nth=1")
        expected = gossamer.generate(model, PROMPT, saes, gossamer.Ablate(node), 6)
        assert isinstance(expected, gossamer.Generation) and expected.unedited is not None
        for i, one in enumerate((expected, expected.unedited)):
            shown = page.locator(".written").nth(i).locator("bdi").all_text_contents()
            assert shown == [show_token(token) for token in one.tokens]
        parted = (
            page.locator(".written")
            .first.locator("bdi")
            .evaluate_all("all => all.findIndex(b => b.classList.contains('parted'))")
        )
        assert parted == (-1 if expected.differs_at is None else expected.differs_at)


def test_warnings_of_spaces(browser, address) -> None:
    with asked(
        browser, address, prompt="def add(self, other):\n    return", targets="self"
    ) as page:
        page.get_by_text("has no space before it").wait_for()
        page.get_by_role("button", name="use ␣self").click()
        ready(page)
        assert "targets=+self" in page.url
        assert page.get_by_text("has no space before it").count() == 0
        page.get_by_label("Prompt", exact=True).fill("return ")
        page.get_by_text("ends with a space").wait_for()


def test_tokens_follow_what_is_typed(browser, address, model) -> None:
    with asked(browser, address) as page:
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        page.locator(".tokens .token >> nth=5").wait_for()
        shown = page.locator(".tokens .token bdi").all_text_contents()
        assert shown == [show_token(t) for t in model.token_strings(model.tokenize(PROMPT))]


def test_hostile_texts_are_only_text(browser, address) -> None:
    text = " ".join(HOSTILE)
    with asked(browser, address, prompt=text, second=text, targets="~14 <b>x</b>") as page:
        page.locator(".tokens .token >> nth=9").wait_for()
        assert trees(page) == {"broken": 0, "images": 0}
        assert page.locator("main script, main iframe, main b").count() == 0
        assert page.locator("#prompt").input_value() == text
        assert page.locator(".chip bdi").text_content() == "<b>x</b>"
        page.locator("#scroll tbody tr").first.press("Enter")
        assert page.locator("#panel").is_visible()
        assert trees(page) == {"broken": 0, "images": 0}


def test_an_old_answer_is_dropped(browser, address) -> None:
    """The first question's answer comes after the second's, and changes nothing."""
    with asked(browser, address, **QUESTION) as page:
        # The first request waits for the second to be answered, and cannot be aborted.
        page.evaluate("""() => {
          const fetched = window.fetch;
          let waiting = null;
          window.fetch = (path, options) => {
            const plain = { ...options, signal: undefined };
            if (path !== "analyze") return fetched(path, plain);
            const answer = fetched(path, plain);
            if (waiting) return answer.finally(() => setTimeout(waiting, 50));
            return new Promise(resolve => (waiting = resolve)).then(() => answer)
              .finally(() => (window.answered = true));
          };
        }""")
        page.get_by_role("button", name="swap").click()
        assert page.locator("body").get_attribute("data-ready") == "false"
        assert "computing" in page.locator("#connection").text_content()
        page.locator(".token[data-position='8']").click()
        ready(page)
        value = number(page, "value")
        page.wait_for_function("window.answered")
        page.wait_for_timeout(100)
        assert number(page, "value") == value
        assert "at position 8" in page.locator("#value").text_content()


def test_a_lost_server_is_said_and_found_again(browser, address) -> None:
    with asked(browser, address, console=False, **QUESTION) as page:
        page.route("**/analyze", lambda route: route.abort())
        page.get_by_role("button", name="swap").click()
        page.locator("#trouble").wait_for()
        assert "does not answer" in page.locator("#trouble").text_content()
        assert page.locator("#connection").get_attribute("data-state") == "lost"
        assert page.locator("#scroll tbody tr").count() > 20
        page.unroute("**/analyze")
        page.get_by_role("button", name="Analyze").click()
        ready(page)
        page.locator("#trouble").wait_for(state="hidden")
        assert page.locator("#connection").get_attribute("data-state") == "live"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 900, 620])
def test_no_page_is_wider_than_its_window(browser, address, scheme, width) -> None:
    states = [{}, QUESTION, {**QUESTION, "second": OTHER, "open": "blocks.1.attn.hook_z/2@10"}]
    for state in states:
        with asked(browser, address, scheme=scheme, size=(width, 800), **state) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 30)"}[scheme]


def test_signs_differ_in_more_than_colour(browser, address) -> None:
    with asked(browser, address, **QUESTION) as page:
        styles = page.evaluate("""() => ["below", "above"].map(name => getComputedStyle(
          document.querySelector(`#scroll td.${name}`), "::after").borderBottomStyle)""")
        assert styles == ["dashed", "solid"]
        for cell in page.locator("#scroll td.below span").all()[:5]:
            assert cell.text_content().startswith("−")


def test_everything_has_a_name_and_a_role(browser, address) -> None:
    """What a checker of accessibility would look for, by hand."""
    with asked(browser, address, **QUESTION, ablate="blocks.1.attn.hook_z/2@10") as page:
        controls = "button, input, select, textarea, a"
        nameless = page.evaluate(
            """which => [...document.querySelectorAll(which)].filter(e => !e.textContent.trim()
              && !e.getAttribute("aria-label") && !e.labels?.length).map(e => e.outerHTML)""",
            controls,
        )
        assert nameless == []
        for role in ("banner", "main", "table"):
            assert page.get_by_role(role).first.is_visible(), role
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.lang") == "en"
        scopes = page.evaluate(
            "[...document.querySelectorAll('th')].map(t => t.textContent && t.scope)"
        )
        assert set(scopes) <= {"col", "row", "colgroup", ""}
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        assert page.evaluate(
            "[...document.querySelectorAll('[tabindex]')].every(e => e.tabIndex < 1)"
        )
        stops = page.evaluate(
            "[...document.querySelectorAll('#scroll tr')].filter(e => e.tabIndex === 0).length"
        )
        assert stops == 1, "the table is one stop of the tab key"
        assert page.get_by_role("region", name="node table").is_visible()
        assert re.search("less", page.locator("#heard").text_content())


def test_behind_a_prefix(browser, app) -> None:
    """Every address is relative, so a proxy may put the page below a path."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with running(Starlette(routes=[Mount("/some/prefix", app)]), lifespan="off") as address:
        with asked(browser, f"{address}some/prefix/", **QUESTION) as page:
            assert page.locator("#scroll tbody tr").count() > 20
