"""One shape for everything that goes wrong: {code, message, field}."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gossamer.errors import (
    DiskError,
    FormatError,
    GossamerError,
    PromptError,
    ShapeError,
    SiteError,
)

_FIELD = "field: "
_LOG = logging.getLogger("gossamer.server")
_CODES: tuple[tuple[type[Exception], int, str], ...] = (
    (DiskError, 507, "disk"),
    (SiteError, 422, "site"),
    (ShapeError, 422, "shape"),
    (PromptError, 422, "prompt"),
    (FormatError, 422, "format"),
    (GossamerError, 422, "value"),
    (torch.OutOfMemoryError, 507, "memory"),
    (MemoryError, 507, "memory"),
)
_BY_STATUS = {400: "json", 404: "not_found", 405: "method"}


class Refusal(Exception):
    """An answer that is not 200, and is no mistake in a value."""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class Answer(Response):
    """JSON without NaN and Infinity."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes; numbers that are not finite are null."""
        return to_json(content)


def to_json(content: Any) -> bytes:
    """JSON that every reader takes: null for numbers that are not finite."""
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(content), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


@contextmanager
def field(path: str) -> Iterator[None]:
    """Says of a mistake made inside which field of the body it is in; the innermost counts."""
    try:
        yield
    except GossamerError as mistake:
        if field_of(mistake) is None:
            mistake.add_note(_FIELD + path)
        raise


def field_of(mistake: Exception) -> str | None:
    """The field that a mistake is in, where that is known."""
    notes = getattr(mistake, "__notes__", [])
    return next((n.removeprefix(_FIELD) for n in notes if n.startswith(_FIELD)), None)


def renamed(mistake: GossamerError, path: str) -> None:
    """Say that a mistake is in another field."""
    others = [n for n in getattr(mistake, "__notes__", []) if not n.startswith(_FIELD)]
    mistake.__notes__ = [*others, _FIELD + path]


def described(problem: BaseException) -> tuple[int, dict[str, Any]]:
    """The status and the body that an exception is answered with."""
    if isinstance(problem, Refusal):
        return problem.status, _body(problem.code, str(problem))
    for kind, status, code in _CODES:
        if isinstance(problem, kind):
            message = str(problem)
            if code == "memory":
                message = "The computation took more memory than there is; ask for less at once."
            return status, _body(code, message, field_of(problem))
    if isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem):
        return described(MemoryError())
    _LOG.error("A request failed.", exc_info=problem)
    return described(unexpected())


def unexpected() -> Refusal:
    """What is said of a mistake that is the server's own; its log says more."""
    return Refusal(
        500, "internal", "The server made a mistake; its log says which. Others are not affected."
    )


def _body(code: str, message: str, path: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "field": path}


def refusal(status: int, code: str, message: str, **headers: str) -> Answer:
    """An answer in the one shape."""
    return Answer(_body(code, message), status, headers)


def install(app: FastAPI) -> None:
    """Answer every exception in the one shape."""

    async def failed(_: Request, problem: Exception) -> Response:
        status, body = described(problem)
        return Answer(body, status, getattr(problem, "headers", None))

    async def invalid(_: Request, problem: Exception) -> Response:
        assert isinstance(problem, RequestValidationError)
        body = invalid_body(problem.errors(), problem.body)
        return Answer(body, 400 if body["code"] == "json" else 422)

    async def other(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        code = _BY_STATUS.get(problem.status_code, "value")
        message = {
            400: "The body cannot be read as JSON; send an object as /openapi.json says.",
            404: f"There is no {request.url.path} here; /openapi.json lists what there is.",
            405: f"{request.url.path} does not take {request.method}; /openapi.json lists what "
            "there is.",
        }.get(problem.status_code, str(problem.detail))
        return Answer(_body(code, message), problem.status_code, dict(problem.headers or {}))

    for kind in (Refusal, GossamerError, MemoryError, torch.OutOfMemoryError, Exception):
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def invalid_body(problems: Sequence[Any], body: Any) -> dict[str, Any]:
    """The deepest problem of a body that is not what the route takes, in words."""
    if isinstance(body, bytes):
        return _body("json", "The body has another type; send it as application/json.")
    if any(problem["type"] == "json_invalid" for problem in problems):
        return _body("json", "The body is no JSON; send an object as /openapi.json says.")
    found = [(_place(problem, body), problem) for problem in problems]
    deepest = max(len(path) for (path, _), _ in found)
    at = next(path for (path, _), _ in found if len(path) == deepest)
    same = [(got, problem) for (path, got), problem in found if path == at]
    got = same[0][0]
    sayings = [problem["msg"] for _, problem in same if _concerns(problem["type"], got)]
    sayings = list(dict.fromkeys(sayings or [problem["msg"] for _, problem in same]))
    said = "; or ".join(text[:1].lower() + text[1:] for text in sayings[:6])
    said = said.replace("a valid dictionary or object to extract fields from", "an object")
    name = ".".join(map(str, at))[:200]
    missing = same[0][1]["type"] in ("missing", "extra_forbidden")
    shown = "" if missing else f", got {_short(got)}"
    return _body("validation", f"{name or 'The body'}: {said}{shown}.", name or None)


def _place(problem: Any, body: Any) -> tuple[tuple[str | int, ...], Any]:
    """Where in the body a problem is, and what is there; the names of alternatives that pydantic
    puts between are left out."""
    where, *steps = problem["loc"]
    if where != "body":
        return tuple(steps), problem.get("input")
    path: list[str | int] = []
    for step in steps:
        inside = isinstance(body, dict) and step in body
        if inside or (isinstance(body, list) and isinstance(step, int) and step < len(body)):
            path.append(step)
            body = body[step]
    if problem["type"] == "missing":
        return (*path, steps[-1]) if steps else (), None
    return tuple(path), body


def _concerns(kind: str, got: Any) -> bool:
    """Whether a problem is with what was given, rather than with another kind of value."""
    wrong_type = kind.endswith("_type") or kind == "literal_error"
    return not wrong_type if isinstance(got, dict | list) else not kind.startswith("union_tag")


def _short(got: Any) -> str:
    try:
        text = json.dumps(_finite(got), ensure_ascii=True, default=str)
    except RecursionError:
        text = "something nested too deep to show"
    return text if len(text) <= 60 else f"{text[:57]}..."
