"""Views under a notebook cell. Importing this file needs the extra `notebook`."""

from typing import Any, ClassVar, final

import anywidget
from traitlets import Bytes, Unicode, default

from gossamer.views.graph_state import GraphState
from gossamer.views.joiner import join
from gossamer.views.state import MatrixState


class AbstractViewWidget(anywidget.AnyWidget):
    """A view whose traits follow what is clicked, and are followed when set."""

    entry: ClassVar[str]
    """The module of `web/` that starts it."""

    _esm = Unicode().tag(sync=True)

    data = Bytes().tag(sync=True)
    """The blob of the view; it is not meant to change."""

    fallback = Unicode()
    """HTML shown where no widget can live, such as a converted notebook."""

    @default("_esm")
    def _joined(self) -> str:
        return join(self.entry)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, with a static table beside it for hosts that cannot run widgets."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["text/html"] = self.fallback
        return bundle


@final
class MatrixWidget(AbstractViewWidget, MatrixState):
    """A matrix view."""

    entry = "matrix_widget.js"


@final
class GraphWidget(AbstractViewWidget, GraphState):
    """A graph view."""

    entry = "graph_widget.js"
