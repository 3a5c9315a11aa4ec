"""The README and the guide are true: their Python runs as it stands, in order, offline."""

import re
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "guide.md")


def python_blocks(page: Path) -> list[str]:
    """The fenced Python of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def printed_by(page: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a page's Python prints, all of it in one namespace."""
    namespace: dict[str, object] = {}
    for number, block in enumerate(python_blocks(page), start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    return capsys.readouterr().out


def test_the_readmes_python_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = printed_by(PAGES[0], capsys)
    assert printed.count("when ablated") == 10
    assert "edges hold in the true model" in printed and (tmp_path / "graph.html").exists()
    assert "add up to" in printed and "expected" in printed


def test_the_guides_python_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = printed_by(PAGES[1], capsys)
    change = re.search(r"^tensor\(([0-9.]+)", printed, flags=re.MULTILINE)
    assert change is not None and float(change[1]) > 0
    assert "unedited:" in printed and "Density" in printed
    assert "carried by attention" in printed and "QKPair" in printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_there_is(page: Path) -> None:
    """Names that its Python takes from the package are public, and pages that it names exist."""
    text = page.read_text()
    names = set(re.findall(r"\bgossamer\.([A-Za-z_]+)", "\n".join(python_blocks(page))))
    assert names and names <= set(gossamer.__all__)
    for other in re.findall(r"`((?:docs/)?\w+\.md)`", text):
        assert (ROOT / other).exists(), other


def test_the_readme_is_short_and_its_tree_is_there() -> None:
    text = PAGES[0].read_text()
    tree = re.findall(r"^[├└]── (\S+)", text, flags=re.MULTILINE)
    assert len(tree) > 10
    assert [name for name in tree if not (ROOT / "gossamer" / name).exists()] == []
    assert text.count("\n") <= 160
