"""Joins a view's ES modules into one, because a notebook and a `file://` page can load only one.

Each imported module becomes a function that is called once and returns what the module exports;
the entry module follows with its imports turned into destructuring. Accepted, each on one line that
begins at the margin: `import { a, b as c } from "./x.js";`, `export function|const|class NAME`, and
in the entry module one `export default`. Everything else that imports or exports is refused.
"""

import re
from collections.abc import Callable
from pathlib import Path

WEB = Path(__file__).parent / "web"
"""Where the modules are."""

IMPORT = re.compile(r'import \{ ([\w, ]+) \} from "\./(\w+\.js)";')
EXPORT = re.compile(r"export (?=(?:(?:async )?function|class) (\w+)|const (\w+) =)")
DEFAULT = re.compile(r"export default ")
# What reads as an import or export but is none of the above, wherever it stands in a line.
REFUSED = re.compile(r"^\s*(?:import|export)\b|\bimport\s*\(|\bimport\.meta\b|</script|<!--", re.I)


class JoinError(Exception):
    """A module that the joiner does not understand: a mistake in this package, not a user's."""


def read_module(name: str) -> str:
    """The source of one of the package's modules."""
    return (WEB / name).read_text(encoding="utf-8")


def join(entry: str, read: Callable[[str], str] = read_module) -> str:
    """One module that does what `entry` and its imports do."""
    exports: dict[str, list[str]] = {}
    parts: list[str] = []

    def add(name: str, path: tuple[str, ...]) -> str:
        """The module's body; the modules it needs are appended to `parts` before it."""
        if name in path:
            raise JoinError(f"A cycle: {' → '.join((*path, name))}.")
        lines, names = [], []
        for number, line in enumerate(read(name).splitlines(), start=1):
            where = f"{name}:{number}"
            if found := IMPORT.fullmatch(line):
                needed = found[2]
                if needed not in exports or needed in path:
                    body = add(needed, (*path, name))
                    listed = ", ".join(exports[needed])
                    parts.append(f"const {_variable(needed)} = (() => {{\n{body}\n"
                                 f"return {{ {listed} }};\n}})();")  # fmt: skip
                line = _destructured(found, exports[needed], where)
            elif found := EXPORT.match(line):
                names.append(found[1] or found[2])
                line = line.removeprefix("export ")
            elif DEFAULT.match(line):
                if path:
                    raise JoinError(f"{where}: only the entry module has a default export.")
            elif REFUSED.search(line):
                raise JoinError(f"{where}: the joiner does not understand {line.strip()!r}.")
            lines.append(line)
        exports[name] = names
        return "\n".join(lines)

    body = add(entry, ())
    return "\n".join([*parts, body]) + "\n"


def _variable(name: str) -> str:
    return "module_" + name.removesuffix(".js")


def _destructured(found: re.Match[str], exported: list[str], where: str) -> str:
    """`a, b as c` as an assignment from the module's object."""
    pairs = [item.split(" as ") for item in found[1].split(", ")]
    for name, *_ in pairs:
        if name not in exported:
            raise JoinError(f"{where}: {found[2]} does not export {name!r}.")
    names = ", ".join(": ".join(pair) for pair in pairs)
    return f"const {{ {names} }} = {_variable(found[2])};"
