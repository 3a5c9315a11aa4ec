"""The worker: shared passes, one request's mistake, what goes first, and how much may wait."""

import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import pytest

import gossamer
from gossamer.errors import GossamerError
from gossamer.server.faults import Refusal
from gossamer.server.worker import Cancelled, Level, Task, Worker
from tests.tiny_models import tiny_model

IDS = [3, 1, 4, 1, 5]


class Held:
    """A worker whose thread is busy until `go` is set."""

    def __init__(self, **options: Any) -> None:
        self.model = tiny_model("gpt2")
        self.worker = Worker(self.model, linger=0.0, **options)
        self.go, began = threading.Event(), threading.Event()

        def hold(_: Any) -> None:
            began.set()
            self.go.wait(10)

        self.worker.submit(Task(hold))
        began.wait(10)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.worker.close()

    def analysis(self, prompt: Any = IDS, **request: Any) -> Task:
        made = gossamer.Request(prompt=prompt, **request)
        return self.worker.submit(Task(lambda _: made, is_analysis=True))


def test_analyses_that_wait_share_a_pass() -> None:
    with Held(group=4) as held:
        tasks = [held.analysis(IDS[: 2 + i % 3], target=7) for i in range(6)]
        other = held.worker.submit(Task(lambda _: "other"))
        held.go.set()
        found = [task.answer.result(30) for task in tasks]
        assert other.answer.result(30) == "other"
        assert (held.worker.passes, held.worker.analyses) == (2, 6)
    for i, one in enumerate(found):
        alone = gossamer.analyze(held.model, IDS[: 2 + i % 3], 7)
        assert one.value == pytest.approx(alone.value, rel=1e-12)


def test_a_mistake_in_a_group_is_its_own() -> None:
    with Held() as held:
        good = [held.analysis(target=7), held.analysis(target=9)]
        bad = held.analysis(target=99)
        raising = held.worker.submit(Task(lambda _: 1 / 0, is_analysis=True))
        late = held.analysis(upstream=gossamer.Through("blocks.1.mlp.hook_post/3@99"))
        held.go.set()
        assert [task.answer.result(30).position for task in good] == [4, 4]
        with pytest.raises(GossamerError, match="vocabulary"):
            bad.answer.result(30)
        with pytest.raises(GossamerError, match="Position 99"):
            late.answer.result(30)
        with pytest.raises(ZeroDivisionError):
            raising.answer.result(30)
        assert held.worker.passes == 1


def test_a_pass_that_fails_is_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with Held() as held:
        # Passes its check, and is found out in the pass: the number is not finite.
        huge = gossamer.Set("blocks.0.hook_resid_post", 1e308)
        good, bad = held.analysis(target=7), held.analysis(target=7, edits=huge)
        held.go.set()
        with pytest.raises(GossamerError, match="finite"):
            bad.answer.result(30)
        found = good.answer.result(30)
    assert found.value == gossamer.analyze(held.model, IDS, 7).value  # in one thread at a time


def test_a_full_queue_is_429_and_jobs_have_their_own() -> None:
    with Held(queue=2, jobs=1) as held:
        first, _ = held.analysis(), held.analysis()
        with pytest.raises(Refusal) as refused:
            held.analysis()
        first.drop()
        held.analysis()  # in the place of what nobody waits for
        assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
        held.worker.submit(Task(lambda _: None, Level.JOB))
        with pytest.raises(Refusal):
            held.worker.submit(Task(lambda _: None, Level.JOB))


def test_what_is_dropped_is_not_computed() -> None:
    with Held() as held:
        ran = []
        task = held.worker.submit(Task(lambda _: ran.append(1)))
        task.drop()
        last = held.worker.submit(Task(lambda _: "last"))
        held.go.set()
        assert last.answer.result(30) == "last" and ran == []
        with pytest.raises(CancelledError):
            task.answer.result(1)


def test_requests_go_between_the_steps_of_a_job() -> None:
    worker, order, began = Worker(tiny_model("gpt2")), [], threading.Event()

    def job(turn: Any) -> str:
        for number in range(200):
            order.append(number)
            began.set()
            turn()
            time.sleep(0.005)
        return "job"

    def stream(turn: Any) -> str:
        order.append("stream")
        turn()
        return "stream"

    long = worker.submit(Task(job, Level.JOB))
    began.wait(10)
    quick = worker.submit(Task(lambda _: order.append("quick")))
    text = worker.submit(Task(stream, Level.STREAM))
    other = worker.submit(Task(lambda _: order.append("job"), Level.JOB))
    quick.answer.result(10)
    assert text.answer.result(10) == "stream" and not long.answer.done()
    long.drop()
    with pytest.raises(Cancelled):
        long.answer.result(10)
    other.answer.result(10)
    worker.close()
    assert order[-1] == "job" and len(order) < 200
    assert 0 < order.index("quick") < order.index("stream") < len(order) - 1
    with pytest.raises(Refusal) as refused:
        worker.submit(Task(lambda _: None))
    assert refused.value.status == 503


def test_an_unexpected_exception_is_an_answer() -> None:
    worker = Worker(tiny_model("gpt2"))

    def broken(_: Any) -> None:
        raise RuntimeError("boom")

    task = worker.submit(Task(broken))
    with pytest.raises(RuntimeError, match="boom"):
        task.answer.result(10)
    assert worker.submit(Task(lambda _: 5)).answer.result(10) == 5
    worker.close()
