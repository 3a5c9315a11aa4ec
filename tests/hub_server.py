"""A hub on this machine: the endpoints that reading public repositories takes, over real HTTP."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What is served, and what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        """owner/repository/files."""
        self.asked: list[tuple[str, str]] = []
        """(method, path) of each request."""
        self.url = ""

    def downloads(self) -> list[str]:
        """Files whose contents were fetched."""
        return [
            p.split("/resolve/main/")[1] for m, p in self.asked if m == "GET" and "/resolve/" in p
        ]


class _Server(ThreadingHTTPServer):
    """A server that knows its hub."""

    hub: Hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.server.hub.asked.append((self.command, path))
        words, root = path.strip("/").split("/"), self.server.hub.root
        if words[:2] == ["api", "models"] and words[4:6] == ["revision", "main"]:
            repository = root / words[2] / words[3]
            files = (p for p in sorted(repository.rglob("*")) if p.is_file())
            names = [{"rfilename": p.relative_to(repository).as_posix()} for p in files]
            about = {"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": names}
            return self.answer(json.dumps(about).encode() if repository.is_dir() else None)
        file = root.joinpath(*words[:2], *words[4:])
        there = words[2:3] == ["resolve"] and file.is_file()
        return self.answer(file.read_bytes() if there else None)

    def answer(self, body: bytes | None) -> None:
        """The bytes asked for, or that there is no such repository."""
        status, found = (404, b"{}") if body is None else (200, body)
        headers = {"ETag": f'"{hashlib.sha256(found).hexdigest()}"', "X-Repo-Commit": COMMIT}
        asked = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        if body is None:
            headers = {"X-Error-Code": "RepoNotFound"}
        elif asked[0]:
            first, last = int(asked[0]), int(asked[-1] or len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            status, found = 206, body[first : last + 1]
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(found))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(found)


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """A hub of the repositories in a directory, on a free port of this machine."""
    hub = Hub(root)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str | None, cache: Path) -> None:
    """The hub's client to that address, or to none (offline); what HF_ENDPOINT, HF_HUB_OFFLINE and
    HF_HOME would have said, had they been set before the client was imported."""
    from huggingface_hub import constants

    address = url or "http://127.0.0.1:9"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", url is None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
