"""One HTML file that opens offline: a joined view, its state and its data, nothing fetched.

The policy in the file allows one script, by its hash, and no request at all; so text in the data
can neither run nor load anything, whatever it holds.
"""

import base64
import gzip
import hashlib
import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from gossamer.errors import placed
from gossamer.views.joiner import WEB, join


def page(entry: str, *, title: str, state: Mapping[str, Any], data: bytes, fallback: str) -> str:
    """The file's text.

    Args:
        entry: the module of `web/` that starts the view.
        title: of the browser's tab; escaped here.
        state: the traits that the view begins with.
        data: the blob; it is compressed, which the browser undoes itself.
        fallback: HTML for a browser without scripts, already escaped.
    """
    script = f"\n{join(entry)}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = Template((WEB / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title),
        hash=digest,
        state=json.dumps(state, allow_nan=False).replace("<", "\\u003c"),
        data=base64.b64encode(gzip.compress(data, compresslevel=4, mtime=0)).decode(),
        fallback=fallback,
        script=script,
    )


def write_page(path: str | os.PathLike[str], text: str) -> Path:
    """Write in one move: the file is the whole page, or what it was before."""
    with placed(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "replace"))  # a lone surrogate becomes "?"
    return Path(path)
