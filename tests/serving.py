"""A server as its own process, on a free port of this machine, for tests that kill it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any


class Server:
    """A running `gossamer serve`."""

    def __init__(self, workspace: Path, *options: str) -> None:
        command = [sys.executable, "-m", "gossamer", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--workspace", str(workspace), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        match = re.search(r"http://([^/:]+):(\d+)", self.line)
        assert match is not None, self.line + self.process.communicate()[1]
        self.host, self.port = match[1], int(match[2])

    def ask(
        self, method: str, path: str, body: Any = None, timeout: float = 60
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and answer."""
        connection = HTTPConnection(self.host, self.port, timeout=timeout)
        headers = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, found, json.loads(text) if text else None

    def events(self, path: str, last: str | None = None) -> Iterator[tuple[str, Any]]:
        """(id, data) of each event of a stream, as they come."""
        connection = HTTPConnection(self.host, self.port, timeout=60)
        connection.request("GET", path, headers={} if last is None else {"Last-Event-ID": last})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        data: Any = None
        try:
            for line in response:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "data":
                    data = json.loads(value)
                elif name == "id":
                    yield value, data
        finally:
            connection.close()

    def wait(self, job: str, *states: str, seconds: float = 60) -> dict[str, Any]:
        """The job, once it is in one of these states."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.ask("GET", f"/jobs/{job}")[2]
            if found["state"] in states:
                return found
            time.sleep(0.05)
        raise AssertionError(found)

    def kill(self, number: int = signal.SIGKILL) -> tuple[int, str]:
        """End it; its status and what it wrote on standard error."""
        self.process.send_signal(number)
        errors = self.process.communicate(timeout=30)[1]
        return self.process.returncode, errors


@contextmanager
def serving(workspace: Path, *options: str) -> Iterator[Server]:
    """A server that is gone afterwards."""
    server = Server(workspace, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
