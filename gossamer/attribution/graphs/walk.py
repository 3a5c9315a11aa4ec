"""Targets pulled back through a run, from where they are read to the embedding.

Each batch of targets is read at one place, so it visits only the blocks before that place, and only
the positions up to its last target's: its cone.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from gossamer.attribution.graphs.gradients import Gradient, plus
from gossamer.attribution.graphs.places import EMBEDDING, POST, PRE, Place
from gossamer.attribution.graphs.run import Run


@runtime_checkable
class Engine(Protocol):
    """What pulls gradients back through one block."""

    @property
    def run(self) -> Run:
        """The clean run."""
        ...

    def block(
        self, layer: int, above: Gradient | None, read: tuple[Place, Gradient] | None
    ) -> tuple[dict[Place, Gradient], Gradient | None]:
        """(gradients at places of the block, at what it receives), from that at what it gives and
        from what is read at one place inside."""
        ...

    def through_final(self, gradient: Gradient) -> Gradient:
        """Through the final norm."""
        ...


def pulled_back(engine: Engine, place: Place, read: Gradient) -> Iterator[tuple[Place, Gradient]]:
    """(place, gradient there) for the places from which what is read at `place` comes."""
    run = engine.run
    if place.layer == run.n_layers:
        place, read = Place(run.n_layers - 1, POST, True), engine.through_final(read)
    gradient: Gradient | None = None
    for layer in range(place.layer, -1, -1):
        here = place if place.layer == layer else None
        gradient = yield from _spliced(run, layer, POST, gradient, here, read)
        inside = here is not None and here.station not in (PRE, POST)
        found, gradient = engine.block(layer, gradient, (here, read) if inside and here else None)
        yield from found.items()
        gradient = yield from _spliced(run, layer, PRE, gradient, here, read)
        if gradient is None:  # everything was cut
            return
    if gradient is not None:
        yield EMBEDDING, gradient


def _spliced(  # noqa: PLR0917  one end of a block
    run: Run,
    layer: int,
    station: int,
    gradient: Gradient | None,
    here: Place | None,
    read: Gradient,
) -> Iterator[tuple[Place, Gradient]]:
    """The gradient before the splice at an end of a block, from that after it."""
    after, before = Place(layer, station, True), Place(layer, station, False)
    gradient = plus(gradient, read if here == after else None)
    if run.cut(layer, station) is not None:
        if gradient is not None:
            yield after, gradient
        gradient = None
    return plus(gradient, read if here == before else None)
