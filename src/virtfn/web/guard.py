"""Who may ask: a guard before everything else, as ASGI middleware.

    host      names this server by a loopback name, or a page of a stranger's name that leads here could ask
    origin    is this server's own, where a browser names one
    body      has 64 KiB at most, and comes within ten seconds
    token     `Authorization: Bearer TOKEN`, compared in constant time; pages that hold nothing of the lab need none

Who is refused gets JSON of the same shape as from the control socket.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Collection, Iterator

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MAX_BODY", "Document", "Guard", "refusal"]

MAX_BODY = 1 << 16
_BODY_S = 10.0


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, errno_name: str) -> None:
        super().__init__(message)
        self.status, self.errno_name = status, errno_name


class Document(JSONResponse):
    """JSON in ASCII: half of a character, which UTF-8 has not, is told as JSON has it."""

    def render(self, content: object) -> bytes:
        """Write it."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def refusal(status: int, message: str, errno_name: str) -> Document:
    """Make the answer to who is refused."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return Document({"error": {"message": message, "errno": errno_name}}, status, headers)


class Guard:
    """Lets through who may ask. port: where it listens; free: paths that need no token."""

    def __init__(self, app: ASGIApp, *, token: str, port: int, free: Collection[str] = ()) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = set(_names(port))
        self._origins = {f"http://{host}" for host in self._hosts}
        self._free = frozenset(free)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a request, and hand it on or answer it."""
        if scope["type"] != "http":
            return
        try:
            self._judge(scope)
            body = await _body(scope, receive)
        except _RefusedError as error:
            await refusal(error.status, str(error), error.errno_name)(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), _with_headers(send))

    def _judge(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if headers.getlist("host") == [] or not self._hosts.issuperset(headers.getlist("host")):
            raise _RefusedError(421, "this server answers to loopback names alone", "EACCES")
        if not self._origins.issuperset(headers.getlist("origin")):
            raise _RefusedError(403, "pages of other origins may not ask", "EACCES")
        if scope["path"] in self._free and scope["method"] in ("GET", "HEAD"):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token)
        if scheme.lower() != "bearer" or not right:
            raise _RefusedError(401, "a token is needed: Authorization: Bearer TOKEN", "EACCES")


def _names(port: int) -> Iterator[str]:
    for name in ("127.0.0.1", "localhost", "[::1]"):
        yield f"{name}:{port}"
        if port == 80:
            yield name


async def _body(scope: Scope, receive: Receive) -> bytes:
    """Read the body. Raises _RefusedError if it is too long, or does not come."""
    stated = Headers(scope=scope).get("content-length", "0")
    if not stated.isdecimal() or len(stated) > 9 or int(stated) > MAX_BODY:
        raise _RefusedError(413, f"a body has up to {MAX_BODY} bytes", "EMSGSIZE")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise _RefusedError(413, f"a body has up to {MAX_BODY} bytes", "EMSGSIZE")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise _RefusedError(408, f"the body has not come within {_BODY_S:g} s", "ETIMEDOUT") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body out once; after that, what comes."""
    left = [body]

    async def take() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return take


def _with_headers(send: Send) -> Send:
    """Let no answer be kept, framed, or taken for another kind."""
    added = [
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"no-referrer"),
    ]

    async def give(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return give
