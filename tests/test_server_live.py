"""A real server: killed during a job and started again, events resumed, clients that go away."""

import json
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from gossamer.server import answers
from tests.serving import Server, serving

pytestmark = pytest.mark.slow

SHORT = {"kind": "generate", "request": {"prompt": [5], "n_tokens": 3, "compare": False}}
SLOW = {
    "kind": "analyze_batch",
    "request": {"requests": [{"prompt": [5] * 400, "choice": {"top": 1}}] * 120},
}


def test_killed_during_a_job_and_started_again(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        edges = {"source": {"kind": "tokens"}, "target": {"kind": "logits"}, "prompt": [[5], [6]]}
        status, _, job = server.ask("POST", "/jobs", {"kind": "edges", "request": edges})
        assert status == 202
        answers.Job.model_validate(job)
        done = server.wait(job["id"], "done")
        result = server.ask("GET", f"/results/{done['result']}")[2]
        answers.Result.model_validate(result)
        assert len(result["answer"]["edges"]) == 2
        _, _, slow = server.ask("POST", "/jobs", SLOW | {"title": "long"})
        _, _, queued = server.ask("POST", "/jobs", SHORT)
        stream = server.events(f"/jobs/{slow['id']}/events")
        last = "0"
        for number, data in stream:
            last = number
            if data["state"] == "running" and data["done"] > 0:
                break
        stream.close()
        assert server.ask("POST", "/analyze", {"prompt": [5, 6]})[0] == 200  # between its steps
        server.kill(signal.SIGKILL)
    with serving(tmp_path) as server:
        jobs = {each["id"]: each for each in server.ask("GET", "/jobs")[2]["jobs"]}
        states = {job["id"]: "done", slow["id"]: "interrupted", queued["id"]: "interrupted"}
        assert {name: each["state"] for name, each in jobs.items()} == states
        assert jobs[slow["id"]]["title"] == "long"
        assert server.ask("GET", f"/results/{done['result']}")[2] == result
        # A reader that was there before goes on where it was, across the restart.
        resumed = list(server.events(f"/jobs/{slow['id']}/events", last))
        assert [data["state"] for _, data in resumed] == ["interrupted"]
        assert int(resumed[0][0]) > int(last)
        status, _, again = server.ask("POST", f"/jobs/{queued['id']}/rerun")
        assert (status, again["state"], again["attempt"]) == (202, "queued", 2)
        assert server.wait(queued["id"], "done")["attempt"] == 2
        files = sorted(path.name for path in tmp_path.rglob("*.partial"))
        assert files == []


def test_events_cancel_and_rerun(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        _, _, job = server.ask("POST", "/jobs", SLOW)
        path = f"/jobs/{job['id']}/events"
        seen, times = [], []
        for number, data in server.events(path):
            seen.append((number, data))
            times.append(time.monotonic())
            if data["done"] >= 48:
                break
        ids = [int(number) for number, _ in seen]
        assert ids == sorted(set(ids))
        assert len(times) / (times[-1] - times[0] + 0.1) <= 11
        assert server.ask("POST", f"/jobs/{job['id']}/rerun")[0] == 409
        status, _, _ = server.ask("DELETE", f"/jobs/{job['id']}")
        assert status == 200
        rest = list(server.events(path, seen[2][0]))
        assert [each for each in rest if each[0] == seen[3][0]] == [seen[3]]  # none twice or lost
        assert [int(number) for number, _ in rest] == sorted({int(number) for number, _ in rest})
        assert int(rest[0][0]) > int(seen[2][0]) and rest[-1][1]["state"] == "cancelled"
        assert server.ask("GET", f"/results/{job['id']}")[0] == 404
        bad = {"kind": "edges", "request": {**SHORT["request"]}}
        assert server.ask("POST", "/jobs", bad)[0] == 422
        request = {"prompt": [99999]}
        _, _, failing = server.ask("POST", "/jobs", {"kind": "generate", "request": request})
        failed = server.wait(failing["id"], "failed")
        assert failed["error"]["code"] == "prompt" and failed["error"]["field"] is None


def test_a_client_that_goes_away_stops_its_work(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        body = json.dumps({"prompt": [5], "n_tokens": 500, "compare": False})
        ask = "POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        line = socket.create_connection((server.host, server.port))
        line.sendall(f"{ask}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert b"event: token" in line.recv(100_000) + line.recv(100_000)
        assert server.ask("GET", "/health")[2]["running"] == 1
        line.close()
        idle(server)
        # One that waits in the queue is not begun: the thread is held by a long request.
        threads = [threading.Thread(target=analyses, args=(server,)) for _ in range(1)]
        for thread in threads:
            thread.start()
        while server.ask("GET", "/health")[2]["running"] == 0:
            time.sleep(0.01)
        body = json.dumps({"prompts": [5]})
        line = socket.create_connection((server.host, server.port))
        ask = ask.replace("/generate", "/run")
        line.sendall(f"{ask}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(0.1)
        line.close()
        idle(server)
        for thread in threads:
            thread.join()


def analyses(server: Server) -> None:
    """A request that takes a second or two."""
    requests = [{"prompt": [5] * 300, "choice": {"top": 1}}] * 32
    assert server.ask("POST", "/analyze_batch", {"requests": requests})[0] == 200


def idle(server: Server, seconds: float = 20) -> None:
    """Wait until nothing runs or waits."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        health = server.ask("GET", "/health")[2]
        if health["running"] == health["waiting"] == 0:
            return
        time.sleep(0.02)
    raise AssertionError(health)


def test_ctrl_c_is_quiet_and_leaves_the_workspace_whole(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        _, _, job = server.ask("POST", "/jobs", SLOW)
        server.wait(job["id"], "running")
        status, errors = server.kill(signal.SIGINT)
        assert (status, errors) == (0, "")
    with serving(tmp_path) as server:
        assert server.ask("GET", f"/jobs/{job['id']}")[2]["state"] == "interrupted"


def test_the_command_line_of_a_server(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0") as server:
        token = server.line.strip().partition("?token=")[2]
        assert len(token) >= 20
        server.host = "127.0.0.1"
        assert server.ask("GET", "/model")[0] == 401
        assert server.ask("GET", f"/model?token={token}")[0] == 303
        with pytest.raises(AssertionError, match="Another server"), serving(tmp_path):
            pass
        taken = ("--port", str(server.port), "--host", "0.0.0.0")
        with pytest.raises(AssertionError, match="cannot be listened"), serving(tmp_path, *taken):
            pass
