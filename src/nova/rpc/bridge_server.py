"""The server's end of ProxyHTTP: an HTTP request that came as a stream of parts, answered by an application of this process."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import structlog
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message, Scope

from nova.api import problem
from nova.errors import NovaError, internal, invalid
from nova.rpc import nova_pb2 as pb
from nova.rpc.bridge import HOP, PROOFS, SCOPE_REQUEST_ID, add_headers, check, parts
from nova.rpc.failures import fill
from nova.rpc.transport import AUTHORIZATION, IDENTITY, REQUEST_ID, Context, metadata_of, next_message

log = structlog.get_logger(__name__)
LINGER_S = 5.0


async def serve(
    app: ASGIApp,
    context: Context,
    admit: Callable[[], str | None],
    spawn: Callable[..., asyncio.Task[Any]],
    drained: asyncio.Event,
) -> None:
    """Answer one ProxyHTTP stream with an application of this process.

    ``admit`` answers the client's address, or refuses. A client that leaves becomes ``http.disconnect``; the application ends
    by itself then, in a task that ``spawn`` made. An event stream, which never ends by itself, sees the same once ``drained`` is
    set. Raises NovaError when there is no answer, or only a part of one; the stream has said so already.
    """
    exchange = _Served(context)
    try:
        await _serve(app, exchange, admit(), spawn, drained)
    except NovaError as exc:
        await exchange.refuse(exc)
        await exchange.linger()
        raise
    else:
        await exchange.linger()
    finally:
        exchange.close()


async def _serve(
    app: ASGIApp,
    exchange: "_Served",
    client: str | None,
    spawn: Callable[..., asyncio.Task[Any]],
    drained: asyncio.Event,
) -> None:
    scope = _scope(await exchange.begin(), exchange.metadata, client)
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


def _scope(head: pb.HttpHead, metadata: Mapping[str, str], client: str | None) -> Scope:
    """An ASGI scope of the head. The proofs in it are those of the RPC, whatever the request's headers said."""
    check(head.raw_path, head.raw_query)
    if not head.raw_path.startswith(b"/") or not head.raw_path.isascii() or not head.method.isascii():
        raise invalid("HttpHead", "an ASCII method and a path that begins with a slash")
    headers = []
    for pair in head.headers:
        name = pair.name.lower()
        check(name, pair.value)
        if name not in PROOFS and name not in HOP:
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
        self.metadata = metadata_of(context)
        self._first: pb.HttpPart | None = None
        self._reading: asyncio.Future[bytes | None] | None = None
        self._ended = False
        self._head: pb.HttpHead | None = None
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bodiless = self._endless = self._ending = False
        self.started = False
        self.complete = False

    @property
    def gone(self) -> bool:
        return self._left.done()

    async def begin(self) -> pb.HttpHead:
        """The head of the request. Raises ``validation_failed`` when there is none."""
        first = await self._part()
        if first is None or not first.HasField("head"):
            raise invalid("HttpPart", "the first one carries the head of a request")
        self._first = first
        self._bodiless = first.head.method == "HEAD"
        return first.head

    def leave(self) -> None:
        """The client is gone."""
        if not self._left.done():
            self._left.set_result(None)

    def end_events(self) -> None:
        """The server shuts down: an event stream ends now, whether or not it has begun; others are answered to the end."""
        self._ending = True
        if self._endless:
            self.leave()

    async def _part(self) -> pb.HttpPart | None:
        """The next part of the request; None when the client sends no more, or has left.

        An application may give up waiting, but the read goes on: the part it brings belongs to whoever asks next.
        """
        if self._reading is None:
            self._reading = asyncio.ensure_future(next_message(self._context))
        reading = self._reading
        both: set[asyncio.Future[Any]] = {reading, self._left}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return None
        self._reading = None
        if reading.cancelled() or reading.exception() is not None or (data := reading.result()) is None:
            return None
        try:
            return pb.HttpPart.FromString(data)
        except DecodeError:
            raise invalid("HttpPart", "the message cannot be read") from None

    def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    async def receive(self) -> Message:
        """ASGI's receive."""
        first, self._first = self._first, None
        if first is not None and (first.body or first.end):
            self._ended = first.end
            return {"type": "http.request", "body": first.body, "more_body": not first.end}
        if not self._ended and not self.gone:
            part = await self._part()
            if part is not None:
                self._ended = part.end
                return {"type": "http.request", "body": part.body, "more_body": not part.end}
            self.leave()  # it ended in the middle of a body
        await asyncio.wait({self._left})
        return {"type": "http.disconnect"}

    async def refuse(self, error: NovaError) -> None:
        """Say in the stream itself why there is no answer, or no more of it."""
        await self._write(pb.HttpPart(failure=fill(pb.Failure(), error)))

    async def linger(self) -> None:
        """Wait until the client sends no more, as it does when it has its answer.

        An RPC that ended under a client's write would take the answer with it: gRPC reports the write that failed instead.
        """
        try:
            async with asyncio.timeout(LINGER_S):
                while await self._part() is not None:
                    pass
        except (TimeoutError, NovaError):
            return

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.gone:
            return
        if kind == "http.response.start" and not self.started:
            head = pb.HttpHead(status=message["status"])
            headers = list(message.get("headers", ()))
            add_headers(head, headers, HOP)
            self._endless = any(n.lower() == b"content-type" and v.startswith(b"text/event-stream") for n, v in headers)
            if self._endless and self._ending:
                self.leave()
            self._head = head
            self.started = True
        elif kind == "http.response.body" and self.started and not self.complete:
            self.complete = not message.get("more_body", False)
            body = b"" if self._bodiless else message.get("body", b"")
            for part in parts(body, end=self.complete):
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
