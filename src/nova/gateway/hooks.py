"""Webhooks of the outside: ``ANY [/t/{tenant}/{namespace}]/hooks/{name}``. Who sends is for the trigger to find out."""

import re

from starlette.types import Receive, Scope, Send

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.identity import DEFAULT_NAMESPACE, DEFAULT_TENANT, Identity
from nova.domain.identity import Scope as Place
from nova.domain.names import is_name, is_scope
from nova.domain.trigger import HookDesk, HookRequest
from nova.errors import NovaError, draining, not_found
from nova.gateway.replying import lines_of, reply, text, with_client
from nova.http.body import read as read_body
from nova.http.exchange import REQUEST_ID
from nova.http.routing import decode_segment
from nova.security.guards import Caller, Door

HOOK_PATH = re.compile(rb"(?:/t/([^/]+)/([^/]+))?/hooks/([^/]+)")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MAX_STATE = 512


class Hooks:
    """The front's part for webhooks. Raises NovaError as long as no answer has begun."""

    def __init__(self, desk: HookDesk, door: Door, clock: Clock = SYSTEM_CLOCK) -> None:
        self._desk = desk
        self._door = door
        self._clock = clock

    async def serve(self, scope: Scope, receive: Receive, send: Send, match: re.Match[bytes]) -> None:
        received = self._clock.monotonic()
        if self._door.draining:
            raise draining()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        name = decode_segment(match[3])
        place = _place(headers, match)
        if not is_name(name):
            raise not_found("webhook", name)
        peer = scope["client"][0] if scope["client"] else None
        address = self._door.client_address(headers, peer)
        extra = self._admit(place, address)
        limit = await self._desk.limit(place, name)
        body = await read_body(receive, headers.get(b"content-length"), limit)
        request = HookRequest(
            method=scope["method"],
            path=scope["raw_path"].decode("ascii", "replace"),
            query=scope["query_string"].decode("ascii", "replace"),
            headers={key.decode("latin-1"): value.decode("latin-1") for key, value in headers.items()},
            body=body,
            address=address,
            request_id=scope[REQUEST_ID],
            received=received,
            traceparent=_traceparent(headers),
            tracestate=_tracestate(headers),
        )
        with with_client(scope):
            answer = await self._desk.receive(place, name, request)
        lines = lines_of(list(answer.headers)) + b"x-request-id: %s\r\n" % request.request_id.encode() + extra
        await reply(scope, send, answer.status, lines, answer.body)

    def _admit(self, place: Place, address: str | None) -> bytes:
        """The tenant is open, and its webhooks not called too often: each address has the rate of a caller there, so that a
        stranger does not use up the sender's."""
        identity = Identity(f"hooks@{address}", frozenset({place.tenant}), frozenset({place.namespace}))
        caller = Caller(identity, address)
        self._door.scope(caller, place.tenant, place.namespace)
        bucket = self._door.charge(caller, place)
        return b"" if bucket is None else lines_of(bucket.headers())


def _place(headers: dict[bytes, bytes], match: re.Match[bytes]) -> Place:
    """Of the path, else of the headers, else the default one."""
    if match[1] is not None:
        tenant, namespace = decode_segment(match[1]), decode_segment(match[2])
    else:
        tenant = text(headers.get(b"x-nova-tenant")) or DEFAULT_TENANT
        namespace = text(headers.get(b"x-nova-namespace")) or DEFAULT_NAMESPACE
    if not (is_scope(tenant) and is_scope(namespace)):
        raise NovaError("scope_invalid", "the tenant's or namespace's name is not valid")
    return Place(tenant, namespace)


def _traceparent(headers: dict[bytes, bytes]) -> str | None:
    found = text(headers.get(b"traceparent"))
    return found if found is not None and _TRACEPARENT.fullmatch(found) else None


def _tracestate(headers: dict[bytes, bytes]) -> str | None:
    found = text(headers.get(b"tracestate"))
    if _traceparent(headers) is None or found is None or len(found) > _MAX_STATE:
        return None
    return found
