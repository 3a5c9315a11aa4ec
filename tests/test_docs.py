"""The README is true: its Python runs as it stands, in order, in one namespace, offline."""

import re
from pathlib import Path

import pytest

import gossamer

ROOT = Path(__file__).parent.parent
ASSETS = Path(gossamer.__file__).parent / "assets" / "pico-python"


def python_blocks(page: Path) -> list[str]:
    """The fenced Python of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the bundled model is not there yet")
def test_the_readmes_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for number, block in enumerate(python_blocks(ROOT / "README.md"), start=1):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.count("when ablated") == 10
    assert float(printed.splitlines()[-1].removeprefix("tensor(").split(",")[0].rstrip(")")) > 0


def test_the_readme_names_what_there_is() -> None:
    """Every name that the README takes from the package is public, and every file it lists exists."""
    text = (ROOT / "README.md").read_text()
    names = set(
        re.findall(r"\bgossamer\.([A-Za-z_]+)", "\n".join(python_blocks(ROOT / "README.md")))
    )
    assert names and names <= set(gossamer.__all__)
    tree = re.findall(r"^[├└]── (\S+)", text, flags=re.MULTILINE)
    missing = [name for name in tree if not (ROOT / "gossamer" / name).exists()]
    assert len(tree) > 10 and set(missing) <= ({"assets/"} if not ASSETS.is_dir() else set())
    for page in re.findall(r"`((?:docs/)?\w+\.md)`", text):
        assert (ROOT / page).exists(), page
