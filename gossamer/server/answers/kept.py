"""Latents, jobs and results."""

from typing import Any, Literal

from gossamer.server.answers.about import Error
from gossamer.server.answers.fields import Fields


class TokenScore(Fields):
    """A token and a number."""

    token: str
    token_id: int
    score: float | None


class LensSides(Fields):
    """What a unit speaks for, and what speaks for it."""

    up: list[TokenScore]
    down: list[TokenScore]
    read_up: list[TokenScore]
    read_down: list[TokenScore]


class Lens(LensSides):
    """The same, with what it cost."""

    seconds: float
    peak_bytes: int | None


class Latent(Fields):
    """One latent."""

    site: str
    index: int
    label: str
    own_label: str | None
    top_tokens: list[str]
    contexts: list[str]
    decoder_norm: float | None
    encoder_norm: float | None
    lens: LensSides | None
    dashboards: list[str]


class JobInfo(Fields):
    """Long work, and how far it is."""

    id: str
    kind: str
    title: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    done: int
    total: int | None
    phase: str
    attempt: int
    created: float
    started: float | None
    ended: float | None
    error: Error | None
    result: str | None


class Job(JobInfo):
    """The same, with what was asked."""

    request: dict[str, Any]


class Jobs(Fields):
    """All of them, newest first."""

    jobs: list[JobInfo]


class ResultInfo(Fields):
    """A saved answer, without itself."""

    id: str
    kind: str
    title: str
    created: float


class Result(ResultInfo):
    """A saved answer."""

    request: dict[str, Any] | None
    answer: dict[str, Any]


class Results(Fields):
    """All of them, newest first."""

    results: list[ResultInfo]
