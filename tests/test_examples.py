"""The notebooks in `examples/` run from top to bottom, offline, and show what they say."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser import needs

EXAMPLES = Path(__file__).parent.parent / "examples"


def executed(path: Path) -> Any:
    """The notebook after a run in a real kernel, its outputs in it."""
    needs("nbclient", "ipykernel", "anywidget", "pandas")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # A kernel is a process of its own; a warning in it is not one of this run.
    return NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": path.parent}}
    ).execute()


def text_of(cell: Any) -> str:
    """What a cell printed, and its result as text."""
    parts = [output.get("text", "") for output in cell.outputs]
    parts += [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(parts)


@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::ResourceWarning")
def test_latent_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    cells = [c for c in executed(EXAMPLES / "latent_edges.ipynb").cells if c.cell_type == "code"]
    texts = [text_of(cell) for cell in cells]
    assert "targets × sources" in texts[1] and texts[1].count("hook_embed/") == 5
    assert "both active" in texts[2] and "L1(" in texts[2]
    assert "attribution" in texts[3] and len(texts[3].splitlines()) > 10
    assert "tokens:" in texts[4]
    view = [kind for output in cells[5].outputs for kind in output.get("data", {})]
    assert "application/vnd.jupyter.widget-view+json" in view and "text/html" in view
    assert texts[6].startswith("next token:") and texts[6].count("hook_resid_pre/") == 5
    assert "less" in texts[7] and texts[8].count("predicted") == 10


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::ResourceWarning")
def test_train_sae(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    cells = [c for c in executed(EXAMPLES / "train_sae.ipynb").cells if c.cell_type == "code"]
    texts = [text_of(cell) for cell in cells]
    assert "rows, " in texts[1]
    losses = [float(line.split("loss")[1].split()[0]) for line in texts[2].splitlines()]
    assert len(losses) >= 5 and losses[-1] < losses[0] / 2
    assert "iframe" in cells[3].outputs[0]["data"]["text/html"]
    assert texts[4].count("median") == 6
    assert texts[5].count("with the SAE") == 10
    numbers = dict(line.split() for line in texts[6].splitlines())
    assert float(numbers["fvu"]) < 0.4 and float(numbers["ce_recovered_zero"]) > 0.75
    assert len(texts[7].splitlines()) == 3


def test_notebooks_are_kept_without_outputs() -> None:
    notebooks = sorted(EXAMPLES.glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code), path
