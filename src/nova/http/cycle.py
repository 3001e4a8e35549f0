"""One request and its answer on the wire. The head waits for the first piece of the body, so that an answer is one write."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import structlog
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE
from uvicorn.server import ServerState

log = structlog.get_logger(__name__)
WIRE = "nova.wire"
"""Key of the ASGI scope under which an application finds the :class:`Cycle` that serves it (absent in other servers)."""


class Head:
    """A request's head, parsed. All requests of a connection that repeat it byte for byte share it: nobody changes it.

    ``note`` is the application's own: what it worked out from the head alone.
    """

    __slots__ = ("headers", "keep_alive", "method", "note", "path", "query", "version")

    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        version: str,
        headers: list[tuple[bytes, bytes]],
        *,
        keep_alive: bool,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.note: Any = None


class Connection(Protocol):
    """What a request needs of the connection it came on."""

    transport: asyncio.Transport
    flow: FlowControl
    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[Any]]
    server_state: ServerState
    server: tuple[str, int | None] | None
    client: tuple[str, int] | None
    scheme: Any

    def on_response_complete(self) -> None: ...


@runtime_checkable
class Direct(Protocol):
    """An application that can answer some requests from callbacks, without a task."""

    def direct(self, cycle: "Cycle") -> bool:
        """Take a request whose body is complete, or return False having done nothing: then it is served as usual.

        Called while the connection's bytes are read, so it must not raise and not answer before it returns. Whoever takes
        it calls :meth:`Cycle.hold` and later :meth:`Cycle.respond`, or :meth:`Cycle.start` with what goes on in a task.
        """
        ...


class Cycle:
    """A request, its answer, and a way to be cancelled with the client."""

    response_started = False
    response_complete = False
    disconnected = False
    more_body = True
    waiting_for_100_continue = False
    endless = False
    """the answer is a stream without an end"""
    finite = False
    """the application says that its stream does have an end, whatever its media type"""
    lingers = False
    """the connection is closed late, because the client still sends"""
    held = False
    """the answer comes from a callback"""
    chunked_encoding: bool | None = None
    until_close = False
    """the answer ends with the connection: its client knows no chunks"""
    expected_content_length = 0
    body: bytearray | bytes = b""
    scope: dict[str, Any]
    _first: list[bytes] | None = None
    _task: "asyncio.Task[None] | None" = None
    _cancel: Callable[[], object] | None = None
    _event: asyncio.Event | None = None
    _news = False

    def __init__(self, connection: Connection, head: Head) -> None:
        self.head = head
        self.keep_alive = head.keep_alive
        self.transport = connection.transport
        self._connection: Connection | None = connection

    @property
    def client(self) -> tuple[str, int] | None:
        """The socket's other end."""
        return None if self._connection is None else self._connection.client

    def start(self, app: Any) -> None:
        """Run the application in a task of its own, which is known to the server until it has answered."""
        if (connection := self._connection) is None:
            return
        self.held = False
        self._cancel = None
        head = self.head
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "server": connection.server,
            "client": connection.client,
            "scheme": connection.scheme,
            "method": head.method.decode("ascii"),
            "root_path": "",
            "path": head.path.decode("ascii"),
            "raw_path": head.path,
            "query_string": head.query,
            "headers": list(head.headers),
            "state": {},
            WIRE: self,
        }
        self._task = connection.loop.create_task(self._run(app, connection.tasks))
        connection.tasks.add(self._task)

    async def _run(self, app: Any, tasks: "set[asyncio.Task[Any]]") -> None:
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
            self._connection = None  # these two would keep request and connection in a reference cycle
            del self.scope[WIRE]
            if self._task is not None:
                tasks.discard(self._task)
                self._task = None

    def hold(self, cancel: Callable[[], None]) -> None:
        """The answer will come from a callback. ``cancel`` is called once if it is no longer wanted: the client has left
        (:attr:`disconnected`), or the server ends and somebody has to tell the client."""
        self.held = True
        self._cancel = cancel

    async def ended(self) -> None:
        """Return when a held answer is complete; cancelled, it is called off."""
        self._event = self._event or asyncio.Event()
        try:
            while not self.response_complete and not self.disconnected:
                await self._event.wait()
                self._event.clear()
        except asyncio.CancelledError:
            self.left()
            if self._task is not None:
                await self._task
            raise

    def cancel_with_client(self, wanted: bool) -> None:
        """From now on (or no longer) cancel the application if the client goes away before the answer is complete."""
        self._cancel = self._task.cancel if wanted and self._task is not None else None

    def left(self) -> None:
        """The client is gone, or the server will not wait any longer."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def cut(self) -> None:
        """The rest of the answer will not come, and its client shall notice: what was sent goes out, its end does not."""
        self._cancel = None
        self.disconnected = True
        self.transport.close()

    def disconnect(self) -> None:
        """Nothing more can be sent: whoever reads or works for the client is told."""
        self.disconnected = True
        self.wake()
        self.left()

    def wake(self) -> None:
        """Something came, or the end: :meth:`receive` has an answer."""
        self._news = True
        if self._event is not None:
            self._event.set()

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if self._connection is not None:
                self._connection.flow.resume_reading()
            if not self._news:
                self._event = self._event or asyncio.Event()
                await self._event.wait()
            self._news = False
            if self._event is not None:
                self._event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    def add_body(self, piece: bytes) -> int:
        """A piece of the body came; the bytes that nobody has read yet."""
        if not self.body:
            self.body = piece
        elif isinstance(self.body, bytearray):
            self.body += piece
        else:
            self.body = bytearray(self.body) + piece
        self.wake()
        return len(self.body)

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """The whole answer at once: ``headers`` are complete lines, each with its CRLF, free of line breaks inside.

        Adds Content-Length, Date and, where it applies, Connection.
        """
        if self.disconnected or (connection := self._connection) is None:
            return
        self.response_started = True
        line = b"" if self.keep_alive and not self.more_body else self._connection_line()
        self.transport.write(
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b"
            % (
                STATUS_LINE[status],
                _always(connection.server_state.default_headers),
                headers,
                len(body),
                line,
                body if self.head.method != b"HEAD" else b"",
            )
        )
        self._complete()

    async def send(self, message: Any) -> None:
        """ASGI's send."""
        connection = self._connection
        if connection is None and not self.disconnected:
            raise RuntimeError(f"{message['type']} after the answer was complete")
        if connection is not None and connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected or connection is None:
            return
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"http.response.start was expected, not {message['type']}")
            self.response_started = True
            self._first = self._begin(connection, message["status"], message.get("headers", []))
        else:
            if message["type"] != "http.response.body":
                raise RuntimeError(f"http.response.body was expected, not {message['type']}")
            self._body(message.get("body", b""), message.get("more_body", False))

    def _begin(self, connection: Connection, status: int, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        parts = [STATUS_LINE[status]]
        for name, value in (*connection.server_state.default_headers, *headers):
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
                self.endless = not self.finite and value.startswith(b"text/event-stream")
            parts += (name, b": ", value, b"\r\n")
        parts.append(self._connection_line())
        if self.chunked_encoding is None and self.head.method != b"HEAD" and status not in (204, 304):
            self.until_close = self.head.version == "1.0"
            self.chunked_encoding = not self.until_close
            if self.chunked_encoding:
                parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        return parts

    def _connection_line(self) -> bytes:
        if self.more_body:  # what is still to come of the request must not be taken for the next one
            self.keep_alive = False
            self.lingers = True
        return b"" if self.keep_alive else b"connection: close\r\n"

    def _body(self, body: bytes, more: bool) -> None:
        parts, self._first = self._first or [], None
        if self.head.method == b"HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
        elif self.until_close:
            parts.append(body)
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
        self._cancel = None
        self.wake()
        if not self.keep_alive and not self.lingers:
            self.transport.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.on_response_complete()


_written: tuple[object, bytes] = None, b""


def _always(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The lines of every answer. The server makes a new list when the date has changed."""
    global _written
    if _written[0] is not headers:
        _written = headers, b"".join(b"%b: %b\r\n" % pair for pair in headers)
    return _written[1]


def wire_of(scope: Scope) -> Cycle | None:
    """The connection under a request, when our own server serves it."""
    wire: Cycle | None = scope.get(WIRE)
    return wire
