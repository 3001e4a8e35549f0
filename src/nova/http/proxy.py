"""A reverse proxy to one HTTP server of the platform: an ASGI callable that streams both ways.

Bytes of path and query go on as they came, so nothing that was encoded can become part of a head. Nothing is buffered
beyond what the sockets hold; a client that leaves takes its request at the upstream with it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import httpx
import structlog
from starlette.types import Receive, Scope, Send
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from nova.errors import NovaError
from nova.http.body import ClientGone
from nova.http.cycle import wire_of
from nova.http.exchange import HeaderList, request_id_of
from nova.http.inner import REQUEST_ID_HEADER
from nova.security.assertion import ADMITTED, HEADER, Assertions
from nova.security.service import ServiceToken

log = structlog.get_logger(__name__)
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""Headers about one connection; those that Connection names come on top."""
CLIENT_HEADERS = frozenset(
    b"x-nova-" + name for name in (b"qualifier", b"timeout-s", b"sticky-key", b"invocation-type", b"log-type")
)
"""The headers of ours that a client may set and a plane behind the door reads. Scope headers are in the assertion."""
_NOT_ONWARD = frozenset({b"authorization", b"x-api-key", b"forwarded", b"via", b"x-real-ip"})
"""Credentials end at the door, and so does what a client says about its own way here."""
_FRAMING = frozenset({b"content-length", b"expect"})
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_NOT_DELIVERED = (httpx.ConnectError, httpx.ConnectTimeout)
_IDLE_S = 0.75
"""A free connection is not used again after this long; the upstream's own grace at its end is longer, so none is lost."""
_CONNECT_S = 2.0
_WRITE_S = 30.0
_RECEIVE_BUFFER = 256 << 10
"""of the kernel, for each connection to the upstream. One turn of the event loop may read all of it, wanted or not: this is what
a client who does not read his answer costs."""


class HttpProxy:
    """Sends requests to ``url`` (scheme, host and port), with the service token and who the door admitted.

    The door leaves the caller in the ASGI scope (:data:`nova.security.assertion.ADMITTED`); without one the request goes
    without identity. ``answer_timeout_s`` bounds the wait for the head of an answer and between two pieces of it. Raises
    ``dependency_unavailable`` while the upstream is down, ``timeout`` when it does not answer in time; both before
    anything of the answer was sent.
    """

    def __init__(
        self, url: str, token: ServiceToken, assertions: Assertions, *, name: str, answer_timeout_s: float = 60.0
    ) -> None:
        self._url = httpx.URL(url)
        self._token = token
        self._assertions = assertions
        self._name = name
        self._timeout = httpx.Timeout(answer_timeout_s, connect=_CONNECT_S, write=_WRITE_S, pool=None).as_dict()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE_S)
        buffer = (socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._transport = httpx.AsyncHTTPTransport(limits=limits, trust_env=False, socket_options=[buffer])

    async def start(self) -> None:
        """Connections are made when they are needed."""

    async def close(self) -> None:
        await self._transport.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        wire = wire_of(scope)
        if wire is None:
            await self._forward(scope, receive, send)
            return
        if wire.disconnected:
            raise ClientGone
        wire.cancel_with_client(True)
        try:
            await self._forward(scope, receive, send)
        finally:
            wire.cancel_with_client(False)

    async def get(self, path: str, *, timeout_s: float) -> httpx.Response:
        """A whole answer, for probes. Raises httpx.TransportError or TimeoutError; takes at most ``timeout_s``."""
        request = httpx.Request("GET", self._url.join(path), extensions={"timeout": self._timeout})
        async with asyncio.timeout(timeout_s):
            response = await self._transport.handle_async_request(request)
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(scope["headers"], receive)
        headers = self._headers(scope, body)
        response = await self._response(scope, headers, body)
        try:
            await self._relay(response, scope["method"], send)
        finally:
            await response.aclose()

    async def _response(self, scope: Scope, headers: HeaderList, body: "_Body") -> httpx.Response:
        """The answer's head. Sent a second time only when the first cannot have been taken, or it does no harm."""

        def again(exc: BaseException) -> bool:
            if body.touched:
                return False
            if isinstance(exc, _NOT_DELIVERED):
                return True
            broken = isinstance(exc, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError)
            return broken and scope["method"] in _IDEMPOTENT

        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(again), stop=stop_after_attempt(2), reraise=True
            ):
                with attempt:
                    request = httpx.Request(
                        scope["method"],
                        self._url,
                        headers=headers,
                        stream=body,
                        extensions={"target": target, "timeout": self._timeout},
                    )
                    return await self._send(request)
        except _NOT_DELIVERED:
            raise self._down("does not answer") from None
        except httpx.TimeoutException:
            raise NovaError("timeout", f"{self._name} did not answer in time") from None
        except httpx.TransportError as exc:
            log.warning("upstream failed", upstream=self._name, method=scope["method"], error=repr(exc))
            raise self._down("broke the connection off; whether it did what was asked is not known") from None
        raise AssertionError("the loop above returns or raises")

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._transport.handle_async_request(request)
        except AttributeError:
            # a connection that ended in the moment in which it was made has no socket for our option any more
            raise httpx.ConnectError("the connection ended as it began") from None

    async def _relay(self, response: httpx.Response, method: str, send: Send) -> None:
        """Hand the answer on piece by piece. One that breaks off is left incomplete, and so breaks off for the client."""
        status = response.status_code
        bodyless = method == "HEAD" or status in (204, 304)
        unwanted = (b"date", b"content-length") if status in (204, 304) else (b"date",)
        headers = [pair for pair in _end_to_end(response.headers.raw) if pair[0] not in unwanted]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if not bodyless:
            stream: Any = response.stream
            try:
                async for piece in stream:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except httpx.TransportError as exc:
                log.warning("answer of the upstream broke off", upstream=self._name, error=repr(exc))
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _headers(self, scope: Scope, body: "_Body") -> HeaderList:
        headers = [pair for pair in onward(_end_to_end(scope["headers"])) if pair[0] not in _FRAMING]
        headers += body.framing
        headers.append((b"authorization", self._token.bearer))
        headers.append((REQUEST_ID_HEADER, request_id_of(scope).encode()))
        headers.append((b"x-forwarded-proto", scope["scheme"].encode()))
        admitted = scope.get(ADMITTED)
        if admitted is not None:
            caller, place = admitted
            headers.append((HEADER, self._assertions.sign(caller, place).encode()))
            if caller.address is not None:
                headers.append((b"x-forwarded-for", caller.address.encode()))
        return headers

    def _down(self, what: str) -> NovaError:
        return NovaError("dependency_unavailable", f"{self._name} {what}", retry_after_s=1)


class _Body(httpx.AsyncByteStream):
    """The client's body as it comes. ``touched``: some of it may be gone, so it cannot be sent again."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> None:
        found: Mapping[bytes, bytes] = dict(headers)
        length = found.get(b"content-length")
        self._receive = receive
        self._empty = b"transfer-encoding" not in found and (length is None or length.strip(b"0") == b"")
        self.touched = False
        self.framing: HeaderList = []
        if length is not None:
            self.framing = [(b"content-length", length)]
        elif not self._empty:
            self.framing = [(b"transfer-encoding", b"chunked")]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = not self._empty
        while more:
            self.touched = True
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if piece := message.get("body", b""):
                yield piece
            more = message.get("more_body", False)


def onward(headers: Iterable[tuple[bytes, bytes]]) -> HeaderList:
    """What a plane behind the door gets to see of a client's headers; names are lower-case."""
    return [
        pair
        for pair in headers
        if pair[0] not in _NOT_ONWARD
        and not pair[0].startswith(b"x-forwarded-")
        and (not pair[0].startswith(b"x-nova-") or pair[0] in CLIENT_HEADERS)
    ]


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> HeaderList:
    """Lower-case names, without the headers that are about the connection."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        part.strip().lower() for name, value in pairs if name == b"connection" for part in value.split(b",")
    } | HOP_BY_HOP
    return [pair for pair in pairs if pair[0] not in named]
