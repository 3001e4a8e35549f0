"""The hot path's front: calls of functions are answered here, everything else goes on to the management API.

A bare ASGI callable, because a warm call has no time for a framework: no routing tree, no models, one write for the answer. The
guards are the same as everywhere (:class:`~nova.security.guards.Door`).
"""

import asyncio
import re
from collections.abc import Callable, Coroutine

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from nova.api.calls import InvokeQuery
from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import LimitSettings
from nova.domain.call import SAMPLED, CallRequest, CallResult
from nova.domain.identity import Scope as Place
from nova.domain.names import is_name
from nova.domain.ports import Invoker
from nova.errors import FunctionError, NovaError, as_refusal, draining, internal, not_found
from nova.gateway import calling, urls
from nova.http import cors
from nova.http.body import ClientGone
from nova.http.body import read as read_body
from nova.http.cycle import wire_of
from nova.http.exchange import REQUEST_ID, Exchange, HeaderList
from nova.http.operation import parse_query
from nova.http.routing import decode_segment, without_prefix
from nova.http.trail import Trail
from nova.ids import new_id
from nova.payload import check, too_large
from nova.security import access
from nova.security.guards import Caller, Door
from nova.store.audit import AuditStore

log = structlog.get_logger(__name__)
INVOKE = "function.invoke"
URL = "function.url"
_PERMISSION = "function:invoke"
_FUNCTIONS = b"/functions/"
_INVOKE = b"/invoke"
_URL_PATH = re.compile(rb"(?:/t/([^/]+)/([^/]+))?/fn/([^/]+)(/.*)?", re.DOTALL)
_JSON = b"content-type: application/json\r\n"


class Front:
    """``management`` gets every request that is not a call.

    Operations of the route table that are answered here: :attr:`OPS`. ``overhead`` hears how many microseconds each call spent
    in the stages ``guard`` and ``gateway``.
    """

    OPS = (INVOKE,)

    def __init__(
        self,
        invoker: Invoker,
        door: Door,
        audit: AuditStore,
        management: ASGIApp,
        *,
        limits: LimitSettings,
        clock: Clock = SYSTEM_CLOCK,
        overhead: Callable[[str, float], None] | None = None,
    ) -> None:
        self._invoker = invoker
        self._door = door
        self._trail = Trail(audit, door)
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
            elif path.startswith((b"/fn/", b"/t/")) and (match := _URL_PATH.fullmatch(path)):
                await self._serve(self._url(scope, receive, send, match), scope, receive, send)
                return
        await self._management(scope, receive, send)

    async def _serve(self, work: Coroutine[None, None, None], scope: Scope, receive: Receive, send: Send) -> None:
        """Run the answer of a call; refusals and our own faults become problem documents."""
        scope[REQUEST_ID] = new_id()
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
            log.exception("call failed", request_id=scope[REQUEST_ID])
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
        name = decode_segment(raw_name)
        tenant, namespace = headers.get(b"x-nova-tenant"), headers.get(b"x-nova-namespace")
        caller, place, extra = await self._enter(scope, headers, INVOKE, name, _text(tenant), _text(namespace))
        admitted = self._now()
        calling.refuse_unavailable(headers)
        query = scope["query_string"]
        qualifier = parse_query(InvokeQuery, query).qualifier if query else None
        limit = self._limits.sync_payload_mb << 20
        payload = check(await read_body(receive, headers.get(b"content-length"), limit), limit=limit)
        call = CallRequest(scope[REQUEST_ID], place, name, payload, caller.identity, received, qualifier)
        call.source_address = caller.address
        calling.apply_headers(call, headers)
        handed = self._now()
        result = await self._run(scope, call)
        back = self._now()
        tail = headers.get(b"x-nova-log-type") == b"Tail"
        lines = _JSON + self._lines(call, headers, result) + extra
        await _reply(scope, send, 200, lines, calling.invoke_response(result, tail=tail))
        self._answered += 1
        if self._overhead is not None and self._answered % SAMPLED == 1:
            self._overhead("guard", (admitted - received) * 1e6)
            self._overhead("gateway", (handed - admitted + self._now() - back) * 1e6)

    async def _url(self, scope: Scope, receive: Receive, send: Send, match: re.Match[bytes]) -> None:
        """``ANY [/t/{tenant}/{namespace}]/fn/{name}[@{qualifier}][/path]``."""
        received = self._now()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        name, at, qualifier = decode_segment(match[3]).partition("@")
        tenant, namespace = _text(headers.get(b"x-nova-tenant")), _text(headers.get(b"x-nova-namespace"))
        if match[1] is not None:
            tenant, namespace = decode_segment(match[1]), decode_segment(match[2])
        caller, place, extra = await self._enter(scope, headers, URL, name, tenant, namespace, lenient=True)
        limit = self._limits.sync_payload_mb << 20
        body = await read_body(receive, headers.get(b"content-length"), limit)
        request = self._url_request(scope, match, place, name, caller, body, headers)
        payload = urls.event(request)
        if len(payload) > limit:
            raise too_large(limit)
        call = CallRequest(request.request_id, place, name, payload, caller.identity, received)
        call.qualifier = qualifier if at else None
        call.trigger = "url"
        call.source_address = caller.address
        calling.apply_headers(call, headers)
        result = await self._run(scope, call)
        lines = self._lines(call, headers, result) + extra
        if result.error is not None or result.output is None:
            await self._function_failed(self._exchange(scope, receive, send), caller, name, result, lines)
            return
        answer = urls.answer(result.output)
        head = b"".join(b"%s: %s\r\n" % pair for pair in answer.headers)
        await _reply(scope, send, answer.status, head + lines, answer.body)

    async def _enter(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        op: str,
        name: str,
        tenant: str | None,
        namespace: str | None,
        *,
        lenient: bool = False,
    ) -> tuple[Caller, Place, bytes]:
        """Pass the door; refusals of a proven caller, and of a credential, leave their audit row first.

        The bytes are header lines for the answer.
        """
        door, client = self._door, scope["client"]
        peer = client[0] if client else None
        try:
            caller = door.identify(headers, peer, lenient=lenient)
        except NovaError as exc:
            await self._trail.refused_login(headers, peer, op, scope[REQUEST_ID], exc)
            raise
        place = caller.identity.default_scope or Place()
        try:
            place = door.scope(caller, tenant, namespace)
            door.authorize(caller, _PERMISSION, name)
        except NovaError as exc:
            await self._trail.denied(caller, place, op, f"/functions/{name}", scope[REQUEST_ID], exc)
            raise
        bucket = door.charge(caller, place)
        if not is_name(name):
            raise not_found("function", name)
        return caller, place, b"" if bucket is None else _lines_of(bucket.headers())

    async def _run(self, scope: Scope, call: CallRequest) -> CallResult:
        """Call the function; a client that leaves takes its call with it."""
        wire = wire_of(scope)
        if wire is None:
            return await self._invoker.invoke(call)
        if wire.disconnected:
            raise ClientGone
        wire.cancel_with_client(True)
        try:
            return await self._invoker.invoke(call)
        finally:
            wire.cancel_with_client(False)

    def _lines(self, call: CallRequest, headers: dict[bytes, bytes], result: CallResult) -> bytes:
        lines = b"x-request-id: %s\r\n" % call.request_id.encode() + calling.answer_headers(result)
        if call.client_request_id is not None:
            lines += b"x-client-request-id: %s\r\n" % call.client_request_id.encode()
        if b"origin" in headers and call.trigger == "http":
            lines += _lines_of(cors.answer_headers(self._door, headers))
        return lines

    def _url_request(
        self,
        scope: Scope,
        match: re.Match[bytes],
        place: Place,
        name: str,
        caller: Caller,
        body: bytes,
        headers: dict[bytes, bytes],
    ) -> urls.UrlRequest:
        peer = scope["client"][0] if scope["client"] else None
        proto = scope["scheme"]
        if self._door.trusts(peer):
            proto = _text(headers.get(b"x-forwarded-proto")) or proto
        rest = match[4] or b""
        return urls.UrlRequest(
            request_id=scope[REQUEST_ID],
            tenant=place.tenant,
            function=name,
            principal=caller.identity.subject,
            method=scope["method"],
            raw_path=rest or b"/",
            prefix=without_prefix(scope["raw_path"])[: match.end(3)].decode("ascii", "replace"),
            query=scope["query_string"],
            http_version=scope["http_version"],
            headers=scope["headers"],
            body=body,
            address=caller.address,
            proto=proto,
            received=self._clock.now(),
        )

    async def _function_failed(
        self, exchange: Exchange, caller: Caller, name: str, result: CallResult, lines: bytes
    ) -> None:
        """502; what the function said is for those who may read its logs."""
        error = result.error or FunctionError("Nova.InvalidOutput", "there is no output")
        shown = {"error": error.as_dict()} if access.allowed(caller.identity, "log:read", name) else {}
        exchange.extra = _pairs(lines)
        await exchange.refuse(NovaError("function_error", "the function failed", extra=shown))

    def _exchange(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        exchange = Exchange(scope, receive, send)
        exchange.extra += cors.answer_headers(self._door, exchange.headers)
        return exchange


async def _reply(scope: Scope, send: Send, status: int, lines: bytes, body: bytes) -> None:
    """One write on our own server; ASGI's two messages on any other."""
    wire = wire_of(scope)
    if wire is not None:
        wire.respond(status, lines, body)
        return
    headers = [*_pairs(lines), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _pairs(lines: bytes) -> HeaderList:
    found = []
    for line in lines.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b": ")
        found.append((name, value))
    return found


def _lines_of(pairs: HeaderList) -> bytes:
    return b"".join(b"%s: %s\r\n" % pair for pair in pairs)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
