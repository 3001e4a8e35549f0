"""The hot path's front: calls of functions are answered here, everything else goes on to the management API.

A bare ASGI callable, because a warm call has no time for a framework: no routing tree, no models, one write for the answer. The
guards are the same as everywhere (:class:`~nova.security.guards.Door`).
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial

import structlog
from msgspec import Struct
from starlette.types import ASGIApp, Receive, Scope, Send

from nova.api.calls import InvokeQuery
from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import LimitSettings
from nova.domain import call as calls
from nova.domain.call import SAMPLED, AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Scope as Place
from nova.domain.ports import Acceptor, Entrance, Flight, Invoker, Starter
from nova.domain.trigger import HookDesk
from nova.errors import NovaError, as_refusal, draining, internal
from nova.gateway import calling
from nova.gateway.entry import Entry, Knock
from nova.gateway.hooks import HOOK_PATH, Hooks
from nova.gateway.modes import UrlModes
from nova.gateway.replying import lines_of, reply, text, with_client
from nova.gateway.streams import INVOKE_STREAM, Streams
from nova.gateway.url_calls import URL_PATH, UrlCalls
from nova.http import cors
from nova.http.body import ClientGone
from nova.http.body import read as read_body
from nova.http.cycle import Cycle, wire_of
from nova.http.exchange import REQUEST_ID, Exchange, request_id_of
from nova.http.operation import parse_query
from nova.http.routing import decode_segment, without_prefix
from nova.http.trail import Trail
from nova.ids import new_id
from nova.payload import check
from nova.security.guards import Caller, Door
from nova.store.audit import AuditStore

log = structlog.get_logger(__name__)
INVOKE = "function.invoke"
INVOKE_ASYNC = "function.invoke_async"
_FUNCTIONS = b"/functions/"
_INVOKE = b"/invoke"
_ASYNC = b"/invoke-async"
_STREAM = b"/invoke-stream"
_NO_OPTIONS = AsyncOptions()
_JSON = b"content-type: application/json\r\n"


@dataclass(slots=True)
class Target:
    """What the head of an invoke says. ``plain``: nothing in it needs more than the door, a body and the function.

    ``queued``: nobody waits for the call. ``caller`` is who sent this head on this connection before.
    """

    name: str
    headers: dict[bytes, bytes]
    tenant: str | None
    namespace: str | None
    plain: bool
    wishes: bool
    queued: bool = False
    caller: Caller | None = None


class Accepted(Struct):
    """A call that may run: ``extra`` are header lines of its answer, the times are monotonic."""

    call: CallRequest
    headers: dict[bytes, bytes]
    extra: bytes
    admitted: float
    handed: float


class Front:
    """``management`` gets every request that is not a call.

    Operations of the route table that are answered here: :attr:`OPS`. ``overhead`` hears how many microseconds each call spent
    in the stages ``guard`` and ``gateway``. ``modes`` knows whose URLs stream; without it, none does.
    ``hooks`` takes what is sent to webhooks; without it, there are none.
    """

    OPS = (INVOKE, INVOKE_STREAM)

    def __init__(
        self,
        invoker: Invoker,
        door: Door,
        audit: AuditStore,
        management: ASGIApp,
        *,
        limits: LimitSettings,
        acceptor: Acceptor | None = None,
        clock: Clock = SYSTEM_CLOCK,
        overhead: Callable[[str, float], None] | None = None,
        modes: UrlModes | None = None,
        hooks: HookDesk | None = None,
    ) -> None:
        self._invoker = invoker
        self._acceptor = acceptor
        self._entrance = acceptor if acceptor is not None and isinstance(acceptor, Entrance) else None
        self._begin = invoker.begin if isinstance(invoker, Starter) else None
        self._door = door
        self._entry = Entry(door, Trail(audit, door))
        self._streams = Streams(invoker, self._entry, door, limits, clock)
        self._urls = UrlCalls(invoker, self._entry, door, self._streams, modes, limits, clock)
        self._hooks = None if hooks is None else Hooks(hooks, door, clock)
        self._management = management
        self._limits = limits
        self._clock = clock
        self._now = clock.monotonic
        self._overhead = overhead
        self._answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = without_prefix(scope["raw_path"])
            if path.startswith(_FUNCTIONS) and path.endswith(_INVOKE):
                name = path[len(_FUNCTIONS) : -len(_INVOKE)]
                if name and b"/" not in name:
                    await self._serve(self._invoke(scope, receive, send, name), scope, receive, send)
                    return
            elif path.startswith((b"/fn/", b"/t/")) and (match := URL_PATH.fullmatch(path)):
                await self._serve(self._urls.serve(scope, receive, send, match), scope, receive, send)
                return
            elif self._hooks and path.startswith((b"/hooks/", b"/t/")) and (match := HOOK_PATH.fullmatch(path)):
                await self._serve(self._hooks.serve(scope, receive, send, match), scope, receive, send)
                return
            elif path.startswith(_FUNCTIONS) and path.endswith(_STREAM):
                name = path[len(_FUNCTIONS) : -len(_STREAM)]
                if name and b"/" not in name:
                    await self._serve(self._streams.invoke(scope, receive, send, name), scope, receive, send)
                    return
        await self._management(scope, receive, send)

    async def _serve(self, work: Coroutine[None, None, None], scope: Scope, receive: Receive, send: Send) -> None:
        """Run the answer of a call; refusals and our own faults become problem documents."""
        request_id = request_id_of(scope)
        try:
            await work
        except ClientGone:
            return
        except asyncio.CancelledError:
            wire = wire_of(scope)
            if wire is not None and wire.disconnected:
                return  # the client left
            await self._exchange(scope, receive, send).refuse(draining())
            raise
        except NovaError as exc:
            await self._exchange(scope, receive, send).refuse(exc)
        except Exception as exc:
            log.exception("call failed", request_id=request_id)
            await self._exchange(scope, receive, send).refuse(as_refusal(exc) or internal())

    async def _invoke(self, scope: Scope, receive: Receive, send: Send, raw_name: bytes) -> None:
        """``POST /functions/{name}/invoke``."""
        received = self._now()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if scope["method"] != "POST":
            exchange = self._exchange(scope, receive, send)
            if cors.is_preflight(exchange) and cors.answer_headers(self._door, headers):
                await cors.preflight(exchange, ("POST",))
                return
            raise NovaError("method_not_allowed", "allowed here: POST", extra={"allow": ["POST"]})
        target = _target(raw_name, headers)
        peer = scope["client"][0] if scope["client"] else None
        caller, place, extra = await self._entry.enter(
            headers, peer, INVOKE, target.name, target.tenant, target.namespace, scope[REQUEST_ID]
        )
        admitted = self._now()
        event = calling.wants_event(headers)
        query = scope["query_string"]
        qualifier = parse_query(InvokeQuery, query).qualifier if query else None
        body = await read_body(receive, headers.get(b"content-length"), self._limits.sync_payload_mb << 20)
        call = self._accept(scope[REQUEST_ID], target, caller, place, body, received, qualifier)
        if event:
            await self._queue(call, extra, scope, send)
            return
        accepted = Accepted(call, headers, extra, admitted, self._now())
        await self._finish(accepted, scope, receive, send)

    async def _queue(self, call: CallRequest, extra: bytes, scope: Scope, send: Send) -> None:
        """A call that nobody waits for: answered when it is in the queue."""
        if self._acceptor is None:
            raise NovaError("unsupported", "X-Nova-Invocation-Type: Event is not available here")
        key, call.idempotency_key = call.idempotency_key, None
        options = _NO_OPTIONS if key is None else AsyncOptions(idempotency_key=key)
        accepted = await self._acceptor.accept(call, options)
        status, lines, body = calling.accepted_response(accepted, call.function)
        lines += b"x-request-id: %s\r\n" % call.request_id.encode() + extra
        await reply(scope, send, status, lines, body)

    def direct(self, cycle: Cycle) -> bool:
        """An invoke that has to wait for nothing, without a task; see :class:`~nova.http.cycle.Direct`."""
        target = cycle.head.note
        if target is None:
            target = cycle.head.note = self._plain_target(cycle)
        if not target or self._begin is None:
            return False
        body = bytes(cycle.body)
        checked = calling.only_payload(body) if target.queued else None
        if target.queued and checked is None:
            return False
        request_id, knock, client = new_id(), Knock(), cycle.client
        peer = client[0] if client else None
        received = self._now()
        try:
            known = target.caller
            if known is not None and self._door.identify_again(known):
                knock.caller = known
            extra = self._entry.knock(knock, target.headers, peer, target.name, target.tenant, target.namespace)
            target.caller = knock.caller
            caller, place = knock.inside()
            admitted = self._now()
            if checked is not None:
                call = CallRequest(request_id, place, target.name, checked, caller.identity, received)
                self._queue_directly(cycle, call, extra)
                return True
            call = self._accept(request_id, target, caller, place, body, received, None)
            accepted = Accepted(call, target.headers, extra, admitted, self._now())
            flight = self._begin(call, partial(self._landed, cycle, accepted))
        except Exception as exc:
            if not isinstance(exc, NovaError):
                log.exception("call failed", request_id=request_id)
            refusal = exc if isinstance(exc, NovaError) else as_refusal(exc) or internal()
            op = INVOKE_ASYNC if target.queued else INVOKE
            noted = self._entry.denied(knock, target.headers, peer, op, target.name, request_id, refusal)
            cycle.start(partial(self._refuse, request_id, noted, refusal))
            return True
        if flight is None:
            cycle.start(partial(self._go_on, accepted))
        else:
            cycle.hold(partial(self._called_off, cycle, request_id, flight))
        return True

    def _queue_directly(self, cycle: Cycle, call: CallRequest, extra: bytes) -> None:
        if self._entrance is None:
            cycle.start(partial(self._put, call, extra))
            return
        accepted = self._entrance.enter(call, _NO_OPTIONS)
        accepted.add_done_callback(partial(self._entered, cycle, call, extra))
        cycle.hold(partial(self._not_awaited, cycle, call.request_id, accepted))

    def _entered(
        self, cycle: Cycle, call: CallRequest, extra: bytes, accepted: "asyncio.Future[calls.Accepted]"
    ) -> None:
        """A call that nobody waits for is in the queue, or cannot be."""
        if accepted.cancelled():
            return
        error = accepted.exception()
        if error is None:
            status, lines, body = calling.accepted_response(accepted.result(), call.function)
            cycle.respond(status, lines + b"x-request-id: %s\r\n" % call.request_id.encode() + extra, body)
            return
        refusal = error if isinstance(error, NovaError) else as_refusal(error) or internal()
        if refusal is not error:
            log.error("call failed", request_id=call.request_id, exc_info=error)
        cycle.start(partial(self._refuse, call.request_id, None, refusal))

    def _not_awaited(self, cycle: Cycle, request_id: str, accepted: "asyncio.Future[calls.Accepted]") -> None:
        """The client left, or the server ends; what was being written may be in the queue all the same."""
        accepted.cancel()
        if not cycle.disconnected:
            cycle.start(partial(self._refuse, request_id, None, draining()))

    def _plain_target(self, cycle: Cycle) -> Target | bool:
        """The target of a request that :meth:`direct` can serve, or False."""
        head = cycle.head
        path = without_prefix(head.path)
        queued = path.endswith(_ASYNC) and self._acceptor is not None
        verb = _ASYNC if queued else _INVOKE
        if head.method != b"POST" or head.query or not (path.startswith(_FUNCTIONS) and path.endswith(verb)):
            return False
        name = path[len(_FUNCTIONS) : -len(verb)]
        if not name or b"/" in name or b"%" in name:
            return False
        target = _target(name, dict(head.headers))
        if not target.plain or (queued and (target.wishes or not calling.is_plain(target.headers))):
            return False
        target.queued = queued
        return target

    def _landed(self, cycle: Cycle, accepted: Accepted, outcome: CallResult | NovaError) -> None:
        """A call that :meth:`direct` began has ended."""
        request_id = accepted.call.request_id
        if isinstance(outcome, NovaError):
            cycle.start(partial(self._refuse, request_id, None, outcome))
            return
        back = self._now()
        try:
            lines, body = self._answer(accepted, outcome)
        except Exception as exc:
            log.exception("call failed", request_id=request_id)
            cycle.start(partial(self._refuse, request_id, None, as_refusal(exc) or internal()))
            return
        cycle.respond(200, lines, body)
        self._time(accepted, back)

    def _called_off(self, cycle: Cycle, request_id: str, flight: Flight) -> None:
        """The client left, or the server ends before the call does."""
        flight.cancel()
        if not cycle.disconnected:
            cycle.start(partial(self._refuse, request_id, None, draining()))

    async def _refuse(
        self,
        request_id: str,
        noted: Coroutine[None, None, None] | None,
        refusal: NovaError,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        scope[REQUEST_ID] = request_id
        if noted is not None:
            await noted
        await self._exchange(scope, receive, send).refuse(refusal)

    async def _put(self, call: CallRequest, extra: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """In a task, from behind the door: into the queue."""
        scope[REQUEST_ID] = call.request_id
        await self._serve(self._queue(call, extra, scope, send), scope, receive, send)

    async def _go_on(self, accepted: Accepted, scope: Scope, receive: Receive, send: Send) -> None:
        """In a task, from behind the door."""
        scope[REQUEST_ID] = accepted.call.request_id
        await self._serve(self._finish(accepted, scope, receive, send), scope, receive, send)

    async def _finish(self, accepted: Accepted, scope: Scope, receive: Receive, send: Send) -> None:
        """Call and answer."""
        result = await self._run(scope, accepted.call)
        back = self._now()
        lines, body = self._answer(accepted, result)
        await reply(scope, send, 200, lines, body)
        self._time(accepted, back)

    def _accept(
        self,
        request_id: str,
        target: Target,
        caller: Caller,
        place: Place,
        body: bytes,
        received: float,
        qualifier: str | None,
    ) -> CallRequest:
        payload = check(body, limit=self._limits.sync_payload_mb << 20)
        call = CallRequest(request_id, place, target.name, payload, caller.identity, received, qualifier)
        call.source_address = caller.address
        call.headers = target.headers
        if target.wishes or qualifier is not None:
            calling.apply_headers(call, target.headers)
        return call

    def _answer(self, accepted: Accepted, result: CallResult) -> tuple[bytes, bytes]:
        headers = accepted.headers
        lines = _JSON + self._lines(accepted.call, headers, result) + accepted.extra
        return lines, calling.invoke_response(result, tail=headers.get(b"x-nova-log-type") == b"Tail")

    def _time(self, accepted: Accepted, back: float) -> None:
        self._answered += 1
        if self._overhead is not None and self._answered % SAMPLED == 1:
            self._overhead("guard", (accepted.admitted - accepted.call.received) * 1e6)
            self._overhead("gateway", (accepted.handed - accepted.admitted + self._now() - back) * 1e6)

    async def _run(self, scope: Scope, call: CallRequest) -> CallResult:
        """Call the function; a client that leaves takes its call with it."""
        with with_client(scope):
            return await self._invoker.invoke(call)

    def _lines(self, call: CallRequest, headers: dict[bytes, bytes], result: CallResult) -> bytes:
        lines = calling.id_headers(call) + calling.answer_headers(result)
        if b"origin" in headers:
            lines += lines_of(cors.answer_headers(self._door, headers))
        return lines

    def _exchange(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        exchange = Exchange(scope, receive, send)
        exchange.extra += cors.answer_headers(self._door, exchange.headers)
        return exchange


def _target(raw_name: bytes, headers: dict[bytes, bytes]) -> Target:
    tenant, namespace = text(headers.get(b"x-nova-tenant")), text(headers.get(b"x-nova-namespace"))
    plain = b"idempotency-key" not in headers and b"x-nova-invocation-type" not in headers
    wishes = not calling.WISHES.isdisjoint(headers)
    return Target(decode_segment(raw_name), headers, tenant, namespace, plain, wishes)
