"""ASGI as a stream of HttpParts, both ways. Nothing is decoded on the way, and no body is ever held as a whole."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nova.api import problem
from nova.errors import NovaError, internal, invalid
from nova.rpc import nova_pb2 as pb
from nova.rpc.transport import AUTHORIZATION, IDENTITY, REQUEST_ID, Context, metadata_of, next_message

log = structlog.get_logger(__name__)
SCOPE_REQUEST_ID = "nova.request_id"
"""As :data:`nova.http.exchange.REQUEST_ID`, which this layer may not import; a test compares."""
PART_BYTES = 256 << 10
_HOP = frozenset(
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
    }
)
_PROOFS = frozenset({b"authorization", b"x-api-key", b"x-nova-identity"})
"""A client's own proofs end at the door; behind it counts what the door says."""
_FORBIDDEN = (b"\r", b"\n", b"\x00")


def header(scope: Scope, name: bytes) -> str | None:
    """The last header of this name."""
    found: str | None = None
    for key, value in scope["headers"]:
        if key == name:
            found = value.decode("latin-1")
    return found


def _pairs(message: pb.HttpHead, headers: Iterable[tuple[bytes, bytes]], left_out: frozenset[bytes]) -> None:
    for name, value in headers:
        if name.lower() not in left_out:
            _check(name, value)
            message.headers.add(name=name, value=value)


def _check(*texts: bytes) -> None:
    for text in texts:
        if any(byte in text for byte in _FORBIDDEN):
            raise invalid("headers", "CR, LF and NUL cannot stand in a header or path")


# the client's end


def _request_head(scope: Scope) -> pb.HttpHead:
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    _check(raw_path, scope["query_string"])
    head = pb.HttpHead(
        method=scope["method"],
        raw_path=raw_path,
        raw_query=scope["query_string"],
        http_version=scope["http_version"],
        scheme=scope["scheme"],
    )
    _pairs(head, scope["headers"], _HOP | _PROOFS)
    return head


async def forward(open_call: Callable[[], Any], scope: Scope, receive: Receive, send: Send, broken: NovaError) -> None:
    """Send a request over a ProxyHTTP stream, and its answer to ``send`` as it comes.

    Raises AioRpcError, or ``broken`` when the answer ends before it should; a client that leaves ends the RPC.
    """
    head = _request_head(scope)
    call = open_call()
    upload = asyncio.ensure_future(_upload(call, head, receive))
    try:
        await _download(call, send, broken)
        if upload.done():
            upload.result()  # the request's own stream may have refused to go on, and so ended the RPC
    finally:
        upload.cancel()
        call.cancel()
        await asyncio.gather(upload, return_exceptions=True)


async def _upload(call: Any, head: pb.HttpHead, receive: Receive) -> None:
    """Write the request; then watch for the client to leave."""
    try:
        await call.write(pb.HttpPart(head=head).SerializeToString())
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                call.cancel()
                return
            more = message.get("more_body", False)
            for part in _parts(message.get("body", b""), end=not more):
                await call.write(part.SerializeToString())
        await call.done_writing()
        while (await receive())["type"] != "http.disconnect":
            pass
        call.cancel()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the RPC has ended; whoever reads its answer hears why
    except Exception:
        call.cancel()
        raise


def _parts(body: bytes, *, end: bool) -> Iterable[pb.HttpPart]:
    """A piece of a body, cut into messages of a sensible size."""
    for start in range(0, len(body) - PART_BYTES, PART_BYTES):
        yield pb.HttpPart(body=body[start : start + PART_BYTES])
    rest = body[(len(body) - 1) // PART_BYTES * PART_BYTES :] if body else b""
    if rest or end:
        yield pb.HttpPart(body=rest, end=end)


async def _download(call: Any, send: Send, broken: NovaError) -> None:
    started = False
    while True:
        try:
            data = await next_message(call)
        except asyncio.CancelledError:
            if call.cancelled() and not _being_cancelled():
                return  # the client left
            raise
        if data is None:
            raise broken
        part = pb.HttpPart.FromString(data)
        if part.HasField("head"):
            headers = [(pair.name, pair.value) for pair in part.head.headers]
            for name, value in headers:
                _check(name, value)
            await send({"type": "http.response.start", "status": part.head.status, "headers": headers})
            started = True
        if not started:
            raise broken
        if part.body or part.end:
            await send({"type": "http.response.body", "body": part.body, "more_body": not part.end})
        if part.end:
            return


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


# the server's end


async def serve(
    app: ASGIApp,
    context: Context,
    client: str | None,
    spawn: Callable[..., asyncio.Task[Any]],
    drained: asyncio.Event,
) -> None:
    """Answer one ProxyHTTP stream with an application of this process.

    A client that leaves becomes ``http.disconnect``; the application ends by itself then, in a task that ``spawn`` made. An
    event stream, which never ends by itself, sees the same once ``drained`` is set.
    Raises ``validation_failed`` for a request that is none, and what the application raised when it has begun to answer.
    """
    exchange = _Served(context)
    first = await exchange.part()
    if first is None or not first.HasField("head"):
        raise invalid("HttpPart", "the first one carries the head of a request")
    scope = _scope(first.head, context, client)
    exchange.begin(first)
    task = spawn("proxied", _answer(app, scope, exchange))
    ending = asyncio.ensure_future(drained.wait())
    try:
        await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            exchange.end_events()
            await asyncio.wait({task})
    except asyncio.CancelledError:
        exchange.leave()
        raise
    finally:
        ending.cancel()
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    if not exchange.complete:
        raise NovaError("internal", "the answer broke off")


async def _answer(app: ASGIApp, scope: Scope, exchange: "_Served") -> None:
    """Run the application; its failure is its own, and reported unless the client has left."""
    try:
        await app(scope, exchange.receive, exchange.send)
    except Exception:
        log.exception("proxied request failed", request_id=scope.get(SCOPE_REQUEST_ID), started=exchange.started)
        if not exchange.started and not exchange.gone:
            await exchange.crash(scope.get(SCOPE_REQUEST_ID, ""))


def _scope(head: pb.HttpHead, context: Context, client: str | None) -> Scope:
    """An ASGI scope of the head. The proofs in it are those of the RPC, whatever the request's headers said."""
    metadata = metadata_of(context)
    _check(head.raw_path, head.raw_query)
    if not head.raw_path.startswith(b"/") or not head.raw_path.isascii() or not head.method.isascii():
        raise invalid("HttpHead", "an ASCII method and a path that begins with a slash")
    headers = []
    for pair in head.headers:
        name = pair.name.lower()
        _check(name, pair.value)
        if name not in _PROOFS and name not in _HOP:
            headers.append((name, pair.value))
    for key in (AUTHORIZATION, IDENTITY):
        if (value := metadata.get(key)) is not None:
            headers.append((key.encode(), value.encode()))
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": head.http_version or "1.1",
        "method": head.method,
        "scheme": head.scheme or "http",
        "path": unquote(head.raw_path.decode("ascii")),
        "raw_path": head.raw_path,
        "query_string": head.raw_query,
        "root_path": "",
        "headers": headers,
        "client": None if client is None else (client, 0),
        "server": None,
        "state": {},
    }
    if (request_id := metadata.get(REQUEST_ID)) is not None:
        scope[SCOPE_REQUEST_ID] = request_id
    return scope


class _Served:
    """One request on the server's end: ASGI's receive and send over the stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._first: pb.HttpPart | None = None
        self._ended = False
        self._head: pb.HttpHead | None = None
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bodiless = self._endless = self._ending = False
        self.started = False
        self.complete = False

    @property
    def gone(self) -> bool:
        return self._left.done()

    def begin(self, first: pb.HttpPart) -> None:
        self._first = first
        self._bodiless = first.head.method == "HEAD"

    def leave(self) -> None:
        """The client is gone."""
        if not self._left.done():
            self._left.set_result(None)

    def end_events(self) -> None:
        """The server shuts down: an event stream ends now, whether or not it has begun; others are answered to the end."""
        self._ending = True
        if self._endless:
            self.leave()

    async def part(self) -> pb.HttpPart | None:
        """The next part of the request; None when the client sends no more."""
        data = await next_message(self._context)
        if data is None:
            return None
        try:
            return pb.HttpPart.FromString(data)
        except DecodeError:
            raise invalid("HttpPart", "the message cannot be read") from None

    async def receive(self) -> Message:
        first, self._first = self._first, None
        if first is not None and (first.body or first.end):
            self._ended = first.end
            return {"type": "http.request", "body": first.body, "more_body": not first.end}
        if not self._ended and not self.gone:
            part = await self._unless_gone(self.part())
            if part is not None:
                self._ended = part.end
                return {"type": "http.request", "body": part.body, "more_body": not part.end}
            self.leave()  # it ended in the middle of a body
        await asyncio.wait({self._left})
        return {"type": "http.disconnect"}

    async def _unless_gone(self, reading: Awaitable[pb.HttpPart | None]) -> pb.HttpPart | None:
        read = asyncio.ensure_future(reading)
        both: set[asyncio.Future[Any]] = {read, self._left}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return read.result() if read.done() and not read.cancelled() else None
        finally:
            read.cancel()

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.gone:
            return
        if kind == "http.response.start" and not self.started:
            head = pb.HttpHead(status=message["status"])
            headers = list(message.get("headers", ()))
            _pairs(head, headers, _HOP)
            self._endless = any(n.lower() == b"content-type" and v.startswith(b"text/event-stream") for n, v in headers)
            if self._endless and self._ending:
                self.leave()
            self._head = head
            self.started = True
        elif kind == "http.response.body" and self.started and not self.complete:
            self.complete = not message.get("more_body", False)
            body = b"" if self._bodiless else message.get("body", b"")
            for part in _parts(body, end=self.complete):
                if self._head is not None:
                    part.head.CopyFrom(self._head)
                    self._head = None
                await self._write(part)
            if self._head is not None:  # an answer that has begun and has nothing to say yet
                head, self._head = self._head, None
                await self._write(pb.HttpPart(head=head))
        else:
            raise RuntimeError(f"{kind} was not expected here")

    async def crash(self, request_id: str) -> None:
        """The application broke before it answered."""
        self.started = self.complete = True
        body = problem.document(internal(), request_id)
        head = pb.HttpHead(status=500)
        head.headers.add(name=b"content-type", value=problem.MEDIA_TYPE.encode())
        head.headers.add(name=b"content-length", value=b"%d" % len(body))
        await self._write(pb.HttpPart(head=head, body=b"" if self._bodiless else body, end=True))

    async def _write(self, part: pb.HttpPart) -> None:
        if not self.gone:
            await self._context.write(part.SerializeToString())
