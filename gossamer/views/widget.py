"""Views under a notebook cell. Importing this file needs the extra `notebook`."""

from typing import Any

import anywidget
from traitlets import Bytes, Unicode, default

from gossamer.views.graph_state import GraphState
from gossamer.views.joiner import join
from gossamer.views.state import MatrixState


class MatrixWidget(anywidget.AnyWidget, MatrixState):
    """A matrix view whose traits follow what is clicked, and are followed when set."""

    _esm = Unicode().tag(sync=True)

    data = Bytes().tag(sync=True)
    """The blob of the view; it is not meant to change."""

    fallback = Unicode()
    """HTML shown where no widget can live, such as a converted notebook."""

    @default("_esm")
    def _joined(self) -> str:
        return join("matrix_widget.js")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, with a static table beside it for hosts that cannot run widgets."""
        return _with_fallback(super()._repr_mimebundle_(**kwargs), self.fallback)


class GraphWidget(anywidget.AnyWidget, GraphState):
    """A graph view whose traits follow what is clicked, and are followed when set."""

    _esm = Unicode().tag(sync=True)

    data = Bytes().tag(sync=True)
    """The blob of the view; it is not meant to change."""

    fallback = Unicode()
    """HTML shown where no widget can live, such as a converted notebook."""

    @default("_esm")
    def _joined(self) -> str:
        return join("graph_widget.js")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, with a static table beside it for hosts that cannot run widgets."""
        return _with_fallback(super()._repr_mimebundle_(**kwargs), self.fallback)


def _with_fallback(bundle: Any, fallback: str) -> Any:
    if bundle is not None:
        bundle[0]["text/html"] = fallback
    return bundle
