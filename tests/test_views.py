"""Views without a browser: the joiner, the file, the blob, the state, and what each refuses.

The file is read back with an HTML parser and safetensors; what the pages do is tested in
`test_views_browser.py`.
"""

import base64
import gzip
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from safetensors.numpy import load

from gossamer.errors import FormatError, GossamerError, ShapeError, SiteError
from gossamer.views import MatrixView, NodeColumn
from gossamer.views.joiner import WEB, JoinError, join
from gossamer.views.text import show_token
from tests.browser import needs
from tests.hostile import HOSTILE, SITES, hostile_view, nodes

# The joiner

MODULES = {
    "page.js": ('import { draw, size as first } from "./draw.js";\nexport default draw(first);'),
    "draw.js": (
        'import { a } from "./base.js";\nimport { b } from "./other.js";\n'
        "export function draw(x) { return [a, b, x]; }\nexport const size = 1;"
    ),
    "base.js": "export const a = 1;",
    "other.js": 'import { a } from "./base.js";\nexport class b {}',
}
"""A diamond: the entry needs `draw`, which needs `base` twice."""


def joined(**changed: str) -> str:
    """The modules joined, some of them changed."""
    modules = MODULES | {f"{name}.js": text for name, text in changed.items()}
    return join("page.js", modules.__getitem__)


def test_modules_are_joined_once_each_and_before_they_are_used() -> None:
    text = joined()
    found = re.findall(r"^const module_(\w+) =", text, re.MULTILINE)
    assert found == ["base", "other", "draw"]
    assert not re.search(r"^import\b", text, re.MULTILINE)
    assert text.count("export") == 1
    assert "const { draw, size: first } = module_draw;" in text


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("import x from './base.js';", "does not understand"),
        ('import * as x from "./base.js";', "does not understand"),
        ('import { a } from "./base.js"', "does not understand"),
        ('  import { a } from "./base.js";', "does not understand"),
        ('import { a } from "https://example.org/base.js";', "does not understand"),
        ('import { a } from "../base.js";', "does not understand"),
        ('const x = await import("./base.js");', "does not understand"),
        ("const x = import.meta.url;", "does not understand"),
        ("export { a };", "does not understand"),
        ("export let x = 1;", "does not understand"),
        ('export * from "./base.js";', "does not understand"),
        ("export const { x } = y;", "does not understand"),
        ('const x = "</script>";', "does not understand"),
        ("export default 1;", "only the entry"),
        ('import { nothing } from "./base.js";', "does not export 'nothing'"),
        ('import { draw } from "./draw.js";', "A cycle: page.js → draw.js → other.js → draw.js"),
    ],
)
def test_the_joiner_refuses_what_it_does_not_understand(line: str, why: str) -> None:
    with pytest.raises(JoinError, match=re.escape(why)):
        joined(other=f"{line}\nexport class b {{}}")


@pytest.mark.parametrize("entry", ["matrix_page.js", "matrix_widget.js"])
def test_the_views_join(entry: str) -> None:
    text = join(entry)
    named = re.findall(r"^const module_(\w+) =", text, re.MULTILINE)
    reached = {entry, *(f"{name}.js" for name in named)}
    assert len(named) == len(set(named))
    assert text.count("export default") == (entry == "matrix_widget.js")
    own = {file.name for file in WEB.glob("*.js") if not file.name.startswith("graph")}
    assert own - reached <= {
        *(
            "matrix_page.js",
            "matrix_widget.js",
            "host.js",
            "curves.js",
            "cards.js",
            "charts.js",
            "latents.js",
            "jacobian.js",
            "edge_table.js",
        ),
    }


def test_web_sources_have_no_way_to_read_text_as_markup_or_to_fetch() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        r"|\bfetch\(|XMLHttpRequest|WebSocket|https?://"
    )
    for file in WEB.glob("*.*"):
        assert not forbidden.search(file.read_text()), file.name


# The file


class Page(HTMLParser):
    """What the elements of a page hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.policy = ""
        self.inside = ""
        self.title = ""
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.inside = tag
        found = dict(attrs)
        if tag == "script":
            self.scripts.append((found, ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        if self.inside == "title":
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def exported(view: MatrixView, path: Path) -> Page:
    return Page(view.to_html(path / "page.html").read_text(encoding="utf-8"))


def test_the_file_allows_its_one_script_and_no_request(tmp_path: Path) -> None:
    page = exported(hostile_view(), tmp_path)
    kinds = [found.get("type") for found, _ in page.scripts]
    assert kinds == ["application/json", "application/octet-stream", "module"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[2][1].encode()).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert not any("src" in found or "href" in found for found, _ in page.scripts)


def test_hostile_texts_stay_inside_the_data(tmp_path: Path) -> None:
    view = hostile_view()
    page = exported(view, tmp_path)
    assert page.title == view.title
    assert "img" not in page.tags and "iframe" not in page.tags
    assert json.loads(page.scripts[0][1])["selected"] == []


def test_the_data_is_a_safetensors_file_of_everything(tmp_path: Path) -> None:
    view = hostile_view()
    blob = gzip.decompress(base64.b64decode(exported(view, tmp_path).scripts[1][1]))
    arrays = load(blob)
    np.testing.assert_array_equal(arrays["values"], view.values.astype(np.float32))
    np.testing.assert_array_equal(arrays["rows.positions"], view.rows.positions)
    np.testing.assert_array_equal(arrays["columns.indices"], view.columns.indices)
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    about = json.loads(header["__metadata__"]["json"])
    assert about["prompt_tokens"] == list(HOSTILE)
    assert about["rows"]["ids"] == list(view.rows.ids)
    assert about["columns"]["labels"] == list(view.columns.labels)


def test_gradients_are_stored_only_where_values_do_not_give_them() -> None:
    view = hostile_view()
    assert "gradients" not in load(view.blob())
    given = hostile_view(gradients=view.values + 1)
    np.testing.assert_array_equal(load(given.blob())["gradients"], (view.values + 1).astype("f4"))
    # A source at 0 has attribution 0 and yet a gradient, which no division gives back.
    silent = NodeColumn(
        name="s", ids=["s/0@0"], positions=np.zeros(1, int), tokens=["t"],
        indices=np.zeros(1, int), values=np.zeros(1), labels=[""],
    )  # fmt: skip
    one = MatrixView(
        values=np.zeros((1, 1)), gradients=np.ones((1, 1)), rows=silent, columns=silent
    )
    assert load(one.blob())["gradients"] == 1


def test_the_same_view_gives_the_same_file(tmp_path: Path, monkeypatch) -> None:
    first = hostile_view().to_html(tmp_path / "a.html").read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert hostile_view().to_html(str(tmp_path / "b.html")).read_bytes() == first


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")
    for bad in (tmp_path, tmp_path / "missing" / "page.html"):
        with pytest.raises(FormatError, match="cannot be written"):
            hostile_view().to_html(bad)

    def fail(self: Path, target: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        hostile_view().to_html(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_static_table_has_the_strongest_entries_escaped() -> None:
    view = hostile_view()
    text = view.fallback_html()
    assert "<script" not in text and "<img" not in text
    sizes = np.abs(view.values)
    row, column = np.unravel_index(sizes.argmax(), sizes.shape)
    assert view.strongest(1) == [(row, column)]
    assert text.count("<tr>") == 21
    first = text.split("<tr>")[2]
    assert f"{view.values[row, column]:+.4g}" in first
    assert str(view.rows.indices[row]) in first and str(view.columns.indices[column]) in first
    flat = [sizes[rc] for rc in view.strongest(50)]
    assert flat == sorted(sizes.ravel(), reverse=True)[:50]
    assert len(view.strongest(10**6)) == np.count_nonzero(sizes)


def test_tokens_are_shown_with_nothing_invisible() -> None:
    expected = {
        " if": "␣if",
        "a b ": "a b␣",
        "   ": "␣␣␣",
        "": "∅",
        "\n\t": "⏎⇥",
        " \n ": "␣⏎␣",
        "\u202eab": "⟨202E⟩ab",
        "a\u200b\xa0": "a⟨200B⟩⟨A0⟩",
        "\x00": "⟨0⟩",
        "é漢🙂": "é漢🙂",
    }
    assert {token: show_token(token) for token in expected} == expected


# What is refused


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"values": np.zeros((3, 4))}, ShapeError, r"must be \(16, 24\)"),
        # The shape checks of the test run may speak first.
        ({"gradients": np.zeros((24, 16))}, (ShapeError, TypeCheckError), "gradients"),
        ({"values": np.full((16, 24), np.nan)}, GossamerError, "not all finite"),
        ({"gradients": np.full((16, 24), np.inf)}, GossamerError, "not all finite"),
        ({"values": np.full((16, 24), 1e39)}, GossamerError, "not all finite float32"),
        ({"threshold": -1.0}, GossamerError, "finite number from 0 up"),
    ],
)
def test_a_view_refuses_what_it_cannot_draw(changes: dict, error, says: str) -> None:
    with pytest.raises(error, match=says):
        hostile_view(**{"gradients": None, **changes}).state()


def test_a_matrix_too_large_to_look_at_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("gossamer.views.matrix.MAX_ENTRIES", 100)
    with pytest.raises(GossamerError, match="16 × 24 entries are too many"):
        hostile_view()


def test_a_column_refuses_ragged_and_repeated_nodes() -> None:
    good = nodes(SITES[0], 1)
    parts = {name: getattr(good, name) for name in NodeColumn.__dataclass_fields__}
    with pytest.raises(ShapeError, match="differ in length"):
        NodeColumn(**{**parts, "labels": ["a"]})
    with pytest.raises(GossamerError, match="twice"):
        NodeColumn(**{**parts, "ids": [good.ids[0]] * len(good)})
    with pytest.raises(GossamerError, match="not all finite"):
        NodeColumn(**{**parts, "values": good.values * np.nan})


# The state


def test_the_state_takes_what_the_matrix_has_and_nothing_else() -> None:
    view = hostile_view(threshold=0.25, cross_only=True)
    state = view.state()
    assert (state.threshold, state.cross_only, state.selected) == (0.25, True, [])
    seen = []
    state.observe(lambda change: seen.append(change["new"]), "selected")
    pair = [view.rows.ids[2], view.columns.ids[5]]
    state.selected = pair
    assert seen == [pair]
    for wrong in ([pair[0]], [*pair, ""]):
        with pytest.raises(GossamerError, match="row id, column id"):
            state.selected = wrong
    with pytest.raises(SiteError, match="No row of this matrix"):
        state.selected = pair[::-1]
    with pytest.raises(SiteError, match="No column"):
        state.targets_by = pair[0]
    with pytest.raises(SiteError, match="No row"):
        state.sources_by = pair[1]
    for wrong in (float("nan"), float("inf"), -0.1):
        with pytest.raises(GossamerError, match="finite number"):
            state.threshold = wrong
    assert state.selected == pair


def test_the_state_needs_no_notebook() -> None:
    import subprocess

    code = (
        "import sys, gossamer.views.state, gossamer.views.matrix, gossamer.views.page\n"
        "print([m for m in ('anywidget', 'ipywidgets', 'IPython') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "gossamer.views.widget", raising=False)
    with pytest.raises(GossamerError, match=re.escape("pip install 'gossamer[notebook]'")):
        hostile_view().widget()


def test_the_widget_has_the_state_and_the_data() -> None:
    needs("anywidget")
    view = hostile_view(threshold=0.5)
    widget = view.widget()
    assert widget.threshold == 0.5
    synced = set(widget.traits(sync=True))
    assert set(view.state().traits(sync=True)) | {"data", "_esm"} <= synced
    assert not {"row_ids", "fallback"} & synced
    np.testing.assert_array_equal(load(widget.data)["values"], view.values.astype(np.float32))
    assert widget.get_state("_esm")["_esm"] == join("matrix_widget.js")
    bundle = widget._repr_mimebundle_()[0]
    assert bundle["text/html"] == view.fallback_html()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    with pytest.raises(SiteError):
        widget.selected = ["a", "b"]
