"""HTTP/1.1 on one connection: uvicorn's httptools protocol with limits, time-outs, and one write per answer.

Beyond what uvicorn does: a head or URL that is too long, a client that sends too slowly and a connection too many are refused
with a problem document; an answer given before the whole body came closes the connection without losing the answer; requests
that offer an upgrade (as Java's and curl's HTTP/2 clients do) are served as what they are; a task can ask to be cancelled
when its client leaves; and a request whose head is byte for byte the one before it on its connection is not parsed again.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from nova.api import problem
from nova.errors import CODES, NovaError
from nova.http.cycle import Cycle, Direct, Head
from nova.ids import new_id

log = structlog.get_logger(__name__)
_HIGH_WATER = 64 * 1024
_LINGER_S = 2.0
_LINGER_BYTES = 16 << 20
_MIN_PROGRESS = 1024
"""A body must grow by this many bytes per ``header_timeout``."""
_KNOWN_BYTES = 4096
"""A longer head is parsed each time: what a connection remembers must not make many connections expensive."""
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """``head_bytes`` counts the request line and the headers; times in seconds."""

    max_connections: int = 10_000
    head_bytes: int = 64 * 1024
    url_bytes: int = 16 * 1024
    header_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    stall_timeout_s: float = 30.0
    """A client that reads nothing of a waiting answer for so long is cut off."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    cycle: Any
    pipeline: Any

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        direct: Callable[[Cycle], bool] | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._direct = direct
        self._unstarted: Cycle | None = None
        self._running: Cycle | None = None
        self._ending = False
        self._known_bytes = b""
        self._known_size = 0
        self._known_head: Head | None = None
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._progress = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._idle_since: float | None = None
        self._lingering = 0
        self._refusal: NovaError | None = None

    # --- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(NovaError("capacity", "too many connections", retry_after_s=1))
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._end_stall()
        self.connections.discard(self)
        for cycle in {self.cycle, self._running} - {None}:
            if not cycle.response_complete:
                cycle.disconnect()
        self._running = None
        self._known_head = None
        self.flow.resume_writing()
        if exc is None:
            self.transport.close()
        self._unset_keepalive_if_required()
        self.parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._idle_since = None
        if self._lingering:
            self._lingering += len(data)
            if self._lingering > _LINGER_BYTES:
                self.transport.close()
            return
        if self.transport.is_closing():
            return
        if len(data) == self._known_size and self._repeats(data):
            return
        whole = self._in_head and not self._head_bytes
        self._progress += len(data)
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._refusal or NovaError("validation_failed", "this is not an HTTP/1.1 request"))
            return
        if (cycle := self._unstarted) is not None:
            self._unstarted = None
            if whole and self.cycle is cycle:
                self._note(data, cycle)
            self._start(cycle)
        if self._in_head and self._head_bytes > self._limits.head_bytes + self._limits.url_bytes:
            long_url = len(self.url) > self._limits.url_bytes if getattr(self, "url", None) else False
            self._refuse(_url_too_long(self._limits) if long_url else _head_too_long(self._limits))
        elif self._timer is None:
            if self._in_body or (self._in_head and self._head_bytes):
                self._arm()
        elif not self._in_body and not (self._in_head and self._head_bytes):
            self._disarm()

    def _note(self, data: bytes, cycle: Cycle) -> None:
        """Remember the head of a request that came alone and whole, with a plain body of a length that the head says."""
        size = data.find(b"\r\n\r\n") + 4
        if cycle.more_body or len(data) != size + len(cycle.body) or not cycle.keep_alive or size > _KNOWN_BYTES:
            return
        if self.expect_100_continue or any(name == b"transfer-encoding" for name, _ in cycle.head.headers):
            return
        self._known_bytes, self._known_size, self._known_head = data[:size], len(data), cycle.head

    def _repeats(self, data: bytes) -> bool:
        """Serve a request whose head is the one that was parsed last: parsing it again would say the same."""
        head = self._known_head
        if (
            head is None
            or self._head_bytes
            or not self._in_head
            or self._timer is not None
            or not self.cycle.response_complete
            or not data.startswith(self._known_bytes)
        ):
            return False
        cycle = self.cycle = Cycle(self, head)
        cycle.body = data[len(self._known_bytes) :]
        cycle.more_body = False
        cycle._news = True
        self._start(cycle)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_stall()
        self._watch_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_stall()

    def shutdown(self) -> None:
        """The server ends: what was begun is finished, every further answer is the last one here and says so, endless ones
        are cut. The connection stays for a request that may be on its way; :meth:`end_if_idle` closes it. Idempotent."""
        if self._ending:
            return
        self._ending = True
        self._known_head = None  # a request that repeats would be kept alive like the one before
        cycle: Cycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return
        if cycle.endless:
            self.transport.close()
            return
        if not cycle.response_started:
            cycle.keep_alive = False
        running = self._running
        if running is not None and running.held and not running.response_complete:
            task = self.loop.create_task(running.ended())  # the server waits for tasks
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def end_if_idle(self) -> None:
        """Close unless a request is in work; a head that is not complete by now gets no answer."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self.pipeline and not self._lingering:
            self.transport.close()

    # --- parser callbacks

    def on_message_begin(self) -> None:
        self._in_head = True
        self._in_body = False
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self._limits.url_bytes:
            self._refusal = _url_too_long(self._limits)
            raise self._refusal

    def on_headers_complete(self) -> None:
        limit = self._limits.head_bytes
        if self._head_bytes > limit and sum(len(name) + len(value) + 4 for name, value in self.headers) > limit:
            self._refusal = _head_too_long(self._limits)
            raise self._refusal
        self._in_head = False
        self._head_bytes = 0
        self._in_body = True
        parser = self.parser
        if parser.should_upgrade():
            return  # served after the offer is taken out, see _without_upgrade
        version = parser.get_http_version()
        parsed = httptools.parse_url(self.url)
        keep_alive = version != "1.0" and not self._ending and parser.should_keep_alive()
        head = Head(parser.get_method(), parsed.path, parsed.query or b"", version, self.headers, keep_alive=keep_alive)
        cycle = Cycle(self, head)
        cycle.waiting_for_100_continue = self.expect_100_continue
        busy = self.cycle is not None and not self.cycle.response_complete
        self.cycle = cycle
        if busy:
            self.flow.pause_reading()
            self.pipeline.appendleft(cycle)
        else:
            self._unstarted = cycle

    def _start(self, cycle: Cycle) -> None:
        """Begin to answer: at once if the application can, else in a task."""
        self._running = cycle
        if self._direct is None or self._ending or cycle.more_body or not self._direct(cycle):
            cycle.start(self.app)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if not cycle.response_complete and cycle.add_body(body) > _HIGH_WATER:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._in_head = True
        if self.parser.should_upgrade():
            return
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.wake()

    def on_response_complete(self) -> None:
        if self.cycle.lingers:
            self._linger()
            return
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self.loop.call_soon(self._next)  # not at once: a call that ends here has not left its worker yet
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:  # one timer per connection, not one per request
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _next(self) -> None:
        """The request that waited longest, if its client still does."""
        if self.pipeline and not self.transport.is_closing():
            self._start(self.pipeline.pop())

    # --- refusals, time-outs, closing

    def _without_upgrade(self, rest: bytes) -> None:
        """We speak HTTP/1.1 only: parse the request again as if it had not offered anything else."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(NovaError("validation_failed", "this server is no proxy"))
            return
        kept = [(name, value) for name, value in self.headers if name not in _UPGRADE_HEADERS and name != b"connection"]
        lines = [method + b" " + self.url + b" HTTP/1.1", *(name + b": " + value for name, value in kept), b"", b""]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + rest)

    def _close_if_idle(self) -> None:
        idle = 0.0 if self._idle_since is None else self.loop.time() - self._idle_since
        if idle >= self.timeout_keep_alive:
            self._close()
        else:
            again = self.timeout_keep_alive - idle
            self.timeout_keep_alive_task = self.loop.call_later(again, self._close_if_idle)

    def _watch_stall(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self._limits.stall_timeout_s, self._check_stall, waiting)

    def _check_stall(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_stall()

    def _end_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _close(self) -> None:
        """Close; what a client has not taken by now is dropped."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _arm(self) -> None:
        self._progress = 0
        self._timer = self.loop.call_later(self._limits.header_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._in_body and (self.flow.read_paused or self._progress >= _MIN_PROGRESS):
            self._arm()
        elif self._in_body or self._head_bytes:
            self._refuse(NovaError("request_timeout", "the request was not sent in time"))
        else:
            self.transport.close()

    def _refuse(self, error: NovaError) -> None:
        """Answer without asking the application, unless its answer has begun, and close."""
        self._disarm()
        cycle: Cycle | None = self.cycle
        running = cycle is not None and not cycle.response_complete
        if cycle is None or not running or not cycle.response_started:
            self.transport.write(_raw_refusal(error))
        self._unstarted = None
        if cycle is not None and running:
            cycle.disconnect()
        self._linger()

    def _linger(self) -> None:
        """Close, but read on a little: a reset would destroy the answer in the client's hands."""
        if self.transport.is_closing():
            return
        self._disarm()
        self._lingering = 1
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_S, self._close)


def factory(
    config: Config, state: ServerState, loop: asyncio.AbstractEventLoop, limits: ConnectionLimits
) -> Callable[[], asyncio.Protocol]:
    """What a listening socket makes for each connection."""
    app = config.loaded_app
    direct = app.direct if isinstance(app, Direct) else None

    def make() -> asyncio.Protocol:
        return cast(asyncio.Protocol, Protocol(config, state, {}, loop, limits=limits, direct=direct))

    return make


def _url_too_long(limits: ConnectionLimits) -> NovaError:
    return NovaError("uri_too_long", f"the limit is {limits.url_bytes} bytes", extra={"limit_bytes": limits.url_bytes})


def _head_too_long(limits: ConnectionLimits) -> NovaError:
    return NovaError(
        "headers_too_large", f"the limit is {limits.head_bytes} bytes", extra={"limit_bytes": limits.head_bytes}
    )


def _raw_refusal(error: NovaError) -> bytes:
    request_id = new_id()
    body = problem.document(error, request_id)
    lines = [
        f"HTTP/1.1 {error.status} {CODES[error.code].title}",
        f"content-type: {problem.MEDIA_TYPE}",
        f"content-length: {len(body)}",
        f"x-request-id: {request_id}",
        *(f"{name.lower()}: {value}" for name, value in problem.headers(error).items()),
        "connection: close",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
