"""The README is true: its Python runs as it stands, in order, in one namespace, offline."""

import re
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).parent.parent


def python_blocks(page: Path) -> list[str]:
    """The fenced Python of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for number, block in enumerate(python_blocks(ROOT / "README.md"), start=1):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.count("when ablated") == 10
    change = re.search(r"^tensor\(([0-9.]+)", printed, flags=re.MULTILINE)
    assert change is not None and float(change[1]) > 0


def test_the_readme_names_what_there_is() -> None:
    """Names that its Python takes from the package are public, and files that it lists exist."""
    text = (ROOT / "README.md").read_text()
    names = set(
        re.findall(r"\bgossamer\.([A-Za-z_]+)", "\n".join(python_blocks(ROOT / "README.md")))
    )
    assert names and names <= set(gossamer.__all__)
    tree = re.findall(r"^[├└]── (\S+)", text, flags=re.MULTILINE)
    assert len(tree) > 10
    assert [name for name in tree if not (ROOT / "gossamer" / name).exists()] == []
    for page in re.findall(r"`((?:docs/)?\w+\.md)`", text):
        assert (ROOT / page).exists(), page
