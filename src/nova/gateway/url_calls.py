"""Function URLs: HTTP in, HTTP out. What the event and the answer look like is :mod:`nova.gateway.urls`."""

import re

from starlette.types import Receive, Scope, Send

from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import LimitSettings
from nova.domain.call import CallRequest
from nova.domain.identity import Scope as Place
from nova.domain.ports import Invoker
from nova.gateway import calling, urls
from nova.gateway.entry import Entry
from nova.gateway.modes import UrlModes
from nova.gateway.replying import function_failed, lines_of, reply, text, with_client
from nova.gateway.streams import Streams
from nova.http.body import read as read_body
from nova.http.exchange import REQUEST_ID, Exchange
from nova.http.routing import decode_segment, without_prefix
from nova.payload import too_large
from nova.security.guards import Caller, Door

URL = "function.url"
URL_PATH = re.compile(rb"(?:/t/([^/]+)/([^/]+))?/fn/([^/]+)(/.*)?", re.DOTALL)


class UrlCalls:
    """The front's part for function URLs. Raises NovaError as long as no answer has begun."""

    def __init__(
        self,
        invoker: Invoker,
        entry: Entry,
        door: Door,
        streams: Streams,
        modes: UrlModes | None,
        limits: LimitSettings,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._invoker = invoker
        self._entry = entry
        self._door = door
        self._streams = streams
        self._modes = modes
        self._limit = limits.sync_payload_mb << 20
        self._clock = clock

    async def serve(self, scope: Scope, receive: Receive, send: Send, match: re.Match[bytes]) -> None:
        """``ANY [/t/{tenant}/{namespace}]/fn/{name}[@{qualifier}][/path]``."""
        received = self._clock.monotonic()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        name, at, qualifier = decode_segment(match[3]).partition("@")
        tenant, namespace = text(headers.get(b"x-nova-tenant")), text(headers.get(b"x-nova-namespace"))
        if match[1] is not None:
            tenant, namespace = decode_segment(match[1]), decode_segment(match[2])
        peer = scope["client"][0] if scope["client"] else None
        caller, place, extra = await self._entry.enter(
            headers, peer, URL, name, tenant, namespace, scope[REQUEST_ID], lenient=True
        )
        body = await read_body(receive, headers.get(b"content-length"), self._limit)
        request = self._request(scope, match, place, name, caller, body, headers)
        payload = urls.event(request)
        if len(payload) > self._limit:
            raise too_large(self._limit)
        call = CallRequest(request.request_id, place, name, payload, caller.identity, received)
        call.qualifier = qualifier if at else None
        call.trigger = "url"
        call.source_address = caller.address
        calling.apply_headers(call, headers)
        if self._modes is not None and await self._modes.streams(place, name):
            await self._streams.url(call, caller, extra, scope, receive, send)
            return
        with with_client(scope):
            result = await self._invoker.invoke(call)
        lines = calling.id_headers(call) + calling.answer_headers(result) + extra
        if result.error is not None or result.output is None:
            await function_failed(Exchange(scope, receive, send), caller, name, result, lines)
            return
        answer = urls.answer(result.output)
        await reply(scope, send, answer.status, lines_of(answer.headers) + lines, answer.body)

    def _request(
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
            proto = text(headers.get(b"x-forwarded-proto")) or proto
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
