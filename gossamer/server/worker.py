"""One thread that computes, a bounded queue before it, and analyses that share a pass.

Three levels of work: jobs, texts that are streamed, and quick requests. Work of a lower level calls
`turn` between its steps, and what waits at higher levels is then computed in between, in the same
thread: a job of an hour keeps nobody waiting for longer than one of its steps.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from gossamer.analysis.analyze import Prepared, Request, analyze_prepared, prepared
from gossamer.analysis.result import Analysis
from gossamer.errors import GossamerError, SiteError
from gossamer.models.model import Model
from gossamer.server import faults
from gossamer.server.faults import Refusal


class Level(IntEnum):
    """What may be computed between the steps of what: only what is higher."""

    JOB = 0
    STREAM = 1
    QUICK = 2


class Cancelled(Exception):
    """Raised in work that nobody wants any more."""


@dataclass(eq=False, slots=True)
class Task:
    """Something to compute, and its answer."""

    work: Callable[["Turn"], Any]
    """What to do. Of an analysis: what gives its Request."""

    level: Level = Level.QUICK
    """Where it stands."""

    is_analysis: bool = False
    """Whether it may share a pass."""

    answer: Future[Any] = field(default_factory=Future)
    """The answer, or the exception."""

    unwanted: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for it."""

    def drop(self) -> None:
        """Do not begin it; stop it at its next step if it has begun."""
        self.unwanted.set()
        self.answer.cancel()


Turn = Callable[[], None]
"""Called between steps: lets others go first, raises Cancelled when the work is not wanted."""


class Worker:
    """The thread of one device, and what waits for it."""

    def __init__(
        self,
        model: Model,
        *,
        queue: int = 64,
        jobs: int = 16,
        group: int = 16,
        linger: float = 0.002,
        memory: int | None = None,
    ) -> None:
        self.model = model
        self.group = group
        self.linger = linger
        self.memory = memory
        self.passes = 0
        self.analyses = 0
        self._limits = {Level.JOB: jobs, Level.STREAM: queue, Level.QUICK: queue}
        self._waiting: list[Task] = []
        self._running: list[Task] = []
        self._seconds = 0.05  # what a task takes, as a running mean
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="gossamer-worker", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> Task:
        """Queue a task. Refusal 429 when the queue is full, 503 when the server is closing."""
        is_job = task.level is Level.JOB
        with self._changed:
            if self._closing:
                raise Refusal(503, "closing", "The server is closing.")
            self._purge()
            ahead = [t for t in self._waiting if (t.level is Level.JOB) == is_job]
            if len(ahead) >= self._limits[task.level]:
                seconds = max(1, round(len(ahead) * self._seconds))
                what = "jobs" if is_job else "requests"
                raise Refusal(
                    429,
                    "busy",
                    f"{len(ahead)} {what} wait already, which is the limit; ask again in "
                    f"{seconds} s.",
                    {"Retry-After": str(seconds)},
                )
            self._waiting.append(task)
            self._changed.notify_all()
        return task

    @property
    def is_closing(self) -> bool:
        """Whether the server ends."""
        return self._closing

    def counts(self) -> tuple[int, int, int]:
        """Requests that wait, tasks that run, jobs that wait."""
        with self._changed:
            self._purge()
            jobs = sum(task.level is Level.JOB for task in self._waiting)
            return len(self._waiting) - jobs, len(self._running), jobs

    def _purge(self) -> None:
        """Let go of what nobody waits for, so that it does not fill the queue."""
        self._waiting = [task for task in self._waiting if not task.unwanted.is_set()]

    def close(self, seconds: float = 10.0) -> None:
        """Take nothing more, stop what runs at its next step."""
        with self._changed:
            self._closing = True
            for task in (*self._waiting, *self._running):
                task.drop()
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(seconds)

    def _loop(self) -> None:
        while tasks := self._next(Level.JOB, wait=True):
            self._serve(tasks)

    def _turn(self, task: Task) -> None:
        """Let what waits above a task's level go first, once."""
        if task.level is not Level.QUICK:
            for _ in range(sum(self.counts())):
                tasks = self._next(Level(task.level + 1), wait=False)
                if not tasks:
                    break
                self._serve(tasks)
        if task.unwanted.is_set():
            raise Cancelled

    def _next(self, lowest: Level, *, wait: bool) -> list[Task]:
        """The next task, with those that can share its pass; none when the server closes."""
        with self._changed:
            while True:
                first = next((t for t in self._waiting if t.level >= lowest), None)
                if first is not None:
                    break
                if not wait or self._closing:
                    return []
                self._changed.wait()
            if first.is_analysis and self.group > 1 and self.linger > 0:
                alone = sum(t.is_analysis for t in self._waiting) == 1
                if alone:
                    self._changed.wait(self.linger)
            taken = [first]
            if first.is_analysis:
                others = [t for t in self._waiting if t.is_analysis and t is not first]
                taken += others[: self.group - 1]
            self._waiting = [t for t in self._waiting if t not in taken]
            return taken

    def _serve(self, tasks: Sequence[Task]) -> None:
        """Compute some tasks; what goes wrong is their own answer."""
        wanted = [task for task in tasks if task.answer.set_running_or_notify_cancel()]
        started = time.perf_counter()
        with self._changed:
            self._running += wanted
        try:
            if wanted and wanted[0].is_analysis:
                self._analyze(wanted)
            elif wanted:
                task = wanted[0]
                _settle(task, lambda: task.work(lambda: self._turn(task)))
        finally:
            with self._changed:
                self._running = [task for task in self._running if task not in wanted]
        if wanted and wanted[0].level is not Level.JOB:
            spent = (time.perf_counter() - started) / len(wanted)
            self._seconds += 0.1 * (spent - self._seconds)

    def _analyze(self, tasks: Sequence[Task]) -> None:
        """Several analyses in one pass; each is checked before, so that a mistake stays alone."""
        ready: list[tuple[Task, Prepared]] = []
        for task in tasks:
            try:
                ready.append((task, checked(self.model, task.work(lambda: None))))
            except Exception as problem:  # of this request alone
                task.answer.set_exception(problem)
        self.analyses += len(ready)
        if len(ready) > 1:
            try:
                found = self._pass([one for _, one in ready])
            except Exception:  # one spoils it for the others: find out which
                found = []
            if found:
                for (task, _), analysis in zip(ready, found, strict=True):
                    task.answer.set_result(analysis)
                return
        for task, one in ready:
            _settle(task, lambda one=one: self._alone(one))

    def _alone(self, one: Prepared) -> Analysis:
        try:
            return self._pass([one])[0]
        except SiteError:
            if one.request.upstream is None:
                raise
            with faults.field("upstream"):  # a latent that turned out not to be active
                raise

    def _pass(self, ready: Sequence[Prepared]) -> list[Analysis]:
        self.passes += 1
        return analyze_prepared(self.model, ready, memory=self.memory)


def checked(model: Model, request: Request) -> Prepared:
    """The request, when it can be computed. GossamerError says which field is wrong."""
    try:
        return prepared(model, request)
    except GossamerError as mistake:
        if faults.field_of(mistake) is None:
            with faults.field(_field_of(model, request)):
                raise
        raise


def _field_of(model: Model, request: Request) -> str:
    """Where a mistake is: the first field without which there is none."""
    what = "upstream" if request.upstream is not None else "target"
    less = {
        "hold": replace(request, hold=()),
        "choice.cut": replace(request, choice=replace(request.choice, cut=None)),
        "edits": replace(request, edits=()),
        what: replace(request, edits=(), target=None, upstream=None),
    }
    for name, fewer in less.items():
        try:
            prepared(model, fewer)
        except GossamerError:
            continue
        return name
    return "prompt"


def _settle(task: Task, work: Callable[[], Any]) -> None:
    """Do a task's work and keep its answer."""
    try:
        task.answer.set_result(work())
    except Exception as problem:  # it is the answer, whatever it is
        task.answer.set_exception(problem)
