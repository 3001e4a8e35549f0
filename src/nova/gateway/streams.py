"""Calls that answer piece by piece: as server-sent events, as raw bytes, and as the answers of function URLs.

Nothing is held beyond what waits in :class:`~nova.domain.pieces.Pieces` and the connection: a client that reads slowly slows
the handler, one that leaves ends it. The head of an answer waits for its first piece, so what fails before it has the status of
any other refusal.
"""

import asyncio
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from nova.api.calls import StreamQuery
from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import LimitSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.pieces import Item, Pieces, Started, streaming
from nova.domain.ports import Invoker
from nova.domain.stream import Piece
from nova.errors import NovaError
from nova.gateway import calling
from nova.gateway.entry import Entry
from nova.gateway.forms import Bytes, Events, Form, UrlBytes
from nova.gateway.replying import function_failed, lines_of, pairs, reply, text, with_client
from nova.gateway.tracing import streamer_of
from nova.http import cors
from nova.http.body import read as read_body
from nova.http.cycle import Cycle
from nova.http.exchange import REQUEST_ID, Exchange
from nova.http.operation import parse_query
from nova.http.routing import decode_segment
from nova.http.sse import COMMENT_INTERVAL_S
from nova.payload import check
from nova.security.guards import Caller, Door

INVOKE_STREAM = "function.invoke_stream"
_RAW = "application/octet-stream"


@dataclass(slots=True)
class Listener:
    """Who gets the pieces: the request, who sent it, and header lines of the answer that are known before the call."""

    scope: Scope
    receive: Receive
    send: Send
    caller: Caller
    lines: bytes


class Streams:
    """The front's part for calls that stream. Raises NovaError as long as no answer has begun."""

    def __init__(
        self, invoker: Invoker, entry: Entry, door: Door, limits: LimitSettings, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._invoker = invoker
        self._entry = entry
        self._door = door
        self._limit = limits.sync_payload_mb << 20
        self._clock = clock

    async def invoke(self, scope: Scope, receive: Receive, send: Send, raw_name: bytes) -> None:
        """``POST /functions/{name}/invoke-stream``."""
        received = self._clock.monotonic()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["method"] != "POST":
            exchange = Exchange(scope, receive, send)
            if cors.is_preflight(exchange) and cors.answer_headers(self._door, headers):
                await cors.preflight(exchange, ("POST",))
                return
            raise NovaError("method_not_allowed", "allowed here: POST", extra={"allow": ["POST"]})
        name = decode_segment(raw_name)
        tenant, namespace = text(headers.get(b"x-nova-tenant")), text(headers.get(b"x-nova-namespace"))
        peer = scope["client"][0] if scope["client"] else None
        caller, place, extra = await self._entry.enter(
            headers, peer, INVOKE_STREAM, name, tenant, namespace, scope[REQUEST_ID]
        )
        if calling.wants_event(headers):
            raise NovaError("validation_failed", "X-Nova-Invocation-Type: somebody has to wait for a stream")
        query = parse_query(StreamQuery, scope["query_string"])
        body = await read_body(receive, headers.get(b"content-length"), self._limit)
        payload = check(body, limit=self._limit)
        call = CallRequest(scope[REQUEST_ID], place, name, payload, caller.identity, received, query.qualifier)
        call.source_address = caller.address
        call.headers = headers
        calling.apply_headers(call, headers)
        listener = Listener(scope, receive, send, caller, self._about(call, headers) + extra)
        form = Bytes() if _wants_bytes(headers) else Events(call.request_id, self._clock, logs=query.logs)
        await self._run(call, listener, form)

    async def url(
        self, call: CallRequest, caller: Caller, extra: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """A call of a function URL, accepted already, whose answer goes out as it comes."""
        listener = Listener(scope, receive, send, caller, self._about(call, dict(scope["headers"])) + extra)
        await self._run(call, listener, UrlBytes())

    def _about(self, call: CallRequest, headers: dict[bytes, bytes]) -> bytes:
        lines = calling.id_headers(call)
        if b"origin" in headers and call.trigger == "http":
            lines += lines_of(cors.answer_headers(self._door, headers))
        return lines

    async def _run(self, call: CallRequest, listener: Listener, form: Form) -> None:
        """Call, and send on what comes; a client that leaves takes its call with it."""
        streamer = streamer_of(self._invoker)
        with with_client(listener.scope) as wire:
            if wire is not None:
                wire.finite = True
            async with streaming(streamer, call) as (pieces, running):
                await _Relay(call, listener, form, wire).run(pieces, running)


class _Relay:
    """One answer on its way."""

    def __init__(self, call: CallRequest, listener: Listener, form: Form, wire: Cycle | None) -> None:
        self._call = call
        self._to = listener
        self._form = form
        self._wire = wire
        self._started: Started | None = None
        self._begun = False
        self._opened = False

    async def run(self, pieces: Pieces, running: "asyncio.Future[CallResult]") -> None:
        """Until the call and its answer are complete."""
        try:
            while items := await self._next(pieces):
                await self._pass_on(items)
            result = running.result()
            if not self._begun:
                await self._whole(result)
                return
            self._started = self._started or Started(result.version, result.cold_start)
            opening = self._opening()
            end = self._form.done(result) if result.error is None else self._form.failed(result.error)
            end = None if end is None else opening + end
        except NovaError as refusal:
            if not self._begun:
                raise
            end = self._form.refused(refusal)
        except asyncio.CancelledError:
            if self._begun and self._wire is not None:
                self._wire.cut()  # the server ends: this answer has begun and cannot be a refusal any more
            raise
        if end is not None:
            await self._to.send({"type": "http.response.body", "body": end, "more_body": False})
        elif self._wire is not None:
            self._wire.cut()
        else:
            raise ConnectionError("the call failed after its answer had begun")

    async def _next(self, pieces: Pieces) -> list[Item]:
        """What came; empty when the call has ended. Meanwhile comments, where the form has them."""
        while True:
            items = await pieces.take(COMMENT_INTERVAL_S if self._form.comment else None)
            if items or pieces.ended:
                return items
            await self._send(self._opening() + self._form.comment)

    async def _pass_on(self, items: list[Item]) -> None:
        parts: list[bytes] = []
        for item in items:
            if isinstance(item, Started):
                self._started = item
            elif isinstance(item, Piece):
                parts += (self._opening(), self._form.piece(item))
            elif self._form.logs:
                parts += (self._opening(), self._form.printed(item))
        if parts:
            await self._send(b"".join(parts))

    def _opening(self) -> bytes:
        """What stands before everything else, once it is known which version runs."""
        if self._opened or self._started is None:
            return b""
        self._opened = True
        return self._form.begin(self._started)

    async def _send(self, body: bytes) -> None:
        """A part of the answer; the first one brings the head along."""
        if not self._begun:
            lines = self._to.lines
            if self._started is not None:
                lines += calling.start_headers(self._started.version, cold_start=self._started.cold_start)
            self._begun = True
            head = {"status": self._form.status, "headers": [*self._form.headers, *pairs(lines)]}
            await self._to.send({"type": "http.response.start", **head})
        await self._to.send({"type": "http.response.body", "body": body, "more_body": True})

    async def _whole(self, result: CallResult) -> None:
        """The call has ended without a piece: one answer, whose head knows all about it."""
        to, form = self._to, self._form
        lines = to.lines + calling.answer_headers(result)
        if result.error is not None and form.failure_is_a_status:
            exchange = Exchange(to.scope, to.receive, to.send)
            await function_failed(exchange, to.caller, self._call.function, result, lines)
            return
        body = form.whole(self._started or Started(result.version, result.cold_start), result)
        await reply(to.scope, to.send, form.status, lines_of(form.headers) + lines, body)


def _wants_bytes(headers: dict[bytes, bytes]) -> bool:
    """Does the caller accept raw bytes, and does not ask for events?"""
    accepted = headers.get(b"accept", b"").decode("latin-1").lower()
    kinds = {kind.partition(";")[0].strip() for kind in accepted.split(",")}
    return _RAW in kinds and "text/event-stream" not in kinds
