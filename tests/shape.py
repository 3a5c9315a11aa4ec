"""The checks of the repository's shape: pure functions of a directory that return sentences.

Each takes the root of a repository and returns one sentence for each violation, none when all is
well. `test_architecture.py` runs them on this repository and on trees with a planted violation.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ORDER = (
    *("errors", "machine", "sites"),  # words
    *("kernels", "distributed", "metrics", "views", "graph", "edits"),  # tensors: no model, no SAE
    *("saes", "models"),  # parts
    *("splice", "generation", "corpus", "activations"),  # runs: where they meet
    *("jacobian", "attribution", "evaluation", "training", "plan"),  # science
    *("analysis", "dashboards", "interop", "library"),  # products
    *("server", "cli"),  # faces
)
"""The modules of the package, foundation first; a module imports only from those before it."""

STRANGERS = ({"saes", "models"},)
"""Modules that do not import each other, although one stands before the other."""

FACES = ("__init__", "__main__")
"""The package's own doors: they may import every module, and no module imports them."""

MAX_LINES = 400
MAX_CONFIG_FIELDS = 12

CATCH_ALL = {
    *("util", "utils", "utility", "utilities", "helper", "helpers", "common", "misc"),
    *("miscellaneous", "lib", "libs", "tool", "tools", "shared", "stuff", "extras"),
}
"""Words that say nothing; no file or folder has one in its name."""

HEAVY = (
    *("anywidget", "datasets", "fastapi", "matplotlib", "pandas"),
    *("plotly", "ray", "transformers", "triton", "wandb"),
)
"""Packages that `import gossamer` does not load."""


class Import(NamedTuple):
    """One import of something of this package."""

    file: Path
    line: int
    target: str  # dotted, "gossamer.saes.topk" or "gossamer.saes.topk.TopK"


def python_files(root: Path, *folders: str) -> list[Path]:
    """Every Python file under the folders, in order."""
    return sorted(file for folder in folders for file in (root / folder).rglob("*.py"))


def read(file: Path) -> str:
    """The text of a document; a missing one is as good as an empty one."""
    return file.read_text(encoding="utf-8") if file.exists() else ""


def parse(file: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def in_package(name: str | None) -> bool:
    """Whether a dotted name is the package or stands in it."""
    return name is not None and (name == "gossamer" or name.startswith("gossamer."))


def imported_by_name(node: ast.Call) -> ast.expr | None:
    """The argument of a call of `import_module` or `__import__`; None for every other call."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else None
    called = node.func.id if isinstance(node.func, ast.Name) else called
    return node.args[0] if called in ("import_module", "__import__") and node.args else None


def imports(file: Path) -> Iterator[Import]:
    """What the file imports of this package, in functions, under TYPE_CHECKING and by name too."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):
            named = imported_by_name(node)
            targets = [str(named.value)] if isinstance(named, ast.Constant) else []
        else:
            continue
        for target in targets:
            if in_package(target):
                yield Import(file, node.lineno, target)


def file_of(root: Path, target: str) -> Path:
    """The file that a dotted name is read from; a name in a folder is its `__init__`'s."""
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        path = root.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                return file
    return root / "gossamer" / "__init__.py"


def module_of(root: Path, file: Path) -> str:
    """The top-level module that a file of the package belongs to."""
    return file.relative_to(root / "gossamer").parts[0].removesuffix(".py")


def escape(node: ast.stmt | ast.expr) -> str | None:
    """How an import is hidden from the other checks; None when it is not, or is no import."""
    if isinstance(node, ast.Import):
        bare = [a.name for a in node.names if in_package(a.name) and a.asname is None]
        return f'"import {bare[0]}" binds the whole package' if bare else None
    if isinstance(node, ast.ImportFrom) and node.level > 0:
        return "a relative import"
    if isinstance(node, ast.Call) and (named := imported_by_name(node)) is not None:
        constant = isinstance(named, ast.Constant)
        return None if constant else "an import by a name that only the run knows"
    return None


def check_import_form(root: Path) -> list[str]:
    """Imports are written so that the other checks see them; the doors may compute names."""
    return [
        f"{file.relative_to(root)}:{node.lineno}: {hidden}; write "
        '"from gossamer.<module> import <name>".'
        for file in python_files(root, "gossamer")
        for node in ast.walk(parse(file))
        if isinstance(node, ast.stmt | ast.expr) and (hidden := escape(node))
        if not (isinstance(node, ast.Call) and module_of(root, file) in FACES)
    ]


def check_order(root: Path) -> list[str]:
    """A module imports only from modules that stand before it."""
    found = []
    rank = {name: place for place, name in enumerate((*ORDER, *FACES))}
    for file in python_files(root, "gossamer"):
        module = module_of(root, file)
        for used in imports(file):
            other = module_of(root, file_of(root, used.target))
            if module == other or module in FACES or not {module, other} <= set(rank):
                continue
            where = f"{file.relative_to(root)}:{used.line}: {module} imports {used.target}"
            if {module, other} in STRANGERS:
                found.append(f"{where}, but the two are strangers; they meet in splice.")
            elif rank[other] > rank[module]:
                found.append(f"{where}, but {other} does not stand before it.")
    return found


def check_cycles(root: Path) -> list[str]:
    """No file imports itself through others; a name taken from a folder is its `__init__`'s."""
    files = python_files(root, "gossamer")
    links = {
        file: {file_of(root, used.target) for used in imports(file)} - {file} for file in files
    }
    try:
        TopologicalSorter(links).prepare()
    except CycleError as error:
        return ["A cycle: " + " ← ".join(str(file.relative_to(root)) for file in error.args[1])]
    return []


def check_places(root: Path) -> list[str]:
    """Every top-level module of the package stands in the order."""
    modules = {module_of(root, file) for file in python_files(root, "gossamer")}
    return [
        f"gossamer/{name} is not in the order; give it a place in tests/shape.py and the design."
        for name in sorted(modules - {*ORDER, *FACES})
    ]


def check_names(root: Path) -> list[str]:
    """No file or folder has a catch-all name: a function lives with its concept."""
    found = []
    for file in python_files(root, "gossamer", "recipes", "benchmarks", "examples", "tests"):
        relative = file.relative_to(root)
        words = {word for part in relative.with_suffix("").parts for word in part.split("_")}
        found += [f'{relative}: "{word}" says nothing.' for word in sorted(words & CATCH_ALL)]
    return found


def check_files(root: Path) -> list[str]:
    """Files are short and say what they are for."""
    found = []
    for file in python_files(root, "gossamer", "recipes", "benchmarks", "examples"):
        n_lines = len(file.read_text(encoding="utf-8").splitlines())
        if n_lines > MAX_LINES:
            found.append(
                f"{file.relative_to(root)}: {n_lines} lines, at most {MAX_LINES}; split it."
            )
        if not ast.get_docstring(parse(file)):
            found.append(f"{file.relative_to(root)}: no docstring says what the file is for.")
    return found


def run_python(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the package under `root` first."""
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


def heavy_after(root: Path, module: str) -> tuple[set[str], str]:
    """The heavy packages loaded by an import, and whatever the import wrote."""
    marker = "--- modules ---"
    done = run_python(
        root,
        f"import {module}, sys\nprint({marker!r}, *[m for m in {HEAVY!r} if m in sys.modules])",
    )
    written, _, modules = done.stdout.partition(marker)
    return set(modules.split()), written + done.stderr


def check_import_is_light(root: Path) -> list[str]:
    """`import gossamer` loads nothing heavy (beyond what torch itself loads) and writes nothing."""
    heavy, written = heavy_after(root, "gossamer")
    if heavy:
        heavy -= heavy_after(root, "torch")[0]
    found = [f"import gossamer loads {name}; import it where it is used." for name in sorted(heavy)]
    return found + ([f"import gossamer writes: {written.strip()}"] if written else [])


def public_names(init: ast.Module) -> set[str]:
    """The public names an `__init__` binds: its own, and the package's, under TYPE_CHECKING too."""
    names: set[str] = set()
    for node in ast.walk(init):
        if isinstance(node, ast.ImportFrom) and in_package(node.module):
            names |= {alias.asname or alias.name for alias in node.names}
    for node in init.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def check_all(root: Path) -> list[str]:
    """`gossamer.__all__` is sorted, complete and true."""
    code = (
        "import gossamer, json\n"
        "names = list(gossamer.__all__)\n"
        "print(json.dumps([names, [n for n in names if not hasattr(gossamer, n)]]))"
    )
    done = run_python(root, code)
    if done.returncode:
        return [f"gossamer.__all__ cannot be read: {done.stderr.strip().splitlines()[-1]}"]
    names, missing = json.loads(done.stdout.splitlines()[-1])
    left_out = public_names(parse(root / "gossamer" / "__init__.py")) - set(names)
    found = [f"gossamer.__all__ names {name}, which is not there." for name in missing]
    found += [f"gossamer.__all__ lacks {name}." for name in sorted(left_out)]
    if names != sorted(set(names)):
        found.append(f"gossamer.__all__ is not sorted: {names}")
    return found


def undocumented_fields(config: ast.ClassDef) -> list[str]:
    """The fields of a class without a docstring under them."""
    followers = [*config.body[1:], None]
    return [
        ast.unparse(node.target)
        for node, after in zip(config.body, followers, strict=True)
        if isinstance(node, ast.AnnAssign)
        and not (
            isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        )
    ]


def check_configs(root: Path) -> list[str]:
    """Each field of a config has a docstring under it, and a config has few fields."""
    found = []
    for file in python_files(root, "gossamer"):
        for node in ast.walk(parse(file)):
            if not (isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
                continue
            where = f"{file.relative_to(root)}:{node.lineno}: {node.name}"
            found += [f"{where}.{name} has no docstring." for name in undocumented_fields(node)]
            n_fields = sum(isinstance(field, ast.AnnAssign) for field in node.body)
            if n_fields > MAX_CONFIG_FIELDS:
                found.append(f"{where} has {n_fields} fields, at most {MAX_CONFIG_FIELDS}.")
    return found


def printed_tree(text: str) -> set[str] | None:
    """The paths in the tree that begins with a line `gossamer/`; None when there is no such tree.

    A line may name several entries side by side; what follows the names is the comment.
    """
    lines = iter(text.splitlines())
    if not any(re.match(r"gossamer/(\s|$)", line) for line in lines):
        return None
    paths: set[str] = set()
    folders: list[str] = []  # the folder last named at each depth
    for line in lines:
        branch = re.match(r"(?P<indent>(?:│   |    )*)[├└]── (?P<rest>.*)", line)
        if branch is None:
            break
        depth = len(branch["indent"]) // 4
        for word in branch["rest"].split():
            if not re.fullmatch(r"\w+/|\w+\.\w+", word):
                break
            paths.add("/".join([*folders[:depth], word.rstrip("/")]))
            folders[depth:] = [word.rstrip("/")]
    return paths


def check_readme_tree(root: Path) -> list[str]:
    """README's tree has every top-level entry of the package, and nothing that is not there."""
    printed = printed_tree(read(root / "README.md"))
    if printed is None:
        return ['README.md has no tree that begins with a line "gossamer/".']
    left_out = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    real = {entry.name for entry in (root / "gossamer").iterdir()} - left_out
    found = [f"README's tree lacks {name}." for name in sorted(real - printed)]
    gone = sorted(path for path in printed if not (root / "gossamer" / path).exists())
    return found + [f"README's tree has {path}, which is not there." for path in gone]


def check_concepts(root: Path) -> list[str]:
    """docs/concepts.md mentions every module, as code: `graph`, `graph.py` or `gossamer.graph`."""
    text = read(root / "docs" / "concepts.md")
    modules = {module_of(root, file) for file in python_files(root, "gossamer")} - set(FACES)
    return [
        f"docs/concepts.md does not mention `{name}`: no word, no file."
        for name in sorted(modules)
        if not re.search(rf"`(gossamer[./])?{name}(\.py|/)?`", text)
    ]


def check_changelog(root: Path) -> list[str]:
    """The changelog opens with Unreleased, and its newest release is the version."""
    version = tomllib.loads(read(root / "pyproject.toml"))["project"]["version"]
    entries = re.findall(r"^## \[(.+?)\]", read(root / "CHANGELOG.md"), re.MULTILINE)
    if entries[:1] != ["Unreleased"]:
        return ['CHANGELOG.md does not open with "## [Unreleased]".']
    if entries[1:] and entries[1] != version:
        return [
            f"The newest release in CHANGELOG.md is {entries[1]}, pyproject.toml says {version}."
        ]
    return []


def check_wheel(root: Path, directory: Path) -> list[str]:
    """The wheel, built into `directory`, holds every file of the package."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return [f"The wheel does not build: {done.stderr.strip()}"]
    packed = set(zipfile.ZipFile(next(directory.glob("*.whl"))).namelist())
    files = {
        file.relative_to(root).as_posix()
        for file in (root / "gossamer").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    return [f"The wheel lacks {file}." for file in sorted(files - packed)]


CHECKS = (
    *(check_import_form, check_order, check_cycles, check_places, check_names, check_files),
    *(check_import_is_light, check_all, check_configs),
    *(check_readme_tree, check_concepts, check_changelog),
)
"""Every check that needs the directory alone."""
