"""Who may ask: Host and Origin, a token, and how large a body may be. Before everything else."""

import asyncio
import hmac
import re
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gossamer.server.config import ServerConfig
from gossamer.server.faults import Answer, refusal

COOKIE = "gossamer_token"
BODY_SECONDS = 30.0
"""For which a body may take to arrive."""

POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?")


class Gate:
    """ASGI middleware; lets a request through, or answers it in the one shape of errors."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app = app
        self.config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there are none here
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        refused = self._foreign(headers) or self._unknown(scope, headers)
        if refused is None:
            try:
                body = await asyncio.wait_for(self._body(headers, receive), BODY_SECONDS)
            except TimeoutError:
                body = refusal(408, "slow", "The body did not arrive in time; send it again.")
            if body is None:  # the client has gone
                return
            if isinstance(body, bytes):
                await self.app(scope, _again(body, receive), sent)
                return
            refused = body
        await refused(scope, receive, sent)

    def _foreign(self, headers: Headers) -> Answer | None:
        """Refuse names that are not this server's, and pages of other servers."""
        hosts = headers.getlist("host")
        name = _name(hosts[0]) if len(hosts) == 1 else None
        if name is None or name not in self.config.hosts:
            return refusal(
                400,
                "host",
                "This server is not called so; ask it as one of "
                f"{', '.join(sorted(self.config.hosts))}, or start it with --allow-host.",
            )
        for origin in headers.getlist("origin"):
            place = urlsplit(origin).netloc.lower() if origin.count("://") == 1 else ""
            known = _name(place) in {each.lower() for each in self.config.allow_hosts}
            if not place or not (place == hosts[0].lower() or known):
                return refusal(
                    403, "origin", "A page of another server may not ask this one; open its own."
                )
        return None

    def _unknown(self, scope: Scope, headers: Headers) -> Answer | None:
        """Refuse who does not know the token; one in the address becomes a cookie."""
        token = self.config.token
        if token is None or scope["path"] == "/health":
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        for name, value in query:
            if name == "token" and scope["method"] == "GET" and _same(value, token):
                rest = urlencode([pair for pair in query if pair[0] != "token"])
                where = "./" + scope["path"].rsplit("/", 1)[-1] + (f"?{rest}" if rest else "")
                cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
                return Answer(None, 303, {"Location": where, "Set-Cookie": cookie})
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if (kind.lower() == "bearer" and _same(shown.strip(), token)) or _same(
            _cookie(headers), token
        ):
            return None
        return refusal(
            401,
            "token",
            "This server wants its token; send it as Authorization: Bearer, or open the address "
            "that it printed.",
            **{"WWW-Authenticate": "Bearer"},
        )

    async def _body(self, headers: Headers, receive: Receive) -> bytes | Answer | None:
        """The whole body, or why it is not taken; None when the client has gone."""
        limit = self.config.body_bytes
        large = refusal(
            413, "too_large", f"The body is larger than {limit} bytes, which is the limit."
        )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > limit:
            return large
        parts = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts += message.get("body", b"")
            if len(parts) > limit:
                return large
            if not message.get("more_body", False):
                return bytes(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, and then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _name(place: str) -> str | None:
    """The name or address in a Host."""
    match = _HOST.fullmatch(place.lower())
    return None if match is None else match["six"] or match["name"]


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _same(shown: str, token: str) -> bool:
    """Equal, in a time that does not tell how much of it is."""
    return hmac.compare_digest(shown.encode(), token.encode())
