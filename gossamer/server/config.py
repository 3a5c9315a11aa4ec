"""How a server is set up: where it listens, who may ask, and its limits."""

import re
from dataclasses import dataclass

from gossamer.errors import GossamerError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that nobody else can reach."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,200}")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where a server listens, who may ask, and its limits."""

    host: str = "127.0.0.1"
    """The address it binds."""

    token: str | None = None
    """What a request must show; None: nothing, which needs a loopback host."""

    allow_hosts: tuple[str, ...] = ()
    """Further names by which it may be asked, such as a proxy's."""

    queue: int = 64
    """Requests that may wait; one more is 429."""

    jobs: int = 16
    """Jobs that may wait."""

    group: int = 16
    """Analyses that share a pass."""

    linger: float = 0.002
    """Seconds for which an analysis that is alone waits for others."""

    timeout: float = 60.0
    """Seconds for which a request waits for its answer."""

    body_bytes: int = 4 << 20
    """The largest body."""

    memory: int = 1 << 30
    """Bytes that one computation may take."""

    keep: int = 16
    """Analyses whose traces are kept for more questions."""

    def __post_init__(self) -> None:
        for name in (self.host, *self.allow_hosts):
            if not _HOST.fullmatch(name):
                raise GossamerError(
                    f"{name!r} is no host; give a name or address such as 127.0.0.1, without a "
                    "port."
                )
        if self.host not in LOOPBACK and not self.token:
            raise GossamerError(
                f"A server at {self.host} can be reached from other machines, so it needs a token; "
                "give one, or bind 127.0.0.1."
            )
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise GossamerError(
                "A token has 8 to 200 letters, digits, - and _, so that it fits an address."
            )
        for name in ("queue", "jobs", "group", "timeout", "body_bytes", "memory", "keep"):
            if not getattr(self, name) > 0:
                raise GossamerError(f"{name} is above 0, got {getattr(self, name)}.")

    @property
    def hosts(self) -> frozenset[str]:
        """The names by which it may be asked."""
        every = {*LOOPBACK, *self.allow_hosts}
        if self.host not in ("0.0.0.0", "::"):
            every.add(self.host)
        return frozenset(name.lower() for name in every)
