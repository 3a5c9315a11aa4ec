"""From a request that waits to the worker and back: its time limit, its client, its events."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from gossamer.server.faults import Refusal, described, to_json, unexpected
from gossamer.server.state import State
from gossamer.server.worker import Cancelled, Level, Task, Turn

EVENTS = {
    "itemSchema": {
        "type": "object",
        "properties": {name: {"type": "string"} for name in ("event", "data", "id")},
    }
}
"""How /openapi.json describes a stream of events; data is JSON."""

PING_SECONDS = 15.0
"""After which a stream that is silent says that it is alive."""


def state_of(request: Request) -> State:
    """What the server holds, for a route."""
    return request.app.state.gossamer


async def computed(
    request: Request, work: Callable[[Turn], Any], *, is_analysis: bool = False
) -> Any:
    """What work gives in the worker's thread. 504 when that takes too long; dropped when the
    client goes away."""
    state = state_of(request)
    task = state.worker.submit(Task(work, is_analysis=is_analysis))
    answer = asyncio.wrap_future(task.answer)
    answer.add_done_callback(_seen)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait(
            (answer, gone), timeout=state.config.timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if answer.done():
            problem = answer.exception()
            if problem is not None and described(problem)[0] == 500:
                raise unexpected()
            return answer.result()
        if gone.done():
            raise Refusal(499, "gone", "The client has gone.")
        raise Refusal(
            504,
            "timeout",
            f"The answer took more than {state.config.timeout:g} s; ask for less, or make it a "
            "job.",
        )
    finally:
        gone.cancel()
        if not task.answer.done():
            task.drop()


def _seen(answer: "asyncio.Future[Any]") -> None:
    """An exception that nobody waits for any more is not worth a line in the log."""
    if not answer.cancelled():
        answer.exception()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Stream:
    """Events that the worker sends while it computes; the last one is the result or an error."""

    def __init__(self, state: State, work: Callable[[Callable[[str, Any], None]], Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        self._timeout = state.config.timeout

        def compute(turn: Turn) -> Any:
            def send(event: str, data: Any) -> None:
                self._put((event, data))
                turn()

            return work(send)

        self.task = Task(compute, Level.STREAM)
        self.task.answer.add_done_callback(self._end)
        state.worker.submit(self.task)

    def _put(self, event: tuple[str, Any] | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended
            self.task.unwanted.set()

    def _end(self, answer: Future[Any]) -> None:
        self._put(None)

    async def begin(self) -> "Stream":
        """Wait for the first event, so that a mistake is a status and not an event."""
        try:
            first = await asyncio.wait_for(self._events.get(), self._timeout)
        except (TimeoutError, asyncio.CancelledError) as problem:
            self.task.drop()
            if isinstance(problem, TimeoutError):
                raise Refusal(504, "timeout", "The server was too busy; ask again.") from None
            raise
        if first is None and not self.task.answer.cancelled():
            failure = self.task.answer.exception()
            if failure is not None:
                raise failure
        self._first = first
        return self

    def response(self) -> EventSourceResponse:
        """The events as they come; whoever stops reading stops the work."""
        return EventSourceResponse(self._bytes(), headers={"X-Accel-Buffering": "no"})

    async def _bytes(self) -> AsyncIterator[bytes]:
        number, event = 0, self._first
        try:
            while event is not None:
                number += 1
                yield sse(event[0], event[1], number)
                while True:
                    try:
                        event = await asyncio.wait_for(self._events.get(), PING_SECONDS)
                        break
                    except TimeoutError:
                        yield KEEPALIVE_COMMENT
            answer = self.task.answer
            problem = Cancelled() if answer.cancelled() else answer.exception()
            if isinstance(problem, Cancelled):
                return
            if problem is not None:
                yield sse("error", described(problem)[1], number + 1)
            else:
                yield sse("result", answer.result(), number + 1)
        finally:
            self.task.drop()


def sse(event: str, data: Any, number: int) -> bytes:
    """One server-sent event."""
    return format_sse_event(data_str=to_json(data).decode(), event=event, id=str(number))
