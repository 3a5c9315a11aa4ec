"""Where a view of choices and data is shown: a file, or under a notebook cell."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gossamer.errors import GossamerError
from gossamer.views.page import page, write_page


@runtime_checkable
class Hosted(Protocol):
    """A view whose reader chooses."""

    @property
    def title(self) -> str:
        """Heading of the view."""
        ...

    def state(self) -> Any:
        """The choices as observed traits."""
        ...

    def blob(self) -> bytes:
        """The data as the browser reads it."""
        ...

    def fallback_html(self) -> str:
        """What is shown where no script runs."""
        ...


def write_view(view: Hosted, entry: str, path: str | os.PathLike[str]) -> Path:
    """Write a view as one HTML file that opens offline, in one move; `entry` starts its page."""
    text = page(
        entry,
        title=view.title,
        state=view.state().trait_values(sync=True),
        data=view.blob(),
        fallback=view.fallback_html(),
    )
    return write_page(path, text)


def widget_class(name: str) -> Any:
    """A class of `widget.py`. GossamerError where anywidget is not installed."""
    try:
        widgets = import_module("gossamer.views.widget")
    except ModuleNotFoundError as error:
        if error.name != "anywidget":
            raise
        raise GossamerError(
            "A widget needs the package anywidget: pip install 'gossamer[notebook]'; "
            "or write the same view as a page with to_html(path)."
        ) from error
    return getattr(widgets, name)
