"""One request and its answer on the wire. The head waits for the first piece of the body, so that an answer is one write."""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

log = structlog.get_logger(__name__)
WIRE = "nova.wire"
"""Key of the ASGI scope under which an application finds the :class:`Cycle` that serves it (absent in other servers)."""


class Cycle(RequestResponseCycle):
    """uvicorn's, with :meth:`respond` as a short cut and a way to be cancelled with the client."""

    def __init__(self, *, scope: Any, **rest: Any) -> None:
        super().__init__(scope=scope, **rest)
        scope[WIRE] = self
        self._head: list[bytes] | None = None
        self._running: tuple[set[asyncio.Task[Any]], asyncio.Task[Any]] | None = None
        self._leaves_with_client = False
        self.endless = False
        self.lingers = False

    def start(self, loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[Any]], app: Any) -> None:
        """Run the application in a task of its own, which is in ``tasks`` until it has answered."""
        task = loop.create_task(self.run_asgi(app))
        tasks.add(task)
        self._running = (tasks, task)

    async def run_asgi(self, app: Any) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            self.transport.close()
        except Exception:
            log.exception("answer broke off", status_sent=self.response_started)
            self.transport.close()
        else:
            if not self.response_complete and not self.disconnected:
                log.error("answer never completed", status_sent=self.response_started)
                self.transport.close()
        finally:
            self.on_response = _nothing  # these two would keep request and connection in a reference cycle
            scope: dict[str, Any] = self.scope  # type: ignore[assignment]
            del scope[WIRE]
            if self._running is not None:
                tasks, task = self._running
                tasks.discard(task)
                self._running = None

    def cancel_with_client(self, wanted: bool) -> None:
        """From now on (or no longer) cancel the application if the client goes away before the answer is complete."""
        self._leaves_with_client = wanted

    def left(self) -> None:
        """The client is gone."""
        if self._leaves_with_client and self._running is not None:
            self._leaves_with_client = False
            self._running[1].cancel()

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """The whole answer at once: ``headers`` are complete lines, each with its CRLF, free of line breaks inside.

        Adds Content-Length, Date and, where it applies, Connection.
        """
        if self.disconnected:
            return
        self.response_started = True
        parts = [STATUS_LINE[status]]
        for name, value in self.default_headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (headers, b"content-length: %d\r\n" % len(body), *self._connection_line(), b"\r\n")
        if self.scope["method"] != "HEAD":
            parts.append(body)
        self.transport.write(b"".join(parts))
        self._complete()

    async def send(self, message: Any) -> None:
        """ASGI's send."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"http.response.start was expected, not {message['type']}")
            self.response_started = True
            self._head = self._begin(message["status"], message.get("headers", []))
        elif not self.response_complete:
            if message["type"] != "http.response.body":
                raise RuntimeError(f"http.response.body was expected, not {message['type']}")
            self._body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} after the answer was complete")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        parts = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError(f"not a valid header: {name!r}")
            name = name.lower()
            if name == b"connection":
                continue  # ours to decide
            if name == b"transfer-encoding":
                raise RuntimeError("transfer-encoding is the server's own")
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"content-type":
                self.endless = value.startswith(b"text/event-stream")
            parts += (name, b": ", value, b"\r\n")
        parts += self._connection_line()
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        return parts

    def _connection_line(self) -> list[bytes]:
        if self.more_body:  # what is still to come of the request must not be taken for the next one
            self.keep_alive = False
            self.lingers = True
        return [] if self.keep_alive else [b"connection: close\r\n"]

    def _body(self, body: bytes, more: bool) -> None:
        parts, self._head = self._head or [], None
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the body is longer than its Content-Length")
            parts.append(body)
        self.transport.write(b"".join(parts))
        if not more:
            if self.expected_content_length != 0:
                raise RuntimeError("the body is shorter than its Content-Length")
            self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        self._leaves_with_client = False
        self.message_event.set()
        if not self.keep_alive and not self.lingers:
            self.transport.close()
        self.on_response()


def _nothing() -> None:
    """The answer is complete; nobody needs to be told."""


def wire_of(scope: Scope) -> Cycle | None:
    """The connection under a request, when our own server serves it."""
    wire: Cycle | None = scope.get(WIRE)
    return wire
