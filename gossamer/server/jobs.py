"""Long work with a name: queued, run between other requests, kept in the workspace.

A job's file is written when its state changes and at most once a second while it runs. What a
killed server left queued or running is `interrupted` when the next one opens the workspace.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from gossamer.errors import DiskError
from gossamer.server.faults import Refusal, described
from gossamer.server.store import Store, not_found
from gossamer.server.worker import Cancelled, Level, Task, Turn, Worker

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
ENDED = ("done", "failed", "cancelled", "interrupted")
HISTORY = 200
"""Events of a job that a reader who comes back can still have."""

KEEP = 1000
"""Jobs that have ended and are remembered."""

EVERY = 0.1
"""Seconds between two events."""

SAVE_EVERY = 1.0
"""Seconds between two writes of a running job's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One piece of long work, and how far it is."""

    id: str
    """Its name, the same after a restart and when it is run again."""

    kind: str
    """What it does."""

    request: dict[str, Any]
    """What was asked, as it was sent."""

    title: str = ""
    """What its owner calls it."""

    state: State = "queued"
    """Where it stands."""

    done: int = 0
    """Steps that are done."""

    total: int | None = None
    """Of so many; None: not known."""

    phase: str = ""
    """What the steps are."""

    attempt: int = 1
    """How often it was begun."""

    created: float = 0.0
    """When it was asked for, in seconds since 1970."""

    started: float | None = None
    """When it began."""

    ended: float | None = None
    """When it ended."""

    error: dict[str, Any] | None = None
    """What went wrong."""

    result: str | None = None
    """Id of the result."""

    def without_request(self) -> dict[str, Any]:
        """How far it is, as plain values."""
        return {name: getattr(self, name) for name in INFO}


INFO = tuple(name for name in Job.__dataclass_fields__ if name != "request")

Step = Callable[[int, int | None, str], None]
"""step(done, total, phase): said between two steps; raises Cancelled."""

Run = Callable[[Job, Step], dict[str, Any]]
"""What does the work of a job and gives its answer."""


@dataclass(slots=True)
class _Entry:
    job: Job
    task: Task | None = None
    events: deque[tuple[int, Job]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    last_event: int = 0
    sent: float = 0.0
    saved: float = 0.0


class Jobs:
    """All jobs of a workspace."""

    def __init__(self, store: Store, worker: Worker, run: Run) -> None:
        self.store = store
        self.worker = worker
        self.run = run
        self._guard = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        for content in store.every("jobs"):
            job = Job(**{k: v for k, v in content.items() if k in Job.__dataclass_fields__})
            self._entries[job.id] = _Entry(job)
            if job.state not in ENDED:
                self._put(job.id, replace(job, state="interrupted", ended=time.time()))
            else:
                self._event(self._entries[job.id])

    def every(self) -> list[Job]:
        """All jobs, newest first."""
        with self._guard:
            jobs = [entry.job for entry in self._entries.values()]
        return sorted(jobs, key=lambda job: -job.created)

    def get(self, name: str) -> Job:
        """One job. Refusal 404 when there is none."""
        return self._entry(name).job

    def begin(self, kind: str, request: dict[str, Any], title: str = "") -> Job:
        """Queue a new job. Refusal 429 when too many wait."""
        name = f"j-{secrets.token_hex(8)}"
        job = Job(id=name, kind=kind, request=request, title=title, created=time.time())
        return self._queue(job)

    def rerun(self, name: str) -> Job:
        """Queue a job that has ended again. Refusal 409 while it has not."""
        with self._guard:
            job = self.get(name)
            if job.state not in ENDED:
                raise Refusal(409, "conflict", f"The job {name} is {job.state}; cancel it first.")
            again = replace(
                job, state="queued", done=0, total=None, phase="", attempt=job.attempt + 1,
                started=None, ended=None, error=None,
            )  # fmt: skip
            return self._queue(again)

    def cancel(self, name: str) -> Job:
        """Stop a job at its next step; one that has ended stays as it is."""
        with self._guard:
            entry = self._entry(name)
            if entry.job.state in ENDED:
                return entry.job
            if entry.task is not None:
                entry.task.drop()
            if entry.job.state == "queued":
                self._put(name, replace(entry.job, state="cancelled", ended=time.time()))
            return entry.job

    def after(self, name: str, event: int) -> list[tuple[int, Job]]:
        """Events that came after one, oldest first; the newest alone for who has seen none."""
        with self._guard:
            events = list(self._entry(name).events)
        if event <= 0:
            return events[-1:]
        return [each for each in events if each[0] > event]

    def _queue(self, job: Job) -> Job:
        with self._guard:
            task = Task(lambda turn: self._work(job.id, turn), Level.JOB)
            old = self._entries.get(job.id)
            self._forget()
            entry = self._entries[job.id] = old or _Entry(job)
            entry.task = task
            try:
                # Queued before the file is there, but not begun: that needs the guard.
                self.worker.submit(task)
                self._save(entry, job)
                self._put(job.id, job)
            except Exception:
                task.drop()
                if old is None:
                    del self._entries[job.id]
                raise
            return job

    def _forget(self) -> None:
        """Let go of the oldest jobs that have ended, when there are too many; results stay."""
        ended = [entry.job for entry in self._entries.values() if entry.job.state in ENDED]
        for job in sorted(ended, key=lambda job: job.created)[: max(0, len(ended) - KEEP)]:
            self.store.delete("jobs", job.id)
            del self._entries[job.id]

    def _work(self, name: str, turn: Turn) -> None:
        """In the worker's thread: the whole life of a job."""
        with self._guard:
            job = replace(self.get(name), state="running", started=time.time())
            self._put(name, job)

        def step(done: int, total: int | None, phase: str) -> None:
            turn()
            with self._guard:
                self._progress(name, done, total, phase)

        try:
            turn()
            answer = self.run(job, step)
            content = {"id": name, "kind": job.kind, "title": job.title, "created": time.time()}
            self.store.save("results", name, {**content, "request": job.request, "answer": answer})
            self._end(name, state="done", result=name)
        except Cancelled:
            closing = self.worker.is_closing
            self._end(name, state="interrupted" if closing else "cancelled")
        except Exception as problem:  # the job's own answer
            self._end(name, state="failed", error=described(problem)[1])

    def _end(self, name: str, **changes: Any) -> None:
        with self._guard:
            self._put(name, replace(self.get(name), ended=time.time(), **changes))

    def _progress(self, name: str, done: int, total: int | None, phase: str) -> None:
        entry = self._entry(name)
        entry.job = replace(entry.job, done=done, total=total, phase=phase)
        now = time.monotonic()
        if now - entry.sent >= EVERY:
            self._event(entry)
        if now - entry.saved >= SAVE_EVERY:
            self._written(entry)

    def _put(self, name: str, job: Job) -> None:
        """A new state: written and told."""
        entry = self._entry(name)
        entry.job = job
        self._written(entry)
        self._event(entry)

    def _written(self, entry: _Entry) -> None:
        """Write what a job has come to. On a full disk it goes on in memory: its result is what
        must be written, and says so when it cannot be."""
        with suppress(DiskError):
            self._save(entry, entry.job)

    def _save(self, entry: _Entry, job: Job) -> None:
        entry.saved = time.monotonic()
        self.store.save("jobs", job.id, asdict(job))

    def _event(self, entry: _Entry) -> None:
        entry.sent = time.monotonic()
        # Milliseconds since 1970: they rise across restarts, so a reader goes on where it was.
        entry.last_event = max(entry.last_event + 1, time.time_ns() // 1_000_000)
        entry.events.append((entry.last_event, entry.job))

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise not_found("job", name)
        return entry
