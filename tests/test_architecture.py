"""The shape of the repository is as the design says, and every check of it can fail.

Each check of `shape.py` runs on this repository, on a small clean tree (where it must find nothing)
and on that tree with one violation planted (which it must report).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from jaxtyping import TypeCheckError

from gossamer.sites import parse_site
from tests import shape

ROOT = Path(__file__).resolve().parents[1]

CLEAN = {
    "gossamer/__init__.py": '"""Doors."""\nfrom gossamer.sites import Site\n__all__ = ["Site"]\n',
    "gossamer/errors.py": '"""Errors."""\n',
    "gossamer/sites.py": '"""Sites."""\nfrom gossamer.errors import *\nclass Site: ...\n',
    "gossamer/saes/__init__.py": '"""SAEs."""\nfrom gossamer.saes.topk import TopKConfig\n',
    "gossamer/saes/topk.py": (
        '"""TopK."""\nfrom gossamer import sites\nimport gossamer.errors as errors\n'
        'class TopKConfig:\n    k: int\n    """Latents kept."""\n'
    ),
    "gossamer/models/__init__.py": '"""Models."""\n',
    "gossamer/splice.py": (
        '"""Splice."""\nfrom gossamer.saes import TopKConfig\nimport gossamer.models as m\n'
    ),
    "gossamer/assets/model.bin": "weights",
    "gossamer/__main__.py": '"""Entry."""\n',
    "README.md": (
        "# A tree\n```\ngossamer/\n├── errors.py  sites.py   words\n├── saes/     one file each\n"
        "│   └── topk.py\n├── models/\n├── splice.py  runs graph.py\n└── assets/\n```\n"
    ),
    "docs/concepts.md": "`errors`, `sites`, `gossamer.saes`, `models/`, `splice.py`",
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [0.3.0] - 2030-01-01\n",
    "LICENSE": "MIT",
    ".gitignore": "/build/\n",
    "pyproject.toml": (ROOT / "pyproject.toml").read_text().replace("0.1.0", "0.3.0", 1),
}
"""A small tree without a violation; its values are file contents."""

FIELDS = "".join(f'    f{i}: int\n    """Field."""\n' for i in range(13))

Check = Callable[[Path], list[str]]
PLANTED: list[tuple[Check, Mapping[str, str], str]] = [
    # A relative or bare import, and one whose name is computed, would escape the other checks.
    (
        shape.check_import_form,
        {"gossamer/edits.py": "import gossamer\ngossamer.cli"},
        "whole package",
    ),
    (shape.check_import_form, {"gossamer/edits.py": "import gossamer.sites"}, "whole package"),
    (shape.check_import_form, {"gossamer/edits.py": "from . import cli"}, "relative"),
    (shape.check_import_form, {"gossamer/edits.py": "import_module(name)"}, "only the run knows"),
    # Wherever an import stands and however it is written, it points down.
    (shape.check_order, {"gossamer/errors.py": "from gossamer.sites import Site"}, "errors.py:1"),
    (shape.check_order, {"gossamer/errors.py": "from gossamer import sites"}, "errors.py:1"),
    (shape.check_order, {"gossamer/errors.py": "import gossamer.sites as s"}, "errors.py:1"),
    (
        shape.check_order,
        {"gossamer/errors.py": "def f():\n    from gossamer import sites"},
        "errors.py:2",
    ),
    (
        shape.check_order,
        {"gossamer/errors.py": "if TYPE_CHECKING:\n    from gossamer.sites import Site"},
        "errors.py:2",
    ),
    (shape.check_order, {"gossamer/errors.py": "import_module('gossamer.sites')"}, "errors.py:1"),
    (shape.check_order, {"gossamer/saes/topk.py": "from gossamer.splice import run"}, "topk.py:1"),
    (
        shape.check_order,
        {"gossamer/splice.py": "from gossamer import Site"},
        "__init__ does not stand",
    ),
    (
        shape.check_order,
        {"gossamer/splice.py": "from gossamer.__main__ import x"},
        "__main__ does not",
    ),
    (shape.check_order, {"gossamer/models/gpt2.py": "from gossamer.saes import topk"}, "strangers"),
    (shape.check_order, {"gossamer/saes/relu.py": "import gossamer.models as m"}, "strangers"),
    # Two files of one folder, directly and through the folder's `__init__`.
    (
        shape.check_cycles,
        {
            "gossamer/saes/relu.py": "from gossamer.saes.jump import x",
            "gossamer/saes/jump.py": "def f():\n    from gossamer.saes.relu import x",
        },
        "relu.py",
    ),
    (
        shape.check_cycles,
        {"gossamer/saes/topk.py": "from gossamer.saes import TopKConfig"},
        "topk.py",
    ),
    (shape.check_places, {"gossamer/networks.py": '"""Stray."""'}, "gossamer/networks is not"),
    (shape.check_places, {"gossamer/networks/gpt2.py": '"""Stray."""'}, "gossamer/networks is not"),
    (shape.check_names, {"gossamer/saes/utils.py": '"""Things."""'}, "utils"),
    (shape.check_names, {"gossamer/saes/torch_helpers.py": '"""Things."""'}, "helpers"),
    (shape.check_names, {"gossamer/models/common/gpt2.py": '"""Things."""'}, "common"),
    (shape.check_names, {"tests/misc.py": '"""Things."""'}, "misc"),
    (shape.check_files, {"gossamer/splice.py": '"""Long."""\n' + "x = 1\n" * 400}, "401 lines"),
    (shape.check_files, {"recipes/train.py": "x = 1"}, "no docstring"),
    (shape.check_files, {"gossamer/models/__init__.py": ""}, "no docstring"),
    (
        shape.check_import_is_light,
        {"pandas.py": "", "gossamer/errors.py": '"""Errors."""\nimport pandas'},
        "loads pandas",
    ),
    (shape.check_import_is_light, {"gossamer/errors.py": "print('hello')"}, "writes: hello"),
    (
        shape.check_import_is_light,
        {"gossamer/errors.py": "import warnings\nwarnings.warn('beware')"},
        "beware",
    ),
    (shape.check_all, {"gossamer/__init__.py": '"""A package."""'}, "cannot be read"),
    (
        shape.check_all,
        {"gossamer/__init__.py": "b = a = 1\n__all__ = ['b', 'a']"},
        "not sorted",
    ),
    (
        shape.check_all,
        {"gossamer/__init__.py": "if False:\n    from gossamer.sites import Site\n__all__ = []"},
        "lacks Site",
    ),
    (shape.check_all, {"gossamer/__init__.py": "def run(): ...\n__all__ = []"}, "lacks run"),
    (shape.check_all, {"gossamer/__init__.py": "__all__ = ['ghost']"}, "ghost"),
    (shape.check_configs, {"gossamer/edits.py": "class EditConfig:\n    site: str"}, "site has no"),
    (
        shape.check_configs,
        {"gossamer/edits.py": 'class EditConfig:\n    a: int\n    b: int\n    """B."""'},
        "EditConfig.a has no",
    ),
    (shape.check_configs, {"gossamer/edits.py": f"class EditConfig:\n{FIELDS}"}, "13 fields"),
    (shape.check_readme_tree, {"gossamer/graph.py": '"""Graph."""'}, "lacks graph.py"),
    (
        shape.check_readme_tree,
        {"README.md": CLEAN["README.md"].replace("topk.py", "topk.py relu.py")},
        "saes/relu.py, which",
    ),
    (shape.check_readme_tree, {"README.md": "# No tree\n"}, "no tree"),
    (shape.check_concepts, {"gossamer/graph.py": '"""Graph."""'}, "`graph`"),
    (
        shape.check_concepts,
        {"docs/concepts.md": "errors `sites` `saes` `models` `splice`"},
        "`errors`",
    ),
    (shape.check_changelog, {"CHANGELOG.md": "## [0.3.0] - 2030-01-01\n"}, "does not open"),
    (
        shape.check_changelog,
        {"CHANGELOG.md": "## [Unreleased]\n## [0.2.9] - 2029-01-01\n"},
        "0.2.9",
    ),
]
"""(check, files put over the clean tree, what the check must say)."""


def plant(root: Path, *trees: Mapping[str, str]) -> Path:
    """Write the trees under `root`, later ones over earlier ones."""
    for tree in trees:
        for name, text in tree.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


@pytest.mark.parametrize("check", shape.CHECKS, ids=lambda check: check.__name__)
def test_this_repository_has_its_shape(check: Check) -> None:
    found = check(ROOT)
    assert not found, "\n".join(found)


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    assert shape.check_wheel(ROOT, tmp_path) == []


@pytest.mark.parametrize("check", shape.CHECKS, ids=lambda check: check.__name__)
def test_a_clean_tree_passes(check: Check, tmp_path: Path) -> None:
    assert check(plant(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(
    ("check", "files", "said"),
    PLANTED,
    ids=[f"{check.__name__}-{said}".replace(" ", "_") for check, _, said in PLANTED],
)
def test_a_planted_violation_is_found(
    check: Check, files: Mapping[str, str], said: str, tmp_path: Path
) -> None:
    found = check(plant(tmp_path, CLEAN, files))
    assert any(said in sentence for sentence in found), found


def test_every_check_has_a_planted_violation() -> None:
    assert {check for check, _, _ in PLANTED} == set(shape.CHECKS)
    assert {name for name in vars(shape) if name.startswith("check_")} == {
        *(check.__name__ for check in shape.CHECKS),
        "check_wheel",
    }


def test_a_file_that_the_wheel_lacks_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path / "clean", CLEAN)
    assert shape.check_wheel(root, tmp_path / "first") == []
    plant(root, {".gitignore": "*.js\n", "gossamer/views/web/graph.js": "export {}"})
    found = shape.check_wheel(root, tmp_path / "second")
    assert found == ["The wheel lacks gossamer/views/web/graph.js."]


@pytest.mark.skipif("os.environ.get('JAXTYPING_DISABLE') == '1'", reason="switched off by hand")
def test_signatures_are_checked_while_the_tests_run() -> None:
    with pytest.raises(TypeCheckError):
        parse_site(3)  # pyright: ignore[reportArgumentType]
